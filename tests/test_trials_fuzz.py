"""Mutated bodies and headers on every route: no 500, no hang, no prompt or key in what is told."""

import asyncio
import hashlib
import logging
from pathlib import Path

import httpx
import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.fuzzing import (
    ADMIN_KEY,
    CANARIES,
    CLIENT_KEY,
    PROVIDER_KEY,
    cases,
    routes_of,
    storm,
)
from thriftroute.tests.helpers.serving import Serving, pool, serving

# Of LiteLLM's own, at its first call: pydantic's words about its models.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]
BODIES = 200  # for each route that takes one
QUERIES = 40  # for each that is read
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def leaked(*texts: str) -> list[str]:
    return [canary for canary in CANARIES if canary in "".join(texts)]


def test_no_mutated_request_gets_a_500_a_hang_or_a_canary_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with StubProvider() as provider:
        settings = pool(
            provider.url,
            records={"url": f"sqlite:///{tmp_path / 'r.db'}", "flush_s": 0.05},
            keys=[{"name": "ada", "sha256": sha(CLIENT_KEY), "tenant": "acme", "tier": "all"}],
            tiers={"all": {"budgets": [{"usd": 1000}]}},
            server={"port": 0, "admin_sha256": sha(ADMIN_KEY), "read_timeout_s": 5.0},
        )
        for model in settings["models"]:
            model["api_key"] = PROVIDER_KEY
        with serving(settings) as server:
            routes = routes_of(server.app)
            assert len(routes) > 10
            todo = [
                *cases([r for r in routes if r[0] == "POST"], BODIES),
                *cases([r for r in routes if r[0] != "POST"], QUERIES),
            ]
            statuses, wrong, errors = asyncio.run(storm(server.url, iter(todo)))
            looks = [shown(server, path) for path in ("/metrics", "/stats", "/decisions")]
    assert wrong == []
    assert sum(statuses.values()) == len(todo)
    assert statuses["200"] > 100
    assert statuses["400"] > 100
    stored = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.glob("r.db*"))
    assert "acme" in stored
    # LiteLLM and its clients are quiet in a server; here their own loggers are as tests set them.
    logged = "".join(r.getMessage() for r in caplog.records if "thriftroute" in r.name)
    out, err = capfd.readouterr()
    assert leaked(errors, stored, logged, out, err, *looks) == []


def shown(server: Serving, path: str) -> str:
    answer = httpx.get(server.url + path, headers=ADMIN, timeout=60.0)
    assert answer.status_code == 200
    return answer.text

"""The examples of the articles that this project answers, as a team would set them up here."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.router.bundle import update_manifest
from thriftroute.router.threshold import ThresholdTable
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.conftest import BundleMaker
from thriftroute.tests.helpers.serving import Serving, serving

# Of the tiny bundle's words some are hard and some easy: four prompts from easy to hard.
SIMPLE, MODERATE, COMPLEX, REASONING = (
    "hello hello easy",
    "what is the 2",
    "what is a hard integral",
    "prove the hard theorem",
)
PRICES = {"nano": 0.1, "mini": 1.0, "large": 10.0, "thinker": 40.0}


def ask(server: Serving, text: str, *, key: str = "", **body: Any) -> httpx.Response:
    sent = {"model": "auto", "messages": [{"role": "user", "content": text}], **body}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{server.url}/v1/chat/completions", json=sent, headers=headers, timeout=300)


def answered_by(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-thriftroute-model"]


def code_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["code"])


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture
def settings(provider: StubProvider, make_bundle: BundleMaker) -> dict[str, Any]:
    """A pool of four models from cheap to dear; the tiny bundle as its router."""
    rows = ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
    bundle = make_bundle("mf")
    update_manifest(bundle, thresholds={"own": asdict(ThresholdTable("own", 10, rows))})
    return {
        "models": [
            {
                "name": name,
                "model": f"openai/{name}",
                "api_base": provider.url,
                "api_key": "provider-key",
                "price": {"input": price, "output": 4 * price},
                "context_window": 16_000,
            }
            for name, price in PRICES.items()
        ],
        "strong": "large",
        "weak": "mini",
        "router": {"name": "mf", "checkpoint_path": str(bundle.path), "threshold": 0.5},
        "records": {"url": None},
        "calls": {"retries": 0},
        "server": {"port": 0},
    }


def test_three_cases_by_quality_and_length(settings: dict[str, Any]) -> None:
    """High quality: the strong model. Long prompts: the one for them. All else: the weak one."""
    settings["router"]["quality"] = {"low": 0.0, "medium": 0.5, "high": 1.0}
    settings["rules"] = [{"name": "long", "when": {"min_tokens": 500}, "model": "thinker"}]
    with serving(settings) as server:
        high = ask(server, SIMPLE, metadata={"quality": "high"})
        assert answered_by(high) == "large"
        assert "quality high" in high.headers["x-thriftroute-reason"]
        assert answered_by(ask(server, "word " * 1000, metadata={"quality": "low"})) == "thinker"
        assert answered_by(ask(server, REASONING, metadata={"quality": "low"})) == "mini"
        assert answered_by(ask(server, REASONING, metadata={"quality": "medium"})) == "large"


def test_four_categories_to_four_models(settings: dict[str, Any]) -> None:
    settings["router"] |= {
        "strategy": "bands",
        "bands": [
            {"name": "simple", "model": "nano", "below": 0.3},
            {"name": "moderate", "model": "mini", "below": 0.55},
            {"name": "complex", "model": "large", "below": 0.8},
            {"name": "reasoning", "model": "thinker"},
        ],
    }
    with serving(settings) as server:
        for text, band, model in (
            (SIMPLE, "simple", "nano"),
            (MODERATE, "moderate", "mini"),
            (COMPLEX, "complex", "large"),
            (REASONING, "reasoning", "thinker"),
        ):
            response = ask(server, text)
            assert answered_by(response) == model
            assert f"band '{band}'" in response.headers["x-thriftroute-reason"]


def test_four_task_types_to_four_models(settings: dict[str, Any]) -> None:
    """The same four, where the application knows the category itself."""
    mapped = {"simple": "nano", "moderate": "mini", "complex": "large", "reasoning": "thinker"}
    settings["rules"] = [
        {"name": task, "when": {"task": [task]}, "model": model} for task, model in mapped.items()
    ]
    with serving(settings) as server:
        for task, model in mapped.items():
            assert answered_by(ask(server, SIMPLE, metadata={"taskType": task})) == model
        assert answered_by(ask(server, SIMPLE, metadata={"taskType": "other"})) == "mini"


def test_a_table_of_tiers(settings: dict[str, Any]) -> None:
    """free: weak models, 50K tokens a day. pro: routed. enterprise: mostly strong, all models."""
    settings["tiers"] = {
        "free": {"weak_only": True, "budgets": [{"tokens": 50_000, "scope": "tenant"}]},
        "pro": {"models": ["mini", "large"], "budgets": [{"usd": 10, "scope": "tenant"}]},
        "enterprise": {"threshold": 0.0},
    }
    settings["keys"] = [
        {"name": t, "tenant": t, "tier": t, "sha256": hashlib.sha256(t.encode()).hexdigest()}
        for t in settings["tiers"]
    ]
    with serving(settings) as server:
        assert answered_by(ask(server, REASONING, key="free")) == "mini"
        assert code_of(ask(server, SIMPLE, key="free", model="large"), 403) == "model_not_allowed"
        assert code_of(ask(server, SIMPLE, key="free", max_tokens=15_000, n=4), 429) == (
            "budget_exceeded"
        )
        assert answered_by(ask(server, REASONING, key="pro")) == "large"
        assert answered_by(ask(server, SIMPLE, key="pro")) == "mini"
        assert code_of(ask(server, SIMPLE, key="pro", model="thinker"), 403) == "model_not_allowed"
        assert answered_by(ask(server, SIMPLE, key="enterprise")) == "large"
        assert answered_by(ask(server, SIMPLE, key="enterprise", model="thinker")) == "thinker"


def test_max_cost(settings: dict[str, Any], provider: StubProvider) -> None:
    """large: at most $0.04 for 1,000 tokens of answer; mini $0.004; nano $0.0004."""
    limits = {"max_tokens": 1000, "metadata": {"maxCost": 0.005}}
    with serving(settings) as server:
        response = ask(server, REASONING, **limits)
        assert code_of(response, 400) == "max_cost"
        assert "the cheapest that can take it, 'nano', may cost $0.0004" in response.text
        assert provider.requests == []
        assert answered_by(ask(server, SIMPLE, **limits)) == "mini"
    settings["max_cost_action"] = "cheapest"
    with serving(settings) as server:
        assert answered_by(ask(server, REASONING, **limits)) == "nano"
        tight = {"max_tokens": 1000, "metadata": {"maxCost": 0.0001}}
        assert code_of(ask(server, REASONING, **tight), 400) == "max_cost"


def test_sensitive_data_is_blocked_masked_or_sent_to_a_secure_model(
    settings: dict[str, Any], provider: StubProvider, tmp_path: Path
) -> None:
    settings["models"][3]["tags"] = ["secure"]
    settings["sensitivity"] = {"actions": {"card": "block", "phone": "secure", "email": "mask"}}
    settings["records"] = {"url": f"sqlite:///{tmp_path}/decisions.db", "text": True}
    with serving(settings) as server:
        card = ask(server, "charge 4111 1111 1111 1111")
        assert code_of(card, 400) == "sensitive_data"
        assert provider.requests == []
        assert answered_by(ask(server, "call +49 30 1234567")) == "thinker"
        assert answered_by(ask(server, "hello bob@example.com")) == "mini"
        assert "bob@example.com" in json.dumps(provider.requests[-1].body)
    written = b"".join(path.read_bytes() for path in tmp_path.glob("decisions.db*"))
    assert b"[email]" in written
    assert b"bob@example.com" not in written
    assert b"1234567" not in written
    assert b"4111 1111" not in written

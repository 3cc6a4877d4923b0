"""`models --probe` against a provider on the loopback: every outcome, the cost, and no key."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from thriftroute.cli import app
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from typer.testing import CliRunner

KEY = "sk-secret-0123456789abcdef"
SAYS = {
    "yes": Fault(logprob=-0.5),
    "missing": Fault(logprobs=False),
    "refused": Fault(status=400, error=f"logprobs is not supported with {KEY}"),
    "zeros": Fault(logprob=0.0),
    "unknown": Fault(logprob=-9999.0),
    "wrong-key": Fault(status=401, error=f"no such key: {KEY}"),
    "other": Fault(status=400, error="temperature is missing"),
    "broken": Fault(raw="{}"),
}


@pytest.fixture
def provider() -> Any:
    with StubProvider() as running:
        for model, fault in SAYS.items():
            running.always(fault, model=model)
        yield running


def probed(provider: StubProvider, folder: Path, *more: str) -> str:
    price = {"input": 1, "output": 2}
    models: list[dict[str, Any]] = [
        {"name": name, "model": f"openai/{name}", "api_base": provider.url, "api_key": KEY,
         "price": price}
        for name in SAYS
    ]  # fmt: skip
    models += [
        # LiteLLM knows that Anthropic's API has none, and sends nothing.
        {"name": "anthropic", "model": "anthropic/claude-sonnet-4-5", "api_key": KEY},
        {"name": "away", "model": "openai/away", "api_base": "http://127.0.0.1:9/v1",
         "api_key": KEY, "price": price},
    ]  # fmt: skip
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump({"models": models, "strong": "yes", "weak": "missing"}))
    result = CliRunner().invoke(app, ["models", "--config", str(file), *more])
    assert result.exit_code == 0, (result.output, result.exception)
    assert KEY not in result.output
    return result.stdout


def test_each_outcome_is_told(provider: StubProvider, tmp_path: Path) -> None:
    rows = json.loads(probed(provider, tmp_path, "--probe", "--json"))
    found = {row["name"]: row["log_probabilities"] for row in rows}
    assert {name: row["outcome"] for name, row in found.items()} == {
        "yes": "yes",
        "missing": "missing",
        "refused": "refused",
        "zeros": "degenerate",
        "unknown": "degenerate",
        "wrong-key": "failed",
        "other": "failed",
        "broken": "failed",
        "anthropic": "refused",
        "away": "failed",
    }
    assert found["yes"]["probability"] == pytest.approx(0.6065, abs=1e-4)
    assert found["zeros"]["probability"] is None
    assert "logprobs is not supported with [hidden]" in found["refused"]["why"]
    assert found["wrong-key"]["why"].startswith("AuthenticationError 401")
    assert "temperature is missing" in found["other"]["why"]
    assert "logprobs" in found["anthropic"]["why"]
    assert found["away"]["cost"] is None
    # Each was asked once, and only for a short answer.
    asked = [request.body["model"] for request in provider.requests]
    assert sorted(asked) == sorted(SAYS)
    assert all(request.body["logprobs"] is True for request in provider.requests)
    assert all(request.body["max_tokens"] == 16 for request in provider.requests)


def test_the_cost_is_what_the_provider_counted(provider: StubProvider, tmp_path: Path) -> None:
    provider.always(
        Fault(usage={"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}), "yes"
    )
    rows = json.loads(probed(provider, tmp_path, "--probe", "--json"))
    assert rows[0]["log_probabilities"]["cost"] == pytest.approx((100 * 1 + 10 * 2) / 1e6)


def test_the_table_says_it_in_words(
    provider: StubProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    printed = " ".join(probed(provider, tmp_path, "--probe").split())
    assert "yes yes, probability 0.607 0.0000" in printed
    assert "missing accepted, but none came" in printed
    assert "unknown degenerate: all are 0 or -9999" in printed
    assert "refused refused: BadRequestError 400" in printed


def test_nobody_is_asked_without_probe(provider: StubProvider, tmp_path: Path) -> None:
    rows = json.loads(probed(provider, tmp_path, "--json"))
    assert all("log_probabilities" not in row for row in rows)
    assert provider.requests == []

"""One model at two efforts as the pair, from training to the price: each effort has its own tokens,
and both have the model's prices."""

import json
from pathlib import Path
from typing import Any

import pytest
from thriftroute.cli import app
from thriftroute.providers.prices import listed_price
from thriftroute.router.bundle import Bundle
from typer.testing import CliRunner

from .helpers import auditing

HIGH, LOW = "gpt-5@high", "gpt-5@low"
PAIR = ("--strong", HIGH, "--weak", LOW)
PRICES = ("--strong-model", HIGH, "--weak-model", LOW)
TOKENS = {HIGH: 2000, LOW: 250}


def told(*args: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Scores of both efforts, with tokens; of every fourth prompt those of the answers are not
    known."""
    path = auditing.write(tmp_path / "efforts.jsonl", 400)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["model"] = HIGH if row["model"] == "big" else LOW
        row["input_tokens"] = 100
        if i // 2 % 4:
            row["output_tokens"] = TOKENS[row["model"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_training_calibration_and_audit(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "router"
    trained = told(
        *("train", "mf", "--data", data, *PAIR, "--base", tiny_base, "--max-tokens", 48),
        *("--out", out),
    )
    assert trained["kind"] == "mf"
    manifest = Bundle.open(out).manifest
    assert (manifest.strong, manifest.weak) == (HIGH, LOW)

    price = listed_price("gpt-5", option="--price")
    usd = {name: float(price.costs(100, tokens)) for name, tokens in TOKENS.items()}
    args = ("--router", out, "--data", data, *PAIR, *PRICES)
    for share, name in ((1.0, HIGH), (0.0, LOW)):
        found = told("calibrate", *args, "--strong-pct", share)
        assert found["usd_per_1k"] == pytest.approx(1000 * usd[name])
        assert f"predicted from 300 known ones (mean {TOKENS[HIGH]:,}" in found["warning"]

    found = told("audit", *args)
    assert found["saving_of"] == "usd"
    assert found["facts"]["strong_usd_per_1k"] == pytest.approx(1000 * usd[HIGH])
    weak_share = 1 - found["strong_pct"]
    assert found["saving"] == pytest.approx(weak_share * (1 - usd[LOW] / usd[HIGH]), abs=1e-6)


def test_replay_takes_the_price_of_the_model(tmp_path: Path) -> None:
    steps = tmp_path / "steps.jsonl"
    lines = [
        {"session": "s", "model": HIGH, "time": 10 * i, "input_tokens": 0, "messages": i + 1}
        | {"cache_read_tokens": 20_000 + 1000 * i, "cache_write_tokens": 1000}
        | {"output_tokens": 100, "tool_results": i}
        for i in range(20)
    ]
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = told("replay", steps, *PAIR)
    policies = {each["policy"]: each for each in found["policies"]}
    price = listed_price("gpt-5", option="--price")
    assert price.cache_read is not None
    read = sum(20_000 + 1000 * i for i in range(20))
    whole = (read * price.cache_read + 20 * (1000 * price.input + 100 * price.output)) / 1e6
    # The record does not know how the other effort would have answered.
    assert policies["strong"]["usd"] == pytest.approx(whole)
    assert policies["weak"]["usd"] == pytest.approx(whole)
    # A change of effort finds no cache.
    assert policies["blind"]["usd"] > policies["priced"]["usd"]
    assert policies["priced"]["switches"] == 0

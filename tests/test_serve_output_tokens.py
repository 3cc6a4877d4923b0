"""A server learns from its record how long each model's answers are, and estimates by that."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.serve.config.settings import RecordSettings
from thriftroute.serve.records import Record, Recorder
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

USER = [{"role": "user", "content": "Hi"}]


def of_record(tmp_path: Path) -> dict[str, Any]:
    """A record of 130 answers of either model: the strong one's are four times as long."""
    url = f"sqlite:///{tmp_path / 'decisions.db'}"
    recorder = Recorder(RecordSettings(url=url))
    recorder.start()
    for i in range(260):
        model, tokens, score = ("strong", 800, 0.6) if i % 2 else ("weak", 200, 0.4)
        told = {"prompt_tokens": 9, "completion_tokens": tokens, "score": score}
        recorder.put(Record(f"{i:032x}", 1e9 + i, model=model, **told))
    assert recorder.close() == 0
    return {"url": url, "flush_s": 0.02}


def told(server: Serving, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_estimates_and_the_account_go_by_what_each_model_writes(tmp_path: Path) -> None:
    with (
        StubProvider() as provider,
        serving(pool(provider.url, records=of_record(tmp_path))) as server,
    ):
        while not server.state.lengths.arms:
            time.sleep(0.01)
        stats = httpx.get(f"{server.url}/stats").json()
        known = stats["output_tokens"]
        assert {name: (arm["n"], arm["mean"]) for name, arm in known.items()} == {
            "strong": (130, pytest.approx(800)), "weak": (130, pytest.approx(200)),
        }  # fmt: skip
        assert known["strong"]["times"] == {"weak": pytest.approx(4)}
        assert known["strong"]["error"] == pytest.approx(0, abs=1e-6)
        assert known["strong"]["default_error"] == pytest.approx(500 / 800)
        # Two USD a million tokens of the weak model's answers, ten times that of the strong one's.
        free = told(server, "/route", prompt="Hi", model="weak")
        assert free["output_tokens"] == 200
        prompt = free["prompt_tokens"]
        assert free["estimates"] == {
            "strong": pytest.approx((10 * prompt + 20 * 800) / 1e6),
            "weak": pytest.approx((prompt + 2 * 200) / 1e6),
        }
        limited = told(server, "/route", prompt="Hi", model="weak", max_tokens=7)
        assert limited["output_tokens"] == 7
        # A limit between the constant's estimate and the model's own.
        wish = {"model": "strong", "messages": USER, "metadata": {"max_cost": 0.01}}
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=wish, timeout=300)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "max_cost")
        assert "up to 800 of answer" in refused.json()["error"]["message"]

        answer = told(server, "/v1/chat/completions", model="weak", messages=USER)
        server.wait_for_rows(2)
        (row,) = server.state.recorder.recent(1, {"requested": "weak", "status": 200})
    usage = answer["usage"]
    prompt, written = usage["prompt_tokens"], usage["completion_tokens"]
    assert row["cost"] == pytest.approx((prompt + 2 * written) / 1e6)
    # Always strong would have written four times as much.
    assert row["strong_cost"] == pytest.approx((10 * prompt + 20 * 4 * written) / 1e6)


def test_a_configured_number_stays(tmp_path: Path) -> None:
    records = of_record(tmp_path)
    with (
        StubProvider() as provider,
        serving(pool(provider.url, records=records, expected_output_tokens=512)) as server,
    ):
        assert told(server, "/route", prompt="Hi", model="weak")["output_tokens"] == 512
        answer = told(server, "/v1/chat/completions", model="weak", messages=USER)
        server.wait_for_rows(1)
        (row,) = server.state.recorder.recent(1, {"requested": "weak"})
        assert server.state.lengths.arms == {}
    assert row["strong_cost"] == pytest.approx(10 * row["cost"])
    assert answer["usage"]

"""A strong share's threshold, read off the first requests of a server's own traffic."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.router.threshold import threshold_for_share
from thriftroute.serve.config.settings import Config
from thriftroute.serve.live.drift_monitor import LEAST
from thriftroute.serve.state import ServerState
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

HARD = "Prove that the sum of the reciprocals of the first {} primes is no integer, step by step."


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


def ask(client: httpx.Client, prompt: str, model: str = "auto") -> dict[str, str]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.headers)


def settings(provider: StubProvider, url: str | None = None, **router: Any) -> dict[str, Any]:
    wish = {"name": "fast", **({"strong_share": 0.3} if "threshold" not in router else {})}
    return pool(provider.url, records={"url": url}, router={**wish, **router})


def told(server: Serving) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/stats").json()
    return found


def test_the_first_hundred_requests_move_the_threshold_once_and_for_good(
    provider: StubProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(provider, f"sqlite:///{tmp_path / 'r.db'}")
    scores: list[float] = []
    with serving(chosen) as server, httpx.Client(base_url=server.url) as client:
        for number in range(LEAST // 2):
            scores.append(float(ask(client, HARD.format(number))["x-thriftroute-score"]))
    with serving(chosen) as server, httpx.Client(base_url=server.url) as client:
        state = server.state
        before = state.pipeline.threshold
        assert f"After {LEAST} scored requests" in told(server)["notices"][0]
        for number in range(LEAST // 2, LEAST):
            if number == LEAST - 1:
                state.drift_monitor.step()  # one is missing
                assert state.pipeline.threshold == before
                # Neither of these went by the share's threshold.
                ask(client, HARD.format("two"), "router-fast-0.9")
                ask(client, HARD.format("two"), "strong")
                state.drift_monitor.step()
                assert state.pipeline.threshold == before
            scores.append(float(ask(client, HARD.format(number))["x-thriftroute-score"]))
        state.drift_monitor.step()
        threshold = state.pipeline.threshold
        assert threshold == pytest.approx(threshold_for_share(scores, 0.3)[0], abs=1e-5)
        assert threshold is not None and before is not None and threshold > before
        stats = told(server)
        assert stats["router"]["threshold"] == threshold
        assert stats["router"]["strong_share"] == 0.3
        notice, unlike = stats["notices"]
        assert unlike.startswith("drift: scores (p = ")
        assert "expected 30.0%) of 51 prompts differ from 'ordinary'" in unlike
        assert f"is {threshold:.4g} instead of {before:.4g}, which sent 100% of" in notice
        reason = ask(client, "Hi")["x-thriftroute-reason"]
        assert "strong share 0.3 of the first 100 requests here" in reason
        for number in range(LEAST):
            ask(client, f"What is {number} plus one?")
        state.drift_monitor.step()
        assert state.pipeline.threshold == threshold
    with serving(chosen) as server:  # before anything is asked
        assert server.state.pipeline.threshold == threshold
        assert told(server)["notices"] == [notice]
    for said in (notice, "drift: scores"):
        assert len([r for r in caplog.records if r.message.startswith(said)]) == 1
    with serving(settings(provider, chosen["records"]["url"], strong_share=0.5)) as server:
        assert "of ordinary prompts" in told(server)["notices"][0]  # another wish


def test_workers_that_get_there_together_go_by_one_threshold(
    provider: StubProvider, tmp_path: Path
) -> None:
    config = Config.model_validate(settings(provider, f"sqlite:///{tmp_path / 'r.db'}"))
    workers = [ServerState(config) for _ in range(2)]
    for worker, highest in zip(workers, (1.0, 0.9), strict=True):
        worker.recorder.check()
        row = {"threshold": worker.pipeline.threshold, "model": "weak", "status": 200}
        own = worker.drift_monitor.own_share
        assert own is not None
        own.add({**row, "score": highest * number / LEAST} for number in range(LEAST))
    for worker in workers:
        worker.drift_monitor.step()
    assert workers[0].pipeline.threshold == pytest.approx(0.7, abs=0.011)
    assert workers[1].pipeline.threshold == workers[0].pipeline.threshold


def test_scores_that_are_all_alike_move_nothing(provider: StubProvider) -> None:
    with serving(settings(provider)) as server:
        own, before = server.state.drift_monitor.own_share, server.state.pipeline.threshold
        assert own is not None
        row = {"threshold": before, "model": "weak", "status": 200}
        own.add([{**row, "score": 0.2}] * LEAST)
        server.state.drift_monitor.step()
        assert server.state.pipeline.threshold == before
        assert "the scores of 100 requests are too alike" in told(server)["notices"][0]
        own.add({**row, "score": number / LEAST} for number in range(LEAST))
        server.state.drift_monitor.step()
        assert server.state.pipeline.threshold == pytest.approx(0.4, abs=0.011)


@pytest.mark.parametrize(
    "router",
    [
        {"threshold": 0.5},
        {"adapt_share": False},
        {"hold": {"strong_share": 0.3}},
        {"strategy": "bands", "bands": [{"name": "all", "model": "weak"}]},
    ],
)
def test_what_is_said_is_never_touched(provider: StubProvider, router: dict[str, Any]) -> None:
    state = ServerState(Config.model_validate(settings(provider, **router)))
    assert state.drift_monitor.own_share is None
    assert state.drift_monitor.notices == []

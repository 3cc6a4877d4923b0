"""Shadow mode over HTTP, the gauges of drift, and a threshold that holds its aim."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from thriftroute.errors import ConfigError
from thriftroute.eval.drift.baseline import Baseline
from thriftroute.router.threshold import threshold_for_share
from thriftroute.serve.config.loader import load_config
from thriftroute.serve.live.drift_monitor import LEAST, DriftMonitor, ThresholdHold
from thriftroute.serve.records import Record
from thriftroute.serve.state import ServerState
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.serving import Serving, pool, serving

EASY, HARD = (
    "Say hello.",
    "Prove that every bounded sequence of reals has a limit point, step by step.",
)


def ask(server: Serving, text: str = EASY, model: str = "auto", **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=300
    )
    assert answer.status_code == 200, answer.text
    return answer


def rows(path: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM thriftroute_decisions ORDER BY time")
        return [dict(row) for row in found]


def test_in_shadow_mode_the_strong_model_answers_and_the_record_says_what_would_have_been(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.db"
    records = {"url": f"sqlite:///{path}", "flush_s": 0.05}
    with StubProvider() as provider:
        with serving(pool(provider.url, shadow=True, records=records)) as server:
            weak = ask(server, model="router-mf-1.0")
            ask(server, model="router-mf-0.0", stream=True)
            direct = ask(server, model="weak")
            dry = httpx.post(f"{server.url}/route", json={"prompt": EASY}).json()
            for _ in range(15000):
                report = httpx.get(f"{server.url}/stats").json()
                if report["totals"]["requests"] == 3:
                    break
        assert [request.body["model"] for request in provider.requests] == [
            "strong",
            "strong",
            "weak",
        ]
    assert weak.headers["x-thriftroute-model"] == "strong"
    assert weak.headers["x-thriftroute-choice"] == "shadow"
    assert "'weak' would answer" in weak.headers["x-thriftroute-reason"]
    assert direct.headers["x-thriftroute-choice"] == "direct"
    assert (dry["model"], dry["choice"]) == ("strong", "shadow")
    assert dry["routed"] in {"strong", "weak"}
    first, second, third = rows(path)
    assert (first["model"], first["routed"], first["strong"]) == ("strong", "weak", 1)
    assert first["cost"] == first["strong_cost"]
    assert first["routed_cost"] == pytest.approx(first["cost"] / 10)  # as their prices are
    assert (second["routed"], second["routed_cost"]) == ("strong", second["cost"])
    assert third["routed"] is None
    shadow = report["shadow"]
    assert shadow["requests"] == 2
    assert shadow["strong_share"] == 0.5
    assert shadow["saving"] == pytest.approx(first["cost"] - first["routed_cost"])


def test_shadow_mode_keeps_to_what_the_strong_model_may_take(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    settings = {
        "shadow": True,
        "records": {"url": f"sqlite:///{path}"},
        "tiers": {"free": {"weak_only": True}},
        "default_tier": "free",
    }
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        assert ask(server).headers["x-thriftroute-model"] == "weak"
    (row,) = rows(path)
    assert (row["routed"], row["routed_cost"]) == ("weak", row["cost"])
    assert ["shadow", "'strong' cannot take it"] in json.loads(row["steps"])


def test_shadow_mode_keeps_to_a_requests_own_max_cost() -> None:
    with StubProvider() as provider, serving(pool(provider.url, shadow=True)) as server:
        # 100 tokens of answer: 0.0002 on weak, 0.002 on strong.
        headers = {"x-thriftroute-max-cost": "0.001"}
        answer = ask(server, model="router-mf-1.0", max_tokens=100, headers=headers)
        assert answer.headers["x-thriftroute-model"] == "weak"


def test_a_session_in_shadow_mode_goes_on_where_it_was_meant_to_be(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    settings = {"shadow": True, "sticky_s": 60.0, "records": {"url": f"sqlite:///{path}"}}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        for model in ("router-mf-1.0", "router-mf-0.0"):
            answer = ask(server, model=model, headers={"x-thriftroute-session": "s"})
            assert answer.headers["x-thriftroute-model"] == "strong"
    assert [row["routed"] for row in rows(path)] == ["weak", "weak"]


def test_where_the_strong_model_fails_shadow_mode_falls_back(tmp_path: Path) -> None:
    with StubProvider() as provider:
        provider.always(Fault(status=500), model="strong")
        with serving(pool(provider.url, shadow=True)) as server:
            assert ask(server).headers["x-thriftroute-model"] == "weak"


def test_what_a_cache_answers_would_have_cost_nothing_either(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    records, cache = {"url": f"sqlite:///{path}"}, {"backend": "memory"}
    settings = {"shadow": True, "records": records, "cache": cache}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        ask(server)
        assert ask(server).headers["x-thriftroute-cache"] == "hit"
    assert [row["routed_cost"] == 0 for row in rows(path)] == [False, True]


def gauges(server: Serving) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines if "{" not in name}


def test_the_gauges_tell_of_drift(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "b.json"
    # Nothing like the scores of greetings: all of them at 0.9.
    Baseline.from_scores("b", np.full(500, 0.9)).save(file)
    settings = pool("http://127.0.0.1:9/v1", watch={"baseline": str(file), "every_s": 3600.0})
    with StubProvider() as provider:
        settings["models"] = pool(provider.url)["models"]
        with serving(settings) as server:
            before = gauges(server)
            for number in range(30):
                ask(server, f"Hello number {number}!")
            server.state.drift_monitor.step()
            after = gauges(server)
            drift = httpx.get(f"{server.url}/stats").json()["drift"]
    assert before["thriftroute_drift_pvalue"] == 1
    assert before["thriftroute_drift_alarm"] == 0
    assert after["thriftroute_drift_pvalue"] < 0.005
    assert after["thriftroute_drift_alarm"] == 1
    assert after["thriftroute_strong_share_expected"] == 1
    assert after["thriftroute_threshold"] == 0.5
    assert (drift["verdict"], drift["n"]) == ("drift", 30)
    assert drift["findings"]["scores"]["alarm_at"] == 25
    assert len([r for r in caplog.records if r.message.startswith("drift: scores")]) == 1


def test_by_itself_it_watches_against_the_bundles_own_table() -> None:
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        assert server.state.drift_monitor.on
        ask(server)
        for _ in range(15000):
            server.state.drift_monitor.step()
            report = server.state.drift_monitor.report
            assert report is not None
            if report.n == 1:
                break
        assert (report.baseline, report.verdict, report.n) == ("ordinary", "ok", 1)
        assert gauges(server)["thriftroute_strong_share_expected"] == pytest.approx(0.375, abs=0.05)


def test_it_can_be_turned_off_and_needs_a_table() -> None:
    for settings in (
        {"watch": {"enabled": False}},
        {"router": {"name": "random", "threshold": 0.5}},
    ):
        with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
            assert not server.state.drift_monitor.on
            assert httpx.get(f"{server.url}/stats").json()["drift"] is None


def test_a_baseline_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    from thriftroute.serve.config.settings import Config

    file = tmp_path / "b.json"
    file.write_text("{}", encoding="utf-8")
    settings = pool("http://127.0.0.1:9/v1", watch={"baseline": str(file)})
    with pytest.raises(ConfigError, match=r"watch\.baseline: .*b\.json: no baseline"):
        ServerState(Config.model_validate(settings))


def test_familiarity_is_recorded_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    settings = {"records": {"url": f"sqlite:///{path}"}, "watch": {"novelty": 1.0}}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        ask(server)
        ask(server, model="weak")  # nothing was scored
    first, second = rows(path)
    assert 0 <= first["familiarity"] <= 1
    assert second["familiarity"] is None


HOLD = {"name": "mf", "threshold": 0.5, "hold": {"strong_share": 0.25, "window": 400}}


def scored(score: float, cost: float = 0.01) -> dict[str, Any]:
    record = Record("d", 0.0, model="weak", router="mf", score=score, strong_cost=cost)
    return {**asdict(record), "prompt_tokens": 100, "completion_tokens": 50}


def holding(server: Serving) -> tuple[DriftMonitor, ThresholdHold]:
    monitor = server.state.drift_monitor
    assert monitor.hold is not None
    return monitor, monitor.hold


def test_a_threshold_holds_its_strong_share() -> None:
    scores = np.random.default_rng(0).random(400).tolist()
    with StubProvider() as provider, serving(pool(provider.url, router=HOLD)) as server:
        monitor, hold = holding(server)
        hold.add([scored(score) for score in scores[: LEAST - 1]])
        monitor.step()
        assert server.state.pipeline.threshold == 0.5  # too few to tell
        hold.add([scored(score) for score in scores[LEAST - 1 :]])
        failed = Record(id="d", time=0.0, score=0.99, status=502)  # nobody answered
        hold.add([asdict(failed)])
        for _ in range(400):  # of an experiment's treatment
            other = Record(id="d", time=0.0, model="weak", router="fast", score=0.99)
            monitor.observe(other)
        monitor.step()
        threshold, share = threshold_for_share(scores, 0.25)
        assert share == 0.25
        assert server.state.pipeline.threshold == threshold
        answer = ask(server)
        assert "held at strong share 0.25 by the last 400" in answer.headers["x-thriftroute-reason"]
        assert float(answer.headers["x-thriftroute-threshold"]) == pytest.approx(threshold)
        assert gauges(server)["thriftroute_threshold"] == threshold
        # What a request asks for still wins.
        assert ask(server, model="router-mf-1.0").headers["x-thriftroute-model"] == "weak"


def test_a_threshold_holds_a_budget_within_its_bounds() -> None:
    # 100 and 50 tokens: 0.002 on strong, 0.0002 on weak. Half of the way between: half strong.
    hold = {"usd_per_1k": 1.1, "window": 400, "highest": 0.6}
    router = {"name": "mf", "threshold": 0.5, "hold": hold}
    scores = (np.arange(400) + 0.5) / 400
    with StubProvider() as provider, serving(pool(provider.url, router=router)) as server:
        _, held = holding(server)
        held.add([scored(score, cost=0.002) for score in scores.tolist()])
        held.move(now=0.0)
        assert server.state.pipeline.threshold == pytest.approx(0.5, abs=0.01)
        held.add([scored(score, cost=0.02) for score in scores.tolist()])
        held.move(now=1.0)  # not yet
        assert server.state.pipeline.threshold == pytest.approx(0.5, abs=0.01)
        held.move(now=301.0)  # 0.0011 would take nearly none: but no more than `highest`
        assert server.state.pipeline.threshold == 0.6


def test_a_budget_below_the_weak_models_cost_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    hold = {"usd_per_1k": 0.01, "window": 100}
    router = {"name": "mf", "threshold": 0.5, "hold": hold}
    with StubProvider() as provider, serving(pool(provider.url, router=router)) as server:
        _, held = holding(server)
        held.add([scored(0.4, cost=0.002)] * 100)
        for now in (0.0, 1000.0):
            held.move(now=now)
        assert server.state.pipeline.threshold == 1.0
    assert len([r for r in caplog.records if "below the cheapest mix" in r.message]) == 1


def test_a_held_threshold_starts_with_what_was_recorded(tmp_path: Path) -> None:
    records = {"url": f"sqlite:///{tmp_path / 'r.db'}"}
    router = {"name": "mf", "threshold": 0.5, "hold": {"strong_share": 0.1}}
    with StubProvider() as provider:
        with serving(pool(provider.url, records=records)) as server:
            for number in range(LEAST):
                server.state.recorder.put(
                    Record(
                        id=f"d{number}", time=number, model="weak", router="mf", score=number / 100
                    )
                )
        with serving(pool(provider.url, records=records, router=router)) as server:
            for _ in range(30000):
                if server.state.pipeline.threshold != 0.5:
                    break
                asyncio.run(asyncio.sleep(0.01))
            assert server.state.pipeline.threshold == pytest.approx(0.9, abs=0.011)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("router: {threshold: 0.5, hold: {}}", "give exactly one of strong_share, usd_per_1k"),
        (
            "router: {threshold: 0.5, hold: {strong_share: 0.1, lowest: 0.5, highest: 0.4}}",
            "expected lowest <= highest",
        ),
        (
            "router: {strategy: pool, hold: {strong_share: 0.1}}",
            "moves a threshold, which strategy pool has not",
        ),
        ("experiment: {name: a b, share: 0.1, threshold: 0.2}", "experiment.name"),
        ("experiment: {name: a, share: 0.1}", "give a threshold, a strong_share or another router"),
        (
            "experiment: {name: a, share: 0.1, threshold: 0.2, strong_share: 0.1}",
            "give threshold or strong_share, and not both",
        ),
        (
            "shadow: true\nexperiment: {name: a, share: 0.1, threshold: 0.2}",
            "shadow answers everything with the strong model: turn one off",
        ),
        (
            "router: {strategy: pool}\nexperiment: {name: a, share: 0.1, threshold: 0.2}",
            "is for strategy pair, not pool",
        ),
        ("watch: {alpha: 0}", "watch.alpha"),
    ],
)
def test_what_does_not_fit_is_said(section: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "thriftroute.yaml"
    path.write_text(
        "models: [{name: gpt-4o}, {name: gpt-4o-mini}]\nstrong: gpt-4o\nweak: gpt-4o-mini\n"
        + section
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert problem in str(caught.value)


def test_a_soft_budget_holds_in_shadow_mode_but_tool_calls_stay_where_they_are(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.db"
    settings = {
        "shadow": True,
        "tiers": {"pro": {"budgets": [{"tokens": 100_000, "soft": 0.0}]}},
        "default_tier": "pro",
        "records": {"url": f"sqlite:///{path}"},
    }
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        assert ask(server).headers["x-thriftroute-model"] == "weak"
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={"messages": messages}, timeout=300
        )
        assert answer.headers["x-thriftroute-model"] == "strong"
    assert [row["routed"] is not None for row in rows(path)] == [True, True]


def test_gauges_of_several_workers_are_put_together(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from thriftroute.serve.records.metrics import Metrics\n"
        "metrics = Metrics(folder=Path(sys.argv[1]))\n"
        "before = metrics.render()[0].decode()\n"
        "metrics.drift_pvalue.set(float(sys.argv[2])); metrics.drift_alarm.set(int(sys.argv[3]))\n"
        "metrics.threshold.set(0.25)\n"
        "print(metrics.render()[0].decode() if sys.argv[2] != '0.5' else before)\n"
    )

    def worker(p: str, alarm: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), p, alarm],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        lines = [line.split() for line in done.stdout.splitlines() if line[:1] not in {"#", ""}]
        return {line[0]: line[1] for line in lines}

    first = worker("0.5", "0")
    assert (first["thriftroute_drift_pvalue"], first["thriftroute_drift_alarm"]) == ("1.0", "0.0")
    assert first["thriftroute_strong_share_expected"] == "NaN"
    worker("0.001", "1")
    last = worker("0.7", "0")
    assert (last["thriftroute_drift_pvalue"], last["thriftroute_drift_alarm"]) == ("0.001", "1.0")
    assert last["thriftroute_threshold"] == "0.25"

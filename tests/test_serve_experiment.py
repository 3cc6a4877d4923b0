"""An experiment over HTTP: who is in which arm, what is recorded, how the arms are compared."""

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.errors import ConfigError
from thriftroute.serve.config.settings import Config, RecordSettings
from thriftroute.serve.live.experiment import Experiment
from thriftroute.serve.records import Record, Recorder, hash_session
from thriftroute.serve.request import ChatRequest
from thriftroute.serve.state import ServerState
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers import asking
from thriftroute.tests.helpers.serving import Serving, pool, serving

# Threshold 0 sends all of the treatment to the strong model, 1 all of the control to the weak one.
ROUTER = {"name": "mf", "threshold": 1.0}
TRIAL: dict[str, Any] = {"name": "trial", "share": 0.5, "threshold": 0.0}


def ask(server: Serving, session: str | None = None, model: str = "auto", **more: Any) -> str:
    """The model that answered."""
    headers = {} if session is None else {"x-thriftroute-session": session}
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "metadata": more}
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=300
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["x-thriftroute-model"]


def rows(path: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM thriftroute_decisions ORDER BY time")
        return [dict(row) for row in found]


def test_a_session_stays_in_its_arm_and_its_arm_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    settings = {"router": ROUTER, "experiment": TRIAL, "records": {"url": f"sqlite:///{path}"}}
    with StubProvider() as provider:
        with serving(pool(provider.url, **settings)) as server:
            first = {f"s{i}": ask(server, f"s{i}") for i in range(12)}
        with serving(pool(provider.url, **settings)) as server:  # after a restart too
            again = {f"s{i}": ask(server, f"s{i}") for i in range(12)}
    assert first == again
    assert set(first.values()) == {"strong", "weak"}
    found = rows(path)
    assert len(found) == 24
    for row in found:
        assert row["arm"] == ("trial/treatment" if row["model"] == "strong" else "trial/control")
        assert row["threshold"] == (0.0 if row["model"] == "strong" else 1.0)


def test_who_says_how_to_route_is_in_no_arm(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    trial = {**TRIAL, "share": 0.999}
    settings = {"router": ROUTER, "experiment": trial, "records": {"url": f"sqlite:///{path}"}}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        assert ask(server, "s", "router-mf") == "strong"
        assert ask(server, "s", "router-mf-1.0") == "weak"
        assert ask(server, "s", "weak") == "weak"
        assert ask(server, "s", threshold="1") == "weak"
        assert ask(server, "s", priority="cost") == "weak"
    assert [row["arm"] for row in rows(path)] == ["trial/treatment", None, None, None, None]


def test_a_soft_budget_holds_for_the_treatment_too() -> None:
    tier = {"budgets": [{"tokens": 1000, "soft": 0.0}]}
    settings = {
        "router": ROUTER,
        "experiment": {**TRIAL, "share": 0.999},
        "tiers": {"pro": tier},
        "default_tier": "pro",
    }
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        assert ask(server, "s") == "weak"


def test_the_treatment_may_be_another_router() -> None:
    trial = {"name": "bert", "share": 0.999, "router": "bert"}
    settings = pool("http://127.0.0.1:9/v1", experiment=trial)
    prompt = "Prove that there are infinitely many primes."  # easy ones score near 0 with both
    with StubProvider() as provider:
        settings["models"] = pool(provider.url)["models"]
        with serving(settings) as server:
            body = {"messages": [{"role": "user", "content": prompt}]}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
            dry = httpx.post(f"{server.url}/route", json={"prompt": prompt}).json()
    assert answer.headers["x-thriftroute-threshold"] == "0.5"  # the config's own
    assert float(answer.headers["x-thriftroute-score"]) != pytest.approx(dry["score"], abs=1e-4)


def test_a_treatment_that_cannot_be_made_stops_the_start() -> None:
    trial = {"name": "t", "share": 0.1, "router": "random", "strong_share": 0.2}
    with pytest.raises(ConfigError, match=r"experiment: router\.strong_share: router 'random' has"):
        ServerState(Config.model_validate(pool("http://127.0.0.1:9/v1", experiment=trial)))
    trial = {"name": "t", "share": 0.1, "router": "random"}
    router = {"name": "mf"}
    settings = pool("http://127.0.0.1:9/v1", experiment=trial, router=router)
    with pytest.raises(ConfigError, match=r"experiment: router 'random' has no table.*threshold"):
        ServerState(Config.model_validate(settings))


def asked(number: int, session: str | None = None, tenant: str = "default") -> ChatRequest:
    found = asking.asked("Hi", tenant=tenant, session=session)
    return replace(found, id=f"{number:032x}")


def experiment(**changes: Any) -> Experiment:
    config = Config.model_validate(
        pool("http://127.0.0.1:9/v1", router={"name": "random", "threshold": 0.5},
             experiment={**TRIAL, **changes})
    )  # fmt: skip
    state = ServerState(config)
    assert state.experiment is not None
    return state.experiment


def test_arms_have_their_share_by_session_by_request_and_by_tenant() -> None:
    trial = experiment(share=0.2)
    by_session = [trial.arm(asked(1, f"s{i}")) for i in range(4000)]
    by_request = [trial.arm(asked(i)) for i in range(4000)]
    for arms in (by_session, by_request):
        assert arms.count("treatment") / 4000 == pytest.approx(0.2, abs=0.03)
    other = experiment(name="another", share=0.2)
    # Drawn anew: who was in the one treatment is in the other as everybody is.
    again = [other.arm(asked(1, f"s{i}")) for i in range(4000)]
    both = sum(a == b == "treatment" for a, b in zip(by_session, again, strict=True))
    assert both / 4000 == pytest.approx(0.04, abs=0.015)
    tenants = experiment(by="tenant")
    assert len({tenants.arm(asked(i, f"s{i}", "acme")) for i in range(50)}) == 1
    assert len({tenants.arm(asked(i, "s", f"t{i}")) for i in range(50)}) == 2


def test_stats_and_watch_compare_the_arms(tmp_path: Path) -> None:
    from thriftroute.cli import app
    from typer.testing import CliRunner

    url = f"sqlite:///{tmp_path / 'r.db'}"
    recorder = Recorder(RecordSettings(url=url))
    recorder.start()
    for i in range(1200):
        treated, session = i % 2 == 1, f"s{i % 400}"
        arm = "trial/treatment" if treated else "trial/control"
        recorder.put(
            Record(
                id=f"d{i}",
                time=1000.0 + i,
                arm=arm,
                session_hash=hash_session("t", session),
                model="strong" if treated else "weak",
                strong=treated,
                score=0.9 if treated else 0.1,
                threshold=0.5,
                cost=0.01 if treated else 0.001,
                strong_cost=0.01,
                latency_s=1.0 + i % 7,
                status=500 if i % 50 == 0 else 200,
                feedback=float(i % 3 > 0) if i % 4 < 2 else None,
            )
        )
    recorder.close()
    settings = {"router": ROUTER, "experiment": TRIAL, "records": {"url": url}}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        found = httpx.get(f"{server.url}/stats").json()["experiment"]
        later = httpx.get(f"{server.url}/stats", params={"since": "1600"}).json()["experiment"]
    assert found["units"] == {"control": 200, "treatment": 200}
    assert found["requests"] == {"control": 600, "treatment": 600}
    assert later["requests"] == {"control": 300, "treatment": 300}
    cost = found["metrics"]["cost"]
    assert (cost["control"], cost["treatment"]) == pytest.approx((0.001, 0.01))
    assert cost["differs"]
    assert found["metrics"]["strong_share"]["difference"] == 1
    latency = found["metrics"]["latency_s"]
    assert not latency["differs"]
    assert latency["interval"][0] < 0 < latency["interval"][1]
    assert found["metrics"]["errors"]["control"] == pytest.approx(24 / 600)
    rated = found["metrics"]["feedback"]
    assert rated["control"] is not None
    command = ["watch", "--url", url, "--experiment"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["metrics"] == found["metrics"]
    shown = CliRunner().invoke(app, command).stdout
    assert "experiment 'trial'" in shown
    assert shown.count("  differs") >= 2
    missing = CliRunner().invoke(app, [*command, "--name", "other"])
    assert missing.exit_code == 2
    assert "no decision is of experiment 'other'; recorded: trial" in missing.stderr

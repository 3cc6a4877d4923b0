"""What the server does around a call: cache, budgets, failures, records, privacy."""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.serving import Serving, pool, serving

HI = [{"role": "user", "content": "Hi there"}]


def ask(server: Serving, model: str = "weak", **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    body = {"model": model, "messages": HI, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=300)


def text_of(answer: httpx.Response) -> str:
    """The text of an answer, streamed or whole."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def rows(path: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [
            dict(row)
            for row in connection.execute("SELECT * FROM thriftroute_decisions ORDER BY time")
        ]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(15000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("what was waited for did not come about")


def test_the_cache_answers_whole_and_as_a_stream_without_a_call(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    settings = {"cache": {"backend": "memory"}, "records": {"url": f"sqlite:///{path}"}}
    with StubProvider() as provider:
        with serving(pool(provider.url, **settings)) as server:
            first, second = ask(server), ask(server)
            streamed = ask(server, stream=True)
            bypassed = ask(server, headers={"x-thriftroute-cache": "bypass"})
            other_tenant = ask(server, headers={"x-thriftroute-tenant": "other"})
            hotter = ask(server, temperature=1.5)
        caches = [
            answer.headers["x-thriftroute-cache"]
            for answer in (first, second, streamed, bypassed, other_tenant, hotter)
        ]
        assert caches == ["miss", "hit", "hit", "bypass", "miss", "miss"]
        assert second.json() == first.json()
        assert text_of(streamed) == "Answer of weak."
        assert second.headers["x-thriftroute-cost"] == "0"
        assert len(provider.requests) == 4
    hit = rows(path)[1]
    assert (hit["cache"], hit["cost"]) == ("hit", 0)
    assert hit["strong_cost"] > 0


def test_a_streamed_answer_is_kept_for_those_who_do_not_stream() -> None:
    with (
        StubProvider() as provider,
        serving(pool(provider.url, cache={"backend": "memory"})) as server,
    ):
        assert text_of(ask(server, stream=True)) == "Answer of weak."
        until(lambda: server.state.cache.writes > 0)
        again = ask(server)
        assert again.headers["x-thriftroute-cache"] == "hit"
        assert text_of(again) == "Answer of weak."
        assert len(provider.requests) == 1


def test_the_semantic_cache_answers_what_means_the_same() -> None:
    cache = {"backend": "memory", "semantic": {"enabled": True, "similarity": 0.9}}
    with StubProvider() as provider, serving(pool(provider.url, cache=cache)) as server:

        def about(text: str) -> str:
            answer = ask(server, messages=[{"role": "user", "content": text}])
            return answer.headers["x-thriftroute-cache"]

        assert about("What is the capital of France?") == "miss"
        assert about("What is the capital city of France?") == "semantic"
        assert about("How do I bake bread without yeast?") == "miss"


def test_a_failing_model_is_replaced_also_in_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with StubProvider() as provider:
        provider.always(Fault(status=500), model="weak")
        with serving(pool(provider.url, records={"url": f"sqlite:///{path}"})) as server:
            for stream in (False, True):
                answer = ask(server, "router-mf-1.0", stream=stream)
                assert answer.status_code == 200
                assert text_of(answer) == "Answer of strong."
                assert answer.headers["x-thriftroute-model"] == "strong"
                assert answer.headers["x-thriftroute-reason"].endswith(
                    "; weak did not answer (fallback)"
                )
    row = rows(path)[0]
    attempts = json.loads(row["attempts"]) if isinstance(row["attempts"], str) else row["attempts"]
    assert [attempt["model"] for attempt in attempts] == ["weak", "strong"]
    assert row["cost"] == row["strong_cost"]


def test_where_no_model_answers_the_budget_gets_its_money_back(tmp_path: Path) -> None:
    tier = {"budgets": [{"usd": 1.0, "soft": None}]}
    settings = {"tiers": {"free": tier}, "default_tier": "free"}
    with StubProvider(status=500) as provider, serving(pool(provider.url, **settings)) as server:
        answer = ask(server)
        assert answer.status_code in {502, 503}
        assert "weak" in answer.json()["error"]["message"]
        assert "provider-key" not in answer.text
        (budget,) = asyncio.run(server.state.ledger.state())
        assert budget["spent"] == 0


def test_budgets_end_in_429_with_the_time_of_reset() -> None:
    tier = {"budgets": [{"tokens": 60, "soft": None}]}
    settings = {"tiers": {"free": tier}, "default_tier": "free"}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        answers = [ask(server, max_tokens=20) for _ in range(6)]
        codes = [answer.status_code for answer in answers]
        assert codes[0] == 200
        assert codes[-1] == 429
        refused = answers[-1]
        assert refused.json()["error"]["code"] == "budget_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert len(provider.requests) == codes.count(200)


def test_parallel_requests_never_spend_more_than_the_budget() -> None:
    # The stub counts fewer tokens than are reserved: so nothing at all may be overspent.
    tier = {"budgets": [{"tokens": 500, "soft": None}]}
    settings = {"tiers": {"free": tier}, "default_tier": "free"}
    with StubProvider(delay_s=0.05) as provider:
        with serving(pool(provider.url, **settings)) as server:
            with ThreadPoolExecutor(16) as threads:
                codes = list(
                    threads.map(lambda _: ask(server, max_tokens=20).status_code, range(60))
                )
            (budget,) = asyncio.run(server.state.ledger.state())
        assert set(codes) == {200, 429}
        assert budget["spent"] <= 500
        assert len(provider.requests) == codes.count(200)


def test_a_soft_budget_leaves_the_weak_model() -> None:
    tier = {"budgets": [{"tokens": 200, "soft": 0.05}]}
    settings = {"tiers": {"pro": tier}, "default_tier": "pro"}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        models = [
            ask(server, "router-mf-0.0", max_tokens=20).headers["x-thriftroute-model"]
            for _ in range(3)
        ]
    assert models[0] == "strong"
    assert models[-1] == "weak"


def test_a_client_that_leaves_cancels_the_call_and_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with StubProvider() as provider:
        provider.always(Fault(hang_s=60))
        with serving(pool(provider.url, records={"url": f"sqlite:///{path}"})) as server:
            for stream in (False, True):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(
                        f"{server.url}/v1/chat/completions",
                        json={"model": "weak", "messages": HI, "stream": stream},
                        timeout=httpx.Timeout(0.5, connect=5.0),
                    )
            until(lambda: len(provider.disconnects) == 2)
    left = rows(path)
    assert [(row["status"], row["error"]) for row in left] == [(499, "client_left")] * 2
    # The provider has read the prompt, and will charge for that much.
    assert all(row["cost"] > 0 and row["completion_tokens"] == 0 for row in left)


def test_a_stream_left_half_way_is_charged_by_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with StubProvider() as provider:
        provider.always(Fault(pause_s=0.2))
        with serving(pool(provider.url, records={"url": f"sqlite:///{path}"})) as server:
            body = {"model": "strong", "messages": HI, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
            until(lambda: len(provider.disconnects) == 1)
    (row,) = rows(path)
    assert (row["status"], row["error"]) == (499, "client_left")
    assert row["cost"] > 0


@pytest.mark.parametrize("text", [False, True])
def test_records_hold_text_only_where_it_is_turned_on(tmp_path: Path, text: bool) -> None:
    path = tmp_path / "r.db"
    secret = "the walrus of ada@example.org sings"
    settings = {
        "records": {"url": f"sqlite:///{path}", "text": text},
        "sensitivity": {"actions": {"email": "mask"}},
    }
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        answer = ask(server, messages=[{"role": "user", "content": secret}])
        assert answer.status_code == 200
        assert provider.requests[-1].body["messages"][0]["content"] == secret
    (row,) = rows(path)
    stored = path.read_bytes() + b"".join(p.read_bytes() for p in tmp_path.glob("r.db-*"))
    assert (b"walrus" in stored) == text
    assert b"ada@example.org" not in stored
    assert row["model"] == "weak"
    assert len(row["prompt_hash"]) == 64


def test_every_step_of_a_decision_is_in_its_record(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    records = {"url": f"sqlite:///{path}"}
    with StubProvider() as provider, serving(pool(provider.url, records=records)) as server:
        answer = ask(server, "auto", metadata={"task": "chat", "session": "s-1"})
    (row,) = rows(path)
    assert row["id"] == answer.headers["x-thriftroute-decision-id"]
    assert row["score"] == pytest.approx(float(answer.headers["x-thriftroute-score"]), abs=1e-5)
    percentile = float(answer.headers["x-thriftroute-percentile"])
    told = dict(map(tuple, json.loads(row["steps"])))["percentile"]
    assert told.startswith(f"harder than {min(percentile, 0.99):.0%} of ")
    assert (row["threshold"], row["router"], row["task"]) == (0.5, "mf", "chat")
    assert row["reason"] == answer.headers["x-thriftroute-reason"]
    assert "eligibility" in str(row["steps"])
    assert "s-1" not in str(row.values())
    assert row["prompt_tokens"] > 0
    assert row["latency_s"] > row["overhead_s"] > 0


def test_a_session_stays_on_its_model() -> None:
    with StubProvider() as provider, serving(pool(provider.url, sticky_s=60.0)) as server:
        session = {"headers": {"x-thriftroute-session": "a"}}
        first = ask(server, "router-mf-0.0", **{"headers": dict(session["headers"])})
        assert first.headers["x-thriftroute-model"] == "strong"
        later = ask(server, "auto", headers={**session["headers"], "x-thriftroute-threshold": "1"})
        other = ask(server, "auto", headers={"x-thriftroute-threshold": "1"})
        assert later.headers["x-thriftroute-choice"] == "session"
        assert later.headers["x-thriftroute-model"] == "strong"
        assert other.headers["x-thriftroute-model"] == "weak"


def test_keys_open_the_server_and_the_admin_key_its_figures() -> None:
    settings = {
        "keys": [{"name": "ada", "sha256": hashlib.sha256(b"tr-ada").hexdigest(), "tenant": "t"}],
        "server": {"port": 0, "admin_sha256": hashlib.sha256(b"tr-admin").hexdigest()},
    }
    ada = {"authorization": "Bearer tr-ada"}
    admin = {"authorization": "Bearer tr-admin"}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        assert ask(server).status_code == 401
        assert ask(server, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert ask(server, headers=ada).status_code == 200
        assert ask(server, headers={**ada, "x-thriftroute-tenant": "u"}).status_code == 403
        for path in ("/metrics", "/stats", "/decisions"):
            assert httpx.get(server.url + path).status_code == 401
            assert httpx.get(server.url + path, headers=ada).status_code == 403
        assert httpx.get(f"{server.url}/metrics", headers=admin).status_code == 200


def test_feedback_finds_its_decision(tmp_path: Path) -> None:
    records = {"url": f"sqlite:///{tmp_path}/r.db", "flush_s": 0.05}
    with StubProvider() as provider, serving(pool(provider.url, records=records)) as server:
        id = ask(server).headers["x-thriftroute-decision-id"]
        until(lambda: httpx.get(f"{server.url}/decisions/{id}").status_code == 200)
        answer = httpx.post(f"{server.url}/feedback", json={"id": id, "value": "good"})
        assert answer.status_code == 200
        assert httpx.get(f"{server.url}/decisions/{id}").json()["feedback"] == 1.0
        stats = httpx.get(f"{server.url}/stats").json()
        assert "weak" in json.dumps(stats)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'thriftroute_requests_total{cache="off"' in metrics
        assert "<html" in httpx.get(f"{server.url}/").text.lower()


def test_a_dry_run_calls_nobody(tmp_path: Path) -> None:
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        plan = httpx.post(f"{server.url}/route", json={"prompt": "Prove Fermat's last theorem."})
        assert plan.status_code == 200
        assert 0 < plan.json()["score"] < 1
        assert plan.json()["model"] in {"strong", "weak"}
        assert provider.requests == []


def test_no_key_reaches_a_log_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with StubProvider() as provider:
        provider.always(Fault(status=401))
        with serving(pool(provider.url)) as server:
            answer = ask(server, headers={"authorization": "Bearer client-secret"})
    assert answer.status_code >= 500
    for secret in ("provider-key", "client-secret", "Hi there"):
        assert secret not in answer.text
        assert secret not in "".join(
            record.getMessage() for record in caplog.records if "thriftroute" in record.name
        )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("threshold", 0.25, "threshold 0.25, of the request"),
        ("strong_share", 0.4, "strong share 0.4"),
        ("strongShare", 0.4, "strong share 0.4"),
        ("quality", "high", "quality high: strong share 0.8"),
        ("priority", "cost", "priority cost"),
        ("max_cost", 0, "max_cost is $0"),
        ("maxCost", 0, "max_cost is $0"),
        ("task", "legal", "rule 'legal'"),
        ("task_type", "legal", "rule 'legal'"),
        ("taskType", "legal", "rule 'legal'"),
        ("models", "strong", "only 'strong' can take it"),
        ("require", "eu", "is not eu, which the request requires"),
    ],
)
def test_what_a_request_asks_for_counts_in_its_body_and_in_a_header(
    name: str, value: object, shown: str
) -> None:
    header = "x-thriftroute-" + re.sub(r"(?=[A-Z])|_", "-", name).lower()
    rules = [{"name": "legal", "when": {"task": ["legal"]}, "model": "strong"}]
    with StubProvider() as provider, serving(pool(provider.url, rules=rules)) as server:
        for more in ({"metadata": {name: value}}, {"headers": {header: str(value)}}):
            answer = ask(server, "auto", **more)
            assert shown in answer.headers.get("x-thriftroute-reason", "") + answer.text


def test_a_header_that_is_no_option_is_refused_and_other_metadata_is_not() -> None:
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        misspelled = ask(server, headers={"x-thriftroute-maxcost": "0.01"})
        other = ask(server, metadata={"maxcost": "0.01"})
    assert misspelled.status_code == 400
    error = misspelled.json()["error"]
    assert error["param"] == "x-thriftroute-maxcost"
    assert "known are x-thriftroute-threshold, x-thriftroute-strong-share, " in error["message"]
    assert other.status_code == 200
    assert len(provider.requests) == 1


def test_a_request_past_max_cost_is_refused_with_the_price() -> None:
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        answer = ask(server, "strong", max_tokens=1000, metadata={"maxCost": 0.001})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "max_cost"
        cheap = ask(server, "auto", max_tokens=10, metadata={"max_cost": "0.5"})
        assert cheap.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_cascade_asks_strong_after_a_bad_weak_answer_and_charges_both(
    tmp_path: Path, stream: bool
) -> None:
    path = tmp_path / "r.db"
    settings = {
        "records": {"url": f"sqlite:///{path}"},
        "calls": {"fallbacks": False, "cascade": {"enabled": True, "checks": ["json"]}},
    }
    with StubProvider() as provider:
        provider.fail(Fault(message={"role": "assistant", "content": "no {json"}), model="weak")
        with serving(pool(provider.url, **settings)) as server:
            form = {"response_format": {"type": "json_object"}, "stream": stream}
            first, second = (ask(server, "router-mf-1.0", **form) for _ in range(2))
    assert json.loads(text_of(first)) == {"model": "strong"}
    assert json.loads(text_of(second)) == {"model": "weak"}
    assert first.headers["x-thriftroute-reason"].endswith("'s answer would not do (json)")
    both, weak = rows(path)
    assert (both["model"], weak["model"]) == ("strong", "weak")
    models = [attempt["model"] for attempt in json.loads(both["attempts"])]
    assert models == ["weak", "strong"]
    assert both["cost"] > both["strong_cost"] > weak["cost"] > 0


def test_refusals_are_counted_by_status() -> None:
    settings = {"server": {"port": 0, "max_concurrency": 1, "max_body_bytes": 2000}}
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:
        provider.always(Fault(hang_s=1.0))
        with ThreadPoolExecutor(2) as threads:
            codes = sorted(threads.map(lambda _: ask(server).status_code, range(2)))
        assert codes == [200, 429]
        assert ask(server, "nobody").status_code == 404
        assert ask(server, messages=[{"role": "user", "content": "x" * 3000}]).status_code == 413
        text = httpx.get(f"{server.url}/metrics").text
    for status in (404, 413, 429):
        assert f'thriftroute_refusals_total{{status="{status}"}} 1.0' in text


def test_a_client_that_leaves_in_the_middle_of_a_cascade_is_charged_for_its_first_step(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.db"
    settings = {
        "records": {"url": f"sqlite:///{path}"},
        "calls": {"cascade": {"enabled": True, "checks": ["json"]}},
    }
    with StubProvider() as provider:
        provider.always(Fault(message={"role": "assistant", "content": "no {json"}), model="weak")
        provider.always(Fault(hang_s=60), model="strong")
        with serving(pool(provider.url, **settings)) as server:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{server.url}/v1/chat/completions",
                    json={
                        "model": "router-mf-1.0",
                        "messages": HI,
                        "response_format": {"type": "json_object"},
                    },
                    timeout=httpx.Timeout(1.0, connect=5.0),
                )
            until(lambda: len(provider.disconnects) == 1)
    (row,) = rows(path)
    attempts = json.loads(row["attempts"])
    assert [attempt["model"] for attempt in attempts] == ["weak", "strong"]
    assert attempts[0]["usage"]["completion_tokens"] > 0
    assert row["cost"] > 0


def test_a_cascade_keeps_within_max_cost() -> None:
    settings = {"calls": {"cascade": {"enabled": True, "checks": ["json"]}}}
    with StubProvider() as provider:
        provider.always(Fault(message={"role": "assistant", "content": "no {json"}), model="weak")
        with serving(pool(provider.url, **settings)) as server:
            form = {"response_format": {"type": "json_object"}, "max_tokens": 100}
            # Strong alone takes at most 20 USD a million of 100 tokens, and a little: .00203.
            tight = ask(server, "router-mf-1.0", metadata={"max_cost": 0.0021}, **form)
            loose = ask(server, "router-mf-1.0", metadata={"max_cost": 0.01}, **form)
    assert tight.headers["x-thriftroute-model"] == "weak"
    assert loose.headers["x-thriftroute-model"] == "strong"


def test_a_stream_that_breaks_does_not_look_complete(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with StubProvider() as provider:
        provider.always(Fault(cut=2))
        with serving(pool(provider.url, records={"url": f"sqlite:///{path}"})) as server:
            answer = ask(server, stream=True)
    assert answer.status_code == 200
    last = [line for line in answer.text.split("\n\n") if line][-1]
    assert "error" in json.loads(last.removeprefix("data: "))
    (row,) = rows(path)
    assert (row["status"], row["error"]) == (502, "stream_broken")


def test_a_running_stream_is_in_flight() -> None:
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        provider.always(Fault(pause_s=0.2))
        body = {"model": "weak", "messages": HI, "stream": True}
        gauge = server.state.metrics.in_flight
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert gauge._value.get() == 1
            for _ in lines:
                pass
        until(lambda: gauge._value.get() == 0)

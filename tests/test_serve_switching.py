"""A session of an agent through a real server: headers, metrics, records, what is saved."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.serving import pool, serving

LONG = "Look at this file. " + "word " * 30_000
TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}


def settings(url: str, path: Path) -> dict[str, Any]:
    """Two models with prompt caches, whose prices are near each other."""
    made = pool(url, records={"url": f"sqlite:///{path}", "flush_s": 0.05})
    for model, price in zip(made["models"], (10.0, 9.0), strict=True):
        model["price"] = {"input": price, "output": price, "cached_input": price / 10}
    return made


def counted(prompt: int, cached: int = 0) -> Fault:
    """An answer whose provider counts so many tokens, some of them read from its cache."""
    told = {"prompt_tokens": prompt, "completion_tokens": 10, "total_tokens": prompt + 10}
    return Fault(usage={**told, "prompt_tokens_details": {"cached_tokens": cached}})


def test_an_agents_session_is_priced_and_its_account_is_right(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    messages: list[dict[str, Any]] = [{"role": "user", "content": LONG}]
    with StubProvider() as provider, serving(settings(provider.url, path)) as server:

        def ask(model: str, usage: Fault) -> httpx.Response:
            provider.fail(usage)
            headers = {"x-claude-code-session-id": "s-1"}
            body = {"model": model, "messages": messages}
            url = f"{server.url}/v1/chat/completions"
            answer = httpx.post(url, json=body, headers=headers, timeout=300)
            assert answer.status_code == 200
            messages.append(answer.json()["choices"][0]["message"])
            return answer

        first = ask("router-mf-0.0", counted(50_000))
        messages.append({"role": "user", "content": "And now?"})
        second = ask("router-mf-1.0", counted(50_100, 50_000))
        messages.append({"role": "user", "content": "Thanks."})
        third = ask("weak", counted(50_200))  # named: a switch whatever it costs
        metrics = httpx.get(f"{server.url}/metrics").text
        server.wait_for_rows(3)
        (session,) = httpx.get(f"{server.url}/traffic").json()["sessions"]
    told = [
        [answer.headers[f"x-thriftroute-{name}"] for name in ("model", "switch", "choice")]
        for answer in (first, second, third)
    ]
    assert told == [
        ["strong", "start", "strong"], ["strong", "stay", "session"], ["weak", "switch", "direct"],
    ]  # fmt: skip
    assert [session[name] for name in ("model", "steps", "switches")] == ["weak", 3, 1]
    assert "staying is expected to cost less" in second.headers["x-thriftroute-reason"]
    for outcome in ("start", "stay", "switch"):
        assert f'thriftroute_session_steps_total{{outcome="{outcome}"}} 1.0' in metrics
    with sqlite3.connect(path) as database:
        query = "SELECT cost, strong_cost, steps FROM thriftroute_decisions ORDER BY time"
        rows = database.execute(query).fetchall()
    database.close()
    assert all("switch" in dict(json.loads(steps)) for *_, steps in rows)
    costs = [pytest.approx(cost, rel=1e-6) for cost in (0.5001, 0.0511, 0.45189)]
    assert [row[0] for row in rows] == costs
    # The weak model found nothing in its cache; the strong one would have read 50,100 tokens.
    always = (50_100 * 1.0 + 100 * 10.0 + 10 * 10.0) / 1e6
    assert [row[1] for row in rows] == [*costs[:2], pytest.approx(always, rel=1e-6)]


def test_a_stuck_tool_loop_is_handed_to_the_strong_model(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Mend it."}]
    made = settings("", tmp_path / "r.db")
    with StubProvider() as provider:
        for model in made["models"]:
            model["api_base"] = provider.url
        call = {"id": "call_0", "type": "function", "function": {"name": "run", "arguments": "{}"}}
        calls = {"role": "assistant", "content": None, "tool_calls": [call]}
        provider.always(Fault(message=calls, finish="tool_calls"))
        with serving(made) as server:
            told = []
            for _ in range(5):
                body = {"model": "router-mf-1.0", "messages": messages, "tools": [TOOL]}
                url = f"{server.url}/v1/chat/completions"
                answer = httpx.post(url, json=body, timeout=300)
                told.append(answer.headers["x-thriftroute-model"])
                reason = answer.headers["x-thriftroute-reason"]
                messages += [
                    answer.json()["choices"][0]["message"],
                    {"role": "tool", "tool_call_id": "call_0", "content": "Error: no such file"},
                ]
                if len(told) == 4:
                    assert "stuck" in reason
    assert told[:4] == ["weak", "weak", "weak", "strong"]

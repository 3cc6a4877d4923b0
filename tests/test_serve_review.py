"""What clients send that nobody should: it is refused, or answered, and hurts nobody else."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from thriftroute.serve.api.chat_request import DEEPEST, MOST_OBJECTS, MOST_PARTS, read_body
from thriftroute.serve.api.flow import RequestFlow
from thriftroute.serve.api.openai_chat import parse
from thriftroute.serve.config.settings import Config
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.state import ServerState
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault

from .helpers.serving import Serving, pool, serving

USER = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(provider: StubProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    path = tmp_path_factory.mktemp("records") / "records.db"
    settings = pool(
        provider.url,
        router={"name": "mf", "threshold": 1.0},  # always weak
        cache={"backend": "memory"},
        records={"url": f"sqlite:///{path}", "text": True, "flush_s": 0.05},
        calls={"retries": 0, "cascade": {"enabled": True}},
    )
    for model in settings["models"]:
        model["context_window"] = 128_000
    with serving(settings) as server:
        yield server


def post(server: Serving, body: Any) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/v1/chat/completions", content=raw, timeout=300)


def recorded(server: Serving, id: str) -> dict[str, Any]:
    for _ in range(15000):
        row = server.state.recorder.one(id)
        if row is not None:
            return row
        time.sleep(0.02)
    raise AssertionError(f"no record {id}")


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_cannot_hold_is_refused_before_any_model_is_blamed(
    server: Serving, provider: StubProvider, word: str
) -> None:
    before = len(provider.requests)
    raw = b'{"messages":[{"role":"user","content":"x"}],"temperature":%s}' % word.encode()
    answer = post(server, raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert word in answer.json()["error"]["message"]
    assert len(provider.requests) == before


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_surrogate_pair_becomes_a_replacement_character(
    server: Serving, provider: StubProvider, stream: bool
) -> None:
    for text in ("a \ud83d b", "a \udc00 b \U0001f600"):
        message = {"role": "user", "content": text}
        answer = post(
            server, {"messages": [message], "stream": stream, "metadata": {"cache": "bypass"}}
        )
        assert answer.status_code == 200
        sent = provider.requests[-1].body["messages"][0]["content"]
        assert sent == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        row = recorded(server, answer.headers["x-thriftroute-decision-id"])
        assert json.loads(row["prompt"])[0]["content"] == sent
    assert read_body(b'{"a": "\xed\xa0\x80", "\\ud83d\\ude00": 1}') == {"a": "�", "\U0001f600": 1}


def test_models_do_not_cool_down_for_requests_that_nobody_could_send(server: Serving) -> None:
    nested: Any = 1
    for _ in range(DEEPEST + 1):
        nested = [nested]
    for body in ({"messages": USER, "zz": nested}, {"messages": USER, "stop": ["\udc00"]}):
        for _ in range(4):
            post(server, body)
    assert httpx.get(f"{server.url}/ready").json()["cooling"] == []


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"metadata": {"threshold": 10**400}}, "metadata.threshold"),
        ({"metadata": {"max_cost": 10**400}}, "metadata.max_cost"),
        ({"stream_options": "all"}, "stream_options"),
        ({"stream": True, "stream_options": [1]}, "stream_options"),
        ({"messages": USER * (MOST_PARTS + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": [{}] * MOST_PARTS}]}, "messages"),
    ],
)
def test_an_odd_value_is_named(server: Serving, more: dict[str, Any], param: str) -> None:
    answer = post(server, {"messages": USER, **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_json_nested_deeper_than_it_could_be_sent_on_is_refused(server: Serving) -> None:
    for depth in (DEEPEST, 900, 100_000):
        raw = b'{"messages":[{"role":"user","content":"x"}],"zz":%s1%s}'
        answer = post(server, raw % (b"[" * depth, b"]" * depth))
        assert answer.status_code == 400
    assert post(server, {"messages": USER, "tools": [{}] * MOST_OBJECTS}).status_code == 400
    raw = b'{"messages":[{"role":"user","content":"x"}],"zz":%s1%s}'
    assert post(server, raw % (b"[" * 90, b"]" * 90)).status_code == 200


def test_an_image_counts_as_an_image_and_not_as_its_base64(server: Serving) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 900_000}"}}
    parts = [{"type": "text", "text": "What is this?"}, image]
    answer = post(server, {"messages": [{"role": "user", "content": parts}]})
    assert answer.status_code == 200
    long = {"type": "text", "text": "word " * 90_000}
    refused = post(server, {"messages": [{"role": "user", "content": [*parts, long]}]})
    assert refused.status_code == 400
    assert "window" in refused.json()["error"]["message"]


def test_a_strong_model_that_fails_after_a_weak_answer_is_not_charged(
    server: Serving, provider: StubProvider
) -> None:
    provider.fail(Fault(message={"role": "assistant", "content": ""}), model="weak")
    provider.fail(Fault(status=500), model="strong")
    answer = post(server, {"messages": [{"role": "user", "content": "Who won?"}]})
    assert answer.headers["x-thriftroute-model"] == "weak"
    row = recorded(server, answer.headers["x-thriftroute-decision-id"])
    usage = answer.json()["usage"]
    weak = usage["prompt_tokens"] * 1e-6 + usage["completion_tokens"] * 2e-6
    assert row["cost"] == pytest.approx(weak)


def _flow(provider: StubProvider, path: Path) -> tuple[RequestFlow, ServerState]:
    config = Config.model_validate(
        pool(
            provider.url,
            records={"url": f"sqlite:///{path}"},
            tiers={"free": {"budgets": [{"usd": 10, "scope": "tier"}]}},
            default_tier="free",
        )
    )
    state = ServerState(config)
    return RequestFlow(state), state


async def _settled(flow: RequestFlow, state: ServerState) -> tuple[dict[str, Any], dict[str, Any]]:
    await flow.finish()
    budgets = await state.ledger.state()
    await state.caller.close()
    await state.close()
    return budgets[0], state.recorder.recent()[0]


def test_a_client_that_leaves_while_its_answer_is_settled_is_charged_and_recorded(
    provider: StubProvider, tmp_path: Path
) -> None:
    async def leave() -> tuple[dict[str, Any], dict[str, Any]]:
        flow, state = _flow(provider, tmp_path / "records.db")
        await state.start()
        settle, begun = state.ledger.settle, asyncio.Event()

        async def slow(*args: Any) -> None:
            begun.set()
            await asyncio.sleep(0.05)  # as Redis may take
            await settle(*args)

        state.ledger.settle = slow  # type: ignore[method-assign]
        raw = json.dumps({"model": "weak", "messages": USER}).encode()
        task = asyncio.create_task(flow.answer(await parse(state, raw, {})))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await _settled(flow, state)

    budget, row = asyncio.run(leave())
    assert budget["held"] == 0
    assert budget["spent"] == pytest.approx(row["cost"])
    assert row["cost"] > 0
    assert row["model"] == "weak"


def test_a_stream_that_nobody_begins_to_read_is_closed_and_settled(
    provider: StubProvider, tmp_path: Path
) -> None:
    async def leave() -> tuple[dict[str, Any], dict[str, Any]]:
        flow, state = _flow(provider, tmp_path / "records.db")
        await state.start()
        body = {"model": "weak", "messages": USER, "stream": True}
        reply = await flow.answer(await parse(state, json.dumps(body).encode(), {}))
        assert reply.chunks is not None
        await reply.chunks.aclose()
        return await _settled(flow, state)

    budget, row = asyncio.run(leave())
    assert budget["held"] == 0
    assert budget["spent"] == pytest.approx(row["cost"])
    assert row["cost"] > 0
    assert (row["status"], row["error"]) == (499, "client_left")


def test_a_body_that_is_no_json_says_so() -> None:
    with pytest.raises(RefusedError, match="no JSON at line 2"):
        read_body(b"{\n x")

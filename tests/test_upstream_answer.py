"""Streams over real HTTP, of a provider in OpenAI's client and of one in LiteLLM's own: whole, cut
before and after the first piece, late, closed."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from thriftroute.serve.upstream.answer import Answer
from thriftroute.serve.upstream.caller import Caller
from thriftroute.serve.upstream.failures import UpstreamError
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.callers import (
    HELLO,
    POOL,
    make_caller,
    make_model,
    make_pool,
    run,
    tried,
)

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
Chunk = dict[str, Any]
# Pieces of "openai" are read as they come over HTTP, others through LiteLLM's wrapper.
WAYS = ["openai", "hosted_vllm"]
# The wrapper (LiteLLM 1.106) reads every attribute of each piece, pydantic's old ones among them.
pytestmark = [
    pytest.mark.usefixtures("transport"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


@pytest.fixture(params=WAYS)
def caller(provider: StubProvider, request: pytest.FixtureRequest) -> Caller:
    return make_caller(make_pool(provider.url, request.param), first_token_timeout_s=2)


def read(caller: Caller, *models: str, **body: Any) -> tuple[Answer, list[Chunk]]:
    async def all_of_it() -> tuple[Answer, list[Chunk]]:
        answer = await caller.call(models or POOL, {"messages": HELLO, **body}, stream=True)
        assert answer.chunks is not None
        return answer, [chunk async for chunk in answer.chunks]

    return run(caller, all_of_it())


def said(chunks: list[Chunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    mine = [choice for choice in choices if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in mine)


def ends(chunks: list[Chunk]) -> list[str]:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def test_a_stream_is_openais_chunks(caller: Caller) -> None:
    answer, chunks = read(caller)
    assert said(chunks) == "Answer of weak."
    assert ends(chunks) == ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-stub"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(chunk["choices"] for chunk in chunks)
    stream = answer.chunks
    assert stream is not None
    assert stream.error is None
    assert stream.text == "Answer of weak."
    assert 0 < stream.waited_s < 10
    assert tried(answer) == [("weak", 200, None)]


def test_usage_is_always_learnt_and_told_to_who_asks(
    provider: StubProvider, caller: Caller
) -> None:
    usage = {"prompt_tokens_details": {"cached_tokens": 3}}
    provider.fail(Fault(usage=usage), Fault(usage=usage))
    answer, chunks = read(caller)
    assert all("usage" not in chunk for chunk in chunks)
    counted = answer.attempts[-1].usage
    assert counted is not None
    assert counted["prompt_tokens_details"]["cached_tokens"] == 3
    _, chunks = read(caller, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == counted
    assert chunks[-1]["id"] == chunks[0]["id"]
    assert all("usage" not in chunk for chunk in chunks[:-1])
    sent = [request.body["stream_options"] for request in provider.requests]
    assert sent == [{"include_usage": True}] * 2


def test_tool_calls_and_reasoning_come_through(provider: StubProvider, caller: Caller) -> None:
    answer, chunks = read(caller, tools=TOOLS)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (calls,) = [delta["tool_calls"] for delta in deltas if delta.get("tool_calls")]
    assert calls[0]["function"] == {"name": "f", "arguments": "{}"}
    assert calls[0]["id"] == "call_stub"
    assert ends(chunks) == ["tool_calls"]
    assert answer.chunks is not None
    assert sorted(answer.chunks.text) == sorted("f{}")
    provider.fail(Fault(message={"role": "assistant", "reasoning_content": "hm", "content": "Hi"}))
    answer, chunks = read(caller)
    assert said(chunks) == "Hi"
    assert answer.chunks is not None
    assert answer.chunks.text == "hmHi"


def test_each_of_n_choices_is_told_apart(caller: Caller) -> None:
    answer, chunks = read(caller, n=2)
    assert said(chunks, 0) == said(chunks, 1) == "Answer of weak."
    assert answer.chunks is not None
    assert answer.chunks.error is None


def test_openais_client_ends_every_choice(provider: StubProvider) -> None:
    _, chunks = read(make_caller(make_pool(provider.url)), n=2)
    assert ends(chunks) == ["stop", "stop"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=429),
        Fault(hang_s=60),
        Fault(cut=0),
        Fault(cut=1),  # a role, and nothing said
        Fault(cut=0, quiet=True),
        Fault(cut=0, event='{"error": {"message": "overloaded", "type": "server_error"}}'),
        Fault(cut=1, event='{"error": {"message": "overloaded", "type": "server_error"}}'),
        Fault(raw="{broken"),
    ],
)
def test_the_next_model_answers_where_one_fails_before_its_first_piece(
    provider: StubProvider, caller: Caller, fault: Fault
) -> None:
    provider.always(fault, model="weak")
    answer, chunks = read(caller)
    assert answer.model == "strong"
    assert said(chunks) == "Answer of strong."
    assert [model for model, _, _ in tried(answer)] == ["weak", "strong"]
    assert tried(answer)[0][2] is not None


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut=2),
        Fault(cut=2, quiet=True),
        Fault(cut=2, event='{"error": {"message": "overloaded", "type": "server_error"}}'),
        Fault(cut=2, event="{broken"),
    ],
)
def test_a_stream_that_breaks_off_says_so(
    provider: StubProvider, caller: Caller, fault: Fault
) -> None:
    provider.always(fault, model="weak")
    answer, chunks = read(caller, stream_options={"include_usage": True})
    assert [request.body["model"] for request in provider.requests] == ["weak"]
    assert said(chunks) == "Answer"
    assert ends(chunks) == []
    error = chunks[-1]["error"]
    assert (error["type"], error["code"]) == ("server_error", "upstream_stream_broken")
    assert "'weak'" in error["message"]
    assert answer.chunks is not None
    assert answer.chunks.error is not None
    assert answer.chunks.text == "Answer"
    assert answer.attempts[-1].error == answer.chunks.error
    assert answer.attempts[-1].status != 200


def test_a_stream_that_breaks_off_counts_as_a_failure(provider: StubProvider) -> None:
    caller = make_caller(make_pool(provider.url), failures_to_cool=2)
    provider.fail(Fault(cut=2), Fault(cut=2))
    read(caller)
    read(caller)
    assert set(caller.cooling()) == {"weak"}


def test_the_whole_of_a_stream_has_a_limit_too(provider: StubProvider) -> None:
    caller = make_caller(make_pool(provider.url), timeout_s=2.4)
    provider.fail(Fault(pause_s=0.7))
    answer, chunks = read(caller)
    assert chunks[-1]["error"]["code"] == "upstream_stream_broken"
    assert tried(answer) == [("weak", None, "Timeout")]


def test_a_client_that_reads_slowly_costs_the_provider_no_time(caller: Caller) -> None:
    async def slowly() -> tuple[float, float, float]:
        slept, clock = 0.0, time.perf_counter
        start = clock()
        answer = await caller.call(POOL, {"messages": HELLO}, stream=True)
        assert answer.chunks is not None
        async for _ in answer.chunks:
            before = clock()
            await asyncio.sleep(0.05)
            slept += clock() - before
        return answer.chunks.waited_s, slept, clock() - start

    waited, slept, whole = run(caller, slowly())
    assert waited + slept <= whole


def test_a_stream_of_nothing_but_its_end_is_an_answer(
    provider: StubProvider, caller: Caller
) -> None:
    provider.fail(Fault(message={"role": "assistant", "content": ""}))
    answer, chunks = read(caller)
    assert answer.model == "weak"
    assert (said(chunks), ends(chunks)) == ("", ["stop"])


def test_closing_a_stream_hangs_up(provider: StubProvider, caller: Caller) -> None:
    provider.fail(Fault(pause_s=0.05))

    async def leave() -> None:
        answer = await caller.call(POOL, {"messages": HELLO}, stream=True)
        assert answer.chunks is not None
        first = await anext(aiter(answer.chunks))
        assert first["choices"]
        await answer.chunks.aclose()
        await answer.chunks.aclose()
        assert [chunk async for chunk in answer.chunks] == []
        while not provider.disconnects:
            await asyncio.sleep(0.01)

    run(caller, leave())


@pytest.mark.parametrize("fault", [Fault(hang_s=60), Fault(pause_s=0.4)])
def test_cancelling_who_reads_hangs_up(
    provider: StubProvider, caller: Caller, fault: Fault
) -> None:
    provider.fail(fault)

    async def reader() -> None:
        answer = await caller.call(POOL, {"messages": HELLO}, stream=True)
        assert answer.chunks is not None
        async for _ in answer.chunks:
            pass

    async def leave() -> None:
        task = asyncio.create_task(reader())
        while not provider.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not provider.disconnects:
            await asyncio.sleep(0.01)

    run(caller, leave())
    assert [request.body["model"] for request in provider.requests] == ["weak"]


def test_a_wrong_request_is_refused_before_anything_streams(
    provider: StubProvider, caller: Caller
) -> None:
    provider.fail(Fault(status=400, error="n is too large"))
    with pytest.raises(UpstreamError) as caught:
        read(caller)
    assert caught.value.status == 400
    assert "n is too large" in caught.value.to_dict()["error"]["message"]


def test_what_a_provider_adds_is_passed_on(provider: StubProvider) -> None:
    provider.fail(Fault(extra={"system_fingerprint": "fp", "odd": 1}))
    _, chunks = read(make_caller({"weak": make_model("weak", provider.url)}), "weak")
    assert {(chunk["system_fingerprint"], chunk["odd"]) for chunk in chunks} == {("fp", 1)}

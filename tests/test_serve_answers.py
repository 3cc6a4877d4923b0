"""What comes back from providers: cut, malformed, endless, enormous, oddly shaped."""

import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from thriftroute.tests.helpers.raw_provider import DONE, STREAM, RawProvider, event, whole
from thriftroute.tests.helpers.serving import Serving, pool, serving
from thriftroute.tests.test_serve_chat import rows, until

# Through OpenAI's client, through LiteLLM's handler of most providers, and through one's own.
WAYS = ["openai", "hosted_vllm", "anthropic"]
# The wrapper (LiteLLM 1.106) reads every attribute of each piece, pydantic's old ones among them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
LIMIT = 100_000


def settings(
    provider: RawProvider, way: str = "openai", calls: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A pool of which the weak model is this provider's, and the strong one nobody's."""
    made = pool(provider.url, calls={"retries": 0, **(calls or {})}, **more)
    strong, weak = made["models"]
    strong["api_base"] = "http://127.0.0.1:9/v1"
    weak["model"] = f"{way}/weak"
    if way == "anthropic":  # it puts the path behind it itself
        weak["api_base"] = provider.url.removesuffix("/v1")
    return made


def ask(server: Serving, content: str = "Hi there", **more: Any) -> httpx.Response:
    body = {"model": "weak", "messages": [{"role": "user", "content": content}], **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60.0)


def chunks_of(answer: httpx.Response) -> list[Any]:
    """The events of a stream; [DONE] as text."""
    found = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


def failures(server: Serving) -> bool:
    """Whether a failure was counted; the pool's models cool after the first."""
    return bool(server.state.caller.cooling())


FIRST, SECOND = event({"role": "assistant", "content": "Hello"}), event({"content": " you"})


@pytest.mark.parametrize("way", ["openai", "hosted_vllm"])
def test_a_stream_that_is_cut_is_no_answer(way: str) -> None:
    cut = [
        [event({"role": "assistant", "content": "Hello"}, ""), event({"content": " you"}, "")],
        [FIRST, SECOND],
    ]
    if way == "openai":  # LiteLLM 1.106 itself takes such a text for the end
        cut.append([FIRST, event({"content": "\ndata: [DONE]\n\n"})])  # said, not sent
    with (
        RawProvider(*cut, headers=STREAM) as provider,
        serving(settings(provider, way, {"failures_to_cool": len(cut)})) as server,
    ):
        for _ in cut:
            assert not failures(server)
            *said, last = chunks_of(ask(server, stream=True))
            assert last["error"]["code"] == "upstream_stream_broken"
            assert {c["finish_reason"] for chunk in said for c in chunk["choices"]} == {None}
        assert failures(server)


@pytest.mark.parametrize("way", ["openai", "hosted_vllm"])
def test_a_stream_that_is_done_is_whole(way: str) -> None:
    ends = [
        [SECOND, DONE],
        [event({"content": " you"}, ""), DONE],
        [SECOND, b"data:[DONE]\r\n\r\n"],
        [SECOND, b"data: [DO", b"NE]\n\n"],
    ]
    with (
        RawProvider(*([FIRST, *end] for end in ends), headers=STREAM) as provider,
        serving(settings(provider, way, {"failures_to_cool": 1})) as server,
    ):
        for _ in ends:
            *said, last = chunks_of(ask(server, stream=True))
            assert last == "[DONE]"
            deltas = [c["delta"] for chunk in said for c in chunk["choices"]]
            assert "".join(delta.get("content") or "" for delta in deltas) == "Hello you"
        assert not failures(server)


def call(id: str | None, arguments: str, name: str | None = "f", **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"function": function, **({"id": id, "type": "function"} if id else {}), **more}


TWO_CALLS: list[list[dict[str, Any]]] = [
    [call("call_0", '{"a":1}', index=0), call("call_1", '{"a":2}', index=0)],
    [
        call("call_0", "", index=0),
        call(None, '{"a":', None, index=0),
        call(None, "1}", None, index=0),
        call("call_1", '{"a"', index=0),
        call(None, ":2}", None, index=0),
    ],
    [call("call_0", '{"a":1}'), call("call_1", '{"a":2}')],
    [call(None, '{"a":1}'), call(None, '{"a":2}')],
    [call(None, '{"a":1}', index=0), call(None, '{"a":2}', index=0)],
    # As it should be, in pieces that take turns, with ids in each of them.
    [
        call("call_0", '{"a"', index=0),
        call("call_1", '{"a"', index=1),
        call("call_0", ":1}", None, index=0),
        call("call_1", ":2}", None, index=1),
    ],
    [
        call("call_0", '{"a"', index=0),
        call("call_1", '{"a"', index=0),
        call("call_0", ":1}", None, index=0),
        call("call_1", ":2}", None, index=0),
    ],
]


def test_two_tool_calls_are_two() -> None:
    end = event({}, "tool_calls"), DONE
    bodies = [[*(event({"tool_calls": [piece]}) for piece in each), *end] for each in TWO_CALLS]
    with (
        RawProvider(*bodies, headers=STREAM) as provider,
        serving(settings(provider, cache={"backend": "memory"})) as server,
    ):
        for number, pieces in enumerate(TWO_CALLS):
            said = chunks_of(ask(server, f"{number}", stream=True))
            arguments: dict[int, str] = {}  # as clients put them together
            for chunk in said[:-1]:
                for piece in chunk["choices"][0]["delta"].get("tool_calls", ()):
                    index = piece["index"]
                    arguments[index] = arguments.get(index, "") + piece["function"]["arguments"]
            assert arguments == {0: '{"a":1}', 1: '{"a":2}'}, pieces
            # It is kept after the last byte.
            until(lambda at_least=number + 1: server.state.cache.writes >= at_least)
            again = ask(server, f"{number}")
            assert again.headers["x-thriftroute-cache"] == "hit"
            made = again.json()["choices"][0]["message"]["tool_calls"]
            assert [each["function"]["arguments"] for each in made] == ['{"a":1}', '{"a":2}']


def test_calls_that_nobody_can_make_are_not_kept() -> None:
    deltas = [
        {"tool_calls": [call("call_0", '{"a":1', index=0)]},
        {"tool_calls": [call("call_0", '{"a":1}{"a":2}', index=0)]},
        {"function_call": {"name": "f", "arguments": '{"a":1}{"a":2}'}},
    ]
    bodies = [[event(delta), event({}, "tool_calls"), DONE] for delta in deltas for _ in range(2)]
    with (
        RawProvider(*bodies, headers=STREAM) as provider,
        serving(settings(provider, cache={"backend": "memory"})) as server,
    ):
        for number in range(len(deltas)):
            for _ in range(2):
                assert chunks_of(ask(server, f"{number}", stream=True))[-1] == "[DONE]"
        assert len(provider.requests) == len(bodies)


PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": "Hi"},
    {"type": "text", "text": "!"},
]


def test_a_content_in_parts_is_text_whole_and_as_a_stream() -> None:
    stream = [event({"role": "assistant", "content": PARTS}), event({}, "stop"), DONE]
    found = []
    for headers, body in ((STREAM, stream), ({}, whole({"content": PARTS}))):
        kept = {"backend": "memory"}
        with (
            RawProvider(body, headers=headers) as provider,
            serving(settings(provider, cache=kept, calls={"failures_to_cool": 1})) as server,
        ):
            if headers:
                delta = chunks_of(ask(server, stream=True))[0]["choices"][0]["delta"]
                assert (delta["content"], delta["reasoning_content"]) == ("Hi!", "hm")
            message = ask(server).json()["choices"][0]["message"]
            found.append({name: message.get(name) for name in ("content", "reasoning_content")})
            assert ask(server, stream=True).headers["x-thriftroute-cache"] == "hit"
            assert not failures(server)
    assert found == [{"content": "Hi!", "reasoning_content": "hm"}] * 2


MALFORMED = [
    b"",
    b"null",
    b"[]",
    b"<html>gateway</html>",
    b'{"choices": 3}',
    b'{"choices": [3]}',
    b'{"choices": [{"index": 0, "message": "x"}]}',
    b'{"choices": [{"index": 0, "message": {"content": 5}}]}',
    b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
    b'{"choices": [{"message": {"content": "x", "odd": %s%s}}]}' % (b"[" * 20_000, b"]" * 20_000),
    event({"content": "Hi"}, "stop") + DONE,
]


@pytest.mark.parametrize("way", [*WAYS, "groq"])
def test_a_malformed_answer_is_its_providers_failure(way: str) -> None:
    with (
        RawProvider(*MALFORMED) as provider,
        serving(settings(provider, way, {"failures_to_cool": len(MALFORMED)})) as server,
    ):
        for body in MALFORMED:
            assert not failures(server)
            answer = ask(server)
            assert answer.status_code == 502, body
            assert answer.json()["error"]["code"] == "upstream_failed"
        assert failures(server)


@pytest.mark.parametrize("way", ["openai", "hosted_vllm", "groq"])
def test_an_answer_need_not_have_more_than_its_message(way: str) -> None:
    body = b'{"choices": [{"message": {"content": "ok"}}]}'
    with (
        RawProvider(body) as provider,
        serving(settings(provider, way, {"failures_to_cool": 1})) as server,
    ):
        answer = ask(server)
        assert answer.json()["choices"][0]["message"]["content"] == "ok"
        assert not failures(server)


@pytest.mark.parametrize("way", ["openai", "groq"])
def test_what_json_cannot_hold_fails_no_answer(way: str, tmp_path: Path) -> None:
    odd = whole({"role": "assistant", "content": "a\ud800b"}).replace(
        b'"logprobs": null', b'"logprobs": {"content": [{"token": "x", "logprob": -Infinity}]}'
    )
    streamed = [
        event({"content": "a\ud800b"}).replace(b'"index"', b'"logprob": NaN, "index"'),
        event({}, "stop"),
        DONE,
    ]
    path = tmp_path / "r.db"
    records = {"url": f"sqlite:///{path}", "text": True, "flush_s": 0.05}
    for headers, body in (({}, [odd]), (STREAM, streamed)):
        with (
            RawProvider(body, headers=headers) as provider,
            serving(settings(provider, way, records=records)) as server,
        ):
            answer = ask(server, stream=bool(headers))
            assert answer.status_code == 200
            assert "Infinity" not in answer.text
            assert "NaN" not in answer.text
            if headers:
                assert chunks_of(answer)[0]["choices"][0]["delta"]["content"] == "a?b"
            else:
                assert answer.json()["choices"][0]["message"]["content"] == "a?b"
            count = 2 if headers else 1
            until(lambda count=count: len(rows(path)) == count)  # type: ignore[misc]


def packed(encoding: str, text: bytes, n: int) -> bytes:
    """`text` `n` times between an answer's head and its tail."""
    head, tail = whole({"role": "assistant", "content": "@@"}).split(b"@@")
    if encoding == "zstd":
        return zstandard.compress(head + text * n + tail)
    made = zlib.compressobj(9, wbits={"gzip": 31, "deflate": 15, "raw": -15}[encoding])
    parts = [made.compress(head), *(made.compress(text) for _ in range(n)), made.compress(tail)]
    return b"".join([*parts, made.flush()])


def encoded(n: int, text: bytes, *encodings: str) -> list[tuple[dict[str, str], bytes]]:
    said = {"raw": "deflate"}
    return [({"Content-Encoding": said.get(e, e)}, packed(e, text, n)) for e in encodings]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_bounded_unpacked(way: str) -> None:
    answers = encoded(3000, b"a" * 10_000, "gzip", "deflate", "raw", "zstd")
    calls = {"failures_to_cool": len(answers), "max_answer_bytes": LIMIT}
    with RawProvider(*answers) as provider, serving(settings(provider, way, calls)) as server:
        for headers, _ in answers:
            assert not failures(server)
            answer = ask(server)
            assert (answer.status_code, answer.headers["x-thriftroute-cost"]) == (502, "0")
            if headers["Content-Encoding"] != "zstd":  # which was not asked for
                assert "AnswerTooLargeError" in answer.json()["error"]["message"]
        assert failures(server)


@pytest.mark.parametrize("way", ["openai", "hosted_vllm"])
def test_a_packed_answer_within_the_bound_is_read(way: str) -> None:
    answers = encoded(40_000, b"ab", "gzip", "deflate", "raw")
    with (
        RawProvider(*answers) as provider,
        serving(settings(provider, way, {"max_answer_bytes": LIMIT})) as server,
    ):
        for _ in answers:
            assert ask(server).json()["choices"][0]["message"]["content"] == "ab" * 40_000


def endless(closing: threading.Event) -> Iterator[bytes]:
    yield event({"role": "assistant", "content": "Hi"})
    count = 0
    while not closing.is_set():
        count += 1
        yield event({"content": f"{count} "})


def endless_head(closing: threading.Event) -> Iterator[bytes]:
    yield b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "'
    while not closing.is_set():
        yield b"a" * 10_000


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_never_ends_is_given_up(way: str, status: int) -> None:
    calls = {"failures_to_cool": 1, "max_answer_bytes": LIMIT}
    with (
        RawProvider(endless_head, status=status) as provider,
        serving(settings(provider, way, calls)) as server,
    ):
        answer = ask(server)
        assert answer.status_code == 502
        assert "AnswerTooLargeError" in answer.json()["error"]["message"]
        assert failures(server)


def test_where_a_redirect_leads_is_bounded_too() -> None:
    headers = {"Location": "/elsewhere"}
    with (
        RawProvider(endless_head, status=307, headers=headers) as provider,
        serving(settings(provider, calls={"max_answer_bytes": LIMIT})) as server,
    ):
        assert ask(server).status_code == 502


@pytest.mark.parametrize("way", ["openai", "hosted_vllm"])
def test_a_stream_that_never_ends_is_cut(way: str, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    records = {"url": f"sqlite:///{path}", "flush_s": 0.05}
    calls = {"failures_to_cool": 1, "max_answer_bytes": LIMIT}
    with (
        RawProvider(endless, headers=STREAM) as provider,
        serving(settings(provider, way, calls, records=records)) as server,
    ):
        answer = ask(server, stream=True, max_tokens=50)
        *said, last = chunks_of(answer)
        assert said[0]["choices"][0]["delta"]["content"] == "Hi"
        assert "AnswerTooLargeError" in last["error"]["message"]
        assert failures(server)
        until(lambda: bool(rows(path)))
    (row,) = rows(path)
    assert (row["status"], row["error"]) == (502, "stream_broken")
    # It said hundreds of times as much.
    assert row["completion_tokens"] == 50
    assert row["cost"] == pytest.approx((row["prompt_tokens"] + 2 * 50) * 1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_byte_by_byte_is_late(way: str) -> None:
    def slow(closing: threading.Event) -> Iterator[bytes]:
        for byte in whole({"role": "assistant", "content": "Hi" * 10_000}):
            if closing.wait(0.01):
                return
            yield bytes([byte])

    with (
        RawProvider(slow) as provider,
        serving(settings(provider, way, {"timeout_s": 1})) as server,
    ):
        answer = ask(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


CROWDED = [
    b'{"choices": [%s]}' % b",".join([b"{}"] * 6000),
    whole({"role": "assistant", "content": "x", "odd": [[]] * 250_000}),
    whole({"role": "assistant", "content": None, "tool_calls": [call("c", "{}")] * 6000}),
]


def test_an_answer_of_very_many_objects_is_given_up() -> None:
    streamed = [FIRST, event({"content": "", "odd": [[]] * 6000}), event({}, "stop"), DONE]
    probabilities = [{"token": "[{", "logprob": -1.0, "bytes": None, "top_logprobs": []}] * 6000
    fine = whole({"role": "assistant", "content": "x"}).replace(
        b'"logprobs": null', b'"logprobs": {"content": %s}' % json.dumps(probabilities).encode()
    )
    many = [event({"content": "[{" * 100}) for _ in range(100)]
    with (
        RawProvider(
            *CROWDED, (STREAM, streamed), fine, (STREAM, [*many, event({}, "stop"), DONE])
        ) as provider,
        serving(settings(provider)) as server,
    ):
        for body in CROWDED:
            answer = ask(server)
            assert answer.status_code == 502, body[:100]
            assert "AnswerTooLargeError" in answer.json()["error"]["message"]
        assert "AnswerTooLargeError" in chunks_of(ask(server, stream=True))[-1]["error"]["message"]
        assert ask(server, logprobs=True).status_code == 200
        assert chunks_of(ask(server, stream=True))[-1] == "[DONE]"


def test_others_are_served_while_a_provider_never_pauses() -> None:
    """A stream that always has more to read gives way: without it this hangs until its limit."""
    with (
        RawProvider(endless, headers=STREAM) as provider,
        serving(settings(provider, calls={"timeout_s": 600})) as server,
        httpx.Client(base_url=server.url, timeout=60.0) as client,
    ):
        body = {"model": "weak", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            for _ in range(20):
                assert httpx.get(f"{server.url}/health", timeout=30.0).status_code == 200
            assert next(lines) == ""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thriftroute.serve.cache.answers import Assembler, Kept, is_complete, pack, replay, unpack

CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "custom", "custom": {"name": "g", "input": "x"}},
]
TOKEN = {"token": "hi", "logprob": -0.1, "bytes": [104, 105], "top_logprobs": []}


def completion(*messages: dict[str, Any], finish: str = "stop", **top: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", **message},
                "logprobs": None,
                "finish_reason": finish,
            }
            for i, message in enumerate(messages)
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        **top,
    }


def assemble(chunks: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    assembler = Assembler()
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.completion()


WHOLE = [
    completion({"content": "hi"}),
    completion({"content": "x" * 2000}, system_fingerprint="fp", service_tier="default"),
    completion({"content": "one"}, {"content": "two"}, {"content": "three"}),
    completion({"content": None, "tool_calls": CALLS}, finish="tool_calls"),
    completion({"content": "let me see", "tool_calls": CALLS}, finish="tool_calls"),
    completion({"content": None, "refusal": "I cannot"}),
    completion({"content": "4", "reasoning_content": "2 + 2", "annotations": [{"type": "u"}]}),
    completion(
        {"content": None, "function_call": {"name": "f", "arguments": "{}"}},
        finish="function_call",
    ),
]


def with_logprobs() -> dict[str, Any]:
    answer = completion({"content": "hi" * 600})
    answer["choices"][0]["logprobs"] = {"content": [TOKEN] * 600, "refusal": None}
    return answer


@pytest.mark.parametrize("answer", [*WHOLE, with_logprobs()])
def test_an_answer_survives_being_streamed(answer: dict[str, Any]) -> None:
    assert is_complete(answer, len(answer["choices"]))
    assert assemble(replay(answer, include_usage=True)) == answer


@pytest.mark.parametrize("answer", WHOLE)
def test_usage_comes_last_and_only_where_asked_for(answer: dict[str, Any]) -> None:
    plain = list(replay(answer))
    assert all("usage" not in chunk and chunk["choices"] for chunk in plain)
    *chunks, last = replay(answer, include_usage=True)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], answer["usage"])
    assert len(chunks) == len(plain)


def test_a_replayed_stream_has_the_form_of_openais() -> None:
    chunks = list(replay(completion({"content": "x" * 600})))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": "x" * 600}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]


def test_replayed_chunks_are_what_openais_client_reads() -> None:
    types = pytest.importorskip("openai.types.chat")
    # Its types know no custom tools in streams yet; it reads them all the same.
    known = [a for a in WHOLE if "custom" not in json.dumps(a)]
    tools = completion({"content": None, "tool_calls": CALLS[:1]}, finish="tool_calls")
    for answer in [*known, tools, with_logprobs()]:
        for chunk in replay(answer, include_usage=True):
            types.ChatCompletionChunk.model_validate(chunk)


def test_openais_own_accumulation_agrees() -> None:
    streaming = pytest.importorskip("openai.lib.streaming.chat")
    chunk_type = pytest.importorskip("openai.types.chat").ChatCompletionChunk
    answer = completion({"content": "so", "tool_calls": CALLS[:1]}, finish="tool_calls")
    state = streaming.ChatCompletionStreamState()
    for chunk in replay(answer, include_usage=True):
        state.handle_chunk(chunk_type.model_validate(chunk))
    message = state.get_final_completion().choices[0].message
    assert message.content == "so"
    assert message.tool_calls[0].function.arguments == '{"a": 1}'


def pieces() -> Iterator[dict[str, Any]]:
    """Two choices, mixed; a tool call in pieces; usage at the end; padding as OpenAI sends it."""

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 5,
            "model": "m",
            "choices": [choice],
            "usage": None,
            "obfuscation": "xyz",
        }

    def call(index: int, **function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": function}]}

    yield chunk(0, {"role": "assistant", "content": "", "refusal": None})
    yield chunk(1, {"role": "assistant", "content": None})
    yield chunk(0, {"content": "he"})
    first = {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}
    yield chunk(1, {"tool_calls": [first]})
    yield chunk(1, {"tool_calls": [{**first, "index": 0, "id": "a"}]})
    yield chunk(0, {"content": "llo", "reasoning_content": "hm"})
    yield chunk(1, call(1, arguments='{"x"'))
    yield chunk(1, call(0, arguments="{}"))
    yield chunk(1, call(1, arguments=": 2}", name=""))
    yield chunk(0, {}, "stop")
    yield chunk(1, {}, "tool_calls")
    yield {**chunk(0, {}), "choices": [], "usage": {"total_tokens": 9}}


def test_a_stream_is_put_together() -> None:
    answer = assemble(pieces())
    assert answer is not None
    assert is_complete(answer, 2)
    assert answer["object"] == "chat.completion"
    assert "obfuscation" not in answer
    assert answer["usage"] == {"total_tokens": 9}
    text, tools = (choice["message"] for choice in answer["choices"])
    assert text == {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "reasoning_content": "hm",
    }
    assert tools["content"] is None
    assert tools["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x": 2}'}},
    ]


def test_an_assembler_knows_when_all_is_there() -> None:
    assembler, seen = Assembler(), []
    for chunk in pieces():
        assembler.add(chunk)
        seen.append(is_complete(assembler.completion() or {}, 2))
    assert seen == [False] * 10 + [True] * 2


def test_a_stream_that_was_cut_is_not_complete() -> None:
    answer = assemble(list(pieces())[:-3])
    assert answer is not None
    assert not is_complete(answer, 2)


def test_a_stream_in_which_an_error_came_is_nothing() -> None:
    assert assemble([*pieces(), {"error": {"message": "upstream"}}]) is None


@pytest.mark.parametrize(
    "bad",
    [
        {"choices": 3},
        {"choices": ["text"]},
        {"choices": [{"index": 0, "delta": "text"}]},
        {"choices": [{"index": "0", "delta": {}}]},
        {"choices": [{"index": 0, "delta": {"content": ["a"]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": "0"}]}}]},
        {"choices": [{"index": 0, "delta": {"audio": {"data": "AA"}}}]},
        {"choices": [{"index": 0, "delta": {"thinking_blocks": [{"thinking": "x"}]}}]},
    ],
)
def test_a_stream_that_cannot_be_put_together_is_nothing(bad: dict[str, Any]) -> None:
    good = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    assert assemble([good]) is not None
    assert assemble([good, bad, good]) is None


def test_nothing_comes_of_nothing() -> None:
    assert assemble([]) is None
    assert assemble([{"id": "c", "choices": [], "usage": {"total_tokens": 1}}]) is None


def test_what_is_put_together_is_bounded() -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": "x" * 10}}]}
    exact, over = Assembler(max_chars=20), Assembler(max_chars=20)
    for _ in range(2):
        exact.add(piece)
        over.add(piece)
    over.add(piece)
    whole = exact.completion()
    assert whole is not None
    assert whole["choices"][0]["message"]["content"] == "x" * 20
    assert over.completion() is None
    token = {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [TOKEN] * 99}}]}
    many = Assembler(max_chars=1000)
    many.add(token)
    assert many.completion() is None


@pytest.mark.parametrize(
    "answer",
    [
        completion({"content": "cut of"}, finish="length"),
        completion({"content": "x"}, finish="content_filter"),
        completion({"content": ""}),
        completion({"content": " \n"}),
        completion({"content": None}),
        completion({"content": "", "reasoning_content": "long thoughts"}),
        completion({"content": None, "tool_calls": []}, finish="tool_calls"),
        completion({"content": ["a part"]}),
        completion({"content": "one"}, {"content": "two"}),
        completion({"content": "x"}, error={"message": "no"}),
        completion(),
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"finish_reason": "stop", "message": None}]},
        {},
    ],
)
def test_what_is_not_whole_is_not_kept(answer: dict[str, Any]) -> None:
    assert not is_complete(answer)


def test_a_kept_answer_comes_back() -> None:
    for answer in WHOLE:
        assert unpack("k", pack("k", Kept("weak", answer))) == Kept("weak", answer)


def test_another_keys_answer_is_never_given() -> None:
    assert unpack("another", pack("k", Kept("weak", WHOLE[0]))) is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"\xff\xfe",
        b"\x80\x04}.",  # a pickle
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps(["k", "weak", WHOLE[0], 1]).encode(),
        json.dumps(["k", 1, WHOLE[0]]).encode(),
        json.dumps(["k", "weak", []]).encode(),
        json.dumps(["k", "weak", {"choices": []}]).encode(),
        json.dumps(["k", "weak", {"choices": [{"message": {}}]}]).encode(),
    ],
)
def test_what_is_no_kept_answer_is_none(data: bytes | None) -> None:
    assert unpack("k", data) is None


def test_what_json_cannot_hold_is_not_packed() -> None:
    for value in (float("nan"), float("inf"), {1}, object()):
        assert pack("k", Kept("m", {"x": value})) is None


any_text = st.text(st.characters(exclude_categories=()), min_size=1, max_size=1200)


@given(texts=st.lists(any_text.filter(lambda t: bool(t.strip())), min_size=1, max_size=3))
def test_any_text_survives_a_store_and_a_stream(texts: list[str]) -> None:
    answer = completion(*({"content": text} for text in texts))
    kept = unpack("k", pack("k", Kept("m", answer)))
    assert kept is not None
    assert assemble(replay(kept.completion, include_usage=True)) == answer

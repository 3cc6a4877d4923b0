"""Whether a stream was cut is seen in its bytes, whatever the API of its provider."""

import json
from typing import Any

import pytest
from thriftroute.tests.helpers.callers import HELLO, KEY, make_caller, make_model, run
from thriftroute.tests.helpers.raw_provider import STREAM, RawProvider

# Of LiteLLM's own types (1.110), at the first call of a provider.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
USAGE = {"input_tokens": 1, "output_tokens": 1}
START: dict[str, Any] = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "content": [],
    "model": "c",
}
START |= {"stop_reason": None, "usage": USAGE}
CLAUDE: list[dict[str, Any]] = [
    {"type": "message_start", "message": START},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": USAGE},
    {"type": "message_stop"},
]
SAID = {"parts": [{"text": "Hi"}], "role": "model"}
GEMINI: list[dict[str, Any]] = [
    {"candidates": [{"content": SAID, "index": 0}]},
    {"candidates": [{"content": {"role": "model"}, "finishReason": "STOP", "index": 0}]},
]
LLAMA: list[dict[str, Any]] = [
    {"model": "l", "created_at": "t", "message": {"role": "assistant", "content": "Hi"}},
    {"model": "l", "created_at": "t", "message": {"role": "assistant", "content": ""}},
]
LLAMA[0] |= {"done": False}
LLAMA[1] |= {"done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}


def sse(events: list[dict[str, Any]]) -> list[bytes]:
    named = [(f"event: {each['type']}\n" if "type" in each else "", each) for each in events]
    return [f"{name}data: {json.dumps(each)}\n\n".encode() for name, each in named]


WAYS = {
    "anthropic/claude-sonnet-4-5": (STREAM, sse(CLAUDE), 3),
    "gemini/gemini-2.5-flash": (STREAM, sse(GEMINI), 1),
    "ollama_chat/llama": (
        {"Content-Type": "application/x-ndjson"},
        [json.dumps(each).encode() + b"\n" for each in LLAMA],
        1,
    ),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_cut_stream_is_known_from_a_whole_one(name: str, is_cut: bool) -> None:
    headers, pieces, said = WAYS[name]
    with RawProvider((headers, pieces[:said] if is_cut else pieces)) as provider:
        params = {"api_base": provider.url.removesuffix("/v1"), "api_key": KEY}
        model = make_model("weak", provider.url, litellm_model=name, params=params)
        caller = make_caller({"weak": model}, failures_to_cool=1)

        async def read() -> Any:
            answer = await caller.call(("weak",), {"messages": HELLO}, stream=True)
            assert answer.chunks is not None
            chunks = [chunk async for chunk in answer.chunks]
            return answer.chunks, chunks

        stream, chunks = run(caller, read())
    assert stream.text == "Hi"
    ends = [c["finish_reason"] for chunk in chunks for c in chunk.get("choices", ())]
    if is_cut:
        assert stream.error is not None
        assert (set(ends), bool(caller.cooling())) == ({None}, True)
    else:
        assert (stream.error, ends[-1], bool(caller.cooling())) == (None, "stop", False)

"""Answers of Anthropic's Messages: made of chat completions, and read as them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .. import thoughts

Json = dict[str, Any]

_REASONS = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use",
    "function_call": "tool_use", "content_filter": "refusal",
}  # fmt: skip
_FINISHES = {
    "max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter",
    "model_context_window_exceeded": "length",
}  # fmt: skip


def message_of(completion: Mapping[str, Any]) -> Json:
    """A chat completion as a message."""
    choice = (completion.get("choices") or [{}])[0]
    said, maker = choice.get("message") or {}, completion.get("maker") or ""
    blocks = _thoughts(said, maker)
    if text := said.get("content") or said.get("refusal"):
        blocks.append({"type": "text", "text": text})
    for call in said.get("tool_calls") or ():
        function = call.get("function") or {}
        given = {"input": _arguments(function.get("arguments"))}
        blocks.append(
            {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), **given}
        )
    return {
        **_head(completion),
        "content": blocks,
        "stop_reason": _REASONS.get(choice.get("finish_reason"), "end_turn"),
        "usage": usage_of(completion.get("usage") or {}),
    }


def usage_of(usage: Mapping[str, Any]) -> Json:
    """A chat completion's usage as Messages count: what was cached stands beside the rest."""
    details = usage.get("prompt_tokens_details") or {}
    read, written = details.get("cached_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    prompt = usage.get("prompt_tokens") or 0
    return {
        "input_tokens": max(0, prompt - read - written),
        "output_tokens": usage.get("completion_tokens") or 0,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
    }


class Events:
    """The events of a stream, made of a completion's chunks."""

    def __init__(self) -> None:
        self._index = -1
        self._open: tuple[str, Any] | None = None  # what the open block is: its type, its call
        self._begun = False
        self._maker = ""
        self._signed = False
        self._reason = "end_turn"
        self._usage: Mapping[str, Any] = {}

    def of(self, chunk: Mapping[str, Any]) -> Iterator[Json]:
        """The events that a chunk brings."""
        if not self._begun:
            self._begun, self._maker = True, chunk.get("maker") or ""
            message = {**_head(chunk), "content": [], "stop_reason": None, "usage": usage_of({})}
            yield {"type": "message_start", "message": message}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue
            yield from self._delta(choice.get("delta") or {})
            if choice.get("finish_reason"):
                self._reason = _REASONS.get(choice["finish_reason"], "end_turn")

    def end(self) -> Iterator[Json]:
        """What ends the message."""
        yield from self._close()
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": usage_of(self._usage)}
        yield {"type": "message_stop"}

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[Json]:
        blocks = delta.get("thinking_blocks") or ()
        for block in blocks:
            yield from self._thought(block)
        if not blocks and (thought := delta.get("reasoning_content")):
            yield from self._piece("thinking", None, "thinking_delta", "thinking", thought)
        if text := delta.get("content") or delta.get("refusal"):
            yield from self._piece("text", None, "text_delta", "text", text)
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            key = call.get("index")
            if self._open != ("tool_use", key):
                start = {"id": call.get("id"), "name": function.get("name"), "input": {}}
                yield from self._start("tool_use", key, start)
            if function.get("arguments"):
                delta = {"type": "input_json_delta", "partial_json": function["arguments"]}
                yield self._on(delta)

    def _thought(self, block: Mapping[str, Any]) -> Iterator[Json]:
        if block.get("type") == "redacted_thinking":
            data = thoughts.mark(self._maker, str(block.get("data") or ""))
            yield from self._start("redacted_thinking", block.get("index"), {"data": data})
            return
        if block.get("thinking"):
            yield from self._piece(
                "thinking", None, "thinking_delta", "thinking", block["thinking"]
            )
        if block.get("signature") and self._open == ("thinking", None):
            signature = thoughts.mark(self._maker, block["signature"])
            self._signed = True
            yield self._on({"type": "signature_delta", "signature": signature})

    def _piece(self, kind: str, key: Any, delta: str, name: str, text: str) -> Iterator[Json]:
        if self._open != (kind, key):
            empty = {name: "", "signature": ""} if kind == "thinking" else {name: ""}
            yield from self._start(kind, key, empty)
        yield self._on({"type": delta, name: text})

    def _start(self, kind: str, key: Any, block: Json) -> Iterator[Json]:
        yield from self._close()
        self._index, self._open, self._signed = self._index + 1, (kind, key), False
        block = {"type": kind, **block}
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _on(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[Json]:
        if self._open is None:
            return
        if self._open[0] == "thinking" and not self._signed:
            yield self._on({"type": "signature_delta", "signature": thoughts.mark(self._maker, "")})
        self._open = None
        yield {"type": "content_block_stop", "index": self._index}


def completion_of(message: Mapping[str, Any]) -> Json:
    """A provider's message as a chat completion. Raises TypeError, KeyError or AttributeError."""
    said: Json = {"role": "assistant", "content": None}
    texts: list[str] = []
    for index, block in enumerate(message["content"]):
        kind = block["type"]
        if kind == "text":
            texts.append(block["text"])
        elif kind in {"thinking", "redacted_thinking"}:
            said.setdefault("thinking_blocks", []).append({**block, "index": index})
        elif kind == "tool_use":
            said.setdefault("tool_calls", []).append(
                _call(block["id"], block["name"], json.dumps(block["input"]))
            )
    if texts:
        said["content"] = "".join(texts)
    finish = _FINISHES.get(message.get("stop_reason") or "", "stop")
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": None}
    head = {"id": message.get("id"), "object": "chat.completion", "created": 0}
    counted = _counted(message.get("usage") or {})
    return {**head, "model": message.get("model"), "choices": [choice], "usage": counted}


class Chunks:
    """A provider's events as chunks of a chat completion."""

    def __init__(self) -> None:
        self._head: Json = {"object": "chat.completion.chunk", "created": 0}
        self._usage: Json = {}
        self._calls: dict[int, int] = {}  # index of a block -> of the call

    def of(self, event: Mapping[str, Any]) -> Json:
        """The chunk that says what an event does; without choices where that is nothing."""
        kind, delta, finish = event.get("type"), {}, None
        if kind == "message_start":
            message = event["message"]
            self._head |= {"id": message.get("id"), "model": message.get("model")}
            self._usage = dict(message.get("usage") or {})
        elif kind == "content_block_start":
            delta = self._started(event["index"], event["content_block"])
        elif kind == "content_block_delta":
            delta = self._said(event["index"], event["delta"])
        elif kind == "message_delta":
            new = event.get("usage") or {}
            self._usage |= {name: value for name, value in new.items() if value is not None}
            if reason := event["delta"].get("stop_reason"):
                finish = _FINISHES.get(reason, "stop")
        chunk = {**self._head, "choices": []}
        if delta or finish:
            chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
        if finish:
            chunk["usage"] = _counted(self._usage)
        return chunk

    def _started(self, index: int, block: Mapping[str, Any]) -> Json:
        if block["type"] == "tool_use":
            self._calls[index] = len(self._calls)
            call = _call(block["id"], block["name"], "")
            return {"tool_calls": [{"index": self._calls[index], **call}]}
        if block["type"] == "redacted_thinking":
            return {"thinking_blocks": [{**block, "index": index}]}
        return {"content": block["text"]} if block.get("text") else {}

    def _said(self, index: int, delta: Mapping[str, Any]) -> Json:
        kind = delta["type"]
        if kind == "text_delta":
            return {"content": delta["text"]}
        if kind == "input_json_delta" and index in self._calls:
            function = {"arguments": delta["partial_json"]}
            return {"tool_calls": [{"index": self._calls[index], "function": function}]}
        if kind in {"thinking_delta", "signature_delta"}:
            name = "thinking" if kind == "thinking_delta" else "signature"
            block = {"index": index, "type": "thinking", name: delta[name]}
            return {"thinking_blocks": [block]}
        return {}


def _counted(usage: Mapping[str, Any]) -> Json:
    """As LiteLLM counts and prices it: the prompt with what was read from the cache or written."""
    plain, output = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
    read = usage.get("cache_read_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    details: Json = {"cached_tokens": read, "cache_creation_tokens": written}
    if made := usage.get("cache_creation"):
        details["cache_creation_token_details"] = {
            name: made.get(name) or 0
            for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
        }
    prompt = plain + read + written
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    if not prompt + output:
        return {}
    cached = {"cache_read_input_tokens": read, "cache_creation_input_tokens": written}
    return {**counted, "prompt_tokens_details": details, **cached}


def _head(completion: Mapping[str, Any]) -> Json:
    id = str(completion.get("id") or "")
    id = id if id.startswith("msg_") else f"msg_{id.removeprefix('chatcmpl-') or 'none'}"
    head = {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": completion.get("model") or "",
    }
    return {**head, "stop_sequence": None}


def _thoughts(said: Mapping[str, Any], maker: str) -> list[Json]:
    blocks = [
        {name: value for name, value in block.items() if name != "index"}
        for block in said.get("thinking_blocks") or ()
    ]
    if not blocks and (text := said.get("reasoning_content")):
        blocks = [{"type": "thinking", "thinking": text, "signature": ""}]
    for block in blocks:
        name = "data" if block.get("type") == "redacted_thinking" else "signature"
        block[name] = thoughts.mark(maker, str(block.get(name) or ""))
    return blocks


def _call(id: Any, name: Any, arguments: str) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(text: object) -> Json:
    try:
        found = json.loads(str(text or "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

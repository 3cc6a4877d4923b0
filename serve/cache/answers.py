"""Answers as they are kept: a chat completion as JSON, made of a stream and played as one.

Only what is whole is kept: every choice asked for, each ended by the model itself ("length" and
"content_filter" are not), none empty, the arguments of tool calls JSON. What a store gives back is
checked before it is used.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_ENDED = frozenset({"stop", "tool_calls", "function_call"})
_TEXTS = ("content", "refusal")
_CALLS = ("tool_calls", "function_call")
# In a delta these come whole, however often they come; all other text comes in pieces.
_WHOLE = frozenset({"role", "id", "type", "name"})
# Pieces of these cannot be put together without knowing the provider; with an index they can.
_UNJOINABLE = frozenset({"audio", "thinking_blocks"})
# Of one chunk, or of all of them: nothing of the whole.
_PASSING = frozenset({"choices", "object", "obfuscation", "native"})


class Kept(NamedTuple):
    """An answer, and the pool's name of the model that gave it."""

    model: str
    completion: dict[str, Any]


def is_complete(completion: Mapping[str, Any], choices: int = 1) -> bool:
    """Whether an answer may be kept. `choices`: how many were asked for (`n`)."""
    found = completion.get("choices")
    if "error" in completion or not isinstance(found, list) or len(found) != max(choices, 1):
        return False
    try:
        return all(map(_is_whole, found))
    except (TypeError, AttributeError):  # choices or tool calls that are none
        return False


def _is_whole(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    if choice.get("finish_reason") not in _ENDED or not isinstance(message, Mapping):
        return False
    texts = [message.get(name) for name in _TEXTS]
    if any(text is not None and not isinstance(text, str) for text in texts):
        return False  # nothing that a stream could replay
    functions = [call.get("function") for call in message.get("tool_calls") or ()]
    functions.append(message.get("function_call"))
    try:
        for function in filter(None, functions):
            arguments = function.get("arguments")  # some providers send none where there are none
            if arguments not in (None, "") and json.loads(arguments) is None:
                return False
    except (TypeError, ValueError, RecursionError):
        return False
    return any(text.strip() for text in texts if text) or any(message.get(name) for name in _CALLS)


def pack(key: str, kept: Kept) -> bytes | None:
    """JSON in UTF-8, or None for what JSON cannot hold."""
    try:
        text = json.dumps([key, *kept], ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return text.encode("utf-8", "surrogatepass")


def unpack(key: str, data: bytes | None) -> Kept | None:
    """What `pack` made; None for anything else, and for what was kept under another key."""
    try:
        kept_as, model, completion = json.loads(data or b"")
        whole = is_complete(completion, len(completion["choices"]))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return None
    return Kept(model, completion) if whole and kept_as == key and isinstance(model, str) else None


def replay(completion: Mapping[str, Any], include_usage: bool = False) -> Iterator[dict[str, Any]]:
    """The chunks of a stream that says the same as a completion that `is_complete`: of each choice
    its whole message and its end; then, where asked for, the usage that the answer had."""
    base = {k: v for k, v in completion.items() if k not in _PASSING | {"usage"}}
    base["object"] = "chat.completion.chunk"
    usage = completion.get("usage") if include_usage else None
    for choice in completion["choices"]:
        message = {k: v for k, v in choice["message"].items() if v is not None}
        delta = {"role": "assistant", "content": None, **message}
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls)]
        rest = {k: v for k, v in choice.items() if k not in {"index", "message", "logprobs"}}
        said = {"delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None}
        for part in (said, {"delta": {}, "logprobs": None, **rest}):
            chunk = {**base, "choices": [{"index": choice.get("index", 0), **part}]}
            yield {**chunk, "usage": None} if include_usage else chunk
    if usage is not None:
        yield {**base, "choices": [], "usage": usage}


class Assembler:
    """Makes a completion of a stream while it passes. Never raises: a stream that cannot be put
    together, or is larger than `max_chars`, gives None. LiteLLM's own builder (1.106) runs the
    texts of all choices together."""

    def __init__(self, max_chars: int = 4_000_000) -> None:
        self._room = max_chars
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._failed = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take in the next chunk, a dict as in OpenAI's API."""
        if self._failed:
            return
        try:
            if "error" in chunk:
                raise ValueError
            for name, value in chunk.items():
                if name not in _PASSING and value is not None:
                    self._top[name] = value
            for choice in chunk.get("choices") or ():
                self._add_choice(choice)
        except (TypeError, ValueError, AttributeError, RecursionError):
            self._failed = True
            self._choices.clear()

    def completion(self) -> dict[str, Any] | None:
        """The whole of it so far; None where it cannot be put together or nothing came."""
        if self._failed or not self._choices:
            return None
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        return {**self._top, "object": "chat.completion", "choices": choices}

    def _add_choice(self, piece: Mapping[str, Any]) -> None:
        index = _index(piece.get("index", 0))
        choice = self._choices.setdefault(
            index, {"index": index, "message": {}, "finish_reason": None}
        )
        for name, value in piece.items():
            if name == "delta" and value is not None:
                if any(value.get(part) for part in _UNJOINABLE) and not _is_indexed(value):
                    raise ValueError
                self._merge(choice["message"], value)
            elif name == "logprobs":
                self._merge(choice, {name: value})
            elif name != "index" and value is not None:
                choice[name] = value

    def _merge(self, into: dict[str, Any], delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            old = into.get(name)
            if value is None:
                into.setdefault(name, None)
            elif isinstance(value, str):
                self._room -= len(value)
                if self._room < 0:
                    raise ValueError
                if name in _WHOLE:
                    into[name] = value or old
                elif isinstance(old, _Pieces):
                    old.append(value)
                else:
                    into[name] = _Pieces([value])
            elif isinstance(value, Mapping):
                inner = into[name] = old if isinstance(old, dict) else {}
                self._merge(inner, value)
            elif isinstance(value, list):
                if isinstance(old, _Pieces):
                    raise ValueError
                items = into[name] = old if isinstance(old, list) else []
                self._merge_list(items, value)
            else:
                into[name] = value

    def _merge_list(self, into: list[Any], items: list[Any]) -> None:
        """Items with an `index` are pieces of one; others are whole, one after another."""
        for item in items:
            index = item.get("index") if isinstance(item, Mapping) else None
            if index is None:
                self._room -= 50  # not measured: a token's log probability, an annotation
                if self._room < 0:
                    raise ValueError
                into.append(item)
                continue
            known = next((i for i in into if isinstance(i, dict) and i.get("index") == index), None)
            if known is None:
                known = {"index": _index(index)}
                into.append(known)
            self._merge(known, item)


def _is_indexed(delta: Mapping[str, Any]) -> bool:
    blocks = delta.get("thinking_blocks") or ()
    return not delta.get("audio") and all("index" in block for block in blocks)


def _index(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError
    return value


class _Pieces(list[str]):
    """Text that is still coming: adding to a string would copy it at every chunk."""


def _finished(choice: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = _joined(choice)
    message = {"role": "assistant", "content": None, **whole["message"]}
    calls = message.get("tool_calls")
    if calls:
        calls = sorted(calls, key=lambda call: call.get("index", 0))
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} for call in calls
        ]
        message["content"] = message["content"] or None  # streams say "" where there is nothing
    return {**whole, "message": message}


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_joined(inner) for inner in value]
    return value

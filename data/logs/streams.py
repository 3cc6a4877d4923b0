"""The answer of a stream, from the events that a log kept of it.

Known are the streams of chat and text completions, of the Responses API, of Anthropic, Gemini,
Ollama, Bedrock and Cohere: as the text of server-sent events, as lines of JSON, or as a list.
"""

import json
from collections.abc import Iterator
from typing import Any

from .normalize import FAILED, LeftOutError, Object, body, first, listed, text

_SSE = ("data:", "event:", "id:", "retry:", ":")
_MARKS = {"choices", "candidates", "contentBlockDelta", "contentBlockStart"}
_KINDS = ("response.", "content_block", "message_start", "message_delta", "content-delta")
_HEAD = ("id", "model", "created", "usage", "usageMetadata")


def joined(answer: object) -> Any:
    """The answer of a logged stream as a message, with what its events tell of `_HEAD`; anything
    else as it is. Raises LeftOutError where one of the events is an error."""
    events = _events(answer)
    if not events:
        return answer
    parts = _Parts()
    found: dict[str, Any] = {}
    for event in events:
        if event.get("error") or event.get("type") == "error":
            raise LeftOutError(FAILED)
        inner = body(event.get("response")) or body(event.get("message"))
        ended = event.get("type") in ("response.completed", "response.incomplete")
        if ended and inner.get("output"):
            return inner
        for name in _HEAD:
            said = inner.get(name) or event.get(name)
            # Anthropic counts what goes in at the start, and what comes out at the end.
            if isinstance(said, dict) and isinstance(found.get(name), dict):
                found[name] |= said
            elif said:
                found.setdefault(name, said)
        parts.take(event)
    return {**found, "role": "assistant", "content": parts.found}


def _events(answer: object) -> list[Object]:
    """The events of a stream; none where it is something else."""
    found: list[Object] = []
    if isinstance(answer, str):
        start = answer.lstrip()
        if start.startswith(_SSE):
            lines = (line[5:] for line in start.splitlines() if line.startswith("data:"))
            found = [event for line in lines if (event := body(line))]
        elif start.startswith("{") and "\n" in start.rstrip():
            found = [body(line) for line in start.splitlines() if line.strip()]
            found = found if all(found) else []
    elif isinstance(answer, list | tuple) and all(isinstance(event, dict) for event in answer):
        found = list(answer)
    ollama = any("done" in e and {"message", "response"} & set(e) for e in found)
    known = any(_MARKS & set(e) or _kind(e).startswith(_KINDS) for e in found)
    return found if known or ollama else []


def _kind(event: Object) -> str:
    return text(event.get("type") or event.get("event_type"))


class _Parts:
    """The parts of an answer, to which events add."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._at: dict[object, dict[str, Any]] = {}  # the part that an index means now

    def take(self, event: Object) -> None:
        """Add what an event says."""
        kind = _kind(event)
        if kind.startswith("response."):
            self._item(kind, event)
            return
        for said in _messages(kind, event):
            self._message(said)
        for at, part in _blocks(kind, event):
            self._block(at, body(part))

    def _message(self, said: Object) -> None:
        for name in ("content", "refusal"):
            words = said.get(name)
            for part in words if isinstance(words, list) else (words,):
                self._text("text", part if isinstance(part, str) else body(part).get("text"))
        for at, call in enumerate(listed(said.get("tool_calls"))):
            function = first(call, "function", "custom")
            self._call(("call", text(call.get("index", at))), call.get("id"), function)
        if said.get("function_call"):
            self._call("function_call", None, said["function_call"])

    def _item(self, kind: str, event: Object) -> None:
        """Items of the Responses API, by index."""
        at, delta = text(event.get("output_index")), event.get("delta")
        item = body(event.get("item"))
        if kind.endswith(("output_text.delta", "refusal.delta")):
            self._text(at, delta)
        elif kind.endswith(("_call_arguments.delta", "_tool_call_input.delta")):
            self._call(at, None, {"arguments": delta})
        elif item.get("type") == "message" and kind.endswith("done"):
            said = listed(item.get("content"))
            words = "\n".join(text(part.get("text") or part.get("refusal")) for part in said)
            self._put(at, {"type": "text", "text": words})
        elif item and item.get("type") != "message":
            self._put(at, dict(item))

    def _block(self, at: object, part: Object) -> None:
        if "partial_json" in part or ("input" in part and not part.get("name")):
            self._call(at, None, {"arguments": part.get("partial_json", part.get("input"))})
        elif part.get("type") == "tool_use" or "toolUseId" in part:
            self._call(at, part.get("id") or part.get("toolUseId"), {"name": part.get("name")})
        elif isinstance(part.get("text"), str) and not part.get("thought"):
            self._text(at, part["text"])
        elif part and not text(part.get("type")).endswith("_delta"):
            self.found.append(dict(part))

    def _text(self, at: object, words: object) -> None:
        if words and isinstance(words, str):
            known = self._at.get(at) or self._put(at, {"type": "text", "text": ""})
            known["text"] = known.get("text", "") + words

    def _call(self, at: object, id_: object, function: object) -> None:
        known = self._at.get(at)
        # Some providers give every call the same index: another id is another call.
        if known is None or (id_ and known.get("id") and id_ != known["id"]):
            self._at.pop(at, None)
            new = {"type": "tool_call", "id": text(id_), "name": "", "arguments": ""}
            known = self._put(at, new)
        said = body(function)
        given = said.get("arguments", said.get("input"))
        known["name"] = known.get("name") or text(said.get("name"))
        whole = isinstance(given, dict)
        more = json.dumps(given, ensure_ascii=False) if whole else text(given)
        known["arguments"] = more if whole else text(known.get("arguments")) + more

    def _put(self, at: object, part: dict[str, Any]) -> dict[str, Any]:
        """Let the part stand at that index, in place of what stands there."""
        known = self._at.setdefault(at, part)
        if known is part:
            self.found.append(part)
        else:
            known.clear()
            known.update(part)
        return known


def _messages(kind: str, event: Object) -> Iterator[Object]:
    """Pieces of a message: OpenAI's choices (of several answers the first), Cohere's, Ollama's."""
    for choice in listed(event.get("choices")):
        if not choice.get("index"):
            yield body(first(choice, "delta", "message")) or {"content": choice.get("text")}
    if "choices" in event:
        return
    if "-" in kind:
        said = body(first(event, "delta.message"))
        call = body(said.get("tool_calls"))
        calls = [{"index": event.get("index"), **call}] if call else []
        content = first(body(said.get("content")), "text") or event.get("text")
        yield {"content": content, "tool_calls": calls}
    elif "done" in event:
        yield {"content": event.get("response"), **body(event.get("message"))}


def _blocks(kind: str, event: Object) -> Iterator[tuple[str, object]]:
    """(index, part or what is added to it) of Anthropic's, Gemini's and Bedrock's answers."""
    if kind.startswith("content_block"):
        yield text(event.get("index")), first(event, "content_block", "delta")
    for candidate in listed(event.get("candidates"))[:1]:
        for part in listed(first(candidate, "content.parts")):
            yield "text", part
    block = body(first(event, "contentBlockStart", "contentBlockDelta"))
    said = first(block, "start.toolUse", "delta.toolUse", "delta")
    yield text(block.get("contentBlockIndex")), said

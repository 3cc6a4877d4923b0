"""The answer of a stream, from the events that a log kept of it.

Known are the streams of chat and text completions, of the Responses API, of Anthropic, Gemini,
Ollama, Bedrock and Cohere: as the text of server-sent events, as lines of JSON, or as a list.
"""

import json
from collections.abc import Callable
from typing import Any

from .normalize import FAILED, LeftOutError, Object, body, first, listed, text

_SSE = ("data:", "event:", "id:", "retry:", ":")
_MARKS = {"choices", "candidates", "contentBlockDelta", "contentBlockStart"}
_KINDS = ("response.", "content_block", "message_start", "message_delta", "content-delta")
_HEAD = ("id", "model", "created", "usage", "usageMetadata")


def joined(answer: object) -> Any:
    """The body of an answer whose stream was logged; anything else as it is.

    The body is a message of the assistant, with what the events tell of `id`, `model`, `created`
    and `usage`. Raises LeftOutError where one of the events is an error.
    """
    events = _events(answer)
    if not events:
        return answer
    parts = _Parts()
    found: dict[str, Any] = {}
    for event in events:
        if event.get("error") or event.get("type") == "error":
            raise LeftOutError(FAILED)
        inner = body(event.get("response")) or body(event.get("message"))
        if event.get("type") in ("response.completed", "response.incomplete") and inner.get(
            "output"
        ):
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
    return found if any(map(_is_event, found)) else []


def _kind(event: Object) -> str:
    return text(event.get("type") or event.get("event_type"))


def _is_event(event: Object) -> bool:
    ollama = "done" in event and {"message", "response"} & set(event)
    return bool(_MARKS & set(event) or ollama or _kind(event).startswith(_KINDS))


class _Parts:
    """The parts of an answer, to which events add."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._at: dict[object, dict[str, Any]] = {}  # the part that an index means now

    def take(self, event: Object) -> None:
        """Add what an event says."""
        kind = _kind(event)
        for fits, add in _DIALECTS:
            if fits(kind, event):
                add(self, kind, event)
                return

    def openai(self, kind: str, event: Object) -> None:
        """Chat and text completions: of several answers the first."""
        for choice in listed(event["choices"]):
            if not choice.get("index"):
                said = body(first(choice, "delta", "message"))
                self._message(said or {"content": choice.get("text")})

    def anthropic(self, kind: str, event: Object) -> None:
        """Blocks of content, by index."""
        self._block(text(event.get("index")), first(event, "content_block", "delta"))

    def gemini(self, kind: str, event: Object) -> None:
        """Parts of candidates, of which the first counts."""
        for candidate in listed(event["candidates"])[:1]:
            for part in listed(first(candidate, "content.parts")):
                self._block("text", part)

    def bedrock(self, kind: str, event: Object) -> None:
        """Blocks of content as Bedrock's Converse has them."""
        block = body(first(event, "contentBlockStart", "contentBlockDelta"))
        said = first(block, "start.toolUse", "delta.toolUse", "delta")
        self._block(text(block.get("contentBlockIndex")), said)

    def cohere(self, kind: str, event: Object) -> None:
        """Text and calls of a message."""
        said = body(first(event, "delta.message"))
        if call := body(said.get("tool_calls")):
            self._call(("call", text(event.get("index"))), call.get("id"), call.get("function"))
        self._text("text", first(body(said.get("content")), "text") or event.get("text"))

    def ollama(self, kind: str, event: Object) -> None:
        """Pieces of a message, or of plain text."""
        self._message({"content": event.get("response"), **body(event.get("message"))})

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

    def responses(self, kind: str, event: Object) -> None:
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

    def _block(self, at: object, said: object) -> None:
        """A part of Anthropic's, Gemini's or Bedrock's, or what is added to one."""
        part = body(said)
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
            new = {"type": "tool_call", "id": text(id_), "name": "", "arguments": ""}
            known = self._put(at, new, new=True)
        said = body(function)
        given = said.get("arguments", said.get("input"))
        known["name"] = known.get("name") or text(said.get("name"))
        whole = isinstance(given, dict)
        more = json.dumps(given, ensure_ascii=False) if whole else text(given)
        known["arguments"] = more if whole else text(known.get("arguments")) + more

    def _put(self, at: object, part: dict[str, Any], *, new: bool = False) -> dict[str, Any]:
        """Let the part stand at that index, in place of what stands there."""
        known = None if new else self._at.get(at)
        if known is None:
            self.found.append(part)
            self._at[at] = known = part
        else:
            known.clear()
            known.update(part)
        return known


_DIALECTS: tuple[
    tuple[Callable[[str, Object], bool], Callable[[_Parts, str, Object], None]], ...
] = (
    (lambda kind, event: "choices" in event, _Parts.openai),
    (lambda kind, event: kind.startswith("response."), _Parts.responses),
    (lambda kind, event: kind.startswith("content_block"), _Parts.anthropic),
    (lambda kind, event: "candidates" in event, _Parts.gemini),
    (lambda kind, event: not _MARKS.isdisjoint(event), _Parts.bedrock),
    (lambda kind, event: "-" in kind, _Parts.cohere),
    (lambda kind, event: "done" in event, _Parts.ollama),
)

"""What logs write in a hundred ways, as one: messages, answers, counts, moments.

Known are OpenAI's chat completions and responses, Anthropic's and Gemini's content, the message
parts of OpenTelemetry's GenAI conventions, and each of them as text of JSON. Objects are dicts, as
JSON gives them: to ask whether one is any Mapping takes many times as long.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ..data.schema import Messages, parse_messages, render, shown
from ..router.errors import DataError

# Why an entry of a log is no row, and no mistake either.
FAILED = "failed"
NO_CHAT = "not a chat"
NO_TEXT = "text not logged"
NO_PROMPT = "no text of a user"

Object = Mapping[str, Any]

_ROLES = {"human": "user", "ai": "assistant", "model": "assistant"}
_KEPT = ("name", "tool_calls", "tool_call_id", "function_call")
_CALLS = ("tool_call", "tool_use", "function_call")
_RESULTS = ("tool_call_response", "tool_result", "function_call_output")
_THOUGHTS = ("reasoning", "thinking", "redacted_thinking")
_REQUESTS = ("messages", "input", "contents", "prompt", "question", "query", "text")
_SYSTEMS = ("system", "instructions", "systemInstruction", "system_instruction")
_ANSWERS = ("completion", "text", "answer", "response", "generated_text", "output_text")
_NANOSECONDS, _MILLISECONDS = 1e16, 1e11  # larger numbers are no seconds of our time


class LeftOutError(Exception):
    """An entry that is no row, for a `reason` that is counted: it is no mistake of the log."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def conversation(value: object, system: object = None) -> tuple[Messages, str | None]:
    """The messages of a request, and the answer where it stands after them.

    value: messages, one message, a request's body, plain text, or JSON of any of them.
    Raises LeftOutError where there is no text of a user in it, DataError where it is malformed.
    """
    messages = [*_system(system), *_messages(value)]
    last: list[dict[str, Any]] = []
    while messages and messages[-1]["role"] == "assistant":
        last.insert(0, messages.pop())
    if not any(m["role"] == "user" for m in messages):
        raise LeftOutError(NO_PROMPT)
    found = parse_messages(messages)
    if not render(found).strip():
        raise LeftOutError(NO_PROMPT)
    return found, _joined(map(_said, last))


def answer_text(value: object) -> str | None:
    """The text of an answer; calls of tools as `name(arguments)`. None where there is none.

    value: an answer's body, a message, the pieces of a stream, plain text, or JSON of any of them.
    What is none of these, such as a parsed object, is written as JSON.
    """
    if isinstance(value, str):
        parsed = _parsed(value)
        if isinstance(parsed, dict) and not {"choices", "role"} & set(parsed):
            parsed = value  # an answer may itself be JSON
        if isinstance(parsed, list) and not all(_is_message(p) for p in parsed):
            parsed = value
        return (value or None) if isinstance(parsed, str) else answer_text(parsed)
    if isinstance(value, dict):
        return _answer_of_object(value)
    if isinstance(value, list | tuple) and value:
        if all(isinstance(piece, dict) and "choices" in piece for piece in value):
            return "".join(filter(None, map(_delta, value))) or None
        if all(_is_message(piece) for piece in value):
            # Those of the assistant alone: some logs repeat the request.
            turns = [m for m in _messages(value) if m["role"] == "assistant"]
            return _joined(map(_said, turns))
        return json.dumps(value, ensure_ascii=False)
    return None


def first(record: Object, *names: str) -> Any:
    """The value of the first name that has one; "a.b" looks for b in a, which may be JSON text."""
    for name in names:
        if "." in name:
            head, _, rest = name.partition(".")
            value = record.get(head)
            while rest and value is not None:
                head, _, rest = rest.partition(".")
                value = body(value).get(head)
        else:
            value = record.get(name)
        # 0 and False are values.
        if value or (value is not None and not isinstance(value, str | dict | list)):
            return value
    return None


def body(value: object) -> Object:
    """`value` where it is an object, or the JSON text of one; else an empty one."""
    if isinstance(value, str):
        value = _parsed(value)
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """A name or an id as text; '' where there is none."""
    return "" if value is None or isinstance(value, dict | list) else str(sound(str(value)))


def sound(value: Any) -> Any:
    """JSON without halves of surrogate pairs, which it may hold and no file or request can."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: sound(part) for key, part in value.items()}
    return [sound(part) for part in value] if isinstance(value, list | tuple) else value


def number(value: object, field: str) -> float | None:
    """A number, also from text; None where there is none. Raises DataError(field) otherwise."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool | dict | list):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DataError(f"{shown(value)} is not a number", field=field) from error


def count(value: object, field: str) -> int | None:
    """A whole number as `number`."""
    found = number(value, field)
    return None if found is None else round(found)


def iso_time(value: object) -> str | None:
    """A moment as ISO 8601 in UTC, from seconds, milli- or nanoseconds since 1970, or from text.

    Text without a zone counts as UTC. Raises DataError(time) where it is neither.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, int | float) or str(value).replace(".", "", 1).isdigit():
            seconds = float(value)  # type: ignore[arg-type]
            scale = 1e9 if seconds > _NANOSECONDS else 1e3 if seconds > _MILLISECONDS else 1.0
            moment = datetime.fromtimestamp(seconds / scale, UTC)
        else:
            moment = datetime.fromisoformat(str(value).removesuffix(" UTC"))
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise DataError(
            f"{shown(value)} is no moment: expected ISO 8601, or seconds since 1970", field="time"
        ) from error
    return moment.isoformat(timespec="milliseconds")


def rating(value: object) -> float | None:
    """Feedback in [0, 1]: a number there, true or false, or a word. Raises DataError(feedback)."""
    words = {"up": 1.0, "good": 1.0, "positive": 1.0, "down": 0.0, "bad": 0.0, "negative": 0.0}
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.strip().lower().removeprefix("thumbs_") in words:
        return words[value.strip().lower().removeprefix("thumbs_")]
    found = number(value, "feedback")
    if found is None or not 0.0 <= found <= 1.0:
        raise DataError(
            f"{shown(value)} is no feedback: expected a number in [0, 1], true, false, up or down",
            field="feedback",
        )
    return found


def _parsed(value: str) -> object:
    """What JSON text holds where it is a list or an object; the text itself otherwise."""
    if value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def _system(value: object) -> list[dict[str, Any]]:
    if value is None or value in ("", [], {}):
        return []
    # Instructions may be bare parts, which say no role.
    found = _parsed(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        found = found.get("parts", [found])
    return _message({"role": "system", "content": found})


def _messages(value: object) -> list[dict[str, Any]]:
    if isinstance(value, str):
        parsed = _parsed(value)
        wanted = isinstance(parsed, dict) and ("role" in parsed or "messages" in parsed)
        if wanted or (isinstance(parsed, list) and parsed and all(map(_is_message, parsed))):
            return _messages(parsed)
        value = [value] if value.strip() else []
    if isinstance(value, dict):
        return _message(value) if _is_message(value) else _of_request(value)
    if not isinstance(value, list | tuple) or not value:
        raise LeftOutError(NO_TEXT)
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if all(isinstance(turn, str) for turn in value):
        return [{"role": "user", "content": turn} for turn in value]
    return [each for turn in value for each in _message(turn)]


def _of_request(value: Object) -> list[dict[str, Any]]:
    system = next((value[name] for name in _SYSTEMS if value.get(name)), None)
    for name in _REQUESTS:
        if value.get(name):
            return [*_system(system), *_messages(value[name])]
    raise LeftOutError(NO_CHAT if value else NO_TEXT)


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and ("role" in value or value.get("type") in _TYPES)


_TYPES = {*_ROLES, *_CALLS, *_RESULTS, *_THOUGHTS, "message"}


def _message(value: object) -> list[dict[str, Any]]:
    """One logged message as OpenAI's: several where it holds results of several tools."""
    if not isinstance(value, dict):
        raise DataError(f"{shown(value)} is not a message", field="messages")
    kind = value.get("type")
    if kind in _CALLS or kind in _RESULTS or kind in _THOUGHTS:  # items of the Responses API
        return _from_parts("assistant", [value], {})
    role = value.get("role") or kind
    if not isinstance(role, str):
        raise DataError(f"{shown(value)} has no role", field="messages")
    role = _ROLES.get(role, role)
    kept = {name: value[name] for name in _KEPT if value.get(name)}
    content = value.get("content", value.get("parts"))
    if not content and isinstance(value.get("refusal"), str):
        content = value["refusal"]  # which is what was answered
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list | tuple):
        return [{"role": role, "content": content, **kept}]
    return _from_parts(role, content, kept)


def _from_parts(role: str, parts: Iterable[Any], kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts: list[Any] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            texts.append({"type": "text", "text": part})
            continue
        if not isinstance(part, dict):
            raise DataError(f"{shown(part)} is not a part of a message", field="messages")
        kind = part.get("type")
        words = part.get("text", part.get("content", part.get("refusal")))
        if kind in _CALLS:
            calls.append(_call(part))
        elif kind in _RESULTS:
            results.append(_result(part))
        elif kind in _THOUGHTS:
            continue
        elif isinstance(words, str):
            texts.append({"type": "text", "text": words})
        else:
            texts.append(dict(part))  # an image or a file
    plain = all(part.get("type") == "text" for part in texts)
    content: Any = "\n".join(part["text"] for part in texts) if plain else texts
    found = dict(kept)
    if calls:
        found["tool_calls"] = [*found.get("tool_calls", ()), *calls]
    if texts or found or not results:
        empty = not texts and "tool_calls" in found
        results.append({"role": role, "content": None if empty else content, **found})
    return results


def _call(part: Object) -> dict[str, Any]:
    given = part.get("arguments", part.get("input"))
    arguments = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    id_ = text(part.get("call_id") or part.get("id"))
    function = {"name": text(part.get("name")), "arguments": arguments}
    return {"id": id_, "type": "function", "function": function}


def _result(part: Object) -> dict[str, Any]:
    found = next((part[n] for n in ("response", "result", "output", "content") if n in part), "")
    if isinstance(found, list) and all(isinstance(p, dict) and "text" in p for p in found):
        found = "\n".join(text(p["text"]) for p in found)
    said = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    id_ = text(part.get("call_id") or part.get("tool_use_id") or part.get("id"))
    return {"role": "tool", "tool_call_id": id_, "content": said}


def _answer_of_object(value: Object) -> str | None:
    choices = value.get("choices")
    if isinstance(choices, list | tuple):
        chosen = choices[0] if choices else None
        if not isinstance(chosen, dict):
            return None
        return answer_text(first(chosen, "message", "delta", "text"))
    if "role" in value or ("content" in value and "type" in value):
        turns = _message({"role": "assistant", **value})
        return _joined(map(_said, turns))
    for name in ("output", "message", "content"):
        if value.get(name):
            return answer_text(value[name])
    for name in _ANSWERS:
        if isinstance(value.get(name), str):
            return str(value[name]) or None
    return json.dumps(value, ensure_ascii=False) if value else None


def _delta(piece: Object) -> str | None:
    found = first(piece, "choices")
    chosen = found[0] if isinstance(found, list) else None
    return text(first(chosen, "delta.content", "text")) if isinstance(chosen, dict) else None


def _said(message: Object) -> str | None:
    """A message's text, and its calls as a router reads them."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    said = [part.get("text") for part in parts if isinstance(part, dict)]
    for call in message.get("tool_calls") or ():
        function = body(body(call).get("function"))
        said.append(f"{function.get('name', '')}({function.get('arguments', '')})")
    return _joined(each for each in said if isinstance(each, str))


def _joined(texts: Iterable[str | None]) -> str | None:
    return "\n".join(filter(None, texts)) or None

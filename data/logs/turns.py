"""Messages and answers from every dialect that logs are written in (see `parts`), as OpenAI's."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import DataError
from ..schema import Messages, content_text, parse_messages, render, shown
from .normalize import (
    CUT,
    NO_CHAT,
    NO_PROMPT,
    NO_TEXT,
    LeftOutError,
    Object,
    body,
    first,
    listed,
    parsed,
    text,
)
from .parts import ROLES, call_of, id_of, kind_of, media_of, type_of
from .streams import joined

_KEPT = ("name", "tool_call_id", "function_call")
_RESULTS = ("functionResponse", "function_response", "toolResult")
_RETURNED = ("response", "result", "output", "content")
_REQUESTS = ("messages", "input", "contents", "prompt", "question", "query", "text")
_SYSTEMS = ("system", "instructions", "systemInstruction", "system_instruction")
_ANSWERS = ("completion", "text", "answer", "response", "generated_text", "output_text")
# What tools put in place of text that was too long for them: LiteLLM's spend logs (now and before),
# Langfuse's SDKs, Datadog's.
_CUT = re.compile(
    r"\(litellm_truncated skipped \d+ chars|\.\.\. \(truncated \d+ chars\)\Z"
    r"|<truncated due to size exceeding limit>"
    r"|\[This value has been dropped because this span's size exceeds the \d+MB size limit\.\]"
)
# And in place of text that was not to be logged: LiteLLM, OpenInference.
_HIDDEN = (
    *("redacted-by-litellm", "redacted by litellm. 'litellm.turn_off_message_logging=True'"),
    "__REDACTED__",
)


def conversation(value: object, system: object = None) -> tuple[Messages, str | None]:
    """The messages of a request, and the answer where it stands after them.

    value: messages, one message, a request's body, plain text, or JSON of any of them. Raises
    LeftOutError where there is no whole text of a user in it, DataError where it is malformed.
    """
    messages = _answered([*_system(system), *_messages(value)])
    last: list[dict[str, Any]] = []
    while messages and messages[-1]["role"] == "assistant":
        last.insert(0, messages.pop())
    if not any(m["role"] == "user" for m in messages):
        raise LeftOutError(NO_PROMPT)
    found = parse_messages(messages)
    for message in found:
        said = content_text(message.get("content"))
        if said in _HIDDEN:
            raise LeftOutError(NO_TEXT)
        if _is_cut(said) or any(_is_cut(_of_call(c)) for c in message.get("tool_calls") or ()):
            raise LeftOutError(CUT)
    if not render(found).strip():
        raise LeftOutError(NO_PROMPT)
    return found, _whole(_lines(map(_said, last)))


def answer_text(value: object) -> str | None:
    """The text of an answer; calls of tools as `name(arguments)`. None where it is not all there.

    value: an answer's body, a message, the events of a stream, plain text, or JSON of any of them.
    What is none of these, such as a parsed object, is written as JSON.
    """
    return _whole(_answer(value))


def _whole(said: str | None) -> str | None:
    return None if said is None or said in _HIDDEN or _is_cut(said) else said


def _answer(value: object) -> str | None:
    value = joined(value)
    if isinstance(value, str):
        found = parsed(value)
        if isinstance(found, dict):
            # An answer may itself be JSON.
            body_of_one = {"choices", "role", "candidates"} & set(found)
            known = body_of_one or found.get("object") == "response"
        else:
            known = bool(found) and isinstance(found, list) and all(map(_is_typed, found))
        return _answer(found) if known else value or None
    if isinstance(value, dict):
        return _answer_of_object(value)
    if isinstance(value, list | tuple) and value:
        if any(map(_is_typed, value)):
            # Messages of the assistant alone: some logs repeat the request.
            turns = _messages([m for m in value if kind_of(m)], "assistant")
            return _lines(_said(m) for m in turns if m["role"] == "assistant")
        return json.dumps(value, ensure_ascii=False)
    return None


def _answer_of_object(value: Object) -> str | None:
    for name in ("choices", "candidates"):
        choices = value.get(name)
        if isinstance(choices, list | tuple):
            chosen = choices[0] if choices else None
            return _answer(first(body(chosen), "message", "delta", "text", "content"))
    if "role" in value or "parts" in value or ("content" in value and "type" in value):
        return _lines(map(_said, _message({"role": "assistant", **value})))
    if kind_of(value) in ("call", "text"):
        return _lines(map(_said, _from_parts("assistant", [value], {})))
    for name in ("output", "message", "content"):
        if value.get(name):
            return _answer(value[name])
    for name in _ANSWERS:
        if isinstance(value.get(name), str):
            return str(value[name]) or None
    return json.dumps(value, ensure_ascii=False) if value else None


def _system(value: object) -> list[dict[str, Any]]:
    if value is None or value in ("", [], {}):
        return []
    # Instructions may be bare parts, which say no role.
    found = parsed(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        found = found.get("parts", [found])
    return _message({"role": "system", "content": found})


def _messages(value: object, role: str = "user") -> list[dict[str, Any]]:
    """Messages; role: whose bare parts and text are."""
    if isinstance(value, str):
        found = parsed(value)
        wanted = isinstance(found, dict) and {"role", "messages", "contents"} & set(found)
        if wanted or (isinstance(found, list) and found and all(map(_is_typed, found))):
            return _messages(found, role)
        value = [value] if value.strip() else []
    if isinstance(value, dict):
        return _message(value, role) if kind_of(value) == "message" else _of_request(value)
    if not isinstance(value, list | tuple) or not value:
        raise LeftOutError(NO_TEXT)
    return _of_list(value[0] if len(value) == 1 and isinstance(value[0], list) else value, role)


def _of_list(value: Sequence[Any], role: str) -> list[dict[str, Any]]:
    if all(isinstance(turn, str) for turn in value):
        return [{"role": role, "content": turn} for turn in value]
    if all(kind_of(turn) in ("text", "media") for turn in value):
        return _from_parts(role, value, {})
    turns: list[dict[str, Any]] = []
    for turn in value:
        for each in _message(turn, role):
            # Calls that are items of their own are of the turn before, and of one another.
            if turns and kind_of(turn) == "call" and turns[-1]["role"] == "assistant":
                turns[-1].setdefault("tool_calls", []).extend(each["tool_calls"])
            else:
                turns.append(each)
    return turns


def _of_request(value: Object) -> list[dict[str, Any]]:
    system = next((value[name] for name in _SYSTEMS if value.get(name)), None)
    for name in _REQUESTS:
        if value.get(name):
            return [*_system(system), *_messages(value[name])]
    raise LeftOutError(NO_CHAT if value else NO_TEXT)


def _is_typed(value: object) -> bool:
    """Whether an object of JSON text is a message or an item: it must say so itself."""
    return isinstance(value, dict) and ("role" in value or bool(type_of(value) and kind_of(value)))


def _message(value: object, role: str = "user") -> list[dict[str, Any]]:
    """One logged message or item as OpenAI's: several where it holds results of several tools."""
    if not isinstance(value, dict):
        raise DataError(f"{shown(value)} is not a message", field="messages")
    kind = kind_of(value)
    if kind not in (None, "message"):
        return _from_parts(role if kind in ("text", "media") else "assistant", [value], {})
    said = value.get("role") or type_of(value) or (role if "parts" in value else None)
    if not isinstance(said, str):
        raise DataError(f"{shown(value)} has no role", field="messages")
    # An item that nobody knows is left out.
    return [] if kind is None else _of_message(value, ROLES.get(said.lower(), said))


def _of_message(value: Object, role: str) -> list[dict[str, Any]]:
    kept = {name: value[name] for name in _KEPT if value.get(name)}
    if calls := [call_of(each) for each in listed(value.get("tool_calls")) if each]:
        kept["tool_calls"] = calls
    content = value.get("content", value.get("parts"))
    if not content and isinstance(value.get("refusal"), str):
        content = value["refusal"]  # which is what was answered
    if role in ("tool", "function") and isinstance(content, dict | list):
        if "tool_call_id" not in kept and _is_definition(content):
            return []
        content = content if _is_parts(content) else json.dumps(content, ensure_ascii=False)
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list | tuple):
        return [{"role": role, "content": content, **kept}]
    return _from_parts(role, parts, kept)


def _is_definition(content: object) -> bool:
    """Whether it defines a tool: Langfuse has the tools of a request among its messages."""
    tools = [body(tool) for tool in (content if isinstance(content, list) else [content])]
    schema = {"input_schema", "parameters"}
    return bool(tools) and all(
        type_of(tool) == "function" or ("name" in tool and schema & set(tool)) for tool in tools
    )


def _is_parts(content: object) -> bool:
    return isinstance(content, list) and bool(content) and all(map(kind_of, content))


def _from_parts(role: str, parts: Sequence[Any], kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    said: list[Any] = []
    calls: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            said.append({"type": "text", "text": part})
            continue
        if not isinstance(part, dict):
            raise DataError(f"{shown(part)} is not a part of a message", field="messages")
        kind = kind_of(part)
        if kind == "call":
            calls.append(call_of(part))
        elif kind == "result":
            turns.append(_result(part))
        elif kind == "text":
            words = next((part[n] for n in ("text", "content", "refusal") if part.get(n)), "")
            words = words.get("value") if isinstance(words, dict) else words  # the Assistants API's
            said.append({"type": "text", "text": text(words)})
        elif kind != "work":
            said.append(media_of(part))
    plain = all(part.get("type") == "text" for part in said)
    content: Any = "\n".join(part["text"] for part in said) if plain else said
    found = dict(kept)
    if calls:
        found["tool_calls"] = [*found.get("tool_calls", ()), *calls]
    # Where all that it held was something else, no message is left.
    if said or "tool_calls" in found or not parts:
        empty = not said and "tool_calls" in found
        turns.append({"role": role, "content": None if empty else content, **found})
    return turns


def _result(part: Object) -> dict[str, Any]:
    inner = next((inner for name in _RESULTS if (inner := body(part.get(name)))), part)
    found = next((inner[name] for name in _RETURNED if name in inner), "")
    if isinstance(found, dict) and "value" in found and "type" in found:  # the AI SDK's
        found = found["value"]
    if isinstance(found, dict) and kind_of(found) in ("text", "media"):
        found = [found]
    said: Any = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    if isinstance(found, list) and _is_parts(found):
        turns = _from_parts("tool", found, {})
        said = turns[-1]["content"] or "" if turns else ""
    return {"role": "tool", "tool_call_id": id_of(part, inner), "content": said}


def _answered(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with each tool's result as one: some logs name the tool as its role, or no call.

    Raises DataError where a role is none.
    """
    waiting: list[dict[str, Any]] = []  # calls without a result
    for turn in turns:
        waiting += turn.get("tool_calls") or ()
        role, id_ = turn["role"], turn.get("tool_call_id")
        if role in ROLES and role != "tool":
            continue
        name = turn.get("name") if role == "tool" else role
        fits = [c for c in waiting if (c["id"] == id_ if id_ else c["function"]["name"] == name)]
        call = next(iter(fits or (() if id_ else waiting)), None)
        if call is not None:
            waiting.remove(call)
            turn |= {"role": "tool", **({"tool_call_id": call["id"]} if call["id"] else {})}
        elif role != "tool":
            problem = f"{shown(role)} is no role of a chat, nor a tool that was called before"
            raise DataError(problem, field="messages")
    return turns


def _said(message: Object) -> str | None:
    """A message's text, and its calls as a router reads them."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    said = [part.get("text") for part in parts if isinstance(part, dict)]
    said += map(_of_call, message.get("tool_calls") or ())
    if legacy := body(message.get("function_call")):
        said.append(_of_call({"function": legacy}))
    return _lines(each for each in said if isinstance(each, str))


def _of_call(call: Object) -> str:
    function = body(body(call).get("function"))
    return f"{function.get('name', '')}({function.get('arguments', '')})"


def _lines(texts: Iterable[str | None]) -> str | None:
    return "\n".join(filter(None, texts)) or None


def _is_cut(said: str) -> bool:
    # To look for words first is ten times as fast as the pattern alone.
    return ("truncated" in said or "has been dropped" in said) and bool(_CUT.search(said))

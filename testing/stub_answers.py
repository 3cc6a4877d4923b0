"""What the stub provider answers."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .stub_faults import Fault


def answer(model: str, body: Mapping[str, Any], index: int) -> tuple[dict[str, Any], str]:
    """(assistant message, finish reason) of the choice at `index`."""
    functions = [tool["function"] for tool in body.get("tools") or () if "function" in tool]
    last = body["messages"][-1] if body["messages"] else {}
    if functions and body.get("tool_choice") != "none" and last.get("role") != "tool":
        function = {"name": functions[0]["name"], "arguments": "{}"}
        call = {"id": "call_stub", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    if (body.get("response_format") or {}).get("type") in {"json_object", "json_schema"}:
        return {"role": "assistant", "content": json.dumps({"model": model})}, "stop"
    number, temperature = "", body.get("temperature")
    if isinstance(temperature, int | float) and temperature > 0:
        sample = _hashed(model, json.dumps(body["messages"]), body.get("seed"), index)
        number = f" {int(1000 * sample)}"
    return {"role": "assistant", "content": f"Answer{number} of {model}."}, "stop"


def logprobs(text: object, body: Mapping[str, Any], fault: Fault) -> dict[str, Any] | None:
    """Of each word, as OpenAI words it: between log(.5) and 0, or what the fault says."""
    if not body.get("logprobs") or not fault.logprobs or not isinstance(text, str) or not text:
        return None
    told = []
    for token in _words(text):
        value = fault.logprob
        if value is None:
            value = math.log(0.5 + _hashed(json.dumps(body["messages"]), token) / 2)
        about = {"token": token, "logprob": value, "bytes": list(token.encode())}
        told.append({**about, "top_logprobs": [about] if body.get("top_logprobs") else []})
    return {"content": told, "refusal": None}


def _hashed(*what: object) -> float:
    """A number in [0, 1), always the same for the same things."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _words(text: str) -> list[str]:
    """The words, each with the space before it."""
    return re.findall(r" ?[^ ]+| ", text)


def deltas(message: Mapping[str, Any], reason: str) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The message cut into (delta, finish reason) chunks: a role, a piece a word, a finish."""
    yield {"role": "assistant", "content": None if "tool_calls" in message else ""}, None
    for index, call in enumerate(message.get("tool_calls", ())):
        yield {"tool_calls": [{"index": index, **call}]}, None
    for name, text in message.items():
        if name in {"role", "tool_calls"} or not isinstance(text, str) or not text:
            continue
        for word in _words(text):
            yield {name: word}, None
    yield {}, reason


def usage_of(messages: object, answers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Words instead of tokens."""
    prompt = len(json.dumps(messages).split())
    answered = sum(len(json.dumps(message).split()) for message in answers)
    total = prompt + answered
    return {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": total}

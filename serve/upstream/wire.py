"""LiteLLM's answers, and providers' own, as OpenAI's plain JSON."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from ...providers.http_answer import HttpAnswer


def completion(response: Any) -> dict[str, Any]:
    """A ModelResponse of LiteLLM as OpenAI's `chat.completion`."""
    return _completion(_dumped(response))


def read(http: HttpAnswer) -> dict[str, Any] | None:
    """As `completion`, what the provider itself sent; None where that is no chat completion."""
    if not http.is_success or http.too_large:
        return None
    try:
        raw = json.loads(b"".join(http.parts))
        choices = raw.get("choices")
        if raw.get("error") or not choices:
            return None
        for choice in choices:
            message = choice["message"]
            if not message or not isinstance(message.get("content"), str | list | None):
                return None
        return _completion(raw)
    # Anything may be anything in it. ValueError covers bytes that are no UTF-8.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


async def pieces(stream: Any, http: HttpAnswer) -> AsyncIterator[dict[str, Any]]:
    """The pieces of a stream of LiteLLM's as OpenAI's `chat.completion.chunk`.

    Where OpenAI's client made the request, they are the provider's own, as they come: LiteLLM's
    wrapper (seen in 1.106 and 1.110) gives only one of n choices a finish reason, invents a finish
    reason and usage for a stream that was cut, and drops fields that it does not know.
    """
    if http.is_openais_client:
        async for event in http.events():
            for choice in event.get("choices") or ():
                _flatten(choice.get("delta") or {})
            yield event
        return
    async for part in stream:
        raw = _dumped(part)
        chunk = _envelope(raw, "chat.completion.chunk", _piece)
        if raw.get("usage"):
            chunk["usage"] = _without_none(raw["usage"])
        yield chunk


def _dumped(part: Any) -> dict[str, Any]:
    """A model of pydantic's as a dict, without warnings that quote fields of unexpected types."""
    found: dict[str, Any] = part.model_dump(warnings=False)
    return found


def _completion(raw: Mapping[str, Any]) -> dict[str, Any]:
    answer = _envelope(raw, "chat.completion", _choice)
    return {**answer, "usage": _without_none(raw.get("usage") or {})}


def _envelope(
    raw: Mapping[str, Any], kind: str, choice: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    answer = {
        "id": raw.get("id"),
        "object": kind,
        "created": raw.get("created"),
        "model": raw.get("model"),
        "choices": [choice(each) for each in raw.get("choices") or ()],
    }
    return {**answer, **_more(raw, answer)}


def _choice(raw: Mapping[str, Any]) -> dict[str, Any]:
    message = _unwrapped(raw.get("message") or {})
    message.setdefault("role", "assistant")
    message.setdefault("content", None)
    message.setdefault("refusal", None)
    choice = {
        "index": raw.get("index", 0),
        "message": message,
        "finish_reason": raw.get("finish_reason"),
        "logprobs": raw.get("logprobs"),
    }
    return {**choice, **_more(raw, choice)}


def _piece(raw: Mapping[str, Any]) -> dict[str, Any]:
    choice = {
        "index": raw.get("index", 0),
        "delta": _unwrapped(raw.get("delta") or {}),
        "finish_reason": raw.get("finish_reason"),
    }
    return {**choice, **_more(raw, choice)}


def _more(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider said besides what is `known`."""
    rest = {name: value for name, value in raw.items() if name not in (*known, "delta", "usage")}
    return _unwrapped(rest)


def _unwrapped(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without what LiteLLM adds, and with the provider's own fields back in their place."""
    own = raw.get("provider_specific_fields") or {}
    plain = {name: value for name, value in raw.items() if value is not None}
    plain.pop("provider_specific_fields", None)
    for name, value in own.items():
        if value is not None:
            plain.setdefault(name, value)
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_without_none(call) for call in plain["tool_calls"]]
    _flatten(plain)
    return plain


def _flatten(message: dict[str, Any]) -> None:
    """Of a content in parts, as Mistral's reasoning models send it, the text and the thinking,
    where OpenAI's clients look for them; as it is where it has neither."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return
    text, thinking = _texts(parts, "text"), _texts(parts, "thinking")
    if text or thinking:
        message["content"] = "".join(text)
        if thinking:
            message["reasoning_content"] = (message.get("reasoning_content") or "") + "".join(
                thinking
            )


def _texts(parts: list[Any], kind: str) -> list[str]:
    """The texts of the parts of this type, which may be in parts themselves."""
    found: list[str] = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == kind:
            inner = part.get(kind)
            found += _texts(inner, "text") if isinstance(inner, list) else [str(inner or "")]
    return found


def _without_none(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that nobody filled in, at any depth."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in raw.items()
        if value is not None
    }

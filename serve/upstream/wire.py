"""LiteLLM's answers, and providers' own, as OpenAI's plain JSON."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from ...providers import json_bytes
from ...providers.http_answer import HttpAnswer
from ...providers.http_client import events
from .native import NativeStream

Json = dict[str, Any]


def completion(raw: Mapping[str, Any]) -> Json:
    """A ModelResponse of LiteLLM, dumped, as OpenAI's `chat.completion`."""
    answer = _envelope(raw, "chat.completion", "message")
    return {**answer, "usage": raw.get("usage") or {}}


def read(http: HttpAnswer) -> Json | None:
    """As `completion`, what the provider itself sent; None where that is no chat completion."""
    if not http.is_success or http.too_large:
        return None
    try:
        raw = json_bytes.read(b"".join(http.parts))
        messages = [choice["message"] for choice in raw.get("choices") or ()]
        is_whole = all(m and isinstance(m.get("content"), str | list | None) for m in messages)
        return completion(raw) if messages and is_whole and not raw.get("error") else None
    # Anything may be anything in it. ValueError covers bytes that are no UTF-8.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


async def pieces(stream: Any, http: HttpAnswer) -> AsyncIterator[Json]:
    """The pieces of a stream of LiteLLM's as OpenAI's `chat.completion.chunk`.

    Where OpenAI's client made the request, they are the provider's own, as they come: LiteLLM's
    wrapper (seen in 1.106 and 1.110) gives only one of n choices a finish reason, invents a finish
    reason and usage for a stream that was cut, and drops fields that it does not know.
    """
    if http.is_openais:
        async for event in events(http):
            for choice in event.get("choices") or ():
                _flatten(choice.get("delta") or {})
            yield event
        return
    if isinstance(stream, NativeStream):
        async for chunk in stream:
            yield chunk
        return
    async for part in stream:
        raw = dumped(part)
        chunk = _envelope(raw, "chat.completion.chunk", "delta")
        yield {**chunk, "usage": raw.get("usage") or {}}


def dumped(part: Any) -> Json:
    """A model of pydantic's as a dict, without the fields that nobody filled in, and without
    warnings that quote fields of unexpected types."""
    found: Json = part.model_dump(exclude_none=True, warnings=False)
    return found


def _envelope(raw: Mapping[str, Any], kind: str, part: str) -> Json:
    answer: Json = {name: raw.get(name) for name in ("id", "object", "created", "model")}
    choices = [_choice(each, part) for each in raw.get("choices") or ()]
    return _with_more({**answer, "object": kind, "choices": choices}, raw)


def _choice(raw: Json, part: str) -> Json:
    said = _unwrapped(raw.get(part) or {})
    choice = {"index": raw.get("index", 0), part: said, "finish_reason": raw.get("finish_reason")}
    if part == "message":
        choice[part] = {"role": "assistant", "content": None, "refusal": None} | said
        choice["logprobs"] = raw.get("logprobs")
    return _with_more(choice, raw)


def _with_more(known: Json, raw: Mapping[str, Any]) -> Json:
    """With what the provider said besides what is `known`."""
    apart = {*known, "delta", "usage"}
    return known | _unwrapped({name: value for name, value in raw.items() if name not in apart})


def _unwrapped(raw: Mapping[str, Any]) -> Json:
    """Without what LiteLLM adds, and with the provider's own fields back in their place."""
    plain = {**(raw.get("provider_specific_fields") or {}), **raw}
    plain.pop("provider_specific_fields", None)
    _flatten(plain)
    return plain


def _flatten(message: Json) -> None:
    """Of a content in parts, as Mistral's reasoning models send it, the text and the thinking,
    where OpenAI's clients look for them; as it is where it has neither."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return
    text, thinking = _texts(parts, "text"), _texts(parts, "thinking")
    if text or thinking:
        message["content"] = text
    if thinking:
        message["reasoning_content"] = (message.get("reasoning_content") or "") + thinking


def _texts(parts: list[Any], kind: str) -> str:
    """The texts of the parts of this type, which may be in parts themselves."""
    found = [p.get(kind) for p in parts if isinstance(p, Mapping) and p.get("type") == kind]
    return "".join(_texts(p, "text") if isinstance(p, list) else str(p or "") for p in found)

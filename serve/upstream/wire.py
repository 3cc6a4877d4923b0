"""Requests as LiteLLM takes them, and its answers as OpenAI's plain JSON.

LiteLLM takes its own settings (where to send a request, with which key) from the same keywords as
a request's parameters. A client's body must never reach those. What is not a parameter of OpenAI's
chat completions goes, as `extra_body` and under the name that the client gave it, to servers that
speak OpenAI's API. To them too it may not say where an answer comes from, nor stand for the
messages: see `is_barred`. Other providers would take it for fields of their own API (an answer's
length, the messages themselves): of further names they get those of `SAMPLING` alone.
"""

import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Mapping
from typing import Any, cast

from ...providers.completion import OPENAI_API
from ...providers.http_answer import HttpAnswer

# Parameters of OpenAI's chat completions (and `thinking`, Anthropic's, which LiteLLM translates).
# fmt: off
PARAMETERS = frozenset({
    "messages", "functions", "function_call", "temperature", "top_p", "n", "stop", "max_tokens",
    "max_completion_tokens", "modalities", "prediction", "audio", "presence_penalty",
    "frequency_penalty", "logit_bias", "user", "response_format", "seed", "tools", "tool_choice",
    "parallel_tool_calls", "logprobs", "top_logprobs", "reasoning_effort", "verbosity",
    "safety_identifier", "service_tier", "store", "prompt_cache_key", "prompt_cache_retention",
    "thinking", "web_search_options",
})
# fmt: on
# Those that change no answer: a provider that does not take them can do without.
HINTS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Providers to which LiteLLM sends OpenAI's JSON, messages as they came (seen in 1.106 and 1.110).
# LiteLLM lists most of them itself: `litellm.openai_compatible_providers`.
ALIKE = OPENAI_API | {
    "azure",
    "cloudflare",
    "cohere",
    "cohere_chat",
    "databricks",
    "huggingface",
    "minimax",
    "mistral",
    "openrouter",
    "snowflake",
    "watsonx",
}
_OWN = frozenset({"model", "stream", "stream_options"})  # thriftroute says these itself
# Not OpenAI's, but harmless whoever gets them.
SAMPLING = frozenset({"top_k", "min_p", "top_a", "typical_p", "repetition_penalty"})
# fmt: off
# What a server, or a gateway behind it, would go by instead of the messages.
_INSTEAD = frozenset({
    "prompt", "prompts", "prompt_embeds", "prompt_id", "prompt_variables", "contents",
    "cached_content", "input", "inputs", "system", "system_prompt", "system_instruction",
    "instructions", "preamble", "query", "history", "chat_history", "conversation", "context",
    "template", "chat_template", "raw", "previous_response_id",
})
# What says which model, provider, settings or plugin of a gateway makes the answer.
_ELSEWHERE = frozenset({
    "deployment_id", "engine", "route", "preset", "plugins", "guardrails", "user_config",
    "extra_body", "extra_query", "organization", "shared_session", "roles", "tags", "caching",
    "cache", "no_log", "no_cache", "ttl", "data_sources", "kv_transfer_params",
    "logits_processors", "lora_request", "adapter_id", "adapter_source",
})
# Words of names for keys, addresses, files and settings: anywhere in a name, first, last.
_WORDS = frozenset({
    "model", "models", "router", "routing", "region", "project", "provider", "providers", "proxy",
    "fallback", "fallbacks", "retry", "retries", "timeout", "secret", "auth", "oauth", "identity",
    "tenant", "ssl", "logger", "logging", "cost", "pricing", "mock", "client",
})
_FIRST = frozenset({"api", "aws", "azure", "vertex", "litellm", "watsonx", "oci", "s3", "gcs"})
_LAST = frozenset({
    "url", "uri", "base", "host", "port", "endpoint", "domain", "path", "file", "bucket", "webhook",
    "token", "key", "password", "credential", "credentials", "header", "headers", "callback",
    "callbacks",
})
# fmt: on
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")


def is_barred(name: str) -> bool:
    """Whether a keyword that is none of OpenAI's is sent to no server: it chooses a key, an
    address, a file or a provider, or stands for the messages. `apiBase` is read as `api_base`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or name.startswith("_") or not _WORDS.isdisjoint(words):
        return True
    whole = "_".join(words)
    return whole in _INSTEAD or whole in _ELSEWHERE or words[0] in _FIRST or words[-1] in _LAST


def keywords(
    body: Mapping[str, Any],
    model: str,
    params: Mapping[str, Any],
    *,
    stream: bool,
    openai_api: bool = True,
    beside: Collection[str] = (),
    left_out: Collection[str] = (),
) -> dict[str, Any]:
    """Keywords of `litellm.acompletion` for a client's `body`.

    The client's parameters come before the model's own, `params`; what `params` has in
    `extra_body` comes before the client's further names. `openai_api`: whether the provider is one
    of `OPENAI_API`. `beside`: parameters that go to the provider past LiteLLM, which would refuse
    them. `left_out`: names that are not sent.
    """
    given = {k: v for k, v in body.items() if k not in _OWN and k not in left_out}
    known = PARAMETERS.difference(beside) if openai_api else PARAMETERS | SAMPLING
    own = {name: value for name, value in given.items() if name in known and value is not None}
    further = given.keys() - known if openai_api else frozenset()
    extra = {
        name: value
        for name, value in given.items()
        if name in further and (name in PARAMETERS or name in HINTS or not is_barred(name))
    }
    extra.update(params.get("extra_body") or {})
    request: dict[str, Any] = {**params, **own, "model": model, "max_retries": 0, "num_retries": 0}
    request.pop("extra_body", None)
    if extra:
        request["extra_body"] = extra
    if stream:
        request["stream"] = True
        # Without usage there is nothing to charge by; who did not ask for it does not get it.
        request["stream_options"] = {**_stream_options(body), "include_usage": True}
    return request


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for usage in its stream."""
    return _stream_options(body).get("include_usage") is True


def _stream_options(body: Mapping[str, Any]) -> Mapping[str, Any]:
    options = body.get("stream_options")
    return options if isinstance(options, Mapping) else {}


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


def _completion(raw: Mapping[str, Any]) -> dict[str, Any]:
    answer = {
        "id": raw.get("id"),
        "object": "chat.completion",
        "created": raw.get("created"),
        "model": raw.get("model"),
        "choices": [_choice(choice) for choice in raw.get("choices") or ()],
        "usage": _told(raw.get("usage") or {}),
    }
    return {**answer, **_more(raw, answer)}


def pieces(stream: Any) -> tuple[AsyncIterator[Any], Callable[[Any], dict[str, Any]], bool]:
    """The pieces of a stream of LiteLLM's, what makes OpenAI's `chat.completion.chunk` of one, and
    whether they are the provider's own.

    Where the provider speaks OpenAI's API through OpenAI's client, its own pieces: LiteLLM's
    wrapper (seen in 1.106.2) gives only one of n choices a finish reason, invents a finish reason
    and usage for a stream that was cut, and drops fields that it does not know.
    """
    inner = getattr(stream, "completion_stream", None)
    if any(cls.__module__.split(".")[0] == "openai" for cls in type(inner).__mro__):
        return aiter(cast(AsyncIterable[Any], inner)), _as_sent, True
    return aiter(stream), _chunk, False


def _dumped(part: Any, **how: Any) -> dict[str, Any]:
    """A model of pydantic's as a dict, without warnings that quote fields of unexpected types."""
    found: dict[str, Any] = part.model_dump(warnings=False, **how)
    return found


def _as_sent(part: Any) -> dict[str, Any]:
    chunk = _dumped(part, exclude_unset=True)
    for choice in chunk.get("choices") or ():
        _flatten(choice.get("delta") or {})
    return chunk


def _chunk(part: Any) -> dict[str, Any]:
    raw = _dumped(part)
    usage = raw.get("usage")
    answer = {
        "id": raw.get("id"),
        "object": "chat.completion.chunk",
        "created": raw.get("created"),
        "model": raw.get("model"),
        "choices": [_piece(choice) for choice in raw.get("choices") or ()],
        **({"usage": _told(usage)} if usage else {}),
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
        plain["tool_calls"] = [_told(call) for call in plain["tool_calls"]]
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


def _told(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that nobody filled in, at any depth."""
    return {
        name: _told(value) if isinstance(value, Mapping) else value
        for name, value in raw.items()
        if value is not None
    }

"""A client's request as LiteLLM takes it, for one model.

LiteLLM takes its own settings (where to send a request, with which key) from the same keywords as
a request's parameters. A client's body must never reach those. What is not a parameter of OpenAI's
chat completions goes, as `extra_body`, to servers that speak OpenAI's API, unless `is_barred`.
Others would take it for fields of their own API: of further names they get those of `SAMPLING`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...providers import completion
from ...providers.completion import OPENAI_API
from ...providers.error_meaning import ShapeError
from ...providers.native import NativeModel
from ...providers.prices import is_listed
from .. import request_parts as parts
from ..config.settings import CallSettings
from ..registry import Model
from ..request import LENGTHS
from . import native

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
)  # fmt: skip
# Providers to which LiteLLM sends OpenAI's JSON, messages as they came (seen in 1.106 and 1.110).
# LiteLLM lists most of them itself: `openai_alike`.
ALIKE = OPENAI_API | {
    "azure", "cloudflare", "cohere", "cohere_chat", "databricks", "huggingface", "minimax",
    "mistral", "openrouter", "snowflake", "watsonx",
}  # fmt: skip
_OWN = frozenset({"model", "stream", "stream_options", "native"})  # thriftroute says these itself
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


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A model as a caller's every request has it. `params`: the keywords of every call, constant,
    for LiteLLM keeps a client and its connections for each key, address and timeout. `beside`:
    parameters that go to the provider past LiteLLM, which would refuse them."""

    model: Model
    provider: str
    params: Mapping[str, Any]
    beside: frozenset[str]
    left_out: frozenset[str]
    fetches_urls: bool
    takes: frozenset[str]
    native: NativeModel

    @classmethod
    def of(cls, model: Model, settings: CallSettings) -> "ModelCall":
        """A server that speaks OpenAI's API gets all that changes no answer, and where LiteLLM
        does not know its model, all else too. Other providers are not sent what changes no answer.
        """
        name = model.litellm_model
        params = {"timeout": settings.timeout_s, **model.params}
        params |= completion.local_key(name, params)
        provider = completion.provider_of(name, model.params)
        own = NativeModel.of(name, model.params, responses=model.responses)
        supported = frozenset({"messages", *completion.parameters_of(name, provider)})
        beside = left_out = frozenset[str]()
        if provider not in OPENAI_API:
            left_out = HINTS - supported
        else:
            beside = (HINTS if is_listed(name) else PARAMETERS) - supported
        return cls(model, provider, params, beside, left_out, settings.fetch_urls, supported, own)

    def translated(self, body: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """The `keywords` for a client's `body`, whatever protocol it came in. Raises ShapeError for
        what cannot be translated."""
        if body.get("native", {}).get("protocol") in {"embeddings", "completions"}:
            raise ShapeError("this kind of request: only servers of OpenAI's API take it here")
        self.check_addresses(body)
        body = native.translated(body, self.native, self.takes)
        return self.keywords(self.cut(body), stream=stream)

    def cut(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A body of another protocol than chat completions with a maximum that the model can."""
        most = self.model.max_output_tokens
        if most is None or "native" not in body:
            return body
        return {k: min(v, most) if k in LENGTHS and v else v for k, v in body.items()}

    def marks(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What an answer says besides, to a client whose protocol has signatures."""
        return {"maker": self.native.maker} if "native" in body else {}

    def keywords(self, body: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """Keywords of `litellm.acompletion` for a client's `body`, whose parameters come before the
        model's own; what those have in `extra_body` comes before the client's further names."""
        is_openai = self.provider in OPENAI_API
        known = PARAMETERS - self.beside if is_openai else PARAMETERS | SAMPLING
        request = {**self.params, "model": self.model.litellm_model}
        request |= {"max_retries": 0, "num_retries": 0}
        extra: dict[str, Any] = {}
        for name, value in body.items():
            if name in _OWN or name in self.left_out:
                continue
            if name in known:
                if value is not None:
                    request[name] = value
            elif is_openai and (name in PARAMETERS or name in HINTS or not is_barred(name)):
                extra[name] = value
        extra.update(request.pop("extra_body", None) or {})
        if extra:
            request["extra_body"] = extra
        if stream:
            request["stream"] = True
            # Without usage there is nothing to charge by; who did not ask for it does not get it.
            request["stream_options"] = {
                **(body.get("stream_options") or {}),
                "include_usage": True,
            }
        return request

    def check_addresses(self, body: Mapping[str, Any]) -> None:
        """Raises ShapeError where LiteLLM would itself get what an address in the request names."""
        if self.fetches_urls:
            return
        takes = self.provider in ALIKE or self.provider in completion.openai_alike()
        for where, kind, url in parts.addresses(body["messages"]):
            # Files have ids; LiteLLM takes an address in their place, and gets it for any provider.
            taken = takes and kind != "file"
            if self.provider == "anthropic":
                taken = kind == "image_url" and url.startswith("https://")
            if not taken:
                raise ShapeError(
                    f"{where}: its provider takes no address (URL) there; send the data itself, "
                    "as data:<media type>;base64,..."
                )


def is_barred(name: str) -> bool:
    """Whether a keyword that is none of OpenAI's is sent to no server: it chooses a key, an
    address, a file or a provider, or stands for the messages. `apiBase` is read as `api_base`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or name.startswith("_") or not _WORDS.isdisjoint(words):
        return True
    whole = "_".join(words)
    return whole in _INSTEAD or whole in _ELSEWHERE or words[0] in _FIRST or words[-1] in _LAST


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for usage in its stream."""
    return (body.get("stream_options") or {}).get("include_usage") is True

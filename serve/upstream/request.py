"""A client's request as LiteLLM takes it, for one model.

LiteLLM takes its own settings (where to send a request, with which key) from the same keywords as
a request's parameters. A client's body must never reach those. What is not a parameter of OpenAI's
chat completions goes, as `extra_body`, to servers that speak OpenAI's API, unless `is_barred`.
Others would take it for fields of their own API: of further names they get those of `SAMPLING`.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...providers import completion
from ...providers.completion import OPENAI_API
from ...providers.direct import CHAT, DirectModel
from ...providers.error_meaning import ShapeError
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
    "azure", "cerebras", "cloudflare", "cohere", "cohere_chat", "databricks", "deepseek",
    "fireworks_ai", "groq", "huggingface", "minimax", "mistral", "openrouter", "snowflake",
    "together_ai", "watsonx",
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


@dataclass(frozen=True)
class ModelCall:
    """A model as a caller's every request has it. `params`: the keywords of every call, constant,
    for LiteLLM keeps a client and its connections for each key, address and timeout. `own`: where
    what needs no LiteLLM goes."""

    model: Model
    params: Mapping[str, Any]
    fetches_urls: bool
    own: DirectModel

    @classmethod
    def of(cls, model: Model, settings: CallSettings) -> "ModelCall":
        """Raises ConfigError where a model that is to be called directly cannot be."""
        params = {"timeout": settings.timeout_s, **model.params}
        name, responses = model.litellm_model, model.responses
        own = DirectModel.of(name, params, model.transport, responses=responses)
        if model.transport == "direct" and CHAT not in own.urls:
            raise ConfigError(
                f"model {model.name!r}: transport: direct needs a provider that speaks OpenAI's "
                "API, with its key, as openai/ with api_base; litellm or auto takes any"
            )
        return cls(model, params, settings.fetch_urls, own)

    @functools.cached_property
    def provider(self) -> str:
        """LiteLLM's name for who serves it."""
        return self.own.provider if CHAT in self.own.urls else self._litellms

    @functools.cached_property
    def _litellms(self) -> str:
        return completion.provider_of(self.model.litellm_model, self.model.params)

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """The parameters that LiteLLM takes for it."""
        with completion.quiet():
            found = completion.parameters_of(self.model.litellm_model, self.provider)
        return found | {"messages"}

    def direct(self, body: Mapping[str, Any], *, stream: bool) -> dict[str, Any] | None:
        """The chat completion's body for `own`; None where LiteLLM has to translate the request.
        Raises as `translated`."""
        thinks = native.wishes(body) and "reasoning" in self.model.capabilities
        if CHAT not in self.own.urls or thinks:
            return None
        body = self._shaped(body, frozenset())
        request = self._keywords(body, frozenset(), frozenset(), stream=stream)
        return self.own.chat(request) if self.own.takes(request) else None

    def translated(self, body: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """The `keywords` for a client's `body`, whatever protocol it came in. Raises ShapeError for
        what cannot be translated. Needs LiteLLM."""
        return self.keywords(self._shaped(body, self.takes), stream=stream)

    def _shaped(self, body: Mapping[str, Any], takes: frozenset[str]) -> Mapping[str, Any]:
        """A chat completion's body, with a maximum that the model can."""
        if body.get("native", {}).get("protocol") in {"embeddings", "completions"}:
            raise ShapeError("this kind of request: only servers of OpenAI's API take it here")
        self.check_addresses(body)
        most = self.model.max_output_tokens
        if "native" not in body:
            return body
        body = native.translated(body, self.own, takes)
        if most is None:
            return body
        return {k: min(v, most) if k in LENGTHS and v else v for k, v in body.items()}

    def marks(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What an answer says besides, to a client whose protocol has signatures."""
        return {"maker": self.own.maker} if "native" in body else {}

    def keywords(self, body: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """Keywords of `litellm.acompletion` for a client's `body`, whose parameters come before the
        model's own; what those have in `extra_body` comes before the client's further names.

        A server that speaks OpenAI's API gets all that changes no answer, and where LiteLLM does
        not know its model, all else too. Other providers are not sent what changes no answer.
        """
        if self.provider not in OPENAI_API:
            return self._keywords(body, frozenset(), HINTS - self.takes, stream=stream)
        beside = HINTS if is_listed(self.model.litellm_model) else PARAMETERS
        return self._keywords(body, beside - self.takes, frozenset(), stream=stream)

    def _keywords(
        self,
        body: Mapping[str, Any],
        beside: frozenset[str],
        left_out: frozenset[str],
        *,
        stream: bool,
    ) -> dict[str, Any]:
        """beside: parameters that go to the provider past LiteLLM, which would refuse them."""
        is_openai = self.provider in OPENAI_API
        known = PARAMETERS - beside if is_openai else PARAMETERS | SAMPLING
        request = {**self.params, "model": self.model.litellm_model}
        request |= {"max_retries": 0, "num_retries": 0}
        extra: dict[str, Any] = {}
        for name, value in body.items():
            if name in _OWN or name in left_out:
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
        for where, kind, url in parts.addresses(body["messages"]):
            takes = self.provider in ALIKE or self.provider in completion.openai_alike()
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

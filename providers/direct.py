"""Which calls need no LiteLLM, and where they go.

A chat completion goes straight where LiteLLM would send it on as it is (`DirectModel.takes`), and
what its client wrote in the provider's own protocol (`DirectModel.urls`) always: for such a stream
LiteLLM (1.110) needs its proxy's packages. All else is LiteLLM's. `http_client` sends it.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from . import price_map
from .completion import OPENAI_API
from .http_answer import ENCODINGS

CHAT = "chat"
_PATHS = {
    CHAT: "chat/completions", "embeddings": "embeddings", "completions": "completions",
    "responses": "responses",
}  # fmt: skip
# Where providers answer, and the variable of their key, as LiteLLM 1.110 has it (a test compares).
_HOSTS = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together_ai": ("https://api.together.ai/v1", "TOGETHER_API_KEY"),
    "deepseek": ("https://api.deepseek.com/beta", "DEEPSEEK_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "fireworks_ai": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "anthropic": ("https://api.anthropic.com", "ANTHROPIC_API_KEY"),
}
_KNOWN = frozenset({*_HOSTS, *OPENAI_API, "azure"})
# Keywords for LiteLLM that are no part of a request's JSON; a plain POST can follow these.
_FOLLOWED = frozenset({"api_base", "base_url", "api_key", "timeout", "extra_headers", "extra_body"})
_ABOUT = _FOLLOWED | {"model", "max_retries", "num_retries", "api_version"}
# What every such provider takes as it is, in messages of plain text.
_PLAIN = frozenset(
    {"messages", "temperature", "top_p", "max_tokens", "stop", "stream", "stream_options"}
)
_OPENAIS = _PLAIN | {
    "max_completion_tokens", "n", "presence_penalty", "frequency_penalty", "seed", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs",
    "logit_bias", "user", "safety_identifier", "service_tier", "store", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip
# Models whose parameters LiteLLM mends, and those that answer under another path.
_REASONS = re.compile(r"(?:^|[/.:_-])gpt-?[5-9]", re.IGNORECASE)
_MENDED = re.compile(
    r"(?:^|[/.:_-])(?:o\d|codex|pro|computer-use)|search|audio|gpt-?[5-9].*chat", re.IGNORECASE
)
_NOT_MENDED = frozenset({"messages", "max_completion_tokens", "user", "stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class DirectModel:
    """Where a model is called without LiteLLM: an address for each protocol that it hears, `CHAT`
    or one that its client wrote. `headers` hold the key; `proxy`: the environment's for this host;
    `always`: a chat is sent as it is also where LiteLLM would translate it; `extra`: what every
    body has besides; `maker`: names who signs its thoughts. `effort`: that of its name, if it has
    one; `has_effort`: whether Anthropic's Messages take it as such (else as a budget)."""

    provider: str
    model: str
    urls: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    always: bool
    extra: Mapping[str, Any]
    maker: str
    effort: str | None = None
    has_effort: bool = True

    @classmethod
    def of(
        cls,
        model: str,
        params: Mapping[str, Any],
        transport: str = "auto",
        *,
        responses: bool | None = None,
    ) -> "DirectModel":
        """Of LiteLLM's name for a model and the keywords of its calls.

        transport: of chats, "auto", "direct" (all of them) or "litellm" (none). responses: whether
        its server has OpenAI's Responses; None: only OpenAI's own has.
        """
        provider, name = provider_of(model)
        own = str(params.get("api_base") or params.get("base_url") or "")
        by = provider or model.partition("/")[0]
        maker = hashlib.sha256(f"{by} {own}".encode()).hexdigest()[:8]
        urls, headers = _addresses(provider, name, params, own, responses=responses)
        if transport == "litellm":
            urls.pop(CHAT, None)
        headers |= {"content-type": "application/json", "accept-encoding": ENCODINGS}
        headers |= dict(params.get("extra_headers") or {})
        extra = dict(params.get("extra_body") or {})
        where = urlsplit(next(iter(urls.values()), ""))
        proxies = {} if proxy_bypass(where.hostname or "") else getproxies()
        proxy = proxies.get(where.scheme) or proxies.get("all")
        if proxy is not None and not proxy.startswith(("http://", "https://")):
            urls = {}  # SOCKS, which httpx may know
        entry = price_map.installed().get(name, {})
        return cls(
            *(provider, name, urls, headers, proxy, transport == "direct", extra, maker),
            effort=_effort(params),
            has_effort=not entry or bool(entry.get("supports_output_config")),
        )

    def takes(self, request: Mapping[str, Any]) -> bool:
        """Whether a chat with LiteLLM's keywords `request` needs no translation."""
        if CHAT not in self.urls or self.always:
            return CHAT in self.urls
        messages = request.get("messages")
        if _MENDED.search(self.model) or not isinstance(messages, list):
            return False
        sent = request.keys() - _ABOUT
        if self.provider in OPENAI_API or self.provider == "azure":
            known = _NOT_MENDED if _REASONS.search(self.model) else _OPENAIS
            return sent <= known and _has_shape(request)
        if self.provider == "mistral" and request.get("stream"):  # it takes no stream_options
            return False
        return sent <= _PLAIN and not request.get("extra_body") and all(map(_is_plain, messages))

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a chat with LiteLLM's keywords `request`."""
        sent = {name: value for name, value in request.items() if name not in _ABOUT}
        return {**sent, **(request.get("extra_body") or {})}


def provider_of(model: str) -> tuple[str, str]:
    """(provider, its name for `model`) of LiteLLM's name; no provider where none is known here."""
    provider, slash, name = model.partition("/")
    if slash:
        return (provider, name) if provider in _KNOWN else ("", model)
    entry = price_map.installed().get(model, {})
    provider = str(entry.get("litellm_provider"))
    # LiteLLM takes others by their full name alone.
    is_known = provider in {"openai", "anthropic"} and entry.get("mode") == "chat"
    return (provider if is_known else "", model)


def _addresses(
    provider: str, name: str, params: Mapping[str, Any], own: str, *, responses: bool | None
) -> tuple[dict[str, str], dict[str, str]]:
    """(address of each protocol, headers that log in); none of a provider that is not known here.
    A chat without any key is LiteLLM's, which knows other ways to log in."""
    if provider == "azure":
        return _azure(name, params)
    host, variable = _HOSTS.get(provider, ("", f"{provider.upper()}_API_KEY"))
    settings = ["OPENAI_BASE_URL"] if provider == "openai" else []
    settings += [f"{provider.upper()}_API_BASE", f"{provider.upper()}_BASE_URL"]
    own = own or next(filter(None, map(os.environ.get, settings)), "")
    base = (own or host).rstrip("/")
    if not provider or not re.match(r"https?://[^/]", base):
        return {}, {}
    key = params.get("api_key") or os.environ.get(variable)
    is_plain = params.keys() <= _FOLLOWED | ({"reasoning_effort"} if _effort(params) else set())
    if provider == "anthropic":
        base = base.removesuffix("/messages").removesuffix("/v1")
        urls = {"messages": f"{base}/v1/messages"} if is_plain else {}
        return urls, {"x-api-key": str(key)} if key else {}
    is_openais = provider in OPENAI_API
    key = key or ("none" if own and is_openais else None)  # a local server needs none
    hears = [CHAT] if key and not {"custom_llm_provider", "organization"} & params.keys() else []
    if is_openais and is_plain:
        hears += ["embeddings", "completions"]
        if base.startswith("https://api.openai.com/") if responses is None else responses:
            hears.append("responses")
    if provider == "mistral" and not base.endswith("/v1"):
        base += "/v1"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if provider == "openai" and (organization := os.environ.get("OPENAI_ORGANIZATION")):
        headers["openai-organization"] = organization
    return {each: f"{base}/{_PATHS[each]}" for each in hears}, headers


def _effort(params: Mapping[str, Any]) -> str | None:
    """In a word; what else LiteLLM takes for one is for LiteLLM."""
    effort = params.get("reasoning_effort")
    return effort if isinstance(effort, str) else None


def _azure(deployment: str, params: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    names = ("api_base", "api_version", "api_key")
    base, version, key = (params.get(n) or os.environ.get(f"AZURE_{n.upper()}") for n in names)
    if not (base and version and key) or "/openai/" in base or "organization" in params:
        return {}, {}
    path = f"openai/deployments/{quote(deployment, safe='')}/chat/completions"
    return {CHAT: f"{base.rstrip('/')}/{path}?api-version={quote(version)}"}, {"api-key": key}


def _has_shape(request: Mapping[str, Any]) -> bool:
    """Whether it has OpenAI's shape on the whole; what is odd LiteLLM judges."""
    if not isinstance(request.get("tool_choice", ""), str | dict):
        return False
    if not isinstance(request.get("response_format", {}), dict):
        return False
    for message in request["messages"]:
        content = message.get("content") if isinstance(message, Mapping) else 0
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in {"text", "image_url", "input_audio"} or kind not in part:
                return False
        if not isinstance(content, str | list | None):
            return False
    return True


def _is_plain(message: object) -> bool:
    is_text = isinstance(message, Mapping) and isinstance(message.get("content"), str)
    return is_text and message.keys() == {"role", "content"}  # type: ignore[attr-defined]

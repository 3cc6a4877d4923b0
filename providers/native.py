"""Requests in a provider's own protocol, sent as their clients wrote them.

LiteLLM translates, and its passing-through (1.110) needs its proxy's packages for a stream. So what
needs no translation is one POST by httpx, watched and judged (`calls.judged`) as LiteLLM's are.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from .completion import OPENAI_API, load_litellm, provider_of
from .http_answer import BadAnswerError, HttpAnswer

_PATHS = {
    "messages": "messages", "responses": "responses", "embeddings": "embeddings",
    "completions": "completions",
}  # fmt: skip
_VERSION = "2023-06-01"  # Anthropic's, where a client names none
# The keywords that a plain POST can follow; a model with others is called through LiteLLM.
_FOLLOWED = frozenset({"api_base", "api_key", "timeout", "extra_headers", "extra_body"})


@dataclass(frozen=True, slots=True)
class NativeModel:
    """Where a model hears the `protocols` that it speaks. `maker`: names who signs its thoughts."""

    protocols: frozenset[str]
    model: str
    base: str
    headers: Mapping[str, str]
    extra: Mapping[str, Any]
    maker: str

    @classmethod
    def of(cls, model: str, params: Mapping[str, Any], *, responses: bool | None) -> "NativeModel":
        """responses: whether its server has OpenAI's Responses; None: only OpenAI's own has."""
        provider, base = provider_of(model, params), str(params.get("api_base") or "")
        maker = hashlib.sha256(f"{provider} {base}".encode()).hexdigest()[:8]
        protocols: set[str] = set()
        if provider == "anthropic":
            protocols, base = {"messages"}, base or _setting("ANTHROPIC_API_BASE") or (
                _setting("ANTHROPIC_BASE_URL") or "https://api.anthropic.com"
            )  # fmt: skip
            base = base.rstrip("/").removesuffix("/messages").removesuffix("/v1") + "/v1"
        elif provider in OPENAI_API:
            protocols = {"embeddings", "completions"}
            base = (base or _openai_base(model, params)).rstrip("/")
            if base.startswith("https://api.openai.com/") if responses is None else responses:
                protocols.add("responses")
        if not base or not _FOLLOWED.issuperset(params):
            protocols = set()
        name = model if provider != model.partition("/")[0] else model.partition("/")[2]
        headers = _log_in(provider, params) | dict(params.get("extra_headers") or {})
        extra = dict(params.get("extra_body") or {})
        return cls(frozenset(protocols), name, base, headers, extra, maker)


class NativeClient:
    """The connections of one event loop."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def post(
        self,
        to: NativeModel,
        request: Mapping[str, Any],
        http: HttpAnswer,
        *,
        stream: bool,
        timeout_s: float,
    ) -> None:
        """Send `request` (its `protocol`, `body` and `headers`); the answer is in `http`: whole, or
        to be read from its events. Raises what httpx raises, and BadAnswerError for a refusal."""
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            self._client = httpx.AsyncClient(limits=limits)
        body = {**request["body"], **to.extra, "model": to.model}
        if stream:
            body["stream"] = True
        url = f"{to.base}/{_PATHS[request['protocol']]}"
        headers = {**request["headers"], **to.headers}
        if request["protocol"] == "messages":
            headers = {"anthropic-version": _VERSION, **headers}
        sent = self._client.build_request(
            "POST", url, json=body, headers=headers, timeout=timeout_s
        )
        response = await self._client.send(sent, stream=True)
        try:
            if not stream or not response.is_success:
                await response.aread()
            if not response.is_success:
                raise BadAnswerError(f"status {response.status_code}")
        finally:
            if not stream or not response.is_success:
                await response.aclose()

    async def close(self) -> None:
        """Close them; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


async def events(http: HttpAnswer) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream that `NativeClient.post` began. Raises as `HttpAnswer.events`."""
    async for event in http.events():
        if not isinstance(event, dict):
            raise BadAnswerError("an event that is no object")
        yield event


def _log_in(provider: str, params: Mapping[str, Any]) -> dict[str, str]:
    given = params.get("api_key")
    if provider == "anthropic":
        key = given or _setting("ANTHROPIC_API_KEY")
        return {"x-api-key": str(key)} if key else {}
    litellm = load_litellm()
    key = given or litellm.api_key or litellm.openai_key or _setting("OPENAI_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def _openai_base(model: str, params: Mapping[str, Any]) -> str:
    if provider_of(model, params) != "openai":
        return ""  # a server of its own, whose address is LiteLLM's setting
    own = _setting("OPENAI_BASE_URL") or _setting("OPENAI_API_BASE")
    return own or "https://api.openai.com/v1"


def _setting(name: str) -> str | None:
    return os.environ.get(name) or None

"""The boundary to LiteLLM: imported on first use, because its import takes seconds.

The first use sets what keeps the import silent and off the network, and leaves alone what the
user set before. Every keyword goes to LiteLLM as it was given, with a key that stands for none
where a local server needs none (`local_key`).
"""

import asyncio
import functools
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ..errors import ConfigError

# LiteLLM's names for providers that speak OpenAI's API, whatever model they serve.
OPENAI_API = frozenset(
    {"openai", "custom_openai", "openai_like", "hosted_vllm", "litellm_proxy", "lm_studio"}
)
_GATEWAY = "litellm.responses.mcp.chat_completions_handler"

_lock = threading.Lock()


def load_litellm() -> ModuleType:
    """LiteLLM, imported once however many threads ask. Takes seconds and ~100 MB the first time."""
    with _lock:
        return _import_litellm()


@functools.cache
def _import_litellm() -> ModuleType:
    # Otherwise the import fetches the list of prices from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Otherwise errors without a status end in a long link to LiteLLM's bug form.
    os.environ.setdefault("LITELLM_DISABLE_BUG_REPORT_LINK", "True")
    litellm = importlib.import_module("litellm")
    for name, value in (("suppress_debug_info", True), ("telemetry", False)):
        if hasattr(litellm, name):  # the one prints adverts, the other is gone from newer versions
            setattr(litellm, name, value)
    return litellm


def complete(request: Mapping[str, Any]) -> Any:
    """`litellm.completion(**request)`: a ModelResponse, or a stream wrapper with `stream=True`.

    Raises what LiteLLM raises, and ConfigError for a model whose provider it cannot tell."""
    litellm, internal = prepare(request)
    try:
        return litellm.completion(**{**request, **internal})
    except litellm.exceptions.BadRequestError:
        check_provider(request["model"], request)
        raise


async def acomplete(request: Mapping[str, Any]) -> Any:
    """`complete` for asyncio; imports happen in a thread, never on the loop."""
    litellm, internal = await asyncio.to_thread(prepare, request)
    try:
        return await litellm.acompletion(**{**request, **internal})
    except litellm.exceptions.BadRequestError:
        check_provider(request["model"], request)
        raise


def provider_of(model: str, params: Mapping[str, Any]) -> str:
    """LiteLLM's name for who serves `model` with these keywords; "" where it cannot tell."""
    return _resolved(model, params)[0]


def check_provider(model: str, params: Mapping[str, Any]) -> None:
    """Raise ConfigError, which says what to write, where LiteLLM cannot tell who serves `model`."""
    # A provider by name needs no look at the rest, which for some opens a log-in.
    if model.partition("/")[0] in load_litellm().provider_list or provider_of(model, params):
        return
    known = load_litellm().model_cost.get(model, {}).get("litellm_provider")
    offered = f"{known}/{model}" if known else f"openai/{model} or ollama_chat/{model}"
    raise ConfigError(
        f"LiteLLM cannot tell who serves the model {model!r}: put the provider before its name, "
        f"such as {offered} (openai/ is any server at an api_base that speaks OpenAI's API); in a "
        "config file as `model`, where `name` may stay as it is"
    )


def local_key(model: str, params: Mapping[str, Any]) -> dict[str, str]:
    """The keyword `api_key` for calls that have no key and go to an address of the user's own.

    A local server asks for no key, OpenAI's client for any. Empty where there is a key."""
    address = params.get("api_base") or params.get("base_url")
    if not address or params.get("api_key"):
        return {}
    litellm = load_litellm()
    provider, key = _resolved(model, params)
    found = key or litellm.api_key or litellm.openai_key or os.environ.get("OPENAI_API_KEY")
    return {} if found or provider not in OPENAI_API else {"api_key": "none"}


def _resolved(model: str, params: Mapping[str, Any]) -> tuple[str, str | None]:
    """(provider, the key that LiteLLM has for it), as far as LiteLLM tells before a call."""
    litellm = load_litellm()
    model = litellm.model_alias_map.get(model, model)
    given = params.get("custom_llm_provider")
    first = given or model.partition("/")[0]
    if given or any(first == own["provider"] for own in litellm.custom_provider_map):
        return str(first), None
    try:
        address = params.get("api_base") or params.get("base_url")
        _, provider, key, _ = litellm.get_llm_provider(model, api_base=address)
    except litellm.exceptions.BadRequestError:
        return "", None
    return str(provider), key


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error of a call, and what it was raised from or while handling."""
    cause: BaseException | None = error
    for _ in range(12):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def retry_after(error: BaseException) -> float | None:
    """Seconds that the provider asks to wait; None where it does not say, or names a date."""
    for cause in causes(error):
        for name in ("litellm_response_headers", "headers"):
            headers = getattr(cause, name, None)
            if isinstance(headers, Mapping) and "retry-after" in headers:
                try:
                    return max(0.0, float(headers["retry-after"]))
                except ValueError:
                    return None
    return None


def prepare(request: Mapping[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    """LiteLLM, and what it must be given so that it can make this request as it is installed."""
    litellm = load_litellm()
    more: dict[str, Any] = local_key(request["model"], request) if "model" in request else {}
    if request.get("tools") and _is_broken(_GATEWAY):
        more["_skip_mcp_handler"] = True
    return litellm, more


@functools.cache
def _is_broken(module: str) -> bool:
    """True where `module`, LiteLLM's MCP gateway, is there but cannot be imported.

    LiteLLM imports it for every call with tools (to look for tools that its proxy serves), though
    it needs the package `mcp` >= 2, which LiteLLM does not install: seen in 1.106.2, where such a
    call ends in ModuleNotFoundError. Its own switch, which it never sends to a provider, goes round
    the gateway. Requiring `mcp` instead would add some 26 MB in 15 packages and 0.6 s at the first
    call with tools, and would shut out applications that need mcp 1.x.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        # Where the gateway itself is missing (another version), nobody will import it either.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        return missing is None or not f"{module}.".startswith(f"{missing}.")
    return False

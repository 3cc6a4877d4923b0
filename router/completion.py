"""The boundary to LiteLLM: imported on first use, because its import takes seconds.

The first use sets what keeps the import silent and off the network, and leaves alone what the
user set before. Every keyword goes to LiteLLM as it was given.
"""

import asyncio
import functools
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from .threshold import Decision

_HIDDEN = "_hidden_params"
_KEY = "thriftroute"
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
    """`litellm.completion(**request)`: a ModelResponse, or a stream wrapper with `stream=True`."""
    litellm, internal = prepare(request)
    return litellm.completion(**request, **internal)


async def acomplete(request: Mapping[str, Any]) -> Any:
    """`await litellm.acompletion(**request)`; imports happen in a thread, never on the loop."""
    litellm, internal = await asyncio.to_thread(prepare, request)
    return await litellm.acompletion(**request, **internal)


def attach(response: Any, decision: Decision) -> None:
    """Put `decision` where `decision_of` finds it, beside LiteLLM's own hidden parameters."""
    hidden = getattr(response, _HIDDEN, None)
    # A new dict instead of a new key: LiteLLM's logging threads may be iterating over the old one.
    setattr(response, _HIDDEN, {**(hidden if isinstance(hidden, dict) else {}), _KEY: decision})


def decision_of(response: object) -> Decision | None:
    """The Decision behind an answer or a stream of the Controller; None for any other object."""
    hidden = getattr(response, _HIDDEN, None)
    decision = hidden.get(_KEY) if isinstance(hidden, dict) else None
    return decision if isinstance(decision, Decision) else None


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
    if request.get("tools") and _is_broken(_GATEWAY):
        return litellm, {"_skip_mcp_handler": True}
    return litellm, {}


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

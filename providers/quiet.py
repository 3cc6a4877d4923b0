"""LiteLLM's bookkeeping of a call, left out where nothing reads it.

After an answer LiteLLM (seen in 1.106.2) prices it, and in a task of its own builds the payload
that its callbacks are to log: with none set, 1.5 ms of CPU a call, of 3.8 in all. thriftroute
prices and records calls itself. LiteLLM takes the object that does this as `litellm_logging_obj`,
as its own proxy hands one over; `Quiet` makes one that does the rest of its work (what is sent,
how it fails) and skips that.
"""

import datetime
import logging
import uuid
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

CALLBACKS = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "_async_input_callback",
    "_async_success_callback",
    "_async_failure_callback",
    "pre_call_rules",
)
_MARKER = "cache"  # put among them by any of LiteLLM's caches, Gemini's too: says nothing here
# Settings of a call that LiteLLM reads while it sets its own logging up.
_OWN = frozenset(
    {
        "callbacks",
        "success_callback",
        "failure_callback",
        "logger_fn",
        "metadata",
        "litellm_metadata",
        "litellm_trace_id",
        "litellm_session_id",
        "guardrails",
        "prompt_id",
    }
)


class Quiet:
    """Makes what a call may be given, beside its keywords. `litellm`: the loaded module."""

    def __init__(self, litellm: ModuleType) -> None:
        self._litellm = litellm
        self._kind = _kind(litellm)
        hi = {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about a type of LiteLLM's own
                litellm.completion(**hi, mock_response="hi", **self.keywords(hi))
        except Exception:  # noqa: BLE001 - a version that does not take it goes without
            self._kind = None

    def keywords(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Further keywords of `litellm.acompletion(**request)`; {} where somebody may read what
        LiteLLM logs, or it has more to do beforehand than to log."""
        if self._kind is None or not _OWN.isdisjoint(request) or self._is_read():
            return {}
        if any("tool_calls" in each or "tool_call_id" in each for each in request["messages"]):
            return {}  # it looks for Gemini's signatures in their ids, and takes them out
        id = str(uuid.uuid4())
        try:
            made = self._kind(
                model=request["model"],
                messages=request["messages"],
                stream=request.get("stream", False),
                call_type="acompletion",
                start_time=datetime.datetime.now(),
                litellm_call_id=id,
                function_id="",
            )
            made.update_environment_variables(
                model=request["model"],
                user="",
                optional_params={},
                litellm_params={"api_base": ""},
                stream_options=request.get("stream_options"),
            )
        except Exception:  # noqa: BLE001 - another version's; a call does not need it
            self._kind = None
            return {}
        return {"litellm_logging_obj": made, "litellm_call_id": id}

    def _is_read(self) -> bool:
        """Whether this process has told LiteLLM to log anywhere."""
        for name in CALLBACKS:
            if any(each != _MARKER for each in getattr(self._litellm, name, None) or ()):
                return True
        if getattr(self._litellm, "max_budget", None):  # counted from what is logged
            return True
        return logging.getLogger("LiteLLM").isEnabledFor(logging.INFO)


def _kind(litellm: ModuleType) -> Any:
    """LiteLLM's class of such objects without what comes after a success; None: it has none."""
    try:
        from litellm.litellm_core_utils.litellm_logging import Logging
    except ImportError:
        return None

    class Silent(Logging):
        def response_cost_calculator(self, *given: Any, **named: Any) -> Any:
            # Of some streams the cost is told in their usage.
            return super().response_cost_calculator(*given, **named) if self.stream else None

        def claim_async_success_log(self) -> bool:
            return False

        def handle_sync_success_callbacks_for_async_calls(self, *_: Any, **__: Any) -> None:
            return None

        def success_handler(self, *_: Any, **__: Any) -> None:
            return None

        async def async_success_handler(self, *_: Any, **__: Any) -> None:
            return None

    return Silent

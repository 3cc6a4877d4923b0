"""A second look on real answers: what is asked of the weak model, and what its answer shows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..providers.log_probabilities import field_of, token_logprobs
from .routers import BundleRouter, Router
from .second_look import Answer, SecondLook

if TYPE_CHECKING:
    from .scorer import Scorer  # brings onnxruntime

# What a look asks a provider for, and can do without.
LOOK_KEYWORDS = ("logprobs",)


@dataclass(frozen=True, slots=True)
class Look:
    """What a second look said of one answer. `probability` that it falls short; `escalated`: it
    reached `threshold`, and the strong model was asked too; `signals`: by name, None where one was
    not known."""

    probability: float
    threshold: float
    escalated: bool
    signals: Mapping[str, float | None] = field(default_factory=dict)


def looks_of(routers: Mapping[str, Router]) -> dict[str, SecondLook]:
    """The second looks of the routers that have one, by name. Raises ConfigError where none has."""
    found = {
        name: look
        for name, router in routers.items()
        if isinstance(router, BundleRouter)
        and (look := SecondLook.of(router.scorer.bundle)) is not None
    }
    if not found:
        raise ConfigError(
            f"second_look: none of the routers {', '.join(routers)} has a second look; write one "
            "with `thriftroute train second-look`, and give its folder as a router"
        )
    return found


def look_keywords(look: SecondLook, request: Mapping[str, Any]) -> dict[str, Any]:
    """What the weak model is asked for beside the request."""
    asks = "confidence" in look.signals and request.get("logprobs") is None
    return {"logprobs": True} if asks else {}


def without_logprobs(response: Any, request: Mapping[str, Any]) -> Any:
    """The answer as the caller asked for it: without token probabilities that only the look
    needed."""
    if not request.get("logprobs"):
        for choice in field_of(response, "choices") or ():
            if isinstance(choice, dict):
                choice["logprobs"] = None
            elif getattr(choice, "logprobs", None) is not None:
                choice.logprobs = None
    return response


def judge(
    look: SecondLook,
    scorer: "Scorer",
    score: float,
    response: Any,
    second: Any,
    request: Mapping[str, Any],
) -> Look:
    """What the look says of a completion; of several choices the one that falls shortest. `second`:
    another completion or None."""
    other = None if second is None else (_texts(second) or [""])[0]
    functions = _functions(request)
    choices = field_of(response, "choices") or ()
    answers = [
        Answer(text, None, other, functions, token_logprobs(choice), request.get("response_format"))
        for text, choice in zip(_texts(response), choices, strict=True)
    ] or [Answer("")]
    columns = look.columns(scorer, [score] * len(answers), answers)
    found = look.of_columns(columns)
    at, limit = int(found.argmax()), look.policy.threshold
    values = {name: float(column[at]) for name, column in columns.items()}
    signals = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return Look(float(found[at]), limit, bool(found[at] >= limit), signals)


def _texts(response: Any) -> list[str]:
    """What each choice says: its text, or its tool calls as JSON."""
    found = []
    for choice in field_of(response, "choices") or ():
        message = field_of(choice, "message")
        calls = [
            {
                "name": field_of(function, "name"),
                "arguments": field_of(function, "arguments") or "{}",
            }
            for call in field_of(message, "tool_calls") or ()
            if (function := field_of(call, "function")) is not None
        ]
        content = field_of(message, "content")
        found.append(json.dumps(calls) if calls else content if isinstance(content, str) else "")
    return found


def _functions(request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    tools = request.get("tools") or ()
    return [tool["function"] for tool in tools if isinstance(tool, Mapping) and "function" in tool]

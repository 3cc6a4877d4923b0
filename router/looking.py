"""A second look on real answers: what is asked of the weak model, and what its answer shows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .routers import BundleRouter, Router
from .second_look import Answer, SecondLook

if TYPE_CHECKING:
    from .scorer import Scorer  # brings onnxruntime

# What a look asks a provider for, and can do without.
LOOK_KEYWORDS = ("logprobs",)


@dataclass(frozen=True, slots=True)
class Look:
    """What a second look said of one answer. `probability` that it falls short; `escalated`: it
    reached `threshold`, and the strong model was asked too."""

    probability: float
    threshold: float
    escalated: bool


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
        for choice in getattr(response, "choices", None) or ():
            if getattr(choice, "logprobs", None) is not None:
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
    confidences = _confidences(response)
    answers = [
        Answer(text, confidence, other, functions)
        for text, confidence in zip(_texts(response), confidences, strict=True)
    ] or [Answer("")]
    found = look.probabilities(scorer, [score] * len(answers), answers)
    probability = float(found.max())
    limit = look.policy.threshold
    return Look(probability, limit, probability >= limit)


def _texts(response: Any) -> list[str]:
    """What each choice says: its text, or its tool calls as JSON."""
    found = []
    for choice in getattr(response, "choices", None) or ():
        message = getattr(choice, "message", None)
        calls = [
            {"name": call.function.name, "arguments": call.function.arguments or "{}"}
            for call in getattr(message, "tool_calls", None) or ()
        ]
        content = getattr(message, "content", None)
        found.append(json.dumps(calls) if calls else content if isinstance(content, str) else "")
    return found


def _confidences(response: Any) -> list[float | None]:
    """The geometric mean of the token probabilities of each choice; None where it is not told."""
    found: list[float | None] = []
    for choice in getattr(response, "choices", None) or ():
        content = getattr(getattr(choice, "logprobs", None), "content", None) or ()
        values = [getattr(token, "logprob", None) for token in content]
        known = [v for v in values if isinstance(v, int | float) and -9999 < v <= 0]
        mean = sum(known) / len(known) if known else 0.0
        # All zeros is what servers say that do not know.
        found.append(math.exp(mean) if mean < 0 else None)
    return found


def _functions(request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    tools = request.get("tools") or ()
    return [tool["function"] for tool in tools if isinstance(tool, Mapping) and "function" in tool]

"""What was decided for one request, and how an answer carries it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .looking import Look

Choice = Literal["strong", "weak", "direct"]
_HIDDEN = "_hidden_params"
_KEY = "thriftroute"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one request, and why.

    `choice` is "direct" where the caller named a model and no router was asked; `score`,
    `threshold` and `router` are then None. `score` is None too where scoring failed, and `reason`
    says so. `latency_ms` is the time that the decision took, not the model's answer. `percentile`
    is the share of prompts that score below this one, in [0, 1], and `percentile_of` names the
    bundle's table of them ("ordinary"); both are None where there is no score or no table. `look`
    is what a second look said of the weak model's answer, None where nothing was looked at.
    """

    model: str
    choice: Choice
    score: float | None
    threshold: float | None
    router: str | None
    reason: str
    latency_ms: float
    percentile: float | None = None
    percentile_of: str | None = None
    look: Look | None = None

    def to_dict(self) -> dict[str, Any]:
        """The decision as a JSON-able dict, its keys in the order of the fields; `look` only where
        there was one."""
        plain = asdict(self)
        return plain if self.look is not None else {k: v for k, v in plain.items() if k != "look"}


def attach(response: Any, decision: Decision) -> Any:
    """`response` with the decision where `decision_of` finds it, beside what LiteLLM hides."""
    hidden = getattr(response, _HIDDEN, None)
    # A new dict instead of a new key: LiteLLM's logging threads may be iterating over the old one.
    setattr(response, _HIDDEN, {**(hidden if isinstance(hidden, dict) else {}), _KEY: decision})
    return response


def decision_of(response: object) -> Decision | None:
    """The Decision behind an answer or a stream of the Controller; None for any other object."""
    hidden = getattr(response, _HIDDEN, None)
    decision = hidden.get(_KEY) if isinstance(hidden, dict) else None
    return decision if isinstance(decision, Decision) else None

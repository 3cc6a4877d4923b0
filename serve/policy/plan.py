"""What was decided for a request, step by step."""

from dataclasses import dataclass
from typing import Any, Literal

Choice = Literal["strong", "weak", "direct", "rule", "pool", "band", "session", "shadow"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pipeline, for the record: never text of the prompt."""

    name: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`models` in the order of trial: the first is meant to answer, the others if it cannot.

    `reason` is the step that settled it, in a line. `score`, `threshold` and `router` are None
    where nothing was scored. `mask`: text must not reach records or logs as it is. `routed`, in
    shadow mode: the model that would answer without it.
    """

    models: tuple[str, ...]
    choice: Choice
    reason: str
    steps: tuple[Step, ...]
    score: float | None = None
    threshold: float | None = None
    router: str | None = None
    mask: bool = False
    routed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the record and for `/route`."""
        return {
            "model": self.models[0],
            "fallbacks": list(self.models[1:]),
            "choice": self.choice,
            "reason": self.reason,
            "score": self.score,
            "threshold": self.threshold,
            "router": self.router,
            "routed": self.routed,
            "steps": [[step.name, step.outcome] for step in self.steps],
        }

"""What was decided for a request, step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..config.settings import Rule
from ..request import ChatRequest
from .eligibility import Obstacle

ChoiceKind = Literal["strong", "weak", "direct", "rule", "pool", "band", "session", "shadow"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pipeline, for the record: never text of the prompt."""

    name: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that is to answer, and what settled it; the rest is None where nothing was
    scored."""

    model: str
    kind: ChoiceKind
    reason: str
    score: float | None = None
    threshold: float | None = None
    router: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A request on its way through the steps.

    `direct` and `threshold` are what its `model` means, `held` the model that its conversation is
    on; `allowed` and `barred` sort the pool so far.
    """

    request: ChatRequest
    direct: str | None
    threshold: float | None
    held: str | None
    allowed: tuple[str, ...]
    barred: Mapping[str, Obstacle] = field(default_factory=dict)
    rule: Rule | None = None
    choice: Choice | None = None
    mask: bool = False
    steps: tuple[Step, ...] = ()

    @property
    def chosen(self) -> Choice:
        """The choice, once it is made."""
        assert self.choice is not None
        return self.choice

    def told(self, name: str, outcome: str, **changed: Any) -> "Draft":
        """The next draft, with a line on it for the record."""
        return replace(self, steps=(*self.steps, Step(name, outcome)), **changed)

    def settled(self, choice: Choice | None) -> "Draft":
        """The next draft, with that choice."""
        return replace(self, choice=choice)


@dataclass(frozen=True, slots=True)
class RoutingPlan:
    """`models` in the order of trial: the first is meant to answer, the others if it cannot.

    `reason` is the step that settled it, in a line. `score`, `threshold` and `router` are None
    where nothing was scored. `mask`: text must not reach records or logs as it is. `routed`, in
    shadow mode: the model that would answer without it.
    """

    models: tuple[str, ...]
    choice: ChoiceKind
    reason: str
    steps: tuple[Step, ...]
    score: float | None = None
    threshold: float | None = None
    router: str | None = None
    mask: bool = False
    routed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the record and for `/route`."""
        told = ("choice", "reason", "score", "threshold", "router", "routed")
        return {
            "model": self.models[0],
            "fallbacks": list(self.models[1:]),
            **{name: getattr(self, name) for name in told},
            "steps": [[step.name, step.outcome] for step in self.steps],
        }

"""What was decided for a request, step by step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..changed import changed
from ..config.settings import Rule
from ..request import ChatRequest
from .course import Course
from .eligibility import Obstacle

ChoiceKind = Literal["strong", "weak", "direct", "rule", "pool", "band", "session", "shadow"]


class Step(NamedTuple):
    """One step of the pipeline, for the record: never text of the prompt."""

    name: str
    outcome: str


def switch_of(steps: Iterable[Sequence[str]]) -> str | None:
    """What became of an agent's session, "start", "stay" or "switch", by a plan's or a record's
    steps; None where the request is of none."""
    return next((told.partition(":")[0] for name, told in steps if name == "switch"), None)


@dataclass(frozen=True)
class ChosenModel:
    """The model that is to answer, and what settled it. Without a score the rest is None. `look`:
    the score lies where a second look is worth its price."""

    model: str
    kind: ChoiceKind
    reason: str
    score: float | None = None
    threshold: float | None = None
    router: str | None = None
    percentile: float | None = None
    look: bool = False


@dataclass(frozen=True)
class Draft:
    """A request on its way through the steps. `direct` and `threshold` are what its `model` means,
    `held` what is known of its conversation; `allowed` and `barred` sort the pool so far."""

    request: ChatRequest
    direct: str | None
    threshold: float | None
    held: Course | None
    allowed: tuple[str, ...]
    barred: Mapping[str, Obstacle] = field(default_factory=dict)
    rule: Rule | None = None
    choice: ChosenModel | None = None
    mask: bool = False
    steps: tuple[Step, ...] = ()

    def told(self, name: str, outcome: str, **new: Any) -> "Draft":
        """The next draft, with a line on it for the record."""
        return changed(self, steps=(*self.steps, Step(name, outcome)), **new)


@dataclass(frozen=True)
class RoutingPlan:
    """`models` in the order of trial: the first is meant to answer, the others if it cannot.

    `score`, `threshold` and `router` are None where nothing was scored; `percentile` is the share
    of ordinary prompts that score lower, by the bundle's table. `mask`: text must not reach records
    or logs as it is. `routed`, in shadow mode: the model that would answer without it. `looks`: the
    first model's answer is looked at, and the strong one is asked where it will not do.
    """

    models: tuple[str, ...]
    choice: ChoiceKind
    reason: str
    steps: tuple[Step, ...]
    score: float | None = None
    threshold: float | None = None
    router: str | None = None
    percentile: float | None = None
    mask: bool = False
    routed: str | None = None
    looks: bool = False

    def told(self, name: str, outcome: str, **new: Any) -> "RoutingPlan":
        """The plan with one more step."""
        return changed(self, steps=(*self.steps, Step(name, outcome)), **new)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for `/route`."""
        told = ("choice", "reason", "score", "threshold", "router", "percentile", "routed", "looks")
        said = {name: getattr(self, name) for name in told}
        first, *others = self.models
        return {"model": first, "fallbacks": others, **said, "steps": [[*s] for s in self.steps]}

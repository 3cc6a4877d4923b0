"""What can be promised of a threshold, and each promise as the mean of a bounded variable.

Every promise says that a mean over future prompts is at least 0, of a variable that is `above` on a
prompt that goes to the strong model and `below` on one that goes to the weak model. A ratio needs
no division: mean(routed) / mean(strong) >= q where mean(routed - q * strong) >= 0.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ...errors import CalibrationError
from ...router.threshold import check_scores
from ..metrics import Floats, check_rewards

Name = Literal["min_quality", "min_gap", "max_regret", "max_cost"]


@dataclass(frozen=True)
class Promise:
    """What is to hold for future prompts with probability `confidence`.

    min_quality in (0, 1): mean reward of the mix at least `target` times that of always strong.
    min_gap in (0, 1): mean reward at least weak + target * (strong - weak): PGR >= target.
    max_regret > 0: mean reward at most `target` below always strong's, in units of the reward.
    max_cost > 0: mean cost of a request at most `target`, where none costs more than `cost_cap`; by
    default twice the dearest request that is seen, which is then an assumption.

    Raises CalibrationError for a number outside of these.
    """

    name: Name
    target: float
    confidence: float = 0.9
    cost_cap: float | None = None

    def __post_init__(self) -> None:
        check_number(self.name, self.target, part=self.name in ("min_quality", "min_gap"))
        check_number("confidence", self.confidence, part=True, least=0.5)

    @property
    def from_strong(self) -> bool:
        """Whether always strong is the safest threshold, else always weak."""
        return self.name != "max_cost"

    @property
    def holds_at_start(self) -> bool:
        """Whether the safest threshold keeps it by its definition, without a test. Not so for a
        gap: where strong is not better than weak, to send everything to strong would not do."""
        return self.name in ("min_quality", "max_regret")


def check_number(name: str, value: float, *, part: bool, least: float = 0.0) -> None:
    """Raises CalibrationError unless `value`, called `name`, is above 0, a part of 1 below 1, and
    `least` or more."""
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        below = ", below 1" if part else ""
        raise CalibrationError(f"{name} {value!r} is no number above 0{below}")
    if part and value >= 1:
        hint = f"; for {value:g}% give {value / 100:g}" if 1 < value < 100 else ""
        raise CalibrationError(f"{name} {value:g} is no part of 1: above 0, below 1{hint}")
    if value < least:
        raise CalibrationError(f"{name} {value:g}: expected {least:g} or more, as 0.9")


@dataclass(frozen=True, eq=False)
class LabelledPrompts:
    """n prompts with what is known of them, float64[n] each; pairs are (strong, weak).

    `scores` in [0, 1]; `rewards` within `bounds`; `costs` >= 0 of a request; `weights` > 0: one
    over the probability with which a prompt was sampled, up to a factor. No prompt unseen has a
    reward outside of the bounds or a larger weight. Raises CalibrationError or EvaluationError for
    anything that does not fit.
    """

    scores: Floats
    rewards: tuple[Floats, Floats] | None = None
    costs: tuple[Floats, Floats] | None = None
    weights: Floats | None = None
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_scores(self.scores)
        low, high = self.bounds
        if not low < high:
            raise CalibrationError(f"bounds {self.bounds} are no range: give the lower one first")
        if self.rewards is not None:
            check_rewards(self.scores, *self.rewards)
        for name, values in zip(("strong", "weak"), self.rewards or (), strict=False):
            out = np.flatnonzero((values < low) | (values > high))
            if out.size:
                raise CalibrationError(
                    f"{name}[{int(out[0])}] is {values[out[0]]:g}, outside of the bounds {low:g} "
                    f"to {high:g}; give the range of the rewards as bounds"
                )
        columns = dict(zip(("strong costs", "weak costs"), self.costs or (), strict=False))
        columns |= {} if self.weights is None else {"weights": self.weights}
        for name, values in columns.items():
            fits, kind = (values > 0, "above 0") if name == "weights" else (values >= 0, ">= 0")
            if values.shape != self.scores.shape or not np.all(np.isfinite(values) & fits):
                raise CalibrationError(
                    f"{name} must be {self.scores.size} finite numbers {kind}, got shape "
                    f"{values.shape}"
                )

    @property
    def dearest(self) -> float:
        """The largest cost of a request; 0 where costs are not known."""
        return max((float(cost.max()) for cost in self.costs or ()), default=0.0)

    @property
    def relative_weights(self) -> Floats:
        """In (0, 1], the largest being 1."""
        weights = np.ones(self.scores.size) if self.weights is None else self.weights
        relative: Floats = weights / weights.max()
        return relative


class Variable(NamedTuple):
    """The variable of one promise, on n prompts: `above`, `below` float64[n] where the prompt goes
    to strong, to weak. On every prompt, labelled or not, it lies within `bounds`, and so does 0,
    towards which weights move it."""

    above: Floats
    below: Floats
    bounds: tuple[float, float]


def variable(promise: Promise, prompts: LabelledPrompts, target: float | None = None) -> Variable:
    """What has a mean of at least 0 where the promise is kept. target: instead of the promise's.

    Raises CalibrationError where the prompts lack what the promise is about.
    """
    t = promise.target if target is None else target
    lo, hi = prompts.bounds
    pair = prompts.costs if promise.name == "max_cost" else prompts.rewards
    if pair is None:
        lacks = "cost of every prompt on either model" if promise.name == "max_cost" else "rewards"
        raise CalibrationError(f"{promise.name} needs the {lacks}")
    strong, weak = pair
    if promise.name == "max_cost":
        cap = 2 * prompts.dearest if promise.cost_cap is None else promise.cost_cap
        if not cap >= prompts.dearest:
            raise CalibrationError(
                f"cost_cap {cap:g} is below the dearest request, {prompts.dearest:g}; no request "
                "may cost more than the cap"
            )
        above, below, low, high = t - strong, t - weak, t - cap, t
    elif promise.name == "min_quality":
        if lo < 0:
            raise CalibrationError(
                f"a share of strong's quality needs rewards that are 0 or more, got the bounds "
                f"{lo:g} to {hi:g}; promise a part of the gap or a regret instead"
            )
        above, below = (1 - t) * strong, weak - t * strong
        low, high = min(lo - t * hi, (1 - t) * lo, (1 - t) * hi), max(hi - t * lo, (1 - t) * hi)
    elif promise.name == "min_gap":
        above, below = (1 - t) * (strong - weak), -t * (strong - weak)
        high = max(abs(t), abs(1 - t)) * (hi - lo)
        low = -high
    else:
        above, below = np.full(strong.shape, t), t - (strong - weak)
        low, high = t - (hi - lo), t + (hi - lo)
    return Variable(above, below, (min(low, 0.0), max(high, 0.0)))

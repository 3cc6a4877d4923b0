"""What can be promised of a threshold, each as the mean of a bounded variable.

Every promise says that a mean over future prompts is at least 0, of a variable that is `above` on a
prompt that goes to the strong model and `below` on one that goes to the weak model. A ratio needs
no division: mean(routed) / mean(strong) >= q where mean(routed - q * strong) >= 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError

Floats = npt.NDArray[np.float64]
Name = Literal["min_quality", "min_gap", "max_regret", "max_cost"]


@dataclass(frozen=True, eq=False)
class Promise:
    """One promise on n labelled prompts.

    `above`, `below` float64[n]: the variable where the prompt goes to strong, to weak. It lies in
    [low, high] on every prompt, labelled or not. `from_strong`: always strong is the safest
    threshold, else always weak. `holds_at_start`: the safest one keeps it by its definition and
    needs no test.
    """

    name: Name
    target: float
    above: Floats
    below: Floats
    low: float
    high: float
    from_strong: bool
    holds_at_start: bool

    def values(self, strong_calls: npt.NDArray[np.bool_]) -> Floats:
        """The variable for a routing bool[n] or for many, bool[n, m]: the same shape."""
        extra = (slice(None),) + (None,) * (strong_calls.ndim - 1)
        chosen: Floats = np.where(strong_calls, self.above[extra], self.below[extra])
        return chosen


# A promise of one kind, for any target.
Maker = Callable[[float], Promise]


def check_target(name: str, value: float) -> float:
    """The number of a promise as a float.

    Raises CalibrationError unless min_quality and min_gap are between 0 and 1, and max_regret and
    max_cost above 0. With nothing to lose, what is next to always strong is never shown to keep it.
    """
    if isinstance(value, bool) or not math.isfinite(value):
        raise CalibrationError(f"{name} {value!r} is no number")
    if name in ("min_quality", "min_gap") and not 0 < value < 1:
        raise CalibrationError(f"{name} {value:g} is no part of a whole: above 0, below 1")
    if value <= 0:
        raise CalibrationError(f"{name} {value:g} leaves nothing; give a number above 0")
    return float(value)


def check_confidence(confidence: float) -> None:
    """Raises CalibrationError unless `confidence` is a probability from 0.5 to below 1."""
    if isinstance(confidence, bool) or not 0.5 <= confidence < 1:
        raise CalibrationError(
            f"confidence {confidence!r} is no probability from 0.5 to below 1, such as 0.9"
        )


def quality(strong: Floats, weak: Floats, bounds: tuple[float, float]) -> Maker:
    """Mean reward of the mix at least q times that of always strong; rewards lie in `bounds`."""
    lo, hi = bounds
    if lo < 0:
        raise CalibrationError(
            f"a share of strong's quality needs rewards that are 0 or more, got the bounds {lo:g} "
            f"to {hi:g}; promise a part of the gap or a regret instead"
        )

    def make(q: float) -> Promise:
        return Promise(
            name="min_quality",
            target=q,
            above=(1 - q) * strong,
            below=weak - q * strong,
            low=min(lo - q * hi, (1 - q) * lo, (1 - q) * hi),
            high=max(hi - q * lo, (1 - q) * hi),
            from_strong=True,
            holds_at_start=q <= 1,
        )

    return make


def gap(strong: Floats, weak: Floats, bounds: tuple[float, float]) -> Maker:
    """Mean reward of the mix at least weak + g (strong - weak): PGR >= g where there is a gap.

    Always strong is tested too: where strong is not better than weak there is nothing to recover,
    and to send everything to strong would not do.
    """
    width = bounds[1] - bounds[0]

    def make(g: float) -> Promise:
        gain = strong - weak
        reach = max(abs(g), abs(1 - g)) * width
        return Promise("min_gap", g, (1 - g) * gain, -g * gain, -reach, reach, True, False)

    return make


def regret(strong: Floats, weak: Floats, bounds: tuple[float, float]) -> Maker:
    """Mean reward of the mix at most e below that of always strong, in units of the reward."""
    width = bounds[1] - bounds[0]

    def make(e: float) -> Promise:
        always = np.full(strong.shape, e)
        below = e - (strong - weak)
        return Promise("max_regret", e, always, below, e - width, e + width, True, e >= 0)

    return make


def cost(strong_cost: Floats, weak_cost: Floats, cap: float) -> Maker:
    """Mean cost of a request at most c, where no request costs more than `cap`."""

    def make(c: float) -> Promise:
        return Promise("max_cost", c, c - strong_cost, c - weak_cost, c - cap, c, False, False)

    return make

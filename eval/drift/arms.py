"""An experiment's arms against each other, by sessions, with intervals to look at on any day.

The unit is what was drawn into an arm: a session (a request without one is its own), or a tenant.
Requests of one unit are alike, so the error of a mean over requests comes from the sums of units
(delta method for a ratio of sums; Deng, Knoblich, Lu 2018, arXiv 1803.06336), and the interval of
a difference is an asymptotic confidence sequence (`sequential.asymptotic_radius`).

What is a share may be seen in no unit of the smaller arm, or in all, and its error would be 0: in a
tenth of the traffic, errors of two requests in a thousand then seem to differ in every third
experiment whose arms are alike. The error of a share is therefore that of the units and four more,
two of either kind ("plus four": Agresti and Coull 1998, The American Statistician 52).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..printing import plain
from .sequential import asymptotic_radius

CONTROL, TREATMENT = "control", "treatment"
SHARES = frozenset({"strong_share", "errors", "feedback"})  # of which a request has 0 to 1
LEAST = 100  # units an arm, for a normal limit to mean anything


@dataclass(frozen=True)
class ArmSums:
    """Of one arm and metric, over its units: x is the unit's sum of the metric, d its number of
    requests that have it."""

    units: int = 0
    x: float = 0.0
    d: float = 0.0
    xx: float = 0.0
    xd: float = 0.0
    dd: float = 0.0

    @property
    def mean(self) -> float | None:
        """Sum of x over sum of d; None where nothing was counted."""
        return self.x / self.d if self.d > 0 else None

    def variance(self) -> float:
        """Of `mean`, by the delta method; infinite for fewer than two units."""
        if self.units < 2 or self.d <= 0:
            return math.inf
        mean = self.x / self.d
        squares = max(0.0, self.xx - 2 * mean * self.xd + mean * mean * self.dd)
        return self.units / (self.units - 1) * squares / self.d**2

    def and_four(self) -> "ArmSums":
        """With four more units of the mean size, of one request at least: two in which every
        request has it, two in which none has."""
        size = max(1.0, self.d / self.units)  # few requests are rated
        sums = np.array([2 * size, 4 * size, *(size * size * np.array([2, 2, 4]))])
        sums += [self.x, self.d, self.xx, self.xd, self.dd]
        return ArmSums(self.units + 4, *sums.tolist())


@dataclass(frozen=True)
class ArmDifference:
    """Treatment minus control, with its interval; None where an arm has fewer than 100 units."""

    metric: str
    control: float | None
    treatment: float | None
    difference: float | None
    interval: tuple[float, float] | None
    differs: bool


@dataclass(frozen=True)
class ArmComparison:
    """An experiment; `units` and `requests` by arm."""

    name: str
    alpha: float
    units: Mapping[str, int]
    requests: Mapping[str, int]
    differences: Sequence[ArmDifference]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the differences by metric."""
        found = asdict(self)
        found["metrics"] = {item.pop("metric"): item for item in found.pop("differences")}
        return found


def compare(
    name: str, arms: Mapping[str, Mapping[str, Any]], *, alpha: float = 0.05
) -> ArmComparison:
    """arms: "control" and "treatment", each {"units", "requests", "metrics": {name: ArmSums}}; one
    that has no requests yet may be missing. alpha: of each metric's interval by itself."""
    empty: Mapping[str, Any] = {"units": 0, "requests": 0, "metrics": {}}
    none = ArmSums()
    sides = {side: arms.get(side, empty) for side in (CONTROL, TREATMENT)}
    metrics = dict.fromkeys(metric for side in sides.values() for metric in side["metrics"])
    units, requests = (
        {side: arm[key] for side, arm in sides.items()} for key in ("units", "requests")
    )
    differences = [
        difference(m, *(arm["metrics"].get(m, none) for arm in sides.values()), alpha=alpha)
        for m in metrics
    ]
    return ArmComparison(name, alpha, units, requests, differences)


def difference(metric: str, control: ArmSums, treatment: ArmSums, *, alpha: float) -> ArmDifference:
    """One metric's means, their difference, and whether the interval leaves out 0."""
    a, b = control.mean, treatment.mean
    if a is None or b is None:
        return ArmDifference(metric, a, b, None, None, False)
    if min(control.units, treatment.units) < LEAST:
        return ArmDifference(metric, a, b, b - a, None, False)
    sides = (control, treatment)
    if metric in SHARES:
        sides = (control.and_four(), treatment.and_four())
    error = math.sqrt(sum(side.variance() for side in sides))
    # The smaller arm, of which most of the error is, says how near that limit is.
    radius = error * asymptotic_radius(2 * min(control.units, treatment.units), alpha)
    low, high = b - a - radius, b - a + radius
    return ArmDifference(metric, a, b, b - a, (low, high), not low <= 0 <= high)


def print_arms(found: ArmComparison) -> None:
    """Print the arms side by side."""
    lines = [f"experiment {found.name!r}"]
    for arm in (CONTROL, TREATMENT):
        lines.append(f"  {arm:<9} {found.units[arm]:,} units, {found.requests[arm]:,} requests")
    heads = "".join(f"{head:>12}" for head in (CONTROL, TREATMENT, "difference"))
    lines.append(f"  {'a request':<13}{heads}  {1 - found.alpha:.0%} at all times")
    for one in found.differences:
        if one.control is None and one.treatment is None:
            continue
        form = ".1%" if one.metric in {"strong_share", "errors"} else ".4g"
        means = (one.control, one.treatment, one.difference)
        cells = "".join(f"{'-' if mean is None else format(mean, form):>12}" for mean in means)
        ends = ", ".join(format(end, form) for end in one.interval or ())
        span = f"[{ends}]" if ends else "too few units"
        lines.append(f"  {one.metric:<13}{cells}  {span}{'  differs' if one.differs else ''}")
    plain(*lines)

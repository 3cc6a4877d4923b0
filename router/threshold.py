"""Score and threshold to decision, and the exact relation of threshold and strong share.

The strong model is chosen where ``score >= threshold``, so scores that are tied always fall on the
same side: n prompts with k distinct scores have only k + 1 shares of strong calls to choose from,
and everything here works on those instead of on quantiles.
"""

import contextlib
import itertools
import math
import numbers
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError, RoutingError, ThresholdError

Floats = npt.NDArray[np.float64]

# Scores stay inside (0, 1), so that threshold 0 means always strong and threshold 1 always weak.
SCORE_MARGIN = 1e-6
# Slope, in logits a unit of margin, that keeps an isotonic map strictly increasing past its ends.
TAIL_SLOPE = 1e-3
STRONG_SHARE = 0.3  # where neither a threshold nor a strong share is given
ORDINARY = "ordinary"  # name of the table that percentiles are of, if a bundle has it


def validate_threshold(value: object) -> float:
    """`value` as a float in [0, 1]. Raises ThresholdError for text, bool, NaN and others."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise ThresholdError(f"threshold {value!r} is no number; give a number from 0 to 1")
    number = float(value)
    if not math.isfinite(number) or not 0.0 <= number <= 1.0:
        raise ThresholdError(
            f"threshold {value!r} is out of range; give a number from 0 (always strong) to 1 "
            "(always weak)"
        )
    return number


def choose(score: float, threshold: float) -> Literal["strong", "weak"]:
    """ "strong" where score >= threshold, else "weak". Raises ThresholdError, and RoutingError for
    a score that is no finite number: NaN compares as false, and would silently mean "weak"."""
    limit = validate_threshold(threshold)
    if not math.isfinite(score):
        raise RoutingError(f"score {score!r} is no finite number; the router's output is broken")
    return "strong" if score >= limit else "weak"


def format_threshold(threshold: float) -> str:
    """The shortest decimal that parses back to the same number; without an exponent, because
    "router-mf-1e-05" could not be told from a name with a dash."""
    return np.format_float_positional(validate_threshold(threshold), unique=True, trim="0")


def check_scores(scores: npt.ArrayLike) -> Floats:
    """`scores` as float64[n]. Raises CalibrationError unless n > 0, all finite and in [0, 1]."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise CalibrationError(
            f"scores must be a list of at least one number, got shape {array.shape}; "
            "give at least one prompt"
        )
    bad = np.flatnonzero(~((array >= 0.0) & (array <= 1.0)))
    if bad.size:
        raise CalibrationError(
            f"score {int(bad[0])} is {array[bad[0]]!r}; scores must be numbers in [0, 1]"
        )
    return array


def achievable(scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Every strong share that some threshold gives on `scores`, exact with tied scores.

    Returns (thresholds, shares), both float64[k], shares strictly increasing and thresholds
    strictly decreasing. Each threshold lies strictly between two neighbouring scores and is the
    shortest decimal near their middle, so that it can be printed, parsed back and applied to
    scores with float32 noise without changing a decision. Share 1 has threshold 0; share 0 has
    threshold 1, and is left out where a score is exactly 1. Raises CalibrationError.
    """
    array = check_scores(scores)
    distinct, counts = np.unique(array, return_counts=True)
    above = np.cumsum(counts[::-1])  # prompts at or above each distinct score, from the highest
    shares = above / array.size
    upper = distinct[::-1]
    thresholds = np.append(_between(upper[1:], upper[:-1]), 0.0)
    if upper[0] < 1.0:
        shares = np.append(0.0, shares)
        thresholds = np.append(1.0, thresholds)
    return thresholds, shares


def _between(lower: Floats, upper: Floats) -> Floats:
    """A short decimal t with lower < t <= upper for each pair, from near the middle."""
    middle = lower + (upper - lower) / 2
    result = upper.copy()  # always right, and its repr parses back to itself
    todo = np.ones(len(result), dtype=bool)
    for digits in range(1, 16):
        candidate = np.round(middle, digits)
        fits = todo & (candidate > lower) & (candidate < upper)
        result[fits] = candidate[fits]
        todo &= ~fits
    return result


def threshold_for_share(scores: npt.ArrayLike, share: float) -> tuple[float, float]:
    """(threshold, achieved share) of the achievable share that is nearest to the fraction `share`;
    of two, the lower (the cheaper). Raises CalibrationError."""
    wanted = check_share(share)
    thresholds, shares = achievable(scores)
    # Rounded, so that the halfway case is not decided by the last bit of a division.
    best = int(np.argmin(np.round(np.abs(shares - wanted), 12)))
    return float(thresholds[best]), float(shares[best])


def check_share(share: float) -> float:
    """`share` as a float. Raises CalibrationError unless it is a number in [0, 1]."""
    if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 <= share <= 1:
        raise CalibrationError(
            f"strong share {share!r} is no fraction; give a number from 0 to 1 (0.3 is 30%)"
        )
    return float(share)


def costs_by_share(
    scores: npt.ArrayLike, strong_cost: npt.ArrayLike, weak_cost: npt.ArrayLike
) -> Floats:
    """Mean cost of a prompt at each row of `achievable(scores)`: float64[k], in the unit of the
    costs of each prompt on either model, float64[n]. Raises CalibrationError."""
    array = check_scores(scores)
    strong, weak = (np.asarray(cost, dtype=np.float64) for cost in (strong_cost, weak_cost))
    for name, cost in (("strong", strong), ("weak", weak)):
        if cost.shape != array.shape:
            raise CalibrationError(f"{name} costs have shape {cost.shape}, scores {array.shape}")
        if not np.all(np.isfinite(cost) & (cost >= 0)):
            raise CalibrationError(f"{name} costs must be finite numbers >= 0 for every prompt")
    order = np.argsort(-array, kind="stable")
    running = np.append(0.0, np.cumsum((strong - weak)[order]))
    _, shares = achievable(array)
    calls = np.rint(shares * array.size).astype(np.intp)
    return np.asarray((weak.sum() + running[calls]) / array.size)


def threshold_for_cost(
    scores: npt.ArrayLike, strong_cost: npt.ArrayLike, weak_cost: npt.ArrayLike, budget: float
) -> tuple[float, float, float]:
    """(threshold, share, mean cost): the largest share whose mean cost a prompt is in `budget`, in
    the costs' unit. Raises CalibrationError, also where even the cheapest share costs more."""
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real) or not budget >= 0:
        raise CalibrationError(f"budget {budget!r} is no number >= 0")
    costs = costs_by_share(scores, strong_cost, weak_cost)
    thresholds, shares = achievable(scores)
    # The sums above carry rounding; a budget of exactly the mean cost must count as enough.
    within = np.flatnonzero(costs <= float(budget) * (1 + 1e-9))
    if within.size == 0:
        raise CalibrationError(
            f"budget {float(budget):.6g} a prompt is below the cheapest mix, {costs.min():.6g} at "
            f"{shares[int(np.argmin(costs))]:.0%} strong calls; raise the budget or choose a "
            "cheaper weak model"
        )
    best = int(within[-1])
    return float(thresholds[best]), float(shares[best]), float(costs[best])


@dataclass(frozen=True, slots=True)
class ThresholdTable:
    """Threshold for each strong share, as measured on one named set of prompts.

    `rows` are (strong_pct, threshold), shares strictly increasing and thresholds strictly
    decreasing. `n` is the number of prompts; `name` says which.
    """

    name: str
    n: int
    rows: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1 or not self.rows:
            raise CalibrationError("threshold table: needs n >= 1 and at least one row")
        for share, threshold in self.rows:
            check_share(share)
            validate_threshold(threshold)
        for (share, limit), (more, lower) in itertools.pairwise(self.rows):
            if not (share < more and limit > lower):
                raise CalibrationError(
                    f"threshold table {self.name!r}: shares must increase and thresholds decrease, "
                    f"got ({share}, {limit}) before ({more}, {lower})"
                )

    @classmethod
    def from_scores(cls, name: str, scores: npt.ArrayLike, points: int = 101) -> "ThresholdTable":
        """The achievable shares nearest to `points` evenly spaced ones (101: every percent); ties
        leave fewer. Raises CalibrationError."""
        if points < 2:
            raise CalibrationError(f"points must be at least 2, got {points}")
        thresholds, shares = achievable(scores)
        wanted = np.linspace(0.0, 1.0, points)
        distance = np.round(np.abs(shares[None, :] - wanted[:, None]), 12)
        picked = np.unique(np.argmin(distance, axis=1))
        rows = tuple((float(shares[i]), float(thresholds[i])) for i in picked)
        return cls(name=name, n=int(np.size(scores)), rows=rows)

    def threshold_for(self, share: float) -> tuple[float, float]:
        """(threshold, strong_pct) of the row nearest to `share`; of two, the lower share."""
        wanted = check_share(share)
        at = bisect_left(self.rows, wanted, key=lambda row: row[0])  # first share >= wanted
        near = self.rows[max(at - 1, 0) : at + 1]
        row = min(near, key=lambda item: (round(abs(item[0] - wanted), 12), item[0]))
        return row[1], row[0]

    def sourced(self, share: float) -> tuple[float, str]:
        """(threshold, where it is from) for a strong share, as reasons say it."""
        threshold, nearest = self.threshold_for(share)
        return threshold, f"strong share {nearest:.3g} by table {self.name!r}"

    def percentile(self, score: float) -> float:
        """The share of the table's prompts that score below `score`, in [0, 1]: 1 - strong share of
        the row with that threshold, linear between rows. Off by a row's step at most, but where
        many prompts have one score."""
        at = bisect_left(self.rows, -score, key=lambda row: -row[1])  # first threshold <= score
        share, limit = self.rows[min(at, len(self.rows) - 1)]
        if 0 < at < len(self.rows):
            less, higher = self.rows[at - 1]
            share -= (share - less) * (score - limit) / (higher - limit)
        return 1.0 - share

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ThresholdTable":
        """Raises CalibrationError or ThresholdError (both ValueError) for an invalid table."""
        try:
            rows = tuple((share, threshold) for share, threshold in value["rows"])
            name, n = value["name"], value["n"]
            if not isinstance(name, str):
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise CalibrationError(
                "threshold table: expected {'name': str, 'n': int, 'rows': [[share, threshold], "
                f"...]}}, got {value!r:.200}"
            ) from None
        return cls(name=name, n=n, rows=rows)


def share_table(tables: Mapping[str, Any]) -> ThresholdTable | None:
    """The table that turns strong shares into thresholds: the last of a manifest's, since one's own
    calibration stands after the built-in ones. Raises CalibrationError or ThresholdError."""
    return ThresholdTable.from_dict([*tables.values()][-1]) if tables else None


def percentile_table(tables: Mapping[str, Any]) -> ThresholdTable | None:
    """The table that percentiles are of: that of ordinary prompts, else the last; None where there
    is none that can be used."""
    with contextlib.suppress(ValueError):
        own = {ORDINARY: tables[ORDINARY]} if ORDINARY in tables else tables
        return share_table(own)
    return None


def harder_than(percentile: float, name: str) -> str:
    """A percentile in words; `name`: of the table that it is of."""
    known = {ORDINARY: "ordinary prompts", "validation": "the bundle's validation prompts"}
    whose = known.get(name, f"the prompts of {name!r}")
    return f"harder than {min(percentile, 0.99):.0%} of {whose}"


def sigmoid(logit: npt.ArrayLike) -> Floats:
    """1 / (1 + exp(-logit)), elementwise in float64, without overflow."""
    array = np.asarray(logit, dtype=np.float64)
    small = np.exp(-np.abs(array))
    return np.where(array >= 0, 1.0, small) / (1.0 + small)


def apply_calibration(margin: npt.ArrayLike, spec: Mapping[str, Any] | None) -> Floats:
    """Scores of raw margins (quality of strong minus weak, in logits), same shape, float64.
    spec, and what is raised: as of `calibration`."""
    return calibration(spec)(margin)


def calibration(spec: Mapping[str, Any] | None) -> Callable[[npt.ArrayLike], Floats]:
    """What makes scores of margins, in their shape. `spec` is one of
        None                                         sigmoid(margin)
        {"method": "platt", "a": a, "b": b}          sigmoid(a * margin + b); Platt 1999, and with
                                                     b = 0 temperature scaling, Guo et al. 2017
        {"method": "isotonic", "x": [..], "y": [..]} linear through the points, both strictly
                                                     increasing; past the ends the logit goes on
                                                     with a tiny slope, so that no tie is made
    The result is clipped to [1e-6, 1 - 1e-6]. Every method is strictly increasing: it changes
    no ranking, hence no APGR. NaN stays NaN. Raises CalibrationError for an invalid spec.
    """
    curve: Callable[[Floats], Floats] = sigmoid
    method = "none" if spec is None else spec.get("method")
    if spec is None:
        pass
    elif method == "platt":
        a, b = _numbers(spec, "a", 0), _numbers(spec, "b", 0)
        if a <= 0:
            raise CalibrationError(f"calibration: slope a must be > 0, got {a}")
        curve = lambda margin: sigmoid(a * margin + b)  # noqa: E731 - a name of two kinds
    elif method == "isotonic":
        curve = _isotonic(_numbers(spec, "x", 1), _numbers(spec, "y", 1))
    else:
        raise CalibrationError(
            f"calibration: method {method!r} is unknown; expected platt or isotonic"
        )

    def scores(margin: npt.ArrayLike) -> Floats:
        found = curve(np.asarray(margin, dtype=np.float64))
        least, most = SCORE_MARGIN, 1.0 - SCORE_MARGIN
        if found.ndim == 0:  # a request's, for which numpy takes ten times as long
            return np.asarray(min(max(float(found), least), most))
        return np.asarray(np.minimum(np.maximum(found, least), most))

    return scores


def _isotonic(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    if len(x) != len(y) or len(x) == 0:
        raise CalibrationError(
            f"calibration: x and y need equal length > 0, got {len(x)}, {len(y)}"
        )
    if np.any(np.diff(x) <= 0) or np.any(np.diff(y) <= 0) or y[0] <= 0 or y[-1] >= 1:
        raise CalibrationError("calibration: x and y must strictly increase, y inside (0, 1)")

    first, last = float(x[0]), float(x[-1])

    def curve(margin: Floats) -> Floats:
        inside = np.interp(margin, x, y)
        if margin.ndim == 0 and first <= margin <= last:
            return np.asarray(inside)
        past = np.minimum(margin - x[0], 0.0) + np.maximum(margin - x[-1], 0.0)
        if not np.any(past):
            return np.asarray(inside)
        logit = np.log(inside) - np.log1p(-inside)
        return np.where(past == 0, inside, sigmoid(logit + TAIL_SLOPE * past))

    return curve


def _numbers(spec: Mapping[str, Any], key: str, ndim: int) -> Floats:
    """A number (ndim 0) or a list of them (1)."""
    what = "a list of finite numbers" if ndim else "a finite number"
    try:
        array = np.asarray(spec[key])
    except (KeyError, ValueError):
        array = np.array(None)
    if array.ndim != ndim or array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
        raise CalibrationError(f"calibration: {key} must be {what}, got {spec.get(key)!r:.100}")
    return array.astype(np.float64)

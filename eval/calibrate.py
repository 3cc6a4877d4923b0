"""From a wish (a share of strong calls, or a budget) to a threshold.

Neither needs labels, only scores: of a benchmark, or better of the user's own prompts. A budget
needs prices too; `pricing` finds those.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError
from ..router.threshold import (
    achievable,
    check_scores,
    costs_by_share,
    threshold_for_cost,
    threshold_for_share,
)
from .bootstrap import interval as percentile_interval
from .bootstrap import resample_counts
from .metrics import Floats, Interval, wilson


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One achievable threshold near the chosen one. `usd_per_1k` and `quality` (mean reward) are
    None where costs or rewards were not given; `interval` is the share's, Wilson 95%."""

    threshold: float
    strong_pct: float
    interval: Interval
    usd_per_1k: float | None
    quality: float | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and what it gives.

    `strong_pct` is the achieved share of strong calls on the n prompts, `interval` its Wilson 95%
    interval for future prompts of the same kind. `usd_per_1k` is the mean cost of 1,000 requests,
    with its bootstrap 95% interval; None without costs. `requested` says what was asked for.
    `warning` is empty unless the result needs a caution.
    """

    threshold: float
    strong_pct: float
    interval: Interval
    n: int
    usd_per_1k: float | None
    usd_interval: Interval | None
    quality: float | None
    requested: dict[str, float]
    table: tuple[Neighbour, ...]
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able dict; intervals as lists."""
        return {key: _lists(value) for key, value in asdict(self).items()}


def calibrate_share(
    scores: npt.ArrayLike,
    share: float,
    *,
    strong_cost: npt.ArrayLike | None = None,
    weak_cost: npt.ArrayLike | None = None,
    strong: npt.ArrayLike | None = None,
    weak: npt.ArrayLike | None = None,
    neighbours: int = 5,
    seed: int = 0,
) -> Calibration:
    """The threshold whose share of strong calls on `scores` float64[n] is nearest to `share`.

    Costs (USD a request, float64[n]) and rewards (float64[n]) are optional and only fill the
    table. Raises CalibrationError for no scores, scores or share outside [0, 1], bad costs.
    """
    threshold, achieved = threshold_for_share(scores, share)
    return _result(
        check_scores(scores),
        threshold,
        {"strong_pct": float(share)},
        costs=_pair("cost", strong_cost, weak_cost),
        rewards=_pair("reward", strong, weak),
        neighbours=neighbours,
        seed=seed,
        warning=_share_warning(float(share), achieved, scores),
    )


def calibrate_cost(
    scores: npt.ArrayLike,
    usd_per_1k: float,
    strong_cost: npt.ArrayLike,
    weak_cost: npt.ArrayLike,
    *,
    strong: npt.ArrayLike | None = None,
    weak: npt.ArrayLike | None = None,
    neighbours: int = 5,
    seed: int = 0,
) -> Calibration:
    """The largest share of strong calls whose mean cost stays within `usd_per_1k` for 1,000.

    `strong_cost`, `weak_cost` float64[n], USD a request. Raises CalibrationError for a budget below
    the cheapest mix (says which that is), and as `calibrate_share`.
    """
    budget = usd_per_1k
    if isinstance(budget, bool) or not math.isfinite(budget) or budget < 0:
        raise CalibrationError(f"budget {budget!r} is no number of USD per 1,000 requests, >= 0")
    array = check_scores(scores)
    costs = costs_by_share(array, strong_cost, weak_cost) * 1000
    if costs.min() > budget * (1 + 1e-9):
        shares = achievable(array)[1]
        raise CalibrationError(
            f"a budget of {budget:g} USD per 1,000 requests is below the cheapest mix, "
            f"{costs.min():.6g} USD at {shares[int(np.argmin(costs))]:.0%} strong calls; raise "
            "--usd-per-1k or choose a cheaper weak model"
        )
    threshold, achieved, _ = threshold_for_cost(array, strong_cost, weak_cost, budget / 1000)
    warning = _tie_warning(array)
    if not warning and achieved == 1.0:
        warning = "the budget pays for the strong model on every prompt: no routing is needed"
    return _result(
        array,
        threshold,
        {"usd_per_1k": float(budget)},
        costs=_pair("cost", strong_cost, weak_cost),
        rewards=_pair("reward", strong, weak),
        neighbours=neighbours,
        seed=seed,
        warning=warning,
    )


def _result(
    scores: Floats,
    threshold: float,
    requested: dict[str, float],
    *,
    costs: tuple[Floats, Floats] | None,
    rewards: tuple[Floats, Floats] | None,
    neighbours: int,
    seed: int,
    warning: str,
) -> Calibration:
    thresholds, shares = achievable(scores)
    n = scores.size
    usd = None if costs is None else costs_by_share(scores, *costs) * 1000
    at = int(np.flatnonzero(thresholds == threshold)[0])

    def quality(limit: float) -> float | None:
        if rewards is None:
            return None
        return float(np.mean(np.where(scores >= limit, rewards[0], rewards[1])))

    def row(index: int) -> Neighbour:
        return Neighbour(
            threshold=float(thresholds[index]),
            strong_pct=float(shares[index]),
            interval=wilson(float(round(shares[index] * n)), n),
            usd_per_1k=None if usd is None else float(usd[index]),
            quality=quality(float(thresholds[index])),
            chosen=index == at,
        )

    chosen = row(at)
    return Calibration(
        threshold=chosen.threshold,
        strong_pct=chosen.strong_pct,
        interval=chosen.interval,
        n=n,
        usd_per_1k=chosen.usd_per_1k,
        usd_interval=None if costs is None else _cost_interval(scores, costs, threshold, seed),
        quality=chosen.quality,
        requested=requested,
        table=tuple(row(index) for index in _nearby(shares, at, neighbours)),
        warning=warning,
    )


def _nearby(shares: Floats, at: int, each_side: int) -> list[int]:
    """Rows around `at`, about five points of share apart where the data allow it."""
    wanted = shares[at] + 0.05 * np.arange(-each_side, each_side + 1)
    wanted = wanted[(wanted > -0.05) & (wanted < 1.05)]
    picked = {int(np.argmin(np.abs(shares - w))) for w in wanted} | {at}
    # Where ties leave wide gaps, the next row on either side is still worth knowing.
    if max(picked) == at:
        picked.add(min(at + 1, len(shares) - 1))
    if min(picked) == at:
        picked.add(max(at - 1, 0))
    return sorted(picked)


def _cost_interval(
    scores: Floats, costs: tuple[Floats, Floats], threshold: float, seed: int
) -> Interval:
    paid = np.where(scores >= threshold, costs[0], costs[1]) * 1000
    means = [
        counts @ paid / scores.size for counts in resample_counts(scores.size, 1000, seed=seed)
    ]
    return percentile_interval(np.concatenate(means))


def _share_warning(wanted: float, achieved: float, scores: npt.ArrayLike) -> str:
    tied = _tie_warning(check_scores(scores))
    if tied:
        return tied
    if abs(wanted - achieved) > 0.01 and np.size(scores) >= 100:
        return (
            f"tied scores allow no share nearer to {wanted:.1%} than {achieved:.1%}; "
            "see the table for the shares that are possible"
        )
    return ""


def _tie_warning(scores: Floats) -> str:
    if scores.size > 1 and scores.min() == scores.max():
        return (
            f"all {scores.size} scores equal {scores[0]:g}: this router cannot tell these prompts "
            "apart, so every prompt goes to the same model; check the router and the prompts"
        )
    return ""


def _pair(
    what: str, strong: npt.ArrayLike | None, weak: npt.ArrayLike | None
) -> tuple[Floats, Floats] | None:
    if strong is None and weak is None:
        return None
    if strong is None or weak is None:
        raise CalibrationError(f"give the {what} of both models, or of neither")
    return np.asarray(strong, dtype=np.float64), np.asarray(weak, dtype=np.float64)


def _lists(value: object) -> object:
    """Tuples as lists, at any depth: what a JSON reader gets back."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_lists(item) for item in value]
    return value

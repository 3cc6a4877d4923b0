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
from .printing import json_safe

# (strong, weak), a number a request each.
Sides = tuple[npt.ArrayLike, npt.ArrayLike]
# Rows of the table on either side of the chosen one.
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An achievable threshold. `strong_pct`: the share of strong calls on the n prompts,
    `interval`: its Wilson 95% interval for future prompts of the same kind. `usd_per_1k` (mean cost
    of 1,000 requests) and `quality` (mean reward) are None where unknown."""

    threshold: float
    strong_pct: float
    interval: Interval
    usd_per_1k: float | None
    quality: float | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and what it gives, as `Neighbour`. `usd_interval`: bootstrap 95% interval of the
    cost. `requested`: what was asked for. `warning` is empty unless a caution is needed."""

    threshold: float
    strong_pct: float
    interval: Interval
    usd_per_1k: float | None
    quality: float | None

    n: int
    usd_interval: Interval | None
    requested: dict[str, float]
    table: tuple[Neighbour, ...]
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able dict; intervals as lists."""
        value: dict[str, Any] = json_safe(asdict(self))
        return value


def calibrate_share(
    scores: npt.ArrayLike,
    share: float,
    costs: Sides | None = None,
    rewards: Sides | None = None,
    *,
    seed: int = 0,
) -> Calibration:
    """The threshold whose share of strong calls on `scores` float64[n] is nearest to `share`.

    `costs` (USD a request) and `rewards`, of strong and of weak, float64[n] each, are optional and
    only fill the table. Raises CalibrationError for no scores, scores or share outside [0, 1], bad
    costs.
    """
    threshold, achieved = threshold_for_share(scores, share)
    array, warning = check_scores(scores), ""
    if abs(share - achieved) > 0.01 and array.size >= 100:
        warning = (
            f"tied scores allow no share nearer to {share:.1%} than {achieved:.1%}; "
            "see the table for the shares that are possible"
        )
    requested = {"strong_pct": float(share)}
    return _result(array, threshold, requested, costs, rewards, seed, warning)


def calibrate_cost(
    scores: npt.ArrayLike,
    usd_per_1k: float,
    costs: Sides,
    rewards: Sides | None = None,
    *,
    seed: int = 0,
) -> Calibration:
    """The largest share of strong calls whose mean cost stays within `usd_per_1k` for 1,000.

    Raises CalibrationError for a budget below the cheapest mix (says which that is), and as
    `calibrate_share`.
    """
    budget = usd_per_1k
    if isinstance(budget, bool) or not math.isfinite(budget) or budget < 0:
        raise CalibrationError(f"budget {budget!r} is no number of USD per 1,000 requests, >= 0")
    array = check_scores(scores)
    usd = costs_by_share(array, *costs) * 1000
    if usd.min() > budget * (1 + 1e-9):
        shares = achievable(array)[1]
        raise CalibrationError(
            f"a budget of {budget:g} USD per 1,000 requests is below the cheapest mix, "
            f"{usd.min():.6g} USD at {shares[int(np.argmin(usd))]:.0%} strong calls; raise "
            "--usd-per-1k or choose a cheaper weak model"
        )
    threshold, achieved, _ = threshold_for_cost(array, *costs, budget / 1000)
    pays = "the budget pays for the strong model on every prompt: no routing is needed"
    warning = pays if achieved == 1.0 else ""
    requested = {"usd_per_1k": float(budget)}
    return _result(array, threshold, requested, costs, rewards, seed, warning)


def _result(
    scores: Floats,
    threshold: float,
    requested: dict[str, float],
    costs: Sides | None,
    rewards: Sides | None,
    seed: int,
    warning: str,
) -> Calibration:
    thresholds, shares = achievable(scores)
    n = scores.size
    if n > 1 and scores.min() == scores.max():
        warning = (
            f"all {n} scores equal {scores[0]:g}: this router cannot tell these prompts "
            "apart, so every prompt goes to the same model; check the router and the prompts"
        )
    usd = None if costs is None else costs_by_share(scores, *costs) * 1000
    at = int(np.flatnonzero(thresholds == threshold)[0])

    def row(index: int) -> Neighbour:
        limit = float(thresholds[index])
        earned = None if rewards is None else float(np.mean(np.where(scores >= limit, *rewards)))
        return Neighbour(
            threshold=limit,
            strong_pct=float(shares[index]),
            interval=wilson(float(round(shares[index] * n)), n),
            usd_per_1k=None if usd is None else float(usd[index]),
            quality=earned,
            chosen=index == at,
        )

    usd_interval = None
    if costs is not None:
        paid = np.where(scores >= threshold, *costs) * 1000
        means = [counts @ paid / n for counts in resample_counts(n, 1000, seed=seed)]
        usd_interval = percentile_interval(np.concatenate(means))
    # Around the chosen one, about five points of share apart where the data allow it.
    wanted = shares[at] + 0.05 * np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    wanted = wanted[(wanted > -0.05) & (wanted < 1.05)]
    picked = {int(np.argmin(np.abs(shares - w))) for w in wanted} | {at}
    # Where ties leave wide gaps, the next row on either side is still worth knowing.
    if max(picked) == at:
        picked.add(min(at + 1, len(shares) - 1))
    if min(picked) == at:
        picked.add(max(at - 1, 0))
    table = {index: row(index) for index in sorted(picked)}
    chosen = {name: one for name, one in vars(table[at]).items() if name != "chosen"}
    return Calibration(
        **chosen,
        n=n,
        usd_interval=usd_interval,
        requested=requested,
        table=tuple(table.values()),
        warning=warning,
    )

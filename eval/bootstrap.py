"""Bootstrap intervals: resample prompts, recompute the metric exactly, take percentiles.

A resample is a vector of counts, how often each prompt was drawn; a prompt that was drawn twice is
tied with itself, and the closed forms of `metrics` over tied groups handle that exactly. The
percentile interval is Efron's (Efron and Tibshirani 1993, chapter 13). Two routers that are
resampled with the same seed see the same resamples, so the difference of their samples is paired.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError, require_extra
from .metrics import (
    ECE_BINS,
    ROUNDING,
    Z95,
    Floats,
    Interval,
    apgr_of_groups,
    auc_of_groups,
    check_rewards,
    cpt_of_groups,
    ece_bins,
    tied_groups,
)

# Resamples of a chunk: 64 of 14,000 prompts are 7 MB of float64.
CHUNK_CELLS = 1_000_000
TAIL = (1 - 0.95) / 2
# APGRs that differ by less are equal: rounding of sums.
EQUAL = 1e-9


def resample_counts(n: int, resamples: int, *, seed: int = 0) -> Iterator[Floats]:
    """Chunks of counts, float64[<=chunk, n], `resamples` rows in all; the rows depend on the seed.

    Raises EvaluationError for n < 1 or resamples < 1.
    """
    if n < 1 or resamples < 1:
        raise EvaluationError(f"need at least one prompt and one resample, got {n}, {resamples}")
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_CELLS // n)
    for start in range(0, resamples, step):
        # Row by row, so that the resamples do not depend on the chunk's size.
        rows = range(min(step, resamples - start))
        draws = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in rows]
        yield np.array(draws, dtype=np.float64)


@dataclass(frozen=True)
class Samples:
    """Bootstrap samples of one router on one benchmark, float64[resamples] each.

    `pgr` is float64[resamples, len(shares)]: the part of the gap that each share recovers.
    NaN where a resample leaves the metric undefined (no gap, or one class only).
    """

    apgr: Floats
    cpt50: Floats
    cpt80: Floats
    auc: Floats
    ece: Floats
    pgr: Floats


def bootstrap(
    scores: npt.ArrayLike,
    strong: npt.ArrayLike,
    weak: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    shares: npt.ArrayLike = (),
) -> Samples:
    """Samples of every metric of one router.

    `labels` float64[n] in [0, 1] are for AUC and ECE (by default strong > weak; ties count for the
    weak model); ECE is NaN where scores are no probabilities, and keeps the bins of the full data.
    Raises EvaluationError for bad input.
    """
    s, r_strong, r_weak = check_rewards(scores, strong, weak)
    win = (r_strong > r_weak).astype(np.float64) if labels is None else np.asarray(labels, float)
    order, starts = tied_groups(s)
    gain, positive = (r_strong - r_weak)[order], win[order]
    grid = np.asarray(shares, dtype=np.float64)
    member = ece_bins(s) if np.all((s >= 0) & (s <= 1)) else None
    parts = []
    for counts in resample_counts(s.size, resamples, seed=seed):
        ranked = counts[:, order]
        calls = np.add.reduceat(ranked, starts, axis=1)
        gains = np.add.reduceat(ranked * gain, starts, axis=1)
        wins = np.add.reduceat(ranked * positive, starts, axis=1)
        error = np.full(len(counts), np.nan)
        if member is not None:
            bins = [member == b for b in range(ECE_BINS)]
            error = np.sum([np.abs(counts[:, b] @ (win - s)[b]) for b in bins], axis=0) / s.size
        cpts = [cpt_of_groups(calls, gains, target) for target in (0.5, 0.8)]
        found = apgr_of_groups(calls, gains), *cpts, auc_of_groups(wins, calls - wins), error
        parts.append((*found, _recovered(calls, gains, grid)))
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _recovered(calls: Floats, gains: Floats, grid: Floats) -> Floats:
    """The part of the gap at each share of `grid`: float64[resamples, len(grid)]."""
    found = np.full((len(calls), grid.size), np.nan)
    ends, heights = np.cumsum(calls, axis=1), np.cumsum(gains, axis=1)
    for row in np.flatnonzero(heights[:, -1] > ROUNDING) if grid.size else ():
        x, y = np.append(0.0, ends[row]), np.append(0.0, heights[row])
        found[row] = np.interp(grid * ends[row, -1], x, y) / y[-1]
    return found


def resampled_apgr(scores: Floats, gain: Floats, counts: Floats) -> Floats:
    """APGR in resamples: `scores`, `gain` (strong - weak) float64[n], `counts` float64[b, n] as
    `resample_counts` gives them -> float64[b], NaN where a resample has no gap."""
    order, starts = tied_groups(scores)
    drawn = counts[:, order]
    sums = [np.add.reduceat(one, starts, axis=1) for one in (drawn, drawn * gain[order])]
    return apgr_of_groups(sums[0], sums[1])


def interval(samples: npt.ArrayLike) -> Interval:
    """95% percentile interval of `samples`; (NaN, NaN) where more than 5% of them are undefined.

    Leaving out a few undefined resamples shifts the ends a little; leaving out many would hide
    that the gap itself is in doubt.
    """
    values = np.asarray(samples, dtype=np.float64)
    defined = values[np.isfinite(values)]
    if defined.size == 0 or defined.size < 0.95 * values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [TAIL, 1 - TAIL])
    return float(low), float(high)


def checked_scores(given: npt.ArrayLike, n: int, where: str) -> Floats:
    """`given` as float64[n]. Raises EvaluationError, saying `where`, unless n finite numbers."""
    scores = np.asarray(given, dtype=np.float64)
    if scores.shape != (n,) or not np.isfinite(scores).all():
        raise EvaluationError(
            f"{where} gave scores of shape {scores.shape}, {int(np.sum(~np.isfinite(scores)))} of "
            f"them not finite; expected a finite score for each of {n} prompts"
        )
    return scores


def draw_intervals(values: Floats, samples: Sequence[Floats]) -> tuple[Interval, Interval]:
    """95% intervals of the mean of `values` float64[D], a draw each: (draws, draws and prompts).

    The first is Student's t over the draws. The second is mean +- 1.96 * sqrt(mean(s_d^2) + S^2/D),
    with s_d^2 the variance of `samples[d]` (draw d in resamples of its prompts) and S^2 that of
    `values`; why, and what it leaves out, is in `own_logs`. NaN for the second where more than 5%
    of a draw's resamples are undefined.
    """
    stats: Any = require_extra("scipy.stats", "eval")
    draws, mean = len(values), float(values.mean())
    of_mean = float(values.var(ddof=1)) / draws
    half = float(stats.t.ppf(0.975, draws - 1)) * math.sqrt(of_mean)
    wide = Z95 * math.sqrt(float(np.mean([_variance(drawn) for drawn in samples])) + of_mean)
    return (mean - half, mean + half), (mean - wide, mean + wide)


def _variance(drawn: Floats) -> float:
    defined = drawn[np.isfinite(drawn)]
    if defined.size < max(2.0, 0.95 * drawn.size):
        return math.nan
    return float(defined.var(ddof=1))

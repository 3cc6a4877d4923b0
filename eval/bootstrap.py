"""Bootstrap intervals: resample prompts, recompute the metric exactly, take percentiles.

A resample is a vector of counts, how often each prompt was drawn; a prompt that was drawn twice is
tied with itself, and the closed forms of `metrics` over tied groups handle that exactly. The
percentile interval is Efron's (Efron and Tibshirani 1993, chapter 13). Two routers that are
resampled with the same seed see the same resamples, so the difference of their samples is paired.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from .metrics import (
    ROUNDING,
    Floats,
    Interval,
    apgr_of_groups,
    auc_of_groups,
    check_rewards,
    cpt_of_groups,
    ece_bins,
    tied_groups,
)

Groups = npt.NDArray[np.int64]

# Resamples of a chunk: 64 of 14,000 prompts are 7 MB of float64.
CHUNK_CELLS = 1_000_000


def resample_counts(
    n: int, resamples: int, *, seed: int = 0, groups: Groups | None = None
) -> Iterator[Floats]:
    """Chunks of counts, float64[<=chunk, n], `resamples` rows in all; the rows depend on the seed.

    With `groups` (int64[n]: prompts of one number belong together) whole groups are drawn, as many
    as there are (cluster bootstrap), so that a row's sum may differ from n where they differ in
    size. Raises EvaluationError for n < 1, resamples < 1 or groups of another length.
    """
    if n < 1 or resamples < 1:
        raise EvaluationError(f"need at least one prompt and one resample, got {n}, {resamples}")
    member: npt.NDArray[np.intp] | None = None
    units = n
    if groups is not None:
        if groups.shape != (n,):
            raise EvaluationError(f"groups have shape {groups.shape}, expected ({n},)")
        member = np.unique(groups, return_inverse=True)[1]
        units = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_CELLS // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        # Row by row, so that the resamples do not depend on the chunk's size.
        counts = np.empty((rows, units), dtype=np.float64)
        for row in range(rows):
            counts[row] = np.bincount(rng.integers(0, units, units), minlength=units)
        yield counts if member is None else counts[:, member]


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
    strong_mean: Floats
    weak_mean: Floats
    pgr: Floats


def bootstrap(
    scores: npt.ArrayLike,
    strong: npt.ArrayLike,
    weak: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
    shares: npt.ArrayLike | None = None,
    bins: int = 15,
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
    probability = bool(np.all((s >= 0) & (s <= 1)))
    member = ece_bins(s, bins, equal_mass=True) if probability else None
    grid = np.asarray([] if shares is None else shares, dtype=np.float64)
    parts: list[list[Floats]] = [[] for _ in range(8)]
    for counts in resample_counts(s.size, resamples, seed=seed, groups=groups):
        drawn = counts.sum(axis=1)
        ranked = counts[:, order]
        calls = np.add.reduceat(ranked, starts, axis=1)
        gains = np.add.reduceat(ranked * gain, starts, axis=1)
        wins = np.add.reduceat(ranked * positive, starts, axis=1)
        error = np.full(len(counts), np.nan)
        if member is not None:
            by_bin = [np.abs(counts[:, member == b] @ (win - s)[member == b]) for b in range(bins)]
            error = np.sum(by_bin, axis=0) / drawn
        recovered = np.full((len(counts), grid.size), np.nan)
        if grid.size:
            ends = np.cumsum(calls, axis=1)
            heights = np.cumsum(gains, axis=1)
            for row in range(len(counts)):
                if heights[row, -1] > ROUNDING:
                    x, y = np.append(0.0, ends[row]), np.append(0.0, heights[row])
                    recovered[row] = np.interp(grid * drawn[row], x, y) / y[-1]
        chunk = (
            apgr_of_groups(calls, gains),
            cpt_of_groups(calls, gains, 0.5),
            cpt_of_groups(calls, gains, 0.8),
            auc_of_groups(wins, calls - wins),
            error,
            counts @ r_strong / drawn,
            counts @ r_weak / drawn,
            recovered,
        )
        for part, values in zip(parts, chunk, strict=True):
            part.append(values)
    return Samples(*(np.concatenate(part) for part in parts))


def interval(samples: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval of `samples`; (NaN, NaN) where more than 5% of them are undefined.

    Leaving out a few undefined resamples shifts the ends a little; leaving out many would hide
    that the gap itself is in doubt.
    """
    values = np.asarray(samples, dtype=np.float64)
    defined = values[np.isfinite(values)]
    if defined.size == 0 or defined.size < 0.95 * values.size:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(first: Samples, second: Samples) -> Floats:
    """APGR of `first` minus `second`, resample by resample: float64[resamples].

    Both must come from `bootstrap` with the same prompts, seed, resamples and groups. Raises
    EvaluationError where the numbers of resamples differ.
    """
    if first.apgr.shape != second.apgr.shape:
        raise EvaluationError("paired difference: the two have different numbers of resamples")
    difference: Floats = first.apgr - second.apgr
    return difference

"""What the protocols share: checks of scores, resampled APGRs, and intervals over draws."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from .metrics import Z95, Floats, Interval, apgr_of_groups, tied_groups

# APGRs that differ by less are equal: rounding of sums.
EQUAL = 1e-9


def checked_scores(given: npt.ArrayLike, n: int, where: str) -> Floats:
    """`given` as float64[n]. Raises EvaluationError, saying `where`, unless n finite numbers."""
    scores = np.asarray(given, dtype=np.float64)
    if scores.shape != (n,) or not np.isfinite(scores).all():
        raise EvaluationError(
            f"{where} gave scores of shape {scores.shape}, {int(np.sum(~np.isfinite(scores)))} of "
            f"them not finite; expected a finite score for each of {n} prompts"
        )
    return scores


def resampled_apgr(scores: Floats, gain: Floats, counts: Floats) -> Floats:
    """APGR in resamples: `scores`, `gain` (strong - weak) float64[n], `counts` float64[b, n] as
    `bootstrap.resample_counts` gives them -> float64[b], NaN where a resample has no gap."""
    order, starts = tied_groups(scores)
    drawn = counts[:, order]
    return apgr_of_groups(
        np.add.reduceat(drawn, starts, axis=1),
        np.add.reduceat(drawn * gain[order], starts, axis=1),
    )


def draw_intervals(values: Floats, samples: Sequence[Floats]) -> tuple[Interval, Interval]:
    """95% intervals of the mean of `values` float64[D], a draw each: (draws, draws and prompts).

    The first is Student's t over the draws. The second is mean +- 1.96 * sqrt(mean(s_d^2) + S^2/D),
    with s_d^2 the variance of `samples[d]` (draw d in resamples of its prompts) and S^2 that of
    `values`; why, and what it leaves out, is in `own_logs`. NaN for the second where more than 5%
    of a draw's resamples are undefined.
    """
    draws, mean = len(values), float(values.mean())
    of_mean = float(values.var(ddof=1)) / draws
    half = t95(draws - 1) * math.sqrt(of_mean)
    wide = Z95 * math.sqrt(float(np.mean([_variance(drawn) for drawn in samples])) + of_mean)
    return (mean - half, mean + half), (mean - wide, mean + wide)


def _variance(drawn: Floats) -> float:
    defined = drawn[np.isfinite(drawn)]
    if defined.size < max(2.0, 0.95 * drawn.size):
        return math.nan
    return float(defined.var(ddof=1))


def t95(degrees: int) -> float:
    """The 97.5% quantile of Student's t: half the width of a 95% interval in standard errors.

    Bisection on the finite series of the distribution for whole degrees of freedom (Abramowitz and
    Stegun 1964, 26.7.3 and 26.7.4). Raises EvaluationError below 1.
    """
    if degrees < 1:
        raise EvaluationError(f"t95: {degrees} degrees of freedom; need at least 1")

    def inside(t: float) -> float:
        angle = math.atan(t / math.sqrt(degrees))
        cosine, sine = math.cos(angle), math.sin(angle)
        odd = degrees % 2
        term, total = (cosine if odd else 1.0), 0.0
        for k in range(1 + odd, degrees, 2):
            total += term
            term *= cosine * cosine * k / (k + 1)
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return high

"""Routing and calibration metrics, exact with tied scores, in numpy alone.

Throughout: n prompts; `scores` float64[n], higher means more in need of the strong model; `strong`
and `weak` float64[n], the reward of either model's answer. k calls of the strong model go to the k
highest scores. Where a tie straddles k, the result is the mean over all orders of the tied
prompts, which makes the curve of k against reward linear inside a tied group.

Sources
    PGR, APGR, CPT   Ong et al. 2024, RouteLLM, arXiv 2406.18665, section 2.3
    ECE              Naeini, Cooper, Hauskrecht 2015, AAAI, "Obtaining well calibrated
                     probabilities using Bayesian binning"
    Brier            Brier 1950, Monthly Weather Review 78
    AUC              Mann and Whitney 1947, Annals of Mathematical Statistics 18; ties count half
    Wilson interval  Wilson 1927, Journal of the American Statistical Association 22
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

# Sums of a few thousand rewards are right to about 1e-12; a crossing that is missed by less is met.
ROUNDING = 1e-9
Z95 = 1.959963984540054
ECE_BINS = 15


@dataclass(frozen=True)
class Curve:
    """Strong calls against gain, at the ends of the groups of tied scores.

    `calls` float64[g + 1], cumulative, from 0 to n; `gains` float64[g + 1], the sum of strong minus
    weak over those calls, from 0 to n * gap. Between two points the curve is linear.
    """

    calls: Floats
    gains: Floats
    weak_mean: float
    strong_mean: float

    @property
    def n(self) -> int:
        """Number of prompts."""
        return int(self.calls[-1])

    def rewards(self, shares: npt.ArrayLike) -> Floats:
        """Mean reward at each share of strong calls in [0, 1], linear between k and k + 1."""
        wanted = np.asarray(shares, dtype=np.float64) * self.n
        rewards: Floats = self.weak_mean + np.interp(wanted, self.calls, self.gains) / self.n
        return rewards

    def apgr(self) -> float:
        """Mean of PGR over k = 0 .. n. A constant or random score has exactly 0.5."""
        return float(apgr_of_groups(np.diff(self.calls), np.diff(self.gains)))

    def cpt(self, target: float) -> float:
        """Smallest k / n at which PGR reaches `target` (in (0, 1]): the first crossing."""
        return float(cpt_of_groups(np.diff(self.calls), np.diff(self.gains), target))


def check_rewards(
    scores: npt.ArrayLike, strong: npt.ArrayLike, weak: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """The three as float64[n]. Raises EvaluationError unless n > 0, equal lengths, all finite."""
    arrays = []
    for name, values in (("scores", scores), ("strong", strong), ("weak", weak)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or array.size == 0:
            raise EvaluationError(
                f"{name} must be a list of at least one number, got shape {array.shape}; "
                "check that the data holds prompts that both models answered"
            )
        if not np.all(np.isfinite(array)):
            where = int(np.flatnonzero(~np.isfinite(array))[0])
            raise EvaluationError(
                f"{name}[{where}] is {array[where]}; leave out prompts without a result"
            )
        arrays.append(array)
    if len({array.size for array in arrays}) != 1:
        raise EvaluationError(f"scores, strong, weak differ in length: {[a.size for a in arrays]}")
    return arrays[0], arrays[1], arrays[2]


def tied_groups(scores: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """(order, starts): order sorts by falling score, starts are the first index of each tie."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    return order, starts


def tradeoff(scores: npt.ArrayLike, strong: npt.ArrayLike, weak: npt.ArrayLike) -> Curve:
    """The curve of strong calls against gain.

    Raises EvaluationError for bad input, and where the strong model's mean reward is not above the
    weak model's: without a gap there is nothing to recover.
    """
    s, r_strong, r_weak = check_rewards(scores, strong, weak)
    order, starts = tied_groups(s)
    gains = np.add.reduceat((r_strong - r_weak)[order], starts)
    calls = np.diff(np.append(starts, s.size))
    curve = Curve(
        calls=np.append(0.0, np.cumsum(calls, dtype=np.float64)),
        gains=np.append(0.0, np.cumsum(gains)),
        weak_mean=float(r_weak.mean()),
        strong_mean=float(r_strong.mean()),
    )
    if curve.gains[-1] <= ROUNDING:
        raise EvaluationError(
            f"the strong model's mean reward {curve.strong_mean:.4f} is not above the weak "
            f"model's {curve.weak_mean:.4f}: PGR is not defined; swap the two models or choose "
            "others"
        )
    return curve


def check_gap(strong: Floats, weak: Floats, where: str) -> None:
    """Raises EvaluationError, saying `where`, unless strong earns more than weak on average."""
    try:
        tradeoff(np.zeros(len(strong)), strong, weak)
    except EvaluationError as error:
        raise EvaluationError(f"{where}: {error}") from error


def apgr_of_groups(calls: Floats, gains: Floats) -> Floats:
    """APGR from the size and gain of each tied group, along the last axis, highest score first.

    Inside a group of c calls and gain g that starts at gain p, PGR takes the values
    p + g * i / c for i = 1 .. c, whose sum is c * p + g * (c + 1) / 2. Groups of size 0 (absent
    from a resample) add nothing. NaN where the whole gap is not positive.
    """
    ends = np.cumsum(gains, axis=-1)
    area = np.sum(calls * (ends - gains) + gains * (calls + 1) / 2, axis=-1)
    total = ends[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = np.where(
            total > ROUNDING, area / (np.sum(calls, axis=-1) + 1) / total, np.nan
        )
    return value


def cpt_of_groups(calls: Floats, gains: Floats, target: float) -> Floats:
    """CPT(target) from the size and gain of each tied group, along the last axis.

    The curve is linear inside a group, so the first group whose end reaches the target holds the
    crossing. NaN where the whole gap is not positive. Raises EvaluationError unless 0 < target
    <= 1.
    """
    if not 0.0 < target <= 1.0:
        raise EvaluationError(f"CPT target {target!r} must be in (0, 1]")
    ends = np.cumsum(gains, axis=-1)
    total = ends[..., -1:]
    wanted = target * total - ROUNDING * np.abs(total)
    # For an undefined (not positive) gap any index will do: the result is NaN below.
    first = np.argmax(ends >= wanted, axis=-1)[..., None]
    end, gain, size, last = (
        np.take_along_axis(values, first, axis=-1)
        for values in (ends, gains, calls, np.cumsum(calls, axis=-1))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.ceil((wanted - (end - gain)) / gain * size - ROUNDING)
        share = (last - size + np.clip(inside, 1, size)) / np.sum(calls, axis=-1, keepdims=True)
    value: Floats = np.where(total > ROUNDING, share, np.nan)[..., 0]
    return value


def apgr(scores: npt.ArrayLike, strong: npt.ArrayLike, weak: npt.ArrayLike) -> float:
    """Mean of PGR over k = 0 .. n strong calls. Raises EvaluationError as `tradeoff`."""
    return tradeoff(scores, strong, weak).apgr()


def cpt(scores: npt.ArrayLike, strong: npt.ArrayLike, weak: npt.ArrayLike, target: float) -> float:
    """Smallest share of strong calls with PGR >= target. Raises EvaluationError as `tradeoff`."""
    return tradeoff(scores, strong, weak).cpt(target)


def _check_labels(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64[n]. Raises EvaluationError unless n > 0, equal length, in [0, 1]."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or p.shape != y.shape:
        raise EvaluationError(f"need equal lengths > 0, got shapes {p.shape} and {y.shape}")
    for name, array in (("probability", p), ("label", y)):
        if not np.all((array >= 0) & (array <= 1)):
            raise EvaluationError(f"every {name} must be in [0, 1]")
    return p, y


def ece_bins(probabilities: Floats, bins: int = ECE_BINS) -> npt.NDArray[np.intp]:
    """Bin of each prompt, 0 .. bins - 1, of equally many; equal probabilities share a bin."""
    if bins < 1:
        raise EvaluationError(f"bins must be at least 1, got {bins}")
    # The bin of a value is that of the first prompt, in order, that has it.
    first = np.searchsorted(np.sort(probabilities), probabilities)
    return (first * bins) // probabilities.size


def ece(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean |label - probability| of the bins, weighted by their size.

    Bins hold equally many prompts. Source: Naeini 2015. Raises EvaluationError.
    """
    p, y = _check_labels(probabilities, labels)
    sums = np.bincount(ece_bins(p, bins), weights=y - p, minlength=bins)
    return float(np.sum(np.abs(sums)) / p.size)


def brier(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean squared difference of probability and label. Raises EvaluationError."""
    p, y = _check_labels(probabilities, labels)
    return float(np.mean((p - y) ** 2))


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """P(score of a positive > score of a negative), ties half; NaN where one class is missing.

    Labels may be fractions in [0, 1] (a prompt that the strong model wins two times of three):
    it is then a positive of weight y and a negative of weight 1 - y.
    """
    s, y, _ = check_rewards(scores, labels, labels)
    order, starts = tied_groups(s)
    positive = np.add.reduceat(y[order], starts)
    negative = np.add.reduceat(1.0 - y[order], starts)
    return float(auc_of_groups(positive, negative))


def auc_of_groups(positive: Floats, negative: Floats) -> Floats:
    """AUC from the positives and negatives of each tied group, along the last axis."""
    negatives = np.sum(negative, axis=-1)
    below = negatives[..., None] - np.cumsum(negative, axis=-1)
    pairs = np.sum(positive, axis=-1) * negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = np.where(
            pairs > 0, np.sum(positive * (below + negative / 2), axis=-1) / pairs, np.nan
        )
    return value


def wilson(successes: float, n: int, z: float = Z95) -> Interval:
    """Wilson's score interval of a share, 95% by default. Raises EvaluationError for n < 1."""
    if n < 1 or not 0 <= successes <= n:
        raise EvaluationError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The ends are exact at 0 and n; rounding would leave them a hair inside.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return low, high

"""What a way of routing costs and earns on labelled rows, with intervals, and against chance.

A way of routing is the share of each row that goes to the strong model, float64[n] in [0, 1]: 0 or
1 where a threshold decides, p everywhere for a random mix. Everything is a ratio of weighted sums
over rows, so that one bootstrap of the sums gives the interval of any of them, and differences of
two ways of routing are paired (the same resamples). A row's weight is its importance weight after
sampling that was not uniform; without such sampling all are 1.

Each resample is of the rows and of four more ("plus four": Agresti and Coull 1998, The American
Statistician 52): where only one of the models is right, either way, once sent to either model.
Without them 50 rows that show no loss would have an interval of no width, though a loss of one in
twenty would show none as often as one time in thirteen; of 300 rows they move little.
"""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from ...errors import EvaluationError
from ...router.threshold import check_scores
from ..bootstrap import interval, resample_counts
from ..metrics import Floats, Interval, check_rewards

# Permutations of the test against a random mix; past so many rows the normal limit is as good.
PERMUTATIONS = 1999
PERMUTED_ROWS = 20_000
# Random streams of their own, so that no draw here is one that made or ordered the data.
HALVES, SHUFFLES = 0x4A1F, 0x5AFF
# Sums of a few thousand rewards are right to about 1e-12.
ROUNDING = 1e-9
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Rows:
    """n labelled prompts. `scores` in [0, 1]; `strong`, `weak`: rewards in [0, 1] of either model;
    `strong_cost`, `weak_cost`: USD a request where `usd`, else 1 and 0 (a strong call is the unit);
    `weight` > 0, at most 1. All float64[n]."""

    scores: Floats
    strong: Floats
    weak: Floats
    strong_cost: Floats
    weak_cost: Floats
    weight: Floats
    usd: bool

    @classmethod
    def of(
        cls,
        scores: npt.ArrayLike,
        strong: npt.ArrayLike,
        weak: npt.ArrayLike,
        costs: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> "Rows":
        """Checked rows. `costs`: USD a request on the strong and on the weak model.

        Raises CalibrationError for scores outside [0, 1], EvaluationError for rewards outside it,
        where both models earn 0 on every row, and for costs or weights that cannot be used.
        """
        s, a, b = check_rewards(check_scores(scores), strong, weak)
        for name, rewards in (("strong", a), ("weak", b)):
            if rewards.min() < 0 or rewards.max() > 1:
                raise EvaluationError(
                    f"rewards of the {name} model lie from {rewards.min():g} to "
                    f"{rewards.max():g}; an audit needs them in [0, 1]: divide grades by the best"
                )
        if a.max() == 0 and b.max() == 0:
            raise EvaluationError(
                f"both models earn 0 on all {a.size:,} rows: there is no quality to keep; check "
                "the labels"
            )
        dear, cheap = (1.0, 0.0) if costs is None else costs
        amounts = {"strong costs": dear, "weak costs": cheap}
        amounts["weights"] = 1.0 if weights is None else weights
        found = []
        for what, values in amounts.items():
            array = np.asarray(values, dtype=np.float64)
            array = array if array.ndim else np.full(a.size, array)
            usable = np.isfinite(array) & (array >= 0)
            if array.shape != a.shape or not usable.all():
                raise EvaluationError(
                    f"{what}: expected {a.size} finite numbers >= 0, got shape {array.shape} with "
                    f"{int(np.sum(~usable))} that are none"
                )
            found.append(array)
        if found[2].min() <= 0:
            raise EvaluationError("weights must be above 0: leave such rows out")
        weight = found[2] / found[2].max()
        return cls(s, a, b, found[0], found[1], weight, costs is not None)

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.scores.size)

    def take(self, index: npt.NDArray[np.integer]) -> "Rows":
        """The rows of `index`, in its order."""
        columns = [one.name for one in fields(self) if one.name != "usd"]
        return replace(self, **{name: getattr(self, name)[index] for name in columns})

    def sends(self, threshold: float) -> Floats:
        """1 where the score is at or above `threshold` (strong), else 0: float64[n]."""
        return (self.scores >= threshold).astype(np.float64)

    def routed(self, sends: npt.ArrayLike) -> Floats:
        """Reward of each row where the share `sends` of it goes to strong: float64[n]."""
        return self.weak + np.asarray(sends) * (self.strong - self.weak)

    def paid(self, sends: npt.ArrayLike) -> Floats:
        """Cost of each row where the share `sends` of it goes to strong: float64[n]."""
        return self.weak_cost + np.asarray(sends) * (self.strong_cost - self.weak_cost)


def _extremes(rows: Rows) -> Rows:
    """The four rows that each resample has besides: the first two go to strong, where a threshold
    decides. Their cost and weight are the means."""
    costs = (np.average(cost, weights=rows.weight) for cost in (rows.strong_cost, rows.weak_cost))
    dear, cheap, weight = (np.full(4, one) for one in (*costs, rows.weight.mean()))
    scores, strong = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0, 0.0])
    return Rows(scores, strong, 1 - strong, dear, cheap, weight, rows.usd)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95% interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    @property
    def ci(self) -> Interval:
        """The ends of the interval."""
        return self.low, self.high


def _figure(value: float, drawn: Floats) -> Figure:
    """With the interval of the resamples; where the value is not defined, nor is that."""
    low, high = interval(drawn)
    if not np.isfinite(value):
        return Figure(value, NAN, NAN)
    # At the edge of what there can be, a value lies outside of all resamples.
    return Figure(value, min(low, value), max(high, value))


@dataclass(frozen=True, eq=False)
class Measured:
    """What one way of routing gives on n rows.

    `quality`: mean reward of the mix / mean reward of the strong model; `saving`: 1 - cost of the
    mix / cost of the strong model; `share` of strong calls; `reward`: mean reward; `cost`: mean
    cost of a request in the rows' unit. `draws`: the bootstrap's qualities, float64[resamples].
    """

    n: int
    quality: Figure
    saving: Figure
    share: Figure
    reward: Figure
    cost: Figure
    draws: Floats


def measure(rows: Rows, sends: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Measured:
    """Quality, saving and cost of sending the share `sends` float64[n] of each row to strong.

    A number for `sends` is the share of every row, seen or not: 1 is always strong, and a routing
    that happens to send all of these rows to strong is not. Intervals: 95%, percentile bootstrap
    over rows (`eval.bootstrap`) and four more, see above.
    """
    given, more = np.asarray(sends, dtype=np.float64), _extremes(rows)

    def terms(part: Rows, d: Floats) -> Floats:
        """Weighted: 1, share, reward, strong's reward, cost, strong's cost. float64[n, 6]."""
        columns = (d, part.routed(d), part.strong, part.paid(d), part.strong_cost)
        return np.column_stack((part.weight, *(part.weight * one for one in columns)))

    columns = terms(rows, np.broadcast_to(given, (rows.n,)))
    # A row's score says where a threshold sends it; a share holds for these four too.
    added = terms(more, more.scores if given.ndim else np.broadcast_to(given, (more.n,)))
    total, drawn = columns.sum(axis=0), _resampled(columns, added, resamples, seed)

    def ratio(over: int, under: int) -> tuple[float, Floats]:
        return float(_ratio(total[over], total[under])), _ratio(drawn[:, over], drawn[:, under])

    quality, bill = ratio(2, 3), ratio(4, 5)
    saving = _figure(1.0 - bill[0], 1.0 - bill[1])
    share, reward, cost = (_figure(*ratio(over, 0)) for over in (1, 2, 4))
    return Measured(rows.n, _figure(*quality), saving, share, reward, cost, quality[1])


def _resampled(columns: Floats, added: Floats, resamples: int, seed: int) -> Floats:
    """Sums of the columns, [n, k] and four rows more, over each resample: [resamples, k]."""
    every = np.concatenate((columns, added))
    chunks = resample_counts(len(every), resamples, seed=seed)
    return np.concatenate([counts @ every for counts in chunks])


def _ratio(over: npt.ArrayLike, under: npt.ArrayLike) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Floats = np.asarray(over, dtype=np.float64) / np.asarray(under, dtype=np.float64)
    return np.where(np.isfinite(value), value, np.nan)


@dataclass(frozen=True, slots=True)
class AgainstRandom:
    """Mean reward of the routing less that of a random mix with the same share of strong calls, or
    with the same spend. `p_value` is one-sided, of "no better than the mix"; `z` its statistic, NaN
    where all rows go to one model."""

    difference: Figure
    p_value: float
    z: float


def against_random(
    rows: Rows, sends: npt.ArrayLike, *, same: str = "share", resamples: int = 1000, seed: int = 0
) -> AgainstRandom:
    """Is `sends` (0 or 1 for each row) better than a random mix of the same "share", or "spend"?

    With g the gain (strong minus weak), c the extra cost of the strong model and p the share, the
    difference to the mix of the same share is the covariance of `sends` with g; of the same spend
    it is the mean of sends * (g - r c), r = E g / E c. The test permutes `sends` over the rows and
    is studentised: exact where scores know nothing of gains and costs, and right in large samples
    where the covariance alone is 0 (Janssen 1997, Statistics and Probability Letters 36; DiCiccio
    and Romano 2017, JASA 112). Past 20,000 rows its normal limit is used.
    """
    d, w, gain = np.asarray(sends, dtype=np.float64), rows.weight, rows.strong - rows.weak
    more = _extremes(rows)

    def price(part: Rows) -> Floats:
        return part.strong_cost - part.weak_cost if same == "spend" else np.ones(part.n)

    def terms(part: Rows, sent: Floats) -> Floats:
        weight, extra, won = part.weight, price(part), part.strong - part.weak
        return np.column_stack(
            (weight, weight * sent * won, weight * won, weight * sent * extra, weight * extra)
        )

    def difference(sums: Floats) -> Floats:
        part = _ratio(sums[..., 3], sums[..., 4])
        return _ratio(sums[..., 1] - part * sums[..., 2], sums[..., 0])

    columns = terms(rows, d)
    total = columns.sum(axis=0)
    drawn = _resampled(columns, terms(more, more.scores), resamples, seed)
    residual = w * (gain - float(_ratio(total[2], total[4])) * price(rows))
    z = float(_student(d[None, :], residual, w)[0])
    found = _figure(float(difference(total)), difference(drawn))
    return AgainstRandom(found, _permuted_p(d, residual, w, z, seed), z)


def _student(sends: Floats, residual: Floats, weight: Floats) -> Floats:
    """sum (d - p) h / sqrt(sum ((d - p) h)^2) for each row of `sends` [m, n]; NaN where 0 / 0."""
    centred = sends - (sends @ weight / weight.sum())[:, None]
    terms = centred * residual
    spread = np.sqrt(np.sum(terms**2, axis=1))
    return np.where(spread > ROUNDING, _ratio(terms.sum(axis=1), spread), np.nan)


def _permuted_p(d: Floats, residual: Floats, weight: Floats, z: float, seed: int) -> float:
    if not np.isfinite(z):
        return 1.0
    if d.size > PERMUTED_ROWS:
        return normal_tail(z)
    rng = np.random.default_rng((seed, SHUFFLES))
    step = max(1, 2_000_000 // d.size)
    at_least = 0
    for start in range(0, PERMUTATIONS, step):
        block = np.repeat(d[None, :], min(step, PERMUTATIONS - start), axis=0)
        drawn = _student(rng.permuted(block, axis=1), residual, weight)
        # A permutation without any spread says nothing against chance: it counts as as good.
        at_least += int(np.sum(~(drawn < z - ROUNDING)))
    return (1 + at_least) / (1 + PERMUTATIONS)


def normal_tail(z: float) -> float:
    """P(Z >= z) of a standard normal variable."""
    return 0.5 * math.erfc(z / math.sqrt(2))


@dataclass(frozen=True, eq=False)
class QualityCurve:
    """Quality against the share of strong calls: `share`, `quality`, `low`, `high` float64[m].
    `apgr`: its mean height over the weak model, as a part of the gap between the models (arXiv
    2406.18665; a random mix has .5); NaN where there is no gap."""

    share: Floats
    quality: Floats
    low: Floats
    high: Floats
    apgr: Figure


def curve(rows: Rows, *, points: int = 51, resamples: int = 500, seed: int = 0) -> QualityCurve:
    """Quality at each share of strong calls, highest scores first, with pointwise 95% intervals.

    Tied scores count as ordered at random, so that the curve is linear inside a tie
    (`eval.metrics`). It is of all rows, and chooses nothing.
    """
    order = np.argsort(-rows.scores, kind="stable")
    w = rows.weight[order]
    gain = w * (rows.strong - rows.weak)[order]
    strong, weak = w * rows.strong[order], w * rows.weak[order]
    starts = np.flatnonzero(np.append(True, np.diff(rows.scores[order]) != 0))
    share = np.linspace(0.0, 1.0, points)

    def at(counts: Floats) -> tuple[Floats, float]:
        calls = np.append(0.0, np.cumsum(np.add.reduceat(counts * w, starts)))
        gains = np.append(0.0, np.cumsum(np.add.reduceat(counts * gain, starts)))
        reached = counts @ weak + np.interp(share * calls[-1], calls, gains)
        area = float(np.sum(np.diff(calls) * (gains[1:] + gains[:-1])) / 2 / calls[-1])
        apgr = area / gains[-1] if gains[-1] > ROUNDING else NAN
        return _ratio(reached, counts @ strong), apgr

    quality, apgr = at(np.ones(rows.n))
    drawn = [
        at(row[order]) for block in resample_counts(rows.n, resamples, seed=seed) for row in block
    ]
    # Whether a resample's quality is defined depends on its rows alone, not on the share.
    heights = np.array([one for one, _ in drawn])
    known = heights[np.isfinite(heights[:, 0])]
    ends = np.full((2, points), np.nan)
    if len(known) >= 0.95 * len(heights):
        ends = np.quantile(known, [0.025, 0.975], axis=0)
    spread = interval([area for _, area in drawn])
    return QualityCurve(share, quality, ends[0], ends[1], Figure(apgr, *spread))


def ranks(values: npt.ArrayLike) -> Floats:
    """Any finite numbers as scores in (0, 1) of the same order and ties: float64[n]."""
    distinct, place = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    scores: Floats = (place + 0.5) / len(distinct)
    return scores


def halves(n: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two halves of 0 .. n - 1 at random, each in rising order; the first has the odd one."""
    mixed = np.random.default_rng((seed, HALVES)).permutation(n)
    first = (n + 1) // 2
    return np.sort(mixed[:first]), np.sort(mixed[first:])


def labels_needed(z: float, n: int, wanted: float) -> float:
    """Rows at which a test that had `z` on n rows would be expected to reach `wanted`: z grows with
    the square root of n. Infinite where z is not above 0."""
    return n * (wanted / z) ** 2 if z > 0 else math.inf

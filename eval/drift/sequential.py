"""Tests that stay valid however often they are looked at, and may be stopped at any moment.

A p-value of one fixed sample, computed again with every request, falls below any level sooner or
later though nothing has changed. What stands here instead are e-processes: the wealth of a gambler
who bets against "nothing has changed". Where nothing has, the chance that the wealth ever reaches
1 / alpha is at most alpha (Ville 1939), over an infinite stream.

Sources
    Conformal test martingales  Vovk, Gammerman, Shafer 2022, "Algorithmic Learning in a Random
                                World", 2nd edition, chapter 8; Vovk et al. 2021, "Retrain or not
                                retrain", arXiv 2102.10439
    Mixtures over start times   Shin, Ramdas, Rinaldo 2022, "E-detectors", arXiv 2203.03532
    Beta-binomial mixture       Robbins 1970, Annals of Mathematical Statistics 41; Howard et al.
                                2021, "Time-uniform, nonparametric, nonasymptotic confidence
                                sequences", arXiv 1810.08240
    Asymptotic sequences        Waudby-Smith et al. 2021, "Time-uniform central limit theory and
                                asymptotic confidence sequences", arXiv 2103.06476
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LOOK = 25  # scores between two looks at the wealth: those that are left over wait for the rest
CHUNK = 8 * LOOK
_SLOPES = np.array([0.15, 0.4, 0.8])
_BETS = np.concatenate([_SLOPES, -_SLOPES])
_BINS = 10
_PRIOR = 4.0  # of each bin: changes are small rather than large
_OCTAVE = 32  # starts for each doubling of the stream's length


class ScoreTest:
    """Whether a stream of scores and a baseline could be draws of one distribution.

    Each score is ranked among the baseline and all scores of the stream before it, ties at random:
    while all are exchangeable these ranks are independent and uniform, exactly and however small
    the baseline is (Vovk et al.). A mixture of gamblers bets that ranks are larger or smaller than
    they should be, that they lie further out or further in, or that some tenth of them is too
    full. Each bets from the start, and once more from each of many later moments on, so that a
    change after a long quiet time is found too. Not exchangeable, and thus an alarm of its own
    kind: traffic that swings with the hour, and bursts of near copies.

    `edges` float64[k], strictly increasing, make k + 1 cells, whose baseline counts are `counts`
    int64[k + 1]; a score on an edge belongs to the upper one. seed: of the random order of ties.
    """

    def __init__(self, edges: npt.ArrayLike, counts: npt.ArrayLike, *, seed: int = 0) -> None:
        self._edges = np.asarray(edges, dtype=np.float64)
        self._pool = np.array(counts, dtype=np.int64)
        if self._pool.shape != (self._edges.size + 1,) or self._pool.sum() < 1:
            raise ValueError("a baseline needs one count more than edges, and at least one score")
        self._random = np.random.default_rng(seed)
        self._waiting: list[float] = []
        self._log_bets = np.zeros(2 * _BETS.size)  # log wealth of each bet made since the start
        self._bins = np.zeros(_BINS, dtype=np.int64)
        self._starts: list[int] = []
        self._start_bets: list[Floats] = []
        self._start_bins: list[Ints] = []
        self.n = 0
        self.log_e = 0.0
        self.log_e_max = 0.0
        self.alarm_at: int | None = None

    @property
    def p_value(self) -> float:
        """1 / the greatest wealth so far: at most alpha, ever, with a chance of at most alpha."""
        return math.exp(-self.log_e_max)

    def add(self, scores: npt.ArrayLike, *, alpha: float | None = None) -> None:
        """The next scores of the stream, float64[m], in order; NaN is left out. alpha: note in
        `alarm_at` after how many scores `p_value` first was at most that."""
        given = np.asarray(scores, dtype=np.float64)
        self._waiting.extend(given[~np.isnan(given)].tolist())
        whole = len(self._waiting) // LOOK * LOOK
        for start in range(0, whole, CHUNK):
            chunk = np.array(self._waiting[start : min(start + CHUNK, whole)])
            for ranks in self.ranks(chunk).reshape(-1, LOOK):
                self._look(ranks, alpha)
        del self._waiting[:whole]

    def ranks(self, scores: Floats) -> Floats:
        """Of each score among all before it, which it joins: its smoothed conformal p-value."""
        cells = np.searchsorted(self._edges, scores, side="right")
        before = np.tri(cells.size, k=-1, dtype=bool)
        below = np.concatenate([[0], np.cumsum(self._pool)])[cells]
        below += (before & (cells[None, :] < cells[:, None])).sum(axis=1)
        equal = self._pool[cells] + (before & (cells[None, :] == cells[:, None])).sum(axis=1)
        among = self._pool.sum() + np.arange(cells.size) + 1
        self._pool += np.bincount(cells, minlength=self._pool.size)
        ranks: Floats = (below + self._random.random(cells.size) * (equal + 1)) / among
        return ranks

    def _look(self, ranks: Floats, alpha: float | None) -> None:
        if _is_start(self.n // LOOK):
            self._starts.append(self.n)
            self._start_bets.append(self._log_bets.copy())
            self._start_bins.append(self._bins.copy())
        far = 2 * ranks - 1
        out = 6 * ranks * (ranks - 1) + 1  # both have mean 0 over uniform ranks
        bets = np.concatenate([np.outer(_BETS, far), np.outer(_BETS, out)])
        self._log_bets += np.log1p(bets).sum(axis=1)
        self._bins += np.bincount(
            np.minimum((ranks * _BINS).astype(np.int64), _BINS - 1), minlength=_BINS
        )
        self.n += ranks.size
        self.log_e = self._log_wealth()
        self.log_e_max = max(self.log_e_max, self.log_e)
        if alpha is not None and self.alarm_at is None and self.p_value <= alpha:
            self.alarm_at = self.n

    def _log_wealth(self) -> float:
        """Log of the mixture over starts i, of weight 1 / ((i + 1)(i + 2)), and over gamblers."""
        bets = self._log_bets - np.array(self._start_bets)
        bins = self._bins - np.array(self._start_bins)
        tenths = self._dirichlet(bins)[:, None]
        # Half of the stake is on the tenths, the rest on the others alike.
        by_start = np.concatenate([bets - math.log(2 * bets.shape[1]), tenths - math.log(2)], 1)
        index = np.arange(len(self._starts))
        weights = -np.log((index + 1.0) * (index + 2.0))
        waiting = -math.log(len(self._starts) + 1)  # what those that have not begun hold
        return _log_sum_exp(np.append((by_start + weights[:, None]).ravel(), waiting))

    def _dirichlet(self, bins: Ints) -> Floats:
        """Log likelihood of bin counts, int64[s, 10], under a Dirichlet prior over the bins'
        shares, minus that under equal shares: float64[s]."""
        total = bins.sum(axis=1).astype(np.float64)
        of_bins = (_log_gamma(bins.astype(np.float64) + _PRIOR) - math.lgamma(_PRIOR)).sum(axis=1)
        of_all = _log_gamma(total + _BINS * _PRIOR) - math.lgamma(_BINS * _PRIOR)
        found: Floats = of_bins - of_all + total * math.log(_BINS)
        return found


def _is_start(look: int) -> bool:
    """Whether gamblers begin at this look: at each of the first 64, then 32 times an octave."""
    return look % max(1, (1 << max(look.bit_length() - 1, 0)) // _OCTAVE) == 0


def mean_interval(total: float, n: float, alpha: float) -> tuple[float, float]:
    """A confidence sequence for the mean of values in [0, 1], of which n add up to `total`.

    It holds the mean at all n at once with a chance of at least 1 - alpha. Values that are 0 or 1
    give Robbins' mixture of a binomial with a uniform prior; others vary less. Without any (0, 1).
    """
    if n <= 0:
        return 0.0, 1.0
    total = min(max(total, 0.0), n)
    evidence = math.lgamma(total + 1) + math.lgamma(n - total + 1) - math.lgamma(n + 2)

    def refuted(mean: float) -> bool:
        likelihood = 0.0
        for count, part in ((total, mean), (n - total, 1 - mean)):
            if count > 0:
                likelihood += count * math.log(part) if part > 0 else -math.inf
        return evidence - likelihood >= -math.log(alpha)

    def edge(outside: float) -> float:
        """Where a mean begins to be refuted; `outside` where it never is."""
        inside = total / n
        for _ in range(60 * refuted(outside)):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if refuted(middle) else (middle, outside)
        return outside

    return edge(0.0), edge(1.0)


def asymptotic_radius(n: float, alpha: float, tight_at: float = 1000.0) -> float:
    """By how many standard errors a confidence sequence for a mean of n values reaches out.

    In the limit of many values it holds at all n at once; at `tight_at` it is narrowest, as
    against the 1.96 of one look at 95%. Source: arXiv 2103.06476, theorem 2.2 and section 2.3.
    """
    if n <= 0:
        return math.inf
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tight_at  # its square
    scaled = n * rho
    return math.sqrt(2 * (scaled + 1) / scaled * (0.5 * math.log(scaled + 1) - math.log(alpha)))


def _log_gamma(x: Floats) -> Floats:
    """Of x >= 4, by Stirling's series: within 1e-7."""
    square = 1 / (x * x)
    series = (1 / 12 - square * (1 / 360 - square / 1260)) / x
    found: Floats = (x - 0.5) * np.log(x) - x + 0.5 * math.log(2 * math.pi) + series
    return found


def _log_sum_exp(values: Floats) -> float:
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum()))

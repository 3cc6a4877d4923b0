"""Is the mean of a bounded variable at least 0? Tests that are valid at every sample size.

Each tests many hypotheses at once, one a column: H_j says that column j has a mean below 0.
Rows are independent draws, the same for all columns. A true H_j is rejected with probability at
most `level`, whatever the distribution within the bounds; nothing is assumed about its shape.

Sources
    betting              Waudby-Smith and Ramdas 2020, arXiv 2010.09686: wealth that grows by
                         1 + bet * value is a supermartingale under H, hence exceeds 1 / level
                         with probability at most `level` (Ville's inequality)
    the size of a bet    Voracek and Orabona 2025, arXiv 2505.22422 (STaR-Bets): bet what, from the
                         wealth so far, is needed to arrive at 1 / level in the draws that are left
    Hoeffding-Bentkus    Bates, Angelopoulos, Lei, Malik and Jordan 2021, arXiv 2101.02703
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# (values float64[n, m], low, high, level) -> bool[m]; see `betting`.
MeanTest = Callable[[Floats, float, float, float], Bools]

# The largest bet, as a share of the one that could lose everything in one draw.
LARGEST_BET = 0.9
# The first guess at the second moment, before there are draws, counts as so many draws.
PRIOR_DRAWS = 10.0


def betting(values: Floats, low: float, high: float, level: float) -> Bools:
    """Which columns are shown to have a mean of 0 or more: bool[m].

    `values` float64[n, m], row i being draw i, in an order that does not depend on the values;
    `low`, `high`: no value is outside of them, by what is known before any is seen. The bets of
    row i depend on the rows before it alone, which is all that validity needs: their size decides
    how often a false H is rejected, never how often a true one is.
    """
    _check(values, low, high, level)
    n, m = values.shape
    if low >= 0:
        return np.ones(m, dtype=np.bool_)
    limit = LARGEST_BET / -low
    # What is bet against is a mean of 0, where variance and second moment are the same.
    squares = np.full(m, PRIOR_DRAWS * -low * max(high, 0.0) / 4)
    wealth = np.full(m, math.log(level))  # its logarithm, over that of the goal: 0 has arrived
    arrived = np.zeros(m, dtype=np.bool_)
    for i, row in enumerate(values):
        spread = np.sqrt(squares / (PRIOR_DRAWS + i) * (n - i))
        bet = np.sqrt(-2 * wealth) / np.maximum(spread, 1e-12)
        grown = wealth + np.log1p(np.minimum(bet, limit) * row)
        arrived |= grown >= 0
        # Who has arrived bets no more.
        wealth = np.where(arrived, 0.0, grown)
        squares += row * row
        if arrived.all():
            break
    return arrived


def hoeffding_bentkus(values: Floats, low: float, high: float, level: float) -> Bools:
    """As `betting`, from the mean alone: simple, but blind to how little the values may vary.

    In terms of the loss (high - value) / (high - low), in [0, 1], H says that its mean is at least
    a = high / (high - low); p = min(exp(-n kl(mean, a)), e P(Binomial(n, a) <= ceil(n mean))).
    """
    _check(values, low, high, level)
    n, m = values.shape
    if low >= 0:
        return np.ones(m, dtype=np.bool_)
    if high <= 0:
        return np.zeros(m, dtype=np.bool_)
    a = high / (high - low)
    # Rounding must not move a mean that is a whole number of losses up to the next one.
    losses = np.maximum((high - values).sum(axis=0) / (high - low) - 1e-9, 0.0)
    tails = np.cumsum(_binomial(n, a))
    rejected = np.empty(m, dtype=np.bool_)
    for j, total in enumerate(losses):
        mean = min(float(total) / n, a)
        bentkus = math.e * float(tails[min(math.ceil(total), n)])
        rejected[j] = min(math.exp(-n * _kl(mean, a)), bentkus) <= level
    return rejected


METHODS: dict[str, MeanTest] = {"betting": betting, "hoeffding-bentkus": hoeffding_bentkus}


def _kl(x: float, a: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(x) from Bernoulli(a), 0 < a < 1."""
    first = x * math.log(x / a) if x > 0 else 0.0
    second = (1 - x) * math.log((1 - x) / (1 - a)) if x < 1 else 0.0
    return max(first + second, 0.0)


def _binomial(n: int, a: float) -> Floats:
    """P(Binomial(n, a) = k) for k = 0 .. n."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    chosen = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    probability: Floats = np.exp(chosen + k * math.log(a) + (n - k) * math.log1p(-a))
    return probability


def _check(values: Floats, low: float, high: float, level: float) -> None:
    if not 0 < level < 1:
        raise CalibrationError(f"level {level!r} is no probability between 0 and 1")
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    if values.size and not (values.min() >= low - slack and values.max() <= high + slack):
        raise CalibrationError(
            f"values from {values.min():g} to {values.max():g} leave the bounds {low:g} to "
            f"{high:g} that the test relies on; give bounds that hold for every value"
        )

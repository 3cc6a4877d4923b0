"""Is the mean of a bounded variable at least 0? A test that is valid at every sample size.

It tests many hypotheses at once, one a column: H_j says that column j has a mean below 0.
Rows are independent draws, the same for all columns. A true H_j is rejected with probability at
most `level`, whatever the distribution within the bounds; nothing is assumed about its shape.

Sources
    betting              Waudby-Smith and Ramdas 2020, arXiv 2010.09686: wealth that grows by
                         1 + bet * value is a supermartingale under H, hence exceeds 1 / level
                         with probability at most `level` (Ville's inequality)
    the size of a bet    Voracek and Orabona 2025, arXiv 2505.22422 (STaR-Bets): bet what, from the
                         wealth so far, is needed to arrive at 1 / level in the draws that are left
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

LARGEST_BET = 0.9  # as a share of the one that could lose everything in one draw
PRIOR_DRAWS = 10.0  # the first guess at the second moment counts as so many draws


def betting(values: Floats, low: float, high: float, level: float) -> Bools:
    """Which columns are shown to have a mean of 0 or more: bool[m].

    `values` float64[n, m], row i being draw i, in an order that does not depend on the values;
    `low`, `high`: no value is outside of them, by what is known before any is seen. The bets of
    row i depend on the rows before it alone, which is all that validity needs: their size decides
    how often a false H is rejected, never how often a true one is.
    """
    check_values(values, low, high, level)
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
        wealth = np.where(arrived, 0.0, grown)  # who has arrived bets no more
        squares += row * row
        if arrived.all():
            break
    return arrived


def check_values(values: Floats, low: float, high: float, level: float) -> None:
    """Raises CalibrationError for a level or values that a test cannot rely on."""
    if not 0 < level < 1:
        raise CalibrationError(f"level {level!r} is no probability between 0 and 1")
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    if values.size and not (values.min() >= low - slack and values.max() <= high + slack):
        raise CalibrationError(
            f"values from {values.min():g} to {values.max():g} leave the bounds {low:g} to "
            f"{high:g} that the test relies on; give bounds that hold for every value"
        )

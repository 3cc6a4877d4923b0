"""Which rows stand for a log: systematic sampling along cluster and time, with their weights.

A row is drawn with a probability in proportion to the requests that it stands for. Drawn along an
order, each stretch of it gets its share to within one row: sorted by cluster and, within one, by
time, the sample has every cluster and every time in proportion without bins. Sums over the sample,
each row times its weight, are unbiased for the log (Horvitz and Thompson 1952, JASA 47).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sample:
    """`rows` int64[m] that were drawn, in ascending order, and the `weights` float64[m]."""

    rows: Numbers
    weights: Floats


def draw(
    weights: npt.ArrayLike,
    size: int,
    *,
    seed: int | Sequence[int],
    order: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    at_least: int = 0,
) -> Sample:
    """About `size` of n rows (exactly, but for one where probabilities do not sum to a whole).

    weights: float64[n], the requests that each row stands for. order: int64[n], the rows in the
    order to draw along; by default as they are. groups, at_least: int64[n] numbers from 0; of each
    group so many rows or all are expected in the sample, at the expense of the larger groups.
    With size >= n every row is taken. Raises ConfigError for a size below 1, or groups that do
    not fit into it.
    """
    w = np.asarray(weights, np.float64)
    if size < 1:
        raise ConfigError(f"a sample of {size}: expected at least 1")
    if size >= len(w):
        return Sample(np.arange(len(w)), w)
    if groups is None or not at_least:
        chance = chances(w, size)
    else:
        chance = _grouped(w, size, np.asarray(groups, np.int64), at_least)
    along = np.arange(len(w)) if order is None else np.asarray(order, np.int64)
    rows = np.sort(systematic(chance, along, np.random.default_rng(seed).random()))
    return Sample(rows, w[rows] / chance[rows])


def chances(weights: Floats, size: float) -> Floats:
    """Probabilities in proportion to the weights, 1 at most, that sum to `size`."""
    sure = np.zeros(len(weights), np.bool_)
    while size < len(weights):
        rest = np.where(sure, 0.0, weights)
        chance = (size - sure.sum()) * rest / rest.sum()
        over = chance >= 1.0
        if not over.any():
            return np.where(sure, 1.0, chance)
        sure |= over
    return np.ones(len(weights))


def systematic(chance: Floats, order: Numbers, start: float) -> Numbers:
    """Rows drawn with exactly these probabilities, along an order (Madow 1949); start in [0, 1)."""
    # A row is drawn where a whole number, moved by `start`, falls into its stretch. What rounding
    # adds to the sum must not draw one more.
    marks = np.floor(np.round(np.cumsum(chance[order]), 9) + start)
    drawn: Numbers = order[np.diff(marks, prepend=0.0) >= 1.0]
    return drawn


def _grouped(weights: Floats, size: int, groups: Numbers, at_least: int) -> Floats:
    """`chances` in each group, with sizes in proportion to its weight but `at_least` so many."""
    members = np.bincount(groups)
    floor = np.minimum(members, at_least).astype(np.float64)
    if floor.sum() > size:
        raise ConfigError(
            f"{at_least} of each of {np.count_nonzero(members)} clusters do not fit into a sample "
            f"of {size}: make it at least {int(floor.sum())}"
        )
    total = np.bincount(groups, weights=weights)
    sizes, small = floor, members == 0
    while not small.all():
        # What the groups at their floor leave is shared by the others.
        shares = np.where(small, 0.0, total)
        sizes = np.where(small, floor, (size - floor[small].sum()) * shares / shares.sum())
        below = sizes < floor
        if not below.any():
            break
        small |= below
        sizes = floor
    chance = np.zeros(len(weights))
    # More than a group has: it is taken whole, and the sample is smaller by the rest.
    for group in np.flatnonzero(members):
        inside = groups == group
        chance[inside] = chances(weights[inside], min(float(sizes[group]), members[group]))
    return chance

"""Which rows to label next, and what each then stands for.

Rows are drawn without replacement, at random, with known probabilities, in proportion to how many
requests each stands for: a share `explore` of the probability follows that alone, the rest also how
uncertain the router is about each. Because every probability is known and above 0, means over the
labels are kept unbiased by weights, whatever the router thought (Horvitz and Thompson 1952; for
rounds that depend on earlier labels, Farquhar, Gal and Rainforth 2021, arXiv 2101.11665).
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..data.logs import sampling
from ..data.logs.sampling import Floats
from ..errors import ConfigError
from .ledger import Round


def uncertainty(scores: npt.ArrayLike, threshold: float = 0.5) -> Floats:
    """How uncertain routers are about rows, float64[n] in [0, 1]; scores: float64[k, n] of k.

    One router is least certain at the threshold: there 1, falling to 0 at the end, 0 or 1, that is
    farther from it. The standard deviation of several routers' scores, as a share of the largest
    that there can be (0.5), takes its place where it is larger. Raises ConfigError for scores that
    are not in [0, 1].
    """
    s = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if not np.all((s >= 0) & (s <= 1)):
        raise ConfigError("a router's scores are not in [0, 1]")
    near: Floats = 1.0 - np.abs(s.mean(axis=0) - threshold) / max(threshold, 1.0 - threshold)
    found: Floats = np.maximum(near, s.std(axis=0) / 0.5)
    return found


def probabilities(
    doubt: npt.ArrayLike, n: int, *, explore: float = 0.3, mass: npt.ArrayLike = 1.0
) -> Floats:
    """The probability of each row to be among the n that are drawn, float64[rows], their sum n.

    doubt: float64[rows], each >= 0; mass: float64[rows], each > 0, what a row stands for. Raises
    ConfigError for an `explore` outside (0, 1]: some rows might never be drawn.
    """
    if not 0.0 < explore <= 1.0:
        raise ConfigError(f"--explore: expected a number above 0 and at most 1, got {explore}")
    size = np.asarray(mass, dtype=np.float64) * np.ones(np.shape(doubt))
    d = np.asarray(doubt, dtype=np.float64) * size
    even = size / size.sum()
    share = even if d.sum() <= 0 else explore * even + (1.0 - explore) * d / d.sum()
    return sampling.chances(share, n)


def systematic(p: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows drawn with exactly the probabilities `p`, float64[rows], in random order, so that the
    first of them are a sample of all."""
    drawn = sampling.systematic(p, rng.permutation(p.size), rng.random())
    return rng.permutation(drawn)


def next_round(
    masses: Mapping[str, float],
    drawn: Collection[str],
    n: int,
    *,
    seed: Sequence[int],
    doubt: Callable[[Sequence[str]], Floats] | None = None,
    explore: float = 0.3,
) -> Round:
    """Draw n rows that were not drawn yet, or all of them where there are fewer.

    masses: what each row stands for, by its id. doubt: the uncertainty of rows with these ids.
    seed: the same round of the same log is drawn alike.
    """
    known = set(drawn)
    left = [row for row in masses if row not in known]
    n = min(n, len(left))
    values = np.ones(len(left)) if doubt is None else doubt(left)
    p = probabilities(values, n, explore=explore, mass=[masses[row] for row in left])
    picked = systematic(p, np.random.default_rng(seed))
    return Round(len(left), {left[int(i)]: float(p[int(i)]) for i in picked})


def weights(rounds: Sequence[Round], labelled: Collection[str]) -> Mapping[str, float]:
    """What each labelled row stands for, with a mean of 1.

    Round t, with all rows of earlier rounds counted as they are and its own rows by 1 / p, makes an
    unbiased sum over the log, whatever the earlier labels were; the weights are those of the mean
    of these sums, a round counting as the number of its rows. Rows that were drawn and got no label
    are taken to be like the others of their round.
    """
    found = set(labelled)
    sizes = np.array([len(r.rows) for r in rounds], dtype=np.float64)
    part = sizes / max(1.0, sizes.sum())
    raw: dict[str, float] = {}
    for t, drawn in enumerate(rounds):
        got = [row for row in drawn.rows if row in found]
        later = float(part[t + 1 :].sum())
        for row in got:
            lost = len(drawn.rows) / len(got)
            raw[row] = lost * (float(part[t]) / drawn.rows[row] + later)
    mean = sum(raw.values()) / max(1, len(raw))
    return {row: value / mean for row, value in raw.items()}

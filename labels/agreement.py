"""How far two ways of labelling agree: observed agreement, and Cohen's kappa with an interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError

Floats = npt.NDArray[np.float64]

_DRAWS = 4000


def agreement(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Of two labels each for n things: {n, agreement, agreement_ci, kappa, kappa_ci, level}, as
    JSON.

    `kappa` is 1 for full agreement and 0 for what chance would give; null where both always say the
    same one thing (Cohen 1960). Intervals: quantiles of the posterior of the table of labels under
    a Dirichlet prior that weighs one pair in all (Perks 1947), which claims no certainty where a
    small sample agrees throughout. Raises EvaluationError where there are no pairs.
    """
    if len(first) != len(second) or not first:
        told = f"got {len(first)} and {len(second)}"
        raise EvaluationError(f"agreement: expected pairs of labels, {told}")
    kinds, index = np.unique([*first, *second], return_inverse=True)
    k, n = len(kinds), len(first)
    table = np.zeros((k, k))
    np.add.at(table, (index[:n], index[n:]), 1)
    share, kappa = (float(value[0]) for value in _measures(table[None] / n))
    if k == 1:
        # One more kind of label that nobody gave: else there is nothing to be uncertain about.
        table = np.pad(table, (0, 1))
        k = 2
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(table.ravel() + 1.0 / k**2, _DRAWS).reshape(-1, k, k)
    shares, kappas = _measures(drawn)
    known = not np.isnan(kappa)
    return {
        "n": n,
        "agreement": round(share, 4),
        "agreement_ci": _ends(shares, share, level),
        "kappa": round(kappa, 4) if known else None,
        "kappa_ci": _ends(kappas, kappa, level) if known else [None, None],
        "level": level,
    }


def _measures(tables: Floats) -> tuple[Floats, Floats]:
    """Observed agreement and kappa of tables of shares, float64[m, k, k] -> float64[m] each."""
    share = np.trace(tables, axis1=1, axis2=2)
    chance = np.sum(tables.sum(axis=1) * tables.sum(axis=2), axis=1)
    room = 1.0 - chance
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(room > 1e-12, (share - chance) / room, np.nan)
    return share, kappa


def _ends(samples: Floats, value: float, level: float) -> list[float]:
    tail = (1.0 - level) / 2
    low, high = np.nanquantile(samples, [tail, 1.0 - tail])
    # At the edge of what there can be, the estimate lies outside of all samples.
    return [round(min(float(low), value), 4), round(max(float(high), value), 4)]

"""How far two ways of labelling agree: observed agreement, and Cohen's kappa with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError

_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of n pairs of labels. `kappa` is 1 for full agreement and 0 for what chance would give; NaN
    where both always say the same one thing, which chance would too. Intervals at `level`."""

    n: int
    share: float
    share_ci: tuple[float, float]
    kappa: float
    kappa_ci: tuple[float, float]
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is not defined is null."""
        names = ("agreement", "agreement_ci", "kappa", "kappa_ci")
        values = (self.share, self.share_ci, self.kappa, self.kappa_ci)
        known = {name: _known(value) for name, value in zip(names, values, strict=True)}
        return {"n": self.n, **known, "level": self.level}


def agreement(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Agreement:
    """Of two labels each for n things; labels are compared as they are.

    Kappa: Cohen 1960. Intervals: quantiles of the posterior of the table of labels under a
    Dirichlet prior that weighs one pair in all (Perks 1947); unlike a bootstrap it does not claim
    certainty where a small sample agrees throughout.
    Raises EvaluationError where there are no pairs, or not as many of the one as of the other.
    """
    if len(first) != len(second) or not first:
        raise EvaluationError(
            f"agreement: expected pairs of labels, got {len(first)} and {len(second)}"
        )
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
    return Agreement(
        n,
        share,
        _ends(shares, share, level),
        kappa,
        (float("nan"), float("nan")) if np.isnan(kappa) else _ends(kappas, kappa, level),
        level,
    )


def _measures(
    tables: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Observed agreement and kappa of tables of shares, float64[m, k, k] -> float64[m] each."""
    share = np.trace(tables, axis1=1, axis2=2)
    chance = np.sum(tables.sum(axis=1) * tables.sum(axis=2), axis=1)
    room = 1.0 - chance
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(room > 1e-12, (share - chance) / room, np.nan)
    return share, kappa


def _ends(samples: npt.NDArray[np.float64], value: float, level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2
    low, high = np.nanquantile(samples, [tail, 1.0 - tail])
    # At the edge of what there can be, the estimate lies outside of all samples.
    return min(float(low), value), max(float(high), value)


def _known(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_known(end) for end in value]
    return None if np.isnan(value) else round(value, 4)

"""Ridge regression in blocks, whose strengths the data choose: the heads of mf are fitted with it.

    y = mean + slope * base + sum over blocks c of x_c . w_c + noise,
    slope ~ N(s0, (s0 / 2)^2),  w_c ~ N(0, v_c / width_c)

The variances v_c and the noise are those that make the labels likeliest (type-II maximum
likelihood, MacKay 1992, Neural Computation 4, "Bayesian interpolation"), held by a weak prior, so
that nothing is left to tune: with few labels the blocks shrink to nothing and the base score stays,
with many they take over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import TrainingError, require_extra

Floats = npt.NDArray[np.float64]

# Beyond so many labels the variances are estimated on a part of them: the cost grows with the cube,
# and a handful of numbers does not need more.
MAX_FOR_VARIANCES = 1500
# The prior on the logarithm of each variance, in units of the variance of y: what did best with 100
# and 300 labels of tasks of the training sources.
PRIOR_BLOCK, PRIOR_NOISE, PRIOR_SD = np.log(0.03), 0.0, 0.5


@dataclass(frozen=True)
class Block:
    """Columns start to stop. own_units: each column is scaled by itself (cheap features); else all
    share one unit, which carries meaning (the directions of an encoder's layers)."""

    start: int
    stop: int
    own_units: bool = False

    @property
    def columns(self) -> slice:
        """The block's columns."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Variances:
    """v_c and noise in units of y squared. evidence: the log likelihood of the labels with the
    blocks minus without them (base and mean alone), in nats; at or below 0 the blocks say nothing.
    """

    blocks: tuple[float, ...]
    noise: float
    evidence: float


@dataclass(frozen=True)
class BlockFit:
    """Prediction = intercept + slope * base + x @ weights.

    weights float64[width], zero for the columns that vary nowhere. evidence: see `Variances`.
    """

    weights: Floats
    intercept: float
    slope: float
    evidence: float

    def predict(self, x: npt.NDArray[np.floating], base: Floats | None = None) -> Floats:
        """float64[m] for x [m, width] and base float64[m]."""
        value: Floats = x @ self.weights + self.intercept
        return value if base is None else value + self.slope * base


def fit_blocks(
    x: npt.NDArray[np.floating],
    y: Floats,
    blocks: Sequence[Block],
    *,
    variances: Variances,
    weight: Floats | None = None,
    base: Floats | None = None,
    base_slope: float = 0.0,
) -> BlockFit:
    """Fit on x [n, width] and y float64[n]; every column belongs to one of `blocks`.

    variances: see `estimate_variances`. weight float64[n]: of the rows. base: a score that is known
    already, float64[n], with the slope that is expected of it.
    """
    n, width = x.shape
    z, center, scale = _standardized(x, blocks)
    columns = [z, np.ones((n, 1))]
    penalty = np.zeros(width + 1)
    for block, variance in zip(blocks, variances.blocks, strict=True):
        penalty[block.columns] = variances.noise / variance
    target = y.astype(np.float64)
    if base is not None:
        columns.append(base[:, None])
        penalty = np.append(penalty, variances.noise / max((base_slope / 2) ** 2, 1e-12))
        target = target - base_slope * base
    root = _root(weight, n)
    design = np.concatenate(columns, axis=1) * root[:, None]
    gram = design.T @ design
    gram[np.diag_indices_from(gram)] += penalty
    solution = np.linalg.solve(gram, design.T @ (target * root))
    weights = solution[:width] * scale
    return BlockFit(
        weights=weights,
        intercept=float(solution[width]) - float(center @ weights),
        slope=0.0 if base is None else base_slope + float(solution[width + 1]),
        evidence=variances.evidence,
    )


def estimate_variances(
    x: npt.NDArray[np.floating],
    y: Floats,
    blocks: Sequence[Block],
    *,
    weight: Floats | None = None,
    base: Floats | None = None,
    base_slope: float = 0.0,
    seed: int = 0,
) -> Variances:
    """The likeliest variances for x [n, width] and y float64[n] (see `fit_blocks`).

    Raises TrainingError for fewer than 10 rows, or a y that does not vary.
    """
    optimize = require_extra("scipy.optimize", "fit")
    linalg = require_extra("scipy.linalg", "fit")
    n = len(y)
    if n < 10 or float(np.ptp(y)) == 0.0:
        raise TrainingError(
            f"{n} labels, {len(np.unique(y))} different: at least 10 labels are needed, and not "
            "all the same"
        )
    z, _, _ = _standardized(x, blocks)
    root = _root(weight, n)
    if n > MAX_FOR_VARIANCES:
        n = MAX_FOR_VARIANCES
        part = np.random.default_rng(seed).choice(len(y), n, replace=False)
        z, y, root = z[part], y[part], root[part]
        base = None if base is None else base[part]
    total = float(y.var())
    residual = y - np.average(y, weights=root**2)
    # What every model has: a mean of unknown size, and the slope of the base.
    fixed = np.outer(root, root) * total
    z = z * root[:, None]
    if base is not None:
        centred = base - np.average(base, weights=root**2)
        residual = residual - base_slope * centred
        centred = centred * root
        fixed += np.outer(centred, centred) * (base_slope / 2) ** 2
    residual = residual * root
    kernels = [
        np.asarray(z[:, block.columns] @ z[:, block.columns].T, dtype=np.float64)
        for block in blocks
    ]

    def loss(log: Floats, parts: Sequence[Floats]) -> tuple[float, Floats]:
        """Minus the log posterior of the logarithms of variances and noise, and its gradient."""
        *v, noise = np.exp(log) * total
        pairs = list(zip(v, parts, strict=True))
        covariance = fixed + sum((value * part for value, part in pairs), np.zeros((n, n)))
        covariance[np.diag_indices(n)] += noise
        factor = linalg.cho_factor(covariance, lower=True, check_finite=False)
        inverse = linalg.cho_solve(factor, np.eye(n), check_finite=False)
        alpha = inverse @ residual
        nll = 0.5 * residual @ alpha + np.log(np.diag(factor[0])).sum()
        slopes = [0.5 * value * (np.sum(inverse * k) - alpha @ k @ alpha) for value, k in pairs]
        slopes.append(0.5 * noise * (np.trace(inverse) - alpha @ alpha))
        mean = np.append(np.full(len(parts), PRIOR_BLOCK), PRIOR_NOISE)
        gradient = np.array(slopes) + (log - mean) / PRIOR_SD**2
        return float(nll + 0.5 * np.sum(((log - mean) / PRIOR_SD) ** 2)), gradient

    def best(parts: Sequence[Floats]) -> tuple[Floats, float]:
        start = np.append(np.full(len(parts), PRIOR_BLOCK), np.log(0.9))
        bounds = [(-9.0, 2.0)] * len(parts) + [(-4.0, 1.0)]
        found = optimize.minimize(
            loss, start, args=(parts,), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 30},
        )  # fmt: skip
        return found.x, float(found.fun)

    log, with_blocks = best(kernels)
    _, without = best([])
    values = np.exp(log) * total
    return Variances(tuple(values[:-1].tolist()), float(values[-1]), without - with_blocks)


def cross_validated(
    x: npt.NDArray[np.floating],
    y: Floats,
    blocks: Sequence[Block],
    fold: npt.NDArray[np.integer],
    *,
    variances: Variances,
    weight: Floats | None = None,
    base: Floats | None = None,
    base_slope: float = 0.0,
) -> Floats:
    """Predictions float64[n] of each row by a fit on the other folds, variances as given."""
    predicted = np.empty(len(y))
    for held in np.unique(fold):
        out = fold == held
        fitted = fit_blocks(
            x[~out], y[~out], blocks, variances=variances, base_slope=base_slope,
            weight=None if weight is None else weight[~out],
            base=None if base is None else base[~out],
        )  # fmt: skip
        predicted[out] = fitted.predict(x[out], None if base is None else base[out])
    return predicted


def _root(weight: Floats | None, n: int) -> Floats:
    """Square roots of weights of mean 1: what a row is multiplied with."""
    return np.ones(n) if weight is None else np.asarray(np.sqrt(weight / weight.mean()))


def _standardized(
    x: npt.NDArray[np.floating], blocks: Sequence[Block]
) -> tuple[Floats, Floats, Floats]:
    """Columns centred, each block scaled so that its rows have a mean square length of 1.

    Returns z, the centre and the factor on each column.
    """
    values = np.asarray(x, dtype=np.float64)
    center = values.mean(0)
    values = values - center
    factor = np.ones(values.shape[1])
    for block in blocks:
        at = block.columns
        part = values[:, at]
        if block.own_units:
            spread = part.std(0)
            factor[at] = np.where(spread > 1e-9, 1 / np.maximum(spread, 1e-9), 0.0)
        length = float(np.sqrt(np.mean(np.sum((part * factor[at]) ** 2, axis=1))))
        factor[at] /= max(length, 1e-12)
    return values * factor, center, factor

"""Matrix factorization: quality_m(q) = v_m . (W1 r(q) + b1), r(q) the encoder's representation.

The score of a pair is quality_strong - quality_weak, calibrated. After RouteLLM (Ong et al. 2024,
arXiv 2406.18665, section 4.2: delta = w2^T (v_m * W1^T v_q)), with its w2 folded into v_m, a bias,
and a frozen local encoder. Where RouteLLM fits all factors by gradient descent on wins, here the
first hidden direction is the one that routing needs (how much better the strong answer is expected
to be), fitted in closed form with strengths that the labels choose (`training.ridge`), and a
model's coordinate on it is its ability: it needs few labels, no epochs, and gives the same result
every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data.tables import ComparisonTable, PairTable
from ..router.errors import TrainingError
from ..router.features import FEATURES
from .ridge import Block, BlockFit, cross_validated, estimate_variances, fit_blocks

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

# What a base score of standard deviation 1 says of the gain, as a share of the gain's own standard
# deviation: measured on the training sources, leaving each out in turn (docs/results.md).
BASE_SLOPE = 0.14


@dataclass(frozen=True)
class MFSettings:
    """folds: of the cross-validation that calibrates and gives the card's figures. min_labels:
    with fewer the base bundle's own direction stands as it is."""

    folds: int = 5
    min_labels: int = 50


@dataclass(frozen=True)
class Direction:
    """x @ weights + intercept, weights float64[width]."""

    weights: Floats
    intercept: float

    def __call__(self, x: npt.NDArray[np.floating]) -> Floats:
        """float64[n] for x [n, width]."""
        value: Floats = np.asarray(x, dtype=np.float64) @ self.weights + self.intercept
        return value


@dataclass(frozen=True)
class PairFit:
    """The routing direction of one pair, and what is known of it.

    out_of_fold float64[n]: the margin of each prompt by a fit without its fold. used: "labels", or
    "base" where the labels are too few to say more than the base bundle does.
    """

    direction: Direction
    out_of_fold: Floats
    used: str
    fit: BlockFit | None


def representation_blocks(width: int) -> tuple[Block, ...]:
    """The blocks of a representation: the encoder's layers, and the cheap features."""
    layers = width - len(FEATURES)
    return Block(0, layers), Block(layers, width, own_units=True)


def fit_pair(
    x: npt.NDArray[np.floating],
    table: PairTable,
    fold: npt.NDArray[np.integer],
    *,
    base: Direction | None = None,
    settings: MFSettings | None = None,
    seed: int = 0,
) -> PairFit:
    """Fit the gain (strong - weak) on representations x [n, width] of the table's prompts.

    fold int[n]: folds of the cross-validation; copies of a prompt share one. base: the direction of
    the bundle that is started from. Raises TrainingError where nothing can be learned and there is
    no base.
    """
    settings = settings or MFSettings()
    y = table.strong - table.weak
    if base is not None and (len(y) < settings.min_labels or float(np.ptp(y)) == 0.0):
        return PairFit(base, base(x), "base", None)
    known = None if base is None else base(x)
    unit = 1.0
    center = 0.0
    if known is not None:
        center, unit = float(known.mean()), max(float(known.std()), 1e-12)
        known = (known - center) / unit
    slope = BASE_SLOPE * float(y.std())
    blocks = representation_blocks(x.shape[1])
    variances = estimate_variances(
        x, y, blocks, weight=table.weight, base=known, base_slope=slope, seed=seed
    )
    fitted = fit_blocks(
        x, y, blocks, weight=table.weight, base=known, base_slope=slope, variances=variances
    )
    direction = _joined(fitted, base, center, unit)
    out = cross_validated(
        x, y, blocks, fold, weight=table.weight, base=known, base_slope=slope, variances=variances
    )
    return PairFit(direction, out, "labels", fitted)


def _joined(fitted: BlockFit, base: Direction | None, center: float, unit: float) -> Direction:
    """One direction of a fit on top of a base, which is linear in the representation too."""
    if base is None:
        return Direction(fitted.weights, fitted.intercept)
    factor = fitted.slope / unit
    return Direction(
        fitted.weights + factor * base.weights,
        fitted.intercept + factor * (base.intercept - center),
    )


@dataclass(frozen=True)
class Factors:
    """w1 float32[d, width], b1 float32[d], u float32[n_models, d]: what `graft_head` takes."""

    models: list[str]
    w1: Floats32
    b1: Floats32
    u: Floats32

    def quality(self, x: npt.NDArray[np.floating]) -> Floats32:
        """float32[n, n_models] for x [n, width]."""
        hidden = np.asarray(x, dtype=np.float32) @ self.w1.T + self.b1
        result: Floats32 = (hidden @ self.u.T).astype(np.float32)
        return result


def factors(direction: Direction, abilities: dict[str, float], pair: Sequence[str]) -> Factors:
    """One hidden direction, each model's coordinate its ability.

    abilities: by model; the two of `pair` (models, or names of tiers) are 1 apart, so that the
    pair's margin is the direction itself.
    """
    strong, weak = pair
    gap = abilities[strong] - abilities[weak]
    if gap <= 0:
        raise TrainingError(
            f"{strong} is not better than {weak} in this data: there is nothing to route; swap "
            "them, or choose others"
        )
    u = np.array([[ability / gap] for ability in abilities.values()])
    return Factors(
        list(abilities),
        direction.weights[None].astype(np.float32),
        np.array([direction.intercept], dtype=np.float32),
        u.astype(np.float32),
    )


def tier_abilities(
    comparisons: ComparisonTable, tiers: tuple[Sequence[str], Sequence[str]], pair: Sequence[str]
) -> dict[str, float]:
    """Ability of every model of the comparisons, and of the two tiers, strong 1/2 and weak -1/2.

    Least squares on the share of wins: E[win of a over b] = c + a_a - a_b; the tiers' means are
    then 1 apart. A model that stands in `pair` itself is its own tier.
    """
    names = list(comparisons.models)
    k = len(names)
    if all(len(tier) == 1 for tier in tiers):
        return {tiers[0][0]: 0.5, tiers[1][0]: -0.5}
    codes = comparisons.a.astype(np.int64) * k + comparisons.b
    cells, at = np.unique(codes, return_inverse=True)
    mass = np.bincount(at, comparisons.weight)
    wins = np.bincount(at, comparisons.weight * comparisons.win) / np.maximum(mass, 1e-12)
    design = np.zeros((len(cells), k + 1))
    rows = np.arange(len(cells))
    design[rows, cells // k] += 1
    design[rows, cells % k] -= 1
    design[:, k] = 1
    scaled = design * np.sqrt(mass)[:, None]
    # A little ridge: only differences between models that meet are determined.
    gram = scaled.T @ scaled + 1e-6 * mass.sum() * np.eye(k + 1)
    solution = np.linalg.solve(gram, scaled.T @ (wins * np.sqrt(mass)))
    found = dict(zip(names, solution[:k].tolist(), strict=True))
    means = [float(np.mean([found[m] for m in tier if m in found])) for tier in tiers]
    middle, gap = sum(means) / 2, means[0] - means[1]
    if gap <= 0:
        raise TrainingError(
            "the strong tier does not win more often than the weak one in this data: there is "
            "nothing to route; swap them, or choose others"
        )
    result = {name: (ability - middle) / gap for name, ability in found.items()}
    for name, value in zip(pair, (0.5, -0.5), strict=True):
        result.setdefault(name, value)
    # Where a tier is one model, its own coordinate is the tier's.
    for name, tier, value in zip(pair, tiers, (0.5, -0.5), strict=True):
        if len(tier) == 1:
            result[name] = value
    return result

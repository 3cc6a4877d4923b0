"""Matrix factorization: quality_m(q) = v_m . (W1 r(q) + b1), r(q) the encoder's representation.

The score of a pair is quality_strong - quality_weak, calibrated. After RouteLLM (Ong et al. 2024,
arXiv 2406.18665, section 4.2: delta = w2^T (v_m * W1^T v_q)), with its w2 folded into v_m, a bias,
and a frozen local encoder. Where RouteLLM fits all factors by gradient descent on wins, here the
hidden directions are those that routing needs (how much better the strong answer is expected to
be), fitted in closed form with strengths that the labels choose (`training.ridge`), and a model's
coordinates on them go with its ability: it needs few labels, no epochs, and gives the same result
every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...data.tables import ComparisonTable
from ...errors import TrainingError
from ...router.features import FEATURES
from .ridge import Block, BlockFit, cross_validated, estimate_variances, fit_blocks

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

# In log odds: tiers nearer to each other than this say nothing about who is better.
MIN_TIER_GAP = 0.2
# What a base score of standard deviation 1 says of the gain, as a share of the gain's own standard
# deviation: measured on the training sources, leaving each out in turn (docs/results.md).
BASE_SLOPE = 0.14
# Prompts that are looked up among the points of a gate at once.
BLOCK = 1024


@dataclass(frozen=True)
class MFSettings:
    """folds: of the cross-validation that calibrates and gives the card's figures. min_labels:
    with fewer the base bundle's own direction stands as it is. min_evidence: it stands too where
    the evidence (`ridge.BlockFit`) is no more than this; None takes the labels at any. On families
    left out, 100 labels, 0 makes harm rarer and the mean no better (docs/results.md)."""

    folds: int = 5
    min_labels: int = 50
    min_evidence: float | None = None


@dataclass(frozen=True)
class Gate:
    """How familiar a prompt is: 0 where it is like nothing that was trained on, 1 where it is; and
    what its nearest neighbours were like.

    A prompt is looked up by its last layer (`columns` of a representation), projected onto
    `projection` float32[dim, p] and made of unit length; where that is None, as it is. points
    float32[k, p], or int8[k, p] that are multiplied by `scale`: training prompts, or means of
    clusters of them, of unit length. The largest cosine with one of them gives 0 at low or less, 1
    at high or more, linear between.
    values float32[k]: what is known of each point, None where nothing is; `recalled` is the mean of
    the `neighbours` nearest, by the softmax of their cosines over `temperature`.
    """

    points: Floats32 | npt.NDArray[np.int8]
    low: float
    high: float
    columns: tuple[int, int]
    scale: float = 1.0
    projection: Floats32 | None = None
    values: Floats32 | None = None
    neighbours: int = 1
    temperature: float = 1.0

    def __call__(self, x: npt.NDArray[np.floating]) -> Floats:
        """float64[n], in [0, 1], for x [n, width]."""
        return self._open(self._cosines(x).max(1))

    def recalled(self, x: npt.NDArray[np.floating]) -> Floats:
        """The neighbours' mean value, float64[n], for x [n, width]; 0 where no values are known."""
        return self.look_up(x)[1]

    def look_up(self, x: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
        """How familiar the prompts are, and their neighbours' mean value, float64[n] each."""
        opened, recalled = np.empty(len(x)), np.zeros(len(x))
        for start in range(0, len(x), BLOCK):  # n times k cosines would be a gigabyte
            rows = slice(start, start + BLOCK)
            cosines = self._cosines(x[rows])
            opened[rows] = self._open(cosines.max(1))
            if self.values is not None:
                recalled[rows] = nearest_mean(
                    cosines, self.values, self.neighbours, self.temperature
                )
        return opened, recalled

    def _open(self, nearest: npt.NDArray[np.floating]) -> Floats:
        value: Floats = np.clip((nearest - self.low) / (self.high - self.low), 0.0, 1.0)
        return value.astype(np.float64)

    def _cosines(self, x: npt.NDArray[np.floating]) -> Floats32:
        asked = np.asarray(x, dtype=np.float32)[:, slice(*self.columns)]
        if self.projection is not None:
            asked = unit_rows(asked @ self.projection)
        cosines: Floats32 = asked @ (self.points.T.astype(np.float32) * np.float32(self.scale))
        return cosines


def unit_rows(x: Floats32) -> Floats32:
    """x [n, p] with rows of unit length; a row of zeros stays one."""
    lengths = np.sqrt(np.square(x).sum(1, keepdims=True))
    rows: Floats32 = (x / np.maximum(lengths, np.float32(1e-9))).astype(np.float32)
    return rows


def nearest_mean(
    cosines: Floats32, values: Floats32, neighbours: int, temperature: float
) -> Floats:
    """Mean value of the nearest points, weighted by softmax(cosine / temperature), float64[n].

    cosines float32[n, k], values float32[k], neighbours at most k.
    """
    cut = cosines.shape[1] - neighbours
    at = np.argpartition(cosines, cut, axis=1)[:, cut:]
    near = np.take_along_axis(cosines, at, 1).astype(np.float64)
    weight = np.exp((near - near.max(1, keepdims=True)) / temperature)
    mean: Floats = (weight * values[at]).sum(1) / weight.sum(1)
    return mean


@dataclass(frozen=True)
class Head:
    """quality = ((x @ w1.T + b1 + r * recall) * f) @ u.T. What was learned of one domain counts
    where a prompt is of that domain: with g the gate, f is g for the hidden directions with gated =
    1, 1 - g for those with -1, and 1 for those with 0; r is what the gate recalls of neighbours.

    w1 float32[d, width], b1 float32[d], u float32[n_models, d], gated int8[d], recall float32[d];
    gate is None where no direction is gated, recall None where none uses neighbours.
    """

    models: list[str]
    w1: Floats32
    b1: Floats32
    u: Floats32
    gated: npt.NDArray[np.int8]
    gate: Gate | None = None
    recall: Floats32 | None = None

    def hidden(self, x: npt.NDArray[np.floating]) -> Floats32:
        """float32[n, d] for x [n, width]."""
        hidden = np.asarray(x, dtype=np.float32) @ self.w1.T + self.b1
        if self.gate is not None:
            opened, recalled = (found[:, None] for found in self.gate.look_up(x))
            if self.recall is not None:
                hidden = hidden + recalled * self.recall
            hidden = hidden * np.where(
                self.gated == 1, opened, np.where(self.gated == -1, 1 - opened, 1.0)
            )
        return hidden.astype(np.float32)

    def quality(self, x: npt.NDArray[np.floating]) -> Floats32:
        """float32[n, n_models] for x [n, width]."""
        result: Floats32 = (self.hidden(x) @ self.u.T).astype(np.float32)
        return result

    def margin(self, x: npt.NDArray[np.floating], strong: str, weak: str) -> Floats:
        """Quality of strong minus quality of weak, float64[n]."""
        row = self.u[self.models.index(strong)] - self.u[self.models.index(weak)]
        value: Floats = (self.hidden(x) @ row).astype(np.float64)
        return value


@dataclass(frozen=True)
class Base:
    """What is started from: a head and the pair whose margin is taken as known."""

    head: Head
    strong: str
    weak: str

    def __call__(self, x: npt.NDArray[np.floating]) -> Floats:
        """The pair's margin, float64[n]."""
        return self.head.margin(x, self.strong, self.weak)


@dataclass(frozen=True)
class PairFit:
    """The routing margin of one pair: slope * known + x @ weights + intercept.

    weights float64[width]. out_of_fold float64[n]: the margin of each prompt by a fit without its
    fold. used: "labels", or "base" where the labels are too few to say more than the base does.
    """

    weights: Floats
    intercept: float
    slope: float
    out_of_fold: Floats
    used: str
    fit: BlockFit | None

    def margin(self, x: npt.NDArray[np.floating], known: Floats | None = None) -> Floats:
        """float64[n] for x [n, width] and the margins that were known before, float64[n]."""
        value: Floats = np.asarray(x, dtype=np.float64) @ self.weights + self.intercept
        return value if known is None else value + self.slope * known


def representation_blocks(width: int, features: int = len(FEATURES)) -> tuple[Block, ...]:
    """The blocks of a representation: the encoder's layers, and its last columns, the features."""
    layers = width - features
    return Block(0, layers), Block(layers, width, own_units=True)


def fit_pair(
    x: npt.NDArray[np.floating],
    gain: Floats,
    fold: npt.NDArray[np.integer],
    *,
    weight: Floats | None = None,
    known: Floats | None = None,
    features: int = len(FEATURES),
    settings: MFSettings | None = None,
    seed: int = 0,
) -> PairFit:
    """Fit the gain (score of strong minus score of weak) of n prompts.

    x [n, width]: their representations, whose last `features` columns are cheap features. fold
    int[n]: folds of the cross-validation; copies of a prompt share one. known float64[n]: the
    margins by the bundle that is started from; with fewer labels than `settings.min_labels`, labels
    that are all the same, or no more evidence than `settings.min_evidence`, they stand as they are.
    Raises TrainingError where nothing can be learned and nothing is known.
    """
    settings = settings or MFSettings()
    if known is not None and (len(gain) < settings.min_labels or float(np.ptp(gain)) == 0.0):
        return _as_known(x, known)
    center, unit, base = 0.0, 1.0, None
    if known is not None:
        center, unit = float(known.mean()), max(float(known.std()), 1e-12)
        base = (known - center) / unit
    slope = BASE_SLOPE * float(gain.std())
    blocks = representation_blocks(x.shape[1], features)
    variances = estimate_variances(
        x, gain, blocks, weight=weight, base=base, base_slope=slope, seed=seed
    )
    least = settings.min_evidence
    if known is not None and least is not None and variances.evidence <= least:
        return _as_known(x, known)
    fitted = fit_blocks(
        x, gain, blocks, weight=weight, base=base, base_slope=slope, variances=variances
    )
    out = cross_validated(
        x, gain, blocks, fold, weight=weight, base=base, base_slope=slope, variances=variances
    )
    factor = fitted.slope / unit
    intercept = fitted.intercept - factor * center
    return PairFit(fitted.weights, intercept, factor, out, "labels", fitted)


def _as_known(x: npt.NDArray[np.floating], known: Floats) -> PairFit:
    return PairFit(np.zeros(x.shape[1]), 0.0, 1.0, known, "base", None)


def pair_head(
    found: PairFit, abilities: dict[str, float], pair: Sequence[str], base: Base | None = None
) -> Head:
    """A head whose margin of `pair` is the one that was fitted.

    abilities: by model; a model's coordinates are its ability times those of the pair's margin. The
    hidden directions of the base stay, gate and all; the fitted one comes beside them.
    """
    strong, weak = pair
    gap = abilities[strong] - abilities[weak]
    if gap <= 0:
        raise TrainingError(
            f"{strong} is not better than {weak} in this data: there is nothing to route; swap "
            "them, or choose others"
        )
    w1 = found.weights[None].astype(np.float32)
    b1 = np.array([found.intercept], dtype=np.float32)
    margin = np.ones(1)
    gated = np.zeros(1, dtype=np.int8)
    if base is not None:
        head = base.head
        row = head.u[head.models.index(base.strong)] - head.u[head.models.index(base.weak)]
        w1, b1 = np.concatenate((head.w1, w1)), np.concatenate((head.b1, b1))
        margin = np.concatenate((found.slope * row, margin))
        gated = np.concatenate((head.gated, gated))
    u = np.outer([ability / gap for ability in abilities.values()], margin)
    if base is None:
        return Head(list(abilities), w1, b1, u.astype(np.float32), gated)
    recall = base.head.recall
    if recall is not None:
        recall = np.concatenate((recall, np.zeros(1, np.float32)))
    return Head(list(abilities), w1, b1, u.astype(np.float32), gated, base.head.gate, recall)


def tier_abilities(
    comparisons: ComparisonTable, tiers: tuple[Sequence[str], Sequence[str]], pair: Sequence[str]
) -> dict[str, float]:
    """Ability of every model of the comparisons and of the two tiers, weak -1/2 and strong +1/2.

    In each source the logit of a model's mean score, on the scale where the tiers' means are -1/2
    and +1/2; then the mean over sources, by prompts: sources are of different difficulty, and what
    compares models is how they do on the same prompts. Sources where the tiers hardly differ tell
    nothing. A tier of one model is that model. Raises TrainingError where strong is not better.
    """
    if all(len(tier) == 1 for tier in tiers):
        return {tiers[0][0]: 0.5, tiers[1][0]: -0.5}
    names = list(comparisons.models)
    k = len(names)
    of_prompt = np.array(comparisons.source)[comparisons.prompt_index]
    total, mass = np.zeros(k), np.zeros(k)
    for source in sorted(set(comparisons.source)):
        rows = of_prompt == source
        sums, counts = np.zeros(k), np.zeros(k)
        for side, score in (
            (comparisons.a, comparisons.strong_score), (comparisons.b, comparisons.weak_score),
        ):  # fmt: skip
            weight = comparisons.weight[rows]
            sums += np.bincount(side[rows], weight * score[rows], k)
            counts += np.bincount(side[rows], weight, k)
        seen = counts > 0
        logit = np.zeros(k)
        logit[seen] = log_odds(sums[seen] / counts[seen])
        means = [
            np.mean([logit[i] for i in range(k) if seen[i] and names[i] in tier]) for tier in tiers
        ]
        gap = float(means[0] - means[1])
        if not gap >= MIN_TIER_GAP:
            continue
        prompts = len(np.unique(comparisons.prompt_index[rows]))
        total[seen] += prompts * ((logit[seen] - means[1]) / gap - 0.5)
        mass[seen] += prompts
    if not mass.any():
        raise TrainingError(
            "the strong tier is not better than the weak one in any source of this data: there is "
            "nothing to route; swap them, or choose others"
        )
    # A model that only such sources know stands where its tier does.
    result = {
        name: float(total[i] / mass[i]) if mass[i] else 0.5 if name in tiers[0] else -0.5
        for i, name in enumerate(names)
    }
    for name, value in zip(pair, (0.5, -0.5), strict=True):
        result[name] = value
    return result


def log_odds(share: npt.ArrayLike) -> Floats:
    """log(p / (1 - p)), with shares kept two hundredths away from 0 and 1."""
    p = np.clip(np.asarray(share, dtype=np.float64), 0.02, 0.98)
    value: Floats = np.log(p / (1 - p))
    return value

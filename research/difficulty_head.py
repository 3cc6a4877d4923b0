"""The head of the built-in bundles: what makes a prompt hard, of ordinary ones and of benchmarks'.

Its margin is a sum of two directions, each linear in the representation. The *ordinary* one is a
ridge on the corpus of ordinary prompts: how much likelier a strong model's answer satisfies, as
language models judged it. The *general* one says which items of benchmarks are hard, whatever the
task and the models, and counts where a *gate* says that a prompt is like those of benchmarks: there
longer prompts are harder, which is wrong for ordinary ones.

The general direction has three parts. The *slopes* are how the cheap features go with difficulty
within tasks, all tasks counting alike and nothing about differences between tasks. The *ridge* is
fitted on the encoder's layers with half of what sets tasks apart taken out. The *length* stands for
itself besides, since it is the one feature that helps nearly everywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.tables import PairTable
from ..errors import require_extra
from ..router.features import FEATURES
from ..training.models.head import LOOKED_UP, Gate, Head, Memory, unit_rows
from ..training.models.mf import representation_blocks
from ..training.models.ridge import estimate_variances, fit_blocks
from .difficulty import DifficultyTable

Floats = npt.NDArray[np.float64]

# The quotas by which the corpus was written: characters, and the weak tier's rating.
LENGTHS, DIFFICULTIES = (80, 301), (0.4, 0.7, 0.9)


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
class GeneralSettings:
    """Chosen by leaving out one family of tasks at a time (docs/results.md).

    slope_ridge: in units of the features' variance. layer_ridge: for layers of unit length, per
    prompt. between: share of the difference between tasks that the ridge may explain. slopes, mix,
    length: weights of the scores of the slopes, of the ridge, and of the logarithm of the tokens,
    each standardized. balance: a prompt weighs (prompts of its task) ** -balance in the ridge.
    weak_fails: share of "the weak answer falls short" in the label of ordinary prompts. gated:
    weight of the general direction where the gate is open, the ordinary one having 1. prior: how
    much more a prompt that is ordinary counts for the gate than one that is not. gate_strength: of
    its logistic regression (C). memory_points, memory_dim, memory_percentiles: see `fit_memory`.
    """

    slope_ridge: float = 0.3
    layer_ridge: float = 0.1
    between: float = 0.5
    slopes: float = 1.0
    mix: float = 0.5
    length: float = 0.5
    balance: float = 0.5
    weak_fails: float = 0.5
    gated: float = 1.0
    prior: float = 10.0
    gate_strength: float = 0.01
    memory_points: int = 2048
    memory_dim: int = 64
    memory_percentiles: tuple[float, float] = (1.0, 20.0)


def general_direction(
    x: npt.NDArray[np.floating],
    table: DifficultyTable,
    weight: Floats,
    settings: GeneralSettings | None = None,
    *,
    tuned: Floats | None = None,
) -> Direction:
    """The difficulty of prompts, of mean 0 and variance 1 on x [n, width].

    x: representations of the table's prompts, of which the last columns are FEATURES. weight
    float64[n]: factors on the prompts. tuned float64[width - len(FEATURES)]: what a tuned encoder's
    head says (`finetune_encoder.hard_direction`), in place of the ridge.
    """
    settings = settings or GeneralSettings()
    layers = x.shape[1] - len(FEATURES)
    values = np.asarray(x, dtype=np.float64)
    slopes = _slopes(values[:, layers:], table, weight, settings)
    ridge = _ridge(values[:, :layers], table, weight, settings) if tuned is None else tuned
    length = np.zeros(len(FEATURES))
    length[FEATURES.index("tokens")] = 1.0
    direction = np.zeros(x.shape[1])
    for columns, part, factor in (
        (slice(layers, None), slopes, settings.slopes),
        (slice(layers, None), length, settings.length),
        (slice(0, layers), ridge, settings.mix),
    ):
        spread = float((values[:, columns] @ part).std())
        if spread > 1e-6:  # else it tells nothing: all prompts have one length, say
            direction[columns] += factor * part / spread
    score = values @ direction
    scale = 1 / max(float(score.std()), 1e-12)
    return Direction(direction * scale, -float(score.mean()) * scale)


def ordinary_direction(
    x: npt.NDArray[np.floating], table: PairTable, settings: GeneralSettings, seed: int
) -> Direction:
    """How much ordinary prompts need the strong model, of mean 0 and variance 1 on x [n, width].

    Weighted so that each part of length and difficulty counts alike: who rates a prompt takes long
    for hard, and a head would learn that.
    """
    share = settings.weak_fails
    wanted = (1 - share) * (table.strong - table.weak) + share * (1 - table.weak)
    length = np.digitize([len(prompt) for prompt in table.prompts], LENGTHS)
    part = length * (len(DIFFICULTIES) + 1) + np.digitize(table.weak, DIFFICULTIES)
    known: dict[str, Any] = {"weight": 1 / np.bincount(part)[part]}
    blocks = representation_blocks(x.shape[1])
    variances = estimate_variances(x, wanted, blocks, seed=seed, **known)
    weights = fit_blocks(x, wanted, blocks, variances=variances, **known).weights
    score = np.asarray(x, dtype=np.float64) @ weights
    scale = 1 / max(float(score.std()), 1e-12)
    return Direction(weights * scale, -float(score.mean()) * scale)


def fit_gate(
    ordinary: npt.NDArray[np.floating],
    benchmark: npt.NDArray[np.floating],
    settings: GeneralSettings,
) -> Gate:
    """A logistic regression that tells prompts of benchmarks from ordinary ones, by the encoder's
    layers alone: representations [n, width] and [m, width]."""
    linear = require_extra("sklearn.linear_model", "train")
    layers = ordinary.shape[1] - len(FEATURES)
    x = np.concatenate((ordinary[:, :layers], benchmark[:, :layers])).astype(np.float64)
    center = x.mean(0)
    unit = float((x - center).std())
    label = np.repeat([0, 1], [len(ordinary), len(benchmark)])
    # Both kinds weigh alike, then the ordinary ones more.
    weight = np.where(label == 1, 1 / len(benchmark), settings.prior / len(ordinary))
    model = linear.LogisticRegression(C=settings.gate_strength, max_iter=500)
    model.fit((x - center) / unit, label, sample_weight=weight * len(x) / weight.sum())
    weights = np.zeros(ordinary.shape[1])
    weights[:layers] = model.coef_[0] / unit
    bias = float(model.intercept_[0]) - float(center @ weights[:layers])
    return Gate(weights.astype(np.float32), bias)


def fit_memory(
    x: npt.NDArray[np.floating], dim: int, settings: GeneralSettings, seed: int
) -> Memory:
    """Points that tell how familiar a prompt is, drawn from the training prompts x [n, width].

    Their last layers are projected onto the first principal axes and kept in int8. low and high are
    percentiles of the cosines of other training prompts with the nearest point.
    """
    layers = x.shape[1] - len(FEATURES)
    columns = (layers - dim, layers)
    last = unit_rows(np.asarray(x[:, slice(*columns)], dtype=np.float32))
    # Without centring: a cosine is about the origin.
    axes = np.linalg.eigh(last.T.astype(np.float64) @ last)[1][:, ::-1]
    projection = np.ascontiguousarray(axes[:, : settings.memory_dim], dtype=np.float32)
    short = unit_rows(last @ projection)
    scale = float(np.abs(short).max()) / 127
    order = np.random.default_rng(seed).permutation(len(x))
    cut = min(settings.memory_points, len(x) // 2)
    points = np.round(short[order[:cut]] / scale).astype(np.int8)
    whole = points.T.astype(np.float32) * np.float32(scale)
    nearest = np.concatenate(
        [
            (short[order[start : start + LOOKED_UP]] @ whole).max(1)
            for start in range(cut, len(x), LOOKED_UP)
        ]
    )
    low, high = np.percentile(nearest, settings.memory_percentiles)
    return Memory(
        points, float(low), max(float(high), float(low) + 1e-6), columns, scale, projection
    )


def built_in_head(
    ordinary: Direction,
    general: Direction,
    gate: Gate,
    abilities: dict[str, float],
    settings: GeneralSettings,
    memory: Memory | None = None,
) -> Head:
    """Two hidden directions: the ordinary one, and the general one behind the gate. Coordinates are
    abilities."""
    coordinates = np.array([[ability, ability] for ability in abilities.values()])
    return Head(
        list(abilities),
        np.stack((ordinary.weights, settings.gated * general.weights)).astype(np.float32),
        np.array([ordinary.intercept, settings.gated * general.intercept], dtype=np.float32),
        coordinates.astype(np.float32),
        np.array([0, 1], np.int8),
        gate,
        memory,
    )


def _slopes(
    features: Floats, table: DifficultyTable, weight: Floats, settings: GeneralSettings
) -> Floats:
    """Weights on raw features: how they go with difficulty within tasks, tasks counting alike."""
    w = _task_weights(table, weight, 1.0)
    mean = np.average(features, axis=0, weights=w)
    scale = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=w))
    # A feature that varies nowhere tells nothing.
    factor = np.where(scale > 1e-9, 1 / np.maximum(scale, 1e-9), 0.0)
    z = table.within(features * factor)
    y = table.within(table.difficulty)
    _, at = np.unique(table.task, return_inverse=True)
    spread = np.sqrt(np.bincount(at, y**2) / np.bincount(at))
    y = y / np.maximum(spread[at], 1e-9)
    gram = (z.T * w) @ z + settings.slope_ridge * w.sum() * np.eye(z.shape[1])
    slopes: Floats = np.linalg.solve(gram, (z.T * w) @ y) * factor
    return slopes


def _ridge(
    layers: Floats, table: DifficultyTable, weight: Floats, settings: GeneralSettings
) -> Floats:
    # What even the weakest quarter of the models can do is easy for any pair: where strong is right
    # nearly always, as in ordinary traffic, this is what decides.
    y = 1 - table.bands[:, 0]
    y = table.within(y) + settings.between * (y - table.within(y))
    y = y / max(float(y.std()), 1e-12)
    w = _task_weights(table, weight, settings.balance)
    x = layers - np.average(layers, axis=0, weights=w)
    gram = (x.T * w) @ x + settings.layer_ridge * w.sum() * np.eye(x.shape[1])
    solution: Floats = np.linalg.solve(gram, (x.T * w) @ (y - np.average(y, weights=w)))
    return solution


def _task_weights(table: DifficultyTable, weight: Floats, balance: float) -> Floats:
    """A weight for each prompt, mean 1: (prompts of its task) ** -balance times reliability."""
    _, at, counts = np.unique(table.task, return_inverse=True, return_counts=True)
    w = weight * counts[at] ** -balance * np.maximum(table.reliability, 0.1)
    result: Floats = w / w.mean()
    return result

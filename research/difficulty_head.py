"""The general direction: what makes a prompt hard, whatever the task and the models.

Three parts, each linear in the representation. The *slopes* are how the cheap features go with
difficulty within tasks, all tasks counting alike and nothing about differences between tasks: on 31
tasks of the public sources prompts of more tokens are harder within 27, prompts with more numbers
within 23 of 28 (docs/results.md). The *ridge* is fitted on the encoder's layers with half of what
sets tasks apart taken out. The *length* stands for itself besides, since it is the one feature
that helps nearly everywhere. Leaving out one family of tasks at a time, the slopes carry most of
what carries over.

Beside the general direction stands a *local* one, the pair's own gain on the training sources, and
with it the *recall* of the gain of the nearest training prompts. They anti-transfer, so a gate lets
them count only where a prompt is like those of the sources; there they take the place of the
general direction.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data.tables import PairTable
from ..router.features import FEATURES
from ..training.models.head import LOOKED_UP, Gate, Head, nearest_mean, unit_rows
from ..training.models.mf import representation_blocks
from ..training.models.ridge import estimate_variances, fit_blocks
from .difficulty import DifficultyTable

Floats = npt.NDArray[np.float64]


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
    local, recall: weights of the local direction and of what the neighbours were like, where the
    gate is open; the two go together (correlation about .45), so that .6 of each have the variance
    of one. neighbours, temperature, memory_dim, gate_percentiles: of the gate (see
    `fit_gate`).
    """

    slope_ridge: float = 0.3
    layer_ridge: float = 0.1
    between: float = 0.5
    slopes: float = 1.0
    mix: float = 0.5
    length: float = 0.5
    balance: float = 0.5
    local: float = 0.6
    recall: float = 0.6
    neighbours: int = 30
    temperature: float = 0.1
    memory_dim: int = 64
    gate_percentiles: tuple[float, float] = (40.0, 80.0)


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


def local_direction(x: npt.NDArray[np.floating], table: PairTable, seed: int) -> Direction:
    """The gain of the pair itself, of mean 0 and variance 1 on x [n, width].

    It tells more than difficulty where prompts are like those of the table, and less than nothing
    elsewhere: on hard tasks strong wins the easier prompts, which is wrong for ordinary traffic.
    """
    gain = table.strong - table.weak
    blocks = representation_blocks(x.shape[1])
    variances = estimate_variances(x, gain, blocks, seed=seed)
    weights = fit_blocks(x, gain, blocks, variances=variances).weights
    score = np.asarray(x, dtype=np.float64) @ weights
    scale = 1 / max(float(score.std()), 1e-12)
    return Direction(weights * scale, -float(score.mean()) * scale)


def fit_gate(
    x: npt.NDArray[np.floating],
    table: PairTable,
    dim: int,
    settings: GeneralSettings,
) -> Gate:
    """A gate that is open for prompts like the table's, and recalls their gain.

    x [n, width]: the prompts' representations. Their last layers are projected onto their first
    principal axes and kept in int8. low and high are percentiles of their own cosines with the
    nearest other one. What is recalled has mean 0 and variance 1 over the prompts, each by the
    others.
    """
    layers = x.shape[1] - len(FEATURES)
    columns = (layers - dim, layers)
    last = unit_rows(np.asarray(x[:, slice(*columns)], dtype=np.float32))
    # Without centring: a cosine is about the origin.
    axes = np.linalg.eigh(last.T.astype(np.float64) @ last)[1][:, ::-1]
    projection = np.ascontiguousarray(axes[:, : settings.memory_dim], dtype=np.float32)
    short = unit_rows(last @ projection)
    scale = float(np.abs(short).max()) / 127
    points = np.round(short / scale).astype(np.int8)
    neighbours = max(1, min(settings.neighbours, len(points) - 1))
    nearest, recalled = np.empty(len(points)), np.empty(len(points))
    known = (table.strong - table.weak).astype(np.float32)
    whole = points.T.astype(np.float32) * np.float32(scale)
    for start in range(0, len(points), LOOKED_UP):
        rows = np.arange(start, min(start + LOOKED_UP, len(points)))
        cosines = short[rows] @ whole
        cosines[np.arange(len(rows)), rows] = -2.0  # not its own neighbour
        nearest[rows] = cosines.max(1)
        recalled[rows] = nearest_mean(cosines, known, neighbours, settings.temperature)
    low, high = np.percentile(nearest, settings.gate_percentiles)
    spread = max(float(recalled.std()), 1e-6)
    return Gate(
        points,
        float(low),
        max(float(high), float(low) + 1e-6),
        columns,
        scale,
        projection,
        ((known - recalled.mean()) / spread).astype(np.float32),
        neighbours,
        settings.temperature,
    )


def general_head(
    general: Direction,
    local: Direction,
    gate: Gate,
    abilities: dict[str, float],
    settings: GeneralSettings,
) -> Head:
    """Two hidden directions: the general one, which fades where the gate opens, and the local one
    with what is recalled, which fades where it shuts. Coordinates are abilities."""
    coordinates = np.array([[ability, ability] for ability in abilities.values()])
    return Head(
        list(abilities),
        np.stack((general.weights, settings.local * local.weights)).astype(np.float32),
        np.array([general.intercept, settings.local * local.intercept], dtype=np.float32),
        coordinates.astype(np.float32),
        np.array([-1, 1], np.int8),
        gate,
        np.array([0.0, settings.recall], np.float32),
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

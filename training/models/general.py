"""The general direction: what makes a prompt hard, whatever the task and the models.

Three parts, each linear in the representation. The *slopes* are how the cheap features go with
difficulty within tasks, all tasks counting alike and nothing about differences between tasks: on 31
tasks of the public sources prompts of more tokens are harder within 27, prompts with more numbers
within 23 of 28 (docs/results.md). The *ridge* is fitted on the encoder's layers with half of what
sets tasks apart taken out. The *length* stands for itself besides, since it is the one feature
that helps nearly everywhere. Leaving out one family of tasks at a time, the slopes carry most of
what carries over.

Beside the general direction stands a *local* one, the pair's own gain on the training sources. It
anti-transfers, so a gate lets it count only where a prompt is like those of the sources.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...data.difficulty import DifficultyTable
from ...data.tables import PairTable
from ...router.errors import require_extra
from ...router.features import FEATURES
from .mf import Gate, Head, representation_blocks
from .ridge import estimate_variances, fit_blocks

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
    local: weight of the local direction, where the gate is open. centres, gate_percentiles: of the
    gate (see `fit_gate`).
    """

    slope_ridge: float = 0.3
    layer_ridge: float = 0.1
    between: float = 0.5
    slopes: float = 1.0
    mix: float = 0.5
    length: float = 0.5
    balance: float = 0.5
    local: float = 1.0
    centres: int = 256
    gate_percentiles: tuple[float, float] = (10.0, 60.0)


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
    head says (`tune.hard_direction`), in place of the ridge.
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


def fit_gate(x: npt.NDArray[np.floating], dim: int, settings: GeneralSettings, seed: int) -> Gate:
    """A gate that is open for prompts like those of x [n, width].

    centres: of k-means on the last layer. low and high are percentiles of the training prompts' own
    cosines with the nearest centre.
    """
    cluster = require_extra("sklearn.cluster", "train")
    layers = x.shape[1] - len(FEATURES)
    columns = (layers - dim, layers)
    last = np.asarray(x[:, slice(*columns)], dtype=np.float32)
    k = min(settings.centres, len(last))
    means = cluster.MiniBatchKMeans(k, random_state=seed, n_init=1, batch_size=2048).fit(last)
    centres = means.cluster_centers_.astype(np.float32)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    low, high = np.percentile((last @ centres.T).max(1), settings.gate_percentiles)
    return Gate(centres, float(low), max(float(high), float(low) + 1e-6), columns)


def general_head(
    general: Direction,
    local: Direction,
    gate: Gate,
    abilities: dict[str, float],
    settings: GeneralSettings,
) -> Head:
    """Two hidden directions, the second of them gated; coordinates are abilities."""
    coordinates = np.array([[ability, settings.local * ability] for ability in abilities.values()])
    return Head(
        list(abilities),
        np.stack((general.weights, local.weights)).astype(np.float32),
        np.array([general.intercept, local.intercept], dtype=np.float32),
        coordinates.astype(np.float32),
        np.array([False, True]),
        gate,
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

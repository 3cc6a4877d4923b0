"""The head of mf in numpy: quality_m(q) = v_m . (W1 r(q) + b1), with a gate for what is familiar.

After RouteLLM (Ong et al. 2024, arXiv 2406.18665, section 4.2: delta = w2^T (v_m * W1^T v_q)), with
its w2 folded into v_m, a bias, and a frozen local encoder's representation r(q) of the prompt.
`training.export` puts it on a graph and reads it back.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

# Prompts that are looked up among the points of a gate at once.
LOOKED_UP = 1024


@dataclass(frozen=True)
class Gate:
    """How familiar a prompt is: 0 where it is like nothing that was trained on, 1 where it is; and
    what its nearest neighbours were like.

    A prompt is looked up by its last layer (`columns` of a representation), projected onto
    `projection` float32[dim, p] and made of unit length; where that is None, as it is. points
    float32[k, p], or int8[k, p] that are multiplied by `scale`: training prompts of unit length.
    The largest cosine with one of them gives 0 at low or less, 1 at high or more, linear between.
    values float32[k]: what is known of each point, None where nothing is; what is recalled is the
    mean of the `neighbours` nearest, by the softmax of their cosines over `temperature`.
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

    def look_up(self, x: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
        """How familiar prompts are, in [0, 1], and their neighbours' mean value (0 where no values
        are known), float64[n] each, for x [n, width]."""
        familiar, recalled = np.empty(len(x)), np.zeros(len(x))
        points = self.points.T.astype(np.float32) * np.float32(self.scale)
        for start in range(0, len(x), LOOKED_UP):  # n times k cosines would be a gigabyte
            rows = slice(start, start + LOOKED_UP)
            asked = np.asarray(x[rows], dtype=np.float32)[:, slice(*self.columns)]
            if self.projection is not None:
                asked = unit_rows(asked @ self.projection)
            cosines = asked @ points
            familiar[rows] = np.clip((cosines.max(1) - self.low) / (self.high - self.low), 0.0, 1.0)
            if self.values is not None:
                recalled[rows] = nearest_mean(
                    cosines, self.values, self.neighbours, self.temperature
                )
        return familiar, recalled


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
            familiar, recalled = (found[:, None] for found in self.gate.look_up(x))
            if self.recall is not None:
                hidden = hidden + recalled * self.recall
            hidden = hidden * np.where(
                self.gated == 1, familiar, np.where(self.gated == -1, 1 - familiar, 1.0)
            )
        return hidden.astype(np.float32)

    def quality(self, x: npt.NDArray[np.floating]) -> Floats32:
        """float32[n, n_models] for x [n, width]."""
        return (self.hidden(x) @ self.u.T).astype(np.float32)

    def difference(self, strong: str, weak: str) -> Floats32:
        """Coordinates of strong minus those of weak, float32[d]."""
        row: Floats32 = self.u[self.models.index(strong)] - self.u[self.models.index(weak)]
        return row

    def margin(self, x: npt.NDArray[np.floating], strong: str, weak: str) -> Floats:
        """Quality of strong minus quality of weak, float64[n]."""
        return (self.hidden(x) @ self.difference(strong, weak)).astype(np.float64)


@dataclass(frozen=True)
class Base:
    """What is started from: a head and the pair whose margin is taken as known."""

    head: Head
    strong: str
    weak: str

    def __call__(self, x: npt.NDArray[np.floating]) -> Floats:
        """The pair's margin, float64[n]."""
        return self.head.margin(x, self.strong, self.weak)

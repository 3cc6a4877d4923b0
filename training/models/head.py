"""The head of mf in numpy: quality_m(q) = v_m . (W1 r(q) + b1), with a gate by kind of prompt.

After RouteLLM (Ong et al. 2024, arXiv 2406.18665, section 4.2: delta = w2^T (v_m * W1^T v_q)), with
its w2 folded into v_m, a bias, and a frozen local encoder's representation r(q) of the prompt.
`training.export` puts it on a graph and reads it back.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

# Prompts that are looked up among the points of a `Memory` at once.
LOOKED_UP = 1024


@dataclass(frozen=True)
class Gate:
    """How surely a prompt is of a kind, in (0, 1): sigmoid(x @ weights + bias).

    weights float32[width].
    """

    weights: Floats32
    bias: float

    def __call__(self, x: npt.NDArray[np.floating]) -> Floats:
        """float64[n] for x [n, width]."""
        logits = np.asarray(x, dtype=np.float32) @ self.weights + np.float32(self.bias)
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


@dataclass(frozen=True)
class Memory:
    """How familiar a prompt is: 0 where it is like nothing that was trained on, 1 where it is.

    A prompt is looked up by a layer (`columns` of a representation), projected onto `projection`
    float32[dim, p] and made of unit length. points int8[k, p], multiplied by `scale`: training
    prompts of unit length. The largest cosine with one of them gives 0 at low or less, 1 at high or
    more, linear between.
    """

    points: npt.NDArray[np.int8]
    low: float
    high: float
    columns: tuple[int, int]
    scale: float
    projection: Floats32

    def familiarity(self, x: npt.NDArray[np.floating]) -> Floats:
        """In [0, 1], float64[n], for x [n, width]."""
        familiar = np.empty(len(x))
        points = self.points.T.astype(np.float32) * np.float32(self.scale)
        for start in range(0, len(x), LOOKED_UP):  # n times k cosines would be a gigabyte
            rows = slice(start, start + LOOKED_UP)
            asked = np.asarray(x[rows], dtype=np.float32)[:, slice(*self.columns)]
            cosines = unit_rows(asked @ self.projection) @ points
            familiar[rows] = np.clip((cosines.max(1) - self.low) / (self.high - self.low), 0.0, 1.0)
        return familiar


def unit_rows(x: Floats32) -> Floats32:
    """x [n, p] with rows of unit length; a row of zeros stays one."""
    lengths = np.sqrt(np.square(x).sum(1, keepdims=True))
    return np.asarray(x / np.maximum(lengths, np.float32(1e-9)), dtype=np.float32)


@dataclass(frozen=True)
class Head:
    """quality = ((x @ w1.T + b1) * f) @ u.T. What was learned of one kind of prompts counts where a
    prompt is of that kind: f is the gate for the hidden directions with gated = 1, and 1 for those
    with 0.

    w1 float32[d, width], b1 float32[d], u float32[n_models, d], gated int8[d]; gate is None where
    no direction is gated. memory: tells how familiar a prompt is, and moves no quality.
    """

    models: list[str]
    w1: Floats32
    b1: Floats32
    u: Floats32
    gated: npt.NDArray[np.int8]
    gate: Gate | None = None
    memory: Memory | None = None

    def hidden(self, x: npt.NDArray[np.floating]) -> Floats32:
        """float32[n, d] for x [n, width]."""
        hidden = np.asarray(x, dtype=np.float32) @ self.w1.T + self.b1
        if self.gate is not None:
            hidden = hidden * np.where(self.gated == 1, self.gate(x)[:, None], 1.0)
        return hidden.astype(np.float32)

    def quality(self, x: npt.NDArray[np.floating]) -> Floats32:
        """float32[n, n_models] for x [n, width]."""
        return (self.hidden(x) @ self.u.T).astype(np.float32)

    def difference(self, strong: str, weak: str) -> Floats32:
        """Coordinates of strong minus those of weak, float32[d]."""
        return np.asarray(self.u[self.models.index(strong)] - self.u[self.models.index(weak)])

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

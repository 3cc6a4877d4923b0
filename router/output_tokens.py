"""How many tokens an arm (a model at an effort) answers with: what costs are estimated by before
there is an answer.

For each arm, log(1 + tokens of the answer) is a line in log(1 + tokens of the prompt) and in the
log odds of the score, by least squares. A prediction is its exponential times the factor that makes
those of the fitted rows add up to what was written: the exponential of a mean logarithm is no mean
(smearing, after Duan 1983, doi:10.1080/01621459.1983.10478017). Where the line is no better out of
fold than the arm's mean, the mean stays.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Row = tuple[float, float, float | None]  # tokens of the prompt, of the answer, score if known
ArmRow = tuple[str, Row]

DEFAULT_TOKENS = 300  # of an answer of which nothing is known
LEAST = 30  # rows; below it the mean alone, and no error
FOLDS = 5


@dataclass(frozen=True, slots=True)
class ArmTokens:
    """What `n` answers of an arm say; `mean` tokens each.

    `error` is the mean absolute error out of fold, `default_error` that of the constant, both as
    parts of the mean; None for fewer than LEAST answers. `weights`: the constant, that of the
    prompt and that of the score; None where the mean is the prediction. `bounds`: least, mean and
    most of both numbers in the rows, beyond which none is extrapolated.
    """

    n: int
    mean: float
    error: float | None = None
    default_error: float | None = None
    weights: tuple[float, ...] | None = None
    bounds: tuple[tuple[float, ...], ...] = ()

    def tokens(self, prompt: float, score: float | None = None) -> float:
        """Expected tokens of the answer to a prompt of so many. score: None where not known."""
        if self.weights is None:
            return self.mean
        total, *weights = self.weights
        for value, weight, bounds in zip(
            _numbers(prompt, score), weights, self.bounds, strict=True
        ):
            low, middle, high = bounds
            total += weight * (middle if math.isnan(value) else min(max(value, low), high))
        return math.exp(total)


@dataclass(frozen=True, slots=True)
class OutputTokens:
    """Predictions for arms by name; `default` tokens for those of which nothing is known."""

    default: float = DEFAULT_TOKENS
    arms: Mapping[str, ArmTokens] = field(default_factory=dict)

    @classmethod
    def fitted(cls, rows: Iterable[ArmRow], default: float = DEFAULT_TOKENS) -> "OutputTokens":
        """To rows of arms; answers without a token are left out."""
        by_arm: dict[str, list[Row]] = {}
        for arm, row in rows:
            if row[1] > 0:
                by_arm.setdefault(arm, []).append(row)
        return cls(default, {arm: _fit(found, default) for arm, found in by_arm.items()})

    def tokens(self, arm: str, prompt: float, score: float | None = None) -> float:
        """Expected tokens of an arm's answer to a prompt of so many tokens."""
        known = self.arms.get(arm)
        return self.default if known is None else known.tokens(prompt, score)

    def knows(self, *arms: str) -> bool:
        """Whether enough answers of each are known to set one beside the other."""
        return all(arm in self.arms and self.arms[arm].n >= LEAST for arm in arms)

    def ratio(self, arm: str, other: str, prompt: float, score: float | None = None) -> float:
        """How many times as long as the `other` arm's the answer of `arm` is expected to be; 1
        where too little is known of either."""
        if arm == other or not self.knows(arm, other):
            return 1.0
        return self.tokens(arm, prompt, score) / self.tokens(other, prompt, score)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Arm -> answers, mean tokens and errors, as JSON."""
        told = ("n", "mean", "error", "default_error")
        return {arm: {k: getattr(known, k) for k in told} for arm, known in self.arms.items()}


def _fit(rows: Sequence[Row], default: float) -> ArmTokens:
    y = np.array([row[1] for row in rows], np.float64)
    n = len(rows)
    if n < LEAST:  # with one more that is like any arm's
        return ArmTokens(n, float((y.sum() + default) / (n + 1)))
    x = np.array([_numbers(prompt, score) for prompt, _, score in rows], np.float64)
    known = ~np.isnan(x)
    middle = np.where(known, x, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    x = np.where(known, x, middle)
    folds = np.arange(n) % FOLDS
    by_line, by_mean = np.empty(n), np.empty(n)
    for fold in range(FOLDS):
        out = folds == fold
        by_line[out] = _line(x, _weights(x[~out], y[~out]))[out]
        by_mean[out] = y[~out].mean()
    mean = float(y.mean())
    errors = [float(np.abs(p - y).mean()) / mean for p in (by_line, by_mean, default)]
    if errors[0] >= errors[1]:
        return ArmTokens(n, mean, errors[1], errors[2])
    bounds = zip(x.min(0).tolist(), middle.tolist(), x.max(0).tolist(), strict=True)
    weights = tuple(_weights(x, y).tolist())
    return ArmTokens(n, mean, errors[0], errors[2], weights, tuple(bounds))


def _weights(x: Floats, y: Floats) -> Floats:
    """Constant and weights, float64[1 + k], of numbers float64[n, k] and tokens float64[n]."""
    middle = x.mean(0)
    columns = np.column_stack([np.ones(len(y)), x - middle])
    found = np.linalg.lstsq(columns, np.log1p(y), rcond=None)[0]
    found[0] -= found[1:] @ middle
    found[0] += np.log(y.sum() / _line(x, found).sum())
    return np.asarray(found, np.float64)


def _line(x: Floats, weights: Floats) -> Floats:
    return np.asarray(np.exp(weights[0] + x @ weights[1:]), np.float64)


def _numbers(prompt: float, score: float | None) -> tuple[float, float]:
    """What the prediction goes by; NaN for a score that is not known."""
    if score is None:
        return math.log1p(prompt), math.nan
    score = min(max(score, 0.001), 0.999)
    return math.log1p(prompt), math.log(score / (1 - score))

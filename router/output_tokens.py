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
from itertools import combinations
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
    """Predictions for arms by name; `default` tokens for those of which nothing is known. `times`:
    as of `ratio`."""

    default: float = DEFAULT_TOKENS
    arms: Mapping[str, ArmTokens] = field(default_factory=dict)
    times: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def fitted(cls, rows: Iterable[ArmRow], default: float = DEFAULT_TOKENS) -> "OutputTokens":
        """To rows of arms; answers without a token are left out."""
        by_arm: dict[str, list[Row]] = {}
        for arm, row in rows:
            if row[1] > 0:
                by_arm.setdefault(arm, []).append(row)
        times: dict[tuple[str, str], float] = {}
        for one, other in combinations(by_arm, 2):
            if (found := _times(by_arm[one], by_arm[other])) is not None:
                times |= {(one, other): found, (other, one): 1 / found}
        return cls(default, {arm: _fit(rows, default) for arm, rows in by_arm.items()}, times)

    def tokens(self, arm: str, prompt: float, score: float | None = None) -> float:
        """Expected tokens of an arm's answer to a prompt of so many tokens."""
        known = self.arms.get(arm)
        return self.default if known is None else known.tokens(prompt, score)

    def ratio(self, arm: str, other: str) -> float:
        """How many times as long as the `other` arm's the answers of `arm` are, to the same
        prompts; 1 where too little is known of either."""
        return self.times.get((arm, other), 1.0)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Arm -> answers, mean tokens and errors, and how many `times` as long as another's its
        answers are; as JSON."""
        names = ("n", "mean", "error", "default_error")
        return {
            arm: {name: getattr(known, name) for name in names}
            | {"times": {other: x for (one, other), x in self.times.items() if one == arm}}
            for arm, known in self.arms.items()
        }


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


def _times(one: Sequence[Row], other: Sequence[Row]) -> float | None:
    """How many times as long as the others the answers of `one` are, to prompts that are alike.

    A router sends harder prompts to one of two arms, and these have longer answers with any. So the
    means of those rows are compared whose scores are nearest to where the arms meet, a quarter of
    the smaller number of rows from each (`research.output_tokens` says how good that is).
    """
    known = [
        np.array([(score, y) for _, y, score in rows if score is not None]).reshape(-1, 2)
        for rows in (one, other)
    ]
    count = min(map(len, known)) // 4
    if count < LEAST:
        return None
    low, high = sorted((rows[:, 0] for rows in known), key=lambda scores: float(scores.mean()))
    middle = (np.quantile(low, 0.9) + np.quantile(high, 0.1)) / 2
    near = [np.argsort(np.abs(rows[:, 0] - middle), kind="stable")[:count] for rows in known]
    means = [float(rows[at, 1].mean()) for rows, at in zip(known, near, strict=True)]
    return means[0] / means[1]


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

"""A logistic regression on a few standardized columns, in which a value that is missing counts as
its column's mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..router.threshold import sigmoid
from .models.head import Floats

PENALTY = 1.0  # on standardized columns


@dataclass(frozen=True)
class Logistic:
    """The fit; `center`, `scale` and `weights` a column."""

    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, columns: Mapping[str, Floats], terms: Sequence[str], label: Floats) -> "Logistic":
        """By Newton's method; labels in [0, 1]."""
        x = np.stack([columns[name] for name in terms], axis=1)
        known = np.isfinite(x)
        count = np.maximum(known.sum(axis=0), 1)
        center = np.where(known, x, 0.0).sum(axis=0) / count
        scale = np.sqrt(np.square(np.where(known, x - center, 0.0)).sum(axis=0) / count)
        scale = np.where(scale > 1e-9, scale, 1.0)
        z = np.nan_to_num((x - center) / scale)
        design = np.column_stack((z, np.ones(len(z))))
        penalty = np.append(np.full(z.shape[1], PENALTY), 1e-6)
        w = np.zeros(design.shape[1])
        for _ in range(50):
            p = sigmoid(design @ w)
            slope = design.T @ (p - label) + penalty * w
            curvature = (design * (p * (1 - p) + 1e-9)[:, None]).T @ design + np.diag(penalty)
            step = np.linalg.solve(curvature, slope)
            w = w - step
            if np.abs(step).max() < 1e-9:
                break
        told = [tuple(values.tolist()) for values in (center, scale, w[:-1])]
        return cls(told[0], told[1], told[2], float(w[-1]))

    def predict(self, columns: Mapping[str, Floats], terms: Sequence[str]) -> Floats:
        """float64[n]."""
        x = np.stack([columns[name] for name in terms], axis=1)
        z = np.nan_to_num((x - np.array(self.center)) / np.array(self.scale))
        return sigmoid(z @ np.array(self.weights) + self.bias)


def out_of_fold(
    columns: Mapping[str, Floats], terms: Sequence[str], label: Floats, fold: Any
) -> Floats:
    """What a fit on the other folds says of each row, float64[n]."""
    found = np.empty(len(label))
    for held in np.unique(fold):
        out = fold == held
        others = {name: columns[name][~out] for name in terms}
        fitted = Logistic.fit(others, terms, label[~out])
        found[out] = fitted.predict({name: columns[name][out] for name in terms}, terms)
    return found


def log_loss(probability: Floats, label: Floats) -> Floats:
    """In nats, float64[n]."""
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(-(label * np.log(p) + (1 - label) * np.log1p(-p)))

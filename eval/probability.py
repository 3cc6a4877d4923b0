"""Score calibration: raw margins to probabilities, fitted on a validation split.

Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines"), temperature scaling
(Guo et al. 2017, arXiv 1706.04599: Platt with b = 0), and isotonic regression by pooling adjacent
violators (Ayer et al. 1955; Zadrozny and Elkan 2002). None changes a ranking. The fitted spec is
applied by `router.threshold.apply_calibration`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError
from ..router.threshold import SCORE_MARGIN, apply_calibration, sigmoid
from .metrics import Floats, brier, ece

# Isotonic maps are stored with at most this many points.
MAX_POINTS = 64
MIN_SLOPE = 1e-3


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """A calibration and its quality.

    `spec` is JSON-able. `ece_*` and `brier_*` compare sigmoid(margin) with the calibrated score on
    held-out folds; `candidates` is the held-out Brier score of each method.
    """

    spec: dict[str, Any]
    n: int
    ece_before: float
    ece_after: float
    brier_before: float
    brier_after: float
    candidates: dict[str, float]


def fit_platt(margin: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """{"method": "platt", "a", "b"} by penalised maximum likelihood.

    `margin` float64[n], `labels` float64[n] in [0, 1]. Labels are smoothed as Platt proposed, so
    that separable data gives finite numbers. The slope is kept positive: where the margin tells
    nothing, the scores become nearly constant rather than reversed. Raises CalibrationError.
    """
    m, y = _check(margin, labels)
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / (y.size - y.sum() + 2)
    a, b = _newton(m, y * high + (1 - y) * low, with_offset=True)
    return {"method": "platt", "a": a, "b": b}


def fit_temperature(margin: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """{"method": "platt", "a": 1 / T, "b": 0.0} by maximum likelihood; a is kept in [1e-3, 1e3]."""
    m, y = _check(margin, labels)
    a, _ = _newton(m, y, with_offset=False)
    return {"method": "platt", "a": a, "b": 0.0}


def fit_isotonic(margin: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """{"method": "isotonic", "x", "y"}: pooled adjacent violators, strictly increasing.

    Each pooled block becomes one point, its mean margin and mean label; between the points the map
    is linear, so no two margins get one score. Raises CalibrationError.
    """
    m, y = _check(margin, labels)
    # Equal margins are one block from the start: (weight, sum of labels, sum of margins).
    distinct, place, sizes = np.unique(m, return_inverse=True, return_counts=True)
    sums = np.bincount(place, weights=y)
    blocks: list[tuple[float, float, float]] = []
    for size, total, x in zip(sizes.tolist(), sums.tolist(), distinct.tolist(), strict=True):
        block = (size, total, size * x)
        while blocks and blocks[-1][1] / blocks[-1][0] >= block[1] / block[0]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    weight, label, moment = np.array(blocks, dtype=np.float64).T
    xs, ys = moment / weight, label / weight
    if len(xs) > MAX_POINTS:
        keep = np.unique(np.linspace(0, len(xs) - 1, MAX_POINTS).round().astype(int))
        xs, ys = xs[keep], ys[keep]
    ys = np.clip(ys, 1e-3, 1 - 1e-3)
    # Clipping ties blocks at the ends; a tiny slope parts them again.
    ys = ys + np.linspace(-1, 1, len(ys)) * 1e-6 if len(ys) > 1 else ys
    return {"method": "isotonic", "x": xs.tolist(), "y": ys.tolist()}


def calibrate_scores(
    margin: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    methods: tuple[str, ...] = ("temperature", "platt", "isotonic"),
    folds: int = 5,
    seed: int = 0,
) -> CalibrationFit:
    """The method with the lowest cross-validated Brier score, fitted on all of the split.

    Raises CalibrationError for labels of one class only, fewer than 2 * folds rows, values that are
    not finite, or an unknown method.
    """
    m, y = _check(margin, labels)
    unknown = [method for method in methods if method not in FITTERS]
    if unknown or not methods:
        raise CalibrationError(f"unknown methods {unknown}; available: {', '.join(FITTERS)}")
    if m.size < 2 * folds:
        raise CalibrationError(
            f"{m.size} rows are too few for {folds} folds; give at least {2 * folds}"
        )
    fold = np.random.default_rng(seed).permutation(m.size) % folds
    held: dict[str, Floats] = {method: np.empty(m.size) for method in methods}
    for method, scores in held.items():
        for out in (fold == k for k in range(folds)):
            scores[out] = apply_calibration(m[out], FITTERS[method](m[~out], y[~out]))
    candidates = {method: brier(scores, y) for method, scores in held.items()}
    # min keeps the first of equals, and methods are listed from the fewest parameters up.
    best = min(methods, key=lambda method: candidates[method])
    raw = np.clip(sigmoid(m), SCORE_MARGIN, 1 - SCORE_MARGIN)
    return CalibrationFit(
        spec=FITTERS[best](m, y),
        n=int(m.size),
        ece_before=ece(raw, y),
        ece_after=ece(held[best], y),
        brier_before=brier(raw, y),
        brier_after=candidates[best],
        candidates=candidates,
    )


FITTERS = {"temperature": fit_temperature, "platt": fit_platt, "isotonic": fit_isotonic}


def _check(margin: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    m, y = np.asarray(margin, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if m.ndim != 1 or m.size == 0 or m.shape != y.shape:
        raise CalibrationError(f"margins {m.shape} and labels {y.shape} need one length > 0")
    if not np.all(np.isfinite(m)):
        raise CalibrationError("margins must be finite; the model's output is broken")
    if not np.all((y >= 0) & (y <= 1)):
        raise CalibrationError("labels must be in [0, 1]")
    if y.min() == y.max() and y[0] in (0.0, 1.0):
        raise CalibrationError(
            f"all {y.size} labels are {y[0]:g}: one class only; calibrate on data in which each "
            "model wins somewhere"
        )
    return m, y


def _newton(m: Floats, y: Floats, *, with_offset: bool) -> tuple[float, float]:
    """Logistic regression of y on m, by Newton's method with step halving; a >= MIN_SLOPE."""
    scale = float(np.abs(m).max()) or 1.0
    design = np.stack([m / scale, np.ones_like(m)], axis=1)[:, : 2 if with_offset else 1]
    w = np.zeros(design.shape[1])
    ridge = 1e-6

    def loss(weights: Floats) -> float:
        logit = design @ weights
        # log(1 + exp(z)) - y z, stable for large z.
        likelihood = np.maximum(logit, 0) + np.log1p(np.exp(-np.abs(logit))) - y * logit
        return float(likelihood.mean() + ridge * (weights @ weights))

    for _ in range(100):
        p = sigmoid(design @ w)
        gradient = design.T @ (p - y) / y.size + 2 * ridge * w
        curvature = design.T @ (design * (p * (1 - p))[:, None]) / y.size
        step = np.linalg.solve(curvature + 2 * ridge * np.eye(len(w)), gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) and size > 1e-8:
            size /= 2
        w = w - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    slope = float(w[0] / scale)
    if slope >= MIN_SLOPE:
        return min(slope, 1e3), float(w[1]) if with_offset else 0.0
    # The margin ranks no better than chance, or worse: say the base rate, in the margin's order.
    rate = float(np.clip(y.mean(), 1e-3, 1 - 1e-3))
    offset = float(np.log(rate / (1 - rate)) - MIN_SLOPE * m.mean())
    return MIN_SLOPE, offset if with_offset else 0.0

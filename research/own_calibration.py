"""The calibration protocol: how far a few labels of one's own make a router's scores true.

ECE of a sample is above 0 even for a perfect score; `floor` is what a perfectly calibrated score
of the same values would show on as many prompts, so that both can be set side by side.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import CalibrationError, EvaluationError
from ..eval.benchmarks import Benchmark
from ..eval.metrics import Floats, Interval, ece
from ..eval.printing import json_safe
from ..eval.probability import fit_platt
from ..router.threshold import apply_calibration

MIN_REST = 20


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One number of labels: mean over draws of the ECE on the rest, its range over draws, and the
    floor (see the module). `failed` counts draws whose labels could not calibrate."""

    labels: int
    tested: int
    ece: float
    ece_range: Interval
    floor: float
    failed: int


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """`before`: ECE of the router's own scores on all n prompts, and its floor."""

    benchmark: str
    n: int
    before: float
    before_floor: float
    rows: tuple[CalibrationRow, ...]
    draws: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def own_calibration(
    benchmark: Benchmark,
    margins: Floats,
    scores: Floats,
    sizes: Sequence[int] = (200,),
    draws: int = 10,
    seed: int = 0,
) -> CalibrationReport:
    """Calibrate margins float64[n] on `sizes` labels drawn at random; ECE on the rest.

    scores float64[n]: the router's own, before. The method is Platt's, which two numbers describe:
    a few hundred labels carry no more. Raises EvaluationError for sizes that leave fewer than
    MIN_REST prompts, or margins and scores that are not n finite numbers.
    """
    n = benchmark.n
    for name, values in (("margins", margins), ("scores", scores)):
        if np.shape(values) != (n,) or not np.all(np.isfinite(values)):
            raise EvaluationError(f"{name}: expected {n} finite numbers")
    bad = [size for size in sizes if not 20 <= size <= n - MIN_REST]
    if bad or draws < 2:
        raise EvaluationError(
            f"calibration: sizes {bad or list(sizes)}, {draws} draws; give sizes of 20 to "
            f"{n - MIN_REST}, and at least 2 draws"
        )
    labels = benchmark.labels
    rows = []
    for size in sizes:
        found, floors, failed = [], [], 0
        for draw in range(draws):
            random = np.random.default_rng((seed, size, draw))
            order = random.permutation(n)
            chosen, rest = order[:size], order[size:]
            try:
                spec = fit_platt(margins[chosen], labels[chosen])
            except CalibrationError:
                failed += 1
                continue
            calibrated = np.asarray(apply_calibration(margins[rest], spec))
            found.append(ece(calibrated, labels[rest]))
            floors.append(_floor(calibrated, random))
        values = np.array(found or [np.nan])
        rows.append(
            CalibrationRow(
                size,
                n - size,
                float(values.mean()),
                (float(values.min()), float(values.max())),
                float(np.mean(floors or [np.nan])),
                failed,
            )
        )
    return CalibrationReport(
        benchmark.name,
        n,
        ece(scores, labels),
        _floor(scores, np.random.default_rng(seed)),
        tuple(rows),
        draws,
        seed,
    )


@dataclass(frozen=True, slots=True)
class Int8Report:
    """APGR of a benchmark by a bundle's int8 graph, and by the same graph before quantization."""

    benchmark: str
    n: int
    int8: float
    fp32: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "difference": self.int8 - self.fp32}


def _floor(scores: Floats, random: np.random.Generator, draws: int = 20) -> float:
    """Mean ECE where each label is 1 with exactly the probability that the score says."""
    return float(np.mean([ece(scores, random.random(len(scores)) < scores) for _ in range(draws)]))

"""Routers and baselines on benchmarks, to one report.

report = evaluate({"mf": scorer.scores}, [load("mmlu")], embed=scorer.embeddings)
"""

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..terminal import new_console
from . import baselines
from .benchmarks import Benchmark
from .bootstrap import Samples, bootstrap, interval, paired_difference
from .metrics import Curve, Floats, auc, brier, ece, tied_groups, tradeoff

Score = Callable[[list[Any]], npt.ArrayLike]
Embed = Callable[[list[Any]], npt.NDArray[np.floating]]
Training = tuple[npt.NDArray[np.floating], npt.ArrayLike]

# Where curves are drawn, and how many prompts are scored between two steps of the progress bar.
SHARES: Floats = np.linspace(0.0, 1.0, 101)
SCORING_BLOCK = 256
# The baselines, whose names no router may have.
NOTES = {
    "random": "interval: 95% of 1,000 random routers, not a bootstrap",
    "oracle": "knows both answers' rewards: the best possible",
    "prompt-length": "longer prompts go to the strong model",
    "knn": "nearest neighbours in the router's own training data",
    "knn-in-domain": "has seen labels of this very benchmark (5-fold cross-validation)",
    "ridge": "linear regression on the router's own training data",
    "ridge-in-domain": "linear regression of this very benchmark's gains (5-fold cross-validation)",
    "always-strong": "no routing",
    "always-weak": "no routing",
}
# A gain or an unbounded regression ranks, but is no probability, even where all lie in [0, 1].
NO_PROBABILITY = frozenset({"oracle", "ridge", "ridge-in-domain"})


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What was measured. `results` has a dict for each (benchmark, router or baseline);
    `comparisons` the paired differences of APGR; `benchmarks` what was evaluated on; `curves` maps
    benchmark, router to {"share", "reward", "low", "high"} lists, NaN where undefined."""

    results: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    curves: dict[str, dict[str, dict[str, list[float]]]] = field(repr=False)
    seed: int
    bootstraps: int

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN and infinities become None."""
        parts = {
            "results": self.results,
            "comparisons": self.comparisons,
            "benchmarks": self.benchmarks,
            "seed": self.seed,
            "bootstraps": self.bootstraps,
            "curves": self.curves,
        }
        return {key: json_safe(value) for key, value in parts.items()}


def json_safe(value: object) -> object:
    """`value` with numpy numbers as Python's, tuples as lists, and NaN or infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_safe(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def evaluate(
    routers: Mapping[str, Score],
    benchmarks: Sequence[Benchmark],
    *,
    embed: Embed | None = None,
    train: Training | None = None,
    seed: int = 0,
    bootstraps: int = 1000,
    progress: bool | None = None,
) -> EvaluationReport:
    """Every router and every baseline on every benchmark.

    `routers`: name to a function from a list of n prompts to float64[n] scores. `embed`: from
    prompts to [n, d], for the kNN and ridge baselines, left out without it. `train`: (embeddings
    [m, d], labels float64[m]) of the routers' training data, for `knn` and `ridge`; it must not
    hold the benchmarks.
    `progress`: a bar on stderr while scoring; by default where stderr is a terminal.

    Raises EvaluationError for scores that are not n finite numbers, a benchmark without a gap, two
    benchmarks of one name, or a router with the name of a baseline.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len(set(names)) != len(names):
        raise EvaluationError(f"benchmarks must be at least one, each with its own name: {names}")
    taken = sorted(set(routers) & set(NOTES))
    if taken:
        raise EvaluationError(f"{', '.join(taken)}: the name of a baseline; rename the router")
    for benchmark in benchmarks:
        _check_gap(benchmark)
    results: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    jobs = _Jobs(progress)
    with jobs:
        for benchmark in benchmarks:
            scored: dict[str, Floats] = {}
            for name, score in routers.items():
                scored[name] = _scores(jobs, f"{benchmark.name}: {name}", score, benchmark)
            scored |= _baseline_scores(jobs, benchmark, embed, train, seed)
            samples = {
                name: bootstrap(
                    values,
                    benchmark.strong,
                    benchmark.weak,
                    labels=benchmark.labels,
                    resamples=bootstraps,
                    seed=seed,
                    groups=benchmark.groups,
                    shares=SHARES,
                )
                for name, values in scored.items()
            }
            rows, drawn = [], {}
            for name, values in scored.items():
                curve = tradeoff(values, benchmark.strong, benchmark.weak)
                row = _row(name, benchmark, values, curve, samples[name], is_router=name in routers)
                rows.append({**row, "seed": seed, "bootstraps": bootstraps})
                drawn[name] = _drawn(curve, samples[name])
            rows += [
                {**row, "seed": seed, "bootstraps": bootstraps}
                for row in _plain_rows(benchmark, seed)
            ]
            results += rows
            curves[benchmark.name] = drawn
            comparisons += _comparisons(benchmark.name, list(routers), rows, samples)
    return EvaluationReport(
        results=results,
        comparisons=comparisons,
        benchmarks=[_facts(benchmark) for benchmark in benchmarks],
        curves=curves,
        seed=seed,
        bootstraps=bootstraps,
    )


def _check_gap(benchmark: Benchmark) -> None:
    try:
        tradeoff(np.zeros(benchmark.n), benchmark.strong, benchmark.weak)
    except EvaluationError as error:
        raise EvaluationError(
            f"benchmark {benchmark.name} ({benchmark.strong_model} against "
            f"{benchmark.weak_model}): {error}"
        ) from error


def _scores(jobs: "_Jobs", title: str, score: Score, benchmark: Benchmark) -> Floats:
    values = np.asarray(jobs.blocks(title, score, benchmark.inputs()), dtype=np.float64)
    if values.shape != (benchmark.n,) or not np.all(np.isfinite(values)):
        raise EvaluationError(
            f"{title}: expected {benchmark.n} finite scores, got shape {values.shape} with "
            f"{int(np.sum(~np.isfinite(values)))} that are not finite; the router is broken"
        )
    return values


def _baseline_scores(
    jobs: "_Jobs", benchmark: Benchmark, embed: Embed | None, train: Training | None, seed: int
) -> dict[str, Floats]:
    scores = {
        "oracle": baselines.oracle_scores(benchmark.strong, benchmark.weak),
        "prompt-length": baselines.length_scores(benchmark.prompts),
    }
    if embed is None:
        return scores
    embedded = jobs.blocks(f"{benchmark.name}: embeddings", embed, benchmark.inputs())
    if train is not None:
        vectors, labels = np.asarray(train[0]), train[1]
        scores["knn"] = baselines.knn_scores(embedded, vectors, labels)
        alpha = baselines.ridge_alpha(vectors, labels)
        scores["ridge"] = baselines.ridge_scores(embedded, vectors, labels, alpha)
    # Copies of a prompt share a fold; fewer distinct ones may not fill two.
    if len(set(benchmark.prompts)) >= 10:
        scores["knn-in-domain"] = baselines.knn_in_domain_scores(
            benchmark.prompts, embedded, benchmark.labels, seed=seed
        )
        # A regression takes the gain itself: by how much, and in which direction.
        scores["ridge-in-domain"] = baselines.ridge_in_domain_scores(
            benchmark.prompts, embedded, benchmark.strong - benchmark.weak, seed=seed
        )
    return scores


def _row(
    name: str,
    benchmark: Benchmark,
    scores: Floats,
    curve: Curve,
    samples: Samples,
    *,
    is_router: bool,
) -> dict[str, Any]:
    # A length ranks, but is no probability: calibration is not defined for it.
    probability = bool(np.all((scores >= 0) & (scores <= 1))) and name not in NO_PROBABILITY
    nan = float("nan")
    apgr = curve.apgr()
    low, high = interval(samples.apgr)
    row: dict[str, Any] = {
        "router": name,
        "benchmark": benchmark.name,
        "kind": "router" if is_router else "baseline",
        "n": benchmark.n,
        "apgr": apgr,
        "apgr_ci": [low, high],
    }
    for key, target, drawn in (("cpt50", 0.5, samples.cpt50), ("cpt80", 0.8, samples.cpt80)):
        row[key] = curve.cpt(target)
        row[f"{key}_ci"] = list(interval(drawn))
    row |= {
        "strong_mean": curve.strong_mean,
        "weak_mean": curve.weak_mean,
        "auc": auc(scores, benchmark.labels),
        "auc_ci": list(interval(samples.auc)),
        "ece": ece(scores, benchmark.labels) if probability else nan,
        "ece_ci": list(interval(samples.ece)) if probability else [nan, nan],
        "brier": brier(scores, benchmark.labels) if probability else nan,
        # A random router has an APGR of 0.5 in every resample, so the difference is paired.
        "vs_random": {"difference": apgr - 0.5, "ci": [low - 0.5, high - 0.5]},
        "usd_per_1k": _usd(benchmark, scores, row["cpt50"], row["cpt80"]),
        "note": NOTES.get(name, ""),
    }
    return row


def _usd(benchmark: Benchmark, scores: Floats, cpt50: float, cpt80: float) -> dict[str, float]:
    """Mean cost of 1,000 requests at CPT(50%) and CPT(80%); empty where costs are not known."""
    if benchmark.strong_cost is None or benchmark.weak_cost is None:
        return {}
    order, starts = tied_groups(scores)
    extra = np.add.reduceat((benchmark.strong_cost - benchmark.weak_cost)[order], starts)
    calls = np.append(starts, benchmark.n)
    at = np.interp(np.array([cpt50, cpt80]) * benchmark.n, calls, np.append(0, np.cumsum(extra)))
    costs = 1000 * (benchmark.weak_cost.mean() + at / benchmark.n)
    return {"cpt50": float(costs[0]), "cpt80": float(costs[1])}


def _plain_rows(benchmark: Benchmark, seed: int) -> list[dict[str, Any]]:
    """Random routing and the two models alone. A single model is a point, so it has no APGR."""
    nan = float("nan")
    drawn = baselines.random_routing(benchmark.strong, benchmark.weak, seed=seed)
    common: dict[str, Any] = {
        "strong_mean": float(benchmark.strong.mean()),
        "weak_mean": float(benchmark.weak.mean()),
        "auc": nan,
        "auc_ci": [nan, nan],
        "ece": nan,
        "ece_ci": [nan, nan],
        "brier": nan,
        "vs_random": {"difference": nan, "ci": [nan, nan]},
    }
    random = {
        "apgr": drawn.apgr,
        "apgr_ci": list(interval(drawn.draws_apgr)),
        "cpt50": drawn.cpt50,
        "cpt50_ci": list(interval(drawn.draws_cpt50)),
        "cpt80": drawn.cpt80,
        "cpt80_ci": list(interval(drawn.draws_cpt80)),
        **common,
        "auc": 0.5,
        "usd_per_1k": _usd(benchmark, np.zeros(benchmark.n), drawn.cpt50, drawn.cpt80),
    }
    undefined = {
        key: value
        for name in ("apgr", "cpt50", "cpt80")
        for key, value in ((name, nan), (f"{name}_ci", [nan, nan]))
    }
    rows = [("random", random)]
    for name, rewards, cost in (
        ("always-strong", benchmark.strong, benchmark.strong_cost),
        ("always-weak", benchmark.weak, benchmark.weak_cost),
    ):
        usd = {} if cost is None else {"always": float(1000 * cost.mean())}
        rows.append((name, {**undefined, **common, "usd_per_1k": usd, "reward": rewards.mean()}))
    return [
        {
            "router": name,
            "benchmark": benchmark.name,
            "kind": "baseline",
            "n": benchmark.n,
            **row,
            "note": NOTES[name] + (f": mean reward {row['reward']:.4f}" if "reward" in row else ""),
        }
        for name, row in rows
    ]


def _drawn(curve: Curve, samples: Samples) -> dict[str, list[float]]:
    # The gap itself varies from sample to sample, the same for every router; the band is that of
    # the part recovered, on the scale of the reward, so that it shows what routing adds.
    gap = curve.strong_mean - curve.weak_mean
    ends = curve.weak_mean + gap * np.array([interval(column) for column in samples.pgr.T])
    return {
        "share": SHARES.tolist(),
        "reward": curve.rewards(SHARES).tolist(),
        "low": ends[:, 0].tolist(),
        "high": ends[:, 1].tolist(),
    }


def _comparisons(
    benchmark: str, routers: list[str], rows: list[dict[str, Any]], samples: Mapping[str, Samples]
) -> list[dict[str, Any]]:
    """Every router against every other, and against every baseline but the oracle."""
    apgr = {row["router"]: row["apgr"] for row in rows}
    others = [name for name in samples if name not in routers and name != "oracle"]
    pairs = [*itertools.combinations(routers, 2), *itertools.product(routers, others)]
    return [
        {
            "benchmark": benchmark,
            "a": a,
            "b": b,
            "apgr_difference": apgr[a] - apgr[b],
            "ci": list(interval(paired_difference(samples[a], samples[b]))),
        }
        for a, b in pairs
    ]


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "n": benchmark.n,
        "strong_model": benchmark.strong_model,
        "weak_model": benchmark.weak_model,
        "strong_mean": float(benchmark.strong.mean()),
        "weak_mean": float(benchmark.weak.mean()),
        "dropped": dict(benchmark.dropped),
    }


class _Jobs:
    """Runs a function over blocks of prompts, with a progress bar where one is wanted."""

    def __init__(self, wanted: bool | None) -> None:
        self._bar: Any = None
        if sys.stderr.isatty() if wanted is None else wanted:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=new_console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> None:
        if self._bar is not None:
            self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def blocks(
        self, title: str, function: Callable[[list[Any]], Any], inputs: list[Any]
    ) -> npt.NDArray[Any]:
        task = None if self._bar is None else self._bar.add_task(title, total=len(inputs))
        parts = []
        for start in range(0, len(inputs), SCORING_BLOCK):
            block = inputs[start : start + SCORING_BLOCK]
            part = np.asarray(function(block))
            if part.ndim == 0 or len(part) != len(block):
                raise EvaluationError(
                    f"{title}: {len(block)} prompts gave an array of shape {part.shape}; "
                    "expected one entry for each"
                )
            parts.append(part)
            if self._bar is not None:
                self._bar.advance(task, len(block))
        if self._bar is not None:
            self._bar.remove_task(task)
        return np.concatenate(parts)

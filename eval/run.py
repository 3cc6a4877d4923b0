"""Routers and baselines on benchmarks, to one report.

report = evaluate({"mf": scorer.scores}, [load("mmlu")], embed=scorer.embeddings)
"""

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..terminal import new_console
from . import baselines
from .benchmarks import Benchmark
from .bootstrap import Samples, bootstrap, checked_scores, interval
from .metrics import Curve, Floats, auc, brier, check_gap, ece, tied_groups, tradeoff
from .printing import json_safe

Score = Callable[[list[Any]], npt.ArrayLike]
Embed = Callable[[list[Any]], npt.NDArray[np.floating]]
Training = tuple[npt.NDArray[np.floating], npt.ArrayLike]

# Where curves are drawn, and how many prompts are scored between two steps of the progress bar.
SHARES: Floats = np.linspace(0.0, 1.0, 101)
SCORING_BLOCK = 256
NAN = float("nan")
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
    seed: int
    bootstraps: int
    curves: dict[str, dict[str, dict[str, list[float]]]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN and infinities become None."""
        value: dict[str, Any] = json_safe(asdict(self))
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
    if taken := sorted(set(routers) & set(NOTES)):
        raise EvaluationError(f"{', '.join(taken)}: the name of a baseline; rename the router")
    for benchmark in benchmarks:
        check_gap(benchmark.strong, benchmark.weak, str(benchmark))
    report = EvaluationReport([], [], [_facts(one) for one in benchmarks], seed, bootstraps, {})
    shown = sys.stderr.isatty() if progress is None else progress
    for benchmark in benchmarks:
        scored = _scores(benchmark, routers, embed, train, seed, shown)
        _measure(report, benchmark, scored, list(routers))
    return report


def _measure(
    report: EvaluationReport, benchmark: Benchmark, scored: dict[str, Floats], routers: list[str]
) -> None:
    """Put what the scores are worth on one benchmark into the report."""
    rewards = benchmark.strong, benchmark.weak
    settings: dict[str, Any] = {"resamples": report.bootstraps, "seed": report.seed}
    samples, rows, drawn = {}, [], {}
    for name, scores in scored.items():
        found = bootstrap(scores, *rewards, labels=benchmark.labels, shares=SHARES, **settings)
        curve = tradeoff(scores, *rewards)
        rows.append(_row(benchmark, name, _figures(name, benchmark, scores, curve, found)))
        rows[-1]["kind"] = "router" if name in routers else "baseline"
        samples[name], drawn[name] = found.apgr, _drawn(curve, found)
    rows += _plain_rows(benchmark, report.seed)
    common = {"seed": report.seed, "bootstraps": report.bootstraps}
    report.results.extend({**row, **common} for row in rows)
    report.curves[benchmark.name] = drawn
    # Every router against every other, and against every baseline but the oracle.
    apgr = {row["router"]: row["apgr"] for row in rows}
    others = [name for name in samples if name not in routers and name != "oracle"]
    for a, b in (*itertools.combinations(routers, 2), *itertools.product(routers, others)):
        ends = list(interval(samples[a] - samples[b]))
        pair = {"benchmark": benchmark.name, "a": a, "b": b}
        report.comparisons.append({**pair, "apgr_difference": apgr[a] - apgr[b], "ci": ends})


def _scores(
    benchmark: Benchmark,
    routers: Mapping[str, Score],
    embed: Embed | None,
    train: Training | None,
    seed: int,
    shown: bool,
) -> dict[str, Floats]:
    """Scores of the routers and the baselines, float64[n] each."""
    inputs, prompts, gain = benchmark.inputs(), benchmark.prompts, benchmark.strong - benchmark.weak
    scores: dict[str, Floats] = {}
    for name, score in routers.items():
        title = f"{benchmark.name}: {name}"
        values = np.asarray(_blocks(title, score, inputs, shown), dtype=np.float64)
        scores[name] = checked_scores(values, benchmark.n, title)
    # No ranking has a higher APGR than the gain itself.
    scores |= {"oracle": gain, "prompt-length": baselines.length_scores(prompts)}
    if embed is None:
        return scores
    embedded = _blocks(f"{benchmark.name}: embeddings", embed, inputs, shown)
    fits: dict[str, baselines.FitAndScore]
    fits = {"knn": baselines.knn_scores, "ridge": baselines.ridge_scores}
    if train is not None:
        vectors, won = np.asarray(train[0]), np.asarray(train[1], dtype=np.float64)
        scores |= {name: fit(embedded, vectors, won) for name, fit in fits.items()}
    if len(set(prompts)) >= baselines.FOLD_PROMPTS:
        for name, fit in fits.items():
            # A regression takes the gain itself: by how much, and in which direction.
            labels = gain if name == "ridge" else benchmark.labels
            found = baselines.in_domain_scores(fit, prompts, embedded, labels, seed)
            scores[f"{name}-in-domain"] = found
    return scores


def _row(benchmark: Benchmark, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A row of the report; what `figures` do not have is undefined."""
    row: dict[str, Any] = {"router": name, "benchmark": benchmark.name, "kind": "baseline"}
    row["n"] = benchmark.n
    for key in ("apgr", "cpt50", "cpt80", "auc", "ece"):
        row |= {key: NAN, f"{key}_ci": [NAN, NAN]}
    means = {"strong_mean": benchmark.strong.mean(), "weak_mean": benchmark.weak.mean()}
    row |= {key: float(mean) for key, mean in means.items()}
    row |= {"brier": NAN, "vs_random": {"difference": NAN, "ci": [NAN, NAN]}}
    return {**row, "note": NOTES.get(name, ""), **figures}


def _figures(
    name: str, benchmark: Benchmark, scores: Floats, curve: Curve, samples: Samples
) -> dict[str, Any]:
    labels = benchmark.labels
    values = {"apgr": curve.apgr(), "cpt50": curve.cpt(0.5), "cpt80": curve.cpt(0.8)}
    values["auc"] = auc(scores, labels)
    found: dict[str, Any] = {}
    # A length ranks, but is no probability: calibration is not defined for it.
    if np.all((scores >= 0) & (scores <= 1)) and name not in NO_PROBABILITY:
        values["ece"], found["brier"] = ece(scores, labels), brier(scores, labels)
    found |= values
    found |= {f"{key}_ci": list(interval(getattr(samples, key))) for key in values}
    # A random router has an APGR of 0.5 in every resample, so the difference is paired.
    ends = [end - 0.5 for end in found["apgr_ci"]]
    found["vs_random"] = {"difference": values["apgr"] - 0.5, "ci": ends}
    found["usd_per_1k"] = _usd(benchmark, scores, found)
    return found


def _usd(benchmark: Benchmark, scores: Floats, at: Mapping[str, float]) -> dict[str, float]:
    """Mean cost of 1,000 requests at CPT(50%) and CPT(80%); empty where costs are not known."""
    if benchmark.strong_cost is None or benchmark.weak_cost is None:
        return {}
    order, starts = tied_groups(scores)
    extra = np.add.reduceat((benchmark.strong_cost - benchmark.weak_cost)[order], starts)
    calls, n = np.append(starts, benchmark.n), benchmark.n
    weak, total = benchmark.weak_cost.mean(), np.append(0, np.cumsum(extra))
    return {
        key: float(1000 * (weak + np.interp(at[key] * n, calls, total) / n))
        for key in ("cpt50", "cpt80")
    }


def _plain_rows(benchmark: Benchmark, seed: int) -> list[dict[str, Any]]:
    """Random routing and the two models alone. A single model is a point, so it has no APGR."""
    figures: dict[str, Any] = {"auc": 0.5}
    drawn = baselines.random_routing(benchmark.strong, benchmark.weak, seed=seed)
    for key, (expected, draws) in drawn.items():
        figures |= {key: expected, f"{key}_ci": list(interval(draws))}
    figures["usd_per_1k"] = _usd(benchmark, np.zeros(benchmark.n), figures)
    rows = [_row(benchmark, "random", figures)]
    for side in ("strong", "weak"):
        reward, cost = getattr(benchmark, side).mean(), getattr(benchmark, f"{side}_cost")
        usd = {} if cost is None else {"always": float(1000 * cost.mean())}
        name = f"always-{side}"
        note = f"{NOTES[name]}: mean reward {reward:.4f}"
        figures = {"usd_per_1k": usd, "reward": reward, "note": note}
        rows.append(_row(benchmark, name, figures))
    return rows


def _drawn(curve: Curve, samples: Samples) -> dict[str, list[float]]:
    # The gap itself varies from sample to sample, the same for every router; the band is that of
    # the part recovered, on the scale of the reward, so that it shows what routing adds.
    gap = curve.strong_mean - curve.weak_mean
    ends = curve.weak_mean + gap * np.array([interval(column) for column in samples.pgr.T])
    drawn = {
        "share": SHARES,
        "reward": curve.rewards(SHARES),
        "low": ends[:, 0],
        "high": ends[:, 1],
    }
    return {key: values.tolist() for key, values in drawn.items()}


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    same = {key: getattr(benchmark, key) for key in ("name", "n", "strong_model", "weak_model")}
    means = {"strong_mean": benchmark.strong.mean(), "weak_mean": benchmark.weak.mean()}
    same |= {key: float(mean) for key, mean in means.items()}
    return {**same, "dropped": dict(benchmark.dropped)}


def _blocks(
    title: str, function: Callable[[list[Any]], Any], inputs: list[Any], shown: bool
) -> npt.NDArray[Any]:
    """`function` over blocks of prompts, with a progress bar on stderr where it is shown."""
    from rich.markup import escape
    from rich.progress import track

    parts = []
    console = new_console(stderr=True)
    blocks = [inputs[i : i + SCORING_BLOCK] for i in range(0, len(inputs), SCORING_BLOCK)]
    for block in track(blocks, escape(title), console=console, transient=True, disable=not shown):
        part = np.asarray(function(block))
        if part.ndim == 0 or len(part) != len(block):
            raise EvaluationError(
                f"{title}: {len(block)} prompts gave an array of shape {part.shape}; "
                "expected one entry for each"
            )
        parts.append(part)
    return np.concatenate(parts)

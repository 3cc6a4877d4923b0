"""`thriftroute evaluate` and `thriftroute calibrate`: from the command's options to a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.readers import read_prompts, read_rows
from ..data.tables import pair_table
from ..errors import CalibrationError, ConfigError
from ..router.bundle import update_manifest
from ..router.routers import CHECKPOINTS, BundleRouter, Router, load_router
from ..router.text import Promptlike, as_conversation
from ..router.threshold import ThresholdTable
from . import benchmarks
from .audit.labels import Labels, read_labels
from .benchmarks import Benchmark
from .calibrate import Calibration, calibrate_cost, calibrate_share
from .metrics import Floats
from .pricing import CostOptions, costs_of
from .printing import simulated_note
from .run import EvaluationReport, evaluate
from .scored import CachedScorer


@dataclass(frozen=True)
class Target:
    """What is evaluated or calibrated on: named benchmarks, or a file with a pair of models."""

    benchmarks: Sequence[str] = ()
    data: str | None = None
    strong: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()

    def load(self) -> list[Benchmark]:
        """Raises ConfigError where the options do not fit together, and as the loaders do."""
        if self.data is None and not self.benchmarks:
            raise ConfigError(
                "nothing to work on: give --benchmark NAME ("
                + ", ".join(sorted(benchmarks.BENCHMARKS))
                + ") or --data FILE --strong MODEL --weak MODEL"
            )
        if self.data is not None and not (self.strong and self.weak):
            raise ConfigError("--data needs --strong MODEL and --weak MODEL")
        found = [benchmarks.load(name) for name in dict.fromkeys(self.benchmarks)]
        if self.data is not None:
            found.append(benchmarks.from_file(self.data, self.strong, self.weak))
        return found


def scored(router: Router) -> Any:
    """A function from prompts to scores, float64[n]; cached on disk where a bundle is behind it."""
    if isinstance(router, BundleRouter):
        return CachedScorer(router.scorer).scores
    return lambda prompts: router.scores([as_conversation(prompt) for prompt in prompts])


def run_evaluation(
    names: Sequence[str] | Mapping[str, str],
    target: Target,
    *,
    train_data: Sequence[str] = (),
    seed: int = 0,
    bootstraps: int = 1000,
    knn: bool = True,
) -> EvaluationReport:
    """Evaluate routers, by name or folder, with all baselines beside.

    names: what to load, or a mapping from the name to report to what to load.
    train_data: files that the routers were trained on, for the kNN on equal data (needs a pair).
    """
    if "random" in names:
        raise ConfigError("random routing is in every evaluation, as a baseline: leave it out")
    shown = names if isinstance(names, Mapping) else {name: name for name in names}
    routers = {name: load_router(source) for name, source in shown.items()}
    loaded = target.load()
    encoder = train = None
    # The kNN baselines use the embeddings of a frozen encoder where there is one.
    known = [one for one in routers.values() if isinstance(one, BundleRouter)]
    frozen = [one for one in known if one.scorer.bundle.manifest.kind == "mf"]
    if not frozen and (CHECKPOINTS / "mf").is_dir() and knn:
        built_in = load_router("mf")
        frozen = [built_in] if isinstance(built_in, BundleRouter) else []
    if knn and (frozen or known):
        encoder = CachedScorer((frozen or known)[0].scorer)
    if train_data and encoder is not None:
        if not (target.strong and target.weak):
            raise ConfigError("--train-data needs --strong MODEL and --weak MODEL")
        rows = (row for name in train_data for row in read_rows(name))
        table = pair_table(rows, target.strong, target.weak)
        train = (encoder.embeddings(table.inputs()), table.win)
    return evaluate(
        {name: scored(router) for name, router in routers.items()},
        loaded,
        embed=None if encoder is None else encoder.embeddings,
        train=train,
        seed=seed,
        bootstraps=bootstraps,
    )


@dataclass(frozen=True, eq=False)
class ScoredPrompts:
    """A router's scores float64[n] of n prompts. `labels`, and `costs` of a request on strong and
    weak, are None where unknown; `assumed`: what the costs rest on."""

    router: Router
    name: str
    inputs: list[Promptlike]
    labels: Labels | None
    costs: tuple[Floats, Floats] | None
    assumed: tuple[str, ...]
    scores: Floats

    @property
    def simulated(self) -> tuple[str, ...]:
        """A warning where the labels are those of the samples."""
        found = None if self.labels is None else self.labels.benchmark
        told = "" if found is None else simulated_note(found.strong_model, found.weak_model)
        return (told,) if told else ()

    def write_table(self) -> None:
        """Put the table of all shares into the router's bundle, under the prompts' name."""
        assert isinstance(self.router, BundleRouter)
        bundle = self.router.scorer.bundle
        table = ThresholdTable.from_scores(self.name, self.scores)
        # At the end, also where the name was there before: `share_table` takes the last.
        others = {n: t for n, t in bundle.manifest.thresholds.items() if n != self.name}
        tables = {**others, self.name: table}
        update_manifest(bundle, thresholds=tables)


def score_prompts(
    name: str,
    target: Target,
    *,
    prompts: str | None = None,
    cost: CostOptions | None = None,
    budget: bool = False,
    write: bool = False,
) -> ScoredPrompts:
    """The one set of prompts that the target or the file `prompts` names, scored by router `name`.

    budget: costs must be known. write: the router must be a bundle that can take a table. Raises
    ConfigError for options that do not fit together, CalibrationError, and what the loaders raise.
    """
    # A measurement comes out the same again, also of the router that draws.
    router = load_router(name, {"seed": 0} if name == "random" else None)
    if write and not isinstance(router, BundleRouter):
        raise ConfigError(f"router {name!r} is no bundle: there is nowhere to write a table to")
    labels = benchmark = None
    if prompts is None:
        labels = read_labels(target)
        benchmark = labels.benchmark
        label, inputs = benchmark.name, benchmark.inputs()
    elif target.benchmarks or target.data:
        raise ConfigError("give one of --prompts, --benchmark and --data")
    else:
        label, inputs = Path(prompts).name, list(read_prompts(prompts))
    if not inputs:
        raise CalibrationError(f"{prompts} holds no prompt; give at least one")
    costs, assumed = costs_of(router, inputs, benchmark, cost or CostOptions(), budget)
    scores = np.asarray(scored(router)(inputs))
    return ScoredPrompts(router, label, inputs, labels, costs, assumed, scores)


def run_calibration(
    name: str,
    target: Target,
    *,
    strong_pct: float | None = None,
    usd_per_1k: float | None = None,
    write: bool = False,
    seed: int = 0,
    **options: Any,
) -> Calibration:
    """A threshold for a share of strong calls or for a budget, on a benchmark or on own prompts.

    With `write` the table of all shares goes into the bundle. options: `prompts` and `cost` of
    `score_prompts`; raises as that.
    """
    if (strong_pct is None) == (usd_per_1k is None):
        raise ConfigError("give either --strong-pct SHARE or --usd-per-1k USD")
    if strong_pct is not None and not 0 <= strong_pct <= 1:
        hint = f"; for {strong_pct:g}% give {strong_pct / 100:g}" if 1 < strong_pct <= 100 else ""
        raise ConfigError(f"--strong-pct is a share from 0 to 1, got {strong_pct:g}{hint}")
    on = score_prompts(name, target, budget=usd_per_1k is not None, write=write, **options)
    rewards = None
    if on.labels is not None:
        rewards = on.labels.benchmark.strong, on.labels.benchmark.weak
    if strong_pct is not None:
        result = calibrate_share(on.scores, strong_pct, on.costs, rewards, seed=seed)
    else:
        assert usd_per_1k is not None and on.costs is not None
        result = calibrate_cost(on.scores, usd_per_1k, on.costs, rewards, seed=seed)
    if write:
        on.write_table()
    # A budget is only as good as what was assumed for it.
    warnings = (*on.simulated, result.warning, *on.assumed)
    return replace(result, warning="; ".join(filter(None, warnings)))

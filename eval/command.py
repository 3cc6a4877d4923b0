"""`thriftroute evaluate` and `thriftroute calibrate`: from the command's options to a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from .benchmarks import Benchmark
from .calibrate import Calibration, calibrate_cost, calibrate_share
from .metrics import Floats
from .pricing import CostOptions, costs_of
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
    encoder = _encoder(list(routers.values())) if knn else None
    train = None
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


def run_calibration(
    name: str,
    target: Target,
    *,
    prompts: str | None = None,
    strong_pct: float | None = None,
    usd_per_1k: float | None = None,
    cost: CostOptions | None = None,
    write: bool = False,
    seed: int = 0,
) -> Calibration:
    """A threshold for a share of strong calls or for a budget, on a benchmark or on own prompts.

    With `write` the table of all shares goes into the bundle, under the benchmark's or file's name.
    Raises ConfigError, CalibrationError, and what the loaders raise.
    """
    if (strong_pct is None) == (usd_per_1k is None):
        raise ConfigError("give either --strong-pct SHARE or --usd-per-1k USD")
    if strong_pct is not None and not 0 <= strong_pct <= 1:
        hint = f"; for {strong_pct:g}% give {strong_pct / 100:g}" if 1 < strong_pct <= 100 else ""
        raise ConfigError(f"--strong-pct is a share from 0 to 1, got {strong_pct:g}{hint}")
    router = load_router(name)
    if write:
        check_writable(router, name)
    inputs, label, benchmark = _calibration_inputs(target, prompts)
    budget = usd_per_1k is not None
    costs, assumptions = costs_of(router, inputs, benchmark, cost or CostOptions(), budget)
    scores = np.asarray(scored(router)(inputs))
    rewards = None if benchmark is None else (benchmark.strong, benchmark.weak)
    if strong_pct is not None:
        result = calibrate_share(scores, strong_pct, costs, rewards, seed=seed)
    else:
        assert usd_per_1k is not None and costs is not None
        result = calibrate_cost(scores, usd_per_1k, costs, rewards, seed=seed)
    if write:
        write_table(router, label, scores)
    # A budget is only as good as what was assumed for it.
    warning = "; ".join(filter(None, (result.warning, *assumptions)))
    return dataclasses.replace(result, warning=warning)


def _calibration_inputs(
    target: Target, prompts: str | None
) -> tuple[list[Promptlike], str, Benchmark | None]:
    """(what is scored, its name, the labelled set where it is one)."""
    if prompts is None:
        found = target.load()
        if len(found) != 1:
            raise ConfigError(f"calibrate on one set of prompts, not on {len(found)}")
        return found[0].inputs(), found[0].name, found[0]
    if target.benchmarks or target.data:
        raise ConfigError("give one of --prompts, --benchmark and --data")
    inputs: list[Promptlike] = list(read_prompts(prompts))
    if not inputs:
        raise CalibrationError(f"{prompts} holds no prompt; give at least one")
    return inputs, Path(prompts).name, None


def check_writable(router: Router, name: str) -> None:
    """Raises ConfigError unless `router`, called `name`, is a bundle that can take a table."""
    if not isinstance(router, BundleRouter):
        raise ConfigError(f"router {name!r} is no bundle: there is nowhere to write a table to")


def write_table(router: Router, label: str, scores: Floats) -> None:
    """Put the table of all shares on `scores` into the router's bundle, under `label`."""
    if not isinstance(router, BundleRouter):
        return
    bundle = router.scorer.bundle
    tables = {**bundle.manifest.thresholds, label: ThresholdTable.from_scores(label, scores)}
    plain = {k: v.to_dict() if isinstance(v, ThresholdTable) else v for k, v in tables.items()}
    update_manifest(bundle, thresholds=plain)


def _encoder(routers: Sequence[Router]) -> CachedScorer | None:
    """Whose embeddings the kNN baselines use: those of a frozen encoder where there is one."""
    bundles = [router for router in routers if isinstance(router, BundleRouter)]
    frozen = [router for router in bundles if router.scorer.bundle.manifest.kind == "mf"]
    if not frozen and (CHECKPOINTS / "mf").is_dir():
        built_in = load_router("mf")
        frozen = [built_in] if isinstance(built_in, BundleRouter) else []
    chosen = (frozen or bundles)[:1]
    return CachedScorer(chosen[0].scorer) if chosen else None

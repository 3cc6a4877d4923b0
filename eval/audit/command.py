"""`thriftroute audit` and `thriftroute report`: from the command's options to a verdict."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...data.readers import read_rows
from ...data.schema import render
from ...errors import ConfigError
from ...router.routers import CHECKPOINTS, BundleRouter, Router, load_router
from ...router.threshold import format_threshold
from ...terminal import new_console
from ..baselines import knn_in_domain_scores, length_scores
from ..benchmarks import Benchmark
from ..command import CostOptions, Target, costs_of, scored
from ..metrics import Floats
from ..scored import CachedScorer
from .audit import audit
from .labels import learned_from, read_labels
from .measure import Rows
from .verdict import Option, Verdict

if TYPE_CHECKING:
    from rich.console import Console

# Fewer distinct prompts than this may not fill two folds of the kNN.
KNN_PROMPTS = 10


@dataclass(frozen=True)
class Wish:
    """What is asked of a routing; see `audit.audit`."""

    min_quality: float = 0.95
    confidence: float = 0.9
    min_saving: float = 0.05
    max_labels: int = 10_000


@dataclass(frozen=True, eq=False)
class Audited:
    """A verdict, and the labelled prompts that it is about.

    `rows` as they were audited; `embeddings` float32[n, d], None where the router has none;
    `tasks`, n names, None where the data names fewer than two.
    """

    verdict: Verdict
    router: str
    benchmark: Benchmark
    rows: Rows
    embeddings: npt.NDArray[np.floating] | None
    tasks: list[str] | None


def run_audit(
    name: str,
    target: Target,
    wish: Wish,
    *,
    cost: CostOptions | None = None,
    seed: int = 0,
) -> Audited:
    """Audit the router `name` on the one labelled set that `target` names.

    Costs are those of the options, else those that the data has for every prompt, else strong calls
    are counted. Raises ConfigError where options do not fit together, and what the loaders, the
    readers and `audit.audit` raise.
    """
    if target.data is not None and target.benchmarks:
        raise ConfigError("give one of --data and --benchmark")
    router = load_router(name)
    labels = read_labels(target)
    benchmark = labels.benchmark
    inputs = benchmark.inputs()
    costs, assumptions = costs_of(router, inputs, benchmark, cost or CostOptions(), needed=False)
    scores = np.asarray(scored(router)(inputs))
    embeddings = _embeddings(router, inputs)
    # A ratio of rewards does not depend on their unit.
    best = labels.bounds[1]
    strong, weak = benchmark.strong / best, benchmark.weak / best
    verdict = audit(
        scores,
        strong,
        weak,
        costs,
        min_quality=wish.min_quality,
        confidence=wish.confidence,
        min_saving=wish.min_saving,
        max_labels=wish.max_labels,
        weights=labels.weights,
        others=_others(name, benchmark, embeddings, strong - weak),
        seed=seed,
    )
    warnings = [*verdict.warnings, *assumptions]
    if learned := learned_from(router, target.data, benchmark.prompts):
        warnings.insert(
            0,
            f"{learned}: what it has seen makes every figure here too good; audit prompts that it "
            "has not learned from",
        )
    return Audited(
        verdict=dataclasses.replace(verdict, warnings=tuple(warnings)),
        router=name,
        benchmark=benchmark,
        rows=Rows.of(scores, strong, weak, costs, labels.weights),
        embeddings=embeddings,
        tasks=None if target.data is None else _tasks(target.data, benchmark),
    )


def _embeddings(router: Router, inputs: list[Any]) -> npt.NDArray[np.floating] | None:
    if not isinstance(router, BundleRouter):
        return None
    return CachedScorer(router.scorer).embeddings(inputs)


def _others(
    name: str,
    benchmark: Benchmark,
    embeddings: npt.NDArray[np.floating] | None,
    gain: Floats,
) -> dict[str, Floats]:
    """What a router is shown beside: the bundle in the box, prompt length, and a kNN."""
    found: dict[str, Floats] = {}
    if name != "mf" and (CHECKPOINTS / "mf").is_dir():
        found["mf in the box"] = np.asarray(scored(load_router("mf"))(benchmark.inputs()))
    found["prompt-length"] = length_scores(benchmark.prompts)
    if embeddings is not None and len(set(benchmark.prompts)) >= KNN_PROMPTS:
        # It learns the gains of the other folds, scaled to [0, 1].
        found["knn-in-domain"] = knn_in_domain_scores(benchmark.prompts, embeddings, (1 + gain) / 2)
    return found


def _tasks(data: str, benchmark: Benchmark) -> list[str] | None:
    """The category of each prompt, where the rows name at least two."""
    known: dict[str, str] = {}
    for row in read_rows(data):
        if row.category:
            known.setdefault(row.prompt, row.category)
    if len(set(known.values())) < 2:
        return None
    return [known.get(prompt, "(none)") for prompt in benchmark.prompts]


def prompt_text(audited: Audited, index: int) -> str:
    """Prompt `index` as a person reads it: the user turns, where it is a conversation."""
    said = None if audited.benchmark.messages is None else audited.benchmark.messages[index]
    return audited.benchmark.prompts[index] if said is None else render(said)


def show(audited: Audited, console: "Console | None" = None) -> None:
    """Print the verdict, what it rests on, and the baselines."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    out = console or new_console()
    verdict = audited.verdict
    out.print(f"{verdict.verdict}: {escape(verdict.why)}", style="bold", highlight=False)
    for line in facts(verdict):
        out.print(escape(line), highlight=False)
    for warning in verdict.warnings:
        out.print(f"warning: {escape(warning)}", style="yellow", highlight=False)
    if verdict.candidate is None:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("on the measured half", "strong", "saving", "quality [95%]"):
        table.add_column(column, justify="left" if column.startswith("on") else "right")
    at = format_threshold(verdict.candidate_threshold)
    for name, option in {
        f"{audited.router} at {at}": verdict.candidate,
        **verdict.baselines,
    }.items():
        table.add_row(escape(name), *cells(option))
    out.print(table)


def facts(verdict: Verdict) -> list[str]:
    """What a verdict rests on, a sentence each."""
    low, high = verdict.quality_ci
    lines = []
    if verdict.verdict == "route":
        least, most = verdict.saving_ci
        lines.append(
            f"saving {verdict.saving:.1%} [{least:.1%}, {most:.1%}] of {_unit(verdict)}, quality "
            f"{verdict.quality:.1%} [{low:.1%}, {high:.1%}] of the strong model's (95% intervals)"
        )
    lines.append(
        f"{verdict.n:,} labelled prompts"
        + (
            f": {verdict.n_chosen_on:,} at random chose the threshold, the other "
            f"{verdict.n_measured:,} measured it"
            if verdict.n_measured
            else ""
        )
        + (", counted by their weights" if verdict.weighted else "")
    )
    for same, found in verdict.against_random.items():
        least, most = found.difference.ci
        lines.append(
            f"against a random mix of the same {same}: mean reward {found.difference.value:+.4f} "
            f"[{least:+.4f}, {most:+.4f}], p = {found.p_value:.4f}"
        )
    return lines


def cells(option: Option) -> tuple[str, str, str]:
    """Strong share, saving and quality of an option, as tables show them."""
    low, high = option.quality_ci
    return (
        f"{option.strong_pct:.1%}",
        f"{option.saving:.1%}",
        f"{option.quality:.1%} [{low:.1%}, {high:.1%}]",
    )


def _unit(verdict: Verdict) -> str:
    return "the cost" if verdict.saving_of == "usd" else "the strong calls"

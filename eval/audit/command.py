"""`thriftroute audit` and `thriftroute report`: from the command's options to a verdict."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...data.answers import read_answers
from ...data.schema import render
from ...errors import ConfigError, DataError, EvaluationError
from ...router.routers import CHECKPOINTS, BundleRouter, load_router
from ...router.second_look import SecondLook
from ...router.threshold import format_threshold
from ...terminal import new_console
from ..baselines import FOLD_PROMPTS, in_domain_scores, knn_scores, length_scores
from ..benchmarks import Benchmark
from ..command import ScoredPrompts, Target, score_prompts, scored
from ..look_command import look_at
from ..look_gain import LookGain, look_gain
from ..metrics import Floats
from ..pricing import SIDES, CostOptions
from ..printing import between, line, percent, table
from ..replay.command import Replay, ReplaySettings, run_replay
from ..scored import CachedScorer
from ..second_look import PRICE_RATIO
from .audit import audit
from .labels import learned_from
from .measure import Rows
from .verdict import AuditSettings, AuditVerdict

if TYPE_CHECKING:
    from rich.console import Console

Embeddings = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Audited:
    """A verdict, and the labelled prompts that it is about.

    `rows` as they were audited; `embeddings` float32[n, d], None where the router has none;
    `tasks`, n names, None where the data names fewer than two. `sessions`: what routing costs
    inside recorded sessions of the same two models, where some were given.
    """

    verdict: AuditVerdict
    router: str
    benchmark: Benchmark
    rows: Rows
    embeddings: Embeddings | None
    tasks: list[str] | None
    sessions: Replay | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it but the prompts, for JSON."""
        sessions = None if self.sessions is None else self.sessions.to_dict()
        return {**self.verdict.to_dict(), "router": self.router, "sessions": sessions}

    def prompt_text(self, index: int) -> str:
        """Prompt `index` as a person reads it: the user turns, where it is a conversation."""
        messages = self.benchmark.messages
        said = None if messages is None else messages[index]
        return self.benchmark.prompts[index] if said is None else render(said)


def run_audit(
    name: str,
    target: Target,
    settings: AuditSettings,
    cost: CostOptions | None = None,
    sessions: Sequence[Path] = (),
) -> Audited:
    """Audit the router `name` on the one labelled set that `target` names.

    Costs are those of the options, else those that the data has for every prompt, else strong calls
    are counted. `sessions`: recorded ones, as `replay` reads them, for a replay with the same
    models and prices, and with the verdict's threshold where they have texts. Raises ConfigError
    where options do not fit together, and what the loaders, the readers, `measure.Rows.of` and
    `run_replay` raise.
    """
    if target.data is not None and target.benchmarks:
        raise ConfigError("give one of --data and --benchmark")
    on = score_prompts(name, target, cost=cost)
    assert on.labels is not None
    labels, benchmark, embeddings = on.labels, on.labels.benchmark, None
    if isinstance(on.router, BundleRouter):
        embeddings = CachedScorer(on.router.scorer).embeddings(on.inputs)
    # A ratio of rewards does not depend on their unit.
    strong, weak = (rewards / labels.bounds[1] for rewards in (benchmark.strong, benchmark.weak))
    rows = Rows.of(on.scores, strong, weak, on.costs, labels.weights)
    verdict = audit(rows, settings, _others(name, benchmark, embeddings, rows.strong - rows.weak))
    warnings = (*verdict.warnings, *on.assumed)
    if learned := learned_from(on.router, target.data, benchmark.prompts):
        known = (
            f"{learned}: what it has seen makes every figure here too good; audit prompts that it "
            "has not learned from"
        )
        warnings = (known, *warnings)
    warnings = (*on.simulated, *warnings)
    found, hint = _second_look(on, target, rows, settings)
    warnings = (*warnings, *hint)
    verdict = dataclasses.replace(verdict, warnings=warnings, second_look=found)
    replay = _replay(name, verdict, target, cost or CostOptions(), sessions) if sessions else None
    return Audited(verdict, name, benchmark, rows, embeddings, labels.tasks, replay)


def _replay(
    name: str, verdict: AuditVerdict, target: Target, cost: CostOptions, sessions: Sequence[Path]
) -> Replay:
    strong, weak = (
        getattr(cost, f"{side}_model") or next(iter(getattr(target, side)), "") for side in SIDES
    )
    if not (strong and weak):
        raise ConfigError("--sessions needs --strong-model NAME and --weak-model NAME")
    threshold = verdict.candidate_threshold
    known = not math.isnan(threshold)
    settings = ReplaySettings(
        strong,
        weak,
        strong_price=cost.strong_price,
        weak_price=cost.weak_price,
        router=name if known else None,
        threshold=threshold if known else None,
        seed=verdict.seed,
        router_if_text=True,
    )
    return run_replay(sessions, settings)


def _second_look(
    on: ScoredPrompts, target: Target, rows: Rows, settings: AuditSettings
) -> tuple[LookGain | None, tuple[str, ...]]:
    """What a second look adds, where the router has one and the data have answers; and a hint
    where only one of the two is there."""
    look = SecondLook.of(on.router.scorer.bundle) if isinstance(on.router, BundleRouter) else None
    if target.data is None or len(target.weak) != 1 or on.labels is None:
        return None, ()
    data, [weak], prompts = target.data, target.weak, on.labels.benchmark.prompts
    if look is None or not isinstance(on.router, BundleRouter):
        with contextlib.suppress(DataError):
            read_answers(data, weak)
            told = "these rows have the text of answers: a bundle of `train second-look`"
            return None, (f"{told}, trained on other such rows, shows whether a second look pays",)
        return None, ()
    try:
        keep, looks = look_at(look, on.router, (data, weak, None), prompts, rows.scores)
    except (DataError, EvaluationError) as error:
        return None, (f"the router's second look was not measured: {error}",)
    known = rows.usd and rows.weak_cost.any()
    ratio = float(rows.strong_cost.mean() / rows.weak_cost.mean()) if known else PRICE_RATIO
    seen = rows.scores[keep], looks, (rows.strong[keep], rows.weak[keep])
    return look_gain(look, *seen, ratio, seed=settings.seed), ()


def _others(
    name: str, benchmark: Benchmark, embeddings: Embeddings | None, gain: Floats
) -> dict[str, Floats]:
    """What a router is shown beside: the built-in bundle, prompt length, and a kNN."""
    found: dict[str, Floats] = {}
    if name != "mf" and (CHECKPOINTS / "mf").is_dir():
        found["built-in mf"] = np.asarray(scored(load_router("mf"))(benchmark.inputs()))
    found["prompt-length"] = length_scores(benchmark.prompts)
    if embeddings is not None and len(set(benchmark.prompts)) >= FOLD_PROMPTS:
        # It learns the gains of the other folds, scaled to [0, 1].
        labels = (1 + gain) / 2
        found["knn-in-domain"] = in_domain_scores(knn_scores, benchmark.prompts, embeddings, labels)
    return found


def print_audit(audited: Audited, console: "Console | None" = None) -> None:
    """Print the verdict, what it rests on, and the baselines."""
    out, verdict = console or new_console(), audited.verdict
    line(out, f"{verdict.verdict}: {verdict.why}", style="bold")
    for fact in _facts(verdict):
        line(out, fact)
    if verdict.second_look is not None:
        line(out, f"second look: {verdict.second_look.why}")
    if audited.sessions is not None:
        line(out, f"sessions: {audited.sessions.advice}", style="bold")
    for warning in verdict.warnings:
        line(out, f"warning: {warning}", style="yellow")
    if verdict.candidate is None:
        return
    own = f"{audited.router} at {format_threshold(verdict.candidate_threshold)}"
    rows = [
        (
            name,
            f"{option.strong_pct:.1%}",
            percent(option.saving),
            f"{percent(option.quality)} [{between(option.quality_ci)}]",
        )
        for name, option in {own: verdict.candidate, **verdict.shown}.items()
    ]
    table(out, ("on the measured half", "strong", "saving", "quality [95%]"), rows)
    for rival in verdict.rivals({}):
        line(out, f"why not {rival}")


def _facts(verdict: AuditVerdict) -> list[str]:
    """What a verdict rests on, a sentence each."""
    lines = []
    if verdict.verdict == "route":
        (low, high), (least, most) = verdict.quality_ci, verdict.saving_ci
        lines.append(
            f"saving {verdict.saving:.1%} [{least:.1%}, {most:.1%}] of {verdict.unit}, quality "
            f"{verdict.quality:.1%} [{low:.1%}, {high:.1%}] of the strong model's (95% intervals)"
        )
    halves = (
        f": {verdict.n_chosen_on:,} at random chose the threshold, the other "
        f"{verdict.n_measured:,} measured it"
    )
    lines.append(
        f"{verdict.n:,} labelled prompts{halves if verdict.n_measured else ''}"
        f"{', counted by their weights' if verdict.weighted else ''}"
    )
    for same, found in verdict.against_random.items():
        gain = found.difference
        if not math.isfinite(gain.low):
            continue
        lines.append(
            f"against a random mix of the same {same}: mean reward {gain.value:+.4f} "
            f"[{gain.low:+.4f}, {gain.high:+.4f}], p = {found.p_value:.4f}"
        )
    if verdict.n_measured:
        lines.append(
            "calibrate, asked the same, chooses on all labels, and this on half of them with half "
            "of the error allowed: the thresholds differ"
        )
    return lines

"""`thriftroute calibrate` with a confidence: from the command's options to a guarantee."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.readers import read_prompts
from ...errors import CalibrationError, ConfigError
from ...router.routers import load_router
from ...router.text import Promptlike
from ...router.threshold import format_threshold
from ...terminal import new_console
from ..audit.labels import Labels, learned_from, read_labels
from ..benchmarks import Benchmark
from ..command import CostOptions, Target, check_writable, costs_of, scored, write_table
from .threshold import Guarantee, guaranteed

if TYPE_CHECKING:
    from rich.console import Console

CONFIDENCE = 0.9
# What is said of a promise that is kept, by its name.
SAID = {
    "min_quality": "quality is at least {0:.1%} of always strong's",
    "min_gap": "at least {0:.1%} of the gap between weak and strong is recovered",
    "max_regret": "mean reward is at most {0:.4g} below always strong's",
    "max_cost": "the mean cost of 1,000 requests is at most {0:.4g} USD",
}


@dataclass(frozen=True)
class Wish:
    """What is to be promised: exactly one of the first four; see `guarantee.guaranteed`.

    `max_request_usd`: what no request costs more than, for a budget. `confidence` None: 0.9.
    """

    min_quality: float | None = None
    min_gap: float | None = None
    max_regret: float | None = None
    usd_per_1k: float | None = None
    confidence: float | None = None
    max_request_usd: float | None = None

    def check(self) -> None:
        """Raises ConfigError, in the words of the command line, for what makes no sense."""
        asked = {
            "--min-quality": self.min_quality,
            "--min-gap": self.min_gap,
            "--max-regret": self.max_regret,
            "--usd-per-1k": self.usd_per_1k,
        }
        given = [option for option, value in asked.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"one promise at a time: give one of {', '.join(asked)}")
        for option, value in (*asked.items(), ("--confidence", self.confidence)):
            if value is None:
                continue
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{option} {value:g} is no number above 0")
            part = option in ("--min-quality", "--min-gap", "--confidence")
            if part and value >= 1:
                hint = f"; for {value:g}% give {value / 100:g}" if 1 < value < 100 else ""
                raise ConfigError(f"{option} is a part of 1, and below it, got {value:g}{hint}")
        if self.confidence is not None and self.confidence < 0.5:
            raise ConfigError(f"--confidence {self.confidence:g}: expected 0.5 or more, as 0.9")
        if self.max_request_usd is not None and self.usd_per_1k is None:
            raise ConfigError("--max-request-usd goes with --usd-per-1k alone")


def run_guarantee(
    name: str,
    target: Target,
    wish: Wish,
    *,
    prompts: str | None = None,
    cost: CostOptions | None = None,
    write: bool = False,
    seed: int = 0,
) -> Guarantee:
    """A threshold that keeps `wish`, on a labelled set or, for a budget, on prompts alone.

    With `write` the table of all shares goes into the bundle, as in `run_calibration`.
    Raises ConfigError, CalibrationError, and what the loaders raise.
    """
    wish.check()
    router = load_router(name)
    if write:
        check_writable(router, name)
    labels: Labels | None = None
    benchmark: Benchmark | None = None
    if prompts is not None:
        if target.benchmarks or target.data:
            raise ConfigError("give one of --prompts, --benchmark and --data")
        if wish.usd_per_1k is None:
            raise ConfigError(
                "a promise about quality needs labels: give --data FILE --strong MODEL --weak "
                "MODEL, or --benchmark; prompts alone do for --usd-per-1k"
            )
        inputs: list[Promptlike] = list(read_prompts(prompts))
        label = Path(prompts).name
        if not inputs:
            raise CalibrationError(f"{prompts} holds no prompt; give at least one")
    else:
        labels = read_labels(target)
        benchmark = labels.benchmark
        inputs, label = benchmark.inputs(), benchmark.name
    budget = None if wish.usd_per_1k is None else wish.usd_per_1k / 1000
    costs, assumed = costs_of(router, inputs, benchmark, cost or CostOptions(), budget is not None)
    scores = np.asarray(scored(router)(inputs))
    found = guaranteed(
        scores,
        None if benchmark is None else benchmark.strong,
        None if benchmark is None else benchmark.weak,
        min_quality=wish.min_quality,
        min_gap=wish.min_gap,
        max_regret=wish.max_regret,
        max_cost=budget,
        confidence=CONFIDENCE if wish.confidence is None else wish.confidence,
        strong_cost=None if costs is None else costs[0],
        weak_cost=None if costs is None else costs[1],
        cost_cap=wish.max_request_usd,
        weights=None if labels is None else labels.weights,
        bounds=(0.0, 1.0) if labels is None else labels.bounds,
        seed=seed,
    )
    cautions = list(assumed)
    learned = None if benchmark is None else learned_from(router, target.data, benchmark.prompts)
    if learned and budget is None:
        cautions.append(f"{learned}: the promise holds for labels that it has not learned from")
    if labels is not None and labels.weights is not None:
        heaviest = float(labels.weights.max() / labels.weights.mean())
        cautions.append(
            "prompts count by the weight of their rows, and no prompt of the traffic is taken to "
            f"weigh more than the heaviest of these, {heaviest:.3g} times their mean"
        )
    if write:
        write_table(router, label, scores)
    return dataclasses.replace(found, assumptions=(*found.assumptions, *cautions))


def to_dict(found: Guarantee) -> dict[str, Any]:
    """As JSON of the command line: costs in USD per 1,000 requests, what was asked for first."""
    plain = found.to_dict()
    first = ("threshold", "strong_pct", "quality", "quality_bound", "confidence", "n")
    ordered = {key: plain.pop(key) for key in first}
    for key, name in (("cost", "usd_per_1k"), ("cost_bound", "usd_per_1k_bound")):
        value = plain.pop(key)
        plain[name] = None if value is None else 1000 * value
    if found.promise == "max_cost":
        plain |= {"promise": "usd_per_1k", "target": 1000 * found.target}
    plain["more_labels"] = None if found.needed_n is None else found.needed_n - found.n
    return {**ordered, **plain}


def show(found: Guarantee, console: "Console | None" = None) -> None:
    """Print a threshold and what is promised of it, or that nothing is."""
    out = console or new_console()

    def say(text: str) -> None:
        out.print(text, highlight=False, markup=False, soft_wrap=True)

    of = "labelled prompts" if found.quality is not None else "prompts"
    say(
        f"threshold {format_threshold(found.threshold)}: {found.strong_pct:.1%} strong calls on "
        f"n = {found.n:,} {of}"
    )
    budget = found.promise == "max_cost"
    if found.feasible:
        bounds = (found.quality_bound, found.gap_bound, found.regret_bound, found.cost_bound)
        [bound] = [value for value in bounds if value is not None]
        said = SAID[found.promise].format(1000 * bound if budget else bound)
        say(f"with {found.confidence:.0%} confidence {said}")
    else:
        say("always weak: no budget is promised" if budget else "always strong: nothing is saved")
    estimates: dict[str, tuple[float | None, str]] = {
        "quality": (found.quality, "{0:.1%} of strong's"),
        "gap recovered": (found.gap, "{0:.1%}"),
        "regret": (found.regret, "{0:.4f}"),
        "USD per 1,000 requests": (None if found.cost is None else 1000 * found.cost, "{0:.4g}"),
        "saving": (found.saving, "{0:.1%} of strong's cost"),
    }
    known = [
        f"{name} {form.format(value)}"
        for name, (value, form) in estimates.items()
        if value is not None
    ]
    if known:
        say(f"on these prompts: {', '.join(known)}")
    for text in found.assumptions:
        say(f"note: {text}")

"""`thriftroute calibrate` with a confidence: from the command's options to a guarantee."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.readers import read_prompts
from ...errors import CalibrationError, ConfigError
from ...router.routers import Router, load_router
from ...router.text import Promptlike
from ...router.threshold import format_threshold
from ...terminal import new_console
from ..audit.labels import Labels, learned_from, read_labels
from ..command import Target, check_writable, scored, write_table
from ..pricing import CostOptions, costs_of
from .promises import LabelledPrompts, Name, Promise, check_number
from .threshold import Guarantee, guaranteed

# What is said of a promise that is kept, by its name.
KEPT: dict[Name, str] = {
    "min_quality": "quality is at least {0:.1%} of always strong's",
    "min_gap": "at least {0:.1%} of the gap between weak and strong is recovered",
    "max_regret": "mean reward is at most {0:.4g} below always strong's",
    "max_cost": "the mean cost of 1,000 requests is at most {0:.4g} USD",
}
OPTIONS: dict[str, Name] = {
    "--min-quality": "min_quality",
    "--min-gap": "min_gap",
    "--max-regret": "max_regret",
    "--usd-per-1k": "max_cost",
}


def promise_of(
    given: Mapping[str, float | None], confidence: float | None, max_request_usd: float | None
) -> Promise:
    """The promise of the command line; given: the value of each of OPTIONS.

    Raises ConfigError, in the words of the command line, for what makes no sense.
    """
    asked = {option: value for option, value in given.items() if value is not None}
    if len(asked) != 1:
        raise ConfigError(f"one promise at a time: give one of {', '.join(OPTIONS)}")
    [(option, value)] = asked.items()
    if max_request_usd is not None and option != "--usd-per-1k":
        raise ConfigError("--max-request-usd goes with --usd-per-1k alone")
    try:
        check_number(option, value, part=option in ("--min-quality", "--min-gap"))
        if confidence is not None:
            check_number("--confidence", confidence, part=True, least=0.5)
    except CalibrationError as error:
        raise ConfigError(str(error)) from None
    target = value / 1000 if option == "--usd-per-1k" else value
    return Promise(OPTIONS[option], target, confidence or 0.9, max_request_usd)


def run_guarantee(
    name: str,
    target: Target,
    promise: Promise,
    *,
    prompts: str | None = None,
    cost: CostOptions | None = None,
    write: bool = False,
    seed: int = 0,
) -> Guarantee:
    """A threshold that keeps the promise, on a labelled set or, for a budget, on prompts alone.

    With `write` the table of all shares goes into the bundle, as in `run_calibration`.
    Raises ConfigError, CalibrationError, and what the loaders raise.
    """
    router = load_router(name)
    if write:
        check_writable(router, name)
    budget = promise.name == "max_cost"
    labels: Labels | None = None
    if prompts is None:
        labels = read_labels(target)
        inputs: list[Promptlike] = list(labels.benchmark.inputs())
        label = labels.benchmark.name
    else:
        if target.benchmarks or target.data:
            raise ConfigError("give one of --prompts, --benchmark and --data")
        if not budget:
            raise ConfigError(
                "a promise about quality needs labels: give --data FILE --strong MODEL --weak "
                "MODEL, or --benchmark; prompts alone do for --usd-per-1k"
            )
        inputs, label = list(read_prompts(prompts)), Path(prompts).name
        if not inputs:
            raise CalibrationError(f"{prompts} holds no prompt; give at least one")
    benchmark = None if labels is None else labels.benchmark
    costs, notes = costs_of(router, inputs, benchmark, cost or CostOptions(), budget)
    scores = np.asarray(scored(router)(inputs))
    known: dict[str, Any] = {}
    if labels is not None:
        known["rewards"] = labels.benchmark.strong, labels.benchmark.weak
        known |= {"weights": labels.weights, "bounds": labels.bounds}
        notes = (*notes, *_cautions(router, target, labels, budget=budget))
    found = guaranteed(LabelledPrompts(scores, costs=costs, **known), promise, seed=seed)
    if write:
        write_table(router, label, scores)
    return dataclasses.replace(found, assumptions=(*found.assumptions, *notes))


def _cautions(router: Router, target: Target, labels: Labels, *, budget: bool) -> list[str]:
    cautions = []
    learned = learned_from(router, target.data, labels.benchmark.prompts)
    if learned and not budget:
        cautions.append(f"{learned}: the promise holds for labels that it has not learned from")
    if labels.weights is not None:
        heaviest = float(labels.weights.max() / labels.weights.mean())
        cautions.append(
            "prompts count by the weight of their rows, and no prompt of the traffic is taken to "
            f"weigh more than the heaviest of these, {heaviest:.3g} times their mean"
        )
    return cautions


def print_guarantee(found: Guarantee) -> None:
    """Print a threshold and what is promised of it, or that nothing is."""
    budget = found.promise == "max_cost"
    of = "labelled prompts" if found.quality is not None else "prompts"
    lines = [
        f"threshold {format_threshold(found.threshold)}: {found.strong_pct:.1%} strong calls on "
        f"n = {found.n:,} {of}"
    ]
    if found.feasible:
        bounds = (found.quality_bound, found.gap_bound, found.regret_bound, found.cost_bound)
        [bound] = [value for value in bounds if value is not None]
        kept = KEPT[found.promise].format(1000 * bound if budget else bound)
        lines.append(f"with {found.confidence:.0%} confidence {kept}")
    else:
        nothing = "weak: no budget is promised" if budget else "strong: nothing is saved"
        lines.append(f"always {nothing}")
    estimates: dict[str, tuple[float | None, str]] = {
        "quality": (found.quality, "{0:.1%} of strong's"),
        "gap recovered": (found.gap, "{0:.1%}"),
        "regret": (found.regret, "{0:.4f}"),
        "USD per 1,000 requests": (None if found.cost is None else 1000 * found.cost, "{0:.4g}"),
        "saving": (found.saving, "{0:.1%} of strong's cost"),
    }
    known = [
        f"{n} {form.format(value)}" for n, (value, form) in estimates.items() if value is not None
    ]
    if known:
        lines.append(f"on these prompts: {', '.join(known)}")
    console = new_console()
    for line in (*lines, *(f"note: {text}" for text in found.assumptions)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)

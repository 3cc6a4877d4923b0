"""`thriftroute calibrate` with a confidence: from the command's options to a guarantee."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import CalibrationError, ConfigError
from ...router.threshold import format_threshold
from ..audit.labels import learned_from
from ..command import Target, score_prompts
from ..printing import plain
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
    write: bool = False,
    seed: int = 0,
    **options: Any,
) -> Guarantee:
    """A threshold that keeps the promise, on a labelled set or, for a budget, on prompts alone.

    Options, `write` and errors are those of `run_calibration`.
    """
    budget = promise.name == "max_cost"
    if prompts is not None and not budget and not (target.benchmarks or target.data):
        raise ConfigError(
            "a promise about quality needs labels: give --data FILE --strong MODEL --weak "
            "MODEL, or --benchmark; prompts alone do for --usd-per-1k"
        )
    on = score_prompts(name, target, prompts=prompts, budget=budget, write=write, **options)
    known: dict[str, Any] = {}
    notes = list(on.assumed)
    if on.labels is not None:
        benchmark, weights = on.labels.benchmark, on.labels.weights
        known = {"rewards": (benchmark.strong, benchmark.weak), "bounds": on.labels.bounds}
        learned = learned_from(on.router, target.data, benchmark.prompts)
        if learned and not budget:
            notes.append(f"{learned}: the promise holds for labels that it has not learned from")
        if weights is not None:
            notes.append(
                "prompts count by the weight of their rows, and no prompt of the traffic is taken "
                f"to weigh more than the heaviest of these, {weights.max() / weights.mean():.3g} "
                "times their mean"
            )
        known["weights"] = weights
    found = guaranteed(LabelledPrompts(on.scores, costs=on.costs, **known), promise, seed=seed)
    if write:
        on.write_table()
    return replace(found, assumptions=(*found.assumptions, *notes))


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
    estimates: tuple[tuple[str, float | None, str], ...] = (
        ("quality", found.quality, "{0:.1%} of strong's"),
        ("gap recovered", found.gap, "{0:.1%}"),
        ("regret", found.regret, "{0:.4f}"),
        ("USD per 1,000 requests", None if found.cost is None else 1000 * found.cost, "{0:.4g}"),
        ("saving", found.saving, "{0:.1%} of strong's cost"),
    )
    known = [f"{n} {form.format(value)}" for n, value, form in estimates if value is not None]
    if known:
        lines.append(f"on these prompts: {', '.join(known)}")
    plain(*lines, *(f"note: {text}" for text in found.assumptions))

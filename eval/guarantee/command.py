"""`thriftroute calibrate` with a confidence: from the command's options to a guarantee."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...data.answers import read_numbers
from ...errors import CalibrationError, ConfigError
from ...router.bundle import replace_file
from ...router.routers import Router
from ...router.second_look import SECOND_LOOK, LookPolicy
from ...router.threshold import format_threshold
from ..audit.labels import learned_from
from ..command import ScoredPrompts, Target, score_prompts
from ..look_command import look_at, look_of
from ..metrics import Floats
from ..pricing import CostOptions
from ..printing import plain
from ..second_look import PRICE_RATIO, Prices, outcome_masks
from .look import LookGuarantee, guaranteed_look, policy_text
from .means import Bools
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
    notes = [*on.simulated, *on.assumed]
    if on.labels is not None:
        benchmark, weights = on.labels.benchmark, on.labels.weights
        known = {"rewards": (benchmark.strong, benchmark.weak), "bounds": on.labels.bounds}
        notes += _rests_on(None if budget else on.router, target.data, benchmark.prompts, weights)
        known["weights"] = weights
    found = guaranteed(LabelledPrompts(on.scores, costs=on.costs, **known), promise, seed=seed)
    if write:
        on.write_table()
    return replace(found, assumptions=(*found.assumptions, *notes))


def _rests_on(
    router: Router | None, data: str | None, prompts: Sequence[str], weights: Floats | None
) -> list[str]:
    """What a promise rests on: that the router has not learned from the labels (None: it does not
    matter), and the weights."""
    notes = []
    if router is not None and (learned := learned_from(router, data, prompts)):
        notes.append(f"{learned}: the promise holds for labels that it has not learned from")
    if weights is not None:
        notes.append(
            "prompts count by the weight of their rows, and no prompt of the traffic is taken to "
            f"weigh more than the heaviest of these, {weights.max() / weights.mean():.3g} times "
            "their mean"
        )
    return notes


def run_look_guarantee(
    folder: str,
    target: Target,
    promise: Promise,
    *,
    second: str | None = None,
    price_ratio: float | None = None,
    cost: CostOptions | None = None,
    seed: int = 0,
) -> LookGuarantee:
    """A policy of the second look in the bundle `folder` that keeps the promise on `target.data`;
    where there is one, it is written into the bundle, with what was promised.

    price_ratio: of a strong call, in weak calls; None: by the prices of `cost` or the costs of the
    data, else 20. Raises ConfigError, and as `score_prompts` and `guaranteed_look` do.
    """
    cost = cost or CostOptions()
    if target.data is None or len(target.strong) != 1 or len(target.weak) != 1:
        raise ConfigError("--second-look needs --data FILE --strong MODEL --weak MODEL")
    if price_ratio is not None and cost != CostOptions():
        raise ConfigError("--price-ratio is given beside prices: leave one out")
    data, [strong], [weak] = target.data, target.strong, target.weak
    on = score_prompts(folder, target, cost=cost)
    look, router = look_of(on.router, folder)
    assert on.labels is not None
    benchmark, weights = on.labels.benchmark, on.labels.weights
    keep, looks = look_at(look, router, (data, weak, second), benchmark.prompts, on.scores)
    second = (second or look.second or weak) if "agreement" in look.signals else None
    told = [prompt for prompt, kept in zip(benchmark.prompts, keep, strict=True) if kept]
    recorded = cost == CostOptions()
    prices, costs, notes = _prices(on, price_ratio, (data, weak, second), keep, told, recorded)
    rewards = benchmark.strong[keep], benchmark.weak[keep]
    kept_weights = None if weights is None else weights[keep]
    notes += _rests_on(router, data, told, kept_weights)
    prompts = LabelledPrompts(
        on.scores[keep], rewards, costs, kept_weights, bounds=on.labels.bounds
    )
    found = guaranteed_look(look, prompts, looks, promise, prices, seed=seed)
    notes = [*on.simulated, *found.guarantee.assumptions, *notes]
    found = replace(
        found,
        guarantee=replace(found.guarantee, assumptions=tuple(notes)),
        latency_ms=_latency(
            found.policy, (data, strong, weak, second), told, (on.scores[keep], looks)
        ),
    )
    if found.guarantee.feasible:
        facts = {**look.facts, "promise": found.promise}
        chosen = replace(look, policy=found.policy, facts=facts)
        replace_file(router.scorer.bundle, SECOND_LOOK, chosen.to_json())
    return found


def _prices(
    on: ScoredPrompts,
    price_ratio: float | None,
    answers: tuple[str, str, str | None],
    keep: Bools,
    told: Sequence[str],
    recorded: bool,
) -> tuple[Prices, tuple[Floats, Floats] | None, list[str]]:
    """What calls cost in weak ones, USD a request on strong and weak where known, and notes.
    recorded: the costs are those of the data."""
    data, weak, second = answers
    again = float(second is not None)
    if price_ratio is not None or on.costs is None:
        said = f"a strong call is taken to cost {PRICE_RATIO:g} weak ones: give --price-ratio"
        ratio, notes = (price_ratio, []) if price_ratio is not None else (PRICE_RATIO, [said])
        return Prices(ratio, again), None, notes
    costs = on.costs[0][keep], on.costs[1][keep]
    dear, cheap = (float(one.mean()) for one in costs)
    if not cheap > 0:
        raise ConfigError(f"calls of {weak!r} cost nothing here: give --price-ratio")
    if second is not None and second != weak and recorded:
        paid = read_numbers(data, second, "cost_usd")
        known = [paid[prompt] for prompt in told if prompt in paid]
        again = float(np.mean(known)) / cheap if known else again
    return Prices(dear / cheap, again), costs, list(on.assumed)


def _latency(
    policy: LookPolicy,
    answers: tuple[str, str, str, str | None],
    prompts: Sequence[str],
    seen: tuple[Floats, Floats],
) -> dict[str, float] | None:
    """Mean milliseconds of a request's calls, one after the other; None where not all are known."""
    data, *models = answers
    told = [read_numbers(data, model, "latency_ms") for model in models if model is not None]
    if not all(prompt in known for known in told for prompt in prompts):
        return None
    strong, *looked = (np.array([known[prompt] for prompt in prompts]) for known in told)
    at_once, looks, escalated = outcome_masks(policy, *seen)
    paid = np.where(at_once, strong, looked[0]) + looks * sum(looked[1:]) + escalated * strong
    means = {"policy": paid, "strong": strong, "weak": looked[0]}
    return {name: float(one.mean()) for name, one in means.items()}


def print_look_guarantee(found: LookGuarantee) -> None:
    """Print a policy and what is promised of it, or that nothing is."""
    lines = [
        f"{policy_text(found.policy)}: {found.looked:.1%} looked at, {found.escalated:.1%} of all "
        f"escalated, a strong call costs {found.prices.ratio:.3g} weak ones"
    ]
    if found.note:
        lines.append(f"no second look: {found.note}")
    if (times := found.latency_ms) is not None:
        lines.append(
            f"mean latency of a request {times['policy']:,.0f} ms, of always strong "
            f"{times['strong']:,.0f}, of always weak {times['weak']:,.0f}"
        )
    plain(*lines)
    shown = found.guarantee if found.usd else replace(found.guarantee, cost=None)
    print_guarantee(shown, "answers by strong")


def print_guarantee(found: Guarantee, calls: str | None = None) -> None:
    """Print a threshold and what is promised of it, or that nothing is. calls: what the share is
    of, where no threshold of the score has it."""
    budget = found.promise == "max_cost"
    of = "labelled prompts" if found.quality is not None else "prompts"
    what = calls or f"threshold {format_threshold(found.threshold)}"
    share = f"{found.strong_pct:.1%}{'' if calls else ' strong calls'}"
    lines = [f"{what}: {share} on n = {found.n:,} {of}"]
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
    known = [
        f"{n} {form.format(value)}"
        for n, value, form in estimates
        if value is not None and math.isfinite(value)
    ]
    if known:
        lines.append(f"on these prompts: {', '.join(known)}")
    if found.feasible and not budget and not calls:
        lines.append(
            "audit, asked the same, keeps half of the labels to measure: its threshold differs"
        )
    plain(*lines, *(f"note: {text}" for text in found.assumptions))

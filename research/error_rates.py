"""How often an audit is right, over many draws of labels from real results: proof by trial.

    python -m thriftroute.research.error_rates --benchmark gsm8k --sizes 300,1000 --min-quality 0.9

The prompts of a benchmark stand for all traffic, so that what a threshold truly gives is known. Its
labels are drawn n at a time, with replacement, and audited: with the scores of the router, with
prompt length, and with noise, which no audit should route. `broken`: of all draws, those that were
told to route (or to use the weak model) and keep less than the wanted quality by that. `covered`:
how often the 95% intervals of quality and saving hold the truth of the candidate's threshold.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import ThriftrouteError
from ..eval.audit.audit import audit
from ..eval.audit.measure import Rows, ranks
from ..eval.audit.verdict import AuditSettings
from ..eval.baselines import length_scores
from ..eval.benchmarks import Benchmark, load
from ..eval.command import scored
from ..eval.metrics import Floats, Interval, wilson
from ..router.routers import load_router
from . import trials

# Resamples of a draw's intervals; there are many draws.
RESAMPLES = 200
NOISE = "noise"


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Shares of `draws` audits of n labels. `saving`: mean where it routed, NaN where it never
    did; `needed`: median of `needed_n` where labels were asked for."""

    scores: str
    n: int
    draws: int
    route: float
    route_ci: Interval
    weak_only: float
    strong_only: float
    label_more: float
    broken: float
    quality_covered: float
    saving_covered: float
    saving: float
    needed: float


def error_rates(
    name: str,
    scores: Callable[[int], Floats],
    rewards: tuple[Floats, Floats],
    *,
    n: int,
    draws: int,
    settings: AuditSettings,
) -> ErrorRates:
    """Audit `draws` draws of n of the N prompts. `scores(draw)`: float64[N], those of a draw.

    `rewards`: (strong, weak), float64[N] in [0, 1]. Raises what `audit.audit` raises.
    """
    strong, weak = rewards
    answers: Counter[str] = Counter()
    broken = quality_covered = saving_covered = judged = 0
    savings, needed = [], []
    for draw in range(draws):
        s = scores(draw)
        at = np.random.default_rng((settings.seed, draw, n)).integers(0, len(s), n)
        found = audit(Rows.of(s[at], strong[at], weak[at]), settings)
        answers[found.verdict] += 1
        everything = Rows.of(s, strong, weak)
        if found.verdict in ("route", "weak-only"):
            broken += _truth(everything, found.threshold)[0] < settings.min_quality
        if found.verdict == "route":
            savings.append(found.saving)
        if found.needed_n is not None:
            needed.append(found.needed_n)
        if found.candidate is not None:
            judged += 1
            quality, saving = _truth(everything, found.candidate_threshold)
            quality_covered += _inside(quality, found.candidate.quality_ci)
            saving_covered += _inside(saving, found.candidate.saving_ci)
    nan = float("nan")
    return ErrorRates(
        scores=name,
        n=n,
        draws=draws,
        route=answers["route"] / draws,
        route_ci=wilson(answers["route"], draws),
        weak_only=answers["weak-only"] / draws,
        strong_only=answers["strong-only"] / draws,
        label_more=answers["label-more"] / draws,
        broken=broken / draws,
        quality_covered=quality_covered / judged if judged else nan,
        saving_covered=saving_covered / judged if judged else nan,
        saving=float(np.mean(savings)) if savings else nan,
        needed=float(np.median(needed)) if needed else nan,
    )


def _truth(rows: Rows, threshold: float) -> tuple[float, float]:
    """(quality, saving in strong calls) of a threshold on all prompts."""
    sends = rows.sends(threshold)
    return float(rows.routed(sends).mean() / rows.strong.mean()), float(1 - sends.mean())


def _inside(value: float, ends: Interval) -> bool:
    return ends[0] - 1e-9 <= value <= ends[1] + 1e-9


def scorers(router: str, benchmark: Benchmark, seed: int) -> Mapping[str, Callable[[int], Floats]]:
    """By name, the scores of all prompts for each draw; noise is new in each."""
    own = np.asarray(scored(load_router(router))(benchmark.inputs()))
    length = ranks(length_scores(benchmark.prompts))

    def noise(draw: int) -> Floats:
        return np.random.default_rng((seed, draw, 0x0153)).random(benchmark.n)

    return {router: lambda _: own, "prompt-length": lambda _: length, NOISE: noise}


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 2 for options or data that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        found = _from_options(options)
    except ThriftrouteError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.json:
        trials.write_json([asdict(one) for one in found])
    else:
        _print_rates(found, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m thriftroute.research.error_rates")
    parser.add_argument("--router", default="mf")
    parser.add_argument("--benchmark", default="gsm8k", choices=("gsm8k", "mmlu"))
    parser.add_argument("--sizes", default="300,1000", help="numbers of labels")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--min-quality", type=float, default=0.95)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser


def _from_options(options: argparse.Namespace) -> list[ErrorRates]:
    sizes = trials.sizes_of(options.sizes, options.draws, example="300,1000")
    benchmark = load(options.benchmark)
    settings = AuditSettings(
        min_quality=options.min_quality,
        confidence=options.confidence,
        resamples=RESAMPLES,
        seed=options.seed,
    )
    return [
        error_rates(
            name,
            scores,
            (benchmark.strong, benchmark.weak),
            n=n,
            draws=options.draws,
            settings=settings,
        )
        for n in sizes
        for name, scores in scorers(options.router, benchmark, options.seed).items()
    ]


def _print_rates(found: list[ErrorRates], options: argparse.Namespace) -> None:
    from rich.table import Table

    table = Table("scores", "n", "route [95% CI]", "weak-only", "strong-only", "label-more",
                  "broken", "quality covered", "saving covered", "saving", "needed")  # fmt: skip
    for one in found:
        low, high = one.route_ci
        table.add_row(
            one.scores,
            f"{one.n:,}",
            f"{one.route:.1%} [{low:.1%}, {high:.1%}]",
            f"{one.weak_only:.1%}",
            f"{one.strong_only:.1%}",
            f"{one.label_more:.1%}",
            f"{one.broken:.1%}",
            f"{one.quality_covered:.1%}",
            f"{one.saving_covered:.1%}",
            f"{one.saving:.1%}",
            f"{one.needed:,.0f}",
        )
    trials.print_table(
        table,
        f"{options.benchmark}, {options.draws:,} draws each, quality wanted "
        f"{options.min_quality:g} with confidence {options.confidence:g}, seed {options.seed}. "
        f"Stated: {NOISE} is routed in at most 5% of the draws, a promise broken in at most "
        f"{1 - options.confidence:.0%}.",
        width=140,
    )


if __name__ == "__main__":
    sys.exit(main())

"""How often a promise is broken, over many draws of labels from real results: proof by trial.

    python -m thriftroute.research.guarantee_trials --benchmark mmlu --min-quality 0.95

The prompts of a benchmark stand for all traffic, so that what a threshold truly gives is known. Its
labels are drawn n at a time, with replacement: independent prompts of that traffic. Each draw gets
its threshold, and whether the promise holds is looked up on all prompts. A guarantee may break it
in a share of 1 - confidence of the draws; `plug-in`, set beside, is the least use of strong that
just keeps the promise on the draw itself.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ThriftrouteError
from ..eval.audit.labels import read_labels
from ..eval.command import Target, scored
from ..eval.guarantee.command import OPTIONS
from ..eval.guarantee.means import Bools, MeanTest, betting, check_values
from ..eval.guarantee.promises import LabelledPrompts, Name, Promise, variable
from ..eval.guarantee.threshold import FixedSequence
from ..eval.metrics import Floats, Interval, wilson
from ..eval.printing import json_safe
from ..router.routers import load_router
from ..router.threshold import achievable
from . import trials

PLUG_IN = "plug-in"
# Thresholds of one draw, and values of all draws, that are tested at once.
BLOCK, VALUES = 16, 2_000_000
# Means of some thousand values are right to about 1e-12.
ROUNDING = 1e-9


def hoeffding_bentkus(values: Floats, low: float, high: float, level: float) -> Bools:
    """As `betting`, from the mean alone: simple, but blind to how little the values may vary.
    Source: Bates, Angelopoulos, Lei, Malik and Jordan 2021, arXiv 2101.02703.

    In terms of the loss (high - value) / (high - low), in [0, 1], H says that its mean is at least
    a = high / (high - low); p = min(exp(-n kl(mean, a)), e P(Binomial(n, a) <= ceil(n mean))).
    """
    check_values(values, low, high, level)
    n, m = values.shape
    if low >= 0 or high <= 0:
        return np.full(m, low >= 0)
    a = high / (high - low)
    # Rounding must not move a mean that is a whole number of losses up to the next one.
    losses = np.maximum((high - values).sum(axis=0) / (high - low) - 1e-9, 0.0)
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    chosen = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    tails = np.cumsum(np.exp(chosen + k * math.log(a) + (n - k) * math.log1p(-a)))
    bentkus = math.e * tails[np.minimum(np.ceil(losses).astype(np.intp), n)]
    hoeffding = [math.exp(-n * _kl(min(float(total) / n, a), a)) for total in losses]
    rejected: Bools = np.minimum(hoeffding, bentkus) <= level
    return rejected


def _kl(x: float, a: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(x) from Bernoulli(a), 0 < a < 1."""
    first = x * math.log(x / a) if x > 0 else 0.0
    second = (1 - x) * math.log((1 - x) / (1 - a)) if x < 1 else 0.0
    return max(first + second, 0.0)


METHODS: dict[str, MeanTest] = {"betting": betting, "hoeffding-bentkus": hoeffding_bentkus}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one promise by one method, over `draws` draws of n labels.

    `broken`: share of the draws whose threshold does not keep the promise on all prompts, with its
    Wilson 95% interval. `stated`: the share that the method allows itself, NaN for the plug-in.
    `feasible`: share of the draws that gave more than the safest threshold. `strong_pct`: strong
    calls on all prompts at the threshold, mean over draws; `best`: those of the best threshold that
    keeps the promise there, and is not known to anyone.
    """

    promise: Name
    target: float
    n: int
    method: str
    draws: int
    broken: float
    broken_ci: Interval
    stated: float
    feasible: float
    strong_pct: float
    best: float

    @property
    def kept(self) -> bool:
        """Whether draws are not shown to be broken more often than stated; never for NaN."""
        return self.broken_ci[0] <= self.stated

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {key: json_safe(value) for key, value in values.items()}


def simulate(
    traffic: LabelledPrompts,
    promise: Promise,
    n: int,
    *,
    draws: int = 1000,
    seed: int = 0,
    tests: Mapping[str, MeanTest] | None = None,
) -> list[Outcome]:
    """An Outcome for each of `tests` (by default METHODS), and one for the plug-in.

    traffic: all prompts there are; what labels are drawn from, and where the promise is looked up.
    What no request costs more than is twice the dearest of all. All methods see the same draws.
    Raises CalibrationError for costs that are not known.
    """
    if promise.name == "max_cost":
        promise = replace(promise, cost_cap=2 * traffic.dearest)
    methods = METHODS if tests is None else tests
    level = 1 - promise.confidence
    truth = _Curve(traffic, promise)
    # By method: the threshold of each draw, and whether it is more than the safest one.
    found: dict[str, list[tuple[float, bool]]] = {method: [] for method in (*methods, PLUG_IN)}
    rng = np.random.default_rng(seed)
    together = max(1, VALUES // (n * BLOCK))
    ends = [*range(0, draws, together), draws]
    for start, end in pairwise(ends):
        drawn = rng.integers(traffic.scores.size, size=(end - start, n))
        samples = [_take(traffic, index) for index in drawn]
        for method, test in methods.items():
            runs = [FixedSequence(sample, promise, np.arange(n), test) for sample in samples]
            run_all(runs, test, level)
            found[method] += [(run.threshold, run.feasible) for run in runs]
        found[PLUG_IN] += [_Curve(sample, promise).best() for sample in samples]
    results = []
    for method, chosen in found.items():
        at = np.array([threshold for threshold, _ in chosen])
        feasible = np.array([more for _, more in chosen])
        # Where routing is infeasible nothing is promised of it.
        broken = feasible & (truth.means(at) < -ROUNDING)
        results.append(
            Outcome(
                promise=promise.name,
                target=promise.target,
                n=n,
                method=method,
                draws=draws,
                broken=float(broken.mean()),
                broken_ci=wilson(float(broken.sum()), draws),
                stated=float("nan") if method == PLUG_IN else level,
                feasible=float(feasible.mean()),
                strong_pct=float(truth.shares(at).mean()),
                best=float(truth.shares(np.array([truth.best()[0]]))[0]),
            )
        )
    return results


def _take(traffic: LabelledPrompts, rows: npt.NDArray[np.intp]) -> LabelledPrompts:
    rewards, costs = (
        None if pair is None else (pair[0][rows], pair[1][rows])
        for pair in (traffic.rewards, traffic.costs)
    )
    return LabelledPrompts(traffic.scores[rows], rewards, costs, bounds=traffic.bounds)


def run_all(runs: list[FixedSequence], test: MeanTest, level: float) -> None:
    """All sequences to their ends, a block of each at once: the tests see columns, not draws."""
    while runs:
        blocks = [(run, block) for run in runs if (block := run.block(BLOCK)) is not None]
        if not blocks:
            return
        columns = np.concatenate([block for _, block in blocks], axis=1)
        shown = test(columns, *blocks[0][0].variable.bounds, level)
        ends = np.cumsum([block.shape[1] for _, block in blocks])[:-1]
        for (run, _), part in zip(blocks, np.split(shown, ends), strict=True):
            run.take(part)
        runs = [run for run, _ in blocks]


class _Curve:
    """The mean of a promise's variable on some prompts, at any threshold."""

    def __init__(self, prompts: LabelledPrompts, promise: Promise) -> None:
        order = np.argsort(prompts.scores, kind="stable")
        self._promise = promise
        self._scores = prompts.scores[order]
        values = variable(promise, prompts)
        below = np.append(0.0, np.cumsum(values.below[order]))
        above = np.append(0.0, np.cumsum(values.above[order]))
        # Of each number of prompts below the threshold, from none to all.
        self._means = (below + above[-1] - above) / order.size

    def means(self, thresholds: Floats) -> Floats:
        """Mean of the variable at each threshold: float64[m]."""
        found: Floats = self._means[np.searchsorted(self._scores, thresholds)]
        return found

    def shares(self, thresholds: Floats) -> Floats:
        """Share of strong calls at each threshold: float64[m]."""
        return 1 - np.searchsorted(self._scores, thresholds) / self._scores.size

    def best(self) -> tuple[float, bool]:
        """The threshold furthest from the safest one that keeps the promise here, and whether it
        is another one than that."""
        thresholds = achievable(self._scores)[0]
        if self._promise.from_strong:
            thresholds = thresholds[::-1]
        keeps = np.flatnonzero(self.means(thresholds) >= -ROUNDING)
        last = int(keeps[-1]) if keeps.size else 0
        return float(thresholds[last]), last >= int(self._promise.holds_at_start) and bool(
            keeps.size
        )


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, 1 where a guarantee is broken more often than stated, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        outcomes = _from_options(options)
    except ThriftrouteError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.json:
        trials.write_json([{"traffic": name, **outcome.to_dict()} for name, outcome in outcomes])
    else:
        _print_outcomes(outcomes, options)
    wrong = [outcome for _, outcome in outcomes if outcome.method != PLUG_IN and not outcome.kept]
    for outcome in wrong:
        sys.stderr.write(
            f"{outcome.method} broke {outcome.promise} {outcome.target:g} at n = {outcome.n} in "
            f"{outcome.broken:.1%} of the draws, more than the stated {outcome.stated:.1%}\n"
        )
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m thriftroute.research.guarantee_trials")
    parser.add_argument("--router", default="mf")
    parser.add_argument("--benchmark", action="append", default=[])
    parser.add_argument("--data", help="labelled prompts instead of a benchmark, as for calibrate")
    parser.add_argument("--strong")
    parser.add_argument("--weak")
    for option, dest in OPTIONS.items():
        parser.add_argument(option, dest=dest, type=float, action="append", default=[])
    parser.add_argument("--sizes", default="100,300,1000", help="numbers of labels")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser


def _from_options(options: argparse.Namespace) -> list[tuple[str, Outcome]]:
    wanted = [(name, value) for name in OPTIONS.values() for value in getattr(options, name)]
    if not wanted:
        raise ConfigError(f"nothing to promise: give one or more of {', '.join(OPTIONS)}")
    sizes = trials.sizes_of(options.sizes, options.draws, example="100,300")
    targets = [Target(benchmarks=(name,)) for name in options.benchmark]
    if options.data is not None or not targets:
        pair = [tuple((text or "").split(",")) if text else () for text in
                (options.strong, options.weak)]  # fmt: skip
        targets.append(Target(data=options.data, strong=pair[0], weak=pair[1]))
    router = load_router(options.router)
    found = []
    for target in targets:
        labels = read_labels(target)
        benchmark = labels.benchmark
        costs = None
        if benchmark.strong_cost is not None and benchmark.weak_cost is not None:
            costs = benchmark.strong_cost, benchmark.weak_cost
        traffic = LabelledPrompts(
            np.asarray(scored(router)(benchmark.inputs())),
            (benchmark.strong, benchmark.weak),
            costs,
            bounds=labels.bounds,
        )
        for name, value in wanted:
            goal = value / 1000 if name == "max_cost" else value
            promise = Promise(name, goal, options.confidence)
            for n in sizes:
                outcomes = simulate(traffic, promise, n, draws=options.draws, seed=options.seed)
                found += [(benchmark.name, outcome) for outcome in outcomes]
    return found


def _print_outcomes(outcomes: list[tuple[str, Outcome]], options: argparse.Namespace) -> None:
    from rich.table import Table

    table = Table("traffic", "promise", "n", "method", "broken [95% CI]", "feasible", "strong")
    for traffic, found in outcomes:
        scale = 1000 if found.promise == "max_cost" else 1
        table.add_row(
            traffic,
            f"{found.promise} {scale * found.target:g}",
            f"{found.n:,}",
            found.method,
            f"{found.broken:.1%} [{found.broken_ci[0]:.1%}, {found.broken_ci[1]:.1%}]",
            f"{found.feasible:.0%}",
            f"{found.strong_pct:.0%} (best {found.best:.0%})",
        )
    trials.print_table(
        table,
        f"{options.draws:,} draws each, router {options.router}, seed {options.seed}; stated: "
        f"broken in at most {1 - options.confidence:.1%}. strong: calls, mean over draws; best: of "
        "the threshold that only all prompts show.",
        width=120,
    )


if __name__ == "__main__":
    sys.exit(main())

"""How often a promise of a second look is broken, over draws of labels from real answers.

    python -m thriftroute.research.look_trials --pair "MedMCQA, gpt-4o/4o-mini" --min-quality 0.95

A router and a look are fitted on --fitted prompts of a pair (`research.second_look`, draw 0); all
others stand for the traffic, so that what a policy truly gives is known. Labels are drawn from them
n at a time, with replacement, and choose a policy as `calibrate --second-look` does. Whether the
promise holds is looked up on all of the traffic. `plug-in`: of the same policies the cheapest that
just keeps the promise on the draw itself. `prompt alone`: `calibrate` on the same draws, nothing
looked at. Cost: as a part of always strong's, all calls counted, at a price ratio of 20 by default.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.table import Table

from ..data.readers import read_rows
from ..data.tables import pair_table
from ..errors import ThriftrouteError
from ..eval.guarantee.look import sequence_of, wanted_gap, ways_of
from ..eval.guarantee.means import Bools, betting
from ..eval.guarantee.promises import LabelledPrompts, Promise, variable
from ..eval.guarantee.threshold import FixedSequence
from ..eval.look_command import look_at, look_of
from ..eval.metrics import Floats, Interval, wilson
from ..eval.second_look import NOTHING, PRICE_RATIO, Prices, outcomes, prices_of
from ..router.routers import load_router
from ..router.second_look import LookPolicy, SecondLook
from ..router.threshold import achievable
from . import trials
from .guarantee_trials import BLOCK, PLUG_IN, ROUNDING, VALUES, run_all
from .second_look import PAIRS, fit, rows_of

LOOK, PROMPT = "second look", "prompt alone"


@dataclass(frozen=True)
class LookOutcome:
    """One method over `draws` draws of n labels. `broken`: share of the draws whose policy does not
    keep the promise on all prompts, with its Wilson 95% interval. `feasible`: share that gave more
    than always strong. `cost`: of a request, as a part of always strong's, mean over draws; `best`:
    of the cheapest policy of the family that keeps the promise there, which nobody knows."""

    method: str
    n: int
    draws: int
    broken: float
    broken_ci: Interval
    feasible: float
    cost: float
    best: float


@dataclass(frozen=True, eq=False)
class LookTraffic:
    """All prompts: labelled, with the look's probabilities float64[N]."""

    look: SecondLook
    prompts: LabelledPrompts
    looks: Floats


def simulate(
    traffic: LookTraffic, promise: Promise, n: int, ratio: float, draws: int, seed: int
) -> list[LookOutcome]:
    """An outcome for the second look, for its plug-in, and for the prompt alone."""
    prices = prices_of(traffic.look, ratio)
    gap = wanted_gap(traffic.look, promise)
    by_look, _ = sequence_of(traffic.look, prices, gap)
    limits = achievable(traffic.prompts.scores)[0][::-1].tolist()
    found = []
    for method, family in ((LOOK, by_look), (PROMPT, [LookPolicy(t, t, NOTHING) for t in limits])):
        ways = ways_of(family, traffic.prompts.scores, traffic.looks)
        cost = outcomes(family, traffic.prompts.scores, traffic.looks, traffic.looks, prices)[0]
        drawn, plug_in = _places(traffic.prompts, ways, cost, promise, n, draws, seed)
        chosen = {method: drawn, **({PLUG_IN: plug_in} if method == LOOK else {})}
        found += [
            _outcome(name, family, places, traffic, promise, n, prices)
            for name, places in chosen.items()
        ]
    return found


def _places(
    traffic: LabelledPrompts,
    ways: Bools,
    cost: Floats,
    promise: Promise,
    n: int,
    draws: int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Which of the ways each draw chooses, by the sequence of tests and by the plug-in."""
    assert traffic.rewards is not None
    strong, weak = traffic.rewards
    rng = np.random.default_rng(seed)
    found: list[int] = []
    plug_in: list[int] = []
    together = max(1, VALUES // (n * BLOCK))
    for start, end in pairwise([*range(0, draws, together), draws]):
        runs, paid = [], []
        for rows in rng.integers(traffic.scores.size, size=(end - start, n)):
            taken = LabelledPrompts(traffic.scores[rows], (strong[rows], weak[rows]))
            mine = ways[rows]
            runs.append(FixedSequence(taken, promise, np.arange(n), betting, mine))
            values = variable(promise, taken)
            means = np.where(mine, values.above[:, None], values.below[:, None]).mean(axis=0)
            paid.append(cost[rows].mean(axis=0))
            plug_in.append(int(np.argmin(np.where(means >= -ROUNDING, paid[-1], np.inf))))
        run_all(list(runs), betting, 1 - promise.confidence)
        found += [int(np.argmin(p[: run.place + 1])) for p, run in zip(paid, runs, strict=True)]
    return found, plug_in


def _outcome(
    method: str,
    family: list[LookPolicy],
    places: list[int],
    traffic: LookTraffic,
    promise: Promise,
    n: int,
    prices: Prices,
) -> LookOutcome:
    prompts, at = traffic.prompts, np.array(places)
    assert prompts.rewards is not None
    gain = prompts.rewards[0] - prompts.rewards[1]
    values = variable(promise, prompts)
    ways = ways_of(family, prompts.scores, traffic.looks)
    truth = np.where(ways, values.above[:, None], values.below[:, None]).mean(axis=0)
    cost = outcomes(family, prompts.scores, traffic.looks, gain, prices)[0].mean(axis=0)
    cost = (1 + cost * (prices.ratio - 1)) / prices.ratio
    broken = (truth[at] < -ROUNDING) & (at > 0)
    return LookOutcome(
        method=method,
        n=n,
        draws=len(places),
        broken=float(broken.mean()),
        broken_ci=wilson(float(broken.sum()), len(places)),
        feasible=float((at > 0).mean()),
        cost=float(cost[at].mean()),
        best=float(cost[truth >= -ROUNDING].min()),
    )


def traffic_of(name: str, router: str, fitted: int) -> LookTraffic:
    """A look of `fitted` prompts of a pair, and all others as traffic."""
    pair = PAIRS[name]
    with tempfile.TemporaryDirectory() as folder:
        made = fit(pair, rows_of(pair), router, (fitted, 0), Path(folder))
        out, rest = made.bundle, made.rest
        look, loaded = look_of(load_router(out), out)
        table = pair_table(read_rows(rest), pair.strong, pair.weak)
        scores = loaded.scorer.scores(table.inputs())
        keep, looks = look_at(look, loaded, (rest, pair.weak, None), table.prompts, scores)
    prompts = LabelledPrompts(scores[keep], (table.strong[keep], table.weak[keep]))
    return LookTraffic(look, prompts, looks)


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, 1 where a promise is broken more often than stated, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m thriftroute.research.look_trials")
    parser.add_argument("--router", default="fast")
    parser.add_argument("--pair", action="append", choices=list(PAIRS))
    parser.add_argument("--min-quality", type=float, default=0.95)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--price-ratio", type=float, default=PRICE_RATIO)
    parser.add_argument("--fitted", type=int, default=300, help="prompts of router and look")
    parser.add_argument("--sizes", default="100,300,1000", help="numbers of labels")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = []
    try:
        promise = Promise("min_quality", options.min_quality, options.confidence)
        sizes = trials.sizes_of(options.sizes, options.draws, example="100,300")
        for name in options.pair or PAIRS:
            traffic = traffic_of(name, options.router, options.fitted)
            for n in sizes:
                args = (promise, n, options.price_ratio, options.draws, options.seed)
                found += [(name, len(traffic.looks), one) for one in simulate(traffic, *args)]
    except ThriftrouteError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.json:
        rows = [{"pair": name, "prompts": size, **asdict(one)} for name, size, one in found]
        trials.write_json(rows)
    else:
        _print(found, options)
    level = 1 - options.confidence
    wrong = [one for *_, one in found if one.method != PLUG_IN and one.broken_ci[0] > level]
    for one in wrong:
        sys.stderr.write(f"{one.method}, n = {one.n}: broken in {one.broken:.1%} of the draws\n")
    return int(bool(wrong))


def _print(found: list[tuple[str, int, LookOutcome]], options: argparse.Namespace) -> None:
    table = Table("pair (prompts)", "n", "method", "broken [95% CI]", "feasible", "cost", "best")
    for name, size, one in found:
        broken = f"{one.broken:.1%} [{one.broken_ci[0]:.1%}, {one.broken_ci[1]:.1%}]"
        cells = [broken, f"{one.feasible:.0%}", f"{one.cost:.0%}", f"{one.best:.0%}"]
        table.add_row(f"{name} ({size:,})", f"{one.n:,}", one.method, *cells)
    note = (
        f"quality {options.min_quality:g}, {options.draws:,} draws each, seed {options.seed}, "
        f"router {options.router} and look fitted on {options.fitted} prompts, price ratio "
        f"{options.price_ratio:g}; stated: broken in at most {1 - options.confidence:.1%}"
    )
    trials.print_table(table, note, width=120)


if __name__ == "__main__":
    sys.exit(main())

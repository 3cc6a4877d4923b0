"""How often the tests of `eval.drift` are wrong, how soon they are right: docs/watch.md's tables.

    python -m thriftroute.research.drift_trials --streams 1000

Scores are the bundle's on MMLU, those of another kind of prompt on GSM8K (see `eval.benchmarks` for
where they are read). Minutes on one core, most of it the false alarms.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ..eval.benchmarks import load
from ..eval.drift.arms import ArmSums, difference
from ..eval.drift.baseline import Baseline
from ..eval.drift.sequential import ScoreTest
from ..eval.metrics import Z95
from ..eval.scored import CachedScorer
from ..router.routers import BundleRouter, load_router
from ..router.threshold import ThresholdTable

Floats = npt.NDArray[np.float64]
EVERY = 100  # prompts between two looks of those who test anew each time
LENGTH = 3000
BASELINES = (300, 1500)
ALPHAS = (0.05, 0.01)
TABLES = ("false-alarms", "delays", "experiments")
AFTER = 2000  # prompts after a change


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--delays", type=int, default=100, help="streams a cell with a change")
    parser.add_argument("--router", default="mf")
    parser.add_argument("--only", action="append", choices=TABLES, help="one of the tables")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    router = load_router(given.router)
    if not isinstance(router, BundleRouter):
        parser.error(f"{given.router} is no bundle")
    cached = CachedScorer(router.scorer)
    usual, other = (cached.scores(load(name).inputs()) for name in ("mmlu", "gsm8k"))
    tables = {
        "false-alarms": lambda: false_alarms(usual, given.streams, given.seed),
        "delays": lambda: delays(usual, other, given.delays, given.seed),
        "experiments": lambda: experiments(given.streams, given.seed),
    }
    for name in given.only or tables:
        for line in (*tables[name](), ""):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def false_alarms(usual: Floats, streams: int, seed: int) -> Iterator[str]:
    """Streams without a change that were said to drift at any look, in %."""
    yield (
        f"| {streams} streams of {LENGTH} prompts, no change | "
        + " | ".join(f"n = {n}, level {alpha:.0%}" for n in BASELINES for alpha in ALPHAS)
        + " |"
    )
    yield "| --- |" + " ---: |" * len(BASELINES) * len(ALPHAS)
    names = (
        "scores",
        "scores, by a bundle's table",
        "strong share",
        "both, as `watch`",
        "KS test",
        "z-test of the share",
    )
    wrong = np.zeros((len(names), len(BASELINES), len(ALPHAS)), dtype=np.int64)
    for i in range(streams):
        for j, n in enumerate(BASELINES):
            random = np.random.default_rng([seed, i, n])
            drawn = random.permutation(usual)[: n + LENGTH]
            wrong[:, j] += np.array([_alarms(drawn[:n], drawn[n:], alpha) for alpha in ALPHAS]).T
    for name, counts in zip(names, wrong, strict=True):
        shares = " | ".join(f"{count / streams:.1%}" for count in counts.ravel())
        yield f"| {name} | {shares} |"


def _alarms(own: Floats, stream: Floats, alpha: float) -> list[bool]:
    """Of each test, whether it ever fires."""
    baseline = Baseline.from_scores("own", own)
    test = ScoreTest(baseline.edges, baseline.counts)
    test.add(stream, alpha=alpha)
    table = Baseline.from_table(ThresholdTable.from_scores("own", own))
    by_table = ScoreTest(table.edges, table.counts)
    by_table.add(stream)
    threshold = float(np.quantile(own, 0.7))
    hits = np.cumsum(stream >= threshold)
    looks = np.arange(EVERY, stream.size + 1, EVERY)
    rates = baseline.strong(threshold)

    share = ScoreTest([0.5], [rates.n - int(rates.total), int(rates.total)])
    share.add(stream >= threshold)
    z = NormalDist().inv_cdf(1 - alpha / 2)
    pooled = (hits[looks - 1] + rates.total) / (looks + rates.n)
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / looks + 1 / rates.n))
    gaps = np.abs(hits[looks - 1] / looks - rates.total / rates.n) > z * error
    return [
        test.p_value <= alpha,
        by_table.p_value <= alpha,
        share.p_value <= alpha,
        min(test.p_value, share.p_value) <= alpha / 2,
        any(_ks(own, stream[:n]) <= alpha for n in looks),
        bool(gaps.any()),
    ]


def delays(usual: Floats, other: Floats, streams: int, seed: int) -> Iterator[str]:
    """Prompts from a change to the alarm: median, and the part of the streams that are found."""
    starts, shares = (0, 1000, 5000), (0.1, 0.25, 0.5, 1.0)
    yield (
        f"| of the prompts from the change on are GSM8K's ({streams} streams, level 1%, "
        "baseline n = 1500) | " + " | ".join(f"change at {at:,}" for at in starts) + " |"
    )
    yield "| --- |" + " ---: |" * len(starts)
    for share in shares:
        cells = []
        for at in starts:
            late = []
            for i in range(streams):
                random = np.random.default_rng([seed, i, at, round(share * 100)])
                drawn = random.permutation(usual)[: 1500 + at + AFTER]
                changed = random.random(AFTER) < share
                after = np.where(changed, random.choice(other, AFTER), drawn[-AFTER:])
                baseline = Baseline.from_scores("own", drawn[:1500])
                test = ScoreTest(baseline.edges, baseline.counts)
                test.add(np.concatenate([drawn[1500 : 1500 + at], after]), alpha=0.01)
                # An alarm before the change is a false one: it finds nothing.
                found = test.alarm_at is not None and test.alarm_at > at
                late.append(test.alarm_at - at if found and test.alarm_at else math.inf)
            median = float(np.median(late))
            text = f"{median:.0f}" if math.isfinite(median) else f"> {AFTER}"
            cells.append(f"{text} ({np.mean(np.isfinite(late)):.0%})")
        yield f"| {share:.0%} | " + " | ".join(cells) + " |"


def experiments(count: int, seed: int, units: int = 4000) -> Iterator[str]:
    """Experiments whose arms are alike, of which an interval ever left out 0."""
    yield (
        f"| {count} experiments of {units} sessions, arms alike | this interval | "
        "a 95% interval, anew at each look |"
    )
    yield "| --- | ---: | ---: |"
    for share in (0.1, 0.5):
        wrong = np.zeros(2, dtype=np.int64)
        for i in range(count):
            random = np.random.default_rng([seed, i, round(share * 10)])
            requests = random.geometric(0.3, units).astype(np.float64)
            # Requests of a session are alike: what a session costs, times a price of its own.
            cost = requests * random.lognormal(0, 1, units)
            treated = random.random(units) < share
            parts = np.stack(
                [np.ones(units), cost, requests, cost**2, cost * requests, requests**2]
            )
            sums = [np.cumsum(parts * side, axis=1) for side in (~treated, treated)]
            ever = np.zeros(2, dtype=bool)
            for n in range(EVERY, units + 1, EVERY):
                control, treatment = (
                    ArmSums(int(s[0, n - 1]), *(float(v) for v in s[1:, n - 1])) for s in sums
                )
                ever[0] |= difference("cost", control, treatment, alpha=0.05).differs
                error = math.sqrt(control.variance() + treatment.variance())
                gap = (treatment.mean or 0.0) - (control.mean or 0.0)
                ever[1] |= abs(gap) > Z95 * error
            wrong += ever
        yield f"| {share:.0%} treated | {wrong[0] / count:.1%} | {wrong[1] / count:.1%} |"


def _ks(one: Floats, other: Floats) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test, by its limit (Smirnov 1948)."""
    both = np.sort(np.concatenate([one, other]))
    steps = [
        np.searchsorted(np.sort(part), both, side="right") / part.size for part in (one, other)
    ]
    scale = math.sqrt(one.size * other.size / (one.size + other.size))
    distance = scale * float(np.abs(steps[0] - steps[1]).max())
    if distance < 0.2:
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2 * (k * distance) ** 2) for k in range(1, 20)]
    return float(min(1.0, 2 * sum(terms)))


if __name__ == "__main__":
    main()

"""The tests that may be looked at all the time: how often they are wrong, and that they find."""

import math

import numpy as np
import pytest
from thriftroute.eval.drift.sequential import LOOK, ScoreTest, asymptotic_radius, mean_interval

EDGES = np.arange(1, 256) / 256


def baseline(random: np.random.Generator, n: int, a: float = 3, b: float = 5) -> np.ndarray:
    cells = np.searchsorted(EDGES, random.beta(a, b, n), side="right")
    return np.bincount(cells, minlength=256)


def alarms(streams: int, n: int, alpha: float) -> int:
    """Of streams of 1,000 scores that do not change, how many are said to."""
    found = 0
    for seed in range(streams):
        random = np.random.default_rng(seed)
        test = ScoreTest(EDGES, baseline(random, n), seed=seed)
        test.add(random.beta(3, 5, 1000), alpha=alpha)
        found += test.alarm_at is not None
    return found


@pytest.mark.parametrize("n", [20, 400])
def test_false_alarms_keep_to_their_rate_however_small_the_baseline(n: int) -> None:
    # Of 200 streams at 10%, 20 are allowed on average; past 34 by chance once in a thousand times.
    assert alarms(200, n, alpha=0.1) <= 34


def test_ranks_are_uniform_with_ties_and_a_baseline_of_few() -> None:
    random = np.random.default_rng(1)
    ranks = []
    for seed in range(400):
        cells = random.choice([0.1, 0.5, 0.9], p=[0.4, 0.4, 0.2], size=6 + LOOK)
        counts = np.bincount(np.searchsorted([0.3, 0.6], cells[:6]), minlength=3)
        test = ScoreTest([0.3, 0.6], counts, seed=seed)
        ranks.append(test.ranks(cells[6:]))
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.mean(np.concatenate(ranks) < quantile) == pytest.approx(quantile, abs=0.02)


@pytest.mark.parametrize(
    ("a", "b"), [(4, 5), (3, 6.5), (9, 15), (1.2, 2)], ids=["up", "down", "narrow", "wide"]
)
@pytest.mark.parametrize("quiet", [0, 2000])
def test_a_change_is_found_also_after_a_long_quiet_time(a: float, b: float, quiet: int) -> None:
    random = np.random.default_rng(3)
    test = ScoreTest(EDGES, baseline(random, 1500))
    test.add(random.beta(3, 5, quiet), alpha=0.01)
    assert test.alarm_at is None
    test.add(random.beta(a, b, 1000), alpha=0.01)
    assert test.alarm_at is not None
    assert quiet < test.alarm_at <= quiet + 600
    assert test.p_value <= 0.01


def test_only_a_tenth_that_is_too_full_is_found_too() -> None:
    random = np.random.default_rng(5)
    test = ScoreTest(EDGES, np.full(256, 20))
    scores = random.random(1500)
    middle = random.random(1500) < 0.25
    # Half below the median and half above: neither its place nor its width says much.
    scores[middle] = random.choice([0.22, 0.78], middle.sum()) + 0.02 * random.random(middle.sum())
    test.add(scores, alpha=0.01)
    assert test.alarm_at is not None


def test_it_does_not_matter_in_which_portions_scores_come() -> None:
    random = np.random.default_rng(7)
    counts, scores = baseline(random, 300), random.beta(4, 5, 530)
    whole, parts = ScoreTest(EDGES, counts), ScoreTest(EDGES, counts)
    whole.add(scores)
    for part in np.split(scores, [1, 20, 26, 400, 400]):
        parts.add(part)
    assert whole.n == parts.n == 525  # whole looks: the rest waits
    assert whole.log_e == pytest.approx(parts.log_e, rel=1e-12)
    assert whole.p_value == pytest.approx(parts.p_value)


def test_an_alarm_stays_an_alarm() -> None:
    random = np.random.default_rng(9)
    test = ScoreTest(EDGES, baseline(random, 500))
    test.add(random.beta(6, 5, 200), alpha=0.01)
    at, p = test.alarm_at, test.p_value
    test.add(random.beta(3, 5, 3000), alpha=0.01)
    assert (test.alarm_at, test.p_value <= p) == (at, True)


def test_what_is_no_number_is_left_out_and_nothing_is_no_evidence() -> None:
    test = ScoreTest(EDGES, np.ones(256, int))
    test.add([])
    test.add([math.nan] * 100)
    assert (test.n, test.p_value) == (0, 1.0)


@pytest.mark.parametrize("counts", [[1, 2], [0, 0, 0], [1, 2, 3, 4]])
def test_a_baseline_that_is_none_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="one count more than edges"):
        ScoreTest([0.3, 0.6], counts)


def test_a_mean_interval_holds_at_all_times() -> None:
    missed = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        # In [0, 1], but not 0 or 1 alone.
        values = random.choice([0.0, 0.25, 1.0], p=[0.5, 0.3, 0.2], size=400)
        mean = 0.3 * 0.25 + 0.2
        sums = np.cumsum(values)
        ends = [mean_interval(float(sums[n - 1]), n, 0.1) for n in range(10, 401, 10)]
        missed += any(not low <= mean <= high for low, high in ends)
    assert missed <= 34  # 20 are allowed on average


def test_a_mean_interval_narrows_and_knows_its_ends() -> None:
    assert mean_interval(0, 0, 0.05) == (0.0, 1.0)
    low, high = mean_interval(30, 100, 0.05)
    assert low < 0.3 < high
    wide = high - low
    low, high = mean_interval(3000, 10_000, 0.05)
    assert low < 0.3 < high
    assert high - low < wide / 5
    assert mean_interval(0, 50, 0.05)[0] == 0.0
    assert mean_interval(50, 50, 0.05)[1] == 1.0
    # By hand: the mixture of n = 2, k = 0 is 1/3, so p stays while (1 - p)^2 > 0.5 / 3.
    assert mean_interval(0, 2, 0.5)[1] == pytest.approx(1 - math.sqrt(0.5 / 3))


def test_the_radius_is_smallest_near_where_it_is_meant_to_be() -> None:
    at = {n: asymptotic_radius(n, 0.05, tight_at=1000) for n in (10, 100, 1000, 10_000, 1e6)}
    # About half as much again as 1.96 at its best.
    assert at[1000] == pytest.approx(3.035, abs=0.001)
    assert at[10] > at[100] > at[1000]
    assert at[10_000] < at[1e6] < 5
    assert asymptotic_radius(0, 0.05) == math.inf

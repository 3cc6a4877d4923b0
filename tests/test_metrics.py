"""Metrics against brute force, and against the published definition that they replace."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.eval import bootstrap as bs
from thriftroute.eval import metrics
from thriftroute.eval.metrics import Floats


def brute_curve(scores: Floats, strong: Floats, weak: Floats) -> Floats:
    """PGR at k = 0 .. n, averaged over every order that respects the scores."""
    n = len(scores)
    curves = []
    for order in itertools.permutations(range(n)):
        ranked = [scores[i] for i in order]
        if any(a < b for a, b in itertools.pairwise(ranked)):
            continue
        gains = [strong[i] - weak[i] for i in order]
        curves.append([sum(gains[:k]) for k in range(n + 1)])
    mean = np.mean(curves, axis=0)
    return np.asarray(mean / (sum(strong) - sum(weak)))


def small_cases(count: int, seed: int = 0) -> Iterator[tuple[Floats, Floats, Floats]]:
    rng = np.random.default_rng(seed)
    while count:
        n = int(rng.integers(1, 7))
        scores = rng.integers(0, 4, n) / 4  # few levels: many ties
        strong, weak = rng.integers(0, 3, n) / 2, rng.integers(0, 3, n) / 2
        if strong.sum() > weak.sum():
            count -= 1
            yield scores, strong, weak


@pytest.mark.parametrize("seed", range(4))
def test_curve_apgr_and_cpt_equal_brute_force_over_all_orders(seed: int) -> None:
    for scores, strong, weak in small_cases(25, seed):
        expected = brute_curve(scores, strong, weak)
        rewards = metrics.tradeoff(scores, strong, weak).rewards(np.linspace(0, 1, len(expected)))
        found = (rewards - weak.mean()) / (strong.mean() - weak.mean())
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert metrics.apgr(scores, strong, weak) == pytest.approx(expected.mean(), abs=1e-12)
        for target in (0.2, 0.5, 0.8, 1.0):
            first = next(k for k, value in enumerate(expected) if value >= target - 1e-12)
            assert metrics.cpt(scores, strong, weak, target) == pytest.approx(first / len(scores))


def test_apgr_of_a_constant_score_is_exactly_one_half() -> None:
    rng = np.random.default_rng(1)
    strong, weak = rng.random(101) + 0.5, rng.random(101)
    assert metrics.apgr(np.zeros(101), strong, weak) == pytest.approx(0.5, abs=1e-14)
    # Reversing a ranking mirrors its curve around the middle.
    scores = rng.random(101)
    both = metrics.apgr(scores, strong, weak) + metrics.apgr(-scores, strong, weak)
    assert both == pytest.approx(1.0, abs=1e-12)


def test_monotone_maps_and_the_order_of_rows_change_nothing() -> None:
    for scores, strong, weak in small_cases(20, seed=9):
        value = metrics.apgr(scores, strong, weak)
        assert metrics.apgr(np.exp(3 * scores), strong, weak) == pytest.approx(value, abs=1e-12)
        shuffled = np.random.default_rng(0).permutation(len(scores))
        again = metrics.apgr(scores[shuffled], strong[shuffled], weak[shuffled])
        assert again == pytest.approx(value, abs=1e-12)


def interpolated_cpt(
    scores: Floats, strong: Floats, weak: Floats, target: float, bins: int = 10
) -> float:
    """CPT as RouteLLM's evaluation reads it off, in percent-free units.

    Thresholds at the quantiles of the score, a point (share, mean reward) for each, the points
    sorted by share, and then `np.interp` with the mean rewards as abscissa. `np.interp` demands
    increasing abscissae, and a router's reward need not increase with the share.
    """
    points = []
    for i, threshold in enumerate(np.quantile(scores, np.linspace(0, 1, bins + 1))):
        chosen = scores > threshold if i == bins else scores >= threshold
        points.append((chosen.mean(), np.where(chosen, strong, weak).mean()))
    shares, rewards = np.array(sorted(points)).T
    wanted = weak.mean() + target * (strong.mean() - weak.mean())
    return float(np.interp(wanted, rewards, shares))


def test_cpt_is_right_where_interpolation_over_a_non_monotone_curve_is_wrong() -> None:
    # 20 prompts, highest score first. At 7 of 20 strong calls half of the gap is recovered, at 8
    # all of it; then it is lost again, and comes back with the last prompts.
    gain = np.array([0] * 6 + [1, 1, 0, 0, -1, -1] + [0] * 5 + [1, 1, 0], dtype=float)
    scores = np.linspace(0.95, 0.05, 20)
    strong, weak = np.where(gain > 0, 1.0, 0.0), np.where(gain < 0, 1.0, 0.0)
    exact = brute_first_crossing(gain, 0.5)
    assert exact == 7 / 20
    assert metrics.cpt(scores, strong, weak, 0.5) == exact
    # The interpolation finds only the last crossing, and asks for more than twice as many calls.
    assert interpolated_cpt(scores, strong, weak, 0.5) == pytest.approx(0.9)
    # On a monotone curve with points at the quantiles the two agree.
    gain = np.ones(20)
    strong, weak = np.ones(20), np.zeros(20)
    assert interpolated_cpt(scores, strong, weak, 0.5) == pytest.approx(0.5)
    assert metrics.cpt(scores, strong, weak, 0.5) == 0.5


def brute_first_crossing(gain: Floats, target: float) -> float:
    total, so_far = gain.sum(), 0.0
    for k, value in enumerate(gain, start=1):
        so_far += value
        if so_far >= target * total:
            return k / len(gain)
    raise AssertionError("the curve ends at the whole gap")


def test_rewards_at_a_share() -> None:
    scores = np.array([0.1, 0.5, 0.5, 0.9])
    strong, weak = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.5, 0.0])
    curve = metrics.tradeoff(scores, strong, weak)
    np.testing.assert_allclose(curve.rewards([0.0, 0.75, 1.0]), [weak.mean(), 0.75, strong.mean()])


def test_auc_counts_ties_half() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores, labels = rng.integers(0, 4, 12) / 4, rng.integers(0, 2, 12)
        positive, negative = scores[labels == 1], scores[labels == 0]
        if not len(positive) or not len(negative):
            continue
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        assert metrics.auc(scores, labels) == pytest.approx(wins.mean())
    assert math.isnan(metrics.auc([0.1, 0.2], [1, 1]))


def test_ece_and_brier_by_hand() -> None:
    p, y = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 0])
    # Two bins: |0 - .2| * 1/2 + |.5 - .8| * 1/2
    assert metrics.ece(p, y, bins=2) == pytest.approx(0.25)
    assert metrics.brier(p, y) == pytest.approx((0.04 + 0.04 + 0.04 + 0.64) / 4)
    # Equal probabilities share a bin, whatever the order of the rows.
    constant = np.full(10, 0.5)
    assert metrics.ece(constant, np.arange(10) % 2, bins=15) == 0.0
    assert metrics.ece([0.0, 1.0], [0, 1]) == 0.0


def test_wilson_against_published_values() -> None:
    # Wilson's interval of 8 out of 10, as tabulated by Newcombe 1998 to three digits.
    low, high = metrics.wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert metrics.wilson(0, 10)[0] == 0.0
    assert metrics.wilson(10, 10)[1] == 1.0
    with pytest.raises(EvaluationError):
        metrics.wilson(1, 0)


@pytest.mark.parametrize(
    ("scores", "strong", "weak", "says"),
    [
        ([], [], [], "at least one"),
        ([0.1, float("nan")], [1, 1], [0, 0], r"scores\[1\]"),
        ([0.1, 0.2], [1, float("inf")], [0, 0], r"strong\[1\]"),
        ([0.1], [1, 1], [0, 0], "length"),
        ([0.1, 0.2], [1, 0], [1, 0], "swap"),
        ([0.1, 0.2], [0, 0], [1, 1], "swap"),
        ([[0.1]], [[1]], [[0]], "shape"),
    ],
)
def test_undefined_input_says_what_to_do(
    scores: list[float], strong: list[float], weak: list[float], says: str
) -> None:
    with pytest.raises(EvaluationError, match=says):
        metrics.tradeoff(scores, strong, weak)


def test_bad_targets_bins_and_labels() -> None:
    with pytest.raises(EvaluationError, match="target"):
        metrics.cpt([0.1, 0.2], [1, 1], [0, 0], 0.0)
    with pytest.raises(EvaluationError, match="bins"):
        metrics.ece([0.1], [0], bins=0)
    with pytest.raises(EvaluationError, match="probability"):
        metrics.brier([1.1], [1])
    with pytest.raises(EvaluationError, match="label"):
        metrics.brier([0.1], [2])
    with pytest.raises(EvaluationError, match="lengths"):
        metrics.brier([], [])


def test_every_resample_equals_the_metric_on_the_repeated_rows() -> None:
    rng = np.random.default_rng(5)
    n = 12
    scores = rng.integers(0, 5, n) / 5
    strong, weak = rng.integers(0, 3, n) / 2 + 0.5, rng.integers(0, 3, n) / 2
    grid = np.linspace(0, 1, 5)
    samples = bs.bootstrap(scores, strong, weak, resamples=50, seed=7, shares=grid)
    counts = np.concatenate(list(bs.resample_counts(n, 50, seed=7)))
    assert counts.shape == (50, n)
    assert (counts.sum(axis=1) == n).all()
    for row, count in enumerate(counts.astype(int)):
        s, a, b = (np.repeat(values, count) for values in (scores, strong, weak))
        if a.sum() <= b.sum():
            assert math.isnan(samples.apgr[row])
            continue
        curve = metrics.tradeoff(s, a, b)
        assert samples.apgr[row] == pytest.approx(curve.apgr(), abs=1e-12)
        assert samples.cpt50[row] == pytest.approx(curve.cpt(0.5))
        assert samples.cpt80[row] == pytest.approx(curve.cpt(0.8))
        recovered = (curve.rewards(grid) - b.mean()) / (a.mean() - b.mean())
        np.testing.assert_allclose(samples.pgr[row], recovered, atol=1e-9)
        expected = metrics.auc(s, a > b)
        assert samples.auc[row] == pytest.approx(expected, nan_ok=True)


def test_bootstrap_is_seeded_independent_of_chunks_and_paired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(6)
    n = 60
    weak = rng.integers(0, 2, n) / 2
    strong = weak + rng.integers(0, 2, n) / 2
    scores = rng.random(n)
    one = bs.bootstrap(scores, strong, weak, resamples=40, seed=1)
    monkeypatch.setattr(bs, "CHUNK_CELLS", 7 * n)
    same = bs.bootstrap(scores, strong, weak, resamples=40, seed=1)
    np.testing.assert_array_equal(one.apgr, same.apgr)
    other = bs.bootstrap(scores, strong, weak, resamples=40, seed=2)
    assert not np.array_equal(one.apgr, other.apgr)
    # A router against a copy of itself with other numbers differs by nothing in any resample.
    copy = bs.bootstrap(scores**2, strong, weak, resamples=40, seed=1)
    np.testing.assert_allclose(one.apgr - copy.apgr, 0.0, atol=1e-12)


def test_the_interval_covers_the_truth_about_95_percent_of_the_time() -> None:
    """APGR of a known population: 200 data sets of 150 prompts, intervals of 200 resamples."""
    rng = np.random.default_rng(11)

    def draw(n: int) -> tuple[Floats, Floats, Floats]:
        need = rng.random(n)
        weak = (rng.random(n) > need).astype(float)
        return need + rng.normal(0, 0.3, n), np.ones(n), weak

    truth = metrics.apgr(*draw(400_000))
    hits = 0
    for seed in range(200):
        sample = bs.bootstrap(*draw(150), resamples=200, seed=seed)
        low, high = bs.interval(sample.apgr)
        hits += low <= truth <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_interval_is_undefined_where_many_resamples_are() -> None:
    values = np.arange(100.0)
    assert bs.interval(values) == (pytest.approx(2.475), pytest.approx(96.525))
    values[:10] = np.nan
    assert all(math.isnan(end) for end in bs.interval(values))

"""What the protocols share."""

import math

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.eval.bootstrap import (
    bootstrap,
    checked_scores,
    draw_intervals,
    resample_counts,
    resampled_apgr,
)


def test_resampled_apgr_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    scores, strong = rng.integers(0, 9, 60).astype(float), np.ones(60)
    weak = rng.integers(0, 2, 60).astype(float)
    expected = bootstrap(scores, strong, weak, resamples=30, seed=4).apgr
    counts = np.concatenate(list(resample_counts(60, 30, seed=4)))
    np.testing.assert_allclose(resampled_apgr(scores, strong - weak, counts), expected, rtol=1e-12)


def test_intervals_are_the_formulas() -> None:
    values = np.array([0.6, 0.64, 0.68])
    samples = [np.array([0.5, 0.7]), np.array([0.6, 0.6]), np.array([0.6, 0.8])]
    over_draws, over_both = draw_intervals(values, samples)
    of_mean = 0.0016 / 3
    half = 4.302653 * math.sqrt(of_mean)
    assert over_draws == pytest.approx((0.64 - half, 0.64 + half), abs=1e-6)
    wide = 1.959964 * math.sqrt((0.02 + 0.0 + 0.02) / 3 + of_mean)
    assert over_both == pytest.approx((0.64 - wide, 0.64 + wide), abs=1e-6)


def test_many_undefined_resamples_leave_no_interval_over_prompts() -> None:
    nan = float("nan")
    samples = [np.array([0.5, 0.6, 0.7]), np.array([0.5, nan, 0.6])]
    over_draws, over_both = draw_intervals(np.array([0.6, 0.6]), samples)
    assert over_draws == pytest.approx((0.6, 0.6))
    assert all(math.isnan(end) for end in over_both)


@pytest.mark.parametrize("bad", [[0.1], [0.1, float("inf")], [[0.1, 0.2]], 0.5])
def test_scores_that_cannot_be_ranked_say_whose(bad: object) -> None:
    with pytest.raises(EvaluationError, match=r"here: router.*each of 2 prompts"):
        checked_scores(bad, 2, "here: router")  # type: ignore[arg-type]
    assert checked_scores([1, 2], 2, "here").dtype == np.float64

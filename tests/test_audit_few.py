"""The audit where labels are few, alike or of one kind: intervals, errors and words still hold."""

import numpy as np
import pytest
from thriftroute.eval.audit.audit import audit
from thriftroute.eval.audit.measure import Rows, against_random, measure
from thriftroute.eval.audit.verdict import AuditSettings
from thriftroute.eval.metrics import Floats


def rare_losses(n: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Scores with half of the prompts below .5; of these the weak model loses 2% and wins none."""
    rng = np.random.default_rng((seed, 23))
    scores = rng.random(n)
    lost = (scores < 0.5) & (rng.random(n) < 0.02)
    return scores, np.ones(n), 1.0 - lost


@pytest.mark.parametrize("n", [10, 40, 100])
def test_intervals_hold_the_truth_where_the_rows_show_no_loss(n: int) -> None:
    quality = 1 - 0.5 * 0.02
    held = gained = 0
    for seed in range(100):
        rows = Rows.of(*rare_losses(n, seed))
        found = measure(rows, rows.sends(0.5), resamples=200)
        held += found.quality.low <= quality <= found.quality.high
        gained += found.saving.low <= 0.5 <= found.saving.high
    assert held >= 90
    assert gained >= 88


def test_what_is_so_by_definition_has_no_width() -> None:
    rows = Rows.of(*rare_losses(30, 0), (np.full(30, 0.02), np.full(30, 0.001)))
    always = measure(rows, 1.0, resamples=100)
    assert (always.quality.value, *always.quality.ci) == (1.0, 1.0, 1.0)
    assert (always.saving.value, *always.saving.ci) == (0.0, 0.0, 0.0)
    assert measure(rows, 0.0, resamples=100).saving.ci == pytest.approx((0.95, 0.95))


def test_a_threshold_that_sends_all_of_these_to_one_model_may_not_send_all() -> None:
    rows = Rows.of(*rare_losses(30, 0))
    always, found = measure(rows, 1.0), measure(rows, np.ones(30))
    assert always.quality.value == found.quality.value == 1.0
    assert found.share.value == found.share.high == 1.0
    assert found.share.low < 0.95
    assert found.quality.low < 1.0


def test_the_difference_to_a_random_mix_is_uncertain_where_all_rows_tie() -> None:
    rows = Rows.of(np.linspace(0, 1, 20), np.full(20, 0.5), np.full(20, 0.5))
    found = against_random(rows, rows.sends(0.5))
    assert found.difference.value == 0.0
    assert found.difference.low < -0.01 < 0.01 < found.difference.high
    assert found.p_value == 1.0


def test_where_the_strong_model_earns_nothing_the_words_have_no_nan() -> None:
    rows = Rows.of(np.linspace(0, 1, 200), np.zeros(200), np.ones(200))
    found = audit(rows, AuditSettings(resamples=20))
    assert found.verdict == "weak-only"
    assert "nan" not in found.why
    assert "earns nothing" in found.why
    assert found.to_dict()["quality"] is None
    assert found.to_dict()["quality_ci"] == [None, None]


def test_one_row_asks_for_more_in_plain_words() -> None:
    found = audit(Rows.of([0.3], [1.0], [0.0]), AuditSettings(resamples=20))
    assert found.verdict == "label-more"
    assert found.why == (
        "so few rows tell nothing; label about 199 more than these 1 to tell (200 in all)"
    )

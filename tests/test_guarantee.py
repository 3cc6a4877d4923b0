"""Tests of a bounded mean, the order of thresholds, what is promised of the last that passes."""

import itertools
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.errors import CalibrationError, EvaluationError
from thriftroute.eval.guarantee import means, threshold
from thriftroute.eval.guarantee.promises import LabelledPrompts, Promise
from thriftroute.eval.guarantee.threshold import Guarantee
from thriftroute.research import guarantee_trials

Floats = npt.NDArray[np.float64]
METHODS = tuple(guarantee_trials.METHODS)


def traffic(n: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Scores, rewards of strong and of weak: weak fails more often the higher the score."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    strong = (rng.random(n) < 0.85).astype(float)
    weak = (rng.random(n) < 0.9 - 0.7 * scores).astype(float)
    return scores, strong, weak


def guaranteed(
    scores: npt.ArrayLike,
    strong: npt.ArrayLike | None,
    weak: npt.ArrayLike | None,
    **given: Any,
) -> Guarantee:
    """As keywords: one promise by its name, what is known of the prompts, and how it is tested."""
    how = {key: given.pop(key) for key in ("seed",) if key in given}
    of = {key: given.pop(key) for key in ("confidence", "cost_cap") if key in given}
    known: dict[str, Any] = {"bounds": given.pop("bounds", (0.0, 1.0))}
    weights = given.pop("weights", None)
    known["weights"] = None if weights is None else np.asarray(weights)
    if "strong_cost" in given:
        costs = given.pop("strong_cost"), given.pop("weak_cost")
        known["costs"] = tuple(np.asarray(cost, dtype=float) for cost in costs)
    if strong is not None and weak is not None:
        known["rewards"] = tuple(np.asarray(side, dtype=float) for side in (strong, weak))
    [(name, target)] = given.items()
    prompts = LabelledPrompts(np.asarray(scores, dtype=float), **known)
    return threshold.guaranteed(prompts, Promise(name, target, **of), **how)


# The tests of a mean


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("low", [-1.0, -0.3])
@pytest.mark.parametrize("rare", [0.05, 0.3, 0.6])
def test_a_mean_of_zero_is_rejected_no_more_often_than_stated(
    method: str, low: float, rare: float
) -> None:
    # All 2^n sequences of a variable with two values and a mean of exactly 0, each with its
    # probability: no simulation, the exact share of false rejections.
    n = 10
    high = -low * rare / (1 - rare)
    loses = np.array(list(itertools.product([False, True], repeat=n))).T
    values = np.where(loses, low, high)
    chance = np.prod(np.where(loses, rare, 1 - rare), axis=0)
    assert chance @ values.mean(axis=0) == pytest.approx(0, abs=1e-12)
    rejected = {}
    for level in (0.5, 0.3, 0.1, 0.05):
        shown = guarantee_trials.METHODS[method](values, low, max(high, 1.0), level)
        rejected[level] = float(chance @ shown)
        assert rejected[level] <= level + 1e-12
    assert rejected[0.5] >= rejected[0.05]


def test_the_exact_check_finds_a_test_that_is_wrong() -> None:
    n, rare = 10, 0.05
    loses = np.array(list(itertools.product([False, True], repeat=n))).T
    values = np.where(loses, -1.0, rare / (1 - rare))
    chance = np.prod(np.where(loses, rare, 1 - rare), axis=0)
    # The central limit theorem, taken for true at n = 10.
    error = values.std(axis=0) / math.sqrt(n)
    assert chance @ (values.mean(axis=0) > 1.2816 * error) > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_level_on_values_of_many_kinds(method: str) -> None:
    rng = np.random.default_rng(0)
    n, columns, level = 200, 2000, 0.1
    drawn = {
        "rare loss": np.where(rng.random((n, columns)) < 0.01, -0.99, 0.01),
        "uniform": rng.uniform(-1, 1, (n, columns)),
        "beta": rng.beta(0.2, 1.8, (n, columns)) - 0.1,
        "below": np.where(rng.random((n, columns)) < 0.3, 0.5, -0.25),
    }
    for name, values in drawn.items():
        share = guarantee_trials.METHODS[method](values, -1.0, 1.0, level).mean()
        # Four standard errors: chance alone fails this once in 30,000.
        assert share <= level + 4 * math.sqrt(level * (1 - level) / columns), name


def test_betting_uses_its_level_where_hoeffding_bentkus_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    null = np.where(rng.random((300, 2000)) < 0.1, -0.45, 0.05)
    assert 0.05 < means.betting(null, -1.0, 1.0, 0.1).mean() < 0.13
    better = null + 0.02
    assert means.betting(better, -1.0, 1.0, 0.1).mean() > 0.6
    assert not guarantee_trials.hoeffding_bentkus(better, -1.0, 1.0, 0.1).any()


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_below_zero_needs_no_draws(method: str) -> None:
    test = guarantee_trials.METHODS[method]
    assert test(np.zeros((1, 2)), 0.0, 1.0, 0.01).tolist() == [True, True]
    assert test(np.full((500, 1), -0.1), -1.0, 0.0, 0.1).tolist() == [False]
    assert test(np.full((500, 1), 0.9), -1.0, 1.0, 0.001).tolist() == [True]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [-1.1, 1.1, math.nan])
def test_values_outside_the_bounds_are_refused(method: str, bad: float) -> None:
    with pytest.raises(CalibrationError, match="bounds"):
        guarantee_trials.METHODS[method](np.array([[0.0], [bad]]), -1.0, 1.0, 0.1)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
def test_a_level_that_is_no_probability_is_refused(level: float) -> None:
    with pytest.raises(CalibrationError, match="level"):
        means.betting(np.zeros((3, 1)), -1.0, 1.0, level)


# The threshold


def test_a_guarantee_is_the_last_threshold_before_the_first_failure() -> None:
    scores, strong, weak = traffic(300)
    found = guaranteed(scores, strong, weak, min_quality=0.9, confidence=0.9, seed=3)
    order = np.random.default_rng(3).permutation(300)
    edges = np.sort(scores)
    expected = 0.0
    for edge in (edges[1:] + edges[:-1]) / 2:
        routed = np.where(scores >= edge, strong, weak)
        values = (routed - 0.9 * strong)[order, None]
        if not means.betting(values, -0.9, 1.0, 0.1)[0]:
            break
        expected = float(edge)
    assert 0 < expected < 1
    assert (scores >= found.threshold).tolist() == (scores >= expected).tolist()
    calls = scores >= found.threshold
    assert found.strong_pct == pytest.approx(calls.mean())
    assert found.quality == pytest.approx(np.where(calls, strong, weak).mean() / strong.mean())
    assert found.regret == pytest.approx((strong - np.where(calls, strong, weak)).mean())
    assert found.quality >= found.quality_bound == 0.9
    assert (found.n, found.feasible, found.needed_n, found.confidence) == (300, True, None, 0.9)
    assert (found.gap_bound, found.regret_bound, found.cost_bound) == (None, None, None)


def test_thresholds_depend_on_scores_alone_and_start_at_the_safest() -> None:
    scores, strong, weak = traffic(50)
    prompts = LabelledPrompts(scores, (strong, weak), (strong, weak / 9))
    for promise, safest in (
        (Promise("min_quality", 0.9), 0.0),
        (Promise("max_regret", 0.1), 0.0),
        (Promise("min_gap", 0.5), 0.0),
        (Promise("max_cost", 0.3), 1.0),
    ):
        tested = threshold.FixedSequence(prompts, promise, np.arange(50))
        assert tested.thresholds[0] == safest
        steps = np.diff((scores[:, None] >= tested.thresholds).sum(axis=0))
        # Every way to tell the scores apart, one prompt more at a time.
        assert np.all(np.abs(steps) == 1) and len(steps) == 50
        assert len(set(np.sign(steps))) == 1


def test_more_confidence_or_a_harder_promise_sends_more_to_strong() -> None:
    rows = traffic(800)
    share = {
        (q, c): guaranteed(*rows, min_quality=q, confidence=c).strong_pct
        for q in (0.8, 0.9, 0.97)
        for c in (0.6, 0.9, 0.99)
    }
    for q in (0.8, 0.9, 0.97):
        assert share[q, 0.6] < share[q, 0.9] < share[q, 0.99]
    for c in (0.6, 0.9, 0.99):
        assert share[0.8, c] < share[0.9, c] < share[0.97, c]


def test_only_the_order_of_the_scores_counts() -> None:
    scores, strong, weak = traffic(400)
    first = guaranteed(scores, strong, weak, max_regret=0.05)
    second = guaranteed(scores**3 / 2, strong, weak, max_regret=0.05)
    assert first.strong_pct == second.strong_pct and first.threshold != second.threshold
    assert first == guaranteed(scores, strong, weak, max_regret=0.05)


def test_tied_scores_stay_on_one_side() -> None:
    scores = np.array([0.2] * 300 + [0.7] * 100)
    strong, weak = np.ones(400), np.array([1.0] * 300 + [0.0] * 100)
    found = guaranteed(scores, strong, weak, min_quality=0.95)
    assert 0.2 < found.threshold <= 0.7 and found.strong_pct == 0.25
    alone = guaranteed(np.full(400, 0.4), strong, weak, min_quality=0.95)
    assert (alone.threshold, alone.strong_pct, alone.feasible) == (0.0, 1.0, False)
    assert alone.needed_n is None and "promise less" in alone.message
    # At a score of exactly 1 no threshold sends anything to weak.
    ones = guaranteed(np.ones(400), strong, weak, min_quality=0.5)
    assert (ones.threshold, ones.feasible, ones.needed_n) == (0.0, False, None)


def test_a_lost_prompt_or_few_do_not_say_that_no_number_of_labels_would_do() -> None:
    one = guaranteed([0.5], [1.0], [0.0], min_quality=0.95)
    few = guaranteed(np.linspace(0.1, 0.9, 5), np.ones(5), np.zeros(5), min_quality=0.95)
    for found in (one, few):
        assert found.needed_n is not None and found.needed_n >= 50


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_labels_promises_nothing(n: int) -> None:
    scores, strong, weak = traffic(n)
    strong[:] = weak[:] = 1
    found = guaranteed(scores, strong, weak, min_quality=0.95)
    assert (found.feasible, found.threshold, found.strong_pct) == (False, 0.0, 1.0)
    # Always strong keeps the promise by its definition.
    assert (found.quality, found.quality_bound) == (1.0, 1.0)
    assert found.needed_n is not None and found.needed_n > n
    assert f"about {found.needed_n - n:,} more labels would do" in found.message


def test_equal_rewards_need_as_many_labels_as_are_said() -> None:
    # Nothing was ever lost; what is left is that a loss may be rare.
    def at(n: int) -> Guarantee:
        return guaranteed(np.linspace(0, 0.9, n), np.ones(n), np.ones(n), min_quality=0.95)

    needed = at(20).needed_n
    assert needed is not None and 45 < needed < 70
    assert not at(int(0.8 * needed)).feasible
    enough = at(needed)
    assert enough.feasible and (enough.threshold, enough.strong_pct) == (1.0, 0.0)
    assert enough.gap is None and enough.regret == 0


def test_a_weak_model_that_is_better_is_shown_to_be() -> None:
    rng = np.random.default_rng(0)
    scores, weak = rng.random(500), np.ones(500)
    strong = (rng.random(500) < 0.7).astype(float)
    found = guaranteed(scores, strong, weak, min_quality=0.95)
    assert (found.threshold, found.strong_pct) == (1.0, 0.0)
    assert 1.2 < found.quality_bound < found.quality
    none = guaranteed(scores, strong, weak, min_gap=0.5)
    assert (none.feasible, none.needed_n, none.gap, none.gap_bound) == (False, None, None, None)
    assert "no gap" in none.message
    regret = guaranteed(scores, strong, weak, max_regret=0.1)
    assert regret.strong_pct == 0 and regret.regret < 0 <= regret.regret_bound < 0.1


def test_where_strong_earns_nothing() -> None:
    scores, nothing = np.random.default_rng(0).random(200), np.zeros(200)
    found = guaranteed(scores, nothing, nothing, min_quality=0.95)
    assert (found.feasible, found.quality, found.needed_n) == (False, None, None)
    assert "earns nothing" in found.message
    # A share of nothing promises nothing, whatever weak earns.
    weak = guaranteed(scores, nothing, np.ones(200), min_quality=0.95)
    assert (weak.feasible, weak.quality, weak.needed_n) == (False, None, None)
    assert guaranteed(scores, nothing, np.ones(200), max_regret=0.05).strong_pct == 0


def test_the_gap_is_promised_in_parts_of_the_gap() -> None:
    rows = traffic(3000)
    found = guaranteed(*rows, min_gap=0.7)
    scores, strong, weak = rows
    mixed = np.where(scores >= found.threshold, strong, weak).mean()
    assert found.gap == pytest.approx((mixed - weak.mean()) / (strong.mean() - weak.mean()))
    assert found.gap > found.gap_bound == 0.7 and 0 < found.strong_pct < 1
    assert found.quality_bound is None


def test_grades_of_another_range() -> None:
    scores, strong, weak = traffic(3000)
    plain = guaranteed(scores, strong, weak, max_regret=0.05)
    graded = guaranteed(scores, 1 + 9 * strong, 1 + 9 * weak, max_regret=0.45, bounds=(1, 10))
    assert graded.strong_pct == plain.strong_pct
    assert graded.regret == pytest.approx(9 * plain.regret)
    with pytest.raises(CalibrationError, match=r"strong\[\d+\] is 10, outside"):
        guaranteed(scores, 1 + 9 * strong, 1 + 9 * weak, max_regret=0.45)
    with pytest.raises(CalibrationError, match="0 or more"):
        guaranteed(scores, strong - 1, weak - 1, min_quality=0.9, bounds=(-1, 0))


def test_a_promise_that_never_holds_is_not_a_matter_of_labels() -> None:
    scores, strong, _ = traffic(1000)
    found = guaranteed(np.round(scores), strong, np.zeros(1000), min_quality=0.9)
    assert (found.feasible, found.needed_n) == (False, None)
    assert "more labels would not do" in found.message


def test_what_lies_behind_a_failure_is_not_taken() -> None:
    # The easiest prompts are weak's worst: always weak would be better than strong, but what comes
    # first in the order fails, and the order was fixed.
    scores = np.linspace(0, 0.99, 1000)
    weak = (scores > 0.2).astype(float)
    strong = (np.arange(1000) % 2).astype(float)
    assert weak.mean() > strong.mean()
    found = guaranteed(scores, strong, weak, min_quality=0.9)
    assert 0.85 < found.strong_pct < 1 and found.quality_bound == 0.9
    # Turned around, nothing fails, and the bound is what always weak is shown to keep.
    turned = guaranteed(0.99 - scores, strong, weak, min_quality=0.9)
    assert turned.strong_pct == 0 and turned.quality_bound > 1.4


@pytest.mark.parametrize(("n", "more"), [(20, True), (2000, False)])
def test_a_loss_seen_on_a_few_prompts_may_be_chance(n: int, more: bool) -> None:
    # On a tenth of the prompts, the first to go to weak, it fails.
    scores = np.linspace(0, 0.99, n)
    weak = (scores > 0.1).astype(float)
    found = guaranteed(np.round(scores, 1), np.ones(n), weak, min_quality=0.95)
    assert not found.feasible and (found.needed_n is not None) == more


def test_the_number_of_labels_that_would_do() -> None:
    few = [guaranteed(*traffic(40, seed), min_quality=0.95, seed=seed) for seed in range(20)]
    said = [found.needed_n for found in few if found.needed_n is not None]
    assert len(said) >= 10 and not any(found.feasible for found in few if found.needed_n)
    enough = int(np.median(said))
    assert 45 <= enough <= 1000
    draws = [guaranteed(*traffic(enough, 100 + seed), min_quality=0.95) for seed in range(20)]
    assert sum(found.feasible for found in draws) >= 12


def test_many_prompts_are_tested_on_a_lattice_that_no_data_chose() -> None:
    scores, strong, weak = traffic(threshold.EVERY_THRESHOLD + 1)
    found = guaranteed(scores, strong, weak, min_quality=0.9)
    assert (found.threshold * threshold.LATTICE) % 1 == pytest.approx(0, abs=1e-9)
    every = guaranteed(scores[1:], strong[1:], weak[1:], min_quality=0.9)
    assert found.strong_pct == pytest.approx(every.strong_pct, abs=0.02)
    assert 0 < found.strong_pct < 1


# Budgets


def test_a_budget_is_kept_from_the_cheap_side() -> None:
    scores, strong, weak = traffic(1000)
    rng = np.random.default_rng(1)
    dear, cheap = 0.01 * (0.5 + rng.random(1000)), 0.001 * (0.5 + rng.random(1000))
    found = guaranteed(
        scores, strong, weak, max_cost=0.004, strong_cost=dear, weak_cost=cheap, cost_cap=0.015
    )
    paid = np.where(scores >= found.threshold, dear, cheap).mean()
    assert found.cost == pytest.approx(paid) and 0.003 < paid < found.cost_bound == 0.004
    assert found.saving == pytest.approx(1 - paid / dear.mean()) and found.assumptions == ()
    without = guaranteed(scores, None, None, max_cost=0.004, strong_cost=dear, weak_cost=cheap)
    assert without.quality is None and without.regret is None
    assert "no request costs more than" in without.assumptions[0]
    # A looser cap leaves more room for dear requests that were not seen.
    assert without.strong_pct <= found.strong_pct
    plenty = guaranteed(scores, None, None, max_cost=0.05, strong_cost=dear, weak_cost=cheap)
    assert (plenty.threshold, plenty.strong_pct) == (0.0, 1.0)
    assert dear.mean() < plenty.cost_bound < 0.05
    poor = guaranteed(scores, None, None, max_cost=0.0009, strong_cost=dear, weak_cost=cheap)
    assert (poor.feasible, poor.threshold, poor.cost_bound) == (False, 1.0, None)
    assert "raise the budget" in poor.message


# Weights


def test_weights_mend_a_sample_that_is_not_the_traffic() -> None:
    rng = np.random.default_rng(0)
    n, broken = 200, {"weights": 0, "none": 0}
    for draw in range(30):
        # Half of the traffic is easy, nine tenths of the sample: there weak is as good.
        easy = rng.random(n) < 0.9
        scores, strong = rng.random(n), np.ones(n)
        weak = np.where(easy, 1.0, (rng.random(n) < 0.6).astype(float))
        weights = np.where(easy, 0.5 / 0.9, 0.5 / 0.1)
        for name, given in (("weights", weights), ("none", None)):
            found = guaranteed(scores, strong, weak, min_quality=0.9, weights=given, seed=draw)
            # The score tells nothing: what is lost is half of .4 of what goes to weak.
            broken[name] += 1 - 0.2 * min(found.threshold, 1.0) < 0.9
    assert broken["none"] > 22 and broken["weights"] <= 8


def test_equal_weights_change_nothing() -> None:
    rows = traffic(300)
    plain = guaranteed(*rows, min_quality=0.9)
    assert guaranteed(*rows, min_quality=0.9, weights=np.full(300, 7.0)) == plain


# What is refused

ROWS = (np.array([0.1, 0.6]), np.array([1.0, 0.0]), np.array([0.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_quality": 0.0}, "below 1"),
        ({"min_quality": 1.0}, "below 1"),
        ({"min_quality": 95.0}, "below 1"),
        ({"min_gap": 1.5}, "below 1"),
        ({"max_regret": 0.0}, "above 0"),
        ({"max_regret": -0.1}, "above 0"),
        ({"min_quality": math.nan}, "no number"),
        ({"min_quality": True}, "no number"),
        ({"min_quality": 0.9, "confidence": 1.0}, "confidence"),
        ({"min_quality": 0.9, "confidence": 0.1}, "confidence"),
        ({"min_quality": 0.9, "confidence": 90}, "confidence"),
        ({"min_quality": 0.9, "bounds": (1.0, 0.0)}, "no range"),
        ({"min_quality": 0.9, "weights": [1.0]}, "weights"),
        ({"min_quality": 0.9, "weights": [1.0, 0.0]}, "weights"),
        ({"min_quality": 0.9, "strong_cost": [1, 1], "weak_cost": [1, -1]}, "weak costs"),
        ({"max_cost": 0.5}, "cost of every prompt"),
        ({"max_cost": 0.0, "strong_cost": [1, 1], "weak_cost": [0, 0]}, "above 0"),
        ({"max_cost": 2, "strong_cost": [1, 1], "weak_cost": [0, 0], "cost_cap": 0.5}, "dearest"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(CalibrationError, match=told):
        guaranteed(*ROWS, **options)


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"\[0, 1\]"):
        guaranteed([0.1, 1.6], *ROWS[1:], min_quality=0.9)
    with pytest.raises(CalibrationError, match="at least one"):
        guaranteed([], [], [], min_quality=0.9)
    with pytest.raises(EvaluationError, match="differ in length"):
        guaranteed(ROWS[0], ROWS[1], [1.0], min_quality=0.9)
    with pytest.raises(EvaluationError, match="leave out"):
        guaranteed(ROWS[0], ROWS[1], [1.0, math.nan], min_quality=0.9)
    with pytest.raises(CalibrationError, match="needs the rewards"):
        guaranteed(ROWS[0], None, None, min_quality=0.9)


def test_a_guarantee_is_json() -> None:
    found = guaranteed(*traffic(100), min_quality=0.9)
    value = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert value["threshold"] == found.threshold and value["assumptions"] == []

"""The audit: what it measures, and that it says yes, no and not yet where each is right."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.errors import CalibrationError, EvaluationError
from thriftroute.eval import benchmarks
from thriftroute.eval.audit.audit import audit
from thriftroute.eval.audit.measure import (
    Rows,
    against_random,
    curve,
    halves,
    labels_needed,
    measure,
    normal_tail,
    ranks,
)
from thriftroute.eval.audit.verdict import AuditSettings, AuditVerdict
from thriftroute.eval.baselines import length_scores
from thriftroute.eval.metrics import Floats, apgr
from thriftroute.research.error_rates import NOISE, error_rates, main, scorers

Sample = tuple[Floats, Floats, Floats]


def sample(
    n: int, seed: int, *, slope: float = 0.0, strong: float = 0.85, weak: float = 0.65
) -> Sample:
    """(scores, strong, weak): the weak model fails more often where the score is high, by `slope`;
    without one the scores are noise. Many ties, as a rounded score has."""
    rng = np.random.default_rng((seed, 17))
    x = rng.random(n)
    right = rng.random(n) < strong
    weak_right = rng.random(n) < np.clip(weak - slope * (x - 0.5), 0, 1)
    return np.round(0.05 + 0.9 * x, 2), right.astype(float), weak_right.astype(float)


def rows(n: int = 6) -> Rows:
    scores = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1][:n]
    strong = [1, 1, 1, 1, 0, 1][:n]
    weak = [0, 0, 1, 1, 1, 0][:n]
    return Rows.of(scores, strong, weak, (np.full(n, 0.02), np.full(n, 0.005)))


def quick(
    found: Sample,
    costs: tuple[Floats, Floats] | None = None,
    weights: Floats | None = None,
    others: dict[str, Floats] | None = None,
    **options: Any,
) -> AuditVerdict:
    settings = AuditSettings(**{"resamples": 60, **options})
    return audit(Rows.of(*found, costs, weights), settings, others)


# What is measured


def test_quality_saving_and_cost_of_a_threshold_are_the_plain_ratios() -> None:
    one = rows()
    found = measure(one, one.sends(0.5))
    # Strong answers the first three: 1 + 1 + 1, the weak one the rest: 1 + 1 + 0.
    assert found.quality.value == pytest.approx(5 / 5)
    assert found.reward.value == pytest.approx(5 / 6)
    assert found.share.value == 0.5
    assert found.cost.value == pytest.approx((3 * 0.02 + 3 * 0.005) / 6)
    assert found.saving.value == pytest.approx(1 - 0.075 / 0.12)
    assert found.quality.low <= found.quality.value <= found.quality.high


def test_a_random_mix_lies_between_the_models() -> None:
    one = rows()
    ends = [measure(one, np.full(6, p)).reward.value for p in (0.0, 0.25, 1.0)]
    assert ends[0] == pytest.approx(3 / 6)
    assert ends[2] == pytest.approx(5 / 6)
    assert ends[1] == pytest.approx(0.75 * ends[0] + 0.25 * ends[2])


def test_a_row_of_twice_the_weight_counts_as_two_rows() -> None:
    scores, strong, weak = sample(40, 1, slope=0.5)
    twice = np.arange(40) % 3 == 0
    weighted = Rows.of(scores, strong, weak, weights=np.where(twice, 2.0, 1.0))
    repeat = np.concatenate((np.arange(40), np.flatnonzero(twice)))
    plain = Rows.of(scores[repeat], strong[repeat], weak[repeat])
    for name in ("quality", "saving", "share", "reward"):
        one = getattr(measure(weighted, weighted.sends(0.5)), name).value
        assert one == pytest.approx(getattr(measure(plain, plain.sends(0.5)), name).value)
    one, two = (
        against_random(weighted, weighted.sends(0.5)),
        against_random(plain, plain.sends(0.5)),
    )
    assert one.difference.value == pytest.approx(two.difference.value)
    assert curve(weighted).quality == pytest.approx(curve(plain).quality)


def test_without_costs_a_strong_call_is_the_unit() -> None:
    found = Rows.of([0.9, 0.1], [1, 1], [1, 0])
    assert not found.usd
    assert measure(found, found.sends(0.5)).saving.value == 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    scores, strong, weak = sample(200_000, 0, slope=0.6)
    truth = np.where(scores >= 0.5, strong, weak).mean() / strong.mean()
    held = 0
    for i in range(100):
        at = slice(300 * i, 300 * i + 300)
        one = Rows.of(scores[at], strong[at], weak[at])
        quality = measure(one, one.sends(0.5), resamples=200).quality
        held += quality.low <= truth <= quality.high
    assert 88 <= held <= 100


# Against a random mix


def test_the_permutation_test_is_the_exact_one() -> None:
    scores, strong, weak = sample(8, 5, slope=0.9)
    one = Rows.of(scores, strong, weak)
    sends = np.array([1.0, 1, 1, 0, 0, 0, 0, 0])
    gain = strong - weak
    residual = gain - gain.mean()

    def z(chosen: tuple[int, ...]) -> float:
        d = np.isin(np.arange(8), chosen) - 3 / 8
        spread = math.sqrt(float(np.sum((d * residual) ** 2)))
        return float(d @ residual) / spread if spread > 1e-9 else math.inf

    every = [z(chosen) for chosen in itertools.combinations(range(8), 3)]
    exact = np.mean([value >= every[0] - 1e-9 for value in every])
    found = against_random(one, sends)
    assert found.z == pytest.approx(every[0])
    assert found.p_value == pytest.approx(exact, abs=0.04)
    assert found.difference.value == pytest.approx(np.mean((sends - 3 / 8) * gain))


def test_where_nothing_is_mixed_nothing_is_better() -> None:
    found = against_random(rows(), np.ones(6))
    assert math.isnan(found.z)
    assert found.p_value == 1.0
    assert found.difference.value == pytest.approx(0)


def test_the_same_spend_is_dearer_where_long_prompts_go_to_strong() -> None:
    rng = np.random.default_rng(3)
    length = rng.random(4000)
    strong, weak = (rng.random(4000) < 0.9).astype(float), (rng.random(4000) < 0.6).astype(float)
    one = Rows.of(length, strong, weak, (0.01 + 0.09 * length, 0.001 * np.ones(4000)))
    share = against_random(one, one.sends(0.5), same="share", resamples=200)
    spend = against_random(one, one.sends(0.5), same="spend", resamples=200)
    # Length says nothing of the gain: at the same share no difference, at the same spend a loss.
    assert share.difference.low < 0 < share.difference.high
    assert spend.difference.high < 0
    assert spend.p_value > 0.99


def test_past_many_rows_the_normal_limit_is_taken() -> None:
    scores, strong, weak = sample(20_001, 2, slope=0.05)
    one = Rows.of(scores, strong, weak)
    found = against_random(one, one.sends(0.5), resamples=20)
    assert found.p_value == normal_tail(found.z)
    assert normal_tail(1.6449) == pytest.approx(0.05, abs=1e-4)


# The curve and the small parts


def test_the_curve_runs_from_weak_to_strong_and_has_the_apgr_of_eval() -> None:
    scores, strong, weak = sample(500, 4, slope=0.6)
    found = curve(Rows.of(scores, strong, weak), resamples=50)
    assert found.quality[0] == pytest.approx(weak.mean() / strong.mean())
    assert found.quality[-1] == pytest.approx(1)
    assert np.all(found.low <= found.high)
    assert found.apgr.value == pytest.approx(apgr(scores, strong, weak), abs=0.002)
    assert found.apgr.low < found.apgr.value < found.apgr.high


def test_a_constant_score_has_the_apgr_of_a_random_mix() -> None:
    _, strong, weak = sample(300, 4)
    assert curve(Rows.of(np.full(300, 0.4), strong, weak), resamples=20).apgr.value == (
        pytest.approx(0.5)
    )


def test_without_a_gap_there_is_no_apgr() -> None:
    found = curve(Rows.of([0.1, 0.2], [1, 0], [1, 0]), resamples=20)
    assert math.isnan(found.apgr.value)


@given(st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=30)
def test_halves_are_a_partition(n: int, seed: int) -> None:
    first, second = halves(n, seed)
    assert sorted([*first, *second]) == list(range(n))
    assert 0 <= len(first) - len(second) <= 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_ranks_keep_order_and_ties_within_the_unit_interval(values: list[float]) -> None:
    found = ranks(values)
    assert np.all((found > 0) & (found < 1))
    for a, b in itertools.combinations(range(len(values)), 2):
        assert np.sign(found[a] - found[b]) == np.sign(values[a] - values[b])


def test_labels_needed_grow_with_the_square() -> None:
    assert labels_needed(1.0, 100, 2.0) == 400
    assert labels_needed(-0.1, 100, 2.0) == math.inf
    assert labels_needed(float("nan"), 100, 2.0) == math.inf


# It says yes


def test_informative_scores_are_routed_and_keep_their_promise() -> None:
    everywhere = sample(200_000, 99, slope=0.9)
    kept = covered = 0
    for seed in range(8):
        found = quick(sample(800, seed, slope=0.9), seed=seed)
        assert found.verdict == "route", found.why
        assert found.beats_random
        assert found.guaranteed
        assert found.needed_n is None
        assert found.saving >= 0.2
        assert found.quality >= 0.93
        assert found.n_chosen_on == found.n_measured == 400
        scores, strong, weak = everywhere
        truth = np.where(scores >= found.threshold, strong, weak).mean() / strong.mean()
        kept += truth >= 0.95
        covered += found.quality_ci[0] <= truth <= found.quality_ci[1]
    assert kept >= 7
    assert covered >= 6


def test_figures_of_a_route_come_from_rows_that_did_not_choose_it() -> None:
    scores, strong, weak = sample(800, 3, slope=0.9)
    found = quick((scores, strong, weak))
    second = halves(800, 0)[1]
    routed = np.where(scores[second] >= found.threshold, strong[second], weak[second])
    assert found.quality == pytest.approx(routed.mean() / strong[second].mean())
    assert found.saving == pytest.approx(1 - np.mean(scores[second] >= found.threshold))
    # Other labels on the measured half change the figures, never the threshold.
    changed = weak.copy()
    changed[second] = 1 - changed[second]
    assert quick((scores, strong, changed)).candidate_threshold == found.candidate_threshold


def test_baselines_stand_beside_at_the_same_share() -> None:
    found = quick(sample(800, 1, slope=0.9), others={"noise": np.random.default_rng(0).random(800)})
    names = {"always-strong", "always-weak", "random", "noise", "oracle"}
    assert set(found.baselines) == names
    assert found.candidate is not None
    share = found.candidate.strong_pct
    assert found.baselines["random"].strong_pct == pytest.approx(share)
    assert found.baselines["noise"].strong_pct == pytest.approx(share, abs=0.01)
    assert found.baselines["oracle"].quality >= max(
        option.quality for option in found.baselines.values()
    )
    assert found.baselines["always-strong"].saving == 0
    assert found.baselines["noise"].difference_ci[0] > 0
    assert not found.warnings


def test_a_better_baseline_is_a_warning() -> None:
    scores, strong, weak = sample(1000, 2, slope=0.5)
    found = quick((scores, strong, weak), others={"better": strong - weak})
    assert "better keeps more quality than the router at the same share" in found.warnings


# It says no


def test_noise_is_routed_no_more_often_than_stated() -> None:
    verdicts: Counter[str] = Counter()
    tempted = 0
    for seed in range(100):
        found = quick(sample(200, seed, weak=0.7), seed=seed, min_quality=0.9)
        verdicts[found.verdict] += 1
        assert found.candidate is not None
        tempted += found.guaranteed and found.candidate.saving >= 0.05
    # Without the test against a random mix so many would have been routed.
    assert tempted >= 50
    # 5% of 100 are 5; 12 or more would come by chance one time in 200.
    assert verdicts["route"] < 12
    assert verdicts["weak-only"] <= 3


def test_on_much_noise_the_strong_model_is_the_answer() -> None:
    verdicts = Counter(quick(sample(2500, seed), seed=seed).verdict for seed in range(6))
    assert verdicts["strong-only"] >= 5
    found = quick(sample(2500, 1), seed=1)
    assert found.reason == "no-better-than-random"
    assert found.beats_random is False
    assert (found.threshold, found.saving, found.quality) == (0.0, 0.0, 1.0)
    assert found.needed_n is None


def test_scores_that_are_wrong_way_round_are_not_routed() -> None:
    scores, strong, weak = sample(1500, 4, slope=0.9)
    found = quick((1 - scores, strong, weak))
    assert found.verdict == "strong-only"
    assert found.beats_random is False


def test_equal_scores_cannot_route() -> None:
    _, strong, weak = sample(1200, 4)
    found = quick((np.full(1200, 0.5), strong, weak))
    assert found.verdict == "strong-only"
    assert found.beats_random is None
    assert "all scores are equal" in found.warnings[0]


@pytest.mark.parametrize("weak", [0.85, 0.95])
def test_a_weak_model_as_good_as_the_strong_one_stands_alone(weak: float) -> None:
    found = quick(sample(2500, 7, weak=weak))
    assert found.verdict == "weak-only"
    assert (found.threshold, found.strong_pct, found.saving) == (1.0, 0.0, 1.0)
    assert found.quality == pytest.approx(weak / 0.85, abs=0.05)


def test_the_same_answers_everywhere_need_labels_even_so() -> None:
    same = np.ones(30)
    assert quick((np.linspace(0.1, 0.9, 30), same, same)).verdict == "label-more"
    same = np.ones(200)
    found = quick((np.linspace(0.1, 0.9, 200), same, same))
    assert found.verdict == "weak-only"


def test_a_weak_model_a_little_too_weak_is_not_let_through() -> None:
    verdicts = Counter(
        quick(sample(400, seed, weak=0.95 * 0.85 - 0.002), seed=seed).verdict for seed in range(40)
    )
    # True quality just below .95: at most one time in ten.
    assert verdicts["weak-only"] <= 8


def test_a_hopeless_weak_model_leaves_the_strong_one() -> None:
    found = quick(sample(600, 2, weak=0.05))
    assert found.verdict == "strong-only"


def test_every_saving_that_costs_too_much_is_proven() -> None:
    scores, strong, _ = sample(500, 2, strong=1.0)
    found = quick((scores, strong, np.zeros(500)), min_saving=0.2)
    assert (found.verdict, found.reason) == ("strong-only", "too-much-quality-lost")


def test_a_weak_model_that_costs_no_less_saves_nothing() -> None:
    found = quick(sample(500, 2, slope=0.9), costs=(np.full(500, 0.01), np.full(500, 0.01)))
    assert (found.verdict, found.reason) == ("strong-only", "weak-not-cheaper")
    found = quick(sample(500, 2, slope=0.9), costs=(np.full(500, 0.01), np.full(500, 0.001)))
    assert found.verdict == "route"
    assert found.saving_of == "usd"
    assert found.saving == pytest.approx(0.9 * (1 - found.strong_pct))


def test_beating_the_mix_by_spending_more_is_not_beating_it() -> None:
    scores, strong, weak = sample(3000, 5, slope=0.3)
    # What goes to the strong model is what is dear there.
    dear = np.where(scores > 0.5, 0.1, 0.01)
    found = quick((scores, strong, weak), costs=(dear, np.full(3000, 1e-4)), min_quality=0.9)
    assert found.against_random["share"].p_value <= 0.05
    assert found.against_random["spend"].p_value > 0.05
    assert found.beats_random is False
    assert found.verdict != "route"


# It says not yet


def test_few_rows_tell_nothing() -> None:
    found = quick(sample(8, 0, slope=0.9))
    assert (found.verdict, found.reason, found.needed_n) == ("label-more", "too-few-rows", 200)
    assert found.candidate is None
    assert found.beats_random is None
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["threshold"] is None


def test_the_labels_that_it_asks_for_do() -> None:
    asked = [quick(sample(90, seed, slope=0.7), seed=seed) for seed in range(10)]
    more = [found for found in asked if found.verdict == "label-more"]
    assert len(more) >= 5
    assert all(found.needed_n is not None and found.needed_n > 90 for found in more)
    middle = int(np.median([found.needed_n or 0 for found in more]))
    assert middle <= 3000
    then = Counter(quick(sample(middle, 50 + seed, slope=0.7)).verdict for seed in range(8))
    assert then["route"] >= 6


def test_nobody_is_asked_for_more_labels_than_would_be_paid_for() -> None:
    for seed in range(5):
        found = quick(sample(1200, seed, slope=0.1), seed=seed, max_labels=1300)
        assert found.needed_n is None or found.needed_n <= 1320


# Weights


def test_weights_undo_a_sample_of_hard_prompts() -> None:
    """Where the weak model fails is sampled four times as often: unweighted, it looks hopeless."""
    rng = np.random.default_rng(8)
    hard = rng.random(3000) < 4 * 0.02 / (4 * 0.02 + 0.98)
    strong, weak = np.ones(3000), (~hard).astype(float)
    scores = rng.random(3000)
    assert quick((scores, strong, weak), min_quality=0.96).verdict != "weak-only"
    found = quick((scores, strong, weak), min_quality=0.96, weights=np.where(hard, 0.25, 1.0))
    assert found.verdict == "weak-only"
    assert found.weighted
    assert found.quality == pytest.approx(0.98, abs=0.01)


# JSON and errors


def test_json_has_the_promised_keys_and_no_nan() -> None:
    value = json.loads(json.dumps(quick(sample(600, 1, slope=0.9)).to_dict(), allow_nan=False))
    assert {
        "verdict", "threshold", "saving", "saving_ci", "quality", "quality_ci", "n", "needed_n",
        "beats_random", "baselines", "strong_pct", "against_random", "candidate", "warnings",
    } <= set(value)  # fmt: skip
    assert value["verdict"] == "route"
    assert len(value["saving_ci"]) == len(value["quality_ci"]) == 2
    assert value["candidate"]["threshold"] == value["threshold"]
    assert value["baselines"]["random"]["usd_per_1k"] is None


def test_the_same_seed_gives_the_same_verdict() -> None:
    one, two = (quick(sample(300, 1, slope=0.9), seed=4).to_dict() for _ in range(2))
    assert one == two
    assert quick(sample(300, 1, slope=0.9), seed=5).to_dict() != one


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_quality": 0.0}, "min_quality"),
        ({"min_quality": 1.2}, "min_quality"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0.2}, "confidence"),
        ({"min_saving": 1.0}, "min_saving"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        quick(sample(30, 0), **options)


def test_data_that_cannot_be_used_is_refused() -> None:
    scores, strong, weak = sample(30, 0)
    with pytest.raises(CalibrationError, match=r"scores must be numbers in \[0, 1\]"):
        quick((scores + 1, strong, weak))
    with pytest.raises(EvaluationError, match="divide grades by the best"):
        quick((scores, strong * 10, weak))
    with pytest.raises(EvaluationError, match="both models earn 0 on all 30 rows"):
        quick((scores, 0 * strong, 0 * weak))
    with pytest.raises(EvaluationError, match="differ in length"):
        quick((scores, strong, weak[:-1]))
    with pytest.raises(EvaluationError, match="strong costs: expected 30 finite numbers"):
        quick((scores, strong, weak), costs=(-strong - 1, weak))
    with pytest.raises(EvaluationError, match="weights: expected 30"):
        quick((scores, strong, weak), weights=np.ones(7))
    with pytest.raises(EvaluationError, match="weights must be above 0"):
        quick((scores, strong, weak), weights=np.zeros(30))


def test_where_only_the_weak_model_is_ever_right_it_stands_alone() -> None:
    scores, strong, weak = sample(200, 0)
    found = quick((scores, 0 * strong, weak))
    assert found.verdict == "weak-only"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["quality"] is None


def test_a_verdict_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick(sample(30, 0)).verdict = "route"  # type: ignore[misc]


# Real data


def test_on_gsm8k_prompt_length_routes_and_noise_does_not(data_dir: Path) -> None:
    found = benchmarks.load("gsm8k")
    length = ranks(length_scores(found.prompts))
    asked = {"min_quality": 0.9, "resamples": 200}
    yes = quick((length, found.strong, found.weak), **asked)
    assert yes.verdict == "route"
    assert 0.2 < yes.saving < 0.6
    noise = np.random.default_rng(21).random(found.n)
    no = quick((noise, found.strong, found.weak), **asked)
    assert no.verdict != "route"
    assert no.beats_random is False
    # And the order of the data, by which the questions come, knows nothing either.
    order = ranks(np.arange(found.n))
    assert quick((order, found.strong, found.weak), resamples=1000).verdict != "route"


# How often it is right


def test_rates_tell_informed_scores_from_noise() -> None:
    scores, strong, weak = sample(4000, 11, slope=0.9)
    settings = AuditSettings(resamples=200)
    found = error_rates("own", lambda _: scores, (strong, weak), n=300, draws=8, settings=settings)
    assert found.route >= 0.8
    assert found.broken <= 0.2
    assert found.quality_covered >= 0.75
    assert found.saving_covered >= 0.75
    assert found.route_ci[0] < found.route < found.route_ci[1] + 1e-9
    mixed = error_rates(
        NOISE,
        lambda draw: np.random.default_rng((draw, 3)).random(4000),
        (strong, weak),
        n=300,
        draws=8,
        settings=settings,
    )
    assert mixed.route <= 0.25
    assert mixed.route + mixed.weak_only + mixed.strong_only + mixed.label_more == pytest.approx(1)


def test_a_promise_that_is_broken_is_counted() -> None:
    # The weak model keeps .96 of the quality: .9601 is not kept, but shown with confidence .5.
    scores, strong, weak = sample(500, 1, strong=1.0)[0], np.ones(500), np.ones(500)
    weak[:20] = 0
    settings = AuditSettings(min_quality=0.9601, confidence=0.5, resamples=200)
    found = error_rates("own", lambda _: scores, (strong, weak), n=200, draws=12, settings=settings)
    assert found.weak_only > 0
    assert found.broken >= found.weak_only
    settings = AuditSettings(min_quality=0.9, resamples=200)
    kept = error_rates("own", lambda _: scores, (strong, weak), n=300, draws=4, settings=settings)
    assert (kept.weak_only, kept.broken) == (1, 0)
    assert math.isnan(kept.saving)


def test_the_command_prints_rates(
    data_dir: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--router", str(tiny_bundle), "--sizes", "60", "--draws", "2", "--min-quality", "0.9"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["scores"] for one in found] == [str(tiny_bundle), "prompt-length", NOISE]
    assert main(words) == 0
    assert "label-more" in capsys.readouterr().out
    assert main([*words, "--sizes", "some"]) == 2
    assert "expected whole numbers" in capsys.readouterr().err


def test_noise_is_new_in_each_draw(data_dir: Path, tiny_bundle: Path) -> None:
    found = scorers(str(tiny_bundle), benchmarks.load("gsm8k"), 0)
    assert np.all(found["prompt-length"](0) == found["prompt-length"](1))
    assert not np.any(found[NOISE](0) == found[NOISE](1))

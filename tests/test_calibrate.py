"""From a wish to a threshold, from tokens to dollars, from margins to probabilities."""

import dataclasses
import json
import re

import numpy as np
import pytest
from thriftroute.errors import CalibrationError
from thriftroute.eval import calibrate, metrics, pricing, probability
from thriftroute.eval.benchmarks import Benchmark
from thriftroute.providers import prices
from thriftroute.router.threshold import apply_calibration, sigmoid


def scores_of(n: int = 1000, seed: int = 0) -> metrics.Floats:
    return np.random.default_rng(seed).beta(2, 5, n)


def test_a_share_is_met_exactly_and_its_interval_covers_it() -> None:
    scores = scores_of()
    result = calibrate.calibrate_share(scores, 0.3)
    assert result.strong_pct == 0.3 == np.mean(scores >= result.threshold)
    assert result.interval == metrics.wilson(300, 1000)
    assert result.n == 1000 and result.warning == "" and result.usd_per_1k is None
    assert result.requested == {"strong_pct": 0.3}


def test_the_table_lists_what_each_neighbour_really_gives() -> None:
    scores = scores_of(500)
    rng = np.random.default_rng(1)
    strong_cost, weak_cost = rng.random(500) / 50, rng.random(500) / 500
    strong, weak = np.ones(500), rng.integers(0, 2, 500).astype(float)
    result = calibrate.calibrate_share(scores, 0.4, (strong_cost, weak_cost), (strong, weak))
    assert [row.chosen for row in result.table].count(True) == 1
    assert len(result.table) == 11
    assert [row.strong_pct for row in result.table] == sorted(r.strong_pct for r in result.table)
    for row in result.table:
        chosen = scores >= row.threshold
        assert row.strong_pct == chosen.mean()
        assert row.quality == pytest.approx(np.where(chosen, strong, weak).mean())
        paid = np.where(chosen, strong_cost, weak_cost)
        assert row.usd_per_1k == pytest.approx(1000 * paid.mean())
        assert row.interval[0] <= row.strong_pct <= row.interval[1]
    assert result.usd_interval[0] < result.usd_per_1k < result.usd_interval[1]


def test_the_result_survives_json() -> None:
    result = calibrate.calibrate_share(scores_of(50), 0.5)
    value = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert value["threshold"] == result.threshold
    assert value["interval"] == list(result.interval)
    assert list(value)[:3] == ["threshold", "strong_pct", "interval"]


def test_tied_scores_are_exact_and_said() -> None:
    scores = np.array([0.2] * 60 + [0.7] * 40)
    result = calibrate.calibrate_share(scores, 0.5)
    assert result.strong_pct == 0.4 == np.mean(scores >= result.threshold)
    assert "tied scores" in result.warning
    assert [row.strong_pct for row in result.table] == [0.0, 0.4, 1.0]


@pytest.mark.parametrize(("wanted", "got"), [(0.3, 0.0), (0.5, 0.0), (0.8, 1.0)])
def test_all_scores_equal_gives_all_or_nothing_with_a_warning(wanted: float, got: float) -> None:
    result = calibrate.calibrate_share([0.4] * 7, wanted)
    assert result.strong_pct == got
    assert "all 7 scores equal 0.4" in result.warning


def test_a_budget_is_used_and_kept() -> None:
    scores = scores_of(400)
    costs = np.full(400, 0.01), np.full(400, 0.002)
    result = calibrate.calibrate_cost(scores, 4.0, costs)
    assert result.strong_pct == 0.25  # 2 + 0.25 * 8
    assert result.usd_per_1k == pytest.approx(4.0)
    # One call more would cost more than the budget.
    assert calibrate.calibrate_cost(scores, 3.999, costs).strong_pct < 0.25
    rich = calibrate.calibrate_cost(scores, 50.0, costs)
    assert rich.strong_pct == 1.0 and "no routing" in rich.warning
    exact = calibrate.calibrate_cost(scores, 10.0, costs)
    assert exact.strong_pct == 1.0


def test_bad_wishes_say_what_to_do() -> None:
    costs = np.full(3, 0.01), np.full(3, 0.002)
    with pytest.raises(CalibrationError, match=r"2 USD at 0% strong.*--usd-per-1k"):
        calibrate.calibrate_cost([0.1, 0.2, 0.3], 1.9, costs)
    for budget in (-1, float("nan"), float("inf"), True):
        with pytest.raises(CalibrationError, match="budget"):
            calibrate.calibrate_cost([0.1, 0.2, 0.3], budget, costs)
    for share in (-0.1, 1.1, float("nan"), "0.3", True, 30):
        with pytest.raises(CalibrationError, match=r"0\.3 is 30%"):
            calibrate.calibrate_share([0.1], share)
    with pytest.raises(CalibrationError, match="at least one prompt"):
        calibrate.calibrate_share([], 0.5)
    with pytest.raises(CalibrationError, match="score 1"):
        calibrate.calibrate_share([0.1, float("nan")], 0.5)
    with pytest.raises(CalibrationError, match="costs have shape"):
        calibrate.calibrate_cost([0.1, 0.2], 5.0, ([1.0], [1.0]))


def test_prices_turn_tokens_into_dollars() -> None:
    price = prices.Price.parse("2.5, 10")
    assert price == prices.Price(2.5, 10.0)
    np.testing.assert_allclose(price.costs([1_000_000, 0], 100_000), [3.5, 1.0])
    for text in ("2.5", "a,b", "1,2,3", "-1,2", "nan,1", "inf,1"):
        with pytest.raises(CalibrationError):
            prices.Price.parse(text)
    with pytest.raises(CalibrationError, match="token counts"):
        price.costs([float("nan")], 1)


def test_costs_use_the_counts_there_are_and_say_what_was_assumed() -> None:
    strong, weak = prices.Price(10.0, 30.0), prices.Price(1.0, 2.0)
    prompts = ["a", "four", "x"]
    known = Benchmark(
        *("b", prompts, np.ones(3), np.zeros(3), "s", "w"),
        input_tokens=np.array([100.0, np.nan, np.nan]),
        weak_tokens=np.array([10.0, 20.0, 30.0]),
    )
    tokens, assumed = pricing.request_tokens(prompts, known, len, 500)
    costs = strong.costs(tokens["input"], tokens["strong"])
    np.testing.assert_allclose(costs * 1e6, [16_000, 15_040, 15_010])
    np.testing.assert_allclose(weak.costs(tokens["input"], tokens["weak"]) * 1e6, [120, 44, 61])
    assert len(assumed) == 2
    assert "2 of 3 prompts counted" in assumed[0]
    assert "500 output tokens assumed for 3 of 3 answers of the strong" in assumed[1]
    assert np.isnan(known.input_tokens[1:]).all()  # the data's own stay as they are


def test_answers_of_unknown_length_are_as_the_known_ones_of_their_model() -> None:
    sizes = np.arange(10.0, 110.0)
    known = Benchmark(
        *("b", ["x"] * 100, np.ones(100), np.zeros(100), "s", "w"),
        input_tokens=sizes,
        strong_tokens=np.where(np.arange(100) % 2, 5 * sizes, np.nan),
        weak_tokens=np.where(np.arange(100) < 3, 100.0, np.nan),
    )
    tokens, assumed = pricing.request_tokens(["x"] * 100, known, len, None)
    np.testing.assert_allclose(tokens["strong"], 5 * sizes, rtol=0.15)
    np.testing.assert_allclose(tokens["weak"][3:], (3 * 100 + 300) / 4)
    told = re.fullmatch(
        r"output tokens predicted from 50 known ones \(mean 3\d\d; mean error (\d+)% of it, "
        r"(\d+)% with 300\) for 50 of 100 answers of the strong model",
        assumed[0],
    )
    assert told is not None and int(told[1]) < 5 < int(told[2])
    assert assumed[1] == (
        "output tokens predicted from 3 known ones (mean 150) for 97 of 100 answers of the weak "
        "model"
    )


def test_prices_of_known_and_unknown_models() -> None:
    price = prices.listed_price("gpt-4o", option="--price")
    assert 0 < price.input < price.output < 1000
    assert prices.listed_price("openai/gpt-4o", option="--price") == price
    with pytest.raises(CalibrationError, match="--weak-price IN,OUT"):
        prices.listed_price("my/own-model", option="--weak-price")


def noisy(
    n: int = 4000, a: float = 0.4, b: float = -0.7, seed: int = 0
) -> tuple[metrics.Floats, metrics.Floats]:
    """Margins whose true probability is sigmoid(a * margin + b)."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 4, n)
    return margin, (rng.random(n) < sigmoid(a * margin + b)).astype(float)


def test_platt_and_temperature_recover_the_truth() -> None:
    margin, labels = noisy(20_000)
    spec = probability.fit_platt(margin, labels)
    assert (spec["a"], spec["b"]) == (pytest.approx(0.4, abs=0.02), pytest.approx(-0.7, abs=0.05))
    margin, labels = noisy(20_000, a=0.5, b=0.0)
    spec = probability.fit_temperature(margin, labels)
    assert spec["a"] == pytest.approx(0.5, abs=0.02) and spec["b"] == 0.0


def test_pooled_adjacent_violators_solve_the_isotonic_problem() -> None:
    margin, labels = np.arange(6.0), np.array([0, 1, 0, 0, 1, 1.0])
    spec = probability.fit_isotonic(margin, labels)
    # Blocks by hand: {0}: 0, {1, 2, 3}: 1/3, {4, 5}: 1
    np.testing.assert_allclose(spec["x"], [0, 2, 4.5])
    np.testing.assert_allclose(spec["y"], [0.001, 1 / 3, 0.999], atol=2e-6)
    with_ties = probability.fit_isotonic([1.0, 1.0, 1.0, 2.0], [1, 0, 0, 1])
    np.testing.assert_allclose(with_ties["x"], [1, 2])
    np.testing.assert_allclose(with_ties["y"], [1 / 3, 0.999], atol=2e-6)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_every_method_lowers_the_error_keeps_the_ranking_and_survives_json(method: str) -> None:
    margin, labels = noisy(b=0.0)
    fit = probability.calibrate_scores(margin, labels, methods=(method,))
    assert fit.ece_after < fit.ece_before and fit.brier_after < fit.brier_before
    spec = json.loads(json.dumps(dataclasses.asdict(fit), allow_nan=False))["spec"]
    wide = np.concatenate([margin, [-40.0, 40.0]])  # beyond what was seen
    scores = apply_calibration(wide, spec)
    assert np.array_equal(np.argsort(scores, kind="stable"), np.argsort(wide, kind="stable"))
    assert len(np.unique(scores)) == len(np.unique(wide))
    assert scores.min() >= 1e-6 and scores.max() <= 1 - 1e-6


def test_the_best_method_is_chosen_on_held_out_data() -> None:
    margin, labels = noisy(b=-1.5)
    fit = probability.calibrate_scores(margin, labels)
    assert fit.candidates["platt"] < fit.candidates["temperature"]
    assert min(fit.candidates.values()) == fit.brier_after
    # A step in the truth is what only the isotonic map can follow.
    rng = np.random.default_rng(1)
    margin = rng.uniform(-3, 3, 4000)
    labels = (rng.random(4000) < np.where(margin > 1, 0.95, 0.3)).astype(float)
    assert probability.calibrate_scores(margin, labels).spec["method"] == "isotonic"


def test_hard_data_stays_finite_and_never_reverses_the_ranking() -> None:
    separable = probability.fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    assert np.isfinite([separable["a"], separable["b"]]).all() and separable["a"] > 0
    assert probability.fit_temperature([-2.0, 2.0], [0, 1])["a"] <= 1e3
    margin, labels = noisy()
    for fitter in (probability.fit_platt, probability.fit_temperature):
        assert fitter(-margin, labels)["a"] > 0
    backwards = apply_calibration(-margin, probability.fit_platt(-margin, labels))
    assert abs(backwards.mean() - labels.mean()) < 0.01
    constant = probability.fit_platt(np.full(10, 2.0), np.arange(10) % 2)
    assert apply_calibration([2.0], constant)[0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("margin", "labels", "says"),
    [
        ([], [], "length"),
        ([1.0], [1.0, 0.0], "length"),
        ([float("nan"), 1.0], [0, 1], "finite"),
        ([1.0, 2.0], [0, 2], "labels"),
        (np.ones(30), np.ones(30), "one class"),
        ([1.0, 2.0, 3.0], [0, 1, 0], "too few"),
    ],
)
def test_unusable_validation_data_is_refused(
    margin: list[float], labels: list[float], says: str
) -> None:
    with pytest.raises(CalibrationError, match=says):
        probability.calibrate_scores(margin, labels)


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(CalibrationError, match="available"):
        probability.calibrate_scores(*noisy(100), methods=("beta",))

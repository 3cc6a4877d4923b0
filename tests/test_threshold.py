"""Thresholds: decisions, exact shares with tied scores, tables, score calibration."""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import pytest
from thriftroute.errors import CalibrationError, RoutingError, ThresholdError
from thriftroute.router import threshold as th
from thriftroute.router.decision import Decision


def test_a_decision_is_frozen_and_json_able() -> None:
    decision = Decision("gpt", "strong", 0.7, 0.5, "mf", "score 0.7 >= 0.5", 1.2)
    assert json.loads(json.dumps(decision.to_dict()))["choice"] == "strong"
    assert list(decision.to_dict()) == [
        "model", "choice", "score", "threshold", "router", "reason", "latency_ms",
        "percentile", "percentile_of",
    ]  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.model = "other"


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25), np.float64(1.0), np.int64(0)])
def test_numbers_in_range_are_thresholds(value: float) -> None:
    assert th.validate_threshold(value) == float(value)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -0.0001, 1.0001, "0.5", "nan", None, True, np.True_, [0.5], 1j],
)
def test_everything_else_is_refused(value: object) -> None:
    with pytest.raises(ThresholdError, match="threshold"):
        th.validate_threshold(value)


def test_strong_at_and_above_the_threshold() -> None:
    assert th.choose(0.5, 0.5) == "strong"
    assert th.choose(np.nextafter(0.5, 0), 0.5) == "weak"
    assert th.choose(1 - 1e-6, 1.0) == "weak"
    assert th.choose(1e-6, 0.0) == "strong"
    with pytest.raises(RoutingError, match="broken"):
        th.choose(float("nan"), 0.5)
    with pytest.raises(ThresholdError):
        th.choose(0.5, float("nan"))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, 0.1 + 0.2, 1 / 3, 5e-324, 0.11593])
def test_printed_thresholds_parse_back_and_hold_no_exponent(value: float) -> None:
    text = th.format_threshold(value)
    assert float(text) == value and set(text) <= set("0123456789.")


def score_sets() -> Iterator[th.Floats]:
    rng = np.random.default_rng(0)
    yield np.array([0.5])
    yield np.array([0.3, 0.3, 0.3])
    yield np.array([0.0, 1.0])
    yield rng.integers(0, 5, 40) / 4
    yield rng.random(300)
    yield rng.random(300).astype(np.float32).astype(np.float64)
    yield np.clip(rng.normal(0.5, 1e-9, 50), 0, 1)  # closer than short decimals can tell
    neighbours = [0.3]
    for _ in range(5):
        neighbours.append(float(np.nextafter(neighbours[-1], 1)))
    yield np.array(neighbours)  # adjacent floats


@pytest.mark.parametrize("scores", list(score_sets()), ids=range(8))
def test_achievable_lists_every_share_with_a_threshold_that_gives_it(scores: th.Floats) -> None:
    thresholds, shares = th.achievable(scores)
    expected = {np.mean(scores >= limit) for limit in scores} | {1.0}
    if scores.max() < 1:
        expected |= {0.0}
    assert set(shares) == expected
    assert (np.diff(shares) > 0).all() and (np.diff(thresholds) < 0).all()
    for limit, share in zip(thresholds, shares, strict=True):
        printed = float(th.format_threshold(limit))
        assert np.mean(scores >= printed) == share
        assert th.validate_threshold(limit) == limit


def test_thresholds_are_short_and_away_from_the_scores() -> None:
    scores = np.array([0.1234567, 0.2, 0.5, 0.9])
    thresholds, _ = th.achievable(scores)
    assert thresholds.tolist() == [1.0, 0.7, 0.4, 0.16, 0.0]
    # Noise of float32 changes no decision.
    noisy = scores.astype(np.float32) + np.float32(1e-6)
    for limit in thresholds[1:]:
        assert ((noisy >= limit) == (scores >= limit)).all()


def test_the_nearest_share_wins_and_of_two_the_lower() -> None:
    scores = [0.1, 0.2, 0.3, 0.4]
    for wanted, got in [(0.3, 0.25), (0.125, 0.0), (0.375, 0.25), (0.38, 0.5), (0, 0), (1, 1)]:
        limit, share = th.threshold_for_share(scores, wanted)
        assert share == got == np.mean(np.array(scores) >= limit)
    # A third and two thirds are equally far from one half, up to rounding.
    assert th.threshold_for_share([0.1, 0.2, 0.3], 0.5)[1] == pytest.approx(1 / 3)


def test_costs_and_budgets_against_a_plain_loop() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        n = int(rng.integers(1, 12))
        scores = rng.integers(0, 5, n) / 5
        strong, weak = rng.random(n) * 2, rng.random(n)  # strong is sometimes the cheaper
        thresholds, shares = th.achievable(scores)
        expected = [np.where(scores >= t, strong, weak).mean() for t in thresholds]
        np.testing.assert_allclose(th.costs_by_share(scores, strong, weak), expected)
        budget = float(rng.uniform(min(expected), 1.2))
        limit, share, cost = th.threshold_for_cost(scores, strong, weak, budget)
        assert share == max(s for s, c in zip(shares, expected, strict=True) if c <= budget)
        assert cost == pytest.approx(np.where(scores >= limit, strong, weak).mean())
    with pytest.raises(CalibrationError, match="cheapest mix"):
        th.threshold_for_cost([0.5], [2.0], [1.0], 0.5)


@pytest.mark.parametrize("bad", [[], [[0.1]], [float("nan")], [1.5], [-0.1], [0.1, float("inf")]])
def test_scores_that_are_no_probabilities_are_refused(bad: list[float]) -> None:
    with pytest.raises(CalibrationError):
        th.achievable(bad)


@pytest.mark.parametrize("bad", [[-1.0, 1.0], [float("nan"), 1.0], [1.0]])
def test_bad_costs_are_refused(bad: list[float]) -> None:
    with pytest.raises(CalibrationError, match="costs"):
        th.costs_by_share([0.1, 0.2], bad, [0.0, 0.0])


def test_a_table_tells_thresholds_and_survives_json() -> None:
    scores = np.random.default_rng(1).random(1000)
    table = th.ThresholdTable.from_scores("mmlu", scores)
    assert table.n == 1000 and len(table.rows) == 101
    for share, limit in table.rows:
        assert np.mean(scores >= limit) == share
    limit, share = table.threshold_for(0.304)
    assert share == 0.3 and np.mean(scores >= limit) == 0.3
    again = th.ThresholdTable.from_dict(json.loads(json.dumps(dataclasses.asdict(table))))
    assert again == table


def test_a_table_of_few_distinct_scores_has_few_rows() -> None:
    table = th.ThresholdTable.from_scores("tied", [0.2, 0.2, 0.8])
    assert [row[0] for row in table.rows] == pytest.approx([0, 1 / 3, 1])
    assert table.threshold_for(0.5)[1] == pytest.approx(1 / 3)
    with pytest.raises(CalibrationError, match="points"):
        th.ThresholdTable.from_scores("x", [0.5], points=1)


@pytest.mark.parametrize(
    ("score", "below"),
    [
        (0.0, 0.0),
        (0.2, 0.25),  # halfway from 0.0, share 1, to 0.4, share 0.5
        (0.4, 0.5),
        (0.5, 0.6),  # a third of the way from 0.4, share 0.5, to 0.7, share 0.2
        (0.7, 0.8),
        (0.85, 0.9),
        (1.0, 1.0),
    ],
)
def test_a_percentile_is_the_share_that_scores_below(score: float, below: float) -> None:
    table = th.ThresholdTable("t", 10, ((0.0, 1.0), (0.2, 0.7), (0.5, 0.4), (1.0, 0.0)))
    assert table.percentile(score) == pytest.approx(below)


def test_percentiles_past_the_rows_and_of_many_scores() -> None:
    few = th.ThresholdTable("t", 10, ((0.2, 0.7), (0.5, 0.4)))
    assert [few.percentile(s) for s in (0.1, 0.4, 0.7, 0.9)] == [0.5, 0.5, 0.8, 0.8]
    assert th.ThresholdTable("t", 10, ((0.2, 0.7),)).percentile(0.9) == 0.8
    scores = np.random.default_rng(1).beta(2, 5, 1000)
    table = th.ThresholdTable.from_scores("t", scores)
    for score in np.linspace(0.0, 1.0, 50):
        assert table.percentile(score) == pytest.approx(np.mean(scores < score), abs=0.01)


def test_the_tables_of_a_bundle() -> None:
    rows = ((0.0, 1.0), (1.0, 0.0))
    ordinary, own = th.ThresholdTable("ordinary", 9, rows), th.ThresholdTable("mine.txt", 5, rows)
    both = {t.name: dataclasses.asdict(t) for t in (ordinary, own)}
    assert th.share_table(both) == own
    assert th.percentile_table(both) == ordinary
    assert th.percentile_table({"mine.txt": both["mine.txt"]}) == own
    assert th.share_table({}) is None and th.percentile_table({}) is None
    assert th.percentile_table({"x": {}}) is None  # no reason to fail a decision
    with pytest.raises(CalibrationError):
        th.share_table({"x": {}})


@pytest.mark.parametrize(
    ("percentile", "name", "said"),
    [
        (0.834, "ordinary", "harder than 83% of ordinary prompts"),
        (0.999, "validation", "harder than 99% of the bundle's validation prompts"),
        (0.0, "mine.txt", "harder than 0% of the prompts of 'mine.txt'"),
    ],
)
def test_a_percentile_in_words(percentile: float, name: str, said: str) -> None:
    assert th.harder_than(percentile, name) == said


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": "x", "n": 0, "rows": [[0.1, 0.5]]},
        {"name": "x", "n": 1, "rows": []},
        {"name": "x", "n": 1, "rows": [[0.1, 0.5], [0.1, 0.4]]},
        {"name": "x", "n": 1, "rows": [[0.1, 0.5], [0.2, 0.6]]},
        {"name": "x", "n": 1, "rows": [[0.1, "0.5"]]},
        {"name": "x", "n": 1, "rows": [[0.1]]},
        {"name": "x", "n": True, "rows": [[0.1, 0.5]]},
        {"name": 3, "n": 1, "rows": [[0.1, 0.5]]},
        {"name": "x", "n": 1, "rows": [[float("nan"), 0.5]]},
        {"name": "x", "n": 1, "rows": 5},
    ],
)
def test_invalid_tables_are_refused(value: dict[str, object]) -> None:
    with pytest.raises((CalibrationError, ThresholdError)):
        th.ThresholdTable.from_dict(value)


def test_calibrations_are_increasing_and_clipped() -> None:
    margin = np.array([-1e9, -30.0, -1.0, 0.0, 1.0, 30.0, 1e9])
    plain = th.apply_calibration(margin, None)
    assert plain[3] == 0.5 and plain[0] == 1e-6 and plain[-1] == 1 - 1e-6
    platt = th.apply_calibration(margin, {"method": "platt", "a": 2.0, "b": 1.0})
    assert platt[3] == pytest.approx(1 / (1 + np.exp(-1)))
    spec = {"method": "isotonic", "x": [-1.0, 0.0, 1.0], "y": [0.2, 0.4, 0.6]}
    isotonic = th.apply_calibration(margin[1:-1], spec)
    assert isotonic[1:4].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert (np.diff(isotonic) > 0).all()
    assert th.apply_calibration(-0.5, spec) == pytest.approx(0.3)
    assert np.isnan(th.apply_calibration([float("nan")], spec)).all()
    assert th.apply_calibration(0.0, None).shape == ()


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"method": "spline"},
        {"method": "platt", "a": 1.0},
        {"method": "platt", "a": -1.0, "b": 0.0},
        {"method": "platt", "a": float("nan"), "b": 0.0},
        {"method": "platt", "a": "1", "b": 0.0},
        {"method": "isotonic", "x": [0.0], "y": [0.1, 0.2]},
        {"method": "isotonic", "x": [], "y": []},
        {"method": "isotonic", "x": [0.0, 0.0], "y": [0.1, 0.2]},
        {"method": "isotonic", "x": [0.0, 1.0], "y": [0.2, 0.1]},
        {"method": "isotonic", "x": [0.0, 1.0], "y": [0.2, 1.0]},
        {"method": "isotonic", "x": ["a"], "y": [0.1]},
    ],
)
def test_invalid_calibrations_are_refused(spec: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match="calibration"):
        th.apply_calibration([0.0], spec)

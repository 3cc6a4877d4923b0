"""What a few own labels do for the truth of scores, beside the floor of a perfect score."""

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from thriftroute.errors import EvaluationError
from thriftroute.eval.benchmarks import Benchmark
from thriftroute.eval.metrics import ece
from thriftroute.research.own_calibration import CalibrationReport, Int8Report, own_calibration
from thriftroute.research.protocol_report import print_protocol, to_json
from thriftroute.router.threshold import sigmoid

Floats = npt.NDArray[np.float64]


def benchmark_of(labels: Floats) -> Benchmark:
    prompts = [f"prompt {i}" for i in range(len(labels))]
    return Benchmark("bench", prompts, labels, np.zeros(len(labels)), "big", "small")


def calibrated(n: int = 1500, seed: int = 0) -> tuple[Benchmark, Floats, Floats]:
    """A benchmark, margins, and scores that are exactly the probabilities of its labels."""
    random = np.random.default_rng(seed)
    margins = random.normal(-0.5, 1.5, n)
    scores = np.asarray(sigmoid(margins))
    return benchmark_of((random.random(n) < scores).astype(np.float64)), margins, scores


def report_of(**changes: Any) -> CalibrationReport:
    benchmark, margins, scores = calibrated(200)
    options: dict[str, Any] = {"margins": margins, "scores": scores, "sizes": (40,), "draws": 3}
    return own_calibration(benchmark, **{**options, **changes})


def test_a_score_that_is_right_has_no_more_than_the_floor() -> None:
    """Over 40 benchmarks: ECE where labels follow the scores is the floor, on average."""
    found = [
        own_calibration(*calibrated(300, seed), sizes=(), draws=2, seed=seed) for seed in range(40)
    ]
    before = np.array([report.before for report in found])
    floor = np.array([report.before_floor for report in found])
    assert before.mean() == pytest.approx(floor.mean(), abs=0.005)
    # A sample of 300 has some error even so, and that of 12,000 much less.
    assert 0.05 < floor.mean() < 0.12
    assert own_calibration(*calibrated(12_000), sizes=(), draws=2).before_floor < 0.02


def test_few_labels_bring_a_wrong_score_near_the_floor() -> None:
    benchmark, margins, scores = calibrated()
    wrong = 4 * margins + 3
    report = own_calibration(benchmark, wrong, np.asarray(sigmoid(wrong)), (200,), draws=8)
    (row,) = report.rows
    assert report.before == ece(sigmoid(wrong), benchmark.labels) > 0.15
    assert report.before_floor < 0.03
    assert (row.labels, row.tested, row.failed) == (200, 1300, 0)
    assert row.ece_range[0] <= row.ece <= row.ece_range[1]
    assert row.ece < 0.07
    assert row.ece - row.floor < 0.02
    # The calibration undoes the line that made the scores wrong: the scores before do not count.
    straight = own_calibration(benchmark, margins, scores, (200,), draws=8)
    assert straight.rows[0].ece == pytest.approx(row.ece, abs=1e-4)
    assert straight.before < report.before / 3


def test_figures_are_those_of_the_rest_of_each_draw() -> None:
    """Labels that Platt's method maps to their mean: its ECE on the rest can be told by hand."""
    labels = np.tile([1.0, 0.0], 50)
    margins = np.zeros(100)
    report = own_calibration(benchmark_of(labels), margins, np.full(100, 0.8), (40,), draws=6)
    expected = []
    for draw in range(6):
        order = np.random.default_rng((0, 40, draw)).permutation(100)
        share = labels[order[:40]].mean()
        # Platt smooths labels: k of n count as (k + 1) / (k + 2) or 1 / (n - k + 2) each.
        k = 40 * share
        told = (k * (k + 1) / (k + 2) + (40 - k) / (40 - k + 2)) / 40
        expected.append(abs(labels[order[40:]].mean() - told))
    (row,) = report.rows
    assert row.ece == pytest.approx(np.mean(expected), abs=1e-3)
    assert row.ece_range == pytest.approx((min(expected), max(expected)), abs=1e-3)
    assert report.before == pytest.approx(0.3)


def test_more_labels_do_no_harm() -> None:
    benchmark, margins, scores = calibrated(1500)
    rows = own_calibration(benchmark, margins, scores, (20, 100, 700), draws=10).rows
    assert [row.labels for row in rows] == [20, 100, 700]
    excess = [row.ece - row.floor for row in rows]
    assert excess[0] > excess[1] > excess[2]


def test_one_seed_one_report() -> None:
    assert report_of(seed=5) == report_of(seed=5)
    assert report_of(seed=5).rows != report_of(seed=6).rows


def rare(n: int = 100) -> tuple[Benchmark, Floats, Floats]:
    """One label of n is 1."""
    labels = np.zeros(n)
    labels[7] = 1.0
    margins = np.linspace(-1, 1, n)
    return benchmark_of(labels), margins, np.asarray(sigmoid(margins))


def test_draws_of_one_class_are_counted_and_left_out() -> None:
    benchmark, margins, scores = rare()
    (row,) = own_calibration(benchmark, margins, scores, (50,), draws=12).rows
    without = sum(
        7 not in np.random.default_rng((0, 50, draw)).permutation(100)[:50] for draw in range(12)
    )
    assert 0 < without < 12
    assert row.failed == without
    assert 0 < row.ece < 0.2


def test_where_all_draws_fail_the_figures_are_null() -> None:
    benchmark = benchmark_of(np.zeros(60))
    report = own_calibration(benchmark, np.zeros(60), np.full(60, 0.5), (30,), draws=2)
    (row,) = report.rows
    assert row.failed == 2
    assert np.isnan([row.ece, row.floor, *row.ece_range]).all()
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["rows"][0]["ece"] is None
    assert found["rows"][0]["ece_range"] == [None, None]
    assert found["before"] == 0.5


def test_json_is_strict_and_is_the_report() -> None:
    report = report_of(sizes=(40, 60))
    found = json.loads(to_json(report), parse_constant=pytest.fail)
    assert (found["benchmark"], found["n"], found["draws"], found["seed"]) == ("bench", 200, 3, 0)
    assert [row["labels"] for row in found["rows"]] == [40, 60]
    assert found["rows"][0]["ece"] == report.rows[0].ece
    assert found["before_floor"] == report.before_floor


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sizes": (19,)}, r"sizes \[19\].*give sizes of 20 to 180"),
        ({"sizes": (40, 181)}, r"sizes \[181\]"),
        ({"draws": 1}, "1 draws; .*at least 2 draws"),
        ({"margins": np.zeros(199)}, "margins: expected 200 finite numbers"),
        ({"margins": np.zeros((200, 1))}, "margins: expected 200"),
        ({"margins": np.full(200, np.inf)}, "margins: expected 200"),
        ({"scores": np.zeros(201)}, "scores: expected 200 finite numbers"),
        ({"scores": np.full(200, np.nan)}, "scores: expected 200"),
        ({"scores": np.full(200, 1.5)}, r"\[0, 1\]"),
    ],
)
def test_what_cannot_be_measured_says_why(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(EvaluationError, match=told):
        report_of(**changes)


def test_sizes_at_their_bounds() -> None:
    rows = report_of(sizes=(20, 180)).rows
    assert [(row.labels, row.tested) for row in rows] == [(20, 180), (180, 20)]


def printed(report: CalibrationReport | Int8Report, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_protocol(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_table_says_what_was_before_and_what_is_after() -> None:
    report = report_of(sizes=(40, 60))
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "calibration on bench (n = 200)" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert f"{report.before:.3f}" in lines["none"] and f"{report.before_floor:.3f}" in lines["none"]
    row = report.rows[1]
    assert f"{row.ece:.3f}" in lines["60"] and f"{row.floor:.3f}" in lines["60"]
    assert "Mean of 3 draws" in text and "seed 0" in text


def test_int8_is_set_beside_fp32() -> None:
    report = Int8Report("bench", 1234, 0.5, 0.625)
    assert printed(report, 120).strip() == (
        "bench (n = 1,234): APGR 0.5000 in int8, 0.6250 in fp32, difference -0.1250"
    )
    found = json.loads(to_json(report))
    assert found == {
        "benchmark": "bench", "n": 1234, "int8": 0.5, "fp32": 0.625, "difference": -0.125,
    }  # fmt: skip

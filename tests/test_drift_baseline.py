"""Baselines: of scores, of a bundle's table, of a file, and what cannot be one."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from thriftroute.errors import CalibrationError, ConfigError, DataError
from thriftroute.eval.drift.baseline import MOST, Baseline, RunningMean, baseline_of, sampled
from thriftroute.router.threshold import ThresholdTable

SCORES = np.random.default_rng(0).beta(3, 5, 1000)


def test_of_scores_it_counts_exactly() -> None:
    found = Baseline.from_scores("b", SCORES)
    assert found.n == 1000
    assert found.counts.size == found.edges.size + 1
    for threshold in (0.0, 0.2, float(SCORES[7]), 1.0):
        assert found.strong(threshold) == RunningMean(int((threshold <= SCORES).sum()), 1000)
    assert found.strong(0.2).mean == pytest.approx((SCORES >= 0.2).mean())
    assert RunningMean().mean is None


def test_of_a_table_it_has_the_tables_shares() -> None:
    table = ThresholdTable.from_scores("t", SCORES)
    found = Baseline.from_table(table)
    assert (found.name, found.n) == ("t", 1000)
    for share, threshold in table.rows:
        assert found.strong(threshold).mean == pytest.approx(share, abs=5e-4)
    # Each cell holds what lies between its two thresholds.
    cells = np.bincount(
        np.searchsorted(found.edges, SCORES, side="right"), minlength=len(table.rows) + 1
    )
    assert np.abs(cells - found.counts).max() <= 1
    between = (table.rows[20][1] + table.rows[21][1]) / 2
    assert table.rows[20][0] < (found.strong(between).mean or 0) < table.rows[21][0]


def test_the_table_of_the_built_in_bundle_is_one(built_in_tables: dict[str, object]) -> None:
    assert baseline_of(built_in_tables, "mf").n == 6060


@pytest.fixture
def built_in_tables() -> dict[str, object]:
    from thriftroute.router.bundle import read_manifest
    from thriftroute.router.routers import CHECKPOINTS

    return dict(read_manifest(CHECKPOINTS / "mf").thresholds)


def test_the_last_table_counts() -> None:
    first, last = (
        asdict(ThresholdTable.from_scores(name, SCORES[:n])) for name, n in (("a", 500), ("b", 800))
    )
    assert baseline_of({"a": first, "b": last}, "mf").n == 800


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({}, "router 'x' has no table of thresholds to compare with: give --baseline"),
        ({"a": {"name": "a", "n": 1000, "rows": [[0.5, 0.5]]}}, "of 1000 prompts and 1 shares"),
        ({"a": {"name": "a", "n": 20, "rows": [[0.0, 1.0], [1.0, 0.0]]}}, "too few to compare"),
        ({"a": {"rows": 7}}, "threshold table: expected"),
    ],
)
def test_tables_that_do_not_do(tables: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        baseline_of(tables, "x")
    assert problem in str(caught.value)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    saved = Baseline.from_scores(
        "mine", SCORES, novel=RunningMean(3, 100), feedback=RunningMean(70.5, 90)
    )
    saved.save(path)
    found = Baseline.load(path)
    assert (found.name, found.novel, found.feedback) == ("mine", saved.novel, saved.feedback)
    assert np.array_equal(found.counts, saved.counts)
    assert found.scores == pytest.approx(np.sort(SCORES), abs=1e-7)
    assert list(tmp_path.iterdir()) == [path]


def test_a_tables_baseline_is_not_saved_again(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="has no scores of its own to save"):
        Baseline.from_table(ThresholdTable.from_scores("t", SCORES)).save(tmp_path / "b.json")
    assert list(tmp_path.iterdir()) == []


GOOD = {"kind": "thriftroute-baseline", "format": 1, "name": "b", "scores": [0.5] * 60}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "no baseline; `thriftroute watch --save-baseline FILE` writes one"),
        (json.dumps({**GOOD, "format": 2}), "a baseline of format 2; this version reads 1"),
        (json.dumps({**GOOD, "scores": [0.5] * 10}), "at least 50 scores, got 10"),
        (json.dumps({**GOOD, "scores": [2.0] * 60}), "scores must be numbers in [0, 1]"),
        (json.dumps({**GOOD, "scores": "many"}), "field 'scores'"),
        (json.dumps({**GOOD, "scores": None}), "field 'scores'"),
        (json.dumps({**GOOD, "scores": [10**400] * 60}), "field 'scores'"),
        (json.dumps({**GOOD, "novel": {"total": 5, "n": 2}}), "field 'novel'"),
        (json.dumps({**GOOD, "feedback": [1]}), "expected {'total': number, 'n': count}"),
    ],
)
def test_files_that_are_none(content: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Baseline.load(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_sample_is_drawn_from_all_alike() -> None:
    assert sampled(iter([0.1, 0.2])).tolist() == [0.1, 0.2]
    many = sampled(i / (3 * MOST) for i in range(3 * MOST))
    assert many.size == MOST
    assert np.all(np.diff(many) > 0)
    assert many.mean() == pytest.approx(0.5, abs=0.02)

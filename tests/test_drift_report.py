"""Recorded decisions against a baseline: which rows count, which tests are made, what they say."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import CalibrationError, ConfigError
from thriftroute.eval.drift.baseline import Baseline, RunningMean
from thriftroute.eval.drift.drift import (
    DriftReport,
    Examination,
    Finding,
    baseline_from,
    examine,
    print_drift,
    unlike,
)

RANDOM = np.random.default_rng(0)
OWN = Baseline.from_scores("own", RANDOM.beta(3, 5, 1500))


def decisions(n: int, a: float = 3.0, seed: int = 1, **more: Any) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(seed)
    for i in range(n):
        score = float(random.beta(a, 5))
        yield {
            "score": score,
            "router": "mf",
            "threshold": 0.4,
            "strong": score >= 0.4,
            "model": "strong" if score >= 0.4 else "weak",
            "prompt_hash": hashlib.sha256(f"{seed} {i}".encode()).hexdigest(),
            **more,
        }


def finding(report: DriftReport, name: str) -> Finding:
    (found,) = [f for f in report.findings if f.name == name]
    return found


def test_traffic_like_the_baselines_is_ok() -> None:
    report = examine(decisions(2000), OWN)
    assert (report.verdict, report.n, report.scored, report.threshold) == ("ok", 2000, 2000, 0.4)
    share = finding(report, "strong_share")
    assert share.alpha == report.alpha / 2
    assert share.observed == pytest.approx(OWN.strong(0.4).mean, abs=0.05)
    assert share.observed_interval is not None
    assert share.observed is not None
    assert share.observed_interval[0] < share.observed < share.observed_interval[1]


def test_other_traffic_is_drift_in_scores_and_in_the_strong_share() -> None:
    report = examine(decisions(1000, a=4.0), OWN)
    assert report.verdict == "drift"
    for name in ("scores", "strong_share"):
        found = finding(report, name)
        assert found.drift
        assert found.p_value is not None
        assert found.p_value <= found.alpha
        assert found.alarm_at is not None
        assert found.alarm_at <= 500


def test_a_strong_share_that_scores_do_not_call_for_is_drift_too() -> None:
    # As where the strong model fails and another answers.
    rows = [
        {**row, "strong": row["strong"] and i % 2 == 0} for i, row in enumerate(decisions(1500))
    ]
    report = examine(rows, OWN)
    assert not finding(report, "scores").drift
    assert finding(report, "strong_share").drift


def test_reports_as_rows_come_are_those_of_all_at_once() -> None:
    rows = list(decisions(700, a=3.4))
    examination = Examination(OWN)
    for i, row in enumerate(rows):
        examination.add(row)
        if i % 100 == 99:
            examination.report()
    assert examination.report() == examine(rows, OWN)


def test_a_prompt_that_comes_again_counts_once() -> None:
    rows = list(decisions(100))
    report = examine([*rows, *rows, *rows], OWN)
    assert (report.decisions, report.scored, report.n) == (300, 300, 100)
    # Without a hash nobody can tell.
    assert examine([{**rows[0], "prompt_hash": None}] * 30, OWN).n == 30


def test_prompts_are_forgotten_rather_than_kept_for_ever() -> None:
    examination, rows = Examination(OWN, most_seen=50), list(decisions(50))
    for row in [*rows, *rows]:
        examination.add(row)
    assert examination.report().n == 100


def test_what_has_no_score_or_another_routers_is_left_out() -> None:
    rows = [
        *decisions(30),
        *decisions(20, seed=2, router="bert"),
        *decisions(10, seed=3, score=None),
        *decisions(10, seed=4, arm="trial/treatment"),
        *decisions(10, seed=5, arm="trial/control"),
    ]
    assert examine(rows, OWN, router="mf").n == 40
    assert examine(rows, OWN).n == 60
    nothing = examine(rows, OWN, router="other")
    assert (nothing.verdict, nothing.n, nothing.decisions) == ("no-data", 0, 80)
    assert [f.name for f in nothing.findings] == ["scores"]


def test_the_strong_share_is_of_the_threshold_that_most_had_or_of_the_one_asked_for() -> None:
    rows = [*decisions(60), *decisions(40, seed=2, threshold=0.9, strong=False)]
    assert examine(rows, OWN).threshold == 0.4
    asked = examine(rows, OWN, threshold=0.9)
    assert (asked.threshold, finding(asked, "strong_share").n) == (0.9, 40)
    unseen = finding(examine(rows, OWN, threshold=0.7), "strong_share")
    assert (unseen.n, unseen.observed, unseen.drift) == (0, None, False)


def test_in_shadow_mode_the_share_is_of_what_would_have_been() -> None:
    rows = [
        {**row, "routed": row["model"], "model": "strong", "strong": True} for row in decisions(500)
    ]
    report = examine(rows, OWN)
    assert report.verdict == "ok"
    assert finding(report, "strong_share").observed == pytest.approx(0.4, abs=0.1)


def test_novelty_and_feedback_are_tested_where_the_baseline_knows_them() -> None:
    known = Baseline.from_scores(
        "b", OWN.scores if OWN.scores is not None else [], novel=RunningMean(15, 1500),
        feedback=RunningMean(900, 1000),
    )  # fmt: skip
    usual = [
        {**row, "familiarity": 0.2 if i % 100 == 0 else 0.9, "feedback": 1.0 if i % 10 else 0.0}
        for i, row in enumerate(decisions(800))
    ]
    report = examine(usual, known)
    assert report.verdict == "ok"
    assert [f.alpha for f in report.findings] == [report.alpha / 4] * 4
    strange = [{**row, "familiarity": 0.1 if i % 5 == 0 else 0.9} for i, row in enumerate(usual)]
    assert finding(examine(strange, known), "novelty").drift
    sad = [{**row, "feedback": 0.4} for row in usual]
    found = finding(examine(sad, known), "feedback")
    assert found.drift
    assert (found.observed, found.expected) == (pytest.approx(0.4), pytest.approx(0.9))


def test_a_baseline_is_made_of_rows_as_they_are_read_later() -> None:
    rows = [
        {**row, "familiarity": 0.1 if i % 10 == 0 else 0.9, "feedback": 1.0 if i % 2 else None}
        for i, row in enumerate(decisions(200))
    ]
    made = baseline_from([*rows, *rows], "mine", router="mf")
    assert (made.name, made.n) == ("mine", 200)
    assert (made.novel, made.feedback) == (RunningMean(20, 200), RunningMean(200, 200))
    assert examine(decisions(300, seed=8), made).verdict == "ok"
    with pytest.raises(CalibrationError, match="at least 50 scores, got 40"):
        baseline_from(rows[:40], "few")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1, 2])
def test_a_rate_that_is_none(alpha: float) -> None:
    with pytest.raises(ConfigError, match="expected a false-alarm rate between 0 and 1"):
        Examination(OWN, alpha=alpha)


def test_what_differs_is_said_in_a_line() -> None:
    assert unlike(examine(decisions(500), OWN)) is None
    told = unlike(examine(decisions(1000, a=4.0), OWN)) or ""
    assert re.fullmatch(
        r"scores \(p = \S+\) and strong share \(6.*% \[.*\], expected 4.*%\) of 1,000 prompts "
        "differ from '.*'",
        told,
    )
    few = examine(({**row, "score": 0.9, "strong": True} for row in decisions(20)), OWN)
    assert few.verdict == "ok"  # the tests need more; the interval says it already
    assert (unlike(few) or "").startswith("strong share (100.0% [")


def test_what_is_printed_says_each_test(capsys: pytest.CaptureFixture[str]) -> None:
    print_drift(examine(decisions(1000, a=4.0), OWN))
    shown = capsys.readouterr().out.splitlines()
    assert "1,000 prompts with a score, each counted once, of 1,000 decisions" in shown[0]
    assert "n = 1,500" in shown[0]
    assert shown[1].startswith("  scores: p = ")
    assert shown[1].endswith("DRIFT")
    assert shown[2].startswith("  strong share at threshold 0.4: ")
    assert shown[-1].startswith("drift: traffic differs")
    print_drift(examine([], OWN))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("no-data: nothing to look at yet")

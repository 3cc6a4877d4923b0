import logging
from typing import Any

import numpy as np
import pytest
from thriftroute.router.errors import ConfigError
from thriftroute.router.routers import BundleRouter, Router
from thriftroute.router.threshold import ThresholdTable, apply_calibration
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.policy.scoring import Scoring
from thriftroute.serve.registry import Model
from thriftroute.tests.asking import (
    STRONG,
    WEAK,
    Failing,
    Scores,
    asked,
    config,
    in_tool_calls,
    model,
)
from thriftroute.tests.conftest import BundleMaker

POOL = (
    model("strong-1", 10.0),
    model("mine", 3.0, bundle_model="other-1"),
    model("stranger", 2.0),
    model("weak-1", 1.0),
)


def scoring(router: Router, models: tuple[Model, ...] = (STRONG, WEAK), **settings: Any) -> Scoring:
    return Scoring(config(models, router=settings), {m.name: m for m in models}, router)


def tables(*shares: float) -> dict[str, Any]:
    """Tables t0, t1, ... in which this share of strong calls has threshold .5."""
    rows = [((0.0, 1.0), (share, 0.5), (1.0, 0.0)) for share in shares]
    return {f"t{i}": ThresholdTable(f"t{i}", 10, r).to_dict() for i, r in enumerate(rows)}


def test_a_score() -> None:
    assert scoring(Scores(0.25)).score(asked()) == (0.25, "")


@pytest.mark.parametrize(
    ("context", "system", "history"),
    [("full", "Be brief.", "hello"), ("conversation", "", "hello"), ("last", "", "")],
)
def test_what_of_the_conversation_is_scored(context: str, system: str, history: str) -> None:
    router = Scores()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    scoring(router, context=context).score(asked(messages=messages))
    (seen,) = router.seen
    assert (seen.system, seen.history, seen.last) == (system, history, "What is 2 + 2?")


def test_results_of_tools_are_history() -> None:
    router = Scores()
    scoring(router).score(in_tool_calls())
    assert "sunny" in router.seen[0].history


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_no_text_has_no_score(text: str | None) -> None:
    router = Scores()
    assert scoring(router).score(asked(text)) == (None, "no text to score")
    assert router.seen == []


def test_a_failure_is_told_without_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score, problem = scoring(Failing()).score(asked("my secret"))
    assert score is None
    assert problem.startswith("scoring failed: ValueError in asking.py:")
    assert "secret" not in problem + caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_a_score_that_is_none_is_told(value: float) -> None:
    score, problem = scoring(Scores(value)).score(asked())
    assert score is None
    assert problem.startswith("scoring failed: the router returned")


def test_shares_go_through_the_bundles_last_table(make_bundle: BundleMaker) -> None:
    router = BundleRouter(make_bundle(thresholds=tables(0.3, 0.7)))
    found = scoring(router, strong_share=0.7, threshold=None)
    assert found.threshold_for(0.69) == (0.5, "strong share 0.7 by table 't1'")
    assert found.threshold_for(0.0) == (1.0, "strong share 0 by table 't1'")


def test_a_share_without_a_table_is_refused(tiny_bundle: Any) -> None:
    for router in (Scores(), BundleRouter(tiny_bundle)):
        with pytest.raises(RefusedError, match="no table from strong shares") as e:
            scoring(router).threshold_for(0.5)
        assert (e.value.status, e.value.code) == (400, "no_threshold_table")


def test_a_configured_share_without_a_table_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"router\.strong_share: router 'mf' has no table"):
        scoring(Scores(), strong_share=0.5, threshold=None)


def test_qualities_of_the_models_that_the_bundle_knows(tiny_bundle: Any) -> None:
    router = BundleRouter(tiny_bundle)
    request = asked("prove the hard theorem")
    found, problem = scoring(router, POOL, strategy="pool").qualities(request)
    (encoding,) = router.scorer.encode_all(["prove the hard theorem"])
    assert problem == ""
    assert found == pytest.approx(
        {
            "strong-1": encoding.quality[0],
            "weak-1": encoding.quality[1],
            "mine": encoding.quality[2],
        }
    )


def test_the_pair_is_the_bundles_own_where_its_names_are_others(tiny_bundle: Any) -> None:
    found, _ = scoring(BundleRouter(tiny_bundle), strategy="pool").qualities(asked("hard"))
    assert set(found) == {"strong", "weak"}
    assert found["strong"] > found["weak"]


def test_no_text_has_no_qualities(tiny_bundle: Any) -> None:
    found = scoring(BundleRouter(tiny_bundle), strategy="pool")
    assert found.qualities(asked("  ")) == ({}, "no text to score")
    broken = asked("x", messages=[{"role": "user", "content": 3}])
    qualities, problem = found.qualities(broken)
    assert qualities == {}
    assert problem.startswith("scoring failed: DataError")


def test_loss_is_what_the_better_model_wins_above_an_equal_one(make_bundle: BundleMaker) -> None:
    calibration = {"method": "platt", "a": 2.0, "b": -1.0}
    found = scoring(BundleRouter(make_bundle(calibration=calibration)), strategy="pool")
    expected = apply_calibration([0.5, 0.0], calibration)
    assert found.loss(0.5) == pytest.approx(expected[0] - expected[1])
    assert found.loss(0.0) == 0.0
    assert found.loss(3.0) > found.loss(1.0) > 0.0


def test_a_pool_needs_a_bundle_that_knows_its_models(tiny_bundle: Any) -> None:
    with pytest.raises(ConfigError, match="'pool' needs a bundle"):
        scoring(Scores(), strategy="pool")
    wrong = (STRONG, model("weak", bundle_model="gpt-9"))
    with pytest.raises(ConfigError, match=r"bundle_model 'gpt-9' is not in the bundle.*strong-1"):
        scoring(BundleRouter(tiny_bundle), wrong, strategy="pool")
    same = (model("a", bundle_model="weak-1"), model("b", bundle_model="weak-1"))
    with pytest.raises(ConfigError, match="at least two models that the bundle knows"):
        scoring(BundleRouter(tiny_bundle), same, strategy="pool")

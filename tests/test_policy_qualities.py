import logging
from dataclasses import asdict
from typing import Any

import pytest
from thriftroute.errors import ConfigError
from thriftroute.router.routers import BundleRouter, Router, load_router
from thriftroute.router.threshold import ThresholdTable
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.policy.qualities import Qualities
from thriftroute.serve.registry import Model
from thriftroute.tests.conftest import BundleMaker
from thriftroute.tests.helpers.asking import (
    STRONG,
    WEAK,
    Scores,
    config,
    model,
)

POOL = (
    model("strong-1", 10.0),
    model("mine", 3.0, bundle_model="other-1"),
    model("stranger", 2.0),
    model("weak-1", 1.0),
)


def qualities(
    router: Router, models: tuple[Model, ...] = (STRONG, WEAK), **settings: Any
) -> Qualities:
    return Qualities(config(models, router=settings), {m.name: m for m in models}, router)


def tables(*shares: float) -> dict[str, Any]:
    """Tables t0, t1, ... in which this share of strong calls has threshold .5."""
    rows = [((0.0, 1.0), (share, 0.5), (1.0, 0.0)) for share in shares]
    return {f"t{i}": asdict(ThresholdTable(f"t{i}", 10, r)) for i, r in enumerate(rows)}


def test_shares_go_through_the_bundles_last_table(make_bundle: BundleMaker) -> None:
    router = BundleRouter(make_bundle(thresholds=tables(0.3, 0.7)))
    found = qualities(router, strong_share=0.7, threshold=None)
    assert found.threshold_for(0.69) == (0.5, "strong share 0.7 by table 't1'")
    assert found.threshold_for(0.0) == (1.0, "strong share 0 by table 't1'")


def test_a_share_without_a_table_is_refused(tiny_bundle: Any) -> None:
    for router in (Scores(), BundleRouter(tiny_bundle)):
        with pytest.raises(RefusedError, match="no table from strong shares") as e:
            qualities(router).threshold_for(0.5)
        assert (e.value.status, e.value.code) == (400, "no_threshold_table")


def test_a_configured_share_without_a_table_is_an_error_at_the_start() -> None:
    for share in (0.0, 0.5):
        with pytest.raises(ConfigError, match=r"router\.strong_share: router 'mf' has no table"):
            qualities(Scores(), strong_share=share, threshold=None)
    with pytest.raises(ConfigError, match=r"router\.hold: router 'mf' has no table"):
        qualities(Scores(), hold={"strong_share": 0.1}, threshold=None)


def test_places_of_the_models_that_the_bundle_knows(tiny_bundle: Any) -> None:
    """In the tiny graph only the first quality moves: all others stand with the weak one."""
    found = qualities(BundleRouter(tiny_bundle), POOL, strategy="pool")
    assert found.places == pytest.approx({"strong-1": 0.0, "mine": 1.0, "weak-1": 1.0})
    assert found.losses(0.4) == pytest.approx({"strong-1": 0.0, "mine": 0.4, "weak-1": 0.4})


def test_the_pair_is_the_bundles_own_where_its_names_are_others(tiny_bundle: Any) -> None:
    found = qualities(BundleRouter(tiny_bundle), strategy="pool")
    assert found.places == pytest.approx({"strong": 0.0, "weak": 1.0})


def test_places_are_along_the_bundles_own_pair() -> None:
    """Of the box's bundle, whose general models stand for their tiers."""
    pool = (
        model("strong"),
        model("gpt-4o"),
        model("gemma-2-9b-it"),
        model("gpt-3.5-turbo-0125"),
        model("weak"),
    )
    places = qualities(load_router("mf"), pool, strategy="pool").places
    assert places["strong"] == pytest.approx(0.0)
    assert places["weak"] == pytest.approx(1.0)
    assert places["gpt-4o"] < places["gemma-2-9b-it"] < places["gpt-3.5-turbo-0125"]


def test_only_a_pool_has_places(tiny_bundle: Any) -> None:
    found = qualities(BundleRouter(tiny_bundle))
    assert (found.places, found.losses(0.5)) == ({}, {})


def test_a_pool_whose_weak_model_is_rated_above_the_strong_one_is_told(
    tiny_bundle: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = (model("a", bundle_model="weak-1"), model("b", bundle_model="strong-1"))
    with caplog.at_level(logging.WARNING):
        qualities(BundleRouter(tiny_bundle), pool[::-1], strategy="pool")
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        qualities(BundleRouter(tiny_bundle), pool, strategy="pool")
    assert "rates the weak model 'b' no worse than the strong one 'a'" in caplog.text


def test_a_bundle_that_does_not_tell_its_own_pair_apart(make_bundle: BundleMaker) -> None:
    bundle = make_bundle(strong="other-1", weak="weak-1")
    with pytest.raises(ConfigError, match="does not tell its own strong and weak model apart"):
        qualities(BundleRouter(bundle), strategy="pool")


def test_a_pool_needs_a_bundle_that_knows_its_models(tiny_bundle: Any) -> None:
    with pytest.raises(ConfigError, match="'pool' needs a bundle"):
        qualities(Scores(), strategy="pool")
    wrong = (STRONG, model("weak", bundle_model="gpt-9"))
    with pytest.raises(ConfigError, match=r"bundle_model 'gpt-9' is not in the bundle.*strong-1"):
        qualities(BundleRouter(tiny_bundle), wrong, strategy="pool")
    same = (model("a", bundle_model="weak-1"), model("b", bundle_model="weak-1"))
    with pytest.raises(ConfigError, match="at least two models that the bundle knows"):
        qualities(BundleRouter(tiny_bundle), same, strategy="pool")

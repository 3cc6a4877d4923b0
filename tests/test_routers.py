"""Routers by name: the built-in ones, folders, and those of another installed distribution."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import ConfigError, RoutingError, UnknownRouterError
from thriftroute.router.routers import (
    BundleRouter,
    RandomRouter,
    Router,
    available_routers,
    checked_scores,
    load_router,
)
from thriftroute.router.scorer import Scorer
from thriftroute.router.text import Conversation, as_conversation

HARD = as_conversation("prove the hard theorem")
EASY = as_conversation("hello")

Distribution = Callable[..., None]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """Install a tiny distribution: a module, its metadata and its entry points."""

    def install(name: str, source: str, **routers: str) -> None:
        site = tmp_path / f"site-{name}"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{router} = {name}:{target}" for router, target in routers.items()]
        (info / "entry_points.txt").write_text("\n".join(["[thriftroute.routers]", *lines, ""]))
        monkeypatch.syspath_prepend(str(site))

    return install


LENGTH = """
import numpy as np

class Length:
    def __init__(self, limit=100):
        self.limit = limit

    def scores(self, conversations):
        return np.array([min(len(c.last) / self.limit, 1.0) for c in conversations])

class NoScores:
    pass
"""


def test_a_bundle_scores_by_its_folder(tiny_bundle: Path) -> None:
    router = load_router("mf", {"checkpoint_path": tiny_bundle})
    assert isinstance(router, BundleRouter)
    scores = router.scores([HARD, EASY])
    assert scores.dtype == np.float64
    assert scores[0] > 0.5 > scores[1]
    np.testing.assert_array_equal(scores, Scorer.load(tiny_bundle).scores([HARD, EASY]))
    by_folder = load_router(str(tiny_bundle))
    np.testing.assert_array_equal(by_folder.scores([HARD, EASY]), scores)


def test_the_pair_can_be_chosen_among_the_models_of_the_bundle(tiny_bundle: Path) -> None:
    settings = {
        "checkpoint_path": str(tiny_bundle),
        "strong_model": "weak-1",
        "weak_model": "strong-1",
    }
    turned = load_router("mf", settings).scores([HARD])
    straight = load_router("mf", {"checkpoint_path": str(tiny_bundle)}).scores([HARD])
    assert turned[0] == pytest.approx(1 - straight[0], abs=1e-6)
    with pytest.raises(ConfigError, match=r"gpt-4-1106-preview.*strong-1, weak-1, other-1"):
        load_router("mf", {**settings, "strong_model": "gpt-4-1106-preview"})


def test_threads_and_base_reach_the_scorer(tiny_bundle: Path) -> None:
    router = load_router(
        "mf", {"checkpoint_path": tiny_bundle.name, "threads": 2}, base=tiny_bundle.parent
    )
    assert router.scores([HARD])[0] > 0.5
    with pytest.raises(ConfigError, match="threads"):
        load_router("mf", {"checkpoint_path": tiny_bundle, "threads": 0})


@pytest.mark.parametrize("path", ["routellm/mf_gpt4_augmented", "/no/such/folder"])
def test_a_name_of_the_hub_is_no_folder(path: str) -> None:
    with pytest.raises(ConfigError, match=r"mf.*is no folder.*leave checkpoint_path out") as caught:
        load_router("mf", {"checkpoint_path": path})
    assert path in str(caught.value)


def test_a_bundle_of_another_kind_is_refused(make_bundle: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="kind 'mf'"):
        load_router("bert", {"checkpoint_path": make_bundle().path})
    encoder = make_bundle("encoder", kind="encoder", models=[], strong="", weak="")
    with pytest.raises(ConfigError, match="encoder"):
        load_router(str(encoder.path))


def test_unknown_settings_are_listed_with_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"'size'; known: .*checkpoint_path.*weak_model"):
        load_router("mf", {"checkpoint_path": tiny_bundle, "size": 128})
    with pytest.raises(ConfigError, match="'hidden_size' is a setting of RouteLLM; leave it out"):
        load_router("mf", {"checkpoint_path": tiny_bundle, "hidden_size": 128})
    with pytest.raises(ConfigError, match=r"'sw_ranking' is RouteLLM's.*use 'mf'"):
        load_router("sw_ranking")
    with pytest.raises(ConfigError, match="'runs/nope': no such folder"):
        load_router("runs/nope")
    with pytest.raises(ConfigError, match=r"'sead'; known: .*seed"):
        load_router("random", {"sead": 1})
    with pytest.raises(ConfigError, match="must be a folder, got int"):
        load_router("mf", {"checkpoint_path": 5})


def test_random_repeats_with_a_seed_and_is_uniform() -> None:
    a, b = RandomRouter(seed=3), load_router("random", {"seed": 3})
    scores = a.scores([EASY] * 2000)
    np.testing.assert_array_equal(b.scores([EASY] * 2000), scores)
    assert not np.array_equal(a.scores([EASY] * 2000), scores)
    assert scores.min() >= 0 and scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.03
    with pytest.raises(ConfigError, match="seed"):
        RandomRouter(seed=-1)


def test_an_unknown_router_lists_those_that_are_there() -> None:
    with pytest.raises(UnknownRouterError, match="'nope'; available: mf, bert, fast, random"):
        load_router("nope")


def test_another_distribution_adds_a_router(distribution: Distribution) -> None:
    distribution("dist_length", LENGTH, length="Length", bare="NoScores")
    assert available_routers() == ("mf", "bert", "fast", "random", "bare", "length")
    router = load_router("length", {"limit": 10})
    assert isinstance(router, Router)
    np.testing.assert_array_equal(router.scores([EASY]), [0.5])
    with pytest.raises(ConfigError, match=r"dist_length.*no method scores"):
        load_router("bare")
    with pytest.raises(ConfigError, match=r"dist_length.*\['lim'\].*TypeError"):
        load_router("length", {"lim": 10})


def test_a_router_that_cannot_be_imported_says_whose_it_is(distribution: Distribution) -> None:
    distribution("dist_broken", "import no_such_module_here", broken="Length")
    with pytest.raises(ConfigError, match=r"dist_broken.*ModuleNotFoundError"):
        load_router("broken")


def test_a_built_in_name_is_not_overridden(
    distribution: Distribution, caplog: pytest.LogCaptureFixture
) -> None:
    distribution("dist_rogue", LENGTH, random="Length")
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_router("random"), RandomRouter)
    assert "dist_rogue offers a router named 'random'" in caplog.text


def test_two_distributions_with_one_name_are_an_error(distribution: Distribution) -> None:
    distribution("dist_one", LENGTH, twice="Length")
    distribution("dist_two", LENGTH, twice="Length")
    with pytest.raises(ConfigError, match="more than one distribution: dist_one, dist_two"):
        load_router("twice")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([0.5, float("nan")], "nan"),
        ([0.5, 1.5], "1.5"),
        ([-0.1, 0.5], "-0.1"),
        ([0.5], "shape"),
        ([[0.5, 0.5]], "shape"),
        (None, "not in|shape|not numbers"),
        (["secret", "secret"], "list, not numbers"),
    ],
)
def test_scores_are_checked(values: object, problem: str) -> None:
    with pytest.raises(RoutingError, match=problem) as caught:
        checked_scores(values, 2)
    assert "secret" not in str(caught.value)


def test_scores_at_the_ends_are_fine() -> None:
    np.testing.assert_array_equal(checked_scores([0, 1.0], 2), [0.0, 1.0])


def test_recent_scores_are_kept_and_no_conversation_gets_anothers(tiny_bundle: Path) -> None:
    router = BundleRouter(tiny_bundle)
    same_text = [Conversation("", "a", "b"), Conversation("", "", "ab"), Conversation("a", "", "b")]
    first = [router.scores([each])[0] for each in same_text]
    assert [router.scores([each])[0] for each in same_text] == first
    assert router.scores(same_text).tolist() == pytest.approx(first)
    router.scores([same_text[0]])[0] = 2.0  # what a caller does to its answer changes none
    assert router.scores([same_text[0]])[0] == first[0]

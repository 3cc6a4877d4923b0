from typing import Any

import pytest
from thriftroute.router.routers import BundleRouter, Router
from thriftroute.serve.config.settings import Rule, When
from thriftroute.serve.policy.plan import ChosenModel, Draft
from thriftroute.serve.policy.selection import Selection
from thriftroute.serve.request import ChatRequest
from thriftroute.tests.helpers.asking import Failing, Scores, asked, config, model

POOL = (model("strong", 10.0), model("mid", 3.0), model("tiny", 0.5), model("weak", 1.0))
MODELS = {m.name: m for m in POOL}
ALL = tuple(MODELS)
BANDS = [
    {"name": "simple", "model": "tiny", "below": 0.25},
    {"name": "moderate", "model": "weak", "below": 0.5},
    {"name": "complex", "model": "mid", "below": 0.75},
    {"name": "reasoning", "model": "strong"},
]


def selection(router: Router | None = None, fastest: Any = None, **settings: Any) -> Selection:
    return Selection(config(POOL, router=settings), MODELS, router or Scores(), fastest)


def choose(
    by: Selection, request: ChatRequest, allowed: tuple[str, ...], rule: Rule | None = None
) -> ChosenModel:
    choice = by.choose(Draft(request, None, None, None, allowed, rule=rule)).choice
    assert choice is not None
    return choice


@pytest.mark.parametrize(("score", "choice"), [(0.5, "strong"), (0.499, "weak"), (1.0, "strong")])
def test_the_pair_by_score_and_threshold(score: float, choice: str) -> None:
    picked = choose(selection(Scores(score)), asked(), ALL)
    assert (picked.model, picked.kind) == (choice, choice)
    assert (picked.score, picked.threshold, picked.router) == (score, 0.5, "mf")
    sign = ">=" if choice == "strong" else "<"
    assert picked.reason == f"score {score:g} {sign} threshold 0.5"


def test_where_the_threshold_is_from_is_told() -> None:
    rule = Rule(name="r", when=When(), threshold=0.5)
    assert choose(selection(), asked(), ALL, rule).reason.endswith("0.5, of rule 'r'")


@pytest.mark.parametrize("left", ["strong", "weak"])
def test_one_of_the_pair_needs_no_score(left: str) -> None:
    router = Scores(0.5)
    picked = choose(selection(router), asked(), (left, "mid"))
    assert (picked.model, picked.kind, picked.score) == (left, left, None)
    assert picked.reason == f"of strong and weak only {left!r} can take it"
    assert router.seen == []


def test_none_of_the_pair_leaves_the_cheapest() -> None:
    picked = choose(selection(), asked(), ("mid", "tiny"))
    assert (picked.model, picked.kind) == ("tiny", "pool")


@pytest.mark.parametrize("on_error", ["strong", "weak"])
def test_without_a_score_the_configured_model_answers(
    on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    picked = choose(selection(Failing(), on_error=on_error), asked("secret"), ALL)
    assert (picked.model, picked.kind, picked.score) == (on_error, on_error, None)
    assert (picked.threshold, picked.router) == (0.5, "mf")
    assert picked.reason.startswith("scoring failed: ValueError")
    assert "secret" not in picked.reason + caplog.text
    assert "router 'mf': scoring failed: ValueError" in caplog.text


@pytest.mark.parametrize(
    ("score", "model_"),
    [
        (0.0, "tiny"),
        (0.2499, "tiny"),
        (0.25, "weak"),
        (0.5, "mid"),
        (0.75, "strong"),
        (1.0, "strong"),
    ],
)
def test_bands(score: float, model_: str) -> None:
    picked = choose(selection(Scores(score), strategy="bands", bands=BANDS), asked(), ALL)
    assert (picked.model, picked.kind, picked.score) == (model_, "band", score)
    assert f"score {score:g} is in band" in picked.reason


@pytest.mark.parametrize(
    ("allowed", "model_"),
    [
        (("tiny", "mid", "strong"), "mid"),
        (("tiny", "strong"), "strong"),
        (("tiny",), "tiny"),
    ],
)
def test_a_band_whose_model_cannot_gives_to_the_next_higher_one(
    allowed: tuple[str, ...], model_: str
) -> None:
    picked = choose(selection(Scores(0.3), strategy="bands", bands=BANDS), asked(), allowed)
    assert picked.model == model_
    assert "band 'moderate', whose model cannot take it" in picked.reason


def test_no_bands_model_left_leaves_the_cheapest() -> None:
    bands = [{"name": "all", "model": "mid"}]
    picked = choose(
        selection(Scores(0.3), strategy="bands", bands=bands), asked(), ("strong", "weak")
    )
    assert (picked.model, picked.kind, picked.score) == ("weak", "weak", 0.3)


def test_bands_without_a_score() -> None:
    picked = choose(selection(Failing(), strategy="bands", bands=BANDS), asked(), ALL)
    assert (picked.model, picked.kind) == ("strong", "strong")
    picked = choose(selection(Failing(), strategy="bands", bands=BANDS), asked(), ("tiny", "mid"))
    assert picked.model == "mid"
    assert "the dearest that can" in picked.reason


def pool_selection(tiny_bundle: Any, tolerance: float) -> Selection:
    """Of 'hard' words only the strong model's quality rises, far above all others'."""
    models = {
        m.name: m
        for m in (
            model("strong-1", 10.0),
            model("local", 0.5, bundle_model="other-1"),
            model("unknown", 0.1),
            model("weak-1", 1.0),
        )
    }
    made = config(tuple(models.values()), router={"strategy": "pool", "tolerance": tolerance})
    return Selection(made, models, BundleRouter(tiny_bundle))


POOL_NAMES = ("strong-1", "local", "unknown", "weak-1")


def test_the_cheapest_within_the_tolerance_of_the_best(tiny_bundle: Any) -> None:
    chosen = pool_selection(tiny_bundle, 0.3)
    hard = choose(chosen, asked("prove the hard theorem"), POOL_NAMES)
    assert (hard.model, hard.kind, hard.router) == ("strong-1", "pool", "mf")
    assert hard.score is not None
    assert hard.score > 0.3
    easy = choose(chosen, asked("hello is easy"), POOL_NAMES)
    assert easy.model == "local"
    assert easy.score is not None
    assert easy.score < 0.3
    assert "cheapest of 3 within 0.3 of the best, 'strong-1'; loses" in easy.reason


def test_a_tolerance_of_one_is_the_cheapest_that_the_bundle_knows(tiny_bundle: Any) -> None:
    picked = choose(pool_selection(tiny_bundle, 1.0), asked("prove the hard theorem"), POOL_NAMES)
    assert picked.model == "local"


def test_the_best_is_the_best_of_those_that_can(tiny_bundle: Any) -> None:
    picked = choose(
        pool_selection(tiny_bundle, 0.05), asked("hard"), ("local", "unknown", "weak-1")
    )
    assert picked.model in {"local", "weak-1"}


def test_a_pool_of_unknown_models_leaves_the_cheapest(tiny_bundle: Any) -> None:
    picked = choose(pool_selection(tiny_bundle, 0.05), asked("hard"), ("unknown",))
    assert (picked.model, picked.kind) == ("unknown", "pool")
    assert "the bundle knows none that can take it" in picked.reason


def test_a_pool_without_text_goes_by_on_error(tiny_bundle: Any) -> None:
    picked = choose(pool_selection(tiny_bundle, 0.05), asked(" "), POOL_NAMES)
    assert (picked.model, picked.kind, picked.reason) == (
        "strong-1",
        "strong",
        "no text to score",
    )


@pytest.mark.parametrize(
    ("wish", "allowed", "model_", "choice"),
    [
        ("cost", ALL, "weak", "weak"),
        ("cost", ("strong", "mid"), "mid", "pool"),
        ("quality", ALL, "strong", "strong"),
        ("quality", ("mid", "tiny"), "mid", "pool"),
        ("speed", ALL, "mid", "pool"),
        ("speed", ("strong", "weak"), "strong", "strong"),
        ("speed", ("tiny", "weak"), "weak", "weak"),
    ],
)
def test_priorities(wish: Any, allowed: tuple[str, ...], model_: str, choice: str) -> None:
    seconds = {"mid": 0.2, "strong": 1.5}
    picked = choose(selection(fastest=seconds.get), asked(priority=wish), allowed)
    assert (picked.model, picked.kind) == (model_, choice)
    assert picked.reason.startswith(f"priority {wish}")

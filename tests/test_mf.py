"""Matrix factorization in closed form: the fit of one pair, the head it becomes, and abilities."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.schema import Comparison, PromptScore
from thriftroute.data.tables import ComparisonTable
from thriftroute.errors import TrainingError
from thriftroute.router.features import FEATURES

pytest.importorskip("scipy")
pytest.importorskip("torch")

from thriftroute.tests.helpers.tables import comparison_table
from thriftroute.training.models.head import LOOKED_UP, Base, Gate, Head, Memory
from thriftroute.training.models.mf import (
    PairFit,
    fit_pair,
    log_odds,
    pair_head,
    representation_blocks,
    tier_abilities,
)
from thriftroute.training.settings import MFSettings

Floats = npt.NDArray[np.float64]
LAYERS = 24
WIDTH = LAYERS + len(FEATURES)


def prompts(n: int, seed: int = 0) -> tuple[npt.NDArray[np.float32], Floats]:
    """Representations [n, WIDTH], and how hard each prompt is: a direction of the layers and one
    cheap feature, of variance 1."""
    rng = np.random.default_rng(seed)
    layers = rng.normal(size=(n, LAYERS))
    layers /= np.linalg.norm(layers, axis=1, keepdims=True)
    cheap = rng.normal(2, 1, (n, len(FEATURES))) * np.linspace(0.1, 3, len(FEATURES))
    hard = 4 * layers[:, 3] + (cheap[:, 5] - cheap[:, 5].mean()) / cheap[:, 5].std()
    return np.concatenate((layers, cheap), axis=1).astype(np.float32), hard / math.sqrt(5 / 3)


def gains(hard: Floats, seed: int = 0, signal: float = 4.0) -> Floats:
    """Strong minus weak, -1, 0 or 1: strong is right more often where it is hard."""
    rng = np.random.default_rng(seed + 1000)
    weak = rng.random(len(hard)) > 1 / (1 + np.exp(-signal * hard))
    strong = rng.random(len(hard)) > 0.2
    return strong.astype(np.float64) - weak


def folds(n: int) -> npt.NDArray[np.int64]:
    return np.arange(n) % 5


def corr(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_blocks_are_the_layers_and_the_features() -> None:
    layers, cheap = representation_blocks(WIDTH)
    assert (layers.start, layers.stop, layers.own_units) == (0, LAYERS, False)
    assert (cheap.start, cheap.stop, cheap.own_units) == (LAYERS, WIDTH, True)


class TestFitPair:
    def test_it_learns(self) -> None:
        x, hard = prompts(500)
        found = fit_pair(x, gains(hard), folds(500))
        assert found.used == "labels"
        assert found.fit is not None
        assert found.fit.evidence > 10
        new, new_hard = prompts(500, seed=1)
        margin = found.margin(new)
        assert corr(margin, new_hard) > 0.85
        # Out of fold it tells as much as on new prompts.
        assert corr(found.out_of_fold, hard) == pytest.approx(corr(margin, new_hard), abs=0.06)
        # In units of the gain, so that its mean is the gain's.
        assert margin.mean() == pytest.approx(gains(new_hard, 1).mean(), abs=0.1)

    def test_out_of_fold_margins_do_not_know_their_labels(self) -> None:
        """Labels that mean nothing are not told, though a fit could learn them by heart."""
        told = []
        for seed in range(5):
            x, _ = prompts(150, seed)
            gain = np.random.default_rng(seed).integers(-1, 2, 150).astype(np.float64)
            found = fit_pair(x, gain, folds(150))
            told.append(corr(found.out_of_fold, gain) if found.out_of_fold.std() > 1e-6 else 0.0)
        assert np.mean(told) < 0.05

    def test_same_data_same_fit(self) -> None:
        x, hard = prompts(200)
        known = 0.3 * hard
        one, two = (
            fit_pair(x, gains(hard), folds(200), known=known, weight=np.ones(200)) for _ in range(2)
        )
        assert one.weights.tobytes() == two.weights.tobytes()
        assert one.out_of_fold.tobytes() == two.out_of_fold.tobytes()
        assert (one.intercept, one.slope) == (two.intercept, two.slope)

    def test_rows_of_little_weight_say_little(self) -> None:
        x, hard = prompts(500)
        gain = gains(hard)
        gain[::2] *= -1
        weight = np.where(np.arange(500) % 2, 1.0, 1e-6)
        new, new_hard = prompts(300, seed=1)
        found = fit_pair(x, gain, folds(500), weight=weight)
        assert corr(found.margin(new), new_hard) > 0.7
        unweighted = fit_pair(x, gain, folds(500))
        assert corr(unweighted.margin(new), new_hard) < 0.4

    @pytest.mark.parametrize("n", [2, 30, 49])
    def test_with_too_few_labels_what_was_known_stands(self, n: int) -> None:
        x, hard = prompts(n)
        known = 0.3 * hard - 0.1
        found = fit_pair(x, gains(hard), folds(n), known=known)
        assert (found.used, found.fit) == ("base", None)
        assert (found.out_of_fold == known).all()
        new, new_hard = prompts(20, seed=1)
        assert (found.margin(new, new_hard) == new_hard).all()

    def test_the_number_that_is_enough_can_be_set(self) -> None:
        x, hard = prompts(30)
        settings = MFSettings(min_labels=30)
        found = fit_pair(x, gains(hard), folds(30), known=hard, settings=settings)
        assert found.used == "labels"

    def test_labels_without_evidence_can_leave_what_was_known(self) -> None:
        x, hard = prompts(100, seed=1)
        noise = np.random.default_rng(1).integers(-1, 2, 100).astype(np.float64)
        careful = MFSettings(min_evidence=0.0)
        taken = fit_pair(x, noise, folds(100), known=hard)
        assert taken.fit is not None
        assert taken.fit.evidence <= 0
        found = fit_pair(x, noise, folds(100), known=hard, settings=careful)
        assert (found.used, found.fit) == ("base", None)
        assert (found.margin(x, hard) == hard).all()
        # Labels that say something are taken, and so are any where nothing is known.
        assert fit_pair(x, gains(hard), folds(100), known=-hard, settings=careful).used == "labels"
        assert fit_pair(x, noise, folds(100), settings=careful).used == "labels"

    def test_labels_that_are_all_the_same_leave_what_was_known(self) -> None:
        x, hard = prompts(200)
        found = fit_pair(x, np.full(200, 1.0), folds(200), known=hard)
        assert found.used == "base"

    @pytest.mark.parametrize("gain", [np.zeros(200), np.array([1.0, -1.0] * 4)])
    def test_nothing_known_and_nothing_to_learn(self, gain: Floats) -> None:
        x, _ = prompts(len(gain))
        with pytest.raises(TrainingError, match="at least 10 labels are needed"):
            fit_pair(x, gain, folds(len(gain)))

    def test_a_base_that_is_right_stays_where_labels_are_few(self) -> None:
        """Means of eight draws of 60 labels that tell little by themselves."""
        beside, alone = [], []
        new, new_hard = prompts(500, seed=99)
        for seed in range(8):
            x, hard = prompts(60, seed)
            gain = gains(hard, seed, signal=1.0)
            found = fit_pair(x, gain, folds(60), known=0.2 * hard)
            assert found.slope > 0
            beside.append(corr(found.margin(new, 0.2 * new_hard), new_hard))
            alone.append(corr(fit_pair(x, gain, folds(60)).margin(new), new_hard))
        assert np.mean(beside) > 0.75
        assert np.mean(alone) < 0.45

    def test_many_labels_correct_a_base_that_is_wrong(self) -> None:
        x, hard = prompts(800)
        found = fit_pair(x, gains(hard), folds(800), known=-hard)
        new, new_hard = prompts(300, seed=1)
        assert corr(found.margin(new, -new_hard), new_hard) > 0.8

    def test_the_unit_and_the_middle_of_what_was_known_do_not_matter(self) -> None:
        x, hard = prompts(100)
        gain, known = gains(hard), 0.5 * hard
        one = fit_pair(x, gain, folds(100), known=known)
        two = fit_pair(x, gain, folds(100), known=40 * known - 7)
        new, new_hard = prompts(50, seed=1)
        expected = one.margin(new, 0.5 * new_hard)
        np.testing.assert_allclose(two.margin(new, 20 * new_hard - 7), expected, atol=1e-6)
        np.testing.assert_allclose(two.out_of_fold, one.out_of_fold, atol=1e-6)

    def test_a_base_that_says_the_same_of_all(self) -> None:
        x, hard = prompts(200)
        found = fit_pair(x, gains(hard), folds(200), known=np.full(200, 0.3))
        bare = fit_pair(x, gains(hard), folds(200))
        got = found.margin(x, np.full(200, 0.3))
        np.testing.assert_allclose(got, bare.margin(x), atol=1e-3)


def gate() -> Gate:
    """Of six columns the third and the fourth say of which kind a prompt is."""
    return Gate(np.array([0, 0, 4, -2, 0, 0], np.float32), -0.5)


def by_hand(one: Gate, row: npt.NDArray[np.float32]) -> float:
    """How far the gate is open."""
    logit = sum(float(w) * float(v) for w, v in zip(one.weights, row, strict=True)) + one.bias
    return 1 / (1 + math.exp(-logit))


def memory(**changes: Any) -> Memory:
    """Two points in the last four columns of six; half familiar at a cosine of 0.7."""
    points = np.array([[100, 0, 0, 0], [0, 100, 0, 0]], np.int8)
    fields = {"points": points, "low": 0.5, "high": 0.9, "columns": (2, 6), "scale": 0.01}
    return Memory(**{"projection": np.eye(4, dtype=np.float32), **fields, **changes})


def in_front_of(cosines: list[tuple[float, float]]) -> npt.NDArray[np.float32]:
    """Rows [n, 6] with these cosines to the two points; the first two columns do not count."""
    rows = [[9, -9, a, b, math.sqrt(max(1 - a * a - b * b, 0)), 0] for a, b in cosines]
    return np.array(rows, np.float32)


class TestHead:
    def test_the_gate_is_logistic(self) -> None:
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        assert gate()(x).dtype == np.float64
        np.testing.assert_allclose(gate()(x), [by_hand(gate(), row) for row in x], rtol=1e-6)
        far = np.array([[0, 0, 1000, 0, 0, 0], [0, 0, -1000, 0, 0, 0]], np.float32)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(gate()(far), [1.0, 0.0], atol=1e-12)

    def test_what_is_familiar_is_so_by_the_nearest_point(self) -> None:
        x = in_front_of(
            [(0.5, 0.1), (-0.9, 0), (0.7, 0.6), (0.6, 0.7), (0.9, 0.1), (0, 1), (0.6, 0)]
        )
        expected = [0, 0, 0.5, 0.5, 1, 1, 0.25]
        np.testing.assert_allclose(memory().familiarity(x), expected, atol=1e-6)
        # A cosine: the length of a prompt does not matter.
        np.testing.assert_allclose(memory().familiarity(7 * x), expected, atol=1e-6)

    def test_more_prompts_than_are_looked_up_at_once(self) -> None:
        few = in_front_of([(0.7, 0.6), (0, 1), (-0.9, 0), (0.6, 0)])
        found = memory().familiarity(np.tile(few, (LOOKED_UP // 2, 1)))
        np.testing.assert_allclose(found, np.tile([0.5, 1, 0, 0.25], LOOKED_UP // 2), atol=1e-6)

    def test_quality_is_the_formula(self) -> None:
        rng = np.random.default_rng(0)
        w1, b1, u = (rng.normal(size=s).astype(np.float32) for s in ((3, 6), 3, (4, 3)))
        gated = np.array([0, 1, 0], np.int8)
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        names = ["a", "b", "c", "d"]
        head = Head(names, w1, b1, u, gated, gate())
        for row in x:
            open_ = by_hand(gate(), row)
            hidden = [(row @ w1[k] + b1[k]) * (open_ if gated[k] else 1) for k in range(3)]
            quality = [sum(u[m, k] * hidden[k] for k in range(3)) for m in range(4)]
            np.testing.assert_allclose(head.hidden(row[None])[0], hidden, rtol=1e-5)
            np.testing.assert_allclose(head.quality(row[None])[0], quality, rtol=1e-4)
            margin = head.margin(row[None], "d", "b")[0]
            assert margin == pytest.approx(quality[3] - quality[1], rel=1e-4)
        bare = Head(names, w1, b1, u, np.zeros(3, np.int8))
        np.testing.assert_allclose(bare.quality(x), (x @ w1.T + b1) @ u.T, rtol=1e-4)
        assert bare.quality(x).dtype == np.float32

    def test_what_is_familiar_moves_no_quality(self) -> None:
        rng = np.random.default_rng(0)
        w1, b1, u = (rng.normal(size=s).astype(np.float32) for s in ((3, 6), 3, (4, 3)))
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        plain = Head(["a", "b", "c", "d"], w1, b1, u, np.array([0, 1, 0], np.int8), gate())
        knowing = dataclasses.replace(plain, memory=memory())
        assert (knowing.quality(x) == plain.quality(x)).all()

    def test_points_are_looked_up_where_they_are_projected_to(self) -> None:
        rng = np.random.default_rng(1)
        x = rng.normal(size=(5, 6)).astype(np.float32)
        x[4, 2:] = 0  # nothing to look up: no cosine, and no error
        projection = rng.normal(size=(4, 3)).astype(np.float32)
        points = rng.integers(-127, 128, (7, 3)).astype(np.int8)
        known = memory(points=points, scale=0.01, projection=projection, low=-2.0, high=2.0)
        for row, familiar in zip(x, known.familiarity(x), strict=True):
            short = row[2:] @ projection
            nearest = max(0.01 * points @ short) / max(np.linalg.norm(short), 1e-9)
            assert familiar == pytest.approx(np.clip((nearest + 2) / 4, 0, 1), abs=1e-5)

    def test_a_base_is_the_margin_of_its_pair(self) -> None:
        x = in_front_of([(0.1, 0.2), (0.7, 0.6)])
        w1, b1 = np.ones((1, 6), np.float32), np.array([0.5], np.float32)
        u = np.array([[2.0], [0.5], [-1.0]], np.float32)
        head = Head(["a", "b", "c"], w1, b1, u, np.zeros(1, np.int8))
        np.testing.assert_allclose(Base(head, "a", "c")(x), 3 * (x.sum(1) + 0.5), rtol=1e-5)


class TestPairHead:
    def fitted(self, slope: float = 0.0) -> PairFit:
        weights = np.random.default_rng(7).normal(size=6)
        return PairFit(weights, 0.25, slope, np.zeros(3), "labels", None)

    def base(self) -> Base:
        rng = np.random.default_rng(8)
        w1, b1, u = (rng.normal(size=s).astype(np.float32) for s in ((2, 6), 2, (3, 2)))
        gated = np.array([0, 1], np.int8)
        return Base(Head(["a", "b", "c"], w1, b1, u, gated, gate(), memory()), "c", "a")

    def test_its_margin_is_the_one_that_was_fitted(self) -> None:
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        found = self.fitted()
        head = pair_head(found, {"big": 0.5, "small": -0.5}, ("big", "small"))
        assert (head.models, head.gate, head.memory) == (["big", "small"], None, None)
        np.testing.assert_allclose(head.margin(x, "big", "small"), found.margin(x), atol=1e-4)
        np.testing.assert_allclose(head.quality(x)[:, 0], found.margin(x) / 2, atol=1e-4)

    def test_on_top_of_a_base_gate_and_all(self) -> None:
        """Directions of the base stay as they are; only what a model makes of them is new."""
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        found, base = self.fitted(slope=0.4), self.base()
        head = pair_head(found, {"big": 0.5, "small": -0.5}, ("big", "small"), base)
        expected = found.margin(x) + 0.4 * base(x)
        np.testing.assert_allclose(found.margin(x, base(x)), expected)
        np.testing.assert_allclose(head.margin(x, "big", "small"), expected, atol=1e-4)
        assert (head.w1[:2] == base.head.w1).all()
        assert head.gated.tolist() == [0, 1, 0]
        assert head.gate is base.head.gate
        assert head.memory is base.head.memory

    def test_starting_from_a_bundle_that_was_started_from_another(self) -> None:
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        pair = {"big": 0.5, "small": -0.5}
        first = pair_head(self.fitted(slope=0.4), pair, ("big", "small"), self.base())
        again = pair_head(
            self.fitted(slope=2.0), pair, ("big", "small"), Base(first, "big", "small")
        )
        expected = self.fitted().margin(x) + 2.0 * first.margin(x, "big", "small")
        np.testing.assert_allclose(again.margin(x, "big", "small"), expected, atol=1e-3)
        assert again.gated.tolist() == [0, 1, 0, 0]

    def test_other_models_stand_by_their_ability(self) -> None:
        x = in_front_of([(0.1, 0.2), (0.7, 0.6), (0.95, 0.1)])
        abilities = {"big": 0.5, "small": -0.5, "middle": 0.1, "huge": 1.5}
        head = pair_head(self.fitted(slope=0.4), abilities, ("big", "small"), self.base())
        margin = head.margin(x, "big", "small")
        np.testing.assert_allclose(head.margin(x, "middle", "small"), 0.6 * margin, atol=1e-4)
        np.testing.assert_allclose(head.margin(x, "huge", "big"), margin, atol=1e-4)

    @pytest.mark.parametrize("strong", [-0.5, -0.7])
    def test_a_strong_model_that_is_not_better(self, strong: float) -> None:
        abilities = {"big": strong, "small": -0.5}
        with pytest.raises(TrainingError, match=r"big is not better than small.*swap them"):
            pair_head(self.fitted(), abilities, ("big", "small"))


def scores(means: dict[str, float], n: int, source: str = "", start: int = 0) -> list[PromptScore]:
    """Every model's score on n prompts: graded, and the same on each."""
    return [
        PromptScore(f"{source} {i}", model, mean, source=source)
        for i in range(start, start + n)
        for model, mean in means.items()
    ]


def compared(rows: Any, strong: tuple[str, ...], weak: tuple[str, ...]) -> ComparisonTable:
    return comparison_table(rows, strong, weak)


STRONG, WEAK, PAIR = ("b1", "b2"), ("s1", "s2"), ("strong", "weak")
TIERS = (STRONG, WEAK)
MEANS = {"b1": 0.9, "b2": 0.7, "s1": 0.5, "s2": 0.3}


class TestAbilities:
    def logits(self, means: dict[str, float]) -> dict[str, float]:
        return {name: math.log(p / (1 - p)) for name, p in means.items()}

    def by_hand(self, means: dict[str, float]) -> dict[str, float]:
        at = self.logits(means)
        strong = (at["b1"] + at["b2"]) / 2
        weak = (at["s1"] + at["s2"]) / 2
        return {name: (value - weak) / (strong - weak) - 0.5 for name, value in at.items()}

    def test_one_model_a_tier(self) -> None:
        table = compared(scores(MEANS, 3), ("b1",), ("s2",))
        assert tier_abilities(table, (("b1",), ("s2",)), ("b1", "s2")) == {"b1": 0.5, "s2": -0.5}

    def test_log_odds_on_the_scale_of_the_tiers(self) -> None:
        table = compared(scores(MEANS, 4), STRONG, WEAK)
        got = tier_abilities(table, TIERS, PAIR)
        assert list(got) == ["b1", "b2", "s1", "s2", "strong", "weak"]
        assert got == pytest.approx({**self.by_hand(MEANS), "strong": 0.5, "weak": -0.5}, abs=1e-5)
        assert (got["b1"] + got["b2"]) / 2 == pytest.approx(0.5)
        assert (got["s1"] + got["s2"]) / 2 == pytest.approx(-0.5)

    def test_a_tier_of_one_model_is_that_model(self) -> None:
        table = compared(scores(MEANS, 4), ("b1",), WEAK)
        got = tier_abilities(table, (("b1",), WEAK), ("b1", "weak"))
        assert list(got) == ["b1", "s1", "s2", "weak"]
        assert (got["b1"], got["weak"]) == (0.5, -0.5)
        assert got["s1"] > -0.5 > got["s2"]

    def test_sources_count_by_their_prompts_and_not_by_how_hard_they_are(self) -> None:
        """A model that only a hard source knows is no worse for it."""
        hard = {"b2": 0.2, "s1": 0.1, "s3": 0.1}
        weak = ("s1", "s2", "s3")
        rows = [*scores(MEANS, 30, "easy"), *scores(hard, 10, "hard")]
        got = tier_abilities(compared(rows, STRONG, weak), (STRONG, weak), PAIR)
        easy = self.by_hand(MEANS)
        # In the hard source b2 is all of its tier, s1 and s3 are the other.
        assert got["b2"] == pytest.approx((30 * easy["b2"] + 10 * 0.5) / 40, abs=1e-5)
        assert got["s1"] == pytest.approx((30 * easy["s1"] + 10 * -0.5) / 40, abs=1e-5)
        assert got["s3"] == pytest.approx(-0.5, abs=1e-5)
        assert got["s2"] == pytest.approx(easy["s2"], abs=1e-5)

    def test_a_source_where_the_tiers_hardly_differ_tells_nothing(self) -> None:
        even = {"b1": 0.5, "b2": 0.52, "s1": 0.53, "s2": 0.47, "s3": 0.51}
        weak = (*WEAK, "s3")
        rows = [*scores(MEANS, 5, "one"), *scores(even, 50, "two")]
        got = tier_abilities(compared(rows, STRONG, weak), (STRONG, weak), PAIR)
        # Who is in no other source stands where its tier does.
        expected = {**self.by_hand(MEANS), "s3": -0.5, "strong": 0.5, "weak": -0.5}
        assert got == pytest.approx(expected, abs=1e-5)

    def test_the_order_of_the_rows_does_not_matter(self) -> None:
        rows = [*scores(MEANS, 5, "one"), *scores({**MEANS, "b1": 0.6}, 4, "two")]
        one, two = (
            tier_abilities(compared(r, STRONG, WEAK), TIERS, PAIR) for r in (rows, rows[::-1])
        )
        assert one == pytest.approx(two)

    def test_comparisons_count_as_shares_of_votes(self) -> None:
        wins = {("b1", "s1"): 1.0, ("b1", "s2"): 1.0, ("b2", "s1"): 0.5, ("b2", "s2"): 1.0}
        rows = [
            Comparison(f"p{i}", a, b, share) for i in range(4) for (a, b), share in wins.items()
        ]
        got = tier_abilities(compared(rows, STRONG, WEAK), TIERS, PAIR)
        shares = {"b1": 0.98, "b2": 0.75, "s1": 0.25, "s2": 0.02}
        expected = {**self.by_hand(shares), "strong": 0.5, "weak": -0.5}
        assert got == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("better", ["weak", "neither"])
    def test_a_strong_tier_that_is_not_better(self, better: str) -> None:
        means = {"b1": 0.3, "b2": 0.5, "s1": 0.7, "s2": 0.9}
        if better == "neither":
            means = {"b1": 0.4, "b2": 0.6, "s1": 0.6, "s2": 0.4}
        table = compared(scores(means, 6), STRONG, WEAK)
        with pytest.raises(TrainingError, match="not better than the weak one in any source"):
            tier_abilities(table, TIERS, PAIR)

    def test_log_odds_stay_finite(self) -> None:
        got = log_odds([0.0, 0.01, 0.5, 0.75, 1.0])
        edge = math.log(0.98 / 0.02)
        assert got.tolist() == pytest.approx([-edge, -edge, 0.0, math.log(3), edge])

"""The general direction, the ordinary one beside it, the gate between them, and the memory."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.schema import PromptScore
from thriftroute.data.tables import PairTable, pair_table
from thriftroute.errors import TrainingError
from thriftroute.research.difficulty import DifficultyTable
from thriftroute.router.features import FEATURES

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("torch")

from thriftroute.research.difficulty_head import (
    Direction,
    GeneralSettings,
    built_in_head,
    fit_gate,
    fit_memory,
    general_direction,
    ordinary_direction,
)
from thriftroute.training.models.head import Gate, Memory

Floats = npt.NDArray[np.float64]
LAYERS = 16
WIDTH = LAYERS + len(FEATURES)
NUMBERS, TOKENS = (LAYERS + FEATURES.index(name) for name in ("numbers", "tokens"))
# Without the length, which counts whatever the labels say.
ALONE = GeneralSettings(length=0.0)


def representations(n: int, seed: int = 0) -> Floats:
    """[n, WIDTH]: layers of unit length, and features of different units."""
    rng = np.random.default_rng(seed)
    layers = rng.normal(size=(n, LAYERS))
    layers /= np.linalg.norm(layers, axis=1, keepdims=True)
    cheap = rng.normal(1, 1, (n, len(FEATURES))) * np.linspace(0.1, 3, len(FEATURES))
    return np.concatenate((layers, cheap), axis=1)


def table(difficulty: Floats, task: list[str], reliability: Floats | None = None) -> Any:
    n = len(difficulty)
    return DifficultyTable(
        prompts=[f"prompt {i}" for i in range(n)],
        messages=[None] * n,
        source=[name.split("/")[0] for name in task],
        task=task,
        bands=np.clip(1 - difficulty[:, None] + np.array([-0.2, -0.1, 0.1, 0.2]), 0, 1),
        difficulty=difficulty,
        reliability=np.full(n, 0.9) if reliability is None else reliability,
        left_out={},
    )


def difficult(score: Floats, noise: float = 0.3, seed: int = 5) -> Floats:
    """Difficulty in [0, 1] that grows with a score."""
    rng = np.random.default_rng(seed)
    return np.asarray(1 / (1 + np.exp(-score - noise * rng.normal(size=len(score)))))


def corr(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1])


class TestGeneral:
    def test_mean_0_and_variance_1(self) -> None:
        x = 5 + 3 * representations(300)
        labels = table(difficult(x[:, 2]), ["exam/art", "exam/law", "chat/"] * 100)
        direction = general_direction(x, labels, np.ones(300))
        assert direction.weights.shape == (WIDTH,)
        score = direction(x)
        assert score.mean() == pytest.approx(0.0, abs=1e-9)
        assert score.std() == pytest.approx(1.0)
        np.testing.assert_allclose(score, x @ direction.weights + direction.intercept)

    @pytest.mark.parametrize("column", [3, NUMBERS])
    def test_what_holds_within_tasks_though_their_means_say_the_opposite(self, column: int) -> None:
        """More of it is harder within each task; the task with most of it is the easiest."""
        x = representations(600)
        task = np.arange(600) % 3
        within = (x[:, column] - x[:, column].mean()) / x[:, column].std()
        x[:, column] = within + 3 * task
        labels = table(difficult(within - 1.5 * (task - 1)), [f"exam/{i}" for i in task])
        assert corr(x[:, column], labels.difficulty) < -0.3
        settings = dataclasses.replace(ALONE, between=0.0, mix=0.0 if column == NUMBERS else 30.0)
        direction = general_direction(x, labels, np.ones(600), settings)
        assert direction.weights[column] > 0
        for i in range(3):
            one = task == i
            assert corr(direction(x)[one], labels.difficulty[one]) > 0.8

    def test_the_ridge_sees_as_much_of_what_sets_tasks_apart_as_it_is_let(self) -> None:
        x = representations(600)
        task = np.arange(600) % 3
        x[:, 3] = x[:, 3] / x[:, 3].std() + 3 * task
        labels = table(difficult(x[:, 3] - 5.5 * task), [f"exam/{i}" for i in task])
        weights = [
            general_direction(
                x, labels, np.ones(600), dataclasses.replace(ALONE, between=between, mix=30.0)
            ).weights[3]
            for between in (0.0, 0.2, 0.5, 1.0)
        ]
        assert weights == sorted(weights, reverse=True)
        assert weights[0] > 0 > weights[-1]

    def test_features_that_vary_nowhere_do_no_harm(self) -> None:
        x = representations(300)
        labels = table(difficult(x[:, NUMBERS]), ["exam/art", "exam/law", "chat/"] * 100)
        still = [LAYERS + i for i in (2, 7, len(FEATURES) - 1)]
        x[:, still] = [0.0, 3.5, 0.1]
        direction = general_direction(x, labels, np.ones(300))
        assert np.isfinite(direction.weights).all()
        assert (direction.weights[still] == 0).all()
        varying = np.delete(np.arange(WIDTH), still)
        assert (direction.weights[varying] != 0).all()

    def test_prompts_of_one_length(self) -> None:
        x = representations(300)
        x[:, TOKENS] = 4.0
        labels = table(difficult(x[:, NUMBERS]), ["exam/art", "exam/law", "chat/"] * 100)
        assert abs(general_direction(x, labels, np.ones(300)).weights[TOKENS]) < 1

    def test_a_feature_that_varies_in_one_task_only(self) -> None:
        x = representations(300)
        x[100:, NUMBERS] = 0.0
        labels = table(difficult(x[:, NUMBERS] - x[:, 4]), ["a/"] * 100 + ["b/"] * 200)
        direction = general_direction(x, labels, np.ones(300), ALONE)
        assert direction.weights[NUMBERS] > 0

    def test_tasks_count_alike_in_the_slopes(self) -> None:
        """Two small tasks against one that is ten times as large."""
        x = representations(600)
        sign = np.where(np.arange(600) < 500, -1.0, 1.0)
        task = ["large/"] * 500 + ["one/"] * 50 + ["two/"] * 50
        labels = table(difficult(sign * x[:, NUMBERS] / x[:, NUMBERS].std()), task)
        settings = dataclasses.replace(ALONE, mix=0.0)
        assert general_direction(x, labels, np.ones(600), settings).weights[NUMBERS] > 0

    def test_labels_that_cannot_be_relied_on_count_less(self) -> None:
        x = representations(200)
        sign = np.where(np.arange(200) < 100, -1.0, 1.0)
        task = ["one/"] * 100 + ["two/"] * 100
        values = difficult(sign * x[:, NUMBERS] / x[:, NUMBERS].std())
        settings = dataclasses.replace(ALONE, mix=0.0)
        for low, high, expected in ((0.2, 0.9, 1), (0.9, 0.2, -1)):
            reliability = np.where(np.arange(200) < 100, low, high)
            labels = table(values, task, reliability)
            direction = general_direction(x, labels, np.ones(200), settings)
            assert np.sign(direction.weights[NUMBERS]) == expected

    def test_weights_of_prompts(self) -> None:
        x = representations(400)
        half = np.arange(400) % 2
        values = difficult(np.where(half, 1, -1) * x[:, NUMBERS] / x[:, NUMBERS].std())
        labels = table(values, ["exam/"] * 400)
        settings = dataclasses.replace(ALONE, mix=0.0)
        for kept, expected in ((1, 1), (0, -1)):
            weight = np.where(half == kept, 1.0, 0.01)
            direction = general_direction(x, labels, weight, settings)
            assert np.sign(direction.weights[NUMBERS]) == expected

    def test_the_length_stands_for_itself(self) -> None:
        """Labels that say nothing of it leave it its share; without a share it has no weight."""
        x = representations(400)
        labels = table(difficult(x[:, NUMBERS]), ["exam/"] * 400)
        long = general_direction(x, labels, np.ones(400), GeneralSettings(length=20.0))
        assert corr(long(x), x[:, TOKENS]) > 0.99
        plain = general_direction(x, labels, np.ones(400))
        assert 0.2 < corr(plain(x), x[:, TOKENS]) < 0.8

    def test_a_tuned_head_in_place_of_the_ridge(self) -> None:
        x = representations(400)
        labels = table(difficult(x[:, 3] * 4), ["exam/"] * 400)
        tuned = np.zeros(LAYERS)
        tuned[[7, 9]] = [2.0, -1.0]
        direction = general_direction(x, labels, np.ones(400), tuned=tuned)
        layers = direction.weights[:LAYERS]
        np.testing.assert_allclose(layers, layers[7] / 2 * tuned, atol=1e-12)
        assert layers[7] > 0
        # The unit of what it says does not matter.
        again = general_direction(x, labels, np.ones(400), tuned=50 * tuned)
        np.testing.assert_allclose(again.weights, direction.weights)


def judged(strong: Floats, weak: Floats) -> PairTable:
    rows = [
        PromptScore(f"prompt {i}", model, float(score))
        for i, scores in enumerate(zip(strong, weak, strict=True))
        for model, score in zip(("big", "small"), scores, strict=True)
    ]
    return pair_table(rows, "big", "small")


class TestOrdinary:
    @pytest.mark.parametrize("weak_fails", [0.0, 0.3, 1.0])
    def test_it_is_the_gain_blended_with_how_often_weak_falls_short(
        self, weak_fails: float
    ) -> None:
        """One column says how far strong is ahead, another how often both fall short."""
        x = 5 + 3 * representations(800)
        rng = np.random.default_rng(1)
        ahead, both = ((x[:, i] - x[:, i].mean()) / x[:, i].std() for i in (3, NUMBERS))
        gain = np.clip(0.25 + 0.08 * ahead, 0, 0.5)
        strong = np.clip(0.75 - 0.08 * both, 0.5, 1) + 0.01 * rng.normal(size=800)
        strong = np.clip(strong, 0.5, 1)
        table = judged(strong, strong - gain)
        settings = GeneralSettings(weak_fails=weak_fails)
        direction = ordinary_direction(x, table, settings, seed=0)
        wanted = ahead + weak_fails * both
        assert corr(direction(x), wanted) > 0.95
        assert direction(x).mean() == pytest.approx(0.0, abs=1e-6)
        assert direction(x).std() == pytest.approx(1.0)
        part = corr(direction(x), both)
        assert part == pytest.approx(weak_fails / np.hypot(1, weak_fails), abs=0.1)

    def test_nothing_to_learn(self) -> None:
        table = judged(np.full(50, 0.9), np.full(50, 0.4))
        with pytest.raises(TrainingError, match="not all the same"):
            ordinary_direction(representations(50), table, GeneralSettings(), seed=0)


def apart(n: int, by: float, seed: int) -> Floats:
    """Representations whose fourth column is further up by so much."""
    x = representations(n, seed)
    x[:, 3] += by
    return x


class TestGate:
    def test_it_is_open_for_prompts_like_those_of_benchmarks(self) -> None:
        ordinary, benchmark = apart(400, 0.0, 0), apart(1200, 1.0, 1)
        gate = fit_gate(ordinary, benchmark, GeneralSettings())
        assert gate.weights.dtype == np.float32
        assert gate.weights.shape == (WIDTH,)
        shut, opened = gate(apart(300, 0.0, 2)), gate(apart(300, 1.0, 3))
        assert ((shut > 0) & (shut < 1)).all()
        assert opened.mean() > shut.mean() + 0.3
        assert np.mean(opened[:, None] > shut[None]) > 0.95

    def test_cheap_features_do_not_open_it(self) -> None:
        """Else a long ordinary prompt would count as one of a benchmark."""
        ordinary, benchmark = apart(400, 0.0, 0), apart(400, 1.0, 1)
        benchmark[:, LAYERS:] += 5
        gate = fit_gate(ordinary, benchmark, GeneralSettings())
        assert (gate.weights[LAYERS:] == 0).all()
        changed = ordinary.copy()
        changed[:, LAYERS:] += 100
        np.testing.assert_allclose(gate(changed), gate(ordinary))

    def test_ordinary_prompts_weigh_more(self) -> None:
        ordinary, benchmark = apart(400, 0.0, 0), apart(400, 0.5, 1)
        means = []
        for prior in (1.0, 10.0, 100.0):
            gate = fit_gate(ordinary, benchmark, GeneralSettings(prior=prior))
            shut, opened = float(gate(ordinary).mean()), float(gate(benchmark).mean())
            # A logistic regression is right on average, by the weights it was fitted with.
            assert (prior * shut + opened) / (prior + 1) == pytest.approx(1 / (prior + 1), abs=1e-3)
            means.append(shut + opened)
        assert means == sorted(means, reverse=True)

    def test_how_many_there_are_of_each_kind_does_not_matter(self) -> None:
        benchmark = apart(300, 1.0, 1)
        ordinary = apart(300, 0.0, 0)
        asked = apart(200, 0.5, 2)
        even, more = (
            fit_gate(ordinary, np.tile(benchmark, (times, 1)), GeneralSettings(prior=1.0))(asked)
            for times in (1, 8)
        )
        assert even.mean() == pytest.approx(more.mean(), abs=0.1)


class TestMemory:
    def test_as_many_are_familiar_as_the_percentiles_say(self) -> None:
        rng = np.random.default_rng(0)

        def clustered(n: int, seed: int) -> Floats:
            """The last layer, of eight columns, has four clusters; the first has none."""
            x = representations(n, seed)
            last = np.eye(8)[:4][rng.integers(0, 4, n)] + 0.1 * rng.normal(size=(n, 8))
            x[:, 8:16] = last / np.linalg.norm(last, axis=1, keepdims=True)
            return x

        settings = GeneralSettings(memory_points=300, memory_dim=5, memory_percentiles=(40.0, 80.0))
        x = clustered(2000, 0)
        memory = fit_memory(x, 8, settings, seed=0)
        assert memory.columns == (8, 16)
        assert (memory.projection.shape, memory.points.shape) == ((8, 5), (300, 5))
        assert memory.points.dtype == np.int8
        lengths = np.linalg.norm(memory.points * memory.scale, axis=1)
        np.testing.assert_allclose(lengths, 1.0, atol=0.02)
        fresh = clustered(1000, 3)
        found = memory.familiarity(fresh)
        assert np.mean(found == 0) == pytest.approx(0.40, abs=0.06)
        assert np.mean(found == 1) == pytest.approx(0.20, abs=0.06)
        far = fresh[:20].copy()
        far[:, 8:16] = np.eye(8)[5]
        assert (memory.familiarity(far) == 0).all()
        elsewhere = fresh.copy()
        elsewhere[:, :8] = -1
        np.testing.assert_array_equal(memory.familiarity(elsewhere), found)
        again = fit_memory(x, 8, settings, seed=0)
        assert (again.points == memory.points).all()
        assert not (fit_memory(x, 8, settings, seed=1).points == memory.points).all()

    def test_fewer_prompts_than_points(self) -> None:
        memory = fit_memory(representations(12), 8, GeneralSettings(memory_dim=64), seed=0)
        assert memory.points.shape == (6, 8)
        assert memory.high > memory.low
        assert np.isfinite(memory.familiarity(representations(5, seed=1))).all()

    def test_prompts_that_are_all_the_same(self) -> None:
        x = np.repeat(representations(1), 9, axis=0)
        memory = fit_memory(x, 8, GeneralSettings(), seed=0)
        assert memory.high > memory.low
        assert np.isfinite(memory.familiarity(x)).all()


def test_built_in_head_is_the_formula() -> None:
    """Ability times (ordinary, and the general one as often as the gate is open)."""
    rng = np.random.default_rng(0)
    x = representations(30)
    general, ordinary = (Direction(rng.normal(size=WIDTH), float(rng.normal())) for _ in range(2))
    gate = Gate((0.3 * rng.normal(size=WIDTH)).astype(np.float32), 0.2)
    points, projection = np.array([[127, 0], [0, 127]], np.int8), np.eye(8, 2, dtype=np.float32)
    memory = Memory(points, 0.0, 1.0, (8, 16), 1 / 127, projection)
    abilities = {"strong": 0.5, "weak": -0.5, "other": 1.25}
    settings = GeneralSettings(gated=1.7)
    head = built_in_head(ordinary, general, gate, abilities, settings, memory)
    assert head.models == ["strong", "weak", "other"]
    assert head.memory is memory
    open_ = gate(x)
    assert np.mean((open_ > 0.05) & (open_ < 0.95)) > 0
    margin = ordinary(x) + 1.7 * open_ * general(x)
    np.testing.assert_allclose(head.margin(x, "strong", "weak"), margin, atol=1e-4)
    for model, ability in abilities.items():
        at = head.models.index(model)
        np.testing.assert_allclose(head.quality(x)[:, at], ability * margin, atol=1e-4)
    # Without a memory it says the same.
    bare = built_in_head(ordinary, general, gate, abilities, settings)
    np.testing.assert_array_equal(bare.quality(x), head.quality(x))

"""The general direction, the local one beside it, and the gate between them."""

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
    fit_gate,
    general_direction,
    general_head,
    local_direction,
)
from thriftroute.training.models.head import Gate

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


def pairs(gain: Floats) -> PairTable:
    rows = [
        PromptScore(f"prompt {i}", model, score)
        for i, value in enumerate(gain)
        for model, score in (("big", 0.5 + value / 2), ("small", 0.5 - value / 2))
    ]
    return pair_table(rows, "big", "small")


class TestLocal:
    def test_it_is_the_gain_of_the_pair(self) -> None:
        x = 5 + 3 * representations(500)
        truth = sum((x[:, i] - x[:, i].mean()) / x[:, i].std() for i in (3, NUMBERS))
        gain = np.clip(0.3 * truth + 0.2 * np.random.default_rng(1).normal(size=500), -1, 1)
        direction = local_direction(x, pairs(gain), seed=0)
        assert corr(direction(x), truth) > 0.95
        assert direction(x).mean() == pytest.approx(0.0, abs=1e-6)
        assert direction(x).std() == pytest.approx(1.0)

    def test_nothing_to_learn(self) -> None:
        with pytest.raises(TrainingError, match="not all the same"):
            local_direction(representations(50), pairs(np.full(50, 0.5)), seed=0)


class TestGate:
    def test_it_is_open_for_prompts_like_those_it_was_fitted_on(self) -> None:
        rng = np.random.default_rng(0)
        x = representations(1000)
        # The last layer, of eight columns, has four clusters; the first layer has none.
        corners = np.eye(8)[:4]
        cluster = rng.integers(0, 4, 1000)
        last = corners[cluster] + 0.1 * rng.normal(size=(1000, 8))
        x[:, 8:16] = last / np.linalg.norm(last, axis=1, keepdims=True)
        # Strong gains by cluster.
        table = pairs(np.array([0.7, 0.3, -0.2, -0.7])[cluster] + 0.05 * rng.normal(size=1000))
        gate = fit_gate(x, table, 8, GeneralSettings(memory_dim=5, neighbours=9))
        assert gate.columns == (8, 16)
        assert gate.projection is not None
        assert gate.projection.shape == (8, 5)
        assert gate.points.shape == (1000, 5)
        assert gate.points.dtype == np.int8
        lengths = np.linalg.norm(gate.points * gate.scale, axis=1)
        np.testing.assert_allclose(lengths, 1.0, atol=0.02)
        # Percentiles 40 and 80 of the cosines with another prompt: of prompts that are drawn
        # alike about so many are shut out, and so many let in.
        fresh = representations(1000, seed=3)
        theirs = rng.integers(0, 4, 1000)
        other = corners[theirs] + 0.1 * rng.normal(size=(1000, 8))
        fresh[:, 8:16] = other / np.linalg.norm(other, axis=1, keepdims=True)
        found, recalled = gate.look_up(fresh)
        assert np.mean(found == 0) == pytest.approx(0.40, abs=0.05)
        assert np.mean(found == 1) == pytest.approx(0.20, abs=0.05)
        means = [recalled[theirs == one].mean() for one in range(4)]
        assert means == sorted(means, reverse=True)
        assert recalled.mean() == pytest.approx(0.0, abs=0.2)  # clusters are drawn
        assert recalled.std() == pytest.approx(1.0, abs=0.1)
        far = fresh[:20].copy()
        far[:, 8:16] = np.eye(8)[5]
        assert (gate.look_up(far)[0] == 0).all()
        again = x.copy()
        again[:, :8] = -1
        # Each finds itself, but for rounding.
        assert gate.look_up(again)[0].mean() > found.mean() + 0.2

    def test_fewer_prompts_than_neighbours(self) -> None:
        x = representations(12)
        gate = fit_gate(x, pairs(np.linspace(-1, 1, 12)), 8, GeneralSettings(memory_dim=64))
        assert gate.points.shape == (12, 8)
        assert gate.neighbours == 11
        assert gate.high > gate.low
        asked = representations(5, seed=1)
        assert np.isfinite(gate.look_up(asked)[0]).all()
        assert np.isfinite(gate.look_up(asked)[1]).all()

    def test_prompts_that_are_all_the_same(self) -> None:
        x = np.repeat(representations(1), 9, axis=0)
        gate = fit_gate(x, pairs(np.full(9, 0.5)), 8, GeneralSettings())
        assert gate.high > gate.low
        assert np.isfinite(gate.look_up(x)[1]).all()


def test_general_head_is_the_formula() -> None:
    """Ability times (general where the gate is shut, the gain and the neighbours where open)."""
    rng = np.random.default_rng(0)
    x = representations(30)
    general, local = (Direction(rng.normal(size=WIDTH), float(rng.normal())) for _ in range(2))
    centres = np.eye(8, dtype=np.float32)[:2]
    values = np.array([2, -1], np.float32)
    gate = Gate(centres, -0.2, 0.6, (8, 16), values=values, neighbours=2, temperature=0.3)
    abilities = {"strong": 0.5, "weak": -0.5, "other": 1.25}
    settings = GeneralSettings(local=0.7, recall=0.4)
    head = general_head(general, local, gate, abilities, settings)
    assert head.models == ["strong", "weak", "other"]
    familiar, recalled = gate.look_up(x)
    assert np.mean((familiar > 0) & (familiar < 1)) > 0
    gain = 0.7 * local(x) + 0.4 * recalled
    margin = (1 - familiar) * general(x) + familiar * gain
    np.testing.assert_allclose(head.margin(x, "strong", "weak"), margin, atol=1e-4)
    for model, ability in abilities.items():
        at = head.models.index(model)
        np.testing.assert_allclose(head.quality(x)[:, at], ability * margin, atol=1e-4)

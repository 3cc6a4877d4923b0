"""Difficulty from the scores of many models: bands, what is left out and why, and reliability."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.schema import Comparison, PromptScore, Row
from thriftroute.errors import DataError
from thriftroute.research.difficulty import (
    BANDS,
    MIN_MODELS,
    MIN_PROMPTS,
    DifficultyTable,
    cronbach_alpha,
    difficulty_table,
)

Floats = npt.NDArray[np.float64]


def staircase(prompts: int = 50, models: int = 8, seed: int = 0) -> Floats:
    """float64[prompts, models]: harder with each prompt, better with each model, some chance."""
    hard, able = np.linspace(0, 1, prompts)[:, None], np.linspace(0.1, 0.9, models)[None]
    noise = np.random.default_rng(seed).normal(0, 0.15, (prompts, models))
    return (able - hard + 0.5 + noise > 0.5).astype(np.float64)


def rows_of(scores: Floats, source: str = "exam", category: str = "art", **more: Any) -> list[Row]:
    """A row for each score that is not NaN; prompts are 'exam/art 0', models 'm0'."""
    return [
        PromptScore(
            f"{source}/{category} {i}", f"m{j}", float(score), source=source, category=category,
            **more,
        )
        for i, row in enumerate(scores)
        for j, score in enumerate(row)
        if not np.isnan(score)
    ]  # fmt: skip


def table_of(rows: Iterable[Row], **options: Any) -> DifficultyTable:
    return difficulty_table(rows, **options)


class TestLabels:
    def test_bands_are_quarters_of_the_models_weakest_first(self) -> None:
        scores = staircase()[:, ::-1]  # m0 is the best
        table = table_of(rows_of(scores))
        order = np.argsort(scores.mean(0), kind="stable")
        assert table.bands.shape == (50, BANDS) == (50, 4)
        for band in range(4):
            expected = scores[:, order[2 * band : 2 * band + 2]].mean(1)
            np.testing.assert_allclose(table.bands[:, band], expected)
        means = table.bands.mean(0)
        assert (np.diff(means) > 0).all()

    def test_difficulty_is_one_minus_the_mean_score(self) -> None:
        scores = staircase()
        table = table_of(rows_of(scores))
        np.testing.assert_allclose(table.difficulty, 1 - scores.mean(1))
        np.testing.assert_allclose(table.reliability, cronbach_alpha(scores))
        assert table.left_out == {}
        assert table.prompts[:2] == ["exam/art 0", "exam/art 1"]
        assert (table.n, set(table.source), set(table.task)) == (50, {"exam"}, {"exam/art"})

    def test_seven_models_fill_four_bands(self) -> None:
        scores = staircase(models=7)
        table = table_of(rows_of(scores))
        order = np.argsort(scores.mean(0), kind="stable")
        np.testing.assert_allclose(table.bands[:, 3], scores[:, order[6]])
        np.testing.assert_allclose(table.bands[:, 0], scores[:, order[:2]].mean(1))

    def test_scores_of_one_model_on_one_prompt_are_averaged(self) -> None:
        scores = staircase()
        twice = [*rows_of(scores), *rows_of(1 - scores)[:8]]
        table = table_of(twice)
        assert table.difficulty[0] == pytest.approx(0.5)
        np.testing.assert_allclose(table.difficulty[1:], 1 - scores.mean(1)[1:])

    def test_comparisons_are_passed_over(self) -> None:
        scores = staircase()
        votes: list[Row] = [Comparison("exam/art 0", "m0", "m1", 1.0), Comparison("x", "a", "b", 0)]
        table = table_of([*votes, *rows_of(scores), *votes])
        np.testing.assert_allclose(table.difficulty, 1 - scores.mean(1))

    def test_messages_are_kept(self) -> None:
        messages = ({"role": "user", "content": "hello"},)
        table = table_of([*rows_of(staircase()), *rows_of(staircase(), "chat", messages=messages)])
        assert table.messages == [None] * 50 + [messages] * 50


class TestTasks:
    def test_each_has_models_bands_and_reliability_of_its_own(self) -> None:
        easy, hard = np.maximum(staircase(), staircase(seed=1)), staircase(60, 5, seed=2)
        table = table_of([*rows_of(easy), *rows_of(hard, category="law")])
        assert table.task == ["exam/art"] * 50 + ["exam/law"] * 60
        np.testing.assert_allclose(table.reliability[:50], cronbach_alpha(easy))
        np.testing.assert_allclose(table.reliability[50:], cronbach_alpha(hard))
        assert table.reliability[0] != table.reliability[50]

    def test_pooled_sources_are_one_task_across_categories(self) -> None:
        scores = staircase(60)
        rows = [
            *rows_of(scores[::2], category="art"),
            *rows_of(scores[1::2], category="law"),
            *rows_of(staircase(), "other"),
        ]
        pooled = table_of(rows, pooled=["exam"])
        assert pooled.task == ["exam"] * 60 + ["other/art"] * 50
        joined = np.concatenate((scores[::2], scores[1::2]))
        np.testing.assert_allclose(pooled.reliability[:60], cronbach_alpha(joined))
        apart = table_of(rows)
        assert set(apart.left_out) == {"exam/art", "exam/law"}
        assert apart.task == ["other/art"] * 50

    def test_a_prompt_counts_for_the_first_task_it_occurs_in(self) -> None:
        scores = staircase()
        again = [
            PromptScore(f"exam/art {i}", "late", 1.0, source="other", category="art")
            for i in range(50)
        ]
        table = table_of([*rows_of(scores), *again])
        assert set(table.task) == {"exam/art"}
        # 'late' is a model of that task then; it says the same of all prompts, and is left out.
        np.testing.assert_allclose(table.difficulty, 1 - scores.mean(1))


class TestCleaning:
    def test_a_model_that_disagrees_is_left_out(self) -> None:
        scores = staircase()
        upside_down = np.column_stack((scores, 1 - scores[:, 4]))
        table = table_of(rows_of(upside_down))
        np.testing.assert_allclose(table.difficulty, 1 - scores.mean(1))
        np.testing.assert_allclose(table.reliability, cronbach_alpha(scores))

    @pytest.mark.parametrize("always", [0.0, 1.0])
    def test_a_model_that_always_says_the_same_is_left_out(self, always: float) -> None:
        scores = staircase()
        table = table_of(rows_of(np.column_stack((scores, np.full(50, always)))))
        np.testing.assert_allclose(table.difficulty, 1 - scores.mean(1))

    def test_a_model_that_half_of_the_prompts_lack_is_left_out(self) -> None:
        scores = staircase()
        rare = scores[:, 4].copy()
        rare[1::2] = np.nan
        table = table_of(rows_of(np.column_stack((scores, rare))))
        np.testing.assert_allclose(table.difficulty, 1 - scores.mean(1))
        # One prompt more than half, and it counts; its gaps hold its mean.
        rare[25] = scores[25, 4]
        table = table_of(rows_of(np.column_stack((scores, rare))))
        filled = np.where(np.isnan(rare), np.nanmean(rare), rare)
        np.testing.assert_allclose(table.difficulty, 1 - np.column_stack((scores, filled)).mean(1))


class TestLeftOut:
    def test_too_few_prompts(self) -> None:
        few = rows_of(staircase(MIN_PROMPTS - 1), category="law")
        table = table_of([*rows_of(staircase()), *few])
        assert table.left_out == {"exam/law": "49 prompts, 8 models that agree"}
        assert set(table.task) == {"exam/art"}
        assert table.n == 50

    def test_too_few_models(self) -> None:
        few = rows_of(staircase(models=MIN_MODELS - 1), category="law")
        assert table_of([*rows_of(staircase(models=5)), *few]).left_out == {
            "exam/law": "50 prompts, 4 models that agree"
        }

    def test_models_that_all_guess(self) -> None:
        guesses = np.random.default_rng(0).integers(0, 2, (400, 6)).astype(np.float64)
        table = table_of([*rows_of(staircase()), *rows_of(guesses, category="luck")])
        assert table.left_out["exam/luck"].startswith("400 prompts, ")
        assert set(table.task) == {"exam/art"}

    def test_no_task_at_all(self) -> None:
        rows = [*rows_of(staircase(10)), *rows_of(staircase(20), category="law")]
        message = r"no task has 5 models that agree on 50 prompts or more \(2 tasks, 30 prompts\)"
        with pytest.raises(DataError, match=message):
            table_of(rows)
        with pytest.raises(DataError, match=r"\(0 tasks, 0 prompts\).*scores of many models"):
            table_of([Comparison("x", "a", "b", 1.0)])
        with pytest.raises(DataError, match="0 tasks"):
            table_of([])


class TestTable:
    @pytest.fixture
    def table(self) -> DifficultyTable:
        rows = [*rows_of(staircase()), *rows_of(staircase(60, seed=1), category="law")]
        return table_of([*rows, *rows_of(staircase(9), category="few")])

    def test_within(self, table: DifficultyTable) -> None:
        values = np.arange(110.0) ** 2
        got = table.within(values)
        np.testing.assert_allclose(got[:50], values[:50] - values[:50].mean())
        np.testing.assert_allclose(got[50:], values[50:] - values[50:].mean())
        both = table.within(np.stack((values, -2 * values), axis=1))
        assert both.shape == (110, 2)
        np.testing.assert_allclose(both, np.stack((got, -2 * got), axis=1))

    def test_subset(self, table: DifficultyTable) -> None:
        keep = np.arange(110) % 3 == 0
        part = table.subset(keep)
        at = np.flatnonzero(keep)
        assert part.prompts == [table.prompts[i] for i in at]
        assert part.task == [table.task[i] for i in at]
        assert part.source == ["exam"] * 37
        assert part.messages == [None] * 37
        np.testing.assert_array_equal(part.bands, table.bands[keep])
        np.testing.assert_array_equal(part.difficulty, table.difficulty[keep])
        np.testing.assert_array_equal(part.reliability, table.reliability[keep])
        assert part.left_out == {"exam/few": "9 prompts, 8 models that agree"}
        assert part.n == 37


class TestCronbachAlpha:
    def test_by_hand(self) -> None:
        """Variances of (0, 1, 2) and (0, 0, 3): 1 and 3; of their sum (0, 1, 5): 7. The value is
        2 / 1 * (1 - 4 / 7). Where models disagree the sum varies less than they do: 0."""
        assert cronbach_alpha(np.array([[0.0, 0], [1, 0], [2, 3]])) == pytest.approx(6 / 7)
        assert cronbach_alpha(np.array([[2.0, -2], [1, 2], [0, 3]])) == 0.0

    def test_models_that_say_the_same(self) -> None:
        column = np.array([0.0, 1, 1, 0, 1])
        assert cronbach_alpha(np.column_stack([column] * 4)) == pytest.approx(1.0)

    def test_nothing_to_tell(self) -> None:
        assert cronbach_alpha(np.ones((5, 3))) == 0.0
        assert cronbach_alpha(np.array([[0.0], [1.0], [1.0]])) == 0.0

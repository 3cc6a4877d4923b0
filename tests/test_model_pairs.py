"""From rows of many models to the pairs that a router is measured on."""

from typing import Any

import numpy as np
import pytest
from thriftroute.data.schema import Comparison, PromptScore, Row
from thriftroute.errors import EvaluationError
from thriftroute.research.model_pairs import (
    ModelMatrix,
    choose_pairs,
    join_pairs,
    model_matrix,
    vote_pairs,
)
from thriftroute.tests.helpers.matrices import matrix_of


class TestMatrix:
    def test_rows_become_columns_and_what_is_missing_is_nan(self) -> None:
        rows: list[Row] = [
            PromptScore("p", "a", 1.0),
            PromptScore("q", "b", 0.5),
            PromptScore("p", "b", 0.0, weight=1.0),
            PromptScore("p", "b", 1.0, weight=3.0),
        ]
        matrix = model_matrix(rows)
        assert (matrix.prompts, matrix.models) == (["p", "q"], ("a", "b"))
        np.testing.assert_array_equal(matrix.scores, [[1.0, 0.75], [np.nan, 0.5]])
        assert matrix.messages is None
        np.testing.assert_array_equal(matrix.column("b"), [0.75, 0.5])
        with pytest.raises(EvaluationError, match="'c'; there are: a, b"):
            matrix.column("c")

    def test_comparisons_and_nothing_are_refused(self) -> None:
        with pytest.raises(EvaluationError, match="vote_pairs"):
            model_matrix([Comparison("p", "a", "b", 1.0)])
        with pytest.raises(EvaluationError, match="no rows"):
            model_matrix([])


class TestChoice:
    def test_the_strong_model_is_the_better_one_by_the_gap(self) -> None:
        matrix = matrix_of()
        chosen = choose_pairs(matrix, 10)
        assert len(chosen.pairs) == 10 <= chosen.eligible <= 28
        assert len({(pair.strong, pair.weak) for pair in chosen.pairs}) == 10
        for pair in chosen.pairs:
            assert pair.gap >= 0.05
            np.testing.assert_array_equal(pair.strong_score, matrix.column(pair.strong)[pair.index])
            np.testing.assert_array_equal(pair.weak_score, matrix.column(pair.weak)[pair.index])

    def test_the_choice_is_deterministic_and_depends_on_the_seed(self) -> None:
        first, again, other = (
            [(p.strong, p.weak) for p in choose_pairs(matrix_of(), 10, seed=seed).pairs]
            for seed in (0, 0, 1)
        )
        assert first == again != other

    def test_gaps_and_abilities_are_spread(self) -> None:
        matrix = matrix_of(models=30)
        all_of_them = choose_pairs(matrix, 1)
        every = choose_pairs(matrix, all_of_them.eligible).pairs
        for seed in range(5):
            pairs = choose_pairs(matrix, 20, seed=seed).pairs
            # Four bands of gap, five pairs from each; each band from the weakest to the strongest.
            edges = np.quantile([pair.gap for pair in every], [0.25, 0.5, 0.75])
            bands = np.searchsorted(edges, [pair.gap for pair in pairs])
            assert np.abs(np.bincount(bands, minlength=4) - 5).max() <= 1
            abilities = [pair.strong_score.mean() for pair in pairs]
            middle = np.median([pair.strong_score.mean() for pair in every])
            assert 6 <= np.sum(abilities < middle) <= 14

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 11])
    def test_any_count_is_met(self, count: int) -> None:
        assert len(choose_pairs(matrix_of(models=6), count).pairs) == count

    def test_a_pair_is_judged_on_the_prompts_that_both_answered(self) -> None:
        scores = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, np.nan], [np.nan, 1.0], [1.0, 0.0]])
        matrix = ModelMatrix(list("abcde"), ("x", "y"), scores)
        (pair,) = choose_pairs(matrix, 1, min_prompts=3, min_z=0).pairs
        assert (pair.strong, pair.weak) == ("x", "y")
        assert pair.index.tolist() == [0, 1, 4]
        assert pair.gap == pytest.approx(2 / 3)

    def test_a_gap_that_is_just_met_counts(self) -> None:
        weak = np.repeat([1.0, 0.0], [38, 2])
        matrix = ModelMatrix([str(i) for i in range(40)], ("x", "y"), np.stack((weak**0, weak), 1))
        assert choose_pairs(matrix, 1, min_gap=0.05, min_z=0).eligible == 1

    def test_a_gap_that_may_be_none_is_left_out(self) -> None:
        weak = np.repeat([1.0, 0.0], [36, 4])
        matrix = ModelMatrix([str(i) for i in range(40)], ("x", "y"), np.stack((weak**0, weak), 1))
        # A gap of 0.1; four of 40 prompts make it: its standard error is 0.3038 / sqrt(40).
        (pair,) = choose_pairs(matrix, 1, min_z=2.0).pairs
        assert pair.error == pytest.approx(0.0480, abs=1e-4)
        with pytest.raises(EvaluationError, match="3 standard errors"):
            choose_pairs(matrix, 1)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (
                {"count": 29},
                r"pairs: \d+ of 28 have 30 common prompts and a gap of 0.05 .* than 29",
            ),
            ({"count": 1, "min_gap": 0.99}, r"0 of 28 .* gap of 0.99 .* fewer than 1"),
            ({"count": 1, "min_prompts": 121}, "0 of 28 have 121 common prompts"),
            ({"count": 0}, r"count 0.*at least 1"),
            ({"min_gap": 0.0}, "above 0"),
            ({"min_z": -1.0}, "min_z -1"),
            ({"min_prompts": 1}, "min_prompts 1"),
        ],
    )
    def test_too_few_pairs_say_how_many_there_are(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(EvaluationError, match=says):
            choose_pairs(matrix_of(), **options)


class TestVotes:
    def rows(self) -> list[Row]:
        # b beats a on the first 26 prompts, loses on 4; each prompt once more, turned and tied.
        rows: list[Row] = []
        for i in range(30):
            rows.append(Comparison(f"p{i}", "a", "b", 0.0 if i < 26 else 1.0, weight=3.0))
            rows.append(Comparison(f"p{i}", "b", "a", 0.5))
        return rows

    def test_strong_is_who_wins_more_and_rewards_are_shares(self) -> None:
        chosen = vote_pairs(self.rows())
        (pair,) = chosen.pairs
        assert (pair.strong, pair.weak, chosen.eligible) == ("b", "a", 1)
        expected = np.where(np.arange(30) < 26, 3.5 / 4, 0.5 / 4)
        np.testing.assert_allclose(pair.strong_score, expected)
        np.testing.assert_allclose(pair.weak_score, 1 - expected)

    def test_the_order_of_the_two_models_in_a_row_does_not_matter(self) -> None:
        turned: list[Row] = [
            Comparison(row.prompt, row.model_b, row.model_a, 1 - row.score_a, weight=row.weight)
            for row in self.rows()
            if isinstance(row, Comparison)
        ]
        (first,), (second,) = vote_pairs(self.rows()).pairs, vote_pairs(turned).pairs
        assert (first.strong, first.weak) == (second.strong, second.weak)
        np.testing.assert_allclose(first.strong_score, second.strong_score)

    def test_all_pairs_that_are_far_enough_apart_are_taken(self) -> None:
        even: list[Row] = [Comparison(f"p{i}", "a", "c", i % 2) for i in range(30)]
        assert [p.weak for p in vote_pairs(self.rows() + even).pairs] == ["a"]
        with pytest.raises(EvaluationError, match="1 of 2 have 30"):
            vote_pairs(self.rows() + even, 2)
        with pytest.raises(EvaluationError, match="choose_pairs"):
            vote_pairs([PromptScore("p", "a", 1.0)])


class TestJoin:
    def test_pairs_of_several_sets_keep_their_prompts(self) -> None:
        talk = ({"role": "system", "content": "s"}, {"role": "user", "content": "q 1"})
        first = choose_pairs(matrix_of(), 2)
        rows: list[Row] = [
            PromptScore(prompt, model, score, messages=talk if prompt == "q 1" else None)
            for prompt in [f"q {i}" for i in range(30)] + first.prompts[:10]
            for model, score in (("x", 1.0), ("y", 0.0))
        ]
        second = choose_pairs(model_matrix(rows), 1)
        joined = join_pairs([first, second])
        assert len(joined.prompts) == len(set(joined.prompts)) == 120 + 30
        assert joined.eligible == first.eligible + 1
        before = [(one, pair) for one in (first, second) for pair in one.pairs]
        assert len(joined.pairs) == len(before) == 3
        for pair, (one, old) in zip(joined.pairs, before, strict=True):
            assert (pair.strong, pair.weak) == (old.strong, old.weak)
            assert joined.inputs(pair) == one.inputs(old)
            np.testing.assert_array_equal(pair.strong_score, old.strong_score)
        assert list(talk) in joined.inputs(joined.pairs[2])

    def test_nothing_is_refused(self) -> None:
        with pytest.raises(EvaluationError, match="no sets"):
            join_pairs([])

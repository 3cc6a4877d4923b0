"""The scores of both sides of each comparison, in the table that mf's abilities come from."""

import numpy as np
import pytest
from thriftroute.data.schema import Comparison, PromptScore, Row
from thriftroute.data.tables import ComparisonTable, both_tables
from thriftroute.tests.helpers.tables import comparison_table

STRONG, WEAK = ("s1", "s2"), ("w1", "w2")
SCORES = {
    "p": {"s1": 1.0, "s2": 0.25, "w1": 0.5, "w2": 0.25},
    "q": {"s1": 0.0, "w2": 0.75, "other": 1.0},
    "r": {"s2": 0.0, "w1": 0.0},
}


def scores() -> list[Row]:
    return [
        PromptScore(prompt, model, score)
        for prompt, of_model in SCORES.items()
        for model, score in of_model.items()
    ]


def columns(table: ComparisonTable) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """(prompt, a, b) -> (score of a, score of b, a wins)."""
    found = {
        (table.prompts[i], table.models[a], table.models[b]): (float(s), float(w), float(win))
        for i, a, b, s, w, win in zip(
            table.prompt_index, table.a, table.b, table.strong_score, table.weak_score, table.win,
            strict=True,
        )
    }  # fmt: skip
    assert len(found) == table.m
    return found


def test_of_scores_they_are_the_models_own() -> None:
    table = comparison_table(scores(), STRONG, WEAK)
    assert columns(table) == {
        (prompt, a, b): (of[a], of[b], float(of[a] > of[b]))
        for prompt, of in SCORES.items()
        for a in STRONG
        for b in WEAK
        if a in of and b in of
    }
    assert (table.m, table.strong_score.dtype, table.weak_score.dtype) == (6, "float32", "float32")


def test_of_items_that_share_a_prompt_each_has_its_own() -> None:
    rows = [
        PromptScore("same", model, score, item=item)
        for item, pair in (("1", (1.0, 0.5)), ("2", (0.0, 0.25)))
        for model, score in zip(("s1", "w1"), pair, strict=True)
    ]
    table = comparison_table(rows, "s1", "w1")
    assert sorted(zip(table.strong_score, table.weak_score, strict=True)) == [(0, 0.25), (1, 0.5)]


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.25, 0.0])
def test_of_votes_they_are_the_share_and_what_is_left(share: float) -> None:
    rows: list[Row] = [
        Comparison("p", "s1", "w1", share),
        Comparison("q", "w1", "s1", 1 - share),
        Comparison("q", "s1", "s2", 1.0),
        Comparison("q", "w2", "s2", 1.0),
    ]
    found = columns(comparison_table(rows, STRONG, ("w1", "w2")))
    expected = (share, 1 - share, float(share > 0.5))
    assert found == {
        ("p", "s1", "w1"): expected,
        ("q", "s1", "w1"): expected,
        ("q", "s2", "w2"): (0.0, 1.0, 0.0),
    }


def test_equal_scores_are_the_ties() -> None:
    rows: list[Row] = [
        *scores(),
        Comparison("v", "w2", "s1", 0.5),
        Comparison("w", "s1", "w2", 0.9),
    ]
    table = comparison_table(rows, STRONG, WEAK)
    tied = {key for key, (strong, weak, _) in columns(table).items() if strong == weak}
    assert tied == {("p", "s2", "w2"), ("r", "s2", "w1"), ("v", "s1", "w2")}
    won = table.strong_score > table.weak_score
    np.testing.assert_array_equal(table.win, won.astype(np.float32))


def test_a_subset_keeps_them_beside_their_comparisons() -> None:
    rows: list[Row] = [*scores(), Comparison("v", "w2", "s1", 0.25)]
    table = comparison_table(rows, STRONG, WEAK)
    whole = columns(table)
    keep = np.array([prompt in ("v", "q") for prompt in table.prompts])
    for chosen in (keep, np.flatnonzero(keep)[::-1]):
        part = table.subset(chosen)
        assert columns(part) == {key: value for key, value in whole.items() if key[0] in "vq"}
    assert columns(table.subset(np.zeros(table.n, np.bool_))) == {}


def test_means_by_prompt_are_those_of_the_pairs() -> None:
    """Both tables of one reading tell the same of each prompt."""
    pairs, table = both_tables(scores(), STRONG, WEAK)
    assert pairs.prompts == table.prompts
    for column, mean in ((table.strong_score, pairs.strong), (table.weak_score, pairs.weak)):
        counts = np.bincount(table.prompt_index)
        np.testing.assert_allclose(np.bincount(table.prompt_index, column) / counts, mean)

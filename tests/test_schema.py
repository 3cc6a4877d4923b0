import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from thriftroute.data.schema import (
    Comparison,
    PromptScore,
    parse_messages,
    parse_outcome,
    render,
)
from thriftroute.data.tables import ComparisonTable, pair_table
from thriftroute.errors import DataError
from thriftroute.tests.helpers.tables import comparison_table

NAN = float("nan")


def score(prompt: str, model: str, value: float, **extra: Any) -> PromptScore:
    return PromptScore(prompt=prompt, model=model, score=value, **extra)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", 1.0), ("model_b", 0.0), ("tie", 0.5), ("TIE (bothbad)", 0.5), (" Model_A ", 1.0),
        (0.25, 0.25), ("0.25", 0.25), (1, 1.0), (0, 0.0), (np.float32(0.5), 0.5),
    ],
)  # fmt: skip
def test_outcome_in_every_common_form(given: object, expected: float) -> None:
    assert parse_outcome(given) == expected


@pytest.mark.parametrize("given", ["c", "", 1.5, -0.1, NAN, "nan", None, True, [1]])
def test_outcome_refused(given: object) -> None:
    with pytest.raises(DataError, match="a number in") as caught:
        parse_outcome(given, "winner")
    assert caught.value.field == "winner"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""), ("prompt", " \n"), ("prompt", 3), ("prompt", "\ud800 broken"),
        ("model_a", ""), ("model_b", "m1"), ("score_a", NAN), ("score_a", 1.01),
        ("score_a", "1"), ("weight", 0), ("weight", float("inf")), ("tokens_a", -1),
        ("cost_b", NAN),
    ],
)  # fmt: skip
def test_comparison_refuses_a_bad_field_by_name(field: str, value: object) -> None:
    good = {"prompt": "p", "model_a": "m1", "model_b": "m2", "score_a": 1.0}
    assert Comparison(**good).score_a == 1.0
    with pytest.raises(DataError) as caught:
        Comparison(**{**good, field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", "\t"), ("model", ""), ("score", NAN), ("score", -0.5), ("cost_usd", -1.0)],
)
def test_prompt_score_refuses_a_bad_field_by_name(field: str, value: object) -> None:
    good = {"prompt": "p 😀 你好 \0", "model": "m1", "score": 0.5}
    assert PromptScore(**good).prompt == good["prompt"]
    with pytest.raises(DataError) as caught:
        PromptScore(**{**good, field: value})
    assert caught.value.field == field


def test_messages_drop_the_logged_answer_and_keep_tools() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "done"},
    ]
    parsed = parse_messages(json.dumps(messages))
    assert [m["role"] for m in parsed] == ["system", "user", "assistant", "tool"]
    assert render(parsed) == "one"


def test_render_joins_user_turns_and_text_parts() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": "again"}]
    assert render(messages) == "look\n\nagain"


@pytest.mark.parametrize(
    "bad",
    ["[", "{}", [], [{"content": "x"}], [{"role": "assistant", "content": "x"}], 5,
     [{"role": "user", "content": 5}]],
)  # fmt: skip
def test_messages_refused(bad: object) -> None:
    with pytest.raises(DataError) as caught:
        parse_messages(bad)
    assert caught.value.field == "messages"


def test_pair_table_of_scores_counts_ties_for_weak() -> None:
    rows = [
        score("q1", "S", 1.0, category="math", source="here", cost_usd=0.5),
        score("q1", "W", 0.0, output_tokens=7),
        score("q2", "W", 0.5), score("q2", "S", 0.5),
        score("q3", "S", 0.2), score("q3", "W", 0.4),
        score("q4", "S", 1.0), score("q1", "other", 1.0),
    ]  # fmt: skip
    table = pair_table(iter(rows), "S", "W")
    assert table.prompts == ["q1", "q2", "q3"]
    assert table.win.tolist() == [1.0, 0.0, 0.0]
    assert table.strong.tolist() == [1.0, 0.5, 0.2]
    assert table.weak.tolist() == [0.0, 0.5, 0.4]
    assert table.weight.tolist() == [1.0, 1.0, 1.0]
    assert (table.source[0], table.category[0]) == ("here", "math")
    np.testing.assert_array_equal(table.strong_cost, [0.5, NAN, NAN])
    np.testing.assert_array_equal(table.weak_tokens, [7, NAN, NAN])
    usage = table.usage
    assert (usage.rows, usage.used, usage.other_model, usage.unpaired) == (8, 6, 1, 1)
    assert usage.unpaired_prompts == 1
    assert "1 unpaired" in str(usage)


def test_tiers_compare_every_strong_with_every_weak() -> None:
    rows = [score("q", m, v) for m, v in [("S1", 1.0), ("S2", 0.5), ("W1", 0.5), ("W2", 0.0)]]
    table = pair_table(rows, ["S1", "S2"], ["W1", "W2"])
    # S1 beats both; S2 ties with W1 and beats W2.
    assert table.win.tolist() == [0.75]
    assert (table.strong[0], table.weak[0]) == (0.75, 0.25)


def test_win_agrees_with_brute_force_on_random_weighted_rows() -> None:
    rng = np.random.default_rng(0)
    rows = [
        score(f"q{rng.integers(6)}", f"m{rng.integers(4)}", rng.integers(4) / 3,
              weight=float(rng.integers(1, 4)), item=f"{rng.integers(2)}")
        for _ in range(300)
    ]  # fmt: skip
    table = pair_table(rows, ["m0", "m1"], ["m2", "m3"])
    for i, prompt in enumerate(table.prompts):
        win = weight = 0.0
        for item in ("0", "1"):
            group = [r for r in rows if r.prompt == prompt and r.item == item]
            strong = [r for r in group if r.model in ("m0", "m1")]
            weak = [r for r in group if r.model in ("m2", "m3")]
            pairs = [(s.score > w.score, s.weight * w.weight) for s in strong for w in weak]
            item_weight = sum(r.weight for r in group) / len(group)
            win += item_weight * sum(b * w for b, w in pairs) / sum(w for _, w in pairs)
            weight += item_weight
        assert table.win[i] == pytest.approx(win / weight)
        assert table.weight[i] == pytest.approx(weight)


def test_items_that_share_a_prompt_are_not_mixed() -> None:
    rows = [
        score("q", "S", 1.0, item="1"), score("q", "W", 1.0, item="1"),
        score("q", "S", 0.0, item="2"), score("q", "W", 0.0, item="2"),
    ]  # fmt: skip
    table = pair_table(rows, "S", "W")
    assert table.win.tolist() == [0.0]  # mixed, S of item 1 would beat W of item 2
    assert table.weight.tolist() == [2.0]


def test_items_that_merely_number_rows_do_not_part_a_prompt() -> None:
    rows = [score("q", "S", 1.0, item="1"), score("q", "W", 0.0, item="2")]
    table = pair_table(rows, "S", "W")
    assert table.win.tolist() == [1.0]


def test_pair_table_of_comparisons_in_either_order() -> None:
    rows = [
        Comparison("q1", "S", "W", 1.0, tokens_a=10, cost_b=0.1),
        Comparison("q1", "W", "S", 1.0, tokens_b=30),
        Comparison("q2", "W", "S", 0.25, weight=3.0),
        Comparison("q3", "S", "W", 0.5),
        Comparison("q3", "S", "S2", 1.0),
        Comparison("q3", "S", "x", 1.0),
    ]
    table = pair_table(rows, ["S", "S2"], "W")
    assert table.prompts == ["q1", "q2", "q3"]
    assert table.win.tolist() == [0.5, 1.0, 0.0]
    assert table.strong.tolist() == [0.5, 0.75, 0.5]
    np.testing.assert_allclose(table.strong + table.weak, 1.0)
    assert table.weight.tolist() == [2.0, 3.0, 1.0]
    np.testing.assert_array_equal(table.strong_tokens, [20, NAN, NAN])
    assert (table.usage.same_tier, table.usage.other_model, table.usage.used) == (1, 1, 4)


def test_both_kinds_of_row_merge_on_one_prompt() -> None:
    rows = [score("q", "S", 1.0), score("q", "W", 0.0), Comparison("q", "S", "W", 0.0)]
    table = pair_table(rows, "S", "W")
    assert (table.win.tolist(), table.weight.tolist()) == ([0.5], [2.0])
    assert table.usage.used == 3


def test_a_model_that_does_not_occur_is_answered_with_those_that_do() -> None:
    rows = [score("q", m, 1.0) for m in ("zeta", "mixtral-8x7b", "gpt-4o-2024-05-13")]
    with pytest.raises(DataError, match=r"'gpt-4o'.*: gpt-4o-2024-05-13, .*zeta"):
        pair_table(rows, "gpt-4o", "zeta")


@pytest.mark.parametrize(
    ("strong", "weak", "match"),
    [("S", "S", "both tiers"), ([], "W", "strong tier"), ("S", " ", "weak tier")],
)
def test_tiers_that_cannot_be(strong: list[str] | str, weak: list[str] | str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        pair_table([score("q", "S", 1.0), score("q", "W", 1.0)], strong, weak)


@pytest.mark.parametrize("build", [pair_table, comparison_table])
def test_nothing_to_build_from(build: Callable[..., object]) -> None:
    with pytest.raises(DataError, match="no rows"):
        build([], "S", "W")
    with pytest.raises(DataError, match="same prompt"):
        build([score("q1", "S", 1.0), score("q2", "W", 1.0)], "S", "W")


def test_messages_come_back_as_inputs() -> None:
    turns = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    rows = [
        score("a\n\nb", "S", 1.0, messages=turns), score("a\n\nb", "W", 0.0, messages=turns),
        score("c", "S", 1.0), score("c", "W", 0.0),
    ]  # fmt: skip
    table = pair_table(rows, "S", "W")
    assert table.inputs() == [list(turns), "c"]
    assert table.subset(np.array([False, True])).inputs() == ["c"]
    plain = pair_table(rows[2:], "S", "W")
    assert plain.messages is None


def test_subset_by_mask_and_by_index() -> None:
    rows = [score(f"q{i}", m, v) for i in range(4) for m, v in (("S", i / 4), ("W", 0.0))]
    table = pair_table(rows, "S", "W")
    assert table.subset(table.win > 0).prompts == ["q1", "q2", "q3"]
    part = table.subset(np.array([3, 0]))
    assert (part.prompts, part.strong.tolist()) == (["q3", "q0"], [0.75, 0.0])
    with pytest.raises(DataError, match="mask of shape"):
        table.subset(np.array([True]))


def test_comparison_table_holds_all_pairs() -> None:
    rows = [score("q", m, v) for m, v in [("S1", 1.0), ("S2", 0.5), ("W1", 0.5), ("W2", 0.0)]]
    rows += [score("lonely", "S1", 1.0), Comparison("v", "W2", "S2", 0.0, weight=2.0)]
    table = comparison_table(rows, ["S1", "S2"], ["W1", "W2"])
    assert table.prompts == ["q", "v"]
    found = {
        (table.prompts[p], table.models[a], table.models[b]): (float(w), float(g))
        for p, a, b, w, g in zip(
            table.prompt_index, table.a, table.b, table.win, table.weight, strict=True
        )
    }
    assert found == {
        ("q", "S1", "W1"): (1.0, 1.0),
        ("q", "S1", "W2"): (1.0, 1.0),
        ("q", "S2", "W1"): (0.0, 1.0),
        ("q", "S2", "W2"): (1.0, 1.0),
        ("v", "S2", "W2"): (1.0, 2.0),
    }
    assert (table.n, table.m, table.usage.unpaired) == (2, 5, 1)
    part = table.subset(np.array([False, True]))
    assert isinstance(part, ComparisonTable)
    assert (part.prompts, part.prompt_index.tolist(), part.m) == (["v"], [0], 1)


def test_comparison_table_agrees_with_pair_table_on_one_pair() -> None:
    rng = np.random.default_rng(1)
    rows = [score(f"q{i}", m, rng.integers(3) / 2) for i in range(50) for m in ("S", "W")]
    pairs, many = pair_table(rows, "S", "W"), comparison_table(rows, "S", "W")
    win = np.zeros(many.n)
    win[many.prompt_index] = many.win
    assert pairs.prompts == many.prompts
    np.testing.assert_array_equal(win, pairs.win)

"""Cheap features: what each name means is pinned, since old bundles were trained on it."""

import re
from math import log1p

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.router.features import FEATURES, features, unknown_features

# Text, tokens, and what each feature must give, counted by hand; what is not named is 0. A number
# that changes here changes what every bundle that was ever trained reads: give it a new name.
GOLDEN: dict[str, tuple[str, int, dict[str, float]]] = {
    "plain": (
        "What is 12.5% of 1,250? Show the working.",
        14,
        {
            "tokens": log1p(14),
            "characters": log1p(41),
            "word_length": 22 / 6 / 10,
            "tokens_per_word": log1p(14 / 6),
            "numbers": log1p(2),
            "distinct_numbers": log1p(2),
            "long_numbers": log1p(2),
            "digit_share": 7 / 41,
            "upper_share": 2 / 41,
            "punctuation_share": 1 / 41,
            "sentences": log1p(2),
            "words_per_sentence": log1p(3),
            "quantity_words": log1p(1),
            "question_mark": 1.0,
            "starts_with_what": 1.0,
        },
    ),
    "code": (
        "Write a function:\n```python\ndef area(r):\n    return {'a': r == 2};\n```",
        30,
        {
            "tokens": log1p(30),
            "characters": log1p(70),
            "word_length": 36 / 10 / 10,
            "tokens_per_word": log1p(3),
            "numbers": log1p(1),
            "distinct_numbers": log1p(1),
            "digit_share": 1 / 70,
            "upper_share": 1 / 70,
            "punctuation_share": 6 / 70,
            "sentences": log1p(1),
            "words_per_sentence": log1p(10),
            "lines": log1p(4),
            "quotes": log1p(2),
            "equals_signs": log1p(2),
            "code": log1p(9),
            "write": 1.0,
        },
    ),
    "latex": (
        r"Prove that $\frac{1}{2} + x^2 = 10^{400}$ if $x_{1} > 0$, and explain WHY.",
        45,
        {
            "tokens": log1p(45),
            "characters": log1p(74),
            "word_length": 30 / 9 / 10,
            "tokens_per_word": log1p(5),
            "numbers": log1p(7),
            "distinct_numbers": log1p(5),
            "long_numbers": log1p(1),
            "digit_share": 10 / 74,
            "upper_share": 4 / 74,
            "punctuation_share": 1 / 74,
            "sentences": log1p(1),
            "words_per_sentence": log1p(9),
            "equals_signs": log1p(1),
            "logic_words": log1p(1),
            "code": log1p(8),
            "latex": log1p(8),
            "explain": 1.0,
        },
    ),
    "chinese": (
        "证明 3 个奇数之和是奇数。为什么？",
        17,
        {
            "tokens": log1p(17),
            "characters": log1p(18),
            "word_length": 13 / 3 / 10,
            "tokens_per_word": 1.8,  # its cap; log(1 + 17 / 3) else
            "numbers": log1p(1),
            "distinct_numbers": log1p(1),
            "digit_share": 1 / 18,
            "non_ascii_share": 0.03,  # its cap; 15 / 18 else
            "sentences": log1p(2),
            "words_per_sentence": log1p(1.5),
            "question_mark": 1,
        },
    ),
    "options": (
        'How many are left?\nA. 3\nB) four\n (C) "none" of them\n12: all',
        24,
        {
            "tokens": log1p(24),
            "characters": log1p(59),
            "word_length": 34 / 12 / 10,
            "tokens_per_word": log1p(2),
            "numbers": log1p(2),
            "distinct_numbers": log1p(2),
            "digit_share": 3 / 59,
            "upper_share": 4 / 59,
            "punctuation_share": 6 / 59,
            "options": log1p(4),
            "sentences": log1p(2),
            "words_per_sentence": log1p(6),
            "lines": log1p(4),
            "quotes": log1p(2),
            "quantity_words": log1p(1),
            "logic_words": log1p(2),
            "question_mark": 1.0,
            "how": 1.0,
        },
    ),
    "empty": ("", 0, {"sentences": log1p(1)}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_pinned_values(name: str) -> None:
    text, tokens, expected = GOLDEN[name]
    got = dict(zip(FEATURES, features(text, tokens).tolist(), strict=True))
    assert got == pytest.approx({name: expected.get(name, 0.0) for name in FEATURES}, abs=1e-6)


def test_every_feature_is_pinned_at_a_value_that_is_not_zero() -> None:
    seen = {name for _, _, expected in GOLDEN.values() for name in expected}
    assert seen == set(FEATURES)


def test_the_names_in_their_order() -> None:
    """A bundle names its own; but a new name comes last, so that blocks of columns stay."""
    assert FEATURES[:4] == ("tokens", "characters", "word_length", "tokens_per_word")
    assert FEATURES[-4:] == ("how", "explain", "write", "starts_with_what")
    assert len(set(FEATURES)) == len(FEATURES) == 26


def test_order_is_that_of_the_names() -> None:
    text, tokens, _ = GOLDEN["latex"]
    names = ["latex", "tokens", "digit_share"]
    got = features(text, tokens, names)
    assert got.dtype == np.float32
    every = dict(zip(FEATURES, features(text, tokens), strict=True))
    assert got.tolist() == [every[name] for name in names]
    assert features(text, tokens, []).shape == (0,)


def test_tokens_count_whatever_the_text_is() -> None:
    few, many = features("abc", 1), features("abc", 500)
    differ = {name for name, a, b in zip(FEATURES, few, many, strict=True) if a != b}
    assert differ == {"tokens", "tokens_per_word"}


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("how", "Tell me how.", "Show me."),
        ("explain", "EXPLAINED, please", "unexplained"),
        ("write", "Now write it", "rewrites it"),
        ("starts_with_what", " \nwhat is it", "so what is it"),
        ("question_mark", "a? b", "a b"),
        ("options", "(b) two", "see (b) two"),
        ("options", "\t3. two", "333. two"),
        ("code", "class Point", "a classic point"),
        ("code", "import os", "important"),
        ("quantity_words", "more than two", "more, than two"),
        ("logic_words", "AT LEAST one", "at the least"),
        ("latex", r"\alpha", r"1 \ 2"),
        ("numbers", "1.5", "one"),
    ],
)
def test_what_counts_and_what_does_not(name: str, yes: str, no: str) -> None:
    assert features(yes, 3, [name])[0] > 0
    assert features(no, 3, [name])[0] == 0


def test_unknown_names() -> None:
    assert unknown_features(FEATURES) == []
    assert unknown_features(["tokens", "colour", "latex", "mood"]) == ["colour", "mood"]
    with pytest.raises(KeyError, match="colour"):
        features("abc", 1, ["tokens", "colour"])


@settings(max_examples=200)
@given(text=st.text(st.characters(codec=None), max_size=200), tokens=st.integers(0, 10_000))
def test_any_text_has_values_of_the_order_of_one(text: str, tokens: int) -> None:
    got = features(text, tokens)
    assert got.shape == (len(FEATURES),)
    assert np.isfinite(got).all()
    assert (got >= 0).all()
    shares = [name for name in FEATURES if name.endswith("_share")]
    assert (features(text, tokens, shares) <= 1).all()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("More than half, at least; less than a third at most.", {"quantity_words": log1p(4)}),
        ("Whyever not? EXPLAINED how: unexplained", {"explain": 1.0, "how": 1.0}),
        ("rewrite it. overwrite_it = write_it", {"write": 0.0, "equals_signs": log1p(1)}),
        ("x ==> y; a === b", {"code": log1p(3), "equals_signs": log1p(5)}),
        ("don't re-enter Ünder-way’s -x- 12,500.25 ²", {"numbers": log1p(1)}),
        ("more  than at\nleast 5% not if-then", {"quantity_words": log1p(1)}),
        ("more  than at\nleast 5% not if-then", {"logic_words": log1p(3)}),
    ],
)
def test_words_are_whole_and_counted_once(text: str, named: dict[str, float]) -> None:
    values = dict(zip(FEATURES, features(text, 9).tolist(), strict=True))
    assert {name: values[name] for name in named} == pytest.approx(named, abs=1e-6)


_PIECES = ["ab", "Why", "twice", "if", "don't", "a-b", "x1", "_y", " ", "\n", "\t", "\xa0", "\x1c",
           "é", "naïve", "١٢", "3", "4.5", "6,7", ".", ",", "²", "Σ", "’", "漢字", "K", "İ", "%",
           "return", "def f(", "==>", "function"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
def test_words_and_numbers_are_those_of_one_pattern(text: str) -> None:
    """However a text is taken apart: ASCII beside other letters, spaces and digits."""
    code = re.findall(
        r"```|\bdef \w+\(|\breturn\b|\bfunction\b|\bimport\b|==|=>|\bclass \w+|[{};]", text
    )
    words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text)
    numbers = re.findall(r"\d+(?:[.,]\d+)*", text)
    terms = re.findall(r"\w+", text.lower())
    expected = {
        "tokens_per_word": min(log1p(7 / max(len(words), 1)), 1.8),
        "word_length": min(sum(map(len, words)) / max(len(words), 1) / 10, 0.7),
        "numbers": min(log1p(len(numbers)), 4.4),
        "distinct_numbers": min(log1p(len(set(numbers))), 3.7),
        "long_numbers": min(log1p(sum(len(number) > 2 for number in numbers)), 3.6),
        "quantity_words": min(log1p(terms.count("twice") + text.count("%")), 2.7),
        "logic_words": min(log1p(terms.count("if")), 2.9),
        "code": min(log1p(len(code)), 3.8),
        "non_ascii_share": min(sum(not c.isascii() for c in text) / max(len(text), 1), 0.03),
    }
    assert features(text, 7, list(expected)) == pytest.approx(list(expected.values()), rel=1e-5)

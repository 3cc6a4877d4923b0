"""Cheap features of a prompt's text, which go into the graph beside the tokens.

What an encoder of 160 tokens does not see or keep: how long the whole text is, how many numbers it
holds, whether it is code or LaTeX, how many options it offers. Counts go through log(1 + count), so
that all values are of the order of one; shares lie in [0, 1]. No value goes beyond its cap, which
lies where the values of English prompts end: a head is linear, and a prompt in another script would
else be as far out as no prompt that it was fitted on.

A bundle's manifest lists the names that its graph expects, in order. What a name means must never
change (old bundles were trained on it, and tests/test_features.py pins values): a better idea gets
a new name.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_OPTION = re.compile(r"^[ \t]*\(?(?:[A-Ja-j]|\d{1,2})[.):][ \t]", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|[。！？]")
_QUANTITY = re.compile(
    r"\b(?:percent|percentage|half|twice|third|quarter|times|ratio|fraction|average|total"
    r"|remaining|left|each|per|more than|less than|double|triple)\b|%",
    re.IGNORECASE,
)
_LOGIC = re.compile(
    r"\b(?:if|then|not|except|unless|neither|nor|all|none|some|only|must|at least|at most"
    r"|either)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```|\bdef \w+\(|\breturn\b|\bfunction\b|\bimport\b|[{};]|==|=>|\bclass \w+")
_LATEX = re.compile(r"\\[a-zA-Z]+|\$|\^|_\{")
_EXPLAIN = re.compile(r"\b(?:why|explain)", re.IGNORECASE)
_HOW = re.compile(r"\bhow\b", re.IGNORECASE)
_WRITE = re.compile(r"\bwrite\b", re.IGNORECASE)
_WHAT = re.compile(r"\s*what\b", re.IGNORECASE)
_PUNCTUATION = frozenset(',;:()"')


@dataclass(frozen=True, slots=True)
class _Text:
    """What the features are made of: the text, its tokens by the encoder's tokenizer, and parts
    that several features need."""

    text: str
    tokens: int
    words: list[str]
    numbers: list[str]
    sentences: int

    @property
    def n(self) -> int:
        return max(len(self.text), 1)


def _log_count(pattern: re.Pattern[str]) -> Callable[[_Text], float]:
    return lambda t: math.log1p(sum(1 for _ in pattern.finditer(t.text)))


def _share(test: Callable[[str], bool]) -> Callable[[_Text], float]:
    return lambda t: sum(map(test, t.text)) / t.n


def _flag(pattern: re.Pattern[str]) -> Callable[[_Text], float]:
    return lambda t: float(pattern.search(t.text) is not None)


# How each is made of a text, and its cap: the 99th percentile of the public training sources,
# rounded; for flags there is no need.
_FEATURES: Mapping[str, tuple[Callable[[_Text], float], float]] = {
    "tokens": (lambda t: math.log1p(t.tokens), 7.0),
    "characters": (lambda t: math.log1p(len(t.text)), 8.4),
    "word_length": (lambda t: sum(map(len, t.words)) / max(len(t.words), 1) / 10, 0.7),
    "tokens_per_word": (lambda t: math.log1p(t.tokens / max(len(t.words), 1)), 1.8),
    "numbers": (lambda t: math.log1p(len(t.numbers)), 4.4),
    "distinct_numbers": (lambda t: math.log1p(len(set(t.numbers))), 3.7),
    "long_numbers": (lambda t: math.log1p(sum(len(number) > 2 for number in t.numbers)), 3.6),
    "digit_share": (_share(str.isdigit), 0.27),
    "upper_share": (_share(str.isupper), 0.14),
    "non_ascii_share": (_share(lambda c: not c.isascii()), 0.03),
    "punctuation_share": (_share(_PUNCTUATION.__contains__), 0.15),
    "options": (_log_count(_OPTION), 2.6),
    "sentences": (lambda t: math.log1p(t.sentences), 3.7),
    "words_per_sentence": (lambda t: math.log1p(len(t.words) / t.sentences), 3.8),
    "lines": (lambda t: math.log1p(t.text.count("\n")), 4.2),
    "quotes": (lambda t: math.log1p(t.text.count('"') + t.text.count("'")), 3.2),
    "equals_signs": (lambda t: math.log1p(t.text.count("=")), 3.1),
    "quantity_words": (_log_count(_QUANTITY), 2.7),
    "logic_words": (_log_count(_LOGIC), 2.9),
    "code": (_log_count(_CODE), 3.8),
    "latex": (_log_count(_LATEX), 4.1),
    "question_mark": (lambda t: float("?" in t.text or "？" in t.text), math.inf),
    "how": (_flag(_HOW), math.inf),
    "explain": (_flag(_EXPLAIN), math.inf),
    "write": (_flag(_WRITE), math.inf),
    "starts_with_what": (lambda t: float(_WHAT.match(t.text) is not None), math.inf),
}

FEATURES: tuple[str, ...] = tuple(_FEATURES)


def unknown_features(names: Sequence[str]) -> list[str]:
    """Those of `names` that this version does not know."""
    return [name for name in names if name not in _FEATURES]


def features(text: str, tokens: int, names: Sequence[str] = FEATURES) -> npt.NDArray[np.float32]:
    """Values of the named features of a text: float32[len(names)], in the order of `names`.

    tokens: how many tokens the encoder's tokenizer makes of the whole text, nothing cut off, no
    special tokens. An empty text has values too. Raises KeyError for a name that is not known; see
    `unknown_features`.
    """
    sentences = max(len(_SENTENCE_END.findall(text)), 1)
    parts = _Text(text, tokens, _WORD.findall(text), _NUMBER.findall(text), sentences)
    asked = [_FEATURES[name] for name in names]
    return np.array([min(value(parts), cap) for value, cap in asked], dtype=np.float32)

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

import functools
import math
import re
from collections.abc import Sequence
from itertools import filterfalse

import numpy as np
import numpy.typing as npt

from .tokenizing import spans_with

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ASCII_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")  # the same on ASCII
_TERM = re.compile(r"\w+")
_OPTION = re.compile(r"^[ \t]*\(?(?:[A-Ja-j]|\d{1,2})[.):][ \t]", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_THAN = re.compile(r"\b(?:more|less) than\b")
_AT = re.compile(r"\bat (?:least|most)\b")
# Beside the signs {, } and ;, which no other match holds.
_CODE = re.compile(r"```|\bdef \w+\(|\breturn\b|\bfunction\b|\bimport\b|==|=>|\bclass \w+")
_LATEX = re.compile(r"\\[a-zA-Z]+|\$|\^|_\{")
_EXPLAIN = re.compile(r"\b(?:why|explain)")
_WHAT = re.compile(r"\s*what\b")
_QUANTITIES, _LOGICAL = (
    frozenset(words.split())
    for words in (
        "percent percentage half twice third quarter times ratio fraction average total remaining "
        "left each per double triple",
        "if then not except unless neither nor all none some only must either",
    )
)
# What must be in a text, or a word of it, where the pattern of that name finds anything.
_CODE_SIGNS, _CODE_WORDS = ("==", "=>", "```"), ("def", "class", "return", "function", "import")
_LATEX_SIGNS, _EXPLAIN_SIGNS = ("\\", "$", "^", "_{"), ("why", "explain")
_DIGITS, _UPPER, _PUNCTUATION = b"0123456789", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b',;:()"'
_BLOCKS = b"{};"
_ASCII = bytes(range(128))
_OTHER = re.compile(r"[^\x00-\x7f]")
# ASCII to itself in lower case where it may stand in a term, or in a word, and else to a space.
_TO_TERMS = bytes(ord(chr(c).lower()) if chr(c).isalnum() or c == 95 else 32 for c in range(128))
_TO_TERMS = _TO_TERMS.ljust(256)
_TO_NUMBERS = bytes(c if chr(c) in "0123456789.," else 32 for c in range(256))
_TO_WORDS = bytes(c if chr(c).isalpha() or chr(c) in "'-" else 32 for c in range(128)).ljust(256)

# The caps: the 99th percentile of the public training sources, rounded; flags need none.
_CAPS = {
    "tokens": 7.0, "characters": 8.4, "word_length": 0.7, "tokens_per_word": 1.8, "numbers": 4.4,
    "distinct_numbers": 3.7, "long_numbers": 3.6, "digit_share": 0.27, "upper_share": 0.14,
    "non_ascii_share": 0.03, "punctuation_share": 0.15, "options": 2.6, "sentences": 3.7,
    "words_per_sentence": 3.8, "lines": 4.2, "quotes": 3.2, "equals_signs": 3.1,
    "quantity_words": 2.7, "logic_words": 2.9, "code": 3.8, "latex": 4.1, "question_mark": math.inf,
    "how": math.inf, "explain": math.inf, "write": math.inf, "starts_with_what": math.inf,
}  # fmt: skip
FEATURES: tuple[str, ...] = tuple(_CAPS)


def unknown_features(names: Sequence[str]) -> list[str]:
    """Those of `names` that this version does not know."""
    return [name for name in names if name not in _CAPS]


def features(text: str, tokens: int, names: Sequence[str] = FEATURES) -> npt.NDArray[np.float32]:
    """Values of the named features of a text: float32[len(names)], in the order of `names`.

    tokens: how many tokens the encoder's tokenizer makes of the whole text, nothing cut off, no
    special tokens. An empty text has values too. Raises KeyError for a name that is not known; see
    `unknown_features`.
    """
    n, lower, data = max(len(text), 1), text.lower(), text.encode("utf-8", "surrogatepass")
    others = "" if text.isascii() else data.translate(None, _ASCII).decode("utf-8", "surrogatepass")
    plain, other = _apart(text)
    words, terms = _words(plain, other), _terms(plain.lower(), other.lower())
    known = set(terms)
    digits = _count(data, _DIGITS) + sum(map(str.isdigit, others))
    numbers = _numbers(data, text, others) if digits else []
    n_words = max(len(words), 1)
    is_code = _has(_CODE_SIGNS, text) or not known.isdisjoint(_CODE_WORDS)
    sentences = max(len(_SENTENCE_END.findall(text)) + sum(map(others.count, "。！？")), 1)

    counts = {
        "tokens": tokens,
        "characters": len(text),
        "tokens_per_word": tokens / n_words,
        "numbers": len(numbers),
        "distinct_numbers": len(set(numbers)),
        "long_numbers": sum(len(number) > 2 for number in numbers),
        "options": len(_OPTION.findall(text)),
        "sentences": sentences,
        "words_per_sentence": len(words) / sentences,
        "lines": text.count("\n"),
        "quotes": text.count('"') + text.count("'"),
        "equals_signs": text.count("="),
        "quantity_words": sum(map(terms.count, known & _QUANTITIES))
        + (len(_THAN.findall(lower)) if "than" in known else 0)
        + text.count("%"),
        "logic_words": sum(map(terms.count, known & _LOGICAL))
        + (len(_AT.findall(lower)) if "at" in known else 0),
        "code": _count(data, _BLOCKS) + (len(_CODE.findall(text)) if is_code else 0),
        "latex": len(_LATEX.findall(text)) if _has(_LATEX_SIGNS, text) else 0,
    }
    values = {
        **{name: math.log1p(count) for name, count in counts.items()},
        "word_length": sum(map(len, words)) / n_words / 10,
        "digit_share": digits / n,
        "upper_share": (_count(data, _UPPER) + sum(map(str.isupper, others))) / n,
        "non_ascii_share": len(others) / n,
        "punctuation_share": _count(data, _PUNCTUATION) / n,
        "question_mark": float("?" in text or "？" in others),
        "how": float("how" in known),
        "explain": float(_has(_EXPLAIN_SIGNS, lower) and _EXPLAIN.search(lower) is not None),
        "write": float("write" in known),
        "starts_with_what": float(_WHAT.match(lower) is not None),
    }
    return np.minimum([values[name] for name in names], _caps(tuple(names))).astype(np.float32)


@functools.lru_cache
def _caps(names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    return np.array([_CAPS[name] for name in names], dtype=np.float64)


def _words(plain: str, other: str) -> list[str]:
    """What _WORD finds in both, of which `plain` is ASCII, in any order."""
    letters = plain.encode().translate(_TO_WORDS).decode()
    words = letters.split()
    if "'" in letters or "-" in letters:
        joined = " ".join(filterfalse(str.isalpha, words))
        words = [*filter(str.isalpha, words), *_ASCII_WORD.findall(joined)]
    return words + _WORD.findall(other)


def _terms(plain: str, other: str) -> list[str]:
    """What _TERM finds in both, in lower case, in any order."""
    return plain.encode().translate(_TO_TERMS).decode().split() + _TERM.findall(other)


def _apart(text: str) -> tuple[str, str]:
    """What stands between spaces: that of ASCII alone, and the rest."""
    if text.isascii():
        return text, ""
    plain, other, at = list[str](), list[str](), 0
    for begin, end in spans_with(_OTHER, text):
        plain.append(text[at:begin])
        other.append(text[begin:end])
        at = end
    return " ".join((*plain, text[at:])), " ".join(other)


def _numbers(data: bytes, text: str, others: str) -> list[str]:
    """What _NUMBER finds; `data` is the text in UTF-8."""
    if any(map(str.isdecimal, others)):
        return _NUMBER.findall(text)
    return _NUMBER.findall(" ".join(data.translate(_TO_NUMBERS).decode().split()))


def _count(data: bytes, of: bytes) -> int:
    """How many bytes of `data` are among `of`."""
    return len(data) - len(data.translate(None, of))


def _has(signs: tuple[str, ...], text: str) -> bool:
    """Whether any of them stands in the text."""
    return any(map(text.__contains__, signs))

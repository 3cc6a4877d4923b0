"""A bundle's tokenizer: hostile files are refused, and what panics is an error like any other."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.errors import BundleFormatError
from thriftroute.router.bundle import Bundle
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.router.scorer import Scorer
from thriftroute.router.tokenizing import KEPT_WORDS, ids_by_word, load_tokenizer, token_ids
from thriftroute.tests.conftest import BundleMaker, tiny_tokenizer_json
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

# Each takes ages on a text that was made for it, or ends in a panic.
REGEXES = ["(a|aa|a?)+$", "^(([a-z])+.)+[A-Z]([a-z])+$", "((", "(?<=a+)b", ""]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# A trie of one entry that points far behind its end.
BROKEN_MAP = {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAAA"}


def changed(**parts: Any) -> bytes:
    return json.dumps({**json.loads(tiny_tokenizer_json()), **parts}).encode()


def regex_places(regex: Any) -> Iterator[dict[str, Any]]:
    """Every part of a tokenizer.json that a pattern can stand in, with one."""
    pattern = {"Regex": regex}
    replace = {"type": "Replace", "pattern": pattern, "content": "x"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    yield {"normalizer": replace}
    yield {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]}}
    yield {"pre_tokenizer": split}
    yield {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}}
    yield {"decoder": replace}


@pytest.mark.parametrize("regex", [*REGEXES, ["a"], None])
def test_patterns_that_are_not_known(regex: Any) -> None:
    for parts in regex_places(regex):
        with pytest.raises(ValueError, match="a regular expression that is not known"):
            load_tokenizer(changed(**parts))


@pytest.mark.parametrize("regex", [" {2,}", GPT2])
def test_patterns_of_well_known_encoders(regex: str) -> None:
    for parts in regex_places(regex):
        assert token_ids(load_tokenizer(changed(**parts)), "hello  what is 2")


def test_what_encoders_are_made_of_passes() -> None:
    """As XLM-R, RoBERTa and BERT have it, written by the library."""
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁hello", -1.0)], 0))
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.enable_truncation(1)
    made.enable_padding(length=500)
    assert token_ids(load_tokenizer(made.to_str().encode()), "hello hello") == [1, 1]
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert token_ids(load_tokenizer(made.to_str().encode()), "ab") == [2]
    for name in ("mf", "bert"):
        load_tokenizer(Bundle.open(CHECKPOINTS / name).file("tokenizer.json").read_bytes())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "Expecting value"),
        (b"[]", "expected an object"),
        (b"{}", "'model' is none of"),
        (changed(model={"type": ["BPE"]}), "'model' is none of"),
        (changed(normalizer={"type": "Shell"}), "'normalizer' has the unknown type 'Shell'"),
        (changed(post_processor={"single": []}), "'post_processor' has no type"),
        (changed(decoder={"type": {"a": 1}}), "'decoder' has the unknown type"),
        (changed(normalizer={**BROKEN_MAP, "precompiled_charsmap": "AAAA"}), "Precompiled"),
        (tiny_tokenizer_json().replace(b"{", b'{"model":{},', 1), "a name stands twice"),
        (
            b'{"normalizer":' + b'{"type":"Sequence","normalizers":[' * 50_000,
            "nested too deeply",
        ),
        (
            tiny_tokenizer_json().replace(b'_per_word":100', b'_per_word":100000'),
            "'max_input_chars_per_word' is more than 1000",
        ),
    ],
    ids=[
        *("empty", "a list", "nothing", "odd model", "odd type", "no type", "type of an object"),
        *("panic at load", "twice", "deep", "long words"),
    ],
)
def test_files_that_are_refused(make_bundle: BundleMaker, data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_tokenizer(data)
    with pytest.raises(BundleFormatError, match=r"tokenizer\.json does not load: "):
        Scorer.load(with_tokenizer(make_bundle, data))


PIECES = [
    "prove",
    "Hard",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "what's",
    "日本",
    "é",
    "e\u0301",
    "2+2?",
    "İ",
]
PIECES += [
    "\x00",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u200b",
    "\u3000",
    "\ufeff",
]
PIECES += [
    "W-w",
    "a b",
    "A b",
    "don't-(x)",
    "[SEP]",
    "[UNK]",
    "[CLS]x",
    "\u0301",
    "w" * 120,
    "Σ",
    "ς",
    "\ud7ff",
    "\U0001f600",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=30).map("".join))
def test_word_by_word_are_the_ids_of_the_whole_text(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    for ids_of, tokenizer in by_word():
        assert ids_of(text) == token_ids(tokenizer, text)


@functools.cache
def by_word() -> list[tuple[Callable[[str], list[int]], Tokenizer]]:
    """BERT's, as `fast` has it, cased and with a marker for gaps; one that takes spaces along."""
    bert = Bundle.open(CHECKPOINTS / "fast").file("tokenizer.json").read_bytes()
    cased = {**json.loads(bert)["normalizer"], "lowercase": False, "clean_text": False}
    other = {**json.loads(bert), "normalizer": None}
    gap = {"id": 99, "content": "a b", "single_word": False, "lstrip": True, "rstrip": False}
    gap |= {"normalized": False, "special": True}
    made = Tokenizer(models.BPE({"a": 0, "Ġa": 1, "Ġ": 2}, [("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    files = [bert, json.dumps({**other, "normalizer": cased}).encode(), json.dumps(other).encode()]
    joined = {**gap, "content": "w-w", "lstrip": False, "normalized": True, "special": False}
    files += [json.dumps({**json.loads(bert), "added_tokens": [joined]}).encode()]
    files += [json.dumps({**other, "added_tokens": [gap]}).encode(), made.to_str().encode()]
    loaded = [load_tokenizer(file) for file in files]
    return [(ids_by_word(tokenizer), tokenizer) for tokenizer in loaded]


def test_many_words_and_long_ones() -> None:
    [(ids_of, tokenizer), *_] = by_word()
    text = " ".join(f"w{n}" for n in range(KEPT_WORDS + 10)) + " " + "x" * 500
    assert ids_of(text) == ids_of(text) == token_ids(tokenizer, text)


def test_a_panic_at_a_text_is_an_error_that_quotes_nothing(make_bundle: BundleMaker) -> None:
    scorer = Scorer.load(with_tokenizer(make_bundle, changed(normalizer=BROKEN_MAP)))
    for ask in (scorer.score, scorer.count_tokens, lambda text: scorer.scores([text])):
        with pytest.raises(BundleFormatError, match=r"tokenizer\.json fails on a text") as caught:
            ask("hunter2")
        assert "hunter2" not in str(caught.value)


def test_an_interrupt_is_none_of_its_errors() -> None:
    class Stopped:
        def encode(self, *args: object, **options: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_ids(Stopped(), "x")  # type: ignore[arg-type]


def with_tokenizer(make_bundle: BundleMaker, data: bytes) -> Path:
    """A bundle whose tokenizer.json is `data`, with the hash that goes with it."""
    return make_bundle(files={"tokenizer.json": data}).path

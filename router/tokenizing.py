"""A bundle's tokenizer: what may be in its file, and the library's panics as errors.

The library matches regular expressions by backtracking, which takes for ever on a text that was
made for it; so only patterns that are known pass. It also panics where others raise, and a panic is
no `Exception`: what guards a request against any error would let it through.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from .strict_json import parse_json

# The longest word that WordPiece may take apart: its work grows with the cube. BERT's is 100.
MAX_WORD = 1000
# Words whose ids are kept, and the longest of them: some 8 MB.
KEPT_WORDS = 32_768
_KEPT_LENGTH = 24
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
_ODD = re.compile(r"[^ -~\t\n\r]")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MODELS = frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"})
_KNOWN = """
    BPEDecoder BertNormalizer BertPreTokenizer BertProcessing ByteFallback ByteLevel CTC
    CharDelimiterSplit Digits Fuse Lowercase Metaspace NFC NFD NFKC NFKD Nmt Precompiled Prepend
    Punctuation Replace RobertaProcessing Sequence Split Strip StripAccents TemplateProcessing
    UnicodeScripts Whitespace WhitespaceSplit WordPiece
"""
_TYPES = frozenset(_KNOWN.split())
_GPT_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
# As converters of SentencePiece and tiktoken write them, and GPT-2, Llama 3 and Qwen 2.
_REGEXES = frozenset(
    {
        " {2,}", r"\s+", r"\s{2,}", r"\s{2,}|[\n\r\t]", r"[\n\r\t]", r"\n", r"^▁+$", r"\A▁",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_GPT_SPACES}",
        rf"{_CONTRACTIONS}|\p{{N}}|{_GPT_SPACES}",
    }
)  # fmt: skip


def load_tokenizer(data: bytes) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without truncation and padding.

    Raises ValueError, which says what, where it may not be loaded or cannot be.
    """
    _check(parse_json(data))
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except BaseException as error:
        raise ValueError(_problem(error)) from error
    # Truncation and padding of the training days would come before ours.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, without special tokens. Raises ValueError where the tokenizer fails on it."""
    return _asked(lambda: tokenizer.encode(text, add_special_tokens=False).ids)


def _asked(ask: Callable[[], list[int]]) -> list[int]:
    try:
        return ask()
    except BaseException as error:  # noqa: BLE001 - `_problem` raises what is not the library's
        # Not the library's message, which may quote the text.
        _problem(error)
        raise ValueError(
            "fails on a text; train the bundle again or copy it from its source"
        ) from None


def ids_by_word(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """`token_ids` of this tokenizer. Where it takes each word by itself, as BERT's does, the ids of
    words that came before are kept, which is much sooner. Safe to share between threads."""
    if not _takes_words(tokenizer):
        return partial(token_ids, tokenizer)
    kept: dict[str, tuple[int, ...]] = {}  # tuples, which the garbage collector leaves alone
    model, normalizer = tokenizer.model, tokenizer.normalizer
    lowers = normalizer is not None and normalizer.lowercase
    added = [token.content.lower() for token in tokenizer.get_added_tokens_decoder().values()]

    def new(word: str) -> tuple[int, ...]:
        if _WORDS.fullmatch(word):  # it needs nothing of the library but the model
            plain = word.lower() if lowers else word
            ids = tuple(_asked(lambda: [token.id for token in model.tokenize(plain)]))
        else:
            ids = tuple(token_ids(tokenizer, word))
        if len(kept) >= KEPT_WORDS:
            kept.clear()
        if len(word) <= _KEPT_LENGTH:
            kept[word] = ids
        return ids

    def ids_of(text: str) -> list[int]:
        if any(map(text.lower().__contains__, added)):
            return token_ids(tokenizer, text)
        words = _words(text)
        found = list(map(kept.get, words))
        if None in found:
            both = zip(words, found, strict=True)
            found = [new(word) if ids is None else ids for word, ids in both]
        return list(chain.from_iterable(found))  # type: ignore[arg-type]  # none is None now

    return ids_of


def _words(text: str) -> list[str]:
    """What BERT's tokenizers take apart by itself; of what is not plain, whole words."""
    if text.isascii() and not _ODD.search(text):
        return _WORDS.findall(text)
    # These alone: Unicode has other spaces, and separators, that the library drops.
    for space in "\t\n\r":
        text = text.replace(space, " ")
    words, at = list[str](), 0
    for begin, end in spans_with(_ODD, text):
        words += [*_WORDS.findall(text, at, begin), text[begin:end]]
        at = end
    return words + _WORDS.findall(text, at)


def spans_with(odd: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Where, between spaces, what holds a match of `odd` begins and ends, one after the other."""
    at = 0
    for match in odd.finditer(text):
        if (start := match.start()) >= at:
            begin, end = text.rfind(" ", at, start) + 1 or at, text.find(" ", start)
            at = len(text) if end < 0 else end
            yield begin, at


def _takes_words(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its `_words`, one after the other."""
    splits, normalizer = tokenizer.pre_tokenizer, tokenizer.normalizer
    return isinstance(splits, pre_tokenizers.BertPreTokenizer) and isinstance(
        normalizer, normalizers.BertNormalizer | None
    )


def _problem(error: BaseException) -> str:
    """What the library says; raises again what is none of its errors."""
    # It exports no class for its panics.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return str(error)
    raise error


def _check(whole: Any) -> None:
    if not isinstance(whole, dict):
        raise ValueError("expected an object")
    model = whole.get("model")
    if not isinstance(model, dict) or str(model.get("type")) not in _MODELS:
        raise ValueError(f"'model' is none of {', '.join(sorted(_MODELS))}")
    longest = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest, int) or longest > MAX_WORD:
        raise ValueError(f"'max_input_chars_per_word' is more than {MAX_WORD}")
    for name in _PARTS:
        part = whole.get(name)
        if part is not None and not (isinstance(part, dict) and "type" in part):
            raise ValueError(f"{name!r} has no type")
        for item in _objects(part):
            if "type" in item and str(item["type"]) not in _TYPES:
                raise ValueError(f"{name!r} has the unknown type {str(item['type'])[:50]!r}")
            if "Regex" in item and str(item["Regex"]) not in _REGEXES:
                raise ValueError(f"{name!r} has a regular expression that is not known")


def _objects(part: Any) -> Iterator[dict[str, Any]]:
    """All objects in a part of the file, at any depth."""
    todo = [part]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += item.values()
        elif isinstance(item, list):
            todo += item

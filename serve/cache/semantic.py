"""Finds the kept answer to a prompt that says nearly the same, by its embedding.

Two texts are compared only where the rest of their requests is the same (`semantic_bucket`), and a
cosine is not all that is asked. To MiniLM "Convert miles to kilometres" and the reverse are .99
alike, "is it safe" and "is it not safe" .98, and in a text of forty words "French" for "German"
.97. So the texts must also have the same numbers, symbols and number of negations, and what words
they share in the same order; be short; and consist of nothing that the encoder does not know. It
remains a bet, so all of this is off by default.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...router.bundle import TOKENIZER
from ...router.scorer import Scorer

Embedding = npt.NDArray[np.float32]
Embed = Callable[[str], Embedding | None]

MOST_WORDS = 32
MOST_CHARS = 250
_WORD = re.compile(r"\w+(?:'\w+)?")
_NUMBER = re.compile(r"\d+")
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"]")
# Of a few languages: an encoder hardly sees them.
_NEGATIONS = frozenset(
    """
    no not never none nor neither without cannot nobody nothing nowhere
    nicht kein keine keinen keiner keinem nie ohne ne pas sans jamais
    sin nunca non senza mai não sem niet geen nooit zonder
    """.split()  # noqa: SIM905 - forty words in quotes would be a page
)


@dataclass(frozen=True, slots=True)
class _Traits:
    """Of a text, what must agree beside its embedding; `words` are in lower case."""

    words: tuple[str, ...]
    frame: tuple[object, ...]  # numbers, symbols, how many negations

    def agree(self, other: "_Traits") -> bool:
        mine, others = set(self.words), set(other.words)
        return self.frame == other.frame and [w for w in self.words if w in others] == [
            w for w in other.words if w in mine
        ]


def _traits(text: str) -> _Traits | None:
    """None for a text that is too long, or has no words."""
    if len(text) > MOST_CHARS:
        return None
    text = text.lower().replace("’", "'")
    words = tuple(_WORD.findall(text))
    if not 0 < len(words) <= MOST_WORDS:
        return None
    negations = sum(word in _NEGATIONS or word.endswith("n't") for word in words)
    return _Traits(words, (_NUMBER.findall(text), _SYMBOL.findall(text), negations))


class SemanticIndex:
    """Embeddings of the texts whose answers are kept, in this process. Safe to share between
    threads; `find` and `add` embed, which takes milliseconds: call them beside the event loop.

    embed: text -> float32[d], of any length but 0, or None for a text that is not to be compared.
    similarity: the least cosine, in [0, 1], of texts that are taken for one. max_entries: of all
    buckets together; past it what was not found for the longest is dropped.
    """

    def __init__(self, embed: Embed, similarity: float, max_entries: int = 10_000) -> None:
        self._embed = embed
        self._similarity = similarity
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}
        self._used: OrderedDict[tuple[str, str], None] = OrderedDict()  # (bucket, key)

    def __len__(self) -> int:
        return len(self._used)

    def find(self, bucket: str | None, text: str) -> str | None:
        """The key of the closest text in the bucket, or None where none is close enough.

        Where nothing is kept under that key any more, tell `discard`: it hides the next closest.
        """
        if bucket is None or bucket not in self._buckets:  # most are not: no need to embed
            return None
        traits, wanted = self._read(text)
        if traits is None or wanted is None:
            return None
        with self._lock:
            entries = self._buckets.get(bucket)
            key = None if entries is None else entries.closest(traits, wanted, self._similarity)
            if key is not None:
                self._used.move_to_end((bucket, key))
            return key

    def add(self, bucket: str | None, text: str, key: str) -> None:
        """Note that the answer to `text` is kept under `key`."""
        if bucket is None:
            return
        traits, embedding = self._read(text)
        if traits is None or embedding is None:
            return
        with self._lock:
            if (bucket, key) in self._used:
                self._drop(bucket, key)
            self._buckets.setdefault(bucket, _Bucket(embedding.size)).add(key, traits, embedding)
            self._used[bucket, key] = None
            while len(self._used) > self._max_entries:
                self._drop(*next(iter(self._used)))

    def discard(self, bucket: str | None, key: str) -> None:
        """Forget a key, whose answer is kept no more. Nothing where it is not known."""
        with self._lock:
            if bucket is not None and (bucket, key) in self._used:
                self._drop(bucket, key)

    def _drop(self, bucket: str, key: str) -> None:
        del self._used[bucket, key]
        entries = self._buckets[bucket]
        entries.drop(key)
        if not entries.rows:
            del self._buckets[bucket]

    def _read(self, text: str) -> tuple[_Traits | None, Embedding | None]:
        """Traits and embedding, at length 1; None where it has none, or no direction."""
        traits = _traits(text)
        embedding = None if traits is None else self._embed(text)
        if embedding is None:
            return None, None
        vector = np.asarray(embedding, dtype=np.float32).ravel()
        length = float(np.linalg.norm(vector))
        return traits, vector / np.float32(length) if 0 < length < np.inf else None


class _Bucket:
    """Keys, traits and unit vectors, float32[n, d], in rows that belong together."""

    def __init__(self, width: int) -> None:
        self.rows: dict[str, int] = {}
        self._keys: list[str] = []
        self._traits: list[_Traits] = []
        self._matrix = np.empty((4, width), np.float32)

    def closest(self, traits: _Traits, wanted: Embedding, similarity: float) -> str | None:
        cosines = self._matrix[: len(self._keys)] @ wanted
        near = np.flatnonzero(cosines >= similarity)
        for row in map(int, near[np.argsort(-cosines[near], kind="stable")]):
            if self._traits[row].agree(traits):
                return self._keys[row]
        return None

    def add(self, key: str, traits: _Traits, embedding: Embedding) -> None:
        row = self.rows[key] = len(self._keys)
        self._keys.append(key)
        self._traits.append(traits)
        if row == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
        self._matrix[row] = embedding

    def drop(self, key: str) -> None:
        """The last row takes the place of the one that goes."""
        row = self.rows.pop(key)
        last_key, last_traits = self._keys.pop(), self._traits.pop()
        if last_key != key:
            self._keys[row], self._traits[row] = last_key, last_traits
            self._matrix[row] = self._matrix[len(self._keys)]
            self.rows[last_key] = row


def bundle_embedder(scorer: Scorer) -> Embed:
    """Embeds with a bundle's encoder; None for a text of which the encoder would not read all:
    that is longer than it takes, or holds what is unknown to its tokenizer, as letters of most
    scripts are to an English one. All unknown words are one to it."""
    manifest = scorer.bundle.manifest
    room = manifest.max_tokens - len(manifest.prefix_ids) - len(manifest.suffix_ids)
    model = json.loads(scorer.bundle.file(TOKENIZER).read_bytes())["model"]
    unknown = model.get("unk_id")  # of a Unigram model; the others name the token
    if unknown is None and isinstance(model.get("vocab"), dict):
        unknown = model["vocab"].get(model.get("unk_token"))

    def embed(text: str) -> Embedding | None:
        if scorer.count_tokens(text) > room or unknown in scorer.token_ids(text):
            return None
        found: Embedding = scorer.embeddings([text], workers=1)[0]
        return found

    return embed

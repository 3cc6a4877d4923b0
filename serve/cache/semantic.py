"""Finds the kept answer to a prompt that says nearly the same, by its embedding.

Two texts are compared only where the rest of their requests is the same (`semantic_bucket`), and a
cosine is not all that is asked: to MiniLM "is it safe" and "is it not safe" are .98 alike. So the
texts must also have the same numbers, symbols, words that turn a question round and number of
negations, and what words they share in the same order; be short; and consist of nothing that the
encoder does not know.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...router.bundle import TOKENIZER
from ...router.scorer import Scorer

Embedding = npt.NDArray[np.float32]
Embed = Callable[[str], Embedding | None]
Words = tuple[str, ...]  # of a text, in lower case
Frame = tuple[Words, Words, Words, int]  # numbers, symbols, opposites, negations: must agree

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
# One of these in place of another turns a question round, and moves an embedding little.
_OPPOSITES = frozenset(
    """
    maximum minimum max min maximize minimize maximise minimise highest lowest high low most least
    largest smallest more less ascending descending increase decrease increasing decreasing enable
    disable enabled disabled start stop open close add remove insert delete include exclude before
    after first last buy sell pros cons advantages disadvantages import export encode decode encrypt
    decrypt upload download left right up down true false with best worst always
    """.split()  # noqa: SIM905 - as above
)


class SemanticIndex:
    """Embeddings of the texts whose answers are kept, in this process. Safe to share between
    threads; `find` and `add` embed, which takes milliseconds: call them beside the event loop.

    embed: text -> float32[d], or None for a text that is not to be compared. similarity: the least
    cosine, in [0, 1]. max_entries: past it what was not found for the longest is dropped.
    """

    def __init__(self, embed: Embed, similarity: float, max_entries: int = 10_000) -> None:
        self._embed = embed
        self._similarity = similarity
        self._max_entries = max_entries
        self._lock = threading.Lock()
        # (bucket, frame) -> key -> (words, unit vector)
        self._entries: dict[tuple[str, Frame], dict[str, tuple[Words, Embedding]]] = {}
        self._used: OrderedDict[tuple[str, str], Frame] = OrderedDict()  # of (bucket, key)

    def __len__(self) -> int:
        return len(self._used)

    def find(self, bucket: str | None, text: str) -> str | None:
        """The key of the closest text in the bucket, or None where none is close enough.

        Where nothing is kept under that key any more, tell `discard`: it hides the next closest.
        """
        words, frame = _traits(text)
        if bucket is None or not words or (bucket, frame) not in self._entries:
            return None  # as most: no need to embed
        wanted = self._unit(text)
        if wanted is None:
            return None
        with self._lock:
            entries = self._entries.get((bucket, frame), {})
            alike = {key: float(unit @ wanted) for key, (_, unit) in entries.items()}
            for key in sorted(alike, key=lambda key: -alike[key]):
                if alike[key] >= self._similarity and _agree(words, entries[key][0]):
                    self._used.move_to_end((bucket, key))
                    return key
        return None

    def add(self, bucket: str | None, text: str, key: str) -> None:
        """Note that the answer to `text` is kept under `key`."""
        words, frame = _traits(text)
        unit = self._unit(text) if words and bucket is not None else None
        if bucket is None or unit is None:
            return
        with self._lock:
            self._drop(bucket, key)
            self._entries.setdefault((bucket, frame), {})[key] = (words, unit)
            self._used[bucket, key] = frame
            while len(self._used) > self._max_entries:
                self._drop(*next(iter(self._used)))

    def discard(self, bucket: str | None, key: str) -> None:
        """Forget a key, whose answer is kept no more. Nothing where it is not known."""
        if bucket is not None:
            with self._lock:
                self._drop(bucket, key)

    def _drop(self, bucket: str, key: str) -> None:
        frame = self._used.pop((bucket, key), None)
        if frame is not None:
            entries = self._entries[bucket, frame]
            del entries[key]
            if not entries:
                del self._entries[bucket, frame]

    def _unit(self, text: str) -> Embedding | None:
        """The embedding at length 1; None where there is none, or no direction."""
        embedding = self._embed(text)
        if embedding is None:
            return None
        vector = np.asarray(embedding, dtype=np.float32).ravel()
        length = float(np.linalg.norm(vector))
        return vector / np.float32(length) if 0 < length < np.inf else None


def _traits(text: str) -> tuple[Words, Frame]:
    """What must agree beside the embedding; no words for a text that is too long or has none."""
    text = text.lower().replace("’", "'") if len(text) <= MOST_CHARS else ""
    words = tuple(_WORD.findall(text))
    if len(words) > MOST_WORDS:
        words = ()
    negations = sum(word in _NEGATIONS or word.endswith("n't") for word in words)
    opposites = tuple(sorted(word for word in set(words) if word in _OPPOSITES))
    symbols = tuple(_SYMBOL.findall(text))
    return words, (tuple(_NUMBER.findall(text)), symbols, opposites, negations)


def _agree(words: Words, others: Words) -> bool:
    """Whether the words that both have come in the same order."""
    mine, theirs = set(words), set(others)
    return [w for w in words if w in theirs] == [w for w in others if w in mine]


def bundle_embedder(scorer: Scorer) -> Embed:
    """Embeds with a bundle's encoder; None for a text that is longer than it takes, or holds what
    is unknown to its tokenizer: all unknown words are one to it."""
    manifest = scorer.bundle.manifest
    room = manifest.max_tokens - len(manifest.prefix_ids) - len(manifest.suffix_ids)
    model = json.loads(scorer.bundle.file(TOKENIZER).read_bytes())["model"]
    unknown = model.get("unk_id")  # of a Unigram model; the others name the token
    if unknown is None and isinstance(model.get("vocab"), dict):
        unknown = model["vocab"].get(model.get("unk_token"))
    scorer.embeddings([""], workers=1)  # loads what the scorer would load at the first request

    def embed(text: str) -> Embedding | None:
        if scorer.count_tokens(text) > room or unknown in scorer.token_ids(text):
            return None
        found: Embedding = scorer.embeddings([text], workers=1)[0]
        return found

    return embed

"""Finds the kept answer to a prompt that says nearly the same, by its embedding.

Two requests are compared only where all but the user's last text is the same (`semantic_bucket`),
numbers in it included, and where the encoder reads all of it. That a cosine near 1 means the same
question is a bet all the same, so this is off by default.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...router.scorer import Scorer
from ...router.text import CLIP_CHARS

Embedding = npt.NDArray[np.float32]
Embed = Callable[[str], Embedding | None]


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
        # Bucket -> key -> embedding, and (bucket, key) in the order of last use.
        self._buckets: dict[str, dict[str, Embedding]] = {}
        self._used: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    def find(self, bucket: str | None, text: str) -> str | None:
        """The key of the closest text in the bucket, or None where none is close enough."""
        if bucket is None or bucket not in self._buckets:  # most are not: no need to embed
            return None
        wanted = self._unit(text)
        if wanted is None:
            return None
        with self._lock:
            entries = self._buckets.get(bucket)
            if not entries:
                return None
            keys = list(entries)
            cosines = np.stack([entries[key] for key in keys]) @ wanted
            best = int(np.argmax(cosines))
            if not cosines[best] >= self._similarity:
                return None
            self._used.move_to_end((bucket, keys[best]))
            return keys[best]

    def add(self, bucket: str | None, text: str, key: str) -> None:
        """Note that the answer to `text` is kept under `key`."""
        embedding = None if bucket is None else self._unit(text)
        if bucket is None or embedding is None:
            return
        with self._lock:
            self._buckets.setdefault(bucket, {})[key] = embedding
            self._used[bucket, key] = None
            self._used.move_to_end((bucket, key))
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
        del entries[key]
        if not entries:
            del self._buckets[bucket]

    def _unit(self, text: str) -> Embedding | None:
        """The text's embedding at length 1; None where it has none, or no direction."""
        embedding = self._embed(text)
        if embedding is None:
            return None
        vector = np.asarray(embedding, dtype=np.float32).ravel()
        length = float(np.linalg.norm(vector))
        return vector / np.float32(length) if 0 < length < np.inf else None


def bundle_embedder(scorer: Scorer) -> Embed:
    """Embeds with a bundle's encoder; None for a text of which the encoder would not read all:
    two long texts that differ in the middle would be one to it."""
    manifest = scorer.bundle.manifest
    room = manifest.max_tokens - len(manifest.prefix_ids) - len(manifest.suffix_ids)

    def embed(text: str) -> Embedding | None:
        if len(text.strip()) > 2 * CLIP_CHARS or scorer.count_tokens(text) > room:
            return None
        found: Embedding = scorer.embeddings([text], workers=1)[0]
        return found

    return embed

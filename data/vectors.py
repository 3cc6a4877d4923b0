"""A cache of vectors on disk, one file a model, keyed by content.

One record a vector: 16 bytes of SHA-256 of the content, then float32[dim]. Records are only ever
appended, under a lock, so an interrupted run leaves at most one torn record at the end, which the
next one cuts off. The namespace must hash all that the vectors depend on (weights, tokenizer,
truncation): then a new model never finds an old one's vectors.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import private

KEY_BYTES = 16


def cache_dir() -> Path:
    """`$THRIFTROUTE_CACHE`, or `thriftroute` in the user's cache folder. Not created here."""
    if folder := os.environ.get("THRIFTROUTE_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "thriftroute"


def content_key(prompt: str | Sequence[Mapping[str, Any]]) -> bytes:
    """The key of a prompt or of a list of messages."""
    text = prompt if isinstance(prompt, str) else "m" + json.dumps(list(prompt), sort_keys=True)
    prefix = b"s" if isinstance(prompt, str) else b""
    return hashlib.sha256(prefix + text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


class VectorCache:
    """Vectors float32[dim] by content key, in `folder/<namespace>.vec`.

    Safe for several processes that append at once; each sees the others' records when it opens.
    """

    def __init__(self, folder: Path, namespace: str, dim: int) -> None:
        self.path = folder / f"{namespace}.vec"
        self.dim = dim
        self._record = np.dtype([("key", f"V{KEY_BYTES}"), ("vector", np.float32, (dim,))])
        self._rows: dict[bytes, int] = {}
        self._vectors = np.empty((0, dim), np.float32)
        self._count = 0
        if self.path.is_file():
            self._load()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def get(self, keys: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Vectors of keys that are all in the cache, float32[n, dim]. Raises KeyError."""
        return self._vectors[[self._rows[key] for key in keys]].reshape(len(keys), self.dim)

    def add(self, keys: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> None:
        """Append vectors, float32[len(keys), dim], on disk first. Raises ValueError (shape)."""
        if vectors.shape != (len(keys), self.dim):
            # NumPy would repeat a single row.
            raise ValueError(f"vectors of shape {vectors.shape}, not ({len(keys)}, {self.dim})")
        if len(keys) == 0:
            return
        records = np.empty(len(keys), self._record)
        records["key"] = [np.void(key) for key in keys]
        records["vector"] = vectors
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = private(str(self.path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            _lock(handle)
            # Another writer may have died in the middle of a record.
            size = os.fstat(handle).st_size
            os.ftruncate(handle, size - size % self._record.itemsize)
            _write_all(handle, records.tobytes())
        finally:
            os.close(handle)
        end = self._count + len(keys)
        if end > len(self._vectors):
            # Room for twice as many: adding a million in blocks must not copy all for each block.
            grown = np.empty((max(end, 2 * len(self._vectors)), self.dim), np.float32)
            grown[: self._count] = self._vectors[: self._count]
            self._vectors = grown
        self._vectors[self._count : end] = vectors
        self._index(keys, self._count)
        self._count = end

    def _load(self) -> None:
        size = self.path.stat().st_size
        whole = size - size % self._record.itemsize
        if whole != size:
            os.truncate(self.path, whole)
        records = np.fromfile(self.path, self._record)
        self._vectors = np.ascontiguousarray(records["vector"])
        self._count = len(records)
        self._index((bytes(key) for key in records["key"]), 0)

    def _index(self, keys: Iterable[bytes], start: int) -> None:
        for row, key in enumerate(keys, start):
            self._rows[key] = row


def _lock(handle: int) -> None:
    """Keep other writers out until the file is closed, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows: one writer at a time is the user's to see to
        return
    fcntl.flock(handle, fcntl.LOCK_EX)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]

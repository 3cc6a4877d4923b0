"""A cache of vectors on disk, one file a model, keyed by content.

One record a vector: 16 bytes of SHA-256 of the content, then float32[dim]. Records are only
appended, under a lock; a torn one at the end is cut off. The namespace must hash all that the
vectors depend on (weights, tokenizer, truncation).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import locked, private

KEY_BYTES = 16


def content_key(prompt: str | Sequence[Mapping[str, Any]]) -> bytes:
    """The key of a prompt or of a list of messages."""
    is_text = isinstance(prompt, str)
    text = f"s{prompt}" if is_text else "m" + json.dumps(list(prompt), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


class VectorCache:
    """Vectors float32[dim] by content key, in `folder/<namespace>.vec`.

    Safe for several processes that append at once; each sees the others' records when it opens.
    """

    def __init__(self, folder: Path, namespace: str, dim: int) -> None:
        self.path = folder / f"{namespace}.vec"
        self.dim = dim
        self._record = np.dtype([("key", f"V{KEY_BYTES}"), ("vector", np.float32, (dim,))])
        self._vectors: dict[bytes, npt.NDArray[np.float32]] = {}
        if self.path.is_file():
            self._cut()
            records = np.fromfile(self.path, self._record)
            self._vectors.update(zip(map(bytes, records["key"]), records["vector"], strict=True))

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, key: bytes) -> bool:
        return key in self._vectors

    def get(self, keys: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Vectors of keys that are all in the cache, float32[n, dim]. Raises KeyError."""
        found = np.array([self._vectors[key] for key in keys], np.float32)
        return found.reshape(len(keys), self.dim)

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
        with (
            locked(self.path.with_suffix(".lock"), wait_s=-1),
            open(self.path, "ab", opener=private) as file,
        ):
            self._cut()  # another writer may have died in the middle of a record
            file.write(records.tobytes())
        self._vectors.update(zip(keys, records["vector"], strict=True))

    def _cut(self) -> None:
        """Take a torn record off the file's end."""
        size = self.path.stat().st_size
        if torn := size % self._record.itemsize:
            os.truncate(self.path, size - torn)

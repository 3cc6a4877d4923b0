"""Which requests are the same, and whether one came before: in some 20 bytes for each of them."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_FULLEST = 0.6  # share of the table that may be taken
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def digest(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """SHA-256 of the messages as canonical JSON: the same request, the same digest."""
    return hashlib.sha256(_SORTED(messages).encode("utf-8", "surrogatepass")).digest()


def key_of(digest: bytes) -> int:
    """The first 8 bytes of a digest as a number, by which `Seen` knows it."""
    return int.from_bytes(digest[:8], "big")


class Seen:
    """Keys of 64 bits of a digest, numbered from 0 as they first come.

    Two keys of n are the same by chance with a probability below n^2 / 2^65: three in a million
    for ten million.
    """

    def __init__(self, keys: Iterable[int] = ()) -> None:
        """With keys that all differ, in their order; an array("Q") of them becomes its own."""
        self._keys: array[int] = keys if isinstance(keys, array) else array("Q", keys)
        self._slots = array("I")  # number + 1, or 0 where it is free
        self._place(1024)

    def __len__(self) -> int:
        return len(self._keys)

    def number(self, key: int) -> int:
        """The number of a key; of one that was not there yet it is `len` as it was before."""
        keys, slots = self._keys, self._slots
        mask = len(slots) - 1
        slot = key & mask
        while found := slots[slot]:
            if keys[found - 1] == key:
                return found - 1
            slot = (slot + 1) & mask
        keys.append(key)
        slots[slot] = len(keys)
        if len(keys) > _FULLEST * len(slots):
            self._place(2 * len(slots))
        return len(keys) - 1

    def _place(self, size: int) -> None:
        """Make a table of `size` slots, a power of two, or more, and put all keys in it."""
        while len(self._keys) > _FULLEST * size:
            size *= 2
        self._slots = array("I")  # gone before the larger one is made
        self._slots = array("I", [0]) * size
        slots = np.frombuffer(self._slots, np.uint32)
        keys = np.frombuffer(self._keys, np.uint64)
        # In pieces, so that what is in work stays small.
        for start in range(0, len(keys), 1 << 20):
            left = np.arange(start, min(start + (1 << 20), len(keys)), dtype=np.int64)
            at = (keys[left] & np.uint64(size - 1)).astype(np.int64)
            while left.size:
                free = slots[at] == 0
                # Of several for one slot the last one written has it, the others go on.
                slots[at[free]] = (left[free] + 1).astype(np.uint32)
                rest = slots[at] != left + 1
                left, at = left[rest], (at[rest] + 1) & (size - 1)

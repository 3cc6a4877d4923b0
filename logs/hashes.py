"""Which requests are the same, and whether one came before: in some 30 bytes for each of them."""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

_FULLEST = 0.6  # share of the table that may be taken


def digest(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """SHA-256 of the messages as canonical JSON: the same request, the same digest."""
    text = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Seen:
    """How often each key came, by the first 8 bytes of its digest.

    Keys are numbered from 0 as they first come; `weights` holds how often each did. Two keys of n
    share 8 bytes with a probability below n^2 / 2^65: three in a million for ten million.
    """

    def __init__(self) -> None:
        self.weights = array("d")
        self._keys = array("Q")
        self._slots = array("I", [0]) * 1024  # number + 1, or 0 where it is free

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, digest: bytes, weight: float = 1.0) -> bool:
        """Count a key, `weight` times; whether it is new."""
        key = int.from_bytes(digest[:8], "big")
        slot = self._slot(key)
        number = self._slots[slot]
        if number:
            self.weights[number - 1] += weight
            return False
        self._keys.append(key)
        self.weights.append(weight)
        self._slots[slot] = len(self._keys)
        if len(self._keys) > _FULLEST * len(self._slots):
            self._slots = array("I", [0]) * (2 * len(self._slots))
            for number, each in enumerate(self._keys, start=1):
                self._slots[self._slot(each)] = number
        return True

    def _slot(self, key: int) -> int:
        """Where the key stands, or the free slot where it would."""
        mask = len(self._slots) - 1
        slot = key & mask
        while (number := self._slots[slot]) and self._keys[number - 1] != key:
            slot = (slot + 1) & mask
        return slot

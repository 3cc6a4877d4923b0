"""Stores: bytes under a key for a while, in memory, on disk or in Redis.

A store never fails a request and never holds one up: whatever goes wrong is a miss, is counted in
`failures` and logged once until it works again, and nobody waits longer than `WAIT_S` for one.

Why not LiteLLM's caching backends (1.106): its memory cache bounds the number of entries and not
their size, parses each value on the event loop at each read, and drops what expires first instead
of what nobody asks for; its disk cache reads and writes on the event loop, has no bound, and
unpickles what lies in its folder; its Redis cache pings on the loop when it is made, waits five
seconds for a Redis that does not answer, and reads values back with `ast.literal_eval`. So: a dict,
`diskcache` (which is what LiteLLM uses too) without pickles and off the loop, and redis-py.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

WAIT_S = 0.25
MAX_BYTES = 256 * 2**20  # of all entries in memory together
_OVERHEAD = 300  # bytes that an entry costs beside key and value: objects, dict slot


class Store(Protocol):
    """Bytes under a key for a while. Methods belong to one event loop and raise nothing."""

    failures: int  # operations that did not work, since the start

    async def get(self, key: str) -> bytes | None:
        """The value, or None where there is none, it is too old, or the store is away."""
        ...

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds; one that is larger than the bound is not kept."""
        ...

    async def delete(self, key: str) -> None:
        """Forget the value, if there is one."""
        ...

    async def close(self) -> None:
        """Give back connections and threads. What is kept outside of memory stays."""
        ...


class MemoryStore:
    """In this process; past its bounds what was not asked for the longest is dropped.

    max_entries: how many; max_entry_bytes: the largest value; max_bytes: of all together, keys and
    overhead counted. clock: seconds, for tests.
    """

    def __init__(
        self,
        max_entries: int = 10_000,
        max_entry_bytes: int = 1_000_000,
        max_bytes: int = MAX_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = 0
        self.bytes = 0
        self._max_entries = max_entries
        self._max_entry_bytes = max_entry_bytes
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, value = entry
        if until <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        self._drop(key)
        size = _size(key, value)
        if ttl_s <= 0 or len(value) > self._max_entry_bytes or size > self._max_bytes:
            return
        while self._entries and (
            len(self._entries) >= self._max_entries or self.bytes + size > self._max_bytes
        ):
            self._drop(next(iter(self._entries)))
        self._entries[key] = (self._clock() + ttl_s, value)
        self.bytes += size

    async def delete(self, key: str) -> None:
        """See `Store`."""
        self._drop(key)

    async def close(self) -> None:
        """See `Store`."""
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= _size(key, entry[1])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD

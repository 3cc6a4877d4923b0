"""Stores: bytes under a key for a while. Those outside of this process are in `backends`.

A store never fails a request and never holds one up: whatever goes wrong is a miss, is counted in
`failures` and logged once until it works again, and nobody waits longer than `wait_s` for one.
"""

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable

MAX_BYTES = 256 * 2**20  # of all entries in memory together
_OVERHEAD = 300  # bytes that an entry costs beside key and value: objects, dict slot


class Store(ABC):
    """Bytes under a key for a while. Methods belong to one event loop and raise nothing.

    failures: operations that did not work, since the start.
    """

    failures = 0

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """The value, or None where there is none, it is too old, or the store is away."""

    @abstractmethod
    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds; one that is larger than the bound is not kept."""

    @abstractmethod
    async def close(self) -> None:
        """Give back connections and threads. What is kept outside of memory stays."""


class MemoryStore(Store):
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
        self.bytes = 0
        self._bounds = (max_entries, max_entry_bytes, max_bytes)
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        until, value = self._entries.get(key, (0.0, None))
        if value is None:
            return None
        if until <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        self._drop(key)
        max_entries, max_entry_bytes, max_bytes = self._bounds
        size = _size(key, value)
        if ttl_s <= 0 or len(value) > max_entry_bytes or size > max_bytes:
            return
        self._entries[key] = (self._clock() + ttl_s, value)
        self.bytes += size
        while len(self._entries) > max_entries or self.bytes > max_bytes:
            self._drop(next(iter(self._entries)))

    async def close(self) -> None:
        """See `Store`."""
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: str) -> None:
        if key in self._entries:
            self.bytes -= _size(key, self._entries.pop(key)[1])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD


class LayeredStore(Store):
    """A shared store before one of this process, which answers while the shared one is away."""

    def __init__(self, shared: Store, own: Store) -> None:
        self._shared = shared
        self._own = own

    async def get(self, key: str) -> bytes | None:
        """See `Store`. The shared one first: another process may have written since."""
        value = await self._shared.get(key)
        return await self._own.get(key) if value is None else value

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        await self._own.set(key, value, ttl_s)
        await self._shared.set(key, value, ttl_s)

    async def close(self) -> None:
        """See `Store`."""
        await self._shared.close()
        await self._own.close()

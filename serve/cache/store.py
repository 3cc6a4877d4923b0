"""Stores: bytes under a key for a while, in memory, on disk or in Redis.

A store never fails a request and never holds one up: whatever goes wrong is a miss, is counted in
`failures` and logged once until it works again, and nobody waits longer than `WAIT_S` for one.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, Protocol, overload

from ...errors import ConfigError
from ..config.settings import Config
from .backends import DiskStore, RedisStore

MAX_BYTES = 256 * 2**20  # of all entries in memory together
_OVERHEAD = 300  # bytes that an entry costs beside key and value: objects, dict slot


class Store(Protocol):
    """Bytes under a key for a while. Methods belong to one event loop and raise nothing."""

    @property
    def failures(self) -> int:
        """Operations that did not work, since the start."""
        ...

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


class LayeredStore:
    """A shared store before one of this process, which answers while the shared one is away."""

    def __init__(self, shared: Store, own: Store) -> None:
        self._shared = shared
        self._own = own

    @property
    def failures(self) -> int:
        """See `Store`."""
        return self._shared.failures

    async def get(self, key: str) -> bytes | None:
        """See `Store`. The shared one first: another process may have written since."""
        value = await self._shared.get(key)
        return await self._own.get(key) if value is None else value

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        await self._own.set(key, value, ttl_s)
        await self._shared.set(key, value, ttl_s)

    async def delete(self, key: str) -> None:
        """See `Store`."""
        await self._own.delete(key)
        await self._shared.delete(key)

    async def close(self) -> None:
        """See `Store`."""
        await self._shared.close()
        await self._own.close()


@overload
def make_store(config: Config, kind: Literal["session"]) -> Store: ...
@overload
def make_store(config: Config, kind: Literal["cache"]) -> Store | None: ...
def make_store(config: Config, kind: Literal["cache", "session"]) -> Store | None:
    """The store that the config asks for; None for a cache that is off.

    Sessions are in Redis where the config has one, and in this process besides. Raises ConfigError
    where a folder or an address cannot be used.
    """
    settings = config.cache
    bounds = (settings.max_entries, settings.max_entry_bytes)
    if kind == "session":
        own = MemoryStore(100_000, 1000)
        if config.redis_url is None:
            return own
        return LayeredStore(RedisStore(config.redis_url, "thriftroute:session:", 1000), own)
    if settings.backend == "memory":
        return MemoryStore(*bounds)
    if settings.backend == "disk":
        return DiskStore(settings.path, *bounds)
    if settings.backend == "redis":
        if config.redis_url is None:
            raise ConfigError(
                "cache.backend: 'redis' needs redis_url; expected redis://host:port/db"
            )
        return RedisStore(config.redis_url, "thriftroute:cache:", settings.max_entry_bytes)
    return None

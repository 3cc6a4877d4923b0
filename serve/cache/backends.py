"""Stores that can be away: a folder and Redis. Their promise is `store`'s.

Why not LiteLLM's caching backends (1.106): its memory cache bounds the number of entries and not
their size together, and parses each value on the event loop at each read; its disk cache works on
the event loop and unpickles what lies in its folder; its Redis cache pings on the loop when it is
made, waits five seconds for a Redis that does not answer, and reads values back with
`ast.literal_eval`.
"""

import asyncio
import contextlib
import logging
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...errors import ConfigError
from ...files import tighten
from ..config.settings import Config
from ..redis_pool import redis_client
from .store import LayeredStore, MemoryStore, Store

WAIT_S = 0.25
RETRY_S = 1.0  # how long a store that did not answer is left alone

logger = logging.getLogger(__name__)

T = TypeVar("T")


def cache_store(config: Config) -> Store | None:
    """The store that `cache` asks for; None for a cache that is off.

    Raises ConfigError where a folder or an address cannot be used.
    """
    settings = config.cache
    bounds = (settings.max_entries, settings.max_entry_bytes)
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


def session_store(config: Config) -> Store:
    """Sessions are in Redis where the config has one, and in this process besides."""
    own = MemoryStore(100_000, 1000)
    if config.redis_url is None:
        return own
    return LayeredStore(RedisStore(config.redis_url, "thriftroute:session:", 1000), own)


class _GuardedStore(Store):
    """Runs the operations of a store that can fail or hang.

    wait_s: nobody waits longer for one; retry_s: how long a store that is away is left alone.
    """

    name = ""
    # Errors that say that the whole store is away, and not that one operation failed.
    gone: tuple[type[Exception], ...] = (TimeoutError,)

    def __init__(self, max_entry_bytes: int, wait_s: float, retry_s: float) -> None:
        self.wait_s = wait_s
        self._retry_s = retry_s
        self._max_entry_bytes = max_entry_bytes
        self._said: set[str] = set()
        self._closed_until = 0.0
        self._away = False

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        value = await self._run(lambda: self._get(key))
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        if ttl_s > 0 and len(value) <= self._max_entry_bytes:
            await self._run(lambda: self._set(key, value, ttl_s))

    async def close(self) -> None:
        """See `Store`."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.wait_s):
                await self._close()

    @abstractmethod
    def _get(self, key: str) -> Awaitable[object]: ...
    @abstractmethod
    def _set(self, key: str, value: bytes, ttl_s: float) -> Awaitable[object]: ...
    @abstractmethod
    def _close(self) -> Awaitable[object]: ...

    async def _run(self, operation: Callable[[], Awaitable[T]]) -> T | None:
        """The operation's result, or None where it failed, hung, or the store is left alone."""
        now = time.monotonic()
        if now < self._closed_until:
            return None
        if self._away:  # one asks whether it is back; the others do not wait for the answer
            self._closed_until = now + self._retry_s
        result = None
        try:
            async with asyncio.timeout(self.wait_s):
                result = await operation()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a miss
            self.failures += 1
            kind = type(error).__name__  # not its message, which may quote a password
            if isinstance(error, self.gone):
                self._closed_until = time.monotonic() + self._retry_s
                if not self._away:
                    self._away = True
                    text = "%s is away (%s): nothing is found until it is back"
                    logger.warning(text, self.name, kind)
                return None
            if kind not in self._said:
                self._said.add(kind)
                logger.warning("%s: an operation failed (%s); told once", self.name, kind)
        if self._away:
            self._away, self._closed_until = False, 0.0
            logger.warning("%s is back", self.name)
        return result


class DiskStore(_GuardedStore):
    """In a folder, which several processes may share; work is done in a thread of its own.

    Past `max_entries` or `max_bytes` the oldest are dropped. Raises ConfigError where the folder
    cannot be used.
    """

    name = "the cache on disk"

    def __init__(
        self,
        path: str | Path,
        max_entries: int = 10_000,
        max_entry_bytes: int = 1_000_000,
        max_bytes: int = 2**30,
        *,
        wait_s: float = WAIT_S,
    ) -> None:
        super().__init__(max_entry_bytes, wait_s, RETRY_S)
        self._max_entries = max_entries
        # One thread, one connection to the database: each thread would open its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thriftroute-cache")
        try:
            opening = self._thread.submit(_open, Path(path), max_entry_bytes, max_bytes)
            self._cache = opening.result()
        except Exception as error:  # sqlite3's and the system's own
            self._thread.shutdown()
            raise ConfigError(
                f"cache.path: {str(path)!r} cannot be used: {error}; expected a folder that can be "
                "written, new or made by this cache",
                loc=("cache", "path"),
            ) from error

    def _get(self, key: str) -> Awaitable[object]:
        return self._in_thread(lambda: self._cache.get(key))

    def _set(self, key: str, value: bytes, ttl_s: float) -> Awaitable[object]:
        def work() -> None:
            self._cache.set(key, value, expire=ttl_s)
            for _ in range(10):  # a few at a time, as diskcache does it for sizes
                if len(self._cache) <= self._max_entries:
                    break
                self._cache.delete(next(iter(self._cache)))

        return self._in_thread(work)

    async def _close(self) -> None:
        try:
            await self._in_thread(self._cache.close)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _in_thread(self, work: Callable[[], object]) -> Awaitable[object]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


def _open(folder: Path, max_entry_bytes: int, max_bytes: int) -> Any:
    # Answers are nobody else's to read; diskcache would make a folder that all can.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = folder / diskcache.core.DBNAME
    if database.exists() or not any(folder.iterdir()):  # nobody else's
        tighten(folder)
    database.touch(mode=0o600)  # SQLite gives its other files the same mode
    database.chmod(0o600)
    return diskcache.Cache(
        str(folder),
        timeout=WAIT_S,
        disk=_BytesDisk,
        size_limit=max_bytes,
        # All values lie in the database: a file of its own would have the mode of any file.
        disk_min_file_size=max_entry_bytes + 1,
    )


class _Pickled(bytes):
    """A key that somebody else wrote, as it lies in the database: to be dropped, never read."""


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Text keys and bytes alone: what somebody else put into the folder is never unpickled, and
    leads to no file outside it."""

    def put(self, key: object) -> tuple[object, bool]:
        return key, not isinstance(key, _Pickled)

    def get(self, key: object, raw: bool) -> object:
        return key if raw or not isinstance(key, bytes) else _Pickled(key)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> object:
        if mode not in {diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY}:
            raise ValueError("a value that is no bytes")
        if filename is not None and not self._holds(filename):
            raise ValueError("a value in a file of somebody else's")
        return super().fetch(mode, filename, value, read)

    def remove(self, file_path: str) -> None:
        if self._holds(file_path):
            super().remove(file_path)

    def _holds(self, name: str) -> bool:
        home = Path(self._directory).resolve()
        return (home / name).resolve().is_relative_to(home)


class RedisStore(_GuardedStore):
    """In Redis, shared by all that use the same `prefix`.

    How much Redis keeps in all is its own setting: `maxmemory` and `maxmemory-policy`. Raises
    ConfigError for a URL that is none of Redis.
    """

    name = "Redis"
    gone = (TimeoutError, RedisConnectionError, RedisTimeoutError, OSError)

    def __init__(
        self,
        url: str,
        prefix: str,
        max_entry_bytes: int = 1_000_000,
        *,
        wait_s: float = WAIT_S,
        retry_s: float = RETRY_S,
    ) -> None:
        super().__init__(max_entry_bytes, wait_s, retry_s)
        self._prefix = prefix
        self._redis = redis_client(url, wait_s, 50, wait_s)

    def _get(self, key: str) -> Awaitable[object]:
        return self._redis.get(self._prefix + key)

    def _set(self, key: str, value: bytes, ttl_s: float) -> Awaitable[object]:
        return self._redis.set(self._prefix + key, value, px=max(1, int(ttl_s * 1000)))

    def _close(self) -> Awaitable[object]:
        return self._redis.aclose()

"""Stores that can be away: a folder and Redis. Their promise is `store`'s.

Why not LiteLLM's caching backends (1.106): its memory cache bounds the number of entries and not
their size together, parses each value on the event loop at each read, and drops what expires first
instead of what nobody asks for; its disk cache reads and writes on the event loop, has no bound of
its own, and unpickles what lies in its folder; its Redis cache pings on the loop when it is made,
waits five seconds for a Redis that does not answer, and reads values back with `ast.literal_eval`.
So: a dict, `diskcache` (LiteLLM's own choice) without pickles and off the loop, and redis-py.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ...errors import ConfigError
from ...files import tighten

WAIT_S = 0.25
RETRY_S = 1.0  # how long a store that did not answer is left alone

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Guard:
    """Runs the operations of a store that can fail or hang; see the module's promise."""

    def __init__(self, name: str, gone: tuple[type[Exception], ...]) -> None:
        self.failures = 0
        self._name = name
        # Errors that say that the whole store is away, and not that one operation failed.
        self._gone: tuple[type[Exception], ...] = (TimeoutError, *gone)
        self._said: set[str] = set()
        self._closed_until = 0.0
        self._away = False

    async def run(self, operation: Callable[[], Awaitable[T]]) -> T | None:
        """The operation's result, or None where it failed, hung, or the store is left alone."""
        now = time.monotonic()
        if now < self._closed_until:
            return None
        if self._away:  # one asks whether it is back; the others do not wait for the answer
            self._closed_until = now + RETRY_S
        try:
            async with asyncio.timeout(WAIT_S):
                result = await operation()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a miss
            self.failures += 1
            if isinstance(error, self._gone):
                self._away_by(error)
            else:
                self._failed_by(error)
            return None
        self._is_back()
        return result

    def _away_by(self, error: Exception) -> None:
        self._closed_until = time.monotonic() + RETRY_S
        if not self._away:
            kind = type(error).__name__
            logger.warning("%s is away (%s): nothing is found until it is back", self._name, kind)
        self._away = True

    def _failed_by(self, error: Exception) -> None:
        self._is_back()  # it answered
        kind = type(error).__name__  # not its message, which may quote an address with a password
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s: an operation failed (%s); told once", self._name, kind)

    def _is_back(self) -> None:
        if self._away:
            self._away, self._closed_until = False, 0.0
            logger.warning("%s is back", self._name)


class DiskStore:
    """In a folder, which several processes may share; work is done in a thread of its own.

    Past `max_entries` or `max_bytes` the oldest are dropped. Raises ConfigError where the folder
    cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        max_entries: int = 10_000,
        max_entry_bytes: int = 1_000_000,
        max_bytes: int = 2**30,
    ) -> None:
        self._max_entries = max_entries
        self._max_entry_bytes = max_entry_bytes
        self._guard = _Guard("the cache on disk", ())
        # One thread, one connection to the database: each thread would open its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thriftroute-cache")

        def open_cache() -> Any:
            # Answers are nobody else's to read; diskcache would make a folder that all can.
            folder = Path(path)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (folder / "cache.db").exists() or not any(folder.iterdir()):  # nobody else's
                tighten(folder)
            database = folder / diskcache.core.DBNAME
            database.touch(mode=0o600)  # SQLite gives its other files the same mode
            database.chmod(0o600)
            return diskcache.Cache(
                str(path),
                timeout=WAIT_S,
                disk=_BytesDisk,
                size_limit=max_bytes,
                # All values lie in the database: a file of its own would have the mode of any file.
                disk_min_file_size=max_entry_bytes + 1,
            )

        try:
            self._cache = self._thread.submit(open_cache).result()
        except Exception as error:  # sqlite3's and the system's own
            self._thread.shutdown()
            raise ConfigError(
                f"cache.path: {str(path)!r} cannot be used: {error}; expected a folder that can be "
                "written, new or made by this cache"
            ) from error

    @property
    def failures(self) -> int:
        """See `Store`."""
        return self._guard.failures

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        value = await self._run(lambda: self._cache.get(key))
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        if ttl_s <= 0 or len(value) > self._max_entry_bytes:
            return
        await self._run(lambda: self._set(key, value, ttl_s))

    async def delete(self, key: str) -> None:
        """See `Store`."""
        await self._run(lambda: self._cache.delete(key))

    async def close(self) -> None:
        """See `Store`."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(WAIT_S):
                await loop.run_in_executor(self._thread, self._cache.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _set(self, key: str, value: bytes, ttl_s: float) -> None:
        self._cache.set(key, value, expire=ttl_s)
        for _ in range(10):  # a few at a time, as diskcache does it for sizes
            if len(self._cache) <= self._max_entries:
                break
            self._cache.delete(next(iter(self._cache)))

    async def _run(self, work: Callable[[], T]) -> T | None:
        loop = asyncio.get_running_loop()
        return await self._guard.run(lambda: loop.run_in_executor(self._thread, work))


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
        """Whether a file that the database names lies in the cache's folder."""
        home = Path(self._directory).resolve()
        return (home / name).resolve().is_relative_to(home)


class RedisStore:
    """In Redis, shared by all that use the same `prefix`.

    How much Redis keeps in all is its own setting: `maxmemory` and `maxmemory-policy`. Raises
    ConfigError for a URL that is none of Redis.
    """

    def __init__(self, url: str, prefix: str, max_entry_bytes: int = 1_000_000) -> None:
        self._prefix = prefix
        self._max_entry_bytes = max_entry_bytes
        self._guard = _Guard("Redis", (RedisConnectionError, RedisTimeoutError, OSError))
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=50,
                timeout=WAIT_S,
                socket_timeout=WAIT_S,
                socket_connect_timeout=WAIT_S,
                retry=Retry(NoBackoff(), 0),
            )
        except (ValueError, TypeError):
            # Without the cause, which may quote the password.
            raise ConfigError(
                "redis_url: no address of a Redis; expected redis://[user:password@]host:port/db, "
                "rediss://... or unix://..."
            ) from None
        self._redis = redis.asyncio.Redis.from_pool(pool)

    @property
    def failures(self) -> int:
        """See `Store`."""
        return self._guard.failures

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        value = await self._guard.run(lambda: self._redis.get(self._prefix + key))
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        if ttl_s <= 0 or len(value) > self._max_entry_bytes:
            return
        ttl_ms = max(1, int(ttl_s * 1000))
        await self._guard.run(lambda: self._redis.set(self._prefix + key, value, px=ttl_ms))

    async def delete(self, key: str) -> None:
        """See `Store`."""
        await self._guard.run(lambda: self._redis.delete(self._prefix + key))

    async def close(self) -> None:
        """See `Store`."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(WAIT_S):
                await self._redis.aclose()

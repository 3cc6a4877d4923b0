"""Stores: bytes under a key for a while, in memory, on disk or in Redis.

A store never fails a request and never holds one up: whatever goes wrong is a miss, is counted in
`failures` and logged once until it works again, and nobody waits longer than `wait_s` for one.

Why not LiteLLM's caching backends (1.106): its memory cache does not bound the size of all entries
together; its disk cache works on the event loop and unpickles what lies in its folder; its Redis
cache pings on the loop when it is made, and waits five seconds for a Redis that does not answer.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...errors import ConfigError
from ...files import tighten
from ..config.settings import Config
from ..redis_pool import redis_client

MAX_BYTES = 256 * 2**20  # of all entries in memory together
WAIT_S = 0.25
RETRY_S = 1.0  # how long a store that did not answer is left alone
_OVERHEAD = 300  # bytes that an entry in memory costs beside key and value: objects, dict slot

logger = logging.getLogger(__name__)


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
            raise ConfigError("cache.backend: redis needs redis_url", loc=("cache", "backend"))
        return RedisStore(config.redis_url, "thriftroute:cache:", settings.max_entry_bytes)
    return None


def session_stores(config: Config) -> list[Store]:
    """Sessions are in Redis where the config has one, and in this process besides, which answers
    while Redis is away."""
    own = MemoryStore(100_000, 1000)
    if config.redis_url is None:
        return [own]
    return [RedisStore(config.redis_url, "thriftroute:session:", 1000), own]


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
        size = len(key) + len(value) + _OVERHEAD
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
            self.bytes -= len(key) + len(self._entries.pop(key)[1]) + _OVERHEAD


class _GuardedStore(Store):
    """A store whose operations can fail or hang: `read` and `write` may raise what they like.

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

    @abstractmethod
    async def _read(self, key: str) -> object: ...
    @abstractmethod
    async def _write(self, key: str, value: bytes, ttl_s: float) -> object: ...
    @abstractmethod
    async def _end(self) -> None: ...

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        value = await self._run(lambda: self._read(key))
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """See `Store`."""
        if ttl_s > 0 and len(value) <= self._max_entry_bytes:
            await self._run(lambda: self._write(key, value, ttl_s))

    async def close(self) -> None:
        """See `Store`."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.wait_s):
                await self._end()

    async def _run(self, operation: Callable[[], Awaitable[object]]) -> object:
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
                    text = "%s is away (%s): nothing is found until it is back"
                    logger.warning(text, self.name, kind)
                self._away = True
                return None
            if kind not in self._said:
                self._said.add(kind)
                logger.warning("%s: an operation failed (%s); told once", self.name, kind)
        if self._away:
            self._away, self._closed_until = False, 0.0
            logger.warning("%s is back", self.name)
        return result


_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, value BLOB NOT NULL, until REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_until ON answers (until);
"""
_SIZE = """
SELECT (SELECT count(*) FROM answers), (page_count - freelist_count) * page_size
FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()
"""
_DROP = "DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY id LIMIT ?)"


class DiskStore(_GuardedStore):
    """A SQLite file in a folder, which several processes may share; work is done in a thread.

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
        self._bounds = (max_entries, max_bytes)
        # One thread, to which the connection belongs.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thriftroute-cache")
        try:
            self._database = self._thread.submit(_open, Path(path)).result()
        except (OSError, sqlite3.Error) as error:
            self._thread.shutdown()
            raise ConfigError(
                f"cache.path: {str(path)!r} cannot be used: {error}; expected a folder that can be "
                "written, new or made by this cache",
                loc=("cache", "path"),
            ) from error

    async def _read(self, key: str) -> object:
        def work() -> object:
            query = "SELECT value FROM answers WHERE key = ? AND until > ?"
            row = self._database.execute(query, (key, time.time())).fetchone()
            return None if row is None else row[0]

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _write(self, key: str, value: bytes, ttl_s: float) -> object:
        def work() -> None:
            most, max_bytes = self._bounds
            now = time.time()
            with self._database as database:
                database.execute("DELETE FROM answers WHERE until < ?", (now,))
                database.execute(
                    "INSERT OR REPLACE INTO answers (key, value, until) VALUES (?, ?, ?)",
                    (key, value, now + ttl_s),
                )
                count, size = database.execute(_SIZE).fetchone()
                surplus = max(count - most, 10 if size > max_bytes else 0)
                database.execute(_DROP, (surplus,))

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _end(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._database.close)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _open(folder: Path) -> sqlite3.Connection:
    # Answers are nobody else's to read.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "answers.db"
    if file.exists() or not any(folder.iterdir()):
        tighten(folder)
    file.touch(mode=0o600)  # SQLite gives its other files the same mode
    tighten(file)
    database = sqlite3.connect(file, timeout=WAIT_S)
    database.executescript(_SCHEMA)
    return database


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

    async def _read(self, key: str) -> object:
        return await self._redis.get(self._prefix + key)

    async def _write(self, key: str, value: bytes, ttl_s: float) -> object:
        return await self._redis.set(self._prefix + key, value, px=max(1, int(ttl_s * 1000)))

    async def _end(self) -> None:
        await self._redis.aclose()

"""Stores: bytes under a key for a while, in memory, on disk or in Redis.

A store never fails a request and never holds one up: whatever goes wrong is a miss, is counted in
`failures` and logged once until it works again, and nobody waits longer than `wait_s` for one.
LiteLLM's caching backends (1.106) promise neither, and its disk cache unpickles what it finds.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...files import tighten
from ..config.settings import Config
from ..errors import bad_setting
from ..redis_pool import redis_client

IN_MEMORY = 256 * 2**20  # bytes of all entries together
ON_DISK = 2**30
SESSION_BYTES = 4000  # of what is known of one
WAIT_S = 0.25
RETRY_S = 1.0  # how long a store that did not answer is left alone

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Store(ABC):
    """Bytes under a key for a while. Methods belong to one event loop and raise nothing. wait_s:
    nobody waits longer for an operation; retry_s: how long a store that is away is left alone."""

    # Errors that say that the whole store is away, and not that one operation failed.
    gone: tuple[type[Exception], ...] = (TimeoutError,)

    def __init__(self, name: str, max_entry_bytes: int, wait_s: float, retry_s: float) -> None:
        self.failures = 0
        self.wait_s = wait_s
        self._name = name
        self._retry_s = retry_s
        self._max_entry_bytes = max_entry_bytes
        self._said: set[str] = set()
        self._closed_until = 0.0
        self._away = False

    async def get(self, key: str) -> bytes | None:
        """The value, or None where there is none, it is too old, or the store is away."""
        value = await self._run(lambda: self._read(key))
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds; one that is larger than the bound is not kept."""
        if ttl_s > 0 and len(value) <= self._max_entry_bytes:
            await self._run(lambda: self._write(key, value, ttl_s))

    async def close(self) -> None:
        """Give back connections and threads. What is kept outside of memory stays."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.wait_s):
                await self._end()

    @abstractmethod
    async def _read(self, key: str) -> object: ...
    @abstractmethod
    async def _write(self, key: str, value: bytes, ttl_s: float) -> object: ...
    @abstractmethod
    async def _end(self) -> None: ...

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
                    why = f"{self._name} is away ({kind})"
                    logger.warning("%s: nothing is found until it is back", why)
                self._away = True
                return None
            if kind not in self._said:
                self._said.add(kind)
                logger.warning("%s: an operation failed (%s); told once", self._name, kind)
        if self._away:
            self._away, self._closed_until = False, 0.0
            logger.warning("%s is back", self._name)
        return result


_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS kept (
    place INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, value BLOB NOT NULL, until REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS kept_until ON kept (until);
"""
_SIZE = """
SELECT (SELECT count(*) FROM kept), (page_count - freelist_count) * page_size
FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()
"""
_DROP = "DELETE FROM kept WHERE place IN (SELECT place FROM kept ORDER BY place LIMIT ?)"
_USED = "UPDATE kept SET place = (SELECT max(place) + 1 FROM kept) WHERE key = ?"


class SqliteStore(Store):
    """In SQLite: in this process's memory, or in a file in the folder `path`, which several
    processes may share and on which a thread works.

    Past `max_entries` or `max_bytes` those go that were not asked for the longest, on disk those
    that were written first. Raises ConfigError where the folder cannot be used.
    """

    def __init__(
        self,
        path: str | Path | None,
        max_entries: int = 10_000,
        max_entry_bytes: int = 1_000_000,
        max_bytes: int | None = None,
        *,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__("the cache", max_entry_bytes, wait_s, RETRY_S)
        self._bounds = (max_entries, max_bytes or (IN_MEMORY if path is None else ON_DISK))
        self._clock = clock
        self.writes = 0
        self._thread = None
        if path is None:
            self._database = _opened(":memory:")
            return
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thriftroute-cache")
        try:
            self._database = self._thread.submit(_open, Path(path)).result()
        except (OSError, sqlite3.Error) as error:
            self._thread.shutdown()
            problem = f"{str(path)!r} cannot be used: {error}; expected a folder that can be "
            problem += "written, new or made by this cache"
            raise bad_setting("cache.path", problem) from error

    async def _do(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _read(self, key: str) -> object:
        def work() -> object:
            query = "SELECT value FROM kept WHERE key = ? AND until > ?"
            row = self._database.execute(query, (key, self._clock())).fetchone()
            if row is not None and self._thread is None:
                self._database.execute(_USED, (key,))
            return None if row is None else row[0]

        return await self._do(work)

    async def _write(self, key: str, value: bytes, ttl_s: float) -> object:
        def work() -> None:
            most, max_bytes = self._bounds
            now = self._clock()
            with self._database as database:
                database.execute("DELETE FROM kept WHERE until <= ? OR key = ?", (now, key))
                new = "INSERT INTO kept (key, value, until) VALUES (?, ?, ?)"
                database.execute(new, (key, value, now + ttl_s))
                self.writes += 1
                if self.writes % (most // 1000 + 1) == 0:  # to count them takes time
                    count, size = database.execute(_SIZE).fetchone()
                    surplus = max(count - most, 10 if size > max_bytes else 0)
                    database.execute(_DROP, (surplus,))

        return await self._do(work)

    async def _end(self) -> None:
        try:
            await self._do(self._database.close)
        finally:
            if self._thread is not None:
                self._thread.shutdown(wait=False, cancel_futures=True)


def _open(folder: Path) -> sqlite3.Connection:
    # Answers are nobody else's to read.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "answers.db"
    if file.exists() or not any(folder.iterdir()):
        tighten(folder)
    file.touch(mode=0o600)  # SQLite gives its other files the same mode
    tighten(file)
    return _opened(file)


def _opened(file: Path | str) -> sqlite3.Connection:
    # One thread at a time works on it: the event loop's, or the store's own.
    database = sqlite3.connect(file, timeout=WAIT_S, check_same_thread=False)
    database.executescript(_SCHEMA)
    return database


class RedisStore(Store):
    """In Redis, shared by all that use the same `prefix`; how much it keeps is its own setting,
    `maxmemory`. Raises ConfigError for a URL that is none of Redis."""

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
        super().__init__("Redis", max_entry_bytes, wait_s, retry_s)
        self._prefix = prefix
        self._redis = redis_client(url, wait_s, 50, wait_s)

    async def _read(self, key: str) -> object:
        return await self._redis.get(self._prefix + key)

    async def _write(self, key: str, value: bytes, ttl_s: float) -> object:
        return await self._redis.set(self._prefix + key, value, px=max(1, int(ttl_s * 1000)))

    async def _end(self) -> None:
        await self._redis.aclose()


def cache_store(config: Config) -> Store | None:
    """The store that `cache` asks for; None for a cache that is off. Raises ConfigError."""
    settings = config.cache
    if settings.backend == "off":
        return None
    if settings.backend == "redis":
        return RedisStore(config.redis_url or "", "thriftroute:cache:", settings.max_entry_bytes)
    path = settings.path if settings.backend == "disk" else None
    return SqliteStore(path, settings.max_entries, settings.max_entry_bytes)


def session_stores(config: Config) -> list[Store]:
    """Sessions are in Redis where the config has one, and in this process besides, which answers
    while Redis is away."""
    own = SqliteStore(None, 100_000, SESSION_BYTES)
    if config.redis_url is None:
        return [own]
    return [RedisStore(config.redis_url, "thriftroute:session:", SESSION_BYTES), own]

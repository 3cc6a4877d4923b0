import asyncio
import contextlib
import sqlite3
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from thriftroute.errors import ConfigError
from thriftroute.serve.cache.store import (
    WAIT_S,
    RedisStore,
    SqliteStore,
    Store,
    cache_store,
    session_stores,
)
from thriftroute.serve.config.settings import Config
from thriftroute.tests.helpers.servers import Server, free_port, redis_server

LONG_S = 10.0  # a busy machine is no store that hangs; tests of what hangs ask for the real bound


def disk(path: Path, **options: Any) -> SqliteStore:
    return SqliteStore(path, wait_s=LONG_S, **options)


def memory(**options: Any) -> SqliteStore:
    return SqliteStore(None, **options)


def shared(url: str, prefix: str = "t:", **options: Any) -> RedisStore:
    return RedisStore(url, prefix, wait_s=LONG_S, **options)


@pytest.fixture(scope="module")
def redis_one() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "disk", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes one store of each kind, empty, with a bound of 100 bytes a value."""
    if request.param == "memory":
        return lambda: memory(max_entry_bytes=100)
    if request.param == "disk":
        return lambda: disk(tmp_path / "a" / "cache", max_entry_bytes=100)
    url = request.getfixturevalue("redis_one").url
    prefix = f"test:{tmp_path.name}:{time.monotonic_ns()}:"
    return lambda: shared(url, prefix, max_entry_bytes=100)


def use(store: Store, work: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        try:
            await work()
        finally:
            await store.close()

    asyncio.run(main())


def test_every_store_keeps_bytes(make: Callable[[], Store]) -> None:
    store = make()

    async def work() -> None:
        assert await store.get("a") is None
        value = bytes(range(100))
        await store.set("a", value, 60)
        await store.set("b", b"", 60)
        assert await store.get("a") == value
        assert await store.get("b") == b""
        await store.set("a", b"new", 60)
        assert await store.get("a") == b"new"
        assert store.failures == 0

    use(store, work)


def test_no_store_keeps_what_is_too_large_or_over(make: Callable[[], Store]) -> None:
    store = make()

    async def work() -> None:
        await store.set("large", b"x" * 101, 60)
        await store.set("over", b"x", 0)
        await store.set("soon over", b"x", 0.3)
        await asyncio.sleep(0.35)
        for key in ("large", "over", "soon over"):
            assert await store.get(key) is None
        assert store.failures == 0

    use(store, work)


def test_memory_drops_what_nobody_asks_for() -> None:
    async def work() -> None:
        store = memory(max_entries=3)
        for key in "abc":
            await store.set(key, b"x", 60)
        assert await store.get("a") == b"x"
        await store.set("d", b"x", 60)
        assert [key for key in "abcd" if await store.get(key)] == ["a", "c", "d"]

    asyncio.run(work())


def test_a_time_to_live_starts_again_with_each_write() -> None:
    now = 0.0

    async def work() -> None:
        nonlocal now
        store = memory(clock=lambda: now)
        await store.set("a", b"1", 10)
        now = 9
        await store.set("a", b"2", 10)
        now = 18.9
        assert await store.get("a") == b"2"
        now = 19
        assert await store.get("a") is None

    asyncio.run(work())


def test_disk_drops_the_oldest(tmp_path: Path) -> None:
    store = disk(tmp_path, max_entries=3)

    async def work() -> None:
        for key in "abcde":
            await store.set(key, b"x", 60)
        assert [key for key in "abcde" if await store.get(key)] == ["c", "d", "e"]

    use(store, work)


def test_disk_outlives_the_process_and_is_nobody_elses(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = disk(folder)
    use(first, lambda: first.set("a", b"x" * 100_000, 60))  # large enough for a file of its own
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    again = disk(folder)

    async def work() -> None:
        assert await again.get("a") == b"x" * 100_000

    use(again, work)


def test_disk_keeps_nothing_past_its_time(tmp_path: Path) -> None:
    store = disk(tmp_path)

    async def work() -> None:
        await store.set("over", b"private words", 0.05)
        await asyncio.sleep(0.1)
        await store.set("a", b"x", 60)
        with contextlib.closing(sqlite3.connect(tmp_path / "answers.db")) as database:
            assert database.execute("SELECT key FROM kept").fetchall() == [("a",)]

    use(store, work)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_store_is_bounded_in_bytes(tmp_path: Path, in_memory: bool) -> None:
    bounds = {"max_bytes": 500_000}
    store = memory(**bounds) if in_memory else disk(tmp_path, **bounds)

    async def work() -> None:
        for number in range(100):
            await store.set(str(number), b"x" * 20_000, 60)
        kept = [number for number in range(100) if await store.get(str(number))]
        assert 10 <= len(kept) <= 35
        assert kept[-1] == 99
        assert store.failures == 0

    use(store, work)
    assert sum(p.stat().st_size for p in tmp_path.glob("answers.db")) < 1_000_000


@pytest.mark.parametrize("value", ["text", 1.5])
def test_what_somebody_else_wrote_is_no_answer(tmp_path: Path, value: object) -> None:
    store = disk(tmp_path)

    async def work() -> None:
        await store.set("a", b"x", 600)
        with contextlib.closing(sqlite3.connect(tmp_path / "answers.db")) as database:
            database.execute("UPDATE kept SET value = ?", (value,))
            database.commit()
        assert await store.get("a") is None

    use(store, work)


def test_answers_are_nobody_elses_in_a_folder_that_all_can_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "answers.db").touch(0o644)  # as a version before this one made it
    store = disk(tmp_path)

    async def work() -> None:
        await store.set("a", b"x" * 200_000, 600)
        modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
        assert "answers.db" in modes
        assert set(modes.values()) == {0o600}
        assert await store.get("a") == b"x" * 200_000

    use(store, work)


def test_a_folder_that_cannot_be_used_is_an_error_at_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(ConfigError, match=r"cache\.path: .*file' cannot be used"):
        SqliteStore(file)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "answers.db").write_bytes(b"no database, but long enough to look like one" * 100)
    with pytest.raises(ConfigError, match=r"cache\.path: .*broken' cannot be used"):
        SqliteStore(broken)


def test_a_database_that_is_locked_is_a_miss(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)

    async def work() -> None:
        await store.set("a", b"1", 60)
        other = sqlite3.connect(tmp_path / "answers.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        await store.set("a", b"2", 60)
        assert time.monotonic() - start < 20 * WAIT_S
        assert store.failures == 1
        other.execute("ROLLBACK")
        other.close()

    use(store, work)


def test_redis_keys_expire_and_have_a_prefix(redis_one: Server) -> None:
    import redis

    store, other = (shared(redis_one.url, prefix) for prefix in ("mine:", "other:"))
    use(store, lambda: store.set("a", b"x", 60))

    async def work() -> None:
        assert await other.get("a") is None

    use(other, work)
    with redis.Redis.from_url(redis_one.url) as client:
        assert client.get("mine:a") == b"x"
        assert 0 < client.ttl("mine:a") <= 60


def test_a_redis_that_is_away_is_a_miss_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as server:
        store = shared(server.url, retry_s=0.05)

        async def work() -> None:
            await asyncio.gather(*(store.set(str(i), b"x", 60) for i in range(10)))
            assert await store.get("0") == b"x"
            server.stop()
            for _ in range(3):
                assert await store.get("0") is None
                await store.set("0", b"x", 60)
            assert store.failures >= 1
            server.start()
            await asyncio.sleep(0.1)
            await asyncio.gather(*(store.set(str(i), b"y", 60) for i in range(10)))
            await store.set("0", b"y", 60)
            assert await store.get("0") == b"y"

        use(store, work)
    said = [record.message for record in caplog.records if record.name.endswith("cache.store")]
    assert said == [
        "Redis is away (ConnectionError): nothing is found until it is back",
        "Redis is back",
    ]


def test_a_redis_that_hangs_holds_nobody_up_for_long() -> None:
    with redis_server() as server:
        store = shared(server.url)

        async def work() -> None:
            for name in "abc":
                await store.set(name, name.encode(), 60)
            server.pause()
            wait_s = 8 * WAIT_S  # long beside what a busy machine takes for 30 timeouts
            store.wait_s = wait_s
            start = time.monotonic()
            found = await asyncio.gather(*(store.get(name) for name in "abc" * 10))
            first = time.monotonic() - start
            assert found == [None] * 30
            # Each waits wait_s at most, and all at once: one after another it would be 30 times.
            assert first < 20 * wait_s
            failed = store.failures
            assert [await store.get(name) for name in "abc" * 10] == [None] * 30
            assert store.failures == failed  # not even tried
            server.resume()

        use(store, work)


def test_an_answer_that_came_too_late_is_nobody_elses() -> None:
    with redis_server() as server:
        store = shared(server.url, retry_s=0.0)

        async def work() -> None:
            names = [str(i) for i in range(20)]
            await asyncio.gather(*(store.set(name, name.encode(), 60) for name in names))
            for _ in range(3):
                server.pause()
                store.wait_s = WAIT_S
                tasks = [asyncio.create_task(store.get(name)) for name in names]
                await asyncio.sleep(0.01)
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                server.resume()
                store.wait_s = LONG_S
                for name in names:
                    assert await store.get(name) in {name.encode(), None}
            await asyncio.sleep(0.05)
            assert [await store.get(name) for name in names] == [n.encode() for n in names]

        use(store, work)


def test_a_redis_that_refuses_an_operation_is_not_away(redis_one: Server) -> None:
    import redis

    with redis.Redis.from_url(redis_one.url) as client:
        client.lpush("t:list", "no text")
    store = shared(redis_one.url)

    async def work() -> None:
        assert await store.get("list") is None
        assert store.failures == 1
        await store.set("a", b"x", 60)
        assert await store.get("a") == b"x"

    use(store, work)


def test_workers_share_a_redis(redis_one: Server) -> None:
    first, second = shared(redis_one.url), shared(redis_one.url)

    async def work() -> None:
        await first.set("shared", b"x", 60)
        assert await second.get("shared") == b"x"
        await second.close()

    use(first, work)


def test_a_store_that_hangs_still_closes() -> None:
    with redis_server() as server:
        store = shared(server.url)

        async def work() -> None:
            await store.set("a", b"x", 60)
            server.pause()
            store.wait_s = WAIT_S

        use(store, work)
        assert store.failures == 0


def config(**fields: Any) -> Config:
    models = [{"name": "strong"}, {"name": "weak"}]
    return Config.model_validate({"models": models, "strong": "strong", "weak": "weak", **fields})


def test_the_config_says_which_store(tmp_path: Path) -> None:
    assert cache_store(config()) is None
    assert [type(each) for each in session_stores(config())] == [SqliteStore]
    near = cache_store(config(cache={"backend": "memory", "max_entries": 1}))
    assert near is not None

    async def work() -> None:
        for key in "ab":
            await near.set(key, b"x", 60)
        assert [await near.get(key) for key in "ab"] == [None, b"x"]

    use(near, work)
    assert not list(tmp_path.iterdir())
    folder = cache_store(config(cache={"backend": "disk", "path": str(tmp_path)}))
    assert folder is not None
    use(folder, lambda: folder.set("a", b"x", 60))
    assert (tmp_path / "answers.db").exists()
    url = f"redis://127.0.0.1:{free_port()}"
    far = cache_store(config(cache={"backend": "redis"}, redis_url=url))
    assert isinstance(far, RedisStore)
    use(far, lambda: far.set("a", b"x", 60))


def test_a_cache_in_redis_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="redis_url: no address"):
        cache_store(config(cache={"backend": "redis"}))


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://:pass-word@host", "redis://:pass-word@host:pass-word/0"]
)
def test_an_address_that_is_none_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url: no address") as caught:
        RedisStore(url, "t:")
    assert "pass-word" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_store_is_made_in_one_thread_and_used_in_another(tmp_path: Path) -> None:
    for store in (memory(), disk(tmp_path)):

        async def work(store: SqliteStore = store) -> None:
            await store.set("a", b"x", 60)
            assert (await store.get("a"), store.failures) == (b"x", 0)

        thread = threading.Thread(target=use, args=(store, work))
        thread.start()
        thread.join()
        assert store.failures == 0

"""The recorder: what is kept, what is dropped, what the end of a process takes along."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update
from thriftroute.errors import ConfigError
from thriftroute.serve.config.settings import RecordSettings
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.records import Record, Recorder
from thriftroute.serve.records.database import create_schema, insert, open_engine
from thriftroute.serve.records.table import decisions, meta, to_row
from thriftroute.tests.helpers.servers import Server, postgres_server

NOW = 1_700_000_000.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'decisions.db'}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


def record(name: str, **fields: object) -> Record:
    return Record(**{"id": name, "time": NOW, **fields})  # type: ignore[arg-type]


def recorder(url: str | None, **fields: object) -> Recorder:
    return Recorder(RecordSettings.model_validate({"url": url, "flush_s": 0.02, **fields}))


def ids(url: str) -> set[str]:
    engine = open_engine(url)
    with engine.connect() as connection:
        found = set(connection.execute(select(decisions.c.id)).scalars())
    engine.dispose()
    return found


def drop_tables(url: str) -> None:
    engine = open_engine(url)
    decisions.metadata.drop_all(engine)
    engine.dispose()


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_what_is_put_is_written_within_the_flush_time_and_read_back_whole(url: str) -> None:
    kept = record(
        "d1",
        tenant="acme",
        key="alice",
        tier="pro",
        requested="auto",
        model="weak",
        strong=False,
        choice="weak",
        router="mf",
        score=0.25,
        threshold=0.5,
        reason="score 0.25 < 0.5",
        steps=[["rules", "none"], ["score", "0.25"]],
        attempts=[{"model": "weak", "status": 200, "usage": {"prompt_tokens": 3}}],
        task="chat",
        stream=True,
        prompt_tokens=3,
        completion_tokens=4,
        cost=0.5,
        strong_cost=1.5,
        latency_s=0.3,
        ttft_s=0.1,
        prompt="Grüße 😀",
    )
    writer = recorder(url)
    writer.start()
    writer.put(kept)
    until(lambda: writer.written == 1)
    assert writer.one("d1") == asdict(kept)
    assert writer.one("d2") is None
    assert (writer.pending, writer.dropped) == (0, 0)
    assert writer.close() == 0


def test_close_writes_all_that_waits_and_what_comes_later_is_counted_as_lost(url: str) -> None:
    writer = recorder(url, flush_s=60)
    writer.start()
    for i in range(1234):
        writer.put(record(f"d{i}"))
    assert writer.close() == 0
    assert len(ids(url)) == 1234
    writer.put(record("late"))
    assert writer.dropped == 1
    assert writer.close() == 0


def test_a_full_queue_drops_the_oldest_and_counts_them(url: str) -> None:
    writer = recorder(url, queue=5)
    for i in range(8):
        writer.put(record(f"d{i}"))
    assert (writer.pending, writer.dropped) == (5, 3)
    writer.start()
    assert writer.close() == 0
    assert ids(url) == {"d3", "d4", "d5", "d6", "d7"}


def test_a_row_that_is_there_is_not_written_twice(url: str) -> None:
    for _ in range(2):
        writer = recorder(url)
        writer.start()
        writer.put(record("d1", cost=1.0))
        writer.put(record("d1", cost=1.0))
        assert writer.close() == 0
    assert ids(url) == {"d1"}


@pytest.mark.parametrize("tokens", [2**70, {"a": 1}, object()], ids=["range", "type", "object"])
def test_a_row_that_the_database_refuses_takes_no_other_with_it(
    url: str, tokens: Any, caplog: pytest.LogCaptureFixture
) -> None:
    writer = recorder(url, flush_s=60)
    writer.start()
    for name, given in (("d1", 1), ("huge", tokens), ("d2", 2)):
        writer.put(record(name, prompt_tokens=given, prompt="a secret"))
    assert writer.close() == 0
    assert ids(url) == {"d1", "d2"}
    assert writer.dropped == 1
    assert "huge" in caplog.text
    assert "a secret" not in caplog.text


def test_two_workers_write_to_one_file_at_once(url: str) -> None:
    writers = [recorder(url) for _ in range(3)]
    threads = [threading.Thread(target=writer.start) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(1500):
        writers[i % 3].put(record(f"d{i}"))
    assert [writer.close(timeout=300) for writer in writers] == [0, 0, 0]
    assert len(ids(url)) == 1500


def test_tables_that_somebody_dropped_are_made_again(url: str) -> None:
    writer = recorder(url)
    writer.start()
    writer.put(record("d1"))
    until(lambda: writer.written == 1)
    drop_tables(url)
    writer.put(record("d2"))
    until(lambda: writer.written == 2)
    assert ids(url) == {"d2"}
    writer.close()


def test_feedback_is_kept_whether_the_row_is_written_or_waits(url: str) -> None:
    writer = recorder(url, flush_s=60)
    writer.start()
    writer.put(record("d1", tenant="acme"))
    assert writer.feedback("d1", "good", "well done")  # it waits
    assert writer.close() == 0

    writer = recorder(url)
    writer.start()
    found = writer.one("d1")
    assert found is not None
    assert (found["feedback"], found["feedback_comment"]) == (1.0, "well done")
    assert writer.feedback("d1", 0.25, tenant="acme")  # a later word replaces it
    found = writer.one("d1")
    assert found is not None
    assert (found["feedback"], found["feedback_comment"]) == (0.25, None)
    assert found["feedback_time"] > NOW
    assert not writer.feedback("d1", "bad", tenant="other")
    assert not writer.feedback("unknown", "bad")
    found = writer.one("d1")
    assert found is not None and found["feedback"] == 0.25
    writer.close()


@pytest.mark.parametrize("value", ["great", 1.5, -0.1, float("nan"), True, None])
def test_feedback_that_is_none_is_refused(url: str, value: object) -> None:
    writer = recorder(url)
    with pytest.raises(RefusedError, match="'good', 'bad' or a number") as caught:
        writer.feedback("d1", value)  # type: ignore[arg-type]
    assert caught.value.status == 400
    writer.close()


def test_old_rows_are_deleted_and_no_others(url: str) -> None:
    writer = recorder(url, keep_days=7)
    writer.start()
    now = time.time()
    for days in range(14):
        writer.put(record(f"d{days}", time=now - days * 86_400 - 60))
    until(lambda: writer.written == 14)
    assert writer.prune() == 7 or len(ids(url)) == 7  # the thread may have been first
    assert ids(url) == {f"d{days}" for days in range(7)}
    assert writer.prune(now + 7 * 86_400) == 7
    writer.close()


def test_nothing_is_kept_without_a_url() -> None:
    writer = recorder(None)
    writer.start()
    writer.put(record("d1"))
    assert writer.recent() == []
    assert writer.one("d1") is None
    assert not writer.feedback("d1", "good")
    assert writer.stats(by="model")["totals"]["requests"] == 0
    assert (writer.pending, writer.dropped, writer.close()) == (0, 0, 0)


def test_a_database_in_memory_serves_all_threads() -> None:
    writer = recorder("sqlite://")
    writer.start()
    writer.put(record("d1"))
    until(lambda: writer.written == 1)
    assert [row["id"] for row in writer.recent()] == ["d1"]
    writer.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            "sqlite:////nowhere/at/all/x.db",
            "cannot write decisions to sqlite:.*folder",
        ),
        ("mysql://user:hidden@host/db", "expected a database of sqlite or postgresql, got 'mysql'"),
        ("not a url, hidden", "expected a database of sqlite or postgresql, got 'no URL'"),
    ],
)
def test_a_url_that_cannot_be_used_stops_the_start(bad: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Recorder(RecordSettings().model_copy(update={"url": bad})).start()
    assert "hidden" not in str(caught.value)


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database at all " * 100)
    writer = recorder(f"sqlite:///{tmp_path / 'notes.txt'}")
    with pytest.raises(ConfigError, match="not a database"):
        writer.start()
    writer.close()


@pytest.mark.parametrize("version", ["1", "99"])
def test_a_table_of_another_version_is_left_alone(url: str, version: str) -> None:
    engine = open_engine(url)
    create_schema(engine)
    with engine.begin() as connection:
        connection.execute(update(meta).values(value=version))
    engine.dispose()
    writer = recorder(url)
    with pytest.raises(ConfigError, match=f"of version {version}, this thriftroute knows 4"):
        writer.start()
    writer.close()


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_tables_of_version_2_are_brought_up_to_date(
    url: str, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "postgresql":
        url = request.getfixturevalue("postgres").url
    engine = open_engine(url)
    create_schema(engine)
    added = {
        "decisions": ("look", "escalated", "look_wrong", "sent_strong"),
        "daily": (
            *("looked", "escalated", "scored", "sent_strong"),
            *("cache_saving", "look_cost", "look_saving"),
        ),
    }
    rows = [
        record("old", model="weak", strong=False, choice="weak", score=0.4, threshold=0.5),
        record("older", model="strong", strong=True, choice="pool", score=0.4),
        record("named", model="strong", strong=True, choice="direct", strong_cost=2.0, cache="hit"),
    ]
    with engine.begin() as connection:
        insert(connection, [to_row(row) for row in rows])
        connection.execute(text("DROP INDEX thriftroute_decisions_report"))
        for table, columns in added.items():
            for name in columns:
                connection.execute(text(f"ALTER TABLE thriftroute_{table} DROP COLUMN {name}"))
        connection.execute(
            text("CREATE INDEX thriftroute_decisions_report ON thriftroute_decisions (time)")
        )
        for name in ("strong", "known"):  # which the older server counted
            column = f"{name} BIGINT DEFAULT 0 NOT NULL"
            connection.execute(text(f"ALTER TABLE thriftroute_daily ADD COLUMN {column}"))
        connection.execute(update(meta).values(value="2"))
    engine.dispose()
    writer = recorder(url)
    writer.start()
    for name, escalated in (("a", True), ("b", False), ("c", None)):
        writer.put(record(name, escalated=escalated, model="weak"))
    assert writer.close() == 0
    again = recorder(url)
    again.start()
    for filters in ({}, {"model": "weak"}):  # from the sums by day, and from the rows
        totals = again.stats(filters=filters)["totals"]
        assert (totals["looked"], totals["escalated"]) == (2, 1)
        assert totals["requests"] == (4 if filters else 6)
        # Of what was there before, too.
        assert (totals["scored"], totals["strong_share"]) == ((1, 0) if filters else (2, 0.5))
        assert totals["cache_saving"] == (0 if filters else 2)
    again.close()


KILLED = """
import sys
from thriftroute.serve.records import Record, Recorder
from thriftroute.serve.config.settings import RecordSettings

recorder = Recorder(RecordSettings(url=sys.argv[1], flush_s=0.02))
recorder.start()
for i in range(1_000_000):
    recorder.put(Record(id=f"d{i}", time=float(i)))
    print(i + 1, recorder.pending, flush=True)
"""


def test_kill_9_loses_no_more_than_what_was_pending(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        for line in lines:
            put, pending = map(int, line.split())
            if put - pending >= 1000:
                break
        process.kill()
        # What it said between our decision and its end counts too.
        for line in lines:
            if line.endswith("\n"):
                put, pending = map(int, line.split())
    assert process.returncode == -signal.SIGKILL
    kept = ids(url)
    assert len(kept) >= put - pending
    assert kept == {f"d{i}" for i in range(len(kept))}  # the newest are lost, none in between


ENDED = """
import sys
from thriftroute.serve.records import Record, Recorder
from thriftroute.serve.config.settings import RecordSettings

recorder = Recorder(RecordSettings(url=sys.argv[1], flush_s=60))
recorder.start()
for i in range(700):
    recorder.put(Record(id=f"d{i}", time=float(i)))
"""

SERVED = """
import contextlib
import sys
import uvicorn
from starlette.applications import Starlette
from thriftroute.serve.records import Record, Recorder
from thriftroute.serve.config.settings import RecordSettings

recorder = Recorder(RecordSettings(url=sys.argv[1], flush_s=60))

@contextlib.asynccontextmanager
async def lifespan(app):
    recorder.start()
    for i in range(700):
        recorder.put(Record(id=f"d{i}", time=float(i)))
    print("ready", flush=True)
    yield
    recorder.close()

uvicorn.run(Starlette(lifespan=lifespan), port=0, log_level="error")
"""


def test_the_end_of_the_interpreter_writes_all_that_waits(url: str) -> None:
    subprocess.run([sys.executable, "-c", ENDED, url], check=True)
    assert len(ids(url)) == 700


def test_sigterm_of_a_server_writes_all_that_waits(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVED, url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert lines.readline() == "ready\n"
        process.terminate()
        process.wait(300)
    assert len(ids(url)) == 700


def test_a_full_disk_makes_rows_wait_and_loses_none(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite's own limit on the pages of a file: its error is that of a full disk."""
    pages = 60
    made = recorder(url, text=True)
    assert made.engine is not None

    @event.listens_for(made.engine, "connect")
    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    made.start()
    names = {f"row-{i}" for i in range(100)}
    for name in sorted(names):
        made.put(record(name, prompt="x" * 5000))
    until(lambda: "decisions wait for" in caplog.text)
    assert made.pending > 0
    made.put(record("later"))  # nobody waits for it
    pages = 10**6
    made.engine.dispose()
    until(lambda: made.pending == 0)
    assert (made.dropped, made.close()) == (0, 0)
    assert ids(url) == {*names, "later"}


def test_postgresql_away_and_back_loses_nothing(
    postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    writer = recorder(postgres.url)
    writer.start()
    for i in range(10):
        writer.put(record(f"pg{i}"))
    until(lambda: writer.written == 10)

    postgres.kill()
    try:
        for i in range(10, 800):
            writer.put(record(f"pg{i}"))
        until(lambda: "decisions wait for" in caplog.text)
        assert writer.pending >= 790 - 500
        with pytest.raises(RefusedError, match="cannot be reached") as caught:
            writer.recent()
        assert caught.value.status == 503
    finally:
        postgres.start()
    until(lambda: writer.written == 800)
    assert writer.close() == 0
    assert {f"pg{i}" for i in range(800)} <= ids(postgres.url)
    assert writer.dropped == 0
    assert caplog.text.count("decisions wait for") == 1  # once, not at every try
    assert caplog.text.count("written again") == 1


def test_a_start_without_postgresql_waits_for_it_and_shows_no_password(
    postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    postgres.stop()
    try:
        writer = recorder(postgres.url.replace("@", ":hidden@", 1))
        writer.start()
        writer.put(record("early"))
        assert "decisions wait for" in caplog.text
    finally:
        postgres.start()
    until(lambda: writer.written == 1)
    assert writer.close() == 0
    assert "hidden" not in caplog.text


def test_closing_without_a_database_ends_in_time_and_says_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = recorder("postgresql://nobody:hidden@127.0.0.1:1/none")
    writer.start()
    for i in range(7):
        writer.put(record(f"d{i}"))
    assert writer.close(timeout=0.3) == 7
    assert writer.dropped == 7
    assert "7 decisions were not written" in caplog.text
    assert caplog.text.count("decisions wait for") == 1  # of three tries at least
    assert "hidden" not in caplog.text


def test_a_postgresql_that_hangs_holds_up_neither_put_nor_the_end(postgres: Server) -> None:
    writer = recorder(postgres.url)
    writer.start()
    writer.put(record("before"))
    until(lambda: writer.written == 1)
    engine = open_engine(postgres.url)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE thriftroute_decisions IN EXCLUSIVE MODE"))
        for i in range(1000):
            writer.put(record(f"hung{i}"))
        assert writer.pending == 1000
        assert writer.close(timeout=0.3) == 1000
    engine.dispose()
    until(lambda: "thriftroute-records" not in {t.name for t in threading.enumerate()})


def test_postgresql_takes_text_that_it_would_refuse_and_workers_that_start_at_once(
    postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    drop_tables(postgres.url)
    writers = [recorder(postgres.url) for _ in range(8)]
    threads = [threading.Thread(target=writer.start) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    odd = record(
        "odd",
        tenant="nul\0" + "ü" * 5000,
        task="half \ud800",
        model="m" * 5000,
        key="k" * 5000,
        choice="c" * 5000,
        tier="t" * 5000,
        score=float("nan"),
        cost=float("inf"),
        attempts=[{"model": "\0", "seconds": float("inf")}],
        answer="\0" * 50_000,
    )
    writers[0].put(odd)
    until(lambda: writers[0].written == 1)
    found = writers[1].one("odd")
    assert found is not None
    assert found["tenant"].startswith("nul\ufffdü")
    assert len(found["tenant"].encode()) <= 256
    assert (found["task"], found["score"], found["cost"]) == ("half ?", None, 0)
    assert found["attempts"] == [{"model": "\ufffd", "seconds": None}]
    assert len(found["answer"]) == 32_000
    assert writers[2].feedback("odd", "bad", "\0")
    engine = open_engine(postgres.url)
    with engine.connect() as connection:
        rated = select(func.count()).where(decisions.c.feedback == 0)
        assert connection.execute(rated).scalar() == 1
    engine.dispose()
    for writer in writers:
        assert writer.close() == 0
    assert not caplog.records


def test_postgresql_refuses_a_value_of_another_type_and_keeps_the_rows_behind_it(
    postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    drop_tables(postgres.url)
    writer = recorder(postgres.url, flush_s=60)
    writer.start()
    for name, look in (("d1", 0.5), ("bool", True), ("d2", None)):
        writer.put(record(name, look=look))
    assert (writer.close(), writer.dropped) == (0, 1)
    assert ids(postgres.url) == {"d1", "d2"}
    assert "decision bool cannot be kept" in caplog.text

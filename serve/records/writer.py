"""The recorder: decisions go to the database off the hot path, through one thread of their own."""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from ...errors import ConfigError
from ..config.settings import RecordSettings
from ..errors import RefusedError
from . import arms as sums
from . import stats as reports
from .daily import insert
from .record import Record
from .table import create_schema, decisions, is_away, open_engine, shown, to_row

BATCH = 500  # rows a transaction
PRUNE_EVERY_S = 3600.0
PRUNE_BATCH = 5000  # rows a transaction: nobody waits long for its lock
BACKOFF_S = (0.2, 5.0)  # the first wait after a failure, and the longest

_log = logging.getLogger("thriftroute.records")


class Recorder:
    """Keeps decisions in a database without ever making a request wait or fail.

    `put` appends to a queue in memory; a thread writes it, at the latest every `flush_s` seconds,
    in transactions of up to 500 rows. A row is there once however often it was tried: the insert
    passes over an id that exists. While the database is away rows wait, and past `queue` waiting
    rows the oldest are dropped and counted (`dropped`).

    What can be lost: `close`, which SIGTERM and the end of the interpreter lead to, writes all
    that waits. kill -9 loses the rows that `pending` counts at that moment, which are those of the
    last `flush_s` seconds and of the write under way where the database keeps up; none that was
    written. The end of the machine (power) may take the last commits of SQLite with it too.

    All methods but `check`, `start` and `close` may be called from any thread; `put` never waits
    for the database, the others do. With `settings.url` None nothing is kept and every report is
    empty.
    """

    def __init__(self, settings: RecordSettings) -> None:
        self.settings = settings
        self.engine: Engine | None = None if settings.url is None else open_engine(settings.url)
        self._queue: deque[Record] = deque()
        self._batch: list[Record] = []  # taken from the queue, not written yet
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._deadline = float("inf")
        self._schema = False
        self._away = False
        self._closed = False
        self._written = 0
        self._dropped = 0
        self._next_prune = 0.0

    @property
    def pending(self) -> int:
        """Rows that wait to be written."""
        with self._lock:  # rows on their way from the queue to the batch are in neither
            return self._waiting()

    @property
    def dropped(self) -> int:
        """Rows lost so far: the queue was full, or the database refuses the row itself."""
        return self._dropped

    @property
    def written(self) -> int:
        """Rows written so far."""
        return self._written

    @property
    def healthy(self) -> bool:
        """False while the database is away; rows wait then."""
        return not self._away

    def check(self) -> None:
        """What `start` would raise, before anything is served; no connection is kept."""
        if self.engine is not None:
            self._make_tables(self.engine)
            self.engine.dispose()  # processes that are started from here need their own

    def start(self) -> None:
        """Make the table and start to write.

        Raises ConfigError where SQLite's file cannot be opened, or the table is of a newer version.
        A PostgreSQL that cannot be reached is only logged: what is put meanwhile waits for it.
        """
        if self.engine is None or self._thread is not None:
            return
        self._make_tables(self.engine)
        self._thread = threading.Thread(target=self._run, name="thriftroute-records", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _make_tables(self, engine: Engine) -> None:
        try:
            create_schema(engine)
            self._schema = True
        except SQLAlchemyError as error:
            # Locked: other workers start as well.
            if engine.dialect.name == "sqlite" and "locked" not in str(error):
                where = shown(engine)
                raise ConfigError(
                    f"records.url: cannot write decisions to {where}: {_cause(error)}; does its "
                    "folder exist, and may this user write there?"
                ) from None
            self._log_away(error)

    def put(self, record: Record) -> None:
        """Keep the record, soon. Never waits and never raises; leave the record alone from now."""
        if self.engine is None:
            return
        with self._lock:
            if self._closed:
                self._dropped += 1
                return
            if self._queue and self._waiting() >= self.settings.queue:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(record)
            full = len(self._queue) >= BATCH
        if full:
            self._wake.set()

    def close(self, timeout: float = 10.0) -> int:
        """Write what waits, for at most `timeout` seconds, and stop; the number of rows lost.

        Further calls do nothing.
        """
        if self.engine is None or self._closed:
            return 0
        atexit.unregister(self.close)
        if self._thread is not None:
            self._deadline = time.monotonic() + timeout
            self._closing.set()
            self._wake.set()
            self._thread.join(timeout + 0.5)
            stuck = self._thread.is_alive()
            self._thread = None
        else:
            stuck = False
        with self._lock:
            lost = self._waiting()
            self._closed = True
            self._queue.clear()
            self._batch = []
            self._dropped += lost
        if lost:
            _log.error("%d decisions were not written to %s", lost, shown(self.engine))
        if not stuck:  # a connection in use cannot be closed from here
            self.engine.dispose()
        return lost

    # Reports and feedback: synchronous, for a thread.

    def feedback(
        self,
        id: str,
        value: Literal["good", "bad"] | float,
        comment: str | None = None,
        *,
        tenant: str | None = None,
    ) -> bool:
        """Note what a user thought of an answer; a later word replaces an earlier one.

        value: "good" (1), "bad" (0), or a score in [0, 1]. tenant: only decisions of this tenant;
        None: of any. False where there is no such decision (one that another worker has put may
        take `flush_s` seconds to appear). Raises RefusedError (400) for any other value.
        """
        known = {"good": 1.0, "bad": 0.0}
        score = known.get(value) if isinstance(value, str) else value
        if score is None or isinstance(value, bool) or not 0 <= score <= 1:
            raise RefusedError(
                400, "invalid_feedback", "feedback is 'good', 'bad' or a number from 0 to 1"
            )
        if self.engine is None:
            return False
        rows = decisions.c.id == id
        if tenant is not None:
            rows &= decisions.c.tenant == tenant
        values = {
            "feedback": float(score),
            "feedback_comment": None if comment is None else _plain(comment),
            "feedback_time": time.time(),
        }
        with self._lock:  # not written yet: the row will bring it along
            for record in self._queue:
                if record.id == id and tenant in {None, record.tenant}:
                    for name, item in values.items():
                        setattr(record, name, item)
                    return True
        for _ in range(50):  # the batch under way may hold it
            writing = any(record.id == id for record in list(self._batch))
            with self._reached(), self.engine.begin() as connection:
                if connection.execute(update(decisions).where(rows).values(values)).rowcount:
                    return True
            if not writing:
                return False
            time.sleep(0.02)
        return False

    def recent(
        self, limit: int = 50, filters: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The latest decisions, newest first; see `stats.recent`."""
        with self._reached():
            return [] if self.engine is None else reports.recent(self.engine, limit, filters)

    def one(self, id: str, *, tenant: str | None = None) -> dict[str, Any] | None:
        """The decision with that id (and tenant), None where there is none."""
        with self._reached():
            return None if self.engine is None else reports.one(self.engine, id, tenant=tenant)

    def stats(
        self,
        since: float | None = None,
        by: str | None = None,
        *,
        until: float | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Spend, saving, strong share, latency, tokens: in all and by group; see `stats.stats`."""
        with self._reached():
            return reports.stats(self.engine, since, by, until=until, filters=filters)

    def export(
        self, *, since: float | None = None, until: float | None = None, rated: bool = False
    ) -> Iterator[dict[str, Any]]:
        """All decisions of a time, oldest first; see `stats.export`."""
        with self._reached():
            if self.engine is not None:
                yield from reports.export(self.engine, since=since, until=until, rated=rated)

    def arms(
        self, experiment: str, by: str, since: float | None = None, *, until: float | None = None
    ) -> dict[str, dict[str, Any]]:
        """An experiment's arms, to be compared; see `arms.arms`."""
        with self._reached():
            return sums.arms(self.engine, experiment, by=by, since=since, until=until)

    def shadow(self, since: float | None = None, *, until: float | None = None) -> dict[str, Any]:
        """What shadow mode would have done and saved; see `arms.shadow`."""
        with self._reached():
            return sums.shadow(self.engine, since=since, until=until)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            _log.warning("a report failed: %s", _cause(error))
            raise RefusedError(
                503, "records_unavailable", "the database of decisions cannot be reached just now"
            ) from None

    def _waiting(self) -> int:
        return len(self._queue) + len(self._batch)

    # The thread.

    def _run(self) -> None:
        try:
            self._write_on()
        finally:
            if self._closed and self.engine is not None:  # `close` went on without this thread
                self.engine.dispose()

    def _write_on(self) -> None:
        wait = BACKOFF_S[0]
        while True:
            if not self._batch and not self._queue:
                if self._closing.is_set():
                    return
                self._prune_when_due()
            if not self._closing.is_set():
                self._wake.wait(self.settings.flush_s)
            self._wake.clear()
            while self._take():
                if self._write():
                    wait = BACKOFF_S[0]
                    continue
                left = self._deadline - time.monotonic()
                if left <= 0:
                    return
                # Closing cuts the wait short; `put` does not, or it would try at every request.
                if not self._closing.wait(min(wait, left)):
                    wait = min(wait * 2, BACKOFF_S[1])
                else:
                    time.sleep(min(BACKOFF_S[0], left))

    def _take(self) -> bool:
        with self._lock:
            while self._queue and len(self._batch) < BATCH:
                self._batch.append(self._queue.popleft())
        return bool(self._batch)

    def _write(self) -> bool:
        """Write the batch; False where the database is away. Rows that it refuses are dropped."""
        assert self.engine is not None
        try:
            if not self._schema:
                create_schema(self.engine)
                self._schema = True
            with self.engine.begin() as connection:
                insert(connection, [to_row(record) for record in self._batch])
            self._done(len(self._batch))
        except Exception as error:  # noqa: BLE001 - the thread must live, whatever the driver raises
            if is_away(error) or isinstance(error, ConfigError):
                self._log_away(error)
                return False
            return self._write_singly()
        return True

    def _write_singly(self) -> bool:
        assert self.engine is not None
        while self._batch:
            try:
                with self.engine.begin() as connection:
                    insert(connection, [to_row(self._batch[0])])
                self._done(1)
            except Exception as error:  # noqa: BLE001 - as above
                if is_away(error):
                    self._log_away(error)
                    return False
                _log.error("decision %s cannot be kept: %s", self._batch[0].id, _cause(error))
                with self._lock:
                    del self._batch[0]
                    self._dropped += 1
        return True

    def _done(self, count: int) -> None:
        with self._lock:
            del self._batch[:count]
            self._written += count
        if self._away:
            self._away = False
            _log.warning("decisions are written again")

    def _log_away(self, error: Exception) -> None:
        self._schema = False  # it may come back empty
        if not self._away and self.engine is not None:
            self._away = True
            _log.warning("decisions wait for %s: %s", shown(self.engine), _cause(error))

    def _prune_when_due(self) -> None:
        if self.settings.keep_days is None or time.monotonic() < self._next_prune:
            return
        try:
            if self._prune_some(time.time()) < PRUNE_BATCH:
                self._next_prune = time.monotonic() + PRUNE_EVERY_S
        except Exception as error:  # noqa: BLE001 - as above
            self._next_prune = time.monotonic() + PRUNE_EVERY_S
            _log.warning("old decisions stay for now: %s", _cause(error))

    def prune(self, now: float | None = None) -> int:
        """Delete decisions older than `keep_days`; how many. It happens hourly by itself.

        What they add up to stays, a sum a day."""
        total, count = 0, PRUNE_BATCH
        while count == PRUNE_BATCH:
            count = self._prune_some(time.time() if now is None else now)
            total += count
        return total

    def _prune_some(self, now: float) -> int:
        if self.engine is None or self.settings.keep_days is None:
            return 0
        old = select(decisions.c.id).where(
            decisions.c.time < now - self.settings.keep_days * 86_400
        )
        # Two workers that prune at once take different rows.
        old = old.limit(PRUNE_BATCH).with_for_update(skip_locked=True)
        with self.engine.begin() as connection:
            return connection.execute(delete(decisions).where(decisions.c.id.in_(old))).rowcount


def _cause(error: Exception) -> str:
    """What the driver said, in a line, without the statement and its values."""
    text = str(getattr(error, "orig", None) or error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def _plain(comment: str) -> str:
    return comment.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[:2000]

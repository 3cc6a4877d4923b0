"""The recorder: decisions go to the database off the hot path, through one thread of their own."""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partialmethod
from typing import Any, TypeVar

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from ...router.output_tokens import OutputTokens
from ..config.settings import RecordSettings
from ..errors import RefusedError, bad_setting
from . import arms, stats, traffic
from .database import create_schema, insert, is_away, noted, open_engine, shown
from .record import Record
from .table import clean_text, decisions, to_row

BATCH = 500  # rows a transaction
PRUNE_EVERY_S = 3600.0
PRUNE_BATCH = 5000  # rows a transaction: nobody waits long for its lock
BACKOFF_S = (0.2, 5.0)  # the first wait after a failure, and the longest
COMMENT_CHARS = 2000
RATINGS = {"good": 1.0, "bad": 0.0}

T = TypeVar("T")
_log = logging.getLogger("thriftroute.records")


class Recorder:
    """Keeps decisions in a database without ever making a request wait or fail.

    `put` appends to a queue in memory; a thread writes it, at the latest every `flush_s` seconds;
    an id that is there is passed over. While the database is away rows wait, and past `queue`
    waiting rows the oldest are dropped and counted. All methods but `check`, `start` and `close`
    may be called from any thread; `put` never waits for the database, the others do. Without a URL
    nothing is kept and every report is empty.
    """

    def __init__(self, settings: RecordSettings) -> None:
        self.settings = settings
        self.engine: Engine | None = None if settings.url is None else open_engine(settings.url)
        self.written = 0  # rows so far
        self.dropped = 0  # rows lost: the queue was full, or the database refuses the row itself
        self._queue: deque[Record] = deque()
        self._batch: list[Record] = []  # taken from the queue, not written yet
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # held by a write under way
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._deadline = float("inf")
        self._schema = False
        self._away = False
        self._closed = False
        self._next_prune = 0.0

    @property
    def pending(self) -> int:
        """Rows that wait to be written."""
        with self._lock:  # rows on their way from the queue to the batch are in neither
            return len(self._queue) + len(self._batch)

    def check(self) -> None:
        """What `start` would raise, before anything is served; no connection is kept."""
        if self.engine is not None:
            self._make_tables(self.engine)
            self.engine.dispose()  # processes that are started from here need their own

    def start(self) -> None:
        """Make the tables and start to write. A PostgreSQL that cannot be reached is only logged.
        Raises ConfigError where SQLite's file cannot be opened, or the table is of a newer version.
        """
        if self.engine is None or self._thread is not None:
            return
        self._make_tables(self.engine)
        self._thread = threading.Thread(target=self._work, name="thriftroute-records", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _make_tables(self, engine: Engine) -> None:
        try:
            create_schema(engine)
            self._schema = True
        except SQLAlchemyError as error:
            # Locked: other workers start as well.
            if engine.dialect.name == "sqlite" and "locked" not in str(error):
                problem = f"cannot write decisions to {shown(engine)}: {_cause(error)}; does its "
                problem += "folder exist, and may this user write there?"
                raise bad_setting("records.url", problem) from None
            self._log_away(error)

    def put(self, record: Record) -> None:
        """Keep the record, soon. Never waits and never raises; leave the record alone from now."""
        if self.engine is None:
            return
        with self._lock:
            if self._closed:
                self.dropped += 1
                return
            if self._queue and len(self._queue) + len(self._batch) >= self.settings.queue:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(record)
            full = len(self._queue) >= BATCH
        if full:
            self._wake.set()

    def close(self, timeout: float = 10.0) -> int:
        """Write what waits, for at most `timeout` seconds, and stop; the number of rows lost."""
        if self.engine is None or self._closed:
            return 0
        atexit.unregister(self.close)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._deadline = time.monotonic() + timeout
            self._closing.set()
            self._wake.set()
            thread.join(timeout + 0.5)
        with self._lock:
            lost = len(self._queue) + len(self._batch)
            self._closed = True
            self._queue.clear()
            self._batch = []
            self.dropped += lost
        if lost:
            _log.error("%d decisions were not written to %s", lost, shown(self.engine))
        if thread is None or not thread.is_alive():  # else one is in use, and closes there
            self.engine.dispose()
        return lost

    # Reports and feedback: synchronous, for a thread.

    def feedback(
        self,
        id: str,
        value: str | float,
        comment: str | None = None,
        *,
        look_wrong: bool | None = None,
        tenant: str | None = None,
    ) -> bool:
        """Note what a user thought of an answer; a later word replaces an earlier one.

        value: "good" (1), "bad" (0), or a score in [0, 1]. look_wrong: whether the second look was:
        a weak answer stayed that should not, or the strong model was asked for nothing. tenant:
        only decisions of this tenant; None: of any. False where there is no such decision. Raises
        RefusedError (400).
        """
        score = RATINGS.get(value) if isinstance(value, str) else value
        if score is None or isinstance(value, bool) or not 0 <= score <= 1:
            problem = "feedback is 'good', 'bad' or a number from 0 to 1"
            raise RefusedError(400, "invalid_feedback", problem)
        if self.engine is None:
            return False
        rows = (decisions.c.id == id) & (tenant is None or decisions.c.tenant == tenant)
        values = {
            "feedback": float(score),
            "feedback_comment": None if comment is None else clean_text(comment)[:COMMENT_CHARS],
            "feedback_time": time.time(),
            **({} if look_wrong is None else {"look_wrong": look_wrong}),
        }
        with self._writing, self._lock:  # what is not written yet will bring it along
            for record in (*self._batch, *self._queue):
                if record.id == id and tenant in {None, record.tenant}:
                    for name, item in values.items():
                        setattr(record, name, item)
                    return True
        with self._reached(), self.engine.begin() as connection:
            return bool(connection.execute(update(decisions).where(rows).values(values)).rowcount)

    def _ask(self, query: Callable[..., T], *args: Any, **options: Any) -> T:
        with self._reached():
            return query(self.engine, *args, **options)

    # Each as the function of its name in `stats`, `arms`, `traffic` and `database`, on this engine.
    recent: partialmethod[list[dict[str, Any]]] = partialmethod(_ask, stats.recent)
    one: partialmethod[dict[str, Any] | None] = partialmethod(_ask, stats.one)
    shadow: partialmethod[dict[str, Any]] = partialmethod(_ask, arms.shadow)
    arms: partialmethod[dict[str, dict[str, Any]]] = partialmethod(_ask, arms.arms)
    output_tokens: partialmethod[OutputTokens] = partialmethod(_ask, stats.output_tokens)
    stats: partialmethod[dict[str, Any]] = partialmethod(_ask, stats.stats)
    traffic: partialmethod[dict[str, Any]] = partialmethod(_ask, traffic.traffic)
    noted: partialmethod[str | None] = partialmethod(_ask, noted)

    def export(self, filters: Mapping[str, Any]) -> Iterator[str]:
        """The decisions that `recent` would list, all of them, as lines of JSON, oldest first."""
        if self.engine is not None:
            with self._reached():
                yield from stats.jsonl(stats.export(self.engine, filters=filters))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            _log.warning("a report failed: %s", _cause(error))
            problem = "the database of decisions cannot be reached just now"
            raise RefusedError(503, "records_unavailable", problem) from None

    def _work(self) -> None:
        """The thread."""
        self._write_all()
        if self._closed and self.engine is not None:  # `close` went on without this thread
            self.engine.dispose()

    def _write_all(self) -> None:
        wait = BACKOFF_S[0]
        while self._batch or self._queue or not self._closing.is_set():
            if not self._batch and not self._queue:
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
        """False where the database is away. Rows that it refuses are dropped, one by one."""
        assert self.engine is not None
        size = len(self._batch)
        while rows := self._batch[:size]:
            kept = len(rows)
            try:
                if not self._schema:
                    create_schema(self.engine)
                    self._schema = True
                with self._writing, self.engine.begin() as connection:
                    insert(connection, [to_row(record) for record in rows])
            except Exception as error:  # noqa: BLE001 - the thread must live, whatever the driver raises
                if is_away(error):
                    self._log_away(error)
                    return False
                if size > 1:
                    size = 1
                    continue
                kept = 0
                _log.error("decision %s cannot be kept: %s", rows[0].id, _cause(error))
            with self._lock:
                del self._batch[: len(rows)]
                self.written += kept
                self.dropped += len(rows) - kept
            if kept and self._away:
                self._away = False
                _log.warning("decisions are written again")
        return True

    def _log_away(self, error: Exception) -> None:
        self._schema = False  # it may come back empty
        if not self._away and self.engine is not None:
            self._away = True
            _log.warning("decisions wait for %s: %s", shown(self.engine), _cause(error))

    def _prune_when_due(self) -> None:
        if time.monotonic() < self._next_prune:
            return
        deleted = 0
        try:
            deleted = self.prune()
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("old decisions stay for now: %s", _cause(error))
        if deleted < PRUNE_BATCH:
            self._next_prune = time.monotonic() + PRUNE_EVERY_S

    def prune(self, now: float | None = None) -> int:
        """Delete decisions older than `keep_days`, 5,000 at most; how many. It happens hourly by
        itself. What they add up to stays, a sum a day."""
        if self.engine is None or self.settings.keep_days is None:
            return 0
        end = (time.time() if now is None else now) - self.settings.keep_days * 86_400
        old = select(decisions.c.id).where(decisions.c.time < end).limit(PRUNE_BATCH)
        # Two workers that prune at once take different rows.
        old = old.with_for_update(skip_locked=True)
        with self.engine.begin() as connection:
            return connection.execute(delete(decisions).where(decisions.c.id.in_(old))).rowcount


def _cause(error: Exception) -> str:
    """What the driver said, in a line, without the statement and its values."""
    text = str(getattr(error, "orig", None) or error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"

"""Where decisions are kept: the tables, their version, and how a record becomes a row of it.

SQLite (in WAL mode) or PostgreSQL (psycopg 3). Reading from it is `stats`', writing `writer`'s.
"""

import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool
from sqlalchemy.schema import CreateIndex, CreateTable

from ...errors import ConfigError, require_extra
from ...files import tighten
from .record import Record

VERSION = 2  # of the table. Raising it: add the ALTERs that lead there to create_schema
CONNECT_S = 5  # for PostgreSQL to answer
NAME_BYTES = 256  # an index entry of PostgreSQL holds 2,704 bytes: longer names are cut
TEXT_CHARS = 32_000  # longer prompts and answers are cut: a full queue must fit into memory
_LOCK = 0x7472_6966_7472  # of creating the table, among PostgreSQL's advisory locks

_log = logging.getLogger("thriftroute.records")

_metadata = MetaData()

meta = Table(
    "thriftroute_meta",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

decisions = Table(
    "thriftroute_decisions",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("time", Float(53), nullable=False),  # seconds since the epoch, UTC
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("tier", Text),
    Column("requested", Text, nullable=False),
    Column("model", Text),
    Column("strong", Boolean),
    Column("choice", Text),
    Column("router", Text),
    Column("score", Float(53)),
    Column("threshold", Float(53)),
    Column("reason", Text),
    Column("steps", JSON, nullable=False),
    Column("attempts", JSON, nullable=False),
    Column("task", Text),
    Column("session_hash", Text),
    Column("stream", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", Text),
    Column("cache", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost", Float(53), nullable=False),
    Column("strong_cost", Float(53), nullable=False),
    Column("latency_s", Float(53), nullable=False),
    Column("overhead_s", Float(53)),
    Column("ttft_s", Float(53)),
    Column("prompt_hash", Text),
    Column("prompt", Text),
    Column("answer", Text),
    Column("feedback", Float(53)),
    Column("feedback_comment", Text),
    Column("feedback_time", Float(53)),
    # Since version 2.
    Column("arm", Text),
    Column("routed", Text),
    Column("routed_cost", Float(53)),
    Column("familiarity", Float(53)),
    # For reports only: what the record computes, and the latency in steps of 5%.
    Column("fallbacks", Integer, nullable=False),
    Column("latency_step", Integer, nullable=False),
)

# Sums by day (UTC) and by each name of a dimension, kept along with the rows: a report of months
# reads some thousands of these, and they stay when old decisions are deleted.
daily = Table(
    "thriftroute_daily",
    _metadata,
    Column("day", Integer, primary_key=True),  # since the epoch
    Column("dimension", Text, primary_key=True),
    Column("name", Text, primary_key=True),  # "" where there is none
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("answered", BigInteger, nullable=False),
    Column("strong", BigInteger, nullable=False),
    Column("known", BigInteger, nullable=False),
    Column("cache_hits", BigInteger, nullable=False),
    Column("fallbacks", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost", Float(53), nullable=False),
    Column("strong_cost", Float(53), nullable=False),
    Column("overhead", Float(53), nullable=False),
    Column("timed", BigInteger, nullable=False),
)

DERIVED = frozenset({"fallbacks", "latency_step"})
_NAMES = frozenset(
    {"id", "tenant", "key", "tier", "requested", "model", "choice", "task", "router", "routed"}
)

# All that a report reads, in the order of time: rows are summed from the index alone, without their
# texts. Feedback is not in it, so that a vote rewrites no index entry.
_REPORTED = [
    *("tenant", "key", "tier", "model", "strong", "choice", "task", "status", "cache"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost", "strong_cost", "overhead_s", "fallbacks", "latency_step"),
]
_indexes = {
    "sqlite": Index(
        "thriftroute_decisions_report", decisions.c.time, *(decisions.c[n] for n in _REPORTED)
    ),
    "postgresql": Index(
        "thriftroute_decisions_report", decisions.c.time, postgresql_include=_REPORTED
    ),
}


def open_engine(url: str) -> Engine:
    """An engine for `url`; nothing is opened yet.

    Raises ConfigError for a URL that is none, or of a database other than SQLite and PostgreSQL,
    and MissingExtraError where psycopg is not installed. Passwords and rows stay out of the errors
    that the engine raises.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "records.url: expected a database URL such as sqlite:///thriftroute.db or "
            "postgresql://user:password@host/database"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(parsed)
    if backend in {"postgresql", "postgres"}:
        require_extra("psycopg", "postgres")
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=4,
            # They bound how long a server that is gone can hold a thread.
            connect_args={
                "connect_timeout": CONNECT_S,
                "keepalives_idle": 10,
                "tcp_user_timeout": 10_000,
                "prepare_threshold": None,  # prepared statements do not survive a PgBouncer
            },
        )
    raise ConfigError(f"records.url: expected a database of sqlite or postgresql, got {backend!r}")


def _open_sqlite(url: URL) -> Engine:
    path = sqlite_path(url)
    in_memory = path is None
    engine = create_engine(
        url.set(drivername="sqlite"),
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": CONNECT_S},
        poolclass=QueuePool,
        # A database in memory is its connection: all threads take turns with the one.
        pool_size=1 if in_memory else 4,
        max_overflow=0 if in_memory else 4,
    )

    @event.listens_for(engine, "do_connect")
    def _make_private(*_: Any) -> None:
        # SQLite would make a file that all may read; -wal and -shm get the rights of the file.
        if path is not None and url.query.get("mode", "rwc") == "rwc":
            with suppress(OSError):  # which SQLite is about to tell
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {CONNECT_S * 1000}")
        # Readers do not wait for the writer; a commit survives the end of the process, kill -9
        # included, but the last ones may be lost where the machine loses power.
        with suppress(Exception):  # another process is just doing the same: the file remembers
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    return engine


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite database; None where it is in memory, or of another kind."""
    name = url.database
    if url.get_backend_name() != "sqlite" or name in {None, "", ":memory:"}:
        return None
    assert name is not None
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
        if not name or name == ":memory:" or url.query.get("mode") == "memory":
            return None
    return Path(name)


def open_recorded(url: str) -> Engine:
    """An engine for the database of a server that has recorded: as `open_engine`, and ConfigError
    where `url` names a SQLite file that is not there, which reading would make."""
    engine = open_engine(url)
    path = sqlite_path(engine.url)
    if path is not None and not path.exists():
        engine.dispose()
        raise ConfigError(
            f"the records cannot be read: there is no {path}; take the records.url of a server"
        )
    return engine


def shown(engine: Engine) -> str:
    """The engine's URL without its password."""
    return engine.url.render_as_string(hide_password=True)


def create_schema(engine: Engine) -> None:
    """Make the tables where they are missing; safe where several workers do it at once. A file of
    SQLite's that others could read is made its owner's alone.

    Raises ConfigError where the table was made by a newer version, and SQLAlchemy's errors where
    the database cannot be reached or written.
    """
    backend = engine.dialect.name
    path = sqlite_path(engine.url)
    if path is not None:
        tightened = [tighten(Path(f"{path}{end}")) for end in ("", "-wal", "-shm")]
        if any(tightened):
            _log.warning("records.url: %s could be read by others; now by its owner alone", path)
    with engine.begin() as connection:
        if backend == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        for table in (meta, decisions, daily):
            connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(CreateIndex(_indexes[backend], if_not_exists=True))
        version = {"name": "records", "value": str(VERSION)}
        connection.execute(insert_new(connection, meta).values(version))
        found = connection.execute(select(meta.c.value).where(meta.c.name == "records")).scalar()
        if found is not None and int(found) < VERSION:
            _upgrade(connection)
    if int(found or 0) > VERSION:
        raise ConfigError(
            f"records.url: the decisions in {shown(engine)} are of version {found}, this "
            f"thriftroute knows up to {VERSION}: upgrade it, or use another database"
        )


def _upgrade(connection: Connection) -> None:
    """Add the columns that a table of an older version lacks; what it holds stays.

    The row of the version, which has just been written to, keeps other workers waiting.
    """
    there = {column["name"] for column in inspect(connection).get_columns(decisions.name)}
    quoted = connection.dialect.identifier_preparer.quote
    for column in decisions.c:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.execute(
                text(f"ALTER TABLE {decisions.name} ADD COLUMN {quoted(column.name)} {kind}")
            )
    is_records = meta.c.name == "records"
    connection.execute(update(meta).where(is_records).values(value=str(VERSION)))


def insert_new(connection: Connection, table: Table) -> Any:
    """An INSERT that passes over rows that are there already."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


def is_away(error: Exception) -> bool:
    """True where trying again later can help: no connection, a lock, a full disk, a missing table;
    False where the row itself is at fault."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    kinds = (OperationalError, InterfaceError, ProgrammingError, PoolTimeoutError, OSError)
    return isinstance(error, kinds)


def latency_step(seconds: float) -> int:
    """The latency as a count of steps of 5%, so that percentiles can be summed up in SQL."""
    return round(math.log(min(max(seconds, 1e-4), 1e6)) / math.log(1.05))


def step_seconds(step: int) -> float:
    """What `latency_step` stands for, within 2.5%."""
    return float(1.05**step)


def to_row(record: Record) -> dict[str, Any]:
    """The record as a row: text that a database refuses (NUL, half a surrogate pair) is replaced,
    numbers that are none become NULL, names are cut to 256 bytes and texts to 32,000 characters."""
    row = {name: _clean(value) for name, value in record.to_dict().items()}
    for column in decisions.c:
        if not column.nullable and row.get(column.name, 0) is None:
            row[column.name] = 0
    for name in _NAMES:
        if row[name] is not None:
            row[name] = row[name].encode()[:NAME_BYTES].decode(errors="ignore")
    for name in ("prompt", "answer"):
        if row[name] is not None:
            row[name] = row[name][:TEXT_CHARS]
    row["fallbacks"] = record.fallbacks
    row["latency_step"] = latency_step(record.latency_s)
    return row


def from_row(row: RowMapping) -> dict[str, Any]:
    """A row as JSON, with the record's own fields."""
    return {name: value for name, value in row.items() if name not in DERIVED}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _clean_text(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    if isinstance(value, Mapping):
        return {_clean_text(str(key)): _clean(item) for key, item in value.items()}
    return _clean_text(str(value))


def _clean_text(value: str) -> str:
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()

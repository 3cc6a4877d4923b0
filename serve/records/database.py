"""The database of decisions: SQLite (in WAL mode) or PostgreSQL (psycopg 3), and its schema."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool
from sqlalchemy.schema import CreateIndex, CreateTable

from ...errors import ConfigError, require_extra
from ...files import tighten
from .table import INDEXES, daily, decisions, meta

VERSION = 2  # of the tables. Raising it: create_schema needs the ALTERs that lead there
CONNECT_S = 5  # for PostgreSQL to answer
_LOCK = 0x7472_6966_7472  # of creating the table, among PostgreSQL's advisory locks

_log = logging.getLogger("thriftroute.records")


def open_engine(url: str) -> sa.Engine:
    """An engine for `url`; nothing is opened yet. Its errors hold no password and no row.

    Raises ConfigError for a URL that is none, or of a database other than SQLite and PostgreSQL,
    and MissingExtraError where psycopg is not installed.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise ConfigError(
            "records.url: expected a database URL such as sqlite:///thriftroute.db or "
            "postgresql://user:password@host/database",
            loc=("records", "url"),
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(parsed)
    if backend not in {"postgresql", "postgres"}:
        raise ConfigError(
            f"records.url: expected a database of sqlite or postgresql, got {backend!r}",
            loc=("records", "url"),
        )
    require_extra("psycopg", "postgres")
    return sa.create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=4,
        connect_args={
            # They bound how long a server that is gone can hold a thread.
            "connect_timeout": CONNECT_S,
            "keepalives_idle": 10,
            "tcp_user_timeout": 10_000,
            "prepare_threshold": None,  # prepared statements do not survive a PgBouncer
        },
    )


def _open_sqlite(url: URL) -> sa.Engine:
    path = _sqlite_path(url)
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": CONNECT_S},
        poolclass=QueuePool,
        # A database in memory is its connection: all threads take turns with the one.
        pool_size=1 if path is None else 4,
        max_overflow=0 if path is None else 4,
    )

    @sa.event.listens_for(engine, "do_connect")
    def _make_private(*_: Any) -> None:
        # SQLite would make a file that all may read; -wal and -shm get the rights of the file.
        if path is not None and url.query.get("mode", "rwc") == "rwc":
            with suppress(OSError):  # which SQLite is about to tell
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {CONNECT_S * 1000}")
        # Readers do not wait for the writer; a commit survives the end of the process, kill -9
        # included, but the last ones may be lost where the machine loses power.
        with suppress(Exception):  # another process is just doing the same: the file remembers
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    return engine


def _sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite database; None where it is in memory, or of another kind."""
    name = url.database or ""
    if name.startswith("file:"):
        name = "" if url.query.get("mode") == "memory" else unquote(urlsplit(name).path)
    is_file = url.get_backend_name() == "sqlite" and name not in {"", ":memory:"}
    return Path(name) if is_file else None


def open_recorded(url: str) -> sa.Engine:
    """An engine for the database of a server that has recorded: as `open_engine`, and ConfigError
    where `url` names a SQLite file that is not there, which reading would make."""
    engine = open_engine(url)
    path = _sqlite_path(engine.url)
    if path is not None and not path.exists():
        engine.dispose()
        raise ConfigError(
            f"the records cannot be read: there is no {path}; take the records.url of a server"
        )
    return engine


def shown(engine: sa.Engine) -> str:
    """The engine's URL without its password."""
    return engine.url.render_as_string(hide_password=True)


def create_schema(engine: sa.Engine) -> None:
    """Make the tables where they are missing; safe where several workers do it at once. A file of
    SQLite's that others could read is made its owner's alone.

    Raises ConfigError where the tables are of another version, and SQLAlchemy's errors where
    the database cannot be reached or written.
    """
    backend = engine.dialect.name
    path = _sqlite_path(engine.url)
    if path is not None:
        tightened = [tighten(Path(f"{path}{end}")) for end in ("", "-wal", "-shm")]
        if any(tightened):
            _log.warning("records.url: %s could be read by others; now by its owner alone", path)
    with engine.begin() as connection:
        if backend == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        for table in (meta, decisions, daily):
            connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(CreateIndex(INDEXES[backend], if_not_exists=True))
        version = {"name": "records", "value": str(VERSION)}
        connection.execute(insert_into(connection, meta).on_conflict_do_nothing().values(version))
        named = sa.select(meta.c.value).where(meta.c.name == "records")
        found = connection.execute(named).scalar_one()
    if int(found) != VERSION:
        raise ConfigError(
            f"records.url: the decisions in {shown(engine)} are of version {found}, this "
            f"thriftroute knows {VERSION}: upgrade it, or use another database",
            loc=("records", "url"),
        )


def insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT of the connection's dialect, which knows ON CONFLICT."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def is_away(error: Exception) -> bool:
    """True where trying again later can help: no connection, a lock, a full disk, a missing table;
    False where the row itself is at fault."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    driver = (exc.OperationalError, exc.InterfaceError, exc.ProgrammingError, exc.TimeoutError)
    return isinstance(error, (*driver, OSError, ConfigError))

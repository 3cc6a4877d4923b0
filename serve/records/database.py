"""The database of decisions: SQLite (in WAL mode) or PostgreSQL (psycopg 3), its schema, and how
rows come into it: with sums by day in the same transaction, so that both always agree.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable, DropIndex

from ...errors import ConfigError, require_extra
from ...files import tighten
from ...providers import json_bytes
from ..errors import bad_setting
from .table import INDEXES, SUMS, daily, decisions, meta

VERSION = 4  # of the tables. Raising it: `ADDED` needs the columns that lead there
_SUMS_OF_4 = ("scored", "sent_strong", "cache_saving", "look_cost", "look_saving")
ADDED = {  # by version
    3: (
        *(decisions.c[name] for name in ("look", "escalated", "look_wrong")),
        *(daily.c[name] for name in ("looked", "escalated")),
    ),
    4: (
        decisions.c.sent_strong,
        *(daily.c[name] for name in _SUMS_OF_4),
    ),
}
CONNECT_S = 5  # for PostgreSQL to answer
_LOCK = 0x7472_6966_7472  # of creating the table, among PostgreSQL's advisory locks
# PostgreSQL's states of a statement that it refuses today and may take tomorrow: a table, a column
# or a schema is missing, or a right.
_MENDABLE = {"42P01", "42703", "3F000", "42501"}

DAY = 86_400
DIMENSIONS = ("tenant", "key", "tier", "model", "task", "choice", "cache", "status")
ALL = "all"  # the dimension of a day's totals
# Rows of one statement. SQLite's driver keeps the latest 128 statements of a connection, each
# number of rows is another one, and each takes 4 KB a row: of whole batches they would fill 100 MB.
PAGE = 32

_COMMON: dict[str, Any] = {
    "hide_parameters": True,
    "json_serializer": lambda value: json_bytes.write(value).decode(),
}
_c = decisions.c
answered = _c.model.is_not(None) & (_c.status < 400)
failed = (_c.status >= 400) & (_c.status != 499)  # 499: the client left
_from_cache = _c.cache.in_(["hit", "semantic"])
_saving = _c.strong_cost - _c.cost

# What a row adds to each of SUMS, in Python and in SQL. What is not named here is the row's own.
_DERIVED: dict[str, tuple[Callable[[Mapping[str, Any]], float], Any]] = {
    "requests": (lambda row: 1, sa.func.count()),
    "errors": (
        lambda row: row["status"] >= 400 and row["status"] != 499,
        sa.func.count().filter(failed),
    ),
    "answered": (
        lambda row: row["model"] is not None and row["status"] < 400,
        sa.func.count().filter(answered),
    ),
    "scored": (lambda row: row["sent_strong"] is not None, sa.func.count(_c.sent_strong)),
    "sent_strong": (
        lambda row: row["sent_strong"] is True,
        sa.func.count().filter(_c.sent_strong.is_(True)),
    ),
    "cache_hits": (
        lambda row: row["cache"] in {"hit", "semantic"},
        sa.func.count().filter(_from_cache),
    ),
    "cache_saving": (
        lambda row: row["cache"] in {"hit", "semantic"} and _saved(row),
        sa.func.sum(_saving).filter(_from_cache),
    ),
    "overhead": (lambda row: row["overhead_s"] or 0.0, sa.func.sum(_c.overhead_s)),
    "timed": (lambda row: row["overhead_s"] is not None, sa.func.count(_c.overhead_s)),
    "looked": (lambda row: row["escalated"] is not None, sa.func.count(_c.escalated)),
    "escalated": (
        lambda row: row["escalated"] is True,
        sa.func.count().filter(_c.escalated.is_(True)),
    ),
    # More than the strong model alone would have cost, and what the answers that stood saved.
    "look_cost": (
        lambda row: row["escalated"] is True and -_saved(row),
        sa.func.sum(-_saving).filter(_c.escalated.is_(True)),
    ),
    "look_saving": (
        lambda row: row["escalated"] is False and _saved(row),
        sa.func.sum(_saving).filter(_c.escalated.is_(False)),
    ),
}
SUMS_OF_ROWS = [
    (_DERIVED[name][1] if name in _DERIVED else sa.func.sum(_c[name])).label(name) for name in SUMS
]

_log = logging.getLogger("thriftroute.records")


def _saved(row: Mapping[str, Any]) -> float:
    return float(row["strong_cost"] - row["cost"])


def open_engine(url: str) -> sa.Engine:
    """An engine for `url`; nothing is opened yet. Its errors hold no password and no row.

    Raises ConfigError for a URL of no SQLite or PostgreSQL, and MissingExtraError without psycopg.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except exc.ArgumentError:
        backend = "no URL"
    if backend == "sqlite":
        return _open_sqlite(parsed)
    if backend not in {"postgresql", "postgres"}:
        problem = f"expected a database of sqlite or postgresql, got {backend!r}; such as "
        problem += "sqlite:///thriftroute.db or postgresql://user:password@host/database"
        raise bad_setting("records.url", problem)
    require_extra("psycopg", "postgres")
    options = {  # The first three bound how long a server that is gone can hold a thread.
        "connect_timeout": CONNECT_S,
        "keepalives_idle": 10,
        "tcp_user_timeout": 10_000,
        "prepare_threshold": None,  # prepared statements do not survive a PgBouncer
    }
    own: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 4, **_COMMON}
    parsed = parsed.set(drivername="postgresql+psycopg")
    return sa.create_engine(parsed, connect_args=options, **own)


def _open_sqlite(url: URL) -> sa.Engine:
    path = _sqlite_path(url)
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        **_COMMON,
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

    Raises ConfigError where the tables are of another version, and SQLAlchemy's errors.
    """
    backend, path = engine.dialect.name, _sqlite_path(engine.url)
    ends = () if path is None else ("", "-wal", "-shm")
    if sum(tighten(Path(f"{path}{end}")) for end in ends):
        _log.warning("records.url: %s could be read by others; now by its owner alone", path)
    with engine.begin() as connection:
        if backend == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        for table in (meta, decisions, daily):
            connection.execute(CreateTable(table, if_not_exists=True))
        version = {"name": "records", "value": str(VERSION)}
        connection.execute(insert_into(connection, meta).on_conflict_do_nothing().values(version))
        named = sa.select(meta.c.value).where(meta.c.name == "records")
        found = int(connection.execute(named).scalar_one())
        while found + 1 in ADDED:
            found += 1
            for added in ADDED[found]:
                column = CreateColumn(added).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {added.table.name} ADD COLUMN {column}"))
            if found == 4:
                _count_again(connection)
            # It is made again, with what reports read now.
            connection.execute(DropIndex(INDEXES[backend], if_exists=True))
            raised = sa.update(meta).where(meta.c.name == "records").values(value=str(found))
            connection.execute(raised)
        if found == VERSION:
            connection.execute(CreateIndex(INDEXES[backend], if_not_exists=True))
    if found != VERSION:
        problem = (
            f"the decisions in {shown(engine)} are of version {found}, this thriftroute knows "
        )
        raise bad_setting("records.url", f"{problem}{VERSION}: upgrade it, or use another database")


def _count_again(connection: sa.Connection) -> None:
    """Fill what version 4 added, from the rows that are there."""
    called = sa.case((_c.threshold.is_not(None), _c.score >= _c.threshold), else_=_c.strong)
    scored = (_c.score.is_not(None), _c.choice != "session")
    connection.execute(sa.update(decisions).where(*scored).values(sent_strong=called))
    sums = [expression for expression in SUMS_OF_ROWS if expression.name in _SUMS_OF_4]
    for dimension in (ALL, *DIMENSIONS):
        own: Any = sa.literal(None) if dimension == ALL else _c[dimension]
        name = sa.func.coalesce(sa.cast(own, sa.Text), "").label("name")
        rows = sa.select(whole(connection, DAY).label("day"), name, *sums)
        found = rows.group_by("day", "name").subquery().c
        same = (daily.c.day == found.day, daily.c.dimension == dimension)
        zero = {each: sa.func.coalesce(found[each], 0) for each in _SUMS_OF_4}
        filled = sa.update(daily).where(*same, daily.c.name == found.name)
        connection.execute(filled.values(zero))


def whole(connection: sa.Connection, seconds: int) -> Any:
    """How many times so many seconds had passed when a decision was made."""
    # PostgreSQL's cast to an integer rounds, SQLite's cuts off and has no floor of its own.
    passed = _c.time / float(seconds)
    floored = sa.func.floor(passed) if connection.dialect.name == "postgresql" else passed
    return sa.cast(floored, sa.Integer)


def insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT of the connection's dialect, which knows ON CONFLICT."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def noted(engine: sa.Engine | None, name: str, value: str | None = None) -> str | None:
    """What is noted under a name, for every worker and the next start; `value` where nothing was,
    which is noted then. Without a database: `value`."""
    if engine is None:
        return value
    with engine.begin() as connection:
        if value is not None:
            new = insert_into(connection, meta).on_conflict_do_nothing()
            connection.execute(new.values(name=name, value=value))
        query = sa.select(meta.c.value).where(meta.c.name == name)
        return connection.execute(query).scalar_one_or_none()


def is_away(error: Exception) -> bool:
    """True where trying again later can help: no connection, a lock, a full disk, a missing table;
    False where the row itself is at fault."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, exc.ProgrammingError):  # else of a value's type, in either driver
        return getattr(error.orig, "sqlstate", None) in _MENDABLE
    if isinstance(error, exc.InterfaceError):  # SQLite's of a value that it cannot take
        return "binding parameter" not in str(error.orig)
    return isinstance(error, (exc.OperationalError, exc.TimeoutError, OSError, ConfigError))


def insert(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows, passing over ids that are there, and add those that were new to their day.

    At most 800 rows: SQLite takes no more values in a statement.
    """
    statement = insert_into(connection, decisions).on_conflict_do_nothing().returning(_c.id)
    paged = {"insertmanyvalues_page_size": PAGE}
    new = set(connection.execute(statement, list(rows), execution_options=paged).scalars())
    by_id = {row["id"]: row for row in reversed(rows)}  # of twins in a batch, the first was new
    alike: dict[Any, list[dict[str, Any]]] = defaultdict(list)  # most rows differ in no dimension
    for row in (by_id[id] for id in new):
        alike[int(row["time"] // DAY), *(row[name] for name in DIMENSIONS)].append(row)
    sums: dict[tuple[int, str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for (day, *names), group in alike.items():
        added = {n: sum(map(_DERIVED.get(n, (itemgetter(n),))[0], group)) for n in SUMS}
        for dimension, value in zip((ALL, *DIMENSIONS), ("", *names), strict=True):
            of = sums[day, dimension, "" if value is None else str(value)]
            for name, part in added.items():
                of[name] += part
    if not sums:
        return
    add = insert_into(connection, daily)
    add = add.on_conflict_do_update(
        index_elements=["day", "dimension", "name"],
        set_={name: daily.c[name] + add.excluded[name] for name in SUMS},
    )
    # In one order, so that workers wait for each other's rows and never in a circle.
    keys = ("day", "dimension", "name")
    values = [dict(zip(keys, key, strict=True)) | sums[key] for key in sorted(sums)]
    connection.execute(add, values)

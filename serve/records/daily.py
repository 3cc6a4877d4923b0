"""Sums by day, kept along with the rows in the same transaction, so that both always agree."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func

from .database import insert_into
from .table import SUMS, daily, decisions

DAY = 86_400
DIMENSIONS = ("tenant", "key", "tier", "model", "task", "choice", "cache", "status")
ALL = "all"  # the dimension of a day's totals
# Rows of one statement. SQLite's driver keeps the latest 128 statements of a connection, each
# number of rows is another one, and each takes 4 KB a row: of whole batches they would fill 100 MB.
PAGE = 32

_c = decisions.c
answered = _c.model.is_not(None) & (_c.status < 400)
failed = (_c.status >= 400) & (_c.status != 499)  # 499: the client left

# What a row adds to each of SUMS, in Python and in SQL. What is not named here is the row's own.
_OF_ROW: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "requests": lambda row: 1,
    "errors": lambda row: row["status"] >= 400 and row["status"] != 499,
    "answered": lambda row: row["model"] is not None and row["status"] < 400,
    "strong": lambda row: row["strong"] is True,
    "known": lambda row: row["strong"] is not None,
    "cache_hits": lambda row: row["cache"] in {"hit", "semantic"},
    "overhead": lambda row: row["overhead_s"] or 0.0,
    "timed": lambda row: row["overhead_s"] is not None,
}
_IN_SQL: dict[str, Any] = {
    "requests": func.count(),
    "errors": func.count().filter(failed),
    "answered": func.count().filter(answered),
    "strong": func.count().filter(_c.strong.is_(True)),
    "known": func.count().filter(_c.strong.is_not(None)),
    "cache_hits": func.count().filter(_c.cache.in_(["hit", "semantic"])),
    "overhead": func.sum(_c.overhead_s),
    "timed": func.count(_c.overhead_s),
}
SUMS_OF_ROWS = [
    (_IN_SQL[name] if name in _IN_SQL else func.sum(_c[name])).label(name) for name in SUMS
]


def insert(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows, passing over ids that are there, and add those that were new to their day.

    At most 800 rows: SQLite takes no more values in a statement.
    """
    statement = insert_into(connection, decisions).on_conflict_do_nothing().returning(_c.id)
    paged = {"insertmanyvalues_page_size": PAGE}
    new = set(connection.execute(statement, list(rows), execution_options=paged).scalars())
    by_id = {row["id"]: row for row in reversed(rows)}  # of twins in a batch, the first was new
    sums: dict[tuple[int, str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for row in (by_id[id] for id in new):
        added = {name: _OF_ROW[name](row) if name in _OF_ROW else row[name] for name in SUMS}
        for dimension in (ALL, *DIMENSIONS):
            value = "" if dimension == ALL or row[dimension] is None else str(row[dimension])
            group = sums[int(row["time"] // DAY), dimension, value]
            for name, part in added.items():
                group[name] += part
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

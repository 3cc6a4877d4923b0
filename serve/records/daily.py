"""Sums by day, kept along with the rows in the same transaction, so that both always agree."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from .table import daily, decisions, insert_new

DAY = 86_400
DIMENSIONS = ("tenant", "key", "tier", "model", "task", "choice", "cache", "status")
ALL = "all"  # the dimension of a day's totals
_ADDED = (
    *("fallbacks", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost", "strong_cost"),
)
SUMS = tuple(column.name for column in daily.c if not column.primary_key)


# Rows of one statement. SQLite's driver keeps the latest 128 statements of a connection, each
# number of rows is another one, and each takes 4 KB a row: of whole batches they would fill 100 MB.
PAGE = 32


def insert(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows, passing over ids that are there, and add those that were new to their day.

    At most 800 rows: SQLite takes no more values in a statement.
    """
    statement = insert_new(connection, decisions).returning(decisions.c.id)
    paged = {"insertmanyvalues_page_size": PAGE}
    new = set(connection.execute(statement, list(rows), execution_options=paged).scalars())
    by_id = {row["id"]: row for row in reversed(rows)}  # of twins in a batch, the first was new
    sums: dict[tuple[int, str, str], dict[str, float]] = {}
    for id in new:
        row = by_id[id]
        day = int(row["time"] // DAY)
        parts = [(name, part) for name, part in row_sums(row).items() if part]
        for dimension in (ALL, *DIMENSIONS):
            value = "" if dimension == ALL or row[dimension] is None else str(row[dimension])
            group = sums.get((day, dimension, value))
            if group is None:
                group = sums[day, dimension, value] = dict.fromkeys(SUMS, 0)
            for name, part in parts:
                group[name] += part
    if not sums:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    add: Any = dialect.insert(daily)
    add = add.on_conflict_do_update(
        index_elements=["day", "dimension", "name"],
        set_={name: daily.c[name] + add.excluded[name] for name in SUMS},
    )
    # In one order, so that workers wait for each other's rows and never in a circle.
    values = [
        {"day": day, "dimension": dimension, "name": name, **group}
        for (day, dimension, name), group in sorted(sums.items())
    ]
    connection.execute(add, values)


def row_sums(row: Mapping[str, Any]) -> dict[str, float]:
    """What one row adds to each of SUMS; `stats` says the same in SQL."""
    status, strong, overhead = row["status"], row["strong"], row["overhead_s"]
    return {
        "requests": 1,
        "errors": int(status >= 400 and status != 499),
        "answered": int(row["model"] is not None and status < 400),
        "strong": int(strong is True),
        "known": int(strong is not None),
        "cache_hits": int(row["cache"] in {"hit", "semantic"}),
        "overhead": overhead or 0.0,
        "timed": int(overhead is not None),
        **{name: row[name] for name in _ADDED},
    }

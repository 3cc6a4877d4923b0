"""What the decisions add up to: spend, saving, strong share, latency, tokens; lists and exports.

Everything here is synchronous and only reads. Whole days come from the sums that `daily` keeps, the
hours around them, and whatever is filtered, from the rows. Percentiles of latency are those of the
latest 20,000 answered requests (by day and by hour: of all), in steps of 5%: within 2.5% of them.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Any, TextIO

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Select,
    case,
    cast,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.engine import RowMapping

from ...terminal import visible
from ..errors import RefusedError
from .daily import ALL, DAY, SUMS
from .table import DERIVED, daily, decisions, from_row, open_recorded, step_seconds

GROUPS = ("tenant", "key", "tier", "model", "task", "choice", "cache", "status", "day", "hour")
FILTERS = (
    *("tenant", "key", "tier", "model", "requested", "choice", "router", "task", "session_hash"),
    *("status", "cache", "error", "prompt_hash", "arm", "routed"),
)
MAX_GROUPS = 1000  # the dearest ones
MAX_ROWS = 1000
LATENCIES = 20_000

_columns = [column for column in decisions.c if column.name not in DERIVED]


def stats(
    engine: Engine | None,
    since: float | None = None,
    by: str | None = None,
    *,
    until: float | None = None,
    filters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sums over the decisions of [since, until), seconds since the epoch; None: no bound.

    by: one of GROUPS, or None for the totals alone; `day` and `hour` are named by their first
    second (UTC, seconds since the epoch). filters: as in `recent`.

    Returns {"since", "until", "by", "totals", "groups"}; groups are sorted by cost, the dearest
    first (days and hours by time). Each holds its `name` and, like totals:
    requests; errors (status from 400 on, those of clients that left not counted); cost,
    strong_cost and saving (their difference) in USD; saving_share, of strong_cost; strong_share,
    of the requests that a model answered (null where that is not known); cache_hits; fallbacks;
    the four kinds of tokens; latency_p50_s, latency_p95_s (of what was answered; null without
    any) and overhead_mean_s.

    Raises RefusedError (400) for an unknown `by` or filter.
    """
    if by is not None and by not in GROUPS:
        raise RefusedError(
            400, "invalid_request", f"by: expected one of {', '.join(GROUPS)}", param="by"
        )
    groups: dict[Any, _Sums] = {}
    if engine is not None:
        with engine.connect() as connection:
            for name, row in _sums(connection, since, until, by, filters or {}):
                groups.setdefault(name, _Sums()).add(row)
            for name, step, count in _latencies(connection, since, until, by, filters or {}):
                groups.setdefault(name, _Sums()).steps[step] = count
    totals = _Sums()
    for sums in groups.values():
        totals.merge(sums)
    listed = [] if by is None else [{"name": n, **sums.report()} for n, sums in groups.items()]
    key: Callable[[dict[str, Any]], Any] = lambda g: (-g["cost"], -g["requests"], str(g["name"]))  # noqa: E731
    if by in {"day", "hour"}:
        key = lambda g: g["name"]  # noqa: E731
    listed.sort(key=key)
    return {
        "since": since,
        "until": until,
        "by": by,
        "totals": totals.report(),
        "groups": listed[-MAX_GROUPS:] if by in {"day", "hour"} else listed[:MAX_GROUPS],
    }


def recent(
    engine: Engine, limit: int = 50, filters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The latest `limit` decisions (1000 at most), newest first, with a record's fields.

    filters, all of which must hold: a value for any of FILTERS (None: where there is none); `since`
    and `until`, seconds; `errors` True: only those with a status from 400 on or an error; `rated`
    True: only those with feedback. Raises RefusedError (400) for any other name.
    """
    query = select(*_columns).where(*_conditions(filters or {}))
    query = query.order_by(decisions.c.time.desc()).limit(max(0, min(limit, MAX_ROWS)))
    with engine.connect() as connection:
        return [from_row(row) for row in connection.execute(query).mappings()]


def one(engine: Engine, id: str, *, tenant: str | None = None) -> dict[str, Any] | None:
    """The decision with that id, of that tenant where one is given; None where there is none."""
    query = select(*_columns).where(decisions.c.id == id)
    if tenant is not None:
        query = query.where(decisions.c.tenant == tenant)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else from_row(row)


def export(
    engine: Engine,
    *,
    since: float | None = None,
    until: float | None = None,
    rated: bool = False,
    only: Collection[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The decisions of [since, until), oldest first, a few at a time however many there are.

    rated: only those with feedback. only: these fields alone.
    """
    # A database that no server of this version has opened yet lacks the later columns.
    found = inspect(engine)
    columns = [column for column in _columns if only is None or column.name in only]
    if found.has_table(decisions.name):
        there = {column["name"] for column in found.get_columns(decisions.name)}
        columns = [column for column in columns if column.name in there]
    query: Select[Any] = select(*columns).order_by(decisions.c.time, decisions.c.id)
    query = query.where(*_conditions({"since": since, "until": until, "rated": rated}))
    with engine.connect().execution_options(stream_results=True, yield_per=500) as connection:
        for row in connection.execute(query).mappings():
            yield from_row(row)


def export_jsonl(
    url: str,
    out: TextIO,
    *,
    since: float | None = None,
    until: float | None = None,
    rated: bool = False,
) -> int:
    """Write the decisions of the database at `url` as JSON, one a line; how many.

    Raises ConfigError for a URL that cannot be used or a file that is not there, and SQLAlchemy's
    errors where it holds none.
    """
    engine = open_recorded(url)
    count = 0
    try:
        for decision in export(engine, since=since, until=until, rated=rated):
            out.write(visible(json.dumps(decision, ensure_ascii=False)) + "\n")
            count += 1
    finally:
        engine.dispose()
    return count


def _conditions(filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name, value in filters.items():
        if name in FILTERS:
            conditions.append(decisions.c[name] == value)  # None: IS NULL
        elif name == "since":
            conditions += [] if value is None else [decisions.c.time >= value]
        elif name == "until":
            conditions += [] if value is None else [decisions.c.time < value]
        elif name == "errors":
            bad = (decisions.c.status >= 400) | decisions.c.error.is_not(None)
            conditions += [bad] if value else []
        elif name == "rated":
            conditions += [decisions.c.feedback.is_not(None)] if value else []
        else:
            known = ", ".join([*FILTERS, "since", "until", "errors", "rated"])
            raise RefusedError(
                400, "invalid_request", f"unknown filter {name!r}; known: {known}", param=name
            )
    return conditions


def _group(by: str | None, backend: str) -> ColumnElement[Any]:
    if by is None:
        return literal(ALL)
    if by not in {"day", "hour"}:
        return decisions.c[by]
    seconds = 86_400 if by == "day" else 3600
    # PostgreSQL's cast to an integer rounds, SQLite's cuts off and has no floor of its own.
    whole = decisions.c.time / float(seconds)
    return cast(func.floor(whole) if backend == "postgresql" else whole, Integer) * seconds


_answered = decisions.c.model.is_not(None) & (decisions.c.status < 400)
_SPECIAL: dict[str, ColumnElement[Any]] = {
    "requests": func.count(),
    "errors": func.sum(
        case(((decisions.c.status >= 400) & (decisions.c.status != 499), 1), else_=0)
    ),
    "answered": func.sum(case((_answered, 1), else_=0)),
    "strong": func.sum(case((decisions.c.strong.is_(True), 1), else_=0)),
    "known": func.sum(case((decisions.c.strong.is_not(None), 1), else_=0)),
    "cache_hits": func.sum(case((decisions.c.cache.in_(["hit", "semantic"]), 1), else_=0)),
    "overhead": func.sum(decisions.c.overhead_s),
    "timed": func.count(decisions.c.overhead_s),
}
_OF_ROWS = [
    (_SPECIAL[name] if name in _SPECIAL else func.sum(decisions.c[name])).label(name)
    for name in SUMS
]
_OF_DAYS = [func.sum(daily.c[name]).label(name) for name in SUMS]


def _sums(
    connection: Connection,
    since: float | None,
    until: float | None,
    by: str | None,
    filters: Mapping[str, Any],
) -> Iterator[tuple[Any, RowMapping]]:
    """Group and sums; a group may come more than once."""
    spans = [(since, until)]
    if not filters and by != "hour":
        first = None if since is None else math.ceil(since / DAY)
        end = None if until is None else math.floor(until / DAY)
        if first is None or end is None or first < end:
            yield from _sums_of_days(connection, first, end, by)
            spans = [] if first is None else [(since, float(first * DAY))]
            spans += [] if end is None else [(float(end * DAY), until)]
    group = _group(by, connection.dialect.name)
    for start, stop in spans:
        conditions = _conditions({**filters, "since": start, "until": stop})
        query = select(group.label("name"), *_OF_ROWS).where(*conditions).group_by("name")
        for row in connection.execute(query).mappings():
            yield row["name"], row


def _sums_of_days(
    connection: Connection, first: int | None, end: int | None, by: str | None
) -> Iterator[tuple[Any, RowMapping]]:
    dimension = ALL if by in {None, "day"} else by
    group: ColumnElement[Any] = daily.c.day * DAY if by == "day" else daily.c.name
    query = select(group.label("group"), *_OF_DAYS).where(daily.c.dimension == dimension)
    query = query if first is None else query.where(daily.c.day >= first)
    query = query if end is None else query.where(daily.c.day < end)
    for row in connection.execute(query.group_by("group")).mappings():
        name = row["group"]
        if by is None:
            name = ALL
        elif by == "status":
            name = int(name)
        yield (None if name == "" else name), row


def _latencies(
    connection: Connection,
    since: float | None,
    until: float | None,
    by: str | None,
    filters: Mapping[str, Any],
) -> Iterator[tuple[Any, int, int]]:
    """Group, step of latency, how many."""
    conditions = _conditions({**filters, "since": since, "until": until})
    group = _group(by, connection.dialect.name).label("name")
    latest = select(group, decisions.c.latency_step).where(*conditions, _answered)
    if by not in {"day", "hour"}:
        latest = latest.order_by(decisions.c.time.desc()).limit(LATENCIES)
    rows = latest.subquery()
    names = (rows.c.name, rows.c.latency_step)
    found = connection.execute(select(*names, func.count()).group_by(*names))
    yield from ((name, step, count) for name, step, count in found)


class _Sums:
    """Sums of a group, its latencies as counts by step."""

    def __init__(self) -> None:
        self.values: dict[str, float] = dict.fromkeys(SUMS, 0)
        self.steps: dict[int, int] = {}

    def add(self, row: RowMapping) -> None:
        for name in SUMS:
            value = row[name] or 0
            # PostgreSQL sums big integers as decimals.
            self.values[name] += value if isinstance(value, (int, float)) else int(value)

    def merge(self, other: "_Sums") -> None:
        for name, value in other.values.items():
            self.values[name] += value
        for step, count in other.steps.items():
            self.steps[step] = self.steps.get(step, 0) + count

    def report(self) -> dict[str, Any]:
        v = self.values
        saving = v["strong_cost"] - v["cost"]
        hidden = {"answered", "strong", "known", "overhead", "timed"}
        shown = {name: value for name, value in v.items() if name not in hidden}
        return {
            **shown,
            "saving": saving,
            "saving_share": saving / v["strong_cost"] if v["strong_cost"] > 0 else None,
            "strong_share": v["strong"] / v["known"] if v["known"] else None,
            "latency_p50_s": self._percentile(0.50),
            "latency_p95_s": self._percentile(0.95),
            "overhead_mean_s": v["overhead"] / v["timed"] if v["timed"] else None,
        }

    def _percentile(self, share: float) -> float | None:
        """The smallest step that at least this share of the latencies do not pass."""
        need = share * sum(self.steps.values())
        if need == 0:
            return None
        steps = sorted(self.steps)
        seen = list(accumulate(self.steps[step] for step in steps))
        return step_seconds(steps[bisect_left(seen, need)])

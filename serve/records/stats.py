"""What the decisions add up to: spend, saving, strong share, latency, tokens; lists and exports.

Everything here is synchronous and only reads. A report is one pass over the table's report index;
percentiles of latency come from steps of 5% and are within 2.5% of the exact ones.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, TextIO

from sqlalchemy import ColumnElement, Engine, Integer, Select, case, cast, func, literal, select
from sqlalchemy.engine import RowMapping

from ..errors import RefusedError
from .table import DERIVED, decisions, from_row, open_engine, step_seconds

GROUPS = ("tenant", "key", "tier", "model", "task", "choice", "cache", "status", "day", "hour")
FILTERS = (
    *("tenant", "key", "tier", "model", "requested", "choice", "router", "task", "session_hash"),
    *("status", "cache", "error", "prompt_hash"),
)
MAX_GROUPS = 1000  # the dearest ones
MAX_ROWS = 1000

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
    conditions = _conditions({**(filters or {}), "since": since, "until": until})
    groups: dict[Any, _Sums] = {}
    if engine is not None:
        group = _group(by, engine.dialect.name)
        query = select(group.label("name"), decisions.c.latency_step, *_SUMS)
        query = query.where(*conditions).group_by("name", decisions.c.latency_step)
        with engine.connect() as connection:
            for row in connection.execute(query).mappings():
                groups.setdefault(row["name"], _Sums()).add(row)
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
    engine: Engine, *, since: float | None = None, until: float | None = None, rated: bool = False
) -> Iterator[dict[str, Any]]:
    """The decisions of [since, until), oldest first, a few at a time however many there are.

    rated: only those with feedback.
    """
    query: Select[Any] = select(*_columns).order_by(decisions.c.time, decisions.c.id)
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

    Raises ConfigError for a URL that cannot be used, and SQLAlchemy's errors where it holds none.
    """
    engine = open_engine(url)
    count = 0
    try:
        for decision in export(engine, since=since, until=until, rated=rated):
            out.write(json.dumps(decision, ensure_ascii=False) + "\n")
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
        return literal("all")
    if by not in {"day", "hour"}:
        return decisions.c[by]
    seconds = 86_400 if by == "day" else 3600
    # PostgreSQL's cast to an integer rounds, SQLite's cuts off and has no floor of its own.
    whole = decisions.c.time / float(seconds)
    return cast(func.floor(whole) if backend == "postgresql" else whole, Integer) * seconds


_answered = decisions.c.model.is_not(None) & (decisions.c.status < 400)
_ADDED = (
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost", "strong_cost", "fallbacks"),
)
_SUMS = [
    func.count().label("requests"),
    func.sum(case(((decisions.c.status >= 400) & (decisions.c.status != 499), 1), else_=0)).label(
        "errors"
    ),
    func.sum(case((_answered, 1), else_=0)).label("answered"),
    func.sum(case((decisions.c.strong.is_(True), 1), else_=0)).label("strong"),
    func.sum(case((decisions.c.strong.is_not(None), 1), else_=0)).label("known"),
    func.sum(case((decisions.c.cache.in_(["hit", "semantic"]), 1), else_=0)).label("cache_hits"),
    func.sum(decisions.c.overhead_s).label("overhead"),
    func.count(decisions.c.overhead_s).label("timed"),
    *(func.sum(decisions.c[name]).label(name) for name in _ADDED),
]
_NUMBERS = (
    *("requests", "errors", "answered", "strong", "known", "cache_hits", "overhead", "timed"),
    *_ADDED,
)


class _Sums:
    """Sums of a group, its latencies as counts by step."""

    def __init__(self) -> None:
        self.values: dict[str, float] = dict.fromkeys(_NUMBERS, 0)
        self.steps: dict[int, int] = {}

    def add(self, row: RowMapping) -> None:
        for name in _NUMBERS:
            value = row[name] or 0
            # PostgreSQL sums big integers as decimals.
            self.values[name] += value if isinstance(value, (int, float)) else int(value)
        step = row["latency_step"]
        self.steps[step] = self.steps.get(step, 0) + int(row["answered"] or 0)

    def merge(self, other: "_Sums") -> None:
        for name, value in other.values.items():
            self.values[name] += value
        for step, count in other.steps.items():
            self.steps[step] = self.steps.get(step, 0) + count

    def report(self) -> dict[str, Any]:
        v = self.values
        saving = v["strong_cost"] - v["cost"]
        shown = {name: v[name] for name in ("requests", "errors", "cache_hits", *_ADDED)}
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

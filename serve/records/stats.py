"""What the decisions add up to: spend, saving, strong share, latency, tokens; lists and exports.

Everything here is synchronous and only reads. Whole days come from the sums by day, the
hours around them, and whatever is filtered, from the rows. Percentiles of latency are those of the
latest 20,000 answered requests (by day and by hour: of all), in steps of 5%: within 2.5% of them.
"""

import json
import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TextIO

from sqlalchemy import Connection, Engine, Select, func, literal, or_, select

from ...router.output_tokens import OutputTokens
from ...terminal import visible
from ..errors import wrong
from .database import ALL, DAY, SUMS_OF_ROWS, answered, open_recorded, whole
from .table import DERIVED, SUMS, daily, decisions, step_seconds

TIMES = {"day": DAY, "hour": 3600}  # groups, in seconds
GROUPS = ("tenant", "key", "tier", "model", "task", "choice", "cache", "status", *TIMES)
FILTERS = (
    *("tenant", "key", "tier", "model", "requested", "choice", "router", "task", "session_hash"),
    *("status", "cache", "error", "prompt_hash", "arm", "routed"),
)
_SEARCHED = (
    *("id", "tenant", "key", "requested", "model", "reason", "error", "task", "session_hash"),
)
MAX_GROUPS = 1000  # the dearest ones
MAX_ROWS = 1000
LATENCIES = 20_000
FITTED = 20_000  # latest answers that say how long answers are

_columns = [column for column in decisions.c if column.name not in DERIVED]
_sums_of_days = [func.sum(daily.c[name]).label(name) for name in SUMS]
_hidden = {"answered", "sent_strong", "overhead", "timed"}  # sums that a report uses up


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
    second. filters: as in `recent`. Gives {"since", "until", "by", "totals", "groups"}; groups have
    a `name` and are sorted by cost, the dearest first (days and hours by time). Errors are a status
    from 400 on, those of clients that left not counted. Raises RefusedError (400).
    """
    if by is not None and by not in GROUPS:
        raise wrong("by", f"expected one of {', '.join(GROUPS)}")
    sums: dict[Any, Counter[str]] = defaultdict(Counter)
    steps: dict[Any, Counter[int]] = defaultdict(Counter)
    if engine is not None:
        wanted = {**(filters or {}), "since": since, "until": until}
        with engine.connect() as connection:
            for query in _sum_queries(connection, by, wanted):
                for name, *values in connection.execute(query):
                    # PostgreSQL sums big integers as decimals.
                    plain = (v if isinstance(v, float) else int(v or 0) for v in values)
                    sums[_name(by, name)].update(dict(zip(SUMS, plain, strict=True)))
            for name, step, count in connection.execute(_latencies(connection, by, wanted)):
                steps[name][step] += count
    groups = [{"name": name, **_report(sums[name], steps[name])} for name in sums if by is not None]
    if by in TIMES:
        groups = sorted(groups, key=lambda group: group["name"])[-MAX_GROUPS:]
    else:
        groups.sort(key=lambda g: (-g["cost"], -g["requests"], str(g["name"])))
    total: Counter[str] = Counter()
    for each in sums.values():
        total.update(each)  # `+` would leave out what is below 0
    totals = _report(total, sum(steps.values(), Counter()))
    said = {"since": since, "until": until, "by": by}
    return {**said, "totals": totals, "groups": groups[:MAX_GROUPS]}


def recent(
    engine: Engine | None, limit: int = 50, filters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The latest `limit` decisions (1000 at most), newest first, with a record's fields.

    filters, all of which must hold: a value for any of FILTERS (None: where there is none), `since`
    and `until`, `errors`, `rated`, `escalated`, and `search`, text that a name, the reason, an id
    or the prompt or answer that was kept holds. Raises RefusedError (400) for any other name.
    """
    return _fetch(engine, conditions(filters or {}), max(0, min(limit, MAX_ROWS)))


def one(engine: Engine | None, id: str) -> dict[str, Any] | None:
    """The decision with that id; None where there is none."""
    return next(iter(_fetch(engine, [decisions.c.id == id], 1)), None)


def output_tokens(engine: Engine | None) -> OutputTokens:
    """How long each model's answers are, by the latest 20,000 that a model gave."""
    if engine is None:
        return OutputTokens()
    c = decisions.c
    columns = (c.model, c.prompt_tokens, c.completion_tokens, c.score)
    given = answered & c.cache.not_in(["hit", "semantic"]) & (c.completion_tokens > 0)
    query = select(*columns).where(given).order_by(c.time.desc()).limit(FITTED)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return OutputTokens.fitted((model, (*numbers,)) for model, *numbers in rows)


def _fetch(engine: Engine | None, where: Sequence[Any], limit: int) -> list[dict[str, Any]]:
    if engine is None:
        return []
    query = select(*_columns).where(*where).order_by(decisions.c.time.desc()).limit(limit)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def export(
    engine: Engine,
    *,
    since: float | None = None,
    until: float | None = None,
    rated: bool = False,
    only: Collection[str] | None = None,
    filters: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """The decisions of [since, until), oldest first, a few at a time however many there are. only:
    these fields alone. filters: as in `recent`."""
    columns = [column for column in _columns if only is None or column.name in only]
    query: Select[Any] = select(*columns).order_by(decisions.c.time, decisions.c.id)
    wanted = {"since": since, "until": until, "rated": rated, **(filters or {})}
    query = query.where(*conditions(wanted))
    with engine.connect().execution_options(stream_results=True, yield_per=500) as connection:
        for row in connection.execute(query).mappings():
            yield dict(row)


def export_jsonl(url: str, out: TextIO, **which: Any) -> int:
    """Write the decisions of the database at `url` as JSON, one a line; how many. which: as of
    `export`. Raises as `open_recorded`, and SQLAlchemy's errors where it holds none."""
    engine, count = open_recorded(url), 0
    try:
        for line in jsonl(export(engine, **which)):
            out.write(line)
            count += 1
    finally:
        engine.dispose()
    return count


def jsonl(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each row as a line of JSON."""
    for row in rows:
        yield visible(json.dumps(row, ensure_ascii=False)) + "\n"


def conditions(filters: Mapping[str, Any]) -> list[Any]:
    """Of the filters of `recent`, which raises as this does."""
    c, found = decisions.c, []
    special: dict[str, Any] = {
        "since": lambda value: c.time >= value,
        "until": lambda value: c.time < value,
        "errors": lambda _: (c.status >= 400) | c.error.is_not(None),
        "rated": lambda _: c.feedback.is_not(None),
        "escalated": lambda _: c.escalated.is_(True),
        "search": _holds,
    }
    for name, value in filters.items():
        if name in FILTERS:
            found.append(c[name] == value)  # None: IS NULL
        elif name not in special:
            known = ", ".join([*FILTERS, *special])
            raise wrong(name, f"unknown filter {name!r}; known: {known}")
        elif value is not None and value is not False:
            found.append(special[name](value))
    return found


def _holds(text: str) -> Any:
    kept = json.dumps(text, ensure_ascii=False)[1:-1]  # as texts are
    words = [decisions.c[name].icontains(text, autoescape=True) for name in _SEARCHED]
    texts = (decisions.c[name].icontains(kept, autoescape=True) for name in ("prompt", "answer"))
    return or_(*words, *texts)


def _sum_queries(
    connection: Connection, by: str | None, wanted: Mapping[str, Any]
) -> Iterator[Select[Any]]:
    """Of a group's name and SUMS; a group may come more than once."""
    since, until = wanted["since"], wanted["until"]
    spans = [(since, until)]
    if len(wanted) == 2 and by != "hour":  # nothing is filtered
        first = None if since is None else math.ceil(since / DAY)
        end = None if until is None else math.floor(until / DAY)
        if first is None or end is None or first < end:
            name = daily.c.day * DAY if by == "day" else daily.c.name
            dimension = ALL if by in {None, "day"} else by
            query = select(name.label("group"), *_sums_of_days)
            query = query.where(daily.c.dimension == dimension)
            query = query if first is None else query.where(daily.c.day >= first)
            query = query if end is None else query.where(daily.c.day < end)
            yield query.group_by("group")
            spans = [] if first is None else [(since, float(first * DAY))]
            spans += [] if end is None else [(float(end * DAY), until)]
    group = _group(connection, by)
    for start, stop in spans:
        inside = conditions({**wanted, "since": start, "until": stop})
        yield select(group, *SUMS_OF_ROWS).where(*inside).group_by("name")


def _latencies(connection: Connection, by: str | None, wanted: Mapping[str, Any]) -> Select[Any]:
    """Of a group's name, step of latency, how many."""
    query = select(_group(connection, by), decisions.c.latency_step)
    query = query.where(*conditions(wanted), answered)
    if by not in TIMES:
        query = query.order_by(decisions.c.time.desc()).limit(LATENCIES)
    rows = query.subquery().c
    return select(rows.name, rows.latency_step, func.count()).group_by(rows.name, rows.latency_step)


def _group(connection: Connection, by: str | None) -> Any:
    if by is None:
        return literal(ALL).label("name")
    if by not in TIMES:
        return decisions.c[by].label("name")
    return (whole(connection, TIMES[by]) * TIMES[by]).label("name")


def _name(by: str | None, name: Any) -> Any:
    """A group's name, also where it is one of `daily`, which holds text alone."""
    if name == "" and by not in {None, *TIMES}:
        return None
    return int(name) if by == "status" else name


def _report(sums: Counter[str], steps: Counter[int]) -> dict[str, Any]:
    saving = sums["strong_cost"] - sums["cost"]
    return {
        **{name: sums[name] for name in SUMS if name not in _hidden},
        "saving": saving,
        "routing_saving": saving - sums["cache_saving"],
        "saving_share": saving / sums["strong_cost"] if sums["strong_cost"] > 0 else None,
        "strong_share": sums["sent_strong"] / sums["scored"] if sums["scored"] else None,
        "latency_p50_s": _percentile(steps, 0.5),
        "latency_p95_s": _percentile(steps, 0.95),
        "overhead_mean_s": sums["overhead"] / sums["timed"] if sums["timed"] else None,
    }


def _percentile(counts: Counter[int], share: float) -> float | None:
    """The smallest step that at least this share of the latencies do not pass."""
    if not counts:
        return None
    steps = sorted(counts)
    seen = list(accumulate(counts[step] for step in steps))
    return step_seconds(steps[bisect_left(seen, share * seen[-1])])

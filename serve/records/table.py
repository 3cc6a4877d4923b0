"""The tables of decisions, and how a record becomes a row of them."""

import collections.abc
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import sqlalchemy as sa
from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, Table, Text

from ...providers import json_bytes
from .record import Record

NAME_BYTES = 256  # an index entry of PostgreSQL holds 2,704 bytes: longer names are cut
TEXT_CHARS = 32_000  # longer prompts and answers are cut: a full queue must fit into memory

_metadata = sa.MetaData()

meta = Table(
    "thriftroute_meta",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

_TYPES: dict[Any, Any] = {
    **{str: Text, Literal: Text, float: Float(53)},
    **{bool: Boolean, int: BigInteger, collections.abc.Sequence: JSON},
}


def _column(name: str, hint: Any) -> Column[Any]:
    optional = isinstance(hint, UnionType)
    kind = get_args(hint)[0] if optional else get_origin(hint) or hint
    return Column(name, _TYPES[kind], primary_key=name == "id", nullable=optional)


decisions = Table(
    "thriftroute_decisions",
    _metadata,
    *(_column(name, hint) for name, hint in get_type_hints(Record).items()),
    # For reports only: what the record computes, and the latency in steps of 5%.
    Column("sent_strong", Boolean),
    Column("fallbacks", Integer, nullable=False),
    Column("latency_step", Integer, nullable=False),
)

# Sums by day (UTC) and by each name of a dimension, kept along with the rows: a report of months
# reads some thousands of these, and they stay when old decisions are deleted.
_AMOUNTS = ("cost", "strong_cost", "overhead", "cache_saving", "look_cost", "look_saving")
SUMS = (
    *("requests", "errors", "answered", "scored", "sent_strong", "cache_hits", "fallbacks"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *_AMOUNTS,
    *("timed", "looked", "escalated"),
)
daily = Table(
    "thriftroute_daily",
    _metadata,
    Column("day", Integer, primary_key=True),  # since the epoch
    Column("dimension", Text, primary_key=True),
    Column("name", Text, primary_key=True),  # "" where there is none
    *(
        Column(
            n,
            Float(53) if n in _AMOUNTS else BigInteger,
            nullable=False,
            server_default=sa.text("0"),
        )
        for n in SUMS
    ),
)

DERIVED = frozenset({"sent_strong", "fallbacks", "latency_step"})
_KEPT = tuple(column.name for column in decisions.c if column.name not in DERIVED)
_NEVER_NULL = tuple(name for name in _KEPT if not decisions.c[name].nullable)
_NAMES = ("id", "tenant", "key", "tier", "requested", "model", "choice", "task", "router", "routed")

# All that a report reads, in the order of time: rows are summed from the index alone, without their
# texts. Feedback is not in it, so that a vote rewrites no index entry.
_REPORTED = [
    *("tenant", "key", "tier", "model", "sent_strong", "choice", "task", "status", "cache"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost", "strong_cost", "overhead_s", "fallbacks", "latency_step", "escalated"),
]
INDEXES = {
    "sqlite": Index(
        "thriftroute_decisions_report", decisions.c.time, *(decisions.c[n] for n in _REPORTED)
    ),
    "postgresql": Index(
        "thriftroute_decisions_report", decisions.c.time, postgresql_include=_REPORTED
    ),
}


def latency_step(seconds: float) -> int:
    """The latency as a count of steps of 5%, so that percentiles can be summed up in SQL."""
    return round(math.log(min(max(seconds, 1e-4), 1e6)) / math.log(1.05))


def step_seconds(step: int) -> float:
    """What `latency_step` stands for, within 2.5%."""
    return float(1.05**step)


def to_row(record: Record) -> dict[str, Any]:
    """The record as a row: text that a database refuses (NUL, half a surrogate pair) is replaced,
    numbers that are none become NULL, names are cut to 256 bytes and texts to 32,000 characters."""
    row = {name: _clean(getattr(record, name)) for name in _KEPT}
    for name in _NEVER_NULL:
        if row[name] is None:
            row[name] = 0
    for name in _NAMES:
        if row[name] is not None and len(row[name]) > NAME_BYTES // 4:
            row[name] = row[name].encode()[:NAME_BYTES].decode(errors="ignore")
    for name in ("prompt", "answer"):
        if row[name] is not None:
            row[name] = row[name][:TEXT_CHARS]
    step = latency_step(record.latency_s)
    return {
        **row,
        **{"sent_strong": record.sent_strong, "fallbacks": record.fallbacks, "latency_step": step},
    }


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, (list, tuple, dict)):
        return clean_text(str(value))
    # For a column of JSON, whose serializer replaces all that is odd but NUL.
    return _without_nul(value) if b"\\u0000" in json_bytes.write(value) else value


def _without_nul(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_nul(item) for item in value]
    if isinstance(value, Mapping):
        return {clean_text(str(key)): _without_nul(item) for key, item in value.items()}
    return clean_text(value) if isinstance(value, str) else value


def clean_text(value: str) -> str:
    """Text that every database takes."""
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()

"""Recorded sessions as numbers: a step is one call of a model, with its tokens, and what of the
prompt a cache held.

Read are transcripts of agents, Parquet, CSV or JSONL with the same columns, our own records (a
SQLite database, or `records export`), LiteLLM's spend logs and OpenTelemetry. What cannot be read
is counted and named, and left out.
"""

import contextlib
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...providers.prompt_cache import Usage
from ...router.switching import COMPACTED
from ..readers import raw_records
from ..schema import Messages, parse_messages, shown
from .formats import calls, detect
from .normalize import Object, body, first, iso_time, number, text
from .reader import Found, expand, objects
from .schema import moment

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TOKENS = (
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    "output_tokens",
)
_COUNTS = ("messages", "tool_results", "tool_errors")
_NAMES = ("id", "session", "model")
# Where each format but `agent` has the fields of a step. In `_WHOLE` input counts what was cached.
_WRITTEN: Mapping[str, Mapping[str, str]] = {
    "records": {
        **{"id": "id", "session": "session_hash", "model": "model", "time": "time"},
        **{"input_tokens": "prompt_tokens", "cache_read_tokens": "cached_tokens"},
        "output_tokens": "completion_tokens",
    },
    "litellm": {
        **{"id": "request_id id litellm_call_id", "session": "session_id trace_id"},
        **{"model": "model model_group", "time": "startTime"},
        **{"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"},
        "cache_read_tokens": "metadata.usage_object.cache_read_input_tokens "
        "metadata.usage_object.prompt_tokens_details.cached_tokens "
        "metadata.additional_usage_values.cache_read_input_tokens "
        "metadata.additional_usage_values.prompt_tokens_details.cached_tokens",
        "cache_write_tokens": "metadata.usage_object.cache_creation_input_tokens "
        "metadata.additional_usage_values.cache_creation_input_tokens",
    },
    "otel": {name: name for name in (*_NAMES, "time", *TOKENS)},
}
_WHOLE = {"records", "litellm", "otel"}
_FIELDS = {
    format: {name: tuple(names.split()) for name, names in fields.items()}
    for format, fields in _WRITTEN.items()
}
_SQLITE = b"SQLite format 3\0"
_KINDS = (".jsonl", ".json", ".csv", ".parquet", ".pq", ".db")
_PARQUET = (".parquet", ".pq")
TOLD = 10  # problems that are named


@dataclass(frozen=True, eq=False)
class Sessions:
    """Sessions in the order of their first step, and their steps one after another.

    `starts` int64[s + 1]: session i has the steps starts[i] .. starts[i + 1]. Of n steps: `time` in
    seconds, float64[n]; `model` as an index into `models`; `usage`, float64[n] each; `turn`: the
    user said something new before it, or nothing tells; `compacted`; `failed` results of tools in a
    row before it. `asked`: what the user had said, by step, where it was read.
    """

    names: list[str]
    starts: npt.NDArray[np.int64]
    sidechain: Bools
    time: Floats
    models: list[str]
    model: npt.NDArray[np.int64]
    usage: Usage
    turn: Bools
    compacted: Bools
    failed: Floats
    asked: Mapping[int, Messages]

    @property
    def n(self) -> int:
        """Sessions."""
        return len(self.names)

    @property
    def steps(self) -> int:
        """Steps of all of them."""
        return int(self.starts[-1])


@dataclass(slots=True)
class Steps:
    """What is read so far; `entries` that were read, `repeated` and `empty` ones that were left
    out, `bad` ones, of which the first are named in `problems`."""

    rows: int = 0
    asked: dict[int, Messages] = field(default_factory=dict)
    entries: int = 0
    repeated: int = 0
    empty: int = 0
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    _table: "array[float]" = field(default_factory=lambda: array("d"))
    _seen: set[str] = field(default_factory=set)
    _codes: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))

    def add(self, record: Object, format: str, texts: bool) -> None:
        """One call. Raises DataError with the field at fault."""
        found = record
        if format != "agent":  # which has these very names
            found = {name: first(record, *names) for name, names in _FIELDS[format].items()}
        id_ = text(found.get("id"))
        if id_:
            id_ = f"{text(record.get('agent'))}:{id_}"
        if id_ in self._seen:
            self.repeated += 1
            return
        tokens = [_amount(found.get(name), name) for name in TOKENS]
        if tokens[0] is None and not any(tokens):
            raise DataError("is missing; expected tokens of the prompt", field="input_tokens")
        row = [each or 0.0 for each in tokens]
        if format in _WHOLE and row[1] + row[2] <= row[0]:
            row[0] -= row[1] + row[2]
        if row[3] > row[2]:
            raise DataError("are more than cache_write_tokens", field="cache_write_1h_tokens")
        if not any(row):
            self.empty += 1
            return
        time = _seconds(found.get("time"))
        counts = [_amount(found.get(name), name) for name in _COUNTS]
        if id_:
            self._seen.add(id_)
        # A call that names no session is one of its own.
        session = text(found.get("session")) or f"call {self.rows}"
        sessions, models = self._codes
        codes = (
            sessions.setdefault(session, len(sessions)),
            models.setdefault(text(found.get("model")), len(models)),
        )
        if texts and "conversation" in record:
            self.asked[self.rows] = parse_messages(record["conversation"])
        side = found.get("sidechain") in (True, "true", "True", "1")
        known = (np.nan if count is None else count for count in counts)
        self._table.extend((*codes, side, time, *row, *known))
        self.rows += 1

    def sessions(self) -> Sessions:
        """What was read, in order. Raises DataError where there is nothing."""
        if not self.rows:
            told = f"; {self.bad:,} bad, the first: {self.problems[0]}" if self.bad else ""
            raise DataError(f"no step of a session in {self.entries:,} entries{told}")
        table = np.frombuffer(self._table).reshape(self.rows, -1)
        code, time = table[:, 0].astype(np.int64), table[:, 3]
        order = np.lexsort((np.arange(len(table)), time, code))
        table, code = table[order], code[order]
        names, models = (list(each) for each in self._codes)
        starts = np.searchsorted(code, np.arange(len(names) + 1))
        begins = np.zeros(len(table), np.bool_)
        begins[starts[:-1]] = True
        usage = Usage(*table[:, 4:9].T)
        turn, failed = _told(table[:, 9:12], begins)
        shrunk = np.zeros(len(table), np.bool_)
        shrunk[1:] = usage.prompt[1:] < COMPACTED * usage.prompt[:-1]
        place = {int(old): new for new, old in enumerate(order)} if self.asked else {}
        return Sessions(
            names=names,
            starts=starts,
            sidechain=table[starts[:-1], 2] > 0,
            # Where no time is known, nothing is kept from expiring.
            time=np.nan_to_num(table[:, 3]),
            models=models,
            model=table[:, 1].astype(np.int64),
            usage=usage,
            turn=turn,
            compacted=shrunk & ~begins,
            failed=failed,
            asked={place[row]: said for row, said in self.asked.items()},
        )


def _told(counts: Floats, begins: Bools) -> tuple[Bools, Floats]:
    """Whether each step follows something new of the user, and how many results failed in a row
    before it, from counts so far of messages, results and errors of tools, float64[n, 3]."""
    more = np.diff(counts, axis=0, prepend=counts[:1])
    more[begins] = 0
    # Results are messages, too. What nobody counted may each time be new.
    turn = begins | ~(more[:, 0] - more[:, 1] <= 0)
    errors = np.where(np.isnan(more[:, 2]), 0, more[:, 2])
    fine = (more[:, 1] > 0) & (errors <= 0)
    total = np.cumsum(np.maximum(errors, 0))
    # A run of failures ends with a result that is none, with the user's word, with the session.
    last = np.where(turn | fine, np.arange(len(total)), 0)
    return turn, total - total[np.maximum.accumulate(last)]


def read_steps(
    files: Iterable[str | Path],
    *,
    texts: bool = False,
    progress: Callable[[int], object] = lambda entries: None,
) -> Steps:
    """The steps of all files; folders are searched. texts: what the user said is kept, too.

    A call that has an id is counted once, in whichever file. A file of something else is bad where
    it was named, and passed over where it lay in a folder. Raises DataError where a file cannot
    be read at all; what is bad in it is told in what is returned.
    """
    steps, given = Steps(), list(map(Path, files))
    for path in expand(given, _KINDS):
        try:
            _read(steps, path, texts, progress, named=path in given)
        except DataError as error:
            # The rest of the file; one that is not there at all is a mistake of the command.
            if not path.is_file():
                raise
            _count(steps, error)
    return steps


def _read(
    steps: Steps, path: Path, texts: bool, progress: Callable[[int], object], *, named: bool
) -> None:
    format = ""
    for line, entry in _found(path):
        steps.entries += 1
        progress(steps.entries)
        try:
            if isinstance(entry, DataError):
                raise entry
            format = format or _format_of(entry, named)
            if not format:
                steps.empty += 1
                continue
            for call in calls(entry, format):
                steps.add(call, format, texts)
        except DataError as error:
            _count(steps, error.at(path, line))
        except RecursionError:
            _count(steps, DataError("is nested too deep", path=path, line=line))


def _count(steps: Steps, error: DataError) -> None:
    steps.bad += 1
    if len(steps.problems) < TOLD:
        steps.problems.append(str(error))


def _found(path: Path) -> Iterator[Found]:
    if path.suffix.lower() in _PARQUET:
        return ((line, record) for line, record, _ in raw_records(path)[1])
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_SQLITE)) == _SQLITE:
                return enumerate(_database(path), 1)
    return objects(path)


def _database(path: Path) -> Iterator[Object]:
    """The rows of our own records, or the messages of OpenCode, in a SQLite database."""
    tables: Sequence[tuple[str, str]] = (
        (
            "thriftroute_decisions",
            "SELECT id, time, session_hash, model, prompt_tokens, cached_tokens, "
            "completion_tokens, prompt_hash, choice, threshold FROM thriftroute_decisions "
            "WHERE status < 400 AND cache NOT IN ('hit', 'semantic') ORDER BY time",
        ),
        (
            "message",
            "SELECT json_set(data, '$.id', id, '$.sessionID', session_id) AS json FROM message",
        ),
    )
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            known = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            query = next((query for name, query in tables if name in known), None)
            if query is None:
                raise DataError("has no table of records; expected thriftroute's", path=path)
            for row in map(dict, connection.execute(query)):
                yield body(row["json"]) if "json" in row else row
    except sqlite3.Error as error:
        raise DataError(f"cannot be read as a SQLite database ({error})", path=path) from error


def _format_of(entry: Object, named: bool) -> str:
    """The format of an entry; "" where it is of another one, and nobody named the file."""
    try:
        format = detect(entry)
    except DataError:
        if named:
            raise
        return ""
    if format == "agent" or format in _FIELDS:
        return format
    if not named:
        return ""
    known = "transcripts of agents, records of thriftroute, LiteLLM's spend logs, OpenTelemetry"
    raise DataError(
        f"entries of {format} tell nothing of sessions and caches; expected {known}, or rows "
        f"with the columns session, time, model, {', '.join(TOKENS)}"
    )


def _amount(value: object, name: str) -> float | None:
    if type(value) is int and value >= 0:
        return float(value)
    found = number(value, name)
    if found is not None and found < 0:
        raise DataError(f"{shown(value)} is below 0", field=name)
    return found


def _seconds(value: object) -> float:
    if isinstance(value, str):  # what most have, without a way through text
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    told = iso_time(value)
    return np.nan if told is None else moment(told).timestamp()

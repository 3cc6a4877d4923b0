"""What stands in log files, as rows: one at a time, or a block at a time, ready to be put away."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...providers import pii
from ..layouts import OnBad
from ..schema import render
from .formats import FORMATS, detect, rows_of
from .normalize import LeftOutError, digest
from .reader import Block, Found, objects
from .schema import LogRow, moment
from .traffic_profile import Traffic

_KEY = 12  # bytes of a SHA-256 by which a request, or an id, is known


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What to do. `sample` rows (None: all); of each cluster `at_least` so many of them; `report`:
    describe the traffic, too."""

    format: str = "auto"
    sample: int | None = None
    report: bool = False
    at_least: int = 0
    clusters: int | None = None
    mask: bool = False
    on_bad: OnBad = "stop"
    rejects: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMATS):
            known = ", ".join(FORMATS)
            raise ConfigError(f"format {self.format!r}: expected auto or one of {known}")
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"a sample of {self.sample}: expected at least 1")
        if self.at_least and self.sample is None:
            raise ConfigError("so many of each cluster are of a sample: say how large it is")


@dataclass(slots=True)
class Imported:
    """What came of an import: `entries` read, of which `left_out` by reason and `bad` ones;
    `distinct` requests, how often they came in all (`requests`), and rows `written`. `resumed`
    entries were read by an earlier run."""

    formats: dict[str, str] = field(default_factory=dict)
    entries: int = 0
    resumed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    problem: str | None = None  # of the first bad one
    masked: int = 0  # distinct requests in which something was
    distinct: int = 0
    requests: float = 0.0
    written: int = 0
    traffic: Traffic | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "left_out": dict(self.left_out)}


# A row as the store takes it: key of its messages and of its id, time, weight, whether it was
# masked, and its line of JSON without the weight.
Packed = tuple[bytes, bytes, float | None, float, bool, bytes]


@dataclass(frozen=True, slots=True)
class Read:
    """What stood in a block: rows, the bad ones as lines of JSON, and what was counted."""

    rows: list[Packed]
    rejects: list[str]
    counts: Imported


def read_entries(
    files: Iterable[str | Path], options: ImportSettings, result: Imported | None = None
) -> Iterator[LogRow]:
    """The rows of log files, in their order, repeats and all; counted into `result`. Raises
    DataError with file, line and field, unless what is bad is to be skipped; it is not kept
    then.
    """
    result = Imported() if result is None else result
    for path in files:
        yield from _rows(objects(path), path, options, result, lambda line: None)


def read_block(block: Block, path: str, options: ImportSettings, format: str) -> Read:
    """The rows of a block of a file of that format, or "auto"; raises as `read_entries`."""
    read = Read([], [], Imported(formats={} if format == "auto" else {path: format}))
    for found in _rows(block.found(), path, options, read.counts, read.rejects.append):
        row = masked(found) if options.mask else found
        record = {name: value for name, value in row.to_dict().items() if name != "weight"}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        name = hashlib.sha256(row.id.encode("utf-8", "surrogatepass")).digest()
        key = digest(row.messages)[:_KEY]
        read.rows.append((key, name[:_KEY], seconds(row), row.weight, row != found, line))
    return read


def format_of(block: Block) -> str:
    """The format of the first entry of which it can be told, else "auto"."""
    for _, entry in block.found():
        if not isinstance(entry, DataError):
            try:
                return detect(entry)
            except DataError:
                continue
    return "auto"


def masked(row: LogRow) -> LogRow:
    """A row without personal data and keys. Names of sessions and tenants become hashes where
    they hold some: they still tell who is who."""
    messages = tuple(pii.masked(list(row.messages)))
    answer = None if row.answer is None else pii.mask(row.answer)
    names = {n: getattr(row, n) for n in ("session", "tenant", "task", "id")}
    hidden: dict[str, Any] = {
        name: f"masked-{digest([{name: value}]).hex()[:12]}"
        for name, value in names.items()
        if pii.mask(value) != value
    }
    return replace(row, messages=messages, prompt=render(messages), answer=answer, **hidden)


def seconds(row: LogRow) -> float | None:
    """Its time in seconds since 1970; None where it has none."""
    return None if row.time is None else moment(row.time).timestamp()


def _rows(
    found: Iterable[Found],
    path: str | Path,
    options: ImportSettings,
    result: Imported,
    keep: Callable[[str], object],
) -> Iterator[LogRow]:
    name = str(path)
    format = options.format if options.format != "auto" else result.formats.get(name, "auto")
    for line, entry in found:
        result.entries += 1
        try:
            if isinstance(entry, DataError):
                raise entry
            if format == "auto":
                format = detect(entry)
            result.formats[name] = format
            for row in rows_of(entry, format):
                if isinstance(row, LeftOutError):
                    result.left_out[row.reason] += 1
                else:
                    yield row
        except DataError as problem:
            error = problem.at(path, line)
            if options.on_bad == "stop":
                raise error from problem
            result.bad += 1
            result.problem = result.problem or str(error)
            if options.rejects is not None:
                keep(_reject(error, None if isinstance(entry, DataError) else entry))


def _reject(error: DataError, row: object) -> str:
    """A bad entry as a line of the file of rejects."""
    told = {name: getattr(error, name) for name in ("path", "line", "field", "problem")}
    try:
        return json.dumps({**told, "row": row}, default=repr) + "\n"
    except RecursionError:
        return json.dumps({**told, "row": None}) + "\n"

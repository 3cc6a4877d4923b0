"""A log cut into chunks that can be read on their own, and the rows of one of them.

A chunk of JSONL is a range of bytes, one of Parquet a range of rows in a row group.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, require_extra
from ...router.text import Promptlike
from ..lines import check_unpacked, json_object, lines
from ..logs.formats import FORMATS, detect, rows_of
from ..logs.normalize import LeftOutError
from ..logs.schema import LogRow, row_of

CHUNK_ROWS = 1024
# A chunk ends before this size too: requests of a megabyte each must not fill the memory.
CHUNK_BYTES = 64 << 20
_BATCH = 256  # rows of Parquet that are unpacked at a time
_DETECTED = 100  # lines that are looked at for the format of a file
# What a score depends on; other fields of a row that was imported are not looked at.
_FIELDS = ("id", "prompt", "messages")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an input that is read on its own.

    `index` counts over all inputs. In JSONL `start` and `stop` are bytes of the file; in Parquet
    rows of row group `group` (-1 in JSONL). `line` is the number of its first line, or row, in the
    file, from 1; `lines` how many it has, blank ones included. `format` is one of
    `logs.formats.FORMATS`.
    """

    index: int
    path: str
    start: int
    stop: int
    line: int
    lines: int
    group: int = -1
    format: str = "logs"


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """The chunks of a run, and the SHA-256 (hex) of each input, by its absolute path."""

    chunks: tuple[Chunk, ...] = field(repr=False)
    files: Mapping[str, str]

    @property
    def lines(self) -> int:
        """Lines (or rows) of all chunks."""
        return sum(chunk.lines for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class LogPrompt:
    """What is scored of one row: its `id`, and the text or the messages; `line` in its file."""

    line: int
    id: str
    prompt: Promptlike


def plan_chunks(
    paths: Sequence[str | Path],
    *,
    format: str = "auto",
    chunk_rows: int = CHUNK_ROWS,
    chunk_bytes: int = CHUNK_BYTES,
) -> ChunkPlan:
    """Cut files into chunks of at most `chunk_rows` lines and, in JSONL, `chunk_bytes` bytes.

    A line that is longer is a chunk of its own. format: one of `logs.formats.FORMATS`, or auto: of
    each file what its first entry looks like.
    Raises DataError where a file cannot be read, is packed, holds no line or nothing known;
    ConfigError (no such format); MissingExtraError.
    """
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"format {format!r}: expected auto or one of {', '.join(FORMATS)}")
    files: dict[str, str] = {}
    chunks: list[Chunk] = []
    for path in (Path(p).absolute() for p in paths):
        before = len(chunks)
        try:
            with path.open("rb") as file:
                files[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
            for chunk in _cut(path, format, chunk_rows, chunk_bytes):
                chunks.append(replace(chunk, index=len(chunks)))
        except OSError as error:
            raise DataError(
                f"cannot be read ({error.strerror or error}); expected a readable file", path=path
            ) from error
        if len(chunks) == before:
            raise DataError("is empty; expected at least one row of a log", path=path)
    return ChunkPlan(tuple(chunks), files)


def prompts_of(chunk: Chunk) -> Iterator[LogPrompt | LeftOutError | DataError]:
    """The rows of a chunk in order; what is no request that was answered is a LeftOutError, a bad
    row a DataError with file, line and field.

    Blank lines are passed over. Raises DataError where the file cannot be read at all.
    """
    records = _jsonl_records(chunk) if chunk.group < 0 else _parquet_records(chunk)
    for line, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            for row in _rows(record, chunk.format):
                if isinstance(row, LeftOutError):
                    yield row
                else:
                    yield LogPrompt(line, row.id, row.messages)
        except DataError as error:
            yield DataError(error.problem, path=chunk.path, line=line, field=error.field)


def _rows(record: dict[str, Any], format: str) -> Iterable[LogRow | LeftOutError]:
    if format == "logs":
        return (row_of({name: record.get(name) for name in _FIELDS}),)
    return rows_of(record, format)


def _cut(path: Path, format: str, rows: int, size: int) -> Iterator[Chunk]:
    """The chunks of one file, all with index 0."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"\x1f\x8b"):
        raise DataError(
            f"is packed with gzip, and chunks are read by their place: unpack it first "
            f"(gunzip --keep {path.name})",
            path=path,
        )
    if head == b"PAR1":
        return _parquet_chunks(path, rows)
    return _jsonl_chunks(path, _detected(path) if format == "auto" else format, rows, size)


def _detected(path: Path) -> str:
    """The format of the first entry that can be read; `logs` where none of the first lines can."""
    objects: list[bool] = []
    with path.open("rb") as file:
        for line, data in enumerate(islice(lines(file), _DETECTED), start=1):
            if isinstance(data, DataError):
                objects.append(True)  # as far as can be told
                continue
            text = data.removeprefix(b"\xef\xbb\xbf").strip()
            if text:
                objects.append(text.startswith(b"{"))
            record = json_object(text)
            if isinstance(record, dict):
                try:
                    return detect(record)
                except DataError as error:
                    raise DataError(error.problem, path=path, line=line) from error
    if objects and not any(objects):
        raise DataError(
            "has no JSON object a line; bring other files into that form first: "
            "thriftroute logs import FILE --out logs.jsonl",
            path=path,
        )
    return "logs"


def _jsonl_chunks(path: Path, format: str, rows: int, size: int) -> Iterator[Chunk]:
    start = stop = count = long = 0
    first = 1

    def passed_over(data: bytes) -> None:
        nonlocal long
        long += len(data)

    with path.open("rb") as file:
        for data in lines(file, passed_over):
            length = long if isinstance(data, DataError) else len(data)
            if count and (count == rows or stop + length - start > size):
                yield Chunk(0, str(path), start, stop, first, count, format=format)
                start, first, count = stop, first + count, 0
            stop, count, long = stop + length, count + 1, 0
    if count:
        yield Chunk(0, str(path), start, stop, first, count, format=format)


def _jsonl_records(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    try:
        with Path(chunk.path).open("rb") as file:
            file.seek(chunk.start)
            for line, data in enumerate(islice(lines(file), chunk.lines), chunk.line):
                if isinstance(data, DataError):
                    yield line, data
                elif data.strip():
                    yield line, json_object(data)
    except OSError as error:
        raise DataError(
            f"cannot be read past this line ({error.strerror or error})",
            path=chunk.path,
            line=chunk.line,
        ) from error


def _parquet_chunks(path: Path, chunk_rows: int) -> Iterator[Chunk]:
    parquet = require_extra("pyarrow.parquet", "eval")
    arrow = require_extra("pyarrow", "eval")
    try:
        with parquet.ParquetFile(path) as file:
            check_unpacked(path, file.metadata)
            names = set(file.schema_arrow.names)
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    except arrow.ArrowException as error:
        raise DataError(f"not readable as Parquet ({error}); is it whole?", path=path) from error
    listed = f"it has: {', '.join(sorted(names))}"
    if "id" not in names:
        raise DataError(f"no such column; {listed}", path=path, field="id")
    if names.isdisjoint({"prompt", "messages"}):
        problem = f"neither a column prompt nor messages; {listed}"
        raise DataError(problem, path=path, field="prompt")
    first = 1
    for group, rows in enumerate(sizes):
        for start in range(0, rows, chunk_rows):
            stop = min(start + chunk_rows, rows)
            yield Chunk(0, str(path), start, stop, first + start, stop - start, group)
        first += rows


def _parquet_records(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    parquet = require_extra("pyarrow.parquet", "eval")
    arrow = require_extra("pyarrow", "eval")
    row = 0
    try:
        with parquet.ParquetFile(chunk.path) as file:
            columns = [name for name in _FIELDS if name in file.schema_arrow.names]
            for batch in file.iter_batches(_BATCH, row_groups=[chunk.group], columns=columns):
                begin = max(row, chunk.start)
                row += batch.num_rows
                if row > chunk.start:
                    part = batch.slice(begin - (row - batch.num_rows), chunk.stop - begin)
                    yield from enumerate(part.to_pylist(), chunk.line + begin - chunk.start)
                if row >= chunk.stop:
                    return
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"cannot be read from this row on ({error}); is it whole?",
            path=chunk.path,
            line=chunk.line,
        ) from error

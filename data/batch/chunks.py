"""A log cut into chunks that can be read on their own, and the rows of one of them.

A chunk of JSONL is a range of bytes, one of Parquet a range of rows in a row group.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...router.text import Promptlike
from ..lines import json_object, lines, parquet_file
from ..logs.formats import FORMATS, detect, rows_of
from ..logs.normalize import LeftOutError
from ..logs.schema import row_of

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
    file, from 1; `lines` how many it has, blank ones included.
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

    A line that is longer is a chunk of its own. format: one of `logs.formats.FORMATS`, or auto.
    Raises DataError where a file cannot be read, is packed, holds no line or nothing known;
    ConfigError (no such format); MissingExtraError.
    """
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"format {format!r}: expected auto or one of {', '.join(FORMATS)}")
    files: dict[str, str] = {}
    chunks: list[Chunk] = []
    for path in (Path(p).absolute() for p in paths):
        try:
            with path.open("rb") as file:
                head = file.read(4)
                file.seek(0)
                files[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
            if head.startswith(b"\x1f\x8b"):
                problem = f"is packed with gzip: unpack it first (gunzip --keep {path.name})"
                raise DataError(problem, path=path)
            if head == b"PAR1":
                found = list(_parquet_chunks(path, chunk_rows))
            else:
                found = list(_jsonl_chunks(path, format, chunk_rows, chunk_bytes))
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error}); expected a readable file"
            raise DataError(problem, path=path) from error
        if not found:
            raise DataError("is empty; expected at least one row of a log", path=path)
        chunks += (replace(chunk, index=i) for i, chunk in enumerate(found, len(chunks)))
    return ChunkPlan(tuple(chunks), files)


def prompts_of(chunk: Chunk) -> Iterator[LogPrompt | LeftOutError | DataError]:
    """The rows of a chunk in order; what is no request that was answered is a LeftOutError, a bad
    row a DataError with file, line and field. Raises DataError where the file cannot be read."""
    records = _jsonl_records(chunk) if chunk.group < 0 else _parquet_records(chunk)
    for line, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            if chunk.format == "logs":
                row = row_of({name: record.get(name) for name in _FIELDS})
                yield LogPrompt(line, row.id, row.messages)
                continue
            for found in rows_of(record, chunk.format):
                if isinstance(found, LeftOutError):
                    yield found
                else:
                    yield LogPrompt(line, found.id, found.messages)
        except DataError as error:
            yield error.at(chunk.path, line)


def _detected(path: Path) -> str:
    """The format of the first entry that can be read; `logs` where none of the first lines can."""
    firsts = set()  # characters of lines
    with path.open("rb") as file:
        for line, data in enumerate(islice(lines(file), _DETECTED), start=1):
            if isinstance(data, DataError):
                firsts.add(b"{")  # as far as can be told
                continue
            firsts.add(data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1])
            if isinstance(record := json_object(data), dict):
                try:
                    return detect(record)
                except DataError as error:
                    raise error.at(path, line) from error
    if not firsts <= {b"", b"{"} and b"{" not in firsts:
        first = "thriftroute logs import FILE --out logs.jsonl"
        raise DataError(f"has no JSON object a line; bring it into that form: {first}", path=path)
    return "logs"


def _jsonl_chunks(path: Path, format: str, rows: int, size: int) -> Iterator[Chunk]:
    """The chunks of one file, all with index 0."""
    format = _detected(path) if format == "auto" else format
    start = stop = count = 0
    first = 1
    with path.open("rb") as file:
        for _ in lines(file):
            end = file.tell()
            if count and (count == rows or end - start > size):
                yield Chunk(0, str(path), start, stop, first, count, format=format)
                start, first, count = stop, first + count, 0
            stop, count = end, count + 1
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
        problem = f"cannot be read past this line ({error.strerror or error})"
        raise DataError(problem, path=chunk.path, line=chunk.line) from error


def _parquet_chunks(path: Path, chunk_rows: int) -> Iterator[Chunk]:
    with parquet_file(path) as file:
        names = set(file.schema_arrow.names)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
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
    row = 0
    with parquet_file(chunk.path) as file:
        columns = [name for name in _FIELDS if name in file.schema_arrow.names]
        for batch in file.iter_batches(_BATCH, row_groups=[chunk.group], columns=columns):
            begin = max(row, chunk.start)
            row += batch.num_rows
            if row > chunk.start:
                part = batch.slice(begin - (row - batch.num_rows), chunk.stop - begin)
                yield from enumerate(part.to_pylist(), chunk.line + begin - chunk.start)
            if row >= chunk.stop:
                return

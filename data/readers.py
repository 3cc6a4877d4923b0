"""Rows from files and datasets, streamed: JSONL, CSV, Parquet, Arena exports, Hugging Face.

    for row in read_rows("logs.jsonl"): ...
    reader = read_rows("logs.csv", on_bad="skip", rejects="bad.jsonl")
    table = pair_table(reader, strong="gpt-4", weak="mixtral"); print(reader.report())

A bad row stops with a DataError that names file, line and field. With on_bad="skip" it is counted,
written to the rejects file and reported in the log at the end. What makes a whole file unreadable
(no such file, no rows, a missing column, truncation) always stops.
"""

import contextlib
import csv
import json
import logging
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from ..errors import DataError, require_extra
from ..files import private
from .layouts import LAYOUTS, Record, detect_layout, request
from .lines import MAX_LINE, check_unpacked, json_object, lines, open_bytes, too_long
from .schema import Row, check_text

logger = logging.getLogger("thriftroute.data")

OnBad = Literal["stop", "skip"]
CONTAINERS = ("jsonl", "csv", "parquet")
_EXTENSIONS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_BATCH = 4096
_KEPT_PROBLEMS = 5

# One record as a container yields it: its line or row number, and the record itself or, where it
# could not even be parsed, the problem; and the raw row for the rejects file.
Raw = tuple[int, Record | DataError, Any]


class RowReader(Iterator[Row]):
    """An iterator over rows that counts what it read; made by `read_rows`.

    `rows` valid rows so far, `skipped` bad rows so far, `problems` the first few of them as
    DataErrors, `layout` (scores, comparisons, arena; None before the first row), `name`.
    """

    def __init__(
        self,
        name: str,
        records: Iterator[Raw],
        *,
        layout: str | None = None,
        on_bad: OnBad = "stop",
        rejects: str | Path | None = None,
    ) -> None:
        if on_bad not in ("stop", "skip"):
            raise DataError(f"on_bad is {on_bad!r}; expected 'stop' or 'skip'")
        self.name = name
        self.layout = layout
        self.rows = 0
        self.skipped = 0
        self.problems: list[DataError] = []
        self._on_bad = on_bad
        self._rejects = None if rejects is None else Path(rejects)
        self._sink: IO[str] | None = None
        self._rows = self._read(records)

    def __next__(self) -> Row:
        return next(self._rows)

    def report(self) -> str:
        """One line: rows read and skipped, the first problem, and where the bad rows lie."""
        text = f"{self.name}: {self.rows:,} rows read"
        if self.skipped:
            text += f", {self.skipped:,} bad rows skipped, the first: {self.problems[0]}"
            text += f"; all in {self._rejects}" if self._rejects else "; no rejects file was given"
        return text

    def _read(self, records: Iterator[Raw]) -> Generator[Row]:
        make = None if self.layout is None else LAYOUTS[self.layout].make
        with contextlib.ExitStack() as sinks:
            for line, record, raw in records:
                try:
                    if isinstance(record, DataError):
                        raise record
                    if make is None:
                        self.layout = detect_layout(record)
                        make = LAYOUTS[self.layout].make
                    row = make(record)
                except DataError as error:
                    self._skip(error, line, raw, sinks)
                    continue
                self.rows += 1
                yield row
        if not self.rows and self.skipped:
            problem = f"no usable row: all {self.skipped:,} are bad, the first: {self.problems[0]}"
            raise DataError(problem, path=self.name)
        if not self.rows:
            raise DataError("is empty; expected at least one row", path=self.name)
        if self.skipped:
            logger.warning("%s", self.report())

    def _skip(self, error: DataError, line: int, raw: object, sinks: contextlib.ExitStack) -> None:
        located = DataError(error.problem, path=self.name, line=line, field=error.field)
        if self._on_bad == "stop":
            raise located from error
        self.skipped += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(located)
        if self._rejects is None:
            return
        self._sink = self._sink or sinks.enter_context(_open_rejects(self._rejects))
        if isinstance(raw, bytes):
            raw = raw.decode(errors="backslashreplace").rstrip("\r\n")
        entry = {"path": self.name, "line": line, "field": error.field, "problem": error.problem}
        # ASCII, so that lone surrogates in the row can be written at all.
        self._sink.write(json.dumps({**entry, "row": raw}, default=repr) + "\n")


def read_rows(
    path_or_name: str | Path,
    *,
    format: str | None = None,
    on_bad: OnBad = "stop",
    rejects: str | Path | None = None,
) -> RowReader:
    """Stream the rows of a file, a folder or a dataset as Comparison or PromptScore.

    `path_or_name`: a .jsonl, .csv, .tsv (each also .gz) or .parquet file; a folder saved by
    `datasets` or holding a dataset's data files, with `:split` after it where it has several; or
    `hf:owner/name[:split]`, streamed from the hub. `format` overrides what is detected: jsonl, csv
    or parquet for the container, or scores, comparisons or arena for the columns. `rejects` is a
    JSONL file that skipped rows are appended to (path, line, field, problem, row).

    Raises DataError (see the module's docstring), MissingExtraError where Parquet or `datasets` is
    needed and not installed.
    """
    name, records = _open(path_or_name, format)
    layout = format if format in LAYOUTS else None
    return RowReader(name, records, layout=layout, on_bad=on_bad, rejects=rejects)


def read_prompts(path_or_name: str | Path, *, format: str | None = None) -> Iterator[str]:
    """Stream just the prompts, for work that needs no labels, such as calibration.

    A .txt file holds a prompt on each line that is not blank; every other container of `read_rows`
    needs a column `prompt` or `messages` (rendered to its user turns, see `schema.render`).
    Repeated prompts are repeated. Raises DataError as `read_rows` does.
    """
    if str(path_or_name).lower().endswith((".txt", ".txt.gz")) and format is None:
        return _prompts(str(path_or_name), _text_records(_existing(path_or_name)))
    return _prompts(*_open(path_or_name, format))


def _prompts(name: str, records: Iterator[Raw]) -> Generator[str]:
    found = False
    for line, record, _ in records:
        try:
            if isinstance(record, DataError):
                raise record
            prompt, _ = request(record)
            check_text(prompt, "prompt")
        except DataError as error:
            raise DataError(error.problem, path=name, line=line, field=error.field) from error
        found = True
        yield prompt
    if not found:
        raise DataError("is empty; expected at least one prompt", path=name)


def _open(path_or_name: str | Path, format: str | None) -> tuple[str, Iterator[Raw]]:
    if format is not None and format not in (*CONTAINERS, *LAYOUTS):
        known = ", ".join((*CONTAINERS, *LAYOUTS))
        raise DataError(f"unknown format {format!r}; expected one of {known}")
    name = str(path_or_name)
    if name.startswith("hf:"):
        from .hub import hub_records

        return name, hub_records(name)
    path, split = Path(path_or_name), ""
    if not path.exists() and ":" in path.name:
        stem, _, split = name.rpartition(":")
        path = Path(stem)
    if path.is_dir():
        from .hub import folder_records

        return name, folder_records(path, split)
    path = _existing(path_or_name)
    return name, _CONTAINERS[format if format in CONTAINERS else _container(path)](path)


def _existing(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise DataError(
            f"cannot be opened ({error.strerror or error}); expected a readable file, a folder, "
            "or hf:owner/name",
            path=path,
        ) from error


def _container(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in _EXTENSIONS:
        return _EXTENSIONS[suffixes[-1]]
    try:
        with open_bytes(path) as file:
            head = file.read(64).lstrip()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read ({error})", path=path) from error
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.startswith(b"{") else "csv"


def _lines(path: Path) -> Generator[tuple[int, bytes | DataError]]:
    line = 0
    try:
        with open_bytes(path) as file:
            for line, data in enumerate(lines(file), 1):
                yield line, data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot be read past this line ({error}); is the file truncated?", path=path, line=line
        ) from error


def _jsonl_records(path: Path) -> Generator[Raw]:
    for line, data in _lines(path):
        if isinstance(data, DataError):
            yield line, data, None
        elif data.strip():
            value = json_object(data)
            if line == 1 and isinstance(value, DataError) and data.lstrip().startswith(b"["):
                hint = "; a JSON list must be written one object a line"
                value = DataError(value.problem + hint)
            yield line, value, data


def _text(line: int, data: bytes) -> str:
    # What is not UTF-8 becomes lone surrogates, which check_text refuses.
    return data.decode("utf-8-sig" if line == 1 else "utf-8", "surrogateescape")


def _text_records(path: Path) -> Generator[Raw]:
    for line, data in _lines(path):
        if isinstance(data, DataError):
            yield line, data, None
        elif data.strip():
            yield line, {"prompt": _text(line, data).rstrip("\r\n")}, data


def _csv_records(path: Path) -> Generator[Raw]:
    # The module's limit of 128 kB a field is below a prompt that we mean to read.
    csv.field_size_limit(MAX_LINE)
    size = 0  # of the row that is being read

    def texts() -> Generator[str]:
        nonlocal size
        for line, data in _lines(path):
            size += 0 if isinstance(data, DataError) else len(data)
            if isinstance(data, DataError) or size > MAX_LINE:
                raise DataError(too_long("the row").problem, path=path, line=line)
            yield _text(line, data)

    tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    reader = csv.reader(texts(), strict=True, delimiter="\t" if tab else ",")
    header = _header(path, reader)
    while header is not None:
        line, size = reader.line_num + 1, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not valid CSV ({error}), from line {line} to {reader.line_num}"
            yield line, DataError(problem), None
            continue
        if len(cells) == len(header):
            record = dict(zip(header, cells, strict=True))
            yield line, record, record
        elif cells:
            problem = f"{len(cells)} cells; expected {len(header)} as in the header"
            yield line, DataError(problem), cells


def _header(path: Path, reader: Iterator[list[str]]) -> list[str] | None:
    """The names of columns; None where the file is empty."""
    try:
        names = next(reader, None)
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", path=path, line=1) from error
    if twice := sorted({n for n in names or () if n and (names or []).count(n) > 1}):
        raise DataError(f"column {twice[0]!r} occurs twice", path=path, line=1, field=twice[0])
    return names


def _parquet_records(path: Path) -> Generator[Raw]:
    parquet = require_extra("pyarrow.parquet", "eval")
    arrow = require_extra("pyarrow", "eval")
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            check_unpacked(path, file.metadata)
            for batch in file.iter_batches(batch_size=_BATCH):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record, record
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read past this row ({error}); is the file truncated?"
            if row
            else f"not readable as Parquet ({error}); is the file truncated?",
            path=path,
            line=row or None,
        ) from error


_CONTAINERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    "jsonl": _jsonl_records,
    "csv": _csv_records,
    "parquet": _parquet_records,
}


def _open_rejects(path: Path) -> IO[str]:
    try:
        return open(path, "a", encoding="utf-8", opener=private)
    except OSError as error:
        raise DataError(f"the rejects file cannot be written ({error})", path=path) from error

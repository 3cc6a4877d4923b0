"""Rows from files and datasets, streamed: JSONL, CSV, Parquet, Arena exports, Hugging Face.

    reader = read_rows("logs.csv", on_bad="skip", rejects="bad.jsonl")
    table = pair_table(reader, strong="gpt-4", weak="mixtral"); print(reader.report())

A bad row stops with a DataError that names file, line and field. With on_bad="skip" it is counted,
written to the rejects file and reported in the log at the end. What makes a whole file unreadable
(no such file, no rows, a missing column, truncation) always stops.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from ..errors import DataError
from ..files import private
from .hub import folder_records, hub_records
from .layouts import LAYOUTS, OnBad, Raw, Record, detect_layout, request
from .lines import csv_rows, json_object, lines, opened, parquet_file, suffix_of
from .schema import Row, check_text

logger = logging.getLogger("thriftroute.data")

CONTAINERS = ("jsonl", "csv", "parquet")
_EXTENSIONS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_BATCH = 4096
_KEPT_PROBLEMS = 5


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
        self.name, self.layout = name, layout
        self.rows = self.skipped = 0
        self.problems: list[DataError] = []
        self._on_bad = on_bad
        self._rejects = None if rejects is None else Path(rejects)
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
        with contextlib.ExitStack() as sinks:
            for line, record, raw in records:
                try:
                    if isinstance(record, DataError):
                        raise record
                    self.layout = self.layout or detect_layout(record)
                    row = LAYOUTS[self.layout].make(record)
                except DataError as error:
                    if self._on_bad == "stop":
                        raise error.at(self.name, line) from error
                    self._skip(error.at(self.name, line), raw, sinks)
                else:
                    self.rows += 1
                    yield row
        if not self.rows:
            bad = f"no usable row: all {self.skipped:,} are bad, the first: "
            problem = "is empty; expected at least one row"
            problem = f"{bad}{self.problems[0]}" if self.skipped else problem
            raise DataError(problem, path=self.name)
        if self.skipped:
            logger.warning("%s", self.report())

    def _skip(self, error: DataError, raw: object, sinks: contextlib.ExitStack) -> None:
        self.skipped += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(error)
        if self._rejects is None:
            return
        if self.skipped == 1:
            try:
                file = open(self._rejects, "a", encoding="utf-8", opener=private)  # noqa: SIM115
            except OSError as problem:
                told = f"the rejects file cannot be written ({problem})"
                raise DataError(told, path=self._rejects) from problem
            self._sink = sinks.enter_context(file)  # which closes it
        if isinstance(raw, bytes):
            raw = raw.decode(errors="backslashreplace").rstrip("\r\n")
        entry = {name: getattr(error, name) for name in ("path", "line", "field", "problem")}
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
    `hf:owner/name[:split]`. `format` overrides what is detected: jsonl, csv or parquet, or scores,
    comparisons or arena. `rejects` is a JSONL file that skipped rows are appended to. Raises
    DataError (see the module's docstring), MissingExtraError.
    """
    name, found = raw_records(path_or_name, format)
    layout = format if format in LAYOUTS else None
    return RowReader(name, found, layout=layout, on_bad=on_bad, rejects=rejects)


def read_prompts(path_or_name: str | Path, *, format: str | None = None) -> Iterator[str]:
    """Stream just the prompts, for work that needs no labels, such as calibration.

    A .txt file holds a prompt on each line that is not blank; every other container of `read_rows`
    needs a column `prompt` or `messages`. Repeated prompts are repeated. Raises as `read_rows`.
    """
    if str(path_or_name).lower().endswith((".txt", ".txt.gz")) and format is None:
        return _prompts(str(path_or_name), _line_records(_existing(path_or_name), _text))
    return _prompts(*raw_records(path_or_name, format))


def _prompts(name: str, records: Iterator[Raw]) -> Generator[str]:
    found = False
    for line, record, _ in records:
        try:
            if isinstance(record, DataError):
                raise record
            prompt, _ = request(record)
            check_text(prompt, "prompt")
        except DataError as error:
            raise error.at(name, line) from error
        found = True
        yield prompt
    if not found:
        raise DataError("is empty; expected at least one prompt", path=name)


def raw_records(path_or_name: str | Path, format: str | None = None) -> tuple[str, Iterator[Raw]]:
    """The name, and the raw records, of what `read_rows` takes: (line, record, what was read)."""
    if format is not None and format not in (*CONTAINERS, *LAYOUTS):
        known = ", ".join((*CONTAINERS, *LAYOUTS))
        raise DataError(f"unknown format {format!r}; expected one of {known}")
    name, path, split = str(path_or_name), Path(path_or_name), ""
    if name.startswith("hf:"):
        return name, hub_records(name)
    if not path.exists() and ":" in path.name:
        stem, _, split = name.rpartition(":")
        path = Path(stem)
    if path.is_dir():
        return name, folder_records(path, split)
    path = _existing(path_or_name)
    return name, _CONTAINERS[format if format in CONTAINERS else _container(path)](path)


def _existing(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        problem = f"cannot be opened ({error.strerror or error})"
        expected = "expected a readable file, a folder, or hf:owner/name"
        raise DataError(f"{problem}; {expected}", path=path) from error


def _container(path: Path) -> str:
    if known := _EXTENSIONS.get(suffix_of(path)):
        return known
    with opened(path) as file:
        head = file.read(64).lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.startswith(b"{") else "csv"


def _line_records(path: Path, parsed: Callable[[int, bytes], Record | DataError]) -> Generator[Raw]:
    with opened(path) as file:
        for line, data in enumerate(lines(file), 1):
            if isinstance(data, DataError):
                yield line, data, None
            elif data.strip():
                yield line, parsed(line, data), data


def _json(line: int, data: bytes) -> Record | DataError:
    value = json_object(data)
    if line == 1 and isinstance(value, DataError) and data.lstrip().startswith(b"["):
        return DataError(f"{value.problem}; a JSON list must be written one object a line")
    return value


def _text(line: int, data: bytes) -> Record:
    # What is not UTF-8 becomes lone surrogates, which check_text refuses.
    text = data.decode("utf-8-sig" if line == 1 else "utf-8", "surrogateescape")
    return {"prompt": text.rstrip("\r\n")}


def _csv_records(path: Path) -> Generator[Raw]:
    with opened(path) as file:
        for line, record, cells in csv_rows(file, path):
            yield line, record, cells if isinstance(record, DataError) else record


def _parquet_records(path: Path) -> Generator[Raw]:
    row = 0
    with parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            for record in batch.to_pylist():
                row += 1
                yield row, record, record


_CONTAINERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    "jsonl": lambda path: _line_records(path, _json),
    "csv": _csv_records,
    "parquet": _parquet_records,
}

"""Lines of users' files and rows of their CSV, packed or not: none is held above `MAX_LINE`.

    with open_bytes(path) as file:
        for line in lines(file): ...

A few megabytes of gzip may hold a line of gigabytes; whatever reads users' files reads them here.
"""

import contextlib
import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import DataError, require_extra
from ..files import private, whole_file
from .schema import shown

MAX_LINE = 64 << 20  # bytes, unpacked: of a line, a row of CSV, an object of a JSON list
MAX_RATIO = 200  # of a column of Parquet above MAX_LINE to what is stored of it
_PIECE = 1 << 20
_BOM = b"\xef\xbb\xbf"


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where it is packed with gzip. Raises OSError."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    # gzip.open and open differ in type, not in what is used of them here.
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """`open_bytes`, closed at the end. Raises DataError where the file cannot be read."""
    try:
        with open_bytes(path) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        why = f"cannot be opened or read to its end ({getattr(error, 'strerror', None) or error})"
        raise DataError(f"{why}; is the file missing or truncated?", path=path) from error


def suffix_of(path: Path) -> str:
    """The last suffix that says what a file holds, in lower case, such as .csv of a.csv.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def lines(file: IO[bytes]) -> Iterator[bytes | DataError]:
    """The lines of an open file with their ends; one above MAX_LINE comes as a DataError.

    Raises OSError, EOFError and zlib.error where the file cannot be read.
    """
    while data := file.readline(MAX_LINE + 1):
        if len(data) <= MAX_LINE:
            yield data
            continue
        while data and not data.endswith(b"\n"):
            data = file.readline(_PIECE)
        yield too_long("the line")


class _RowTexts(Iterator[str]):
    """The lines of CSV as text; `size` bytes of one row at most, which whoever reads sets to 0."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.size = 0
        self._lines, self._path = enumerate(lines(file), 1), path

    def __next__(self) -> str:
        line, data = next(self._lines)
        self.size += 0 if isinstance(data, DataError) else len(data)
        if isinstance(data, DataError) or self.size > MAX_LINE:
            raise DataError(too_long("the row").problem, path=self._path, line=line)
        # What is not UTF-8 becomes lone surrogates, which are told of a row at a time.
        return data.decode("utf-8-sig" if line == 1 else "utf-8", "surrogateescape")


def csv_rows(
    file: IO[bytes], path: Path
) -> Iterator[tuple[int, dict[str, str] | DataError, list[str] | None]]:
    """(line, cells by column or what is wrong with the row, its cells) after the header.

    Raises DataError for a header that cannot be used and a row above MAX_LINE; as `lines` does.
    """
    # The module's limit of 128 kB a field is below a prompt that we mean to read.
    csv.field_size_limit(MAX_LINE)
    texts = _RowTexts(file, path)
    tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    reader = csv.reader(texts, strict=True, delimiter="\t" if tab else ",")
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", path=path, line=1) from error
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"column {twice[0]!r} occurs twice", path=path, line=1, field=twice[0])
    while True:
        line, texts.size = reader.line_num + 1, 0
        try:
            cells = next(reader)
            "".join(cells).encode()
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not valid CSV ({error}), from line {line} to {reader.line_num}"
            yield line, DataError(problem), None
            continue
        except UnicodeEncodeError:
            yield line, DataError("a cell is not UTF-8"), None
            continue
        if len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True)), cells
        elif cells:
            problem = f"{len(cells)} cells; expected {len(header)} as in the header"
            yield line, DataError(problem), cells


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]], *, ascii: bool = False) -> int:
    """Write a file of its owner's, whole or not at all; how many records. Raises OSError.

    ascii: so that half a surrogate pair can be written at all.
    """
    with whole_file(path, opener=private) as file:
        lines = (json.dumps(record, ensure_ascii=ascii).encode() for record in records)
        return sum(bool(file.write(line + b"\n")) for line in lines)


def too_long(what: str) -> DataError:
    """That something in a file is longer than is read."""
    most = f"{MAX_LINE >> 20} MiB, which is the most that is read"
    return DataError(f"{what} is longer than {most}; split it, or leave it out")


@contextlib.contextmanager
def parquet_file(path: str | Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`. Raises DataError where it cannot be read, or a column
    unpacks to more than a file of its size holds; MissingExtraError."""
    parquet, arrow = require_extra("pyarrow.parquet", "eval"), require_extra("pyarrow", "eval")
    try:
        with parquet.ParquetFile(path) as file:
            for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    size = column.total_uncompressed_size
                    if size > max(MAX_LINE, MAX_RATIO * column.total_compressed_size):
                        problem = (
                            f"column {column.path_in_schema!r} unpacks to {size >> 20:,} MiB, more "
                            f"than {MAX_RATIO} times what is stored"
                        )
                        raise DataError(problem, path=path)
            yield file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"not readable as Parquet ({error}); is the file truncated?"
        raise DataError(problem, path=path) from error


def json_object(data: bytes) -> dict[str, Any] | DataError:
    """The object of a line of JSON, or what is wrong with the line."""
    try:
        value = json.loads(data.removeprefix(_BOM))
    except UnicodeDecodeError as error:
        return DataError(f"byte {error.start + 1} is not UTF-8")
    except (ValueError, RecursionError) as error:
        if is_doubled(data):
            return DataError(
                "the backslashes are doubled, as PostgreSQL's COPY writes them; export the rows "
                "with psql -At instead (see docs/own-logs.md)"
            )
        return DataError(f"not valid JSON ({error}); expected one JSON object")
    return object_of(value)


def object_of(value: object) -> dict[str, Any] | DataError:
    """The value where it is an object; else what is wrong with it."""
    return value if isinstance(value, dict) else DataError(f"{shown(value)} is not a JSON object")


def is_doubled(data: bytes) -> bool:
    r"""Whether it is JSON in which each backslash was doubled: `\"` then ends its string."""
    try:
        return rb"\\" in data and isinstance(json.loads(data.replace(rb"\\", b"\\")), dict)
    except (ValueError, RecursionError):
        return False

"""Lines of users' files, packed or not: none is held that is longer than `MAX_LINE`.

    with open_bytes(path) as file:
        for line in lines(file): ...

A few megabytes of gzip may hold a line of gigabytes; whatever reads users' files reads them here.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
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


def lines(
    file: IO[bytes], passed_over: Callable[[bytes], object] = lambda data: None
) -> Iterator[bytes | DataError]:
    """The lines of an open file with their ends; one above MAX_LINE comes as a DataError.

    passed_over: takes the pieces of such a line, which is read to its end.
    Raises OSError, EOFError and zlib.error where the file cannot be read.
    """
    while data := file.readline(MAX_LINE + 1):
        if len(data) <= MAX_LINE:
            yield data
            continue
        while data:
            passed_over(data)
            data = b"" if data.endswith(b"\n") else file.readline(_PIECE)
        yield too_long("the line")


def too_long(what: str) -> DataError:
    """That something in a file is longer than is read."""
    return DataError(
        f"{what} is longer than {MAX_LINE >> 20} MiB, which is the most that is read; "
        "split it, or leave it out"
    )


def check_unpacked(path: str | Path, metadata: Any) -> None:
    """Raises DataError where a column of a Parquet file unpacks to more than a file of this size
    holds; metadata: pyarrow's `FileMetaData`."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size = column.total_uncompressed_size
            if size > max(MAX_LINE, MAX_RATIO * column.total_compressed_size):
                raise DataError(
                    f"column {column.path_in_schema!r} unpacks to {size >> 20:,} MiB, more than "
                    f"{MAX_RATIO} times what is stored",
                    path=path,
                )


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

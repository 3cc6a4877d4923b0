"""JSON from files, a piece at a time: one object a line, or one list of objects; also .gz."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..data.schema import shown
from ..router.errors import DataError

Object = dict[str, Any]


def json_lines(path: str | Path) -> Iterator[tuple[int, Object]]:
    """(line, object) of each line that is not blank. Raises DataError with file and line."""
    for line, data in _lines(path):
        if not data.strip():
            continue
        try:
            value = json.loads(data.removeprefix(b"\xef\xbb\xbf") if line == 1 else data)
        except UnicodeDecodeError as error:
            raise DataError(f"byte {error.start + 1} is not UTF-8", path=path, line=line) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not valid JSON ({error}); expected one JSON object", path=path, line=line
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{shown(value)} is not a JSON object", path=path, line=line)
        yield line, value


def _open_bytes(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    # gzip.open and open differ in type, not in what is used of them here.
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    line = 0
    try:
        with _open_bytes(Path(path)) as file:
            for data in file:
                line += 1
                yield line, data
    except (OSError, EOFError, zlib.error) as error:
        if not line:
            problem = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
            raise DataError(f"{problem}; expected a readable file", path=path) from error
        raise DataError(
            f"cannot be read past this line ({error}); is the file truncated?", path=path, line=line
        ) from error

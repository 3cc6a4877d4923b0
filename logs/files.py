"""Objects from files, one at a time: JSON Lines, a JSON list, JSON of any layout, CSV; also .gz.

Nothing is held but the object at hand: a list of a million is read as a million lines are.
"""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..data.schema import shown
from ..router.errors import DataError

Object = Mapping[str, Any]
# Where it begins, and what it is or, where it cannot be read, what is wrong with it.
Found = tuple[int, Object | DataError]

_CHUNK = 1 << 20  # characters
_LARGEST = 1 << 28  # characters of one object that is no line
_CSV_FIELD_LIMIT = 1 << 28
_WHAT = "expected one JSON object"


def objects(path: str | Path) -> Iterator[Found]:
    """(line, object) of everything in a file; what cannot be read alone comes as its DataError.

    A file named .csv (or .csv.gz) has a header; its cells are text. Anything else is JSON: an
    object a line, or objects one after another, in a list, or in pages of `{"data": [...]}`.
    Raises DataError where the file cannot be opened, or not be read any further.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    line = 0
    try:
        with _open_bytes(path) as file:
            if suffixes and suffixes[-1] == ".csv":
                found = _csv_rows(file, path)
            elif _is_lines(file):
                found = _lines(file)
            else:
                found = _json_values(file, path)
            for line, value in found:
                for each in _unwrapped(value):
                    yield line, each
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 after this line ({error.reason})", path=path, line=line or 1
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        if not line:
            problem = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
            raise DataError(f"{problem}; expected a readable file", path=path) from error
        raise DataError(
            f"cannot be read past this line ({error}); is the file truncated?", path=path, line=line
        ) from error


def json_lines(path: str | Path) -> Iterator[tuple[int, Object]]:
    """(line, object) of a file in which all must be readable: DataError for the first that is not.

    See `objects`.
    """
    for line, value in objects(path):
        if isinstance(value, DataError):
            raise DataError(value.problem, path=path, line=line, field=value.field) from value
        yield line, value


def _lines(file: IO[bytes]) -> Iterator[Found]:
    for line, data in enumerate(file, start=1):
        if not data.strip():
            continue
        try:
            yield line, _object(json.loads(data.removeprefix(b"\xef\xbb\xbf")))
        except UnicodeDecodeError as error:
            yield line, DataError(f"byte {error.start + 1} is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield line, DataError(f"not valid JSON ({error}); {_WHAT}")


def _json_values(file: IO[bytes], path: Path) -> Iterator[Found]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    buffer, at, line, depth, ended = "", 0, 1, 0, False
    try:
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n,[]":
                line += buffer[at] == "\n"
                depth += (buffer[at] == "[") - (buffer[at] == "]")
                at += 1
            if at < len(buffer):
                try:
                    value, end = decoder.raw_decode(buffer, at)
                    # Of a number or a word that the buffer cuts, more may follow.
                    whole = ended or isinstance(value, dict)
                except (ValueError, RecursionError) as error:
                    if ended or isinstance(error, RecursionError) or len(buffer) - at > _LARGEST:
                        problem = f"not valid JSON ({error}); {_WHAT}, or a list of them"
                        raise DataError(problem, path=path, line=line) from error
                    whole = False
                if whole:
                    yield line, _object(value)
                    line += buffer.count("\n", at, end)
                    at = end
                    continue
            if ended:
                break
            # Twice as much each time: an object that is larger than a chunk is not tried for ever.
            more = text.read(max(_CHUNK, len(buffer) - at))
            ended = not more
            buffer, at = buffer[at:] + more, 0
        if depth:
            raise DataError("the JSON list has no end; is the file truncated?", path=path)
    finally:
        text.detach()


def _csv_rows(file: IO[bytes], path: Path) -> Iterator[Found]:
    # The module's limit of 128 kB a field is below a prompt that we mean to read.
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        reader = csv.DictReader(text, strict=True)
        line = 2
        for row in reader:
            if None in row or None in row.values():
                names = reader.fieldnames or ()
                yield line, DataError(f"a row of other length; expected {len(names)} cells")
            else:
                yield line, {name: value for name, value in row.items() if value != ""}
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", path=path, line=reader.line_num) from error
    finally:
        text.detach()


def _is_lines(file: IO[bytes]) -> bool:
    """Whether the file has an object a line, though it be a broken one; nothing is consumed."""
    filled = (line.removeprefix(b"\xef\xbb\xbf").strip() for line in file)
    first, second = itertools.islice(itertools.chain(filter(None, filled), (b"", b"")), 2)
    file.seek(0)
    try:
        return isinstance(json.loads(first or b"{}"), dict)
    except (ValueError, RecursionError):
        # In an object that goes on, the second line begins with a name.
        return first.startswith(b"{") and second.startswith(b"{")


def _unwrapped(value: Object | DataError) -> Iterator[Object | DataError]:
    page = None if isinstance(value, DataError) else value.get("data")
    if isinstance(page, list) and not {"messages", "request", "input"} & set(value):  # type: ignore[arg-type]
        for each in page:
            yield _object(each)
    else:
        yield value


def _object(value: object) -> Object | DataError:
    if isinstance(value, dict):
        return value
    return DataError(f"{shown(value)} is not a JSON object")


def _open_bytes(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    # gzip.open and open differ in type, not in what is used of them here.
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]

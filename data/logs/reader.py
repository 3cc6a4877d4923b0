"""Objects from files: JSON Lines, a JSON list, JSON of any layout, CSV; also .gz.

A file is read in blocks of some 1,000 entries, and nothing else of it is held: a list of a million
is read as a million lines are. Each block knows the place where it ends, and from there the file
can be read on another time, if what stands before is still the same.
"""

import contextlib
import csv
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ...errors import ConfigError, DataError
from ..lines import MAX_LINE, is_doubled, json_object, lines, object_of, open_bytes, too_long

Object = Mapping[str, Any]
# Where it begins, and what it is or, where it cannot be read, what is wrong with it.
Found = tuple[int, Object | DataError]
Piece = tuple[int, bytes | Object | DataError]  # bytes: a line that is still to be parsed
Layout = Literal["lines", "json", "csv"]

BLOCK_ENTRIES = 1000
BLOCK_BYTES = 1 << 20  # a block ends when it has so many
_CHUNK = 1 << 20  # characters
_BOM = b"\xef\xbb\xbf"
_BETWEEN = re.compile(r"[ \t\r\n,\[\]]*")  # the objects of JSON
# What a file is that begins so, and cannot be read.
_OTHERS = {
    **{b"PAR1": "Parquet", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK": "a ZIP archive"},
    **{b"\x28\xb5\x2f\xfd": "packed with zstd", b"BZh": "packed with bzip2", b"\xfd7zX": "xz"},
}
_FAULTS = (DataError, UnicodeDecodeError, OSError, EOFError, zlib.error)


class ChangedError(ConfigError):
    """What stands before the place where a file is to be read on is not what it was."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file was read: its first `offset` bytes, unpacked, of the given SHA-256 (hex).

    `line` is the number of the next line, `depth` how many JSON lists are open there, `names` are
    the columns of CSV.
    """

    layout: Layout
    offset: int
    sha256: str
    line: int
    depth: int = 0
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a file, and the place where it ends."""

    end: Place
    pieces: tuple[Piece, ...]

    def found(self) -> Iterator[Found]:
        """(line, object) of everything in it; what cannot be read alone comes as its DataError."""
        for line, piece in self.pieces:
            if not isinstance(piece, bytes):
                value: Object | DataError = piece
            elif piece.isspace():
                continue
            else:
                value = json_object(piece)
            for each in _unwrapped(value):
                yield line, each


def blocks(path: str | Path, after: Place | None = None) -> Iterator[Block]:
    """The blocks of a file in order, those after a place where it was read before.

    A file named .csv (or .csv.gz) has a header; its cells are text. Anything else is JSON: an
    object a line, or objects one after another, in a list, or in pages of `{"data": [...]}`.
    Raises DataError where the file cannot be opened, or not be read any further; ChangedError.
    """
    path = Path(path)
    line = 0 if after is None else after.line - 1
    opened = False
    try:
        with _open_bytes(path) as file:
            at = _Reading(_layout(file, path)) if after is None else _again(file, path, after)
            opened = True
            # Closed before the file is: what reads text lets go of it then.
            with contextlib.closing(_PIECES[at.layout](file, path, at)) as pieces:
                for block in _blocks(pieces, at):
                    line = block.pieces[-1][0]
                    yield block
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 after this line ({error.reason})", path=path, line=line or 1
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        if not (opened and line):
            problem = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
            raise DataError(f"{problem}; expected a readable file", path=path) from error
        raise DataError(
            f"cannot be read past this line ({error}); is the file truncated?", path=path, line=line
        ) from error


def check_whole(path: str | Path, place: Place) -> None:
    """Raises ChangedError unless the file is what was read up to its end, DataError as `blocks`."""
    for _ in blocks(path, place):
        raise _changed(Path(path), "has grown, or changed at its end,")


def objects(path: str | Path) -> Iterator[Found]:
    """(line, object) of everything in a file, a DataError for what is bad; raises as `blocks`."""
    for block in blocks(path):
        yield from block.found()


def json_lines(path: str | Path) -> Iterator[tuple[int, Object]]:
    """(line, object) of a file as `objects`; raises DataError for the first that is bad."""
    for line, value in objects(path):
        if isinstance(value, DataError):
            raise DataError(value.problem, path=path, line=line, field=value.field) from value
        yield line, value


class _Reading:
    """The place in a file that is being read."""

    def __init__(self, layout: Layout) -> None:
        self.layout: Layout = layout
        self.offset, self.line, self.depth = 0, 1, 0
        self.names: tuple[str, ...] | None = None
        self._hash = hashlib.sha256()

    def take(self, data: bytes) -> None:
        """These bytes are done with."""
        self.offset += len(data)
        self._hash.update(data)

    def place(self) -> Place:
        """Where it is now."""
        digest = self._hash.hexdigest()
        return Place(self.layout, self.offset, digest, self.line, self.depth, self.names)


def _layout(file: IO[bytes], path: Path) -> Layout:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] == ".csv":
        return "csv"
    return "lines" if _is_lines(file) else "json"


def _again(file: IO[bytes], path: Path, after: Place) -> _Reading:
    """Read a file up to a place where it was read before, which must be the same bytes."""
    at = _Reading(after.layout)
    last = b""
    while at.offset < after.offset and (data := file.read(min(_CHUNK, after.offset - at.offset))):
        at.take(data)
        last = data
    at.line, at.depth, at.names = after.line, after.depth, after.names
    if at.place() != after:
        raise _changed(path, f"has changed before line {after.line:,}")
    torn = after.layout != "json" and after.offset and not last.endswith((b"\n", b"\r"))
    # What was the file's end in the middle of a line must be its end still.
    if torn and file.read(1):
        raise _changed(path, f"goes on in line {after.line - 1:,}, which was its last,")
    return at


def _changed(path: Path, how: str) -> ChangedError:
    return ChangedError(f"{path} {how} since it was read")


def _blocks(pieces: Iterator[Piece], at: _Reading) -> Iterator[Block]:
    held: list[Piece] = []
    start = at.offset
    fault: Exception | None = None
    try:
        for piece in pieces:
            held.append(piece)
            if at.offset - start >= BLOCK_BYTES or len(held) == BLOCK_ENTRIES:
                yield Block(at.place(), tuple(held))
                held, start = [], at.offset
    except _FAULTS as error:
        fault = error
    # What stands before the fault is told of first.
    if held:
        yield Block(at.place(), tuple(held))
    if fault is not None:
        raise fault


def _of_lines(file: IO[bytes], path: Path, at: _Reading) -> Generator[Piece]:
    for data in lines(file, at.take):
        line = at.line
        at.line += 1
        if isinstance(data, bytes):
            at.take(data)
        yield line, data


@contextlib.contextmanager
def _text(file: IO[bytes], at: _Reading) -> Iterator[io.TextIOWrapper]:
    """The rest of a file as text, with the ends of lines that it has: bytes are counted."""
    if not at.offset:
        if (head := file.read(len(_BOM))) == _BOM:
            at.take(head)
        else:
            file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()


def _of_json(file: IO[bytes], path: Path, at: _Reading) -> Generator[Piece]:
    decoder = json.JSONDecoder()
    buffer, i, taken, ended = "", 0, 0, False
    with _text(file, at) as text:
        while True:
            i = next(_BETWEEN.finditer(buffer, i)).end()  # which may be empty
            at.line += buffer.count("\n", taken, i)
            at.depth += buffer.count("[", taken, i) - buffer.count("]", taken, i)
            at.take(buffer[taken:i].encode())
            taken = i
            if i < len(buffer):
                try:
                    value, end = decoder.raw_decode(buffer, i)
                    # Of a number or a word that the buffer cuts, more may follow.
                    whole = ended or isinstance(value, dict)
                except (ValueError, RecursionError) as error:
                    if ended or isinstance(error, RecursionError):
                        problem = f"not valid JSON ({error}); expected objects, or a list of them"
                        raise DataError(problem, path=path, line=at.line) from error
                    whole = False
                if whole:
                    line = at.line
                    at.line += buffer.count("\n", i, end)
                    at.take(buffer[i:end].encode())
                    i = taken = end
                    yield line, object_of(value)
                    continue
            if ended:
                break
            # Twice as much each time: an object that is larger than a chunk is not tried for ever.
            room = MAX_LINE - (len(buffer) - i)
            if room <= 0:
                raise DataError(too_long("what begins here").problem, path=path, line=at.line)
            more = text.read(min(room, max(_CHUNK, len(buffer) - i)))
            ended = not more
            buffer, i, taken = buffer[i:] + more, 0, 0
        if at.depth:
            raise DataError("the JSON list has no end; is the file truncated?", path=path)


def _of_csv(file: IO[bytes], path: Path, at: _Reading) -> Generator[Piece]:
    csv.field_size_limit(MAX_LINE)
    first = at.line
    held: list[str] = []  # the lines of a row, which are done with when it is whole
    size = 0

    def texts(text: io.TextIOWrapper) -> Iterator[str]:
        nonlocal size
        while line := text.readline(MAX_LINE - size + 1):
            held.append(line)
            size += len(line)
            if size > MAX_LINE:
                raise DataError(too_long("the row").problem, path=path, line=at.line)
            yield line

    def take(lines_read: int) -> int:
        nonlocal size
        at.take("".join(held).encode())
        held.clear()
        size = 0
        line, at.line = at.line, first + lines_read
        return line

    with _text(file, at) as text:
        reader = csv.DictReader(texts(text), at.names, strict=True)
        try:
            at.names = tuple(reader.fieldnames or ())
            take(reader.line_num)
            for row in reader:
                line = take(reader.line_num)
                if None in row or None in row.values():
                    problem = f"a row of other length; expected {len(at.names)} cells"
                    yield line, DataError(problem)
                else:
                    yield line, {name: value for name, value in row.items() if value != ""}
        except csv.Error as error:
            line = first + reader.line_num - 1
            raise DataError(f"not valid CSV ({error})", path=path, line=line) from error


_PIECES: Mapping[Layout, Callable[[IO[bytes], Path, _Reading], Generator[Piece]]]
_PIECES = {"lines": _of_lines, "json": _of_json, "csv": _of_csv}


def _is_lines(file: IO[bytes]) -> bool:
    """Whether the file has an object a line, though it be a broken one; nothing is consumed."""
    first = second = b""
    # A list may be one line however long it is; an object of that length is not read.
    whole = True
    while whole and not second and (line := file.readline(MAX_LINE + 1)):
        said = line.removeprefix(_BOM).strip()
        first, second = (first, said) if first else (said, b"")
        whole = len(line) <= MAX_LINE and not first.startswith(b"[")
    file.seek(0)
    if not whole and not second:
        return first.startswith(b"{")
    try:
        return isinstance(json.loads(first or b"{}"), dict)
    except (ValueError, RecursionError):
        # In an object that goes on, the second line begins with a name.
        return first.startswith(b"{") and (second.startswith(b"{") or is_doubled(first))


def _unwrapped(value: Object | DataError) -> Iterable[Object | DataError]:
    page = None if isinstance(value, DataError) else value.get("data")
    if isinstance(page, list) and not {"messages", "request", "input"} & set(value):  # type: ignore[arg-type]
        return map(object_of, page)
    return (value,)


def _open_bytes(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(
            "is a pipe or a device, and logs are read by their place, more than once: write it "
            "to a file first",
            path=path,
        )
    with path.open("rb") as file:
        start = file.read(4)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"is {what}; expected JSON Lines, JSON or CSV in UTF-8", path=path)
    return open_bytes(path)

"""Objects from files: JSON Lines, a JSON list, JSON of any layout, CSV; also .gz.

A file is read in blocks of some 1,000 entries, and nothing else of it is held: a list of a million
is read as a million lines are. Each block knows the place where it ends, and from there the file
can be read on another time, if what stands before is still the same.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from ...errors import ConfigError, DataError
from ..lines import (
    MAX_LINE,
    csv_rows,
    is_doubled,
    json_object,
    lines,
    object_of,
    opened,
    suffix_of,
    too_long,
)
from .normalize import Object
from .transcripts import Transcript, transcript_of

# Where it begins, and what it is or, where it cannot be read, what is wrong with it.
Found = tuple[int, Object | DataError]
Piece = tuple[int, bytes | Object | DataError]  # bytes: a line that is still to be parsed

KINDS = (".jsonl", ".json", ".csv")
BLOCK_ENTRIES = 1000
BLOCK_BYTES = 1 << 20  # a block ends when it has so many
_CHUNK = 1 << 20  # characters
_HEAD, _HEAD_LINES = 1 << 20, 200  # bytes and lines that tell a transcript from other lines
_OF_REQUESTS = {"messages", "request", "input"}  # which no page of entries has
_BETWEEN = re.compile(r"[ \t\r\n,\[\]]*")  # the objects of JSON
# What a file is that begins so, and cannot be read.
_OTHERS = {
    **{b"PAR1": "Parquet", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK": "a ZIP archive"},
    **{b"\x28\xb5\x2f\xfd": "packed with zstd", b"BZh": "packed with bzip2", b"\xfd7zX": "xz"},
}


class ChangedError(ConfigError):
    """What stands before the place where a file is to be read on is not what it was."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file was read: its first `pieces`, of the given SHA-256 (hex); the next `line`."""

    pieces: int
    line: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Block:
    """Some pieces of a file, their bytes, and the place where they end."""

    end: Place
    pieces: tuple[Piece, ...]
    size: int

    def found(self) -> Iterator[Found]:
        """(line, object) of everything in it; what cannot be read alone comes as its DataError."""
        for line, piece in self.pieces:
            if not isinstance(piece, bytes):
                value: Object | DataError = piece
            elif piece.isspace():
                continue
            else:
                value = json_object(piece)
            page = None if isinstance(value, DataError) else value.get("data")
            if isinstance(page, list) and _OF_REQUESTS.isdisjoint(value):  # type: ignore[arg-type]
                yield from ((line, object_of(each)) for each in page)
            else:
                yield line, value


def blocks(path: str | Path, after: Place | None = None) -> Iterator[Block]:
    """The blocks of a file in order, those after a place where it was read before.

    A file named .csv (or .csv.gz) has a header; its cells are text. Anything else is JSON: an
    object a line, or objects one after another, in a list, or in pages of `{"data": [...]}`.
    Raises DataError where the file cannot be opened, or not be read any further; ChangedError.
    """
    path = Path(path)
    count, line, size = 0 if after is None else after.pieces, 0, 0
    digest = hashlib.sha256()
    held: list[Piece] = []
    fault: DataError | None = None

    def block() -> Block:
        return Block(Place(count, line + 1, digest.hexdigest()), tuple(held), size)

    with contextlib.closing(_pieces(path)) as pieces:
        try:
            if after is not None:
                for _, _, data in islice(pieces, after.pieces):
                    digest.update(data + b"\n")
                if digest.hexdigest() != after.sha256:
                    told = f"has changed before line {after.line:,}"
                    raise ChangedError(f"{path} {told} since it was read")
            for line, piece, data in pieces:
                digest.update(data + b"\n")
                held.append((line, piece))
                count += 1
                # A line that was passed over is a long one.
                size += BLOCK_BYTES if isinstance(piece, DataError) else len(data)
                if size >= BLOCK_BYTES or len(held) == BLOCK_ENTRIES:
                    yield block()
                    held, size = [], 0
        except DataError as error:
            fault = error
    # What stands before the fault is told of first.
    if held:
        yield block()
    if fault is not None:
        raise fault


def expand(files: Iterable[str | Path], kinds: Collection[str] = KINDS) -> list[Path]:
    """The files, with those of such suffixes, also before .gz, that lie in a folder, however deep,
    in its place. Raises DataError for a folder without any."""
    found: list[Path] = []
    for path in map(Path, files):
        inner = [path]
        if path.is_dir():
            every = (each for each in sorted(path.rglob("*")) if each.is_file())
            inner = [each for each in every if suffix_of(each) in kinds]
        if not inner:
            raise DataError(f"holds no file of {', '.join(kinds)}", path=path)
        found += inner
    return found


def check_whole(path: str | Path, place: Place) -> None:
    """Raises ChangedError unless the file is what was read up to its end, DataError as `blocks`."""
    for _ in blocks(path, place):
        raise ChangedError(f"{path} has grown, or changed at its end, since it was read")


def objects(path: str | Path) -> Iterator[Found]:
    """(line, object) of everything in a file, a DataError for what is bad; raises as `blocks`."""
    for block in blocks(path):
        yield from block.found()


def json_lines(path: str | Path) -> Iterator[tuple[int, Object]]:
    """(line, object) of a file as `objects`; raises DataError for the first that is bad."""
    for line, value in objects(path):
        if isinstance(value, DataError):
            raise value.at(path, line) from value
        yield line, value


def _pieces(path: Path) -> Generator[tuple[int, bytes | Object | DataError, bytes]]:
    """(line, piece, the bytes that tell it from another) of a file in order."""
    _check_kind(path)
    with opened(path) as file:
        if suffix_of(path) == ".csv":
            for line, row, cells in csv_rows(file, path):
                known = {} if isinstance(row, DataError) else row
                full = {name: cell for name, cell in known.items() if cell != ""}
                yield line, row if row is not known else full, repr(cells).encode()
        elif _is_lines(file):
            transcript = transcript_of(_head(file))
            file.seek(0)
            if transcript is not None:
                yield from _calls(file, transcript)
                return
            for line, data in enumerate(lines(file), 1):
                yield line, data, data.rstrip(b"\r\n") if isinstance(data, bytes) else b""
        else:
            yield from _json_pieces(file, path)


def _head(file: IO[bytes]) -> Iterator[Object]:
    """The objects that a file of lines begins with."""
    size = 0
    for line in islice(lines(file), _HEAD_LINES):
        value = line if isinstance(line, DataError) else json_object(line)
        if not isinstance(value, DataError):
            yield value
        size += MAX_LINE if isinstance(line, DataError) else len(line)
        if size > _HEAD:
            return


def _calls(
    file: IO[bytes], transcript: Transcript
) -> Generator[tuple[int, Object | DataError, bytes]]:
    """The calls of models in a transcript, each with the lines since the one before."""
    read: list[bytes] = []
    line = 0
    for line, data in enumerate(lines(file), 1):
        value = data if isinstance(data, DataError) else json_object(data)
        read.append(data if isinstance(data, bytes) else b"")
        if isinstance(data, bytes) and data.isspace():
            continue
        found: Iterable[Object | DataError] = (
            (value,) if isinstance(value, DataError) else transcript.line(value)
        )
        for call in found:
            yield line, call, b"".join(read)
            read = []
    for call in transcript.end():
        yield line, call, b"".join(read)
        read = []


def _json_pieces(file: IO[bytes], path: Path) -> Generator[tuple[int, Object | DataError, bytes]]:
    decoder = json.JSONDecoder()
    buffer, i, line, depth, ended = "", 0, 1, 0, False
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        while True:
            start, i = i, next(_BETWEEN.finditer(buffer, i)).end()  # which may be empty
            line += buffer.count("\n", start, i)
            depth += buffer.count("[", start, i) - buffer.count("]", start, i)
            if i < len(buffer):
                try:
                    value, end = decoder.raw_decode(buffer, i)
                except (ValueError, RecursionError) as error:
                    if ended or isinstance(error, RecursionError):
                        problem = f"not valid JSON ({error}); expected objects, or a list of them"
                        raise DataError(problem, path=path, line=line) from error
                else:
                    # Of a number or a word that the buffer cuts, more may follow.
                    if ended or isinstance(value, dict):
                        yield line, object_of(value), buffer[i:end].encode()
                        line += buffer.count("\n", i, end)
                        i = end
                        continue
            if ended:
                break
            # Twice as much each time: an object larger than a chunk is not tried for ever.
            room = MAX_LINE - (len(buffer) - i)
            if room <= 0:
                raise DataError(too_long("what begins here").problem, path=path, line=line)
            size = min(room, max(_CHUNK, len(buffer) - i))
            with _decoding(path, line):
                more = text.read(size)
            buffer, i, ended = buffer[i:] + more, 0, not more
    if depth:
        raise DataError("the JSON list has no end; is the file truncated?", path=path)


@contextlib.contextmanager
def _decoding(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 after this line ({error.reason})"
        raise DataError(problem, path=path, line=line) from error


def _is_lines(file: IO[bytes]) -> bool:
    """Whether the file has an object a line, though it be a broken one; nothing is consumed."""
    first = second = b""
    # A list may be one line however long it is; an object of that length is not read.
    whole = True
    while whole and not second and (line := file.readline(MAX_LINE + 1)):
        said = line.removeprefix(b"\xef\xbb\xbf").strip()
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


def _check_kind(path: Path) -> None:
    """Raises DataError for what cannot be a log, before it is read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        problem = "is a pipe or a device, and logs are read again: write it to a file first"
        raise DataError(problem, path=path)
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"is {what}; expected JSON Lines, JSON or CSV in UTF-8", path=path)

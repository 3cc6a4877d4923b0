"""The work folder of an import, beside its output: what was read, so that it can go on.

    logs.jsonl.work/
      manifest.json     what the import is: its files and settings
      journal.jsonl     a line now and then: places in the files, counts, sizes of what follows
      rows.jsonl, index.bin, repeats.bin      see `spool`
      rejects.jsonl     entries that were skipped, where they are to be kept

All of them only grow. An import that was killed goes back to the last line of the journal, and cuts
off what was written after it. The folder goes when the output is whole.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError
from ...files import tighten
from .dedupe_store import INDEX, REPEATS, ROWS, Spool
from .folder import MANIFEST, check_same, lock, read_manifest, way_out, whole_file, write_manifest
from .import_rows import Imported, Options, Read
from .reader import Block, ChangedError, Place, blocks, check_whole, place_of

VERSION = 1
JOURNAL, REJECTS = "journal.jsonl", "rejects.jsonl"
_COUNTED = ("entries", "bad", "problem", "masked")


@dataclass
class Work:
    """An open work folder: the distinct requests so far, what was counted, and the place behind
    the last block of each file, by its number."""

    path: Path
    spool: Spool
    result: Imported
    places: dict[int, Place]
    _rejects: IO[bytes]
    _kept: bool
    _since: list[int] = field(default_factory=lambda: [0, 0])  # entries and bytes

    def add(self, file: int, end: Place, read: Read) -> None:
        """Take over what was read of a block that ends there."""
        before = self.places.get(file)
        result, counts = self.result, read.counts
        result.entries += counts.entries
        result.left_out.update(counts.left_out)
        result.bad += counts.bad
        result.problem = result.problem or counts.problem
        result.formats.update(counts.formats)
        for row in read.rows:
            new = self.spool.add(row.key, row.id, row.time, row.weight, row.line)
            result.masked += new and row.masked
        self._rejects.write("".join(read.rejects).encode())
        self.places[file] = end
        self._since[0] += counts.entries
        self._since[1] += end.offset - (before.offset if before else 0)

    def keep(self, files: Sequence[str], *, entries: int = 1, bytes: int = 1) -> None:
        """Write down where it is, if so many entries or bytes were read since the last time."""
        if self._since[0] < entries and self._since[1] < bytes:
            return
        sizes = self.spool.flush(sync=True)
        self._rejects.flush()
        os.fsync(self._rejects.fileno())
        sizes[REJECTS] = self._rejects.tell()
        values = {
            "places": {str(i): place.to_dict() for i, place in self.places.items()},
            "formats": [self.result.formats.get(name) for name in files],
            "left_out": self.result.left_out,
            **{name: getattr(self.result, name) for name in _COUNTED},
            "sizes": sizes,
        }
        with (self.path / JOURNAL).open("ab") as file:
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._since, self._kept = [0, 0], True

    def end(self, files: Sequence[str]) -> None:
        """All is read. What was begun on is written down; what is quickly read again is not."""
        if self._kept:
            self.keep(files)
        self.spool.flush(sync=False)
        self._rejects.flush()

    def blocks(self, files: Sequence[str]) -> Iterator[tuple[int, Block]]:
        """(number of the file, block) of all that was not read yet.

        Raises ConfigError where a file is not the one that was read, DataError as `files.blocks`.
        """
        first = max(self.places, default=0)
        try:
            for i, path in enumerate(files):
                place = self.places.get(i)
                if i < first and place is not None:
                    check_whole(path, place)
                elif i >= first:
                    for block in blocks(path, place):
                        yield i, block
        except ChangedError as error:
            raise ConfigError(f"{error} by the run in {self.path}; {way_out(self.path)}") from error

    def write_rejects(self, out: Path) -> None:
        """Write the entries that were skipped to their file."""
        with (self.path / REJECTS).open("rb") as source, whole_file(out) as file:
            shutil.copyfileobj(source, file)

    def remove(self) -> None:
        """Delete the folder; what a stop leaves of it is no import to go on with."""
        (self.path / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def open_work(out: Path, files: Sequence[str], options: Options) -> Iterator[Work]:
    """The work folder of `out`, new or as an earlier run left it; no other run may have it open.

    Where nothing was written down when it ends, nothing is left behind. Raises ConfigError where
    the folder is of an import of other files or with other settings, or in use.
    """
    path = out.with_name(f"{out.name}.work")
    path.mkdir(mode=0o700, exist_ok=True)
    tighten(path)
    settings = {
        "version": VERSION,
        "what": "import",
        "inputs": [str(Path(name).absolute()) for name in files],
        "format": options.format,
        "mask": options.mask,
        "skip_bad": options.on_bad == "skip",
        "rejects": options.rejects is not None,
    }
    with ExitStack() as stack:
        lock(stack.enter_context((path / "lock").open("wb")).fileno(), path)
        last = _last(path)
        manifest = path / MANIFEST
        was = read_manifest(manifest) if manifest.exists() else None
        if last is not None or (was is not None and was.get("what") != settings["what"]):
            check_same(path, was or {}, settings)
        elif was is None and any(_is_foreign(each) for each in path.iterdir()):
            raise ConfigError(f"{path} is no folder of an import; move it out of the way")
        if last is None:
            # Of a run that was stopped before it wrote anything down there is nothing to go on.
            write_manifest(manifest, settings)
        work = _opened(path, stack, files, last)
        try:
            yield work
        finally:
            if not work._kept:
                work.remove()


def _opened(
    path: Path, stack: ExitStack, files: Sequence[str], last: Mapping[str, Any] | None
) -> Work:
    sizes = None if last is None else last["sizes"]
    rejects = stack.enter_context((path / REJECTS).open("wb" if sizes is None else "r+b"))
    rejects.truncate(sizes[REJECTS] if sizes else 0)
    rejects.seek(0, os.SEEK_END)
    spool = stack.enter_context(Spool(path, sizes))
    work = Work(path, spool, Imported(), {}, rejects, last is not None)
    if last is not None:
        for name in _COUNTED:
            setattr(work.result, name, last[name])
        work.result.resumed = work.result.entries
        work.result.left_out = Counter(last["left_out"])
        work.result.formats = {
            name: format for name, format in zip(files, last["formats"], strict=True) if format
        }
        work.places = {int(i): place_of(place) for i, place in last["places"].items()}
    return work


def _last(path: Path) -> dict[str, Any] | None:
    """What was written down last; None where nothing was, and the import begins anew."""
    found = None
    journal = path / JOURNAL
    whole = 0
    if not journal.exists():
        return None
    with journal.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
                fits = all(_size(path / name) >= size for name, size in values["sizes"].items())
            except (ValueError, TypeError, KeyError, AttributeError):
                break  # torn: the machine went down in the middle of it
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if fits:
                found = values
    os.truncate(journal, whole)
    return found


def _is_foreign(path: Path) -> bool:
    own = ("lock", JOURNAL, REJECTS, ROWS, INDEX, REPEATS)
    return path.name not in own and path.suffix != ".tmp"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1

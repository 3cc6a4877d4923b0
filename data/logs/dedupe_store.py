"""What an import has read so far, in a SQLite file beside its output, so that it can go on.

    logs.jsonl.work/import.db    distinct requests, bad entries, and how far each file was read

What was read after the last commit SQLite takes back where a process is killed. The folder goes
when the output is whole.
"""

import contextlib
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ...files import locked, private, tighten, whole_file
from .import_rows import Imported, Options, Read
from .reader import Block, ChangedError, Place, blocks, check_whole
from .sampling import Sample
from .schema import LogRow, row_of

_DB = "import.db"
_COUNTED = ("entries", "bad", "problem")
_CACHE_KB = 32 << 10  # of pages that are held in memory
_TABLES = f"""
    PRAGMA cache_size = -{_CACHE_KB};
    CREATE TABLE IF NOT EXISTS row (
        number INTEGER PRIMARY KEY, key BLOB UNIQUE, name BLOB, time REAL, weight REAL,
        masked INTEGER, line BLOB
    );
    CREATE TABLE IF NOT EXISTS reject (line TEXT);
    CREATE TABLE IF NOT EXISTS state (value TEXT);
"""
# A request that came before counts again; its first line stays.
_ADD = """
    INSERT INTO row (key, name, time, weight, masked, line) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET weight = weight + excluded.weight
"""
# Another request may have had the same id before: a row is known by its id.
_ROWS = """
    SELECT line, weight, key,
        number > (SELECT min(number) FROM row AS other WHERE other.name = row.name)
    FROM row
"""


class ImportStore:
    """The distinct requests so far (`rows`), what was counted (`result`), and the `places` behind
    the last block of each file, by its number. Made by `open_store`."""

    def __init__(self, folder: Path, files: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.result = Imported()
        self.places: dict[int, Place] = {}
        self.kept = True  # whether anything was committed that is to be gone on from
        self.way_out = f"finish it as it was begun, or delete {folder} to begin anew"
        self._folder, self._files, self._settings = folder, files, settings
        self._since = [0, 0]  # entries and bytes since the last commit
        os.close(private(str(folder / _DB), os.O_RDWR | os.O_CREAT))
        self._db = sqlite3.connect(folder / _DB)

    def load(self) -> None:
        """Go back to what was committed last. Raises ConfigError where the settings differ."""
        self._db.executescript(_TABLES)
        found = self._db.execute("SELECT value FROM state").fetchone()
        self.kept = found is not None
        if found is None:
            return
        state = json.loads(found[0])
        for name, now in self._settings.items():
            if (was := state["settings"].get(name)) != now:
                raise ConfigError(
                    f"{self._folder} is of a run with another {name}: {was!r}, now {now!r}; "
                    f"{self.way_out}"
                )
        for name in _COUNTED:
            setattr(self.result, name, state[name])
        self.result.resumed = self.result.entries
        self.result.left_out = Counter(state["left_out"])
        self.result.formats = state["formats"]
        for number, place in state["places"].items():
            names = place["names"]
            place["names"] = None if names is None else tuple(names)
            self.places[int(number)] = Place(**place)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """(number of the file, block) of all that was not read yet.

        Raises ConfigError where a file is not the one that was read, DataError as `reader.blocks`.
        """
        first = max(self.places, default=0)
        try:
            for i, path in enumerate(self._files):
                place = self.places.get(i)
                if i < first and place is not None:
                    check_whole(path, place)
                elif i >= first:
                    for block in blocks(path, place):
                        yield i, block
        except ChangedError as error:
            raise ConfigError(f"{error} by the run in {self._folder}; {self.way_out}") from error

    def add(self, file: int, end: Place, read: Read, *, entries: int, size: int) -> None:
        """Take over what was read of a block that ends there; commit it where so many entries, or
        bytes, were read since the last time."""
        result, counts = self.result, read.counts
        result.entries += counts.entries
        result.left_out.update(counts.left_out)
        result.bad += counts.bad
        result.problem = result.problem or counts.problem
        result.formats.update(counts.formats)
        self._db.executemany(_ADD, read.rows)
        self._db.executemany("INSERT INTO reject VALUES (?)", ((line,) for line in read.rejects))
        before = self.places.get(file)
        self.places[file] = end
        self._since[0] += counts.entries
        self._since[1] += end.offset - (before.offset if before else 0)
        if self._since[0] >= entries or self._since[1] >= size:
            self.commit()

    def commit(self) -> None:
        """Write down what was read, and where."""
        state = {
            "settings": self._settings,
            "places": {str(i): asdict(place) for i, place in self.places.items()},
            "formats": self.result.formats,
            "left_out": self.result.left_out,
            **{name: getattr(self.result, name) for name in _COUNTED},
        }
        self._db.execute("DELETE FROM state")
        self._db.execute("INSERT INTO state VALUES (?)", (json.dumps(state),))
        self._db.commit()
        self._since, self.kept = [0, 0], True

    def count(self) -> None:
        """All is read: fill in the counts of rows."""
        # What was begun on is written down; what is quickly read again is not.
        if self.kept:
            self.commit()
        self._db.execute("CREATE INDEX IF NOT EXISTS by_name ON row (name)")
        counted = "SELECT count(*), total(weight), coalesce(sum(masked), 0) FROM row"
        result = self.result
        result.distinct, result.requests, result.masked = self._db.execute(counted).fetchone()

    def weights(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The weight of each row, float64[n], and the rows by time, without one last: int64[n]."""
        kind = np.dtype([("weight", np.float64), ("time", np.float64)])
        found = self._db.execute("SELECT weight, coalesce(time, 9e999) FROM row ORDER BY number")
        columns = np.fromiter(found, kind, self.result.distinct)
        return columns["weight"], np.argsort(columns["time"], kind="stable")

    def rows(self) -> Iterator[bytes]:
        """The line of every row, with its weight."""
        for found in self._db.execute(f"{_ROWS} ORDER BY number"):
            yield _line(*found)

    def some(self, sample: Sample) -> Iterator[LogRow]:
        """The rows of a sample, with its weights."""
        for i, weight in zip(sample.rows.tolist(), sample.weights.tolist(), strict=True):
            found = self._db.execute(f"{_ROWS} WHERE number = ?", (i + 1,)).fetchone()
            yield row_of(json.loads(_line(found[0], weight, *found[2:])))

    def write_rejects(self, out: Path) -> None:
        """Write the entries that were skipped to their file."""
        with whole_file(out, opener=private) as file:
            for (line,) in self._db.execute("SELECT line FROM reject ORDER BY rowid"):
                file.write(line.encode())

    def close(self) -> None:
        """Take back what was not committed."""
        self._db.close()

    def remove(self) -> None:
        """Close it and delete the folder."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def open_store(out: Path, files: Sequence[str], options: Options) -> Iterator[ImportStore]:
    """The store of an import to `out`, new or as an earlier run left it.

    Where nothing was committed when it ends, nothing is left behind. Raises ConfigError where it
    is of other files or settings, or another run has it open; OSError where it cannot be written.
    """
    folder = out.with_name(f"{out.name}.work")
    folder.mkdir(mode=0o700, exist_ok=True)
    tighten(folder)
    if any(each.name not in ("lock", _DB, f"{_DB}-journal") for each in folder.iterdir()):
        raise ConfigError(f"{folder} is no folder of an import; move it out of the way")
    settings = {
        "inputs": [str(Path(name).absolute()) for name in files],
        "format": options.format,
        "mask": options.mask,
        "skip_bad": options.on_bad == "skip",
        "rejects": options.rejects is not None,
    }
    with locked(folder / "lock", busy=f"another run works in {folder}; wait for it, or stop it"):
        store = ImportStore(folder, files, settings)
        try:
            store.load()
            yield store
        except sqlite3.Error as error:
            problem = f"{folder} cannot be read or written ({error}); {store.way_out}"
            raise OSError(problem) from error
        finally:
            if store.kept:
                store.close()
            else:
                store.remove()


def _line(line: bytes, weight: float, key: bytes, named_before: bool) -> bytes:
    if named_before:
        record = json.loads(line)
        record["id"] += f"-{key.hex()[:12]}"
        line = json.dumps(record, ensure_ascii=False).encode()
    if weight == 1.0:
        return line + b"\n"
    return b'%b, "weight": %b}\n' % (line[:-1], json.dumps(weight).encode())

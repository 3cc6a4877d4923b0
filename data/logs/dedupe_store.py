"""What an import has read so far, in `import.db` (SQLite) beside its output, so that it can go on.

What was read after the last commit SQLite takes back where a process is killed.
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
from ...files import private, whole_file
from ..work_folder import check_same_run, work_folder
from .import_rows import Imported, ImportSettings, Read
from .reader import Block, ChangedError, Place, blocks, check_whole
from .sampling import Sample
from .schema import LogRow, row_of

VERSION = 2  # of what the file holds
_DB = "import.db"
_COUNTED = ("entries", "bad", "problem", "left_out", "formats")
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
        self._places: dict[int, Place] = {}
        self._folder, self._files, self._settings = folder, files, settings
        self._since = [0, 0]  # entries and bytes since the last commit
        os.close(private(str(folder / _DB), os.O_RDWR | os.O_CREAT))
        self._db = sqlite3.connect(folder / _DB)
        self.kept = True  # whether anything was committed that is to be gone on from

    def load(self) -> None:
        """Go back to what was committed last."""
        self._db.executescript(_TABLES)
        found = self._db.execute("SELECT value FROM state").fetchone()
        self.kept = found is not None
        if self.kept:
            state = json.loads(found[0])
            check_same_run(self._folder, state.get("settings", {}), self._settings)
            self.result = Imported(**state["result"], resumed=state["result"]["entries"])
            self.result.left_out = Counter(self.result.left_out)
            self._places = {int(i): Place(**place) for i, place in state["places"].items()}

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """(number of the file, block) of all that was not read yet. Raises ConfigError where a
        file is not the one that was read, DataError as `reader.blocks`."""
        first = max(self._places, default=0)
        try:
            for i, path in enumerate(self._files):
                place = self._places.get(i)
                if i < first and place is not None:
                    check_whole(path, place)
                elif i >= first:
                    yield from ((i, block) for block in blocks(path, place))
        except ChangedError as error:
            way_out = f"finish it as it was begun, or delete {self._folder} to begin anew"
            raise ConfigError(f"{error} by the run in {self._folder}; {way_out}") from error

    def add(self, file: int, end: Place, size: int, read: Read) -> None:
        """Take over what was read of a block of so many bytes that ends there."""
        result, counts = self.result, read.counts
        result.entries += counts.entries
        result.left_out.update(counts.left_out)
        result.bad += counts.bad
        result.problem = result.problem or counts.problem
        result.formats.update(counts.formats)
        self._db.executemany(_ADD, read.rows)
        self._db.executemany("INSERT INTO reject VALUES (?)", ((line,) for line in read.rejects))
        self._places[file] = end
        self._since = [self._since[0] + counts.entries, self._since[1] + size]

    def commit(self, entries: int = 0, size: int = 0) -> None:
        """Write down what was read, and where, if it is so many entries or bytes."""
        if self._since[0] < entries and self._since[1] < size:
            return
        counts = {name: getattr(self.result, name) for name in _COUNTED}
        places = {i: asdict(place) for i, place in self._places.items()}
        state = {"settings": self._settings, "places": places, "result": counts}
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
        """Take back what was not committed; where nothing is kept, nothing is left behind."""
        self._db.close()
        if not self.kept:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def open_store(out: Path, files: Sequence[str], options: ImportSettings) -> Iterator[ImportStore]:
    """The store of an import to `out`, new or as an earlier run left it. Raises ConfigError
    where it is of other files or settings, or another run has it open; OSError."""
    folder = out.with_name(f"{out.name}.work")
    others = {each.name for each in folder.iterdir()} - {"lock"} if folder.exists() else set()
    if others and _DB not in others:
        raise ConfigError(f"{folder} is no folder of an import; move it out of the way")
    settings = {
        "version": VERSION,
        "inputs": [str(Path(name).absolute()) for name in files],
        "format": options.format,
        "mask": options.mask,
        "skip_bad": options.on_bad == "skip",
        "rejects": options.rejects is not None,
    }
    with work_folder(out) as folder:
        store = ImportStore(folder, files, settings)
        try:
            store.load()
            yield store
        except sqlite3.Error as error:
            problem = f"{folder} cannot be read or written ({error}); mend it, or delete it"
            raise OSError(problem) from error
        finally:
            store.close()


def _line(line: bytes, weight: float, key: bytes, named_before: bool) -> bytes:
    if named_before:
        record = json.loads(line)
        record["id"] += f"-{key.hex()[:12]}"
        line = json.dumps(record, ensure_ascii=False).encode()
    if weight == 1.0:
        return line + b"\n"
    return b'%b, "weight": %b}\n' % (line[:-1], json.dumps(weight).encode())

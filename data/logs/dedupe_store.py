"""Distinct requests in files, while it is not yet known how often each came: `Spool`.

    rows.jsonl     a line for each distinct request, in the order in which they came
    index.bin      for each of them what tells it from others, its time, where its line ends
    repeats.bin    for each request that came again its number and weight

The files only grow, so that their sizes at one moment are all that it takes to go back to it. In
memory there are the keys and the weights: some 45 bytes for each distinct request.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .hashes import Seen, key_of
from .sampling import Sample
from .schema import LogRow, row_of

ROWS, INDEX, REPEATS = "rows.jsonl", "index.bin", "repeats.bin"
_OF_ROW = np.dtype(
    [("key", "<u8"), ("name", "<u8"), ("time", "<f8"), ("weight", "<f8"), ("end", "<u8")]
)
_OF_REPEAT = np.dtype([("number", "<u8"), ("weight", "<f8")])
_JSON = json.JSONEncoder(ensure_ascii=False).encode
_PIECE = 1 << 18  # rows of the index that are read at once


class Spool:
    """Distinct requests in a folder. Use as a context manager."""

    def __init__(self, folder: Path, sizes: Mapping[str, int] | None = None) -> None:
        """sizes: of the files at the moment to go back to, as `flush` told; None begins anew."""
        self.weights = array("d")
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        # Of the rows since the last flush, and repeats since then.
        self._new: list[tuple[int, int, float, float, int]] = []
        self._repeats: list[tuple[int, float]] = []
        with ExitStack() as stack:
            for name in (ROWS, INDEX, REPEATS):
                mode = "w+b" if sizes is None else "r+b"
                file = stack.enter_context((folder / name).open(mode))
                file.truncate(0 if sizes is None else sizes[name])
                file.seek(0, os.SEEK_END)
                self._files[name] = file
            self._end = self._files[ROWS].tell()
            self._requests, self._names = self._load()
            self._stack = stack.pop_all()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self.weights)

    def add(self, key: int, id: str, time: float, weight: float, line: bytes) -> bool:
        """Count a request, `weight` times, and keep its line where it is new; whether it is.

        key: of its messages. line: its JSON with its id, a line's end behind it. A row is known by
        its id: of another request with the same one, the id gets the key's beginning.
        """
        number = self._requests.number(key)
        if number < len(self.weights):
            self.weights[number] += weight
            self._repeats.append((number, weight))
            return False
        self.weights.append(weight)
        name = _name(id)
        names = len(self._names)
        if self._names.number(name) < names:
            # No name that is new. (One that is 0 would be forgotten: one in 2^64.)
            name = 0
            line = _line({**json.loads(line), "id": f"{id}-{key >> 16:012x}"})
        self._end += self._files[ROWS].write(line)
        self._new.append((key, name, time, weight, self._end))
        return True

    def flush(self, *, sync: bool) -> dict[str, int]:
        """Write down what is in memory only; the files' sizes. sync: onto the disk, too."""
        self._files[INDEX].write(np.array(self._new, _OF_ROW).tobytes())
        self._files[REPEATS].write(np.array(self._repeats, _OF_REPEAT).tobytes())
        self._new, self._repeats = [], []
        for file in self._files.values():
            file.flush()
            if sync:
                os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def by_time(self) -> npt.NDArray[np.int64]:
        """The rows by time, those without one last: int64[n]. What was added must be flushed."""
        times = [piece["time"] for piece in self._pieces(INDEX, _OF_ROW)]
        return np.argsort(np.concatenate(times), kind="stable")

    def all(self) -> Iterator[bytes]:
        """The line of every row, with its weight. What was added must be flushed."""
        self._files[ROWS].seek(0)
        for line, weight in zip(self._files[ROWS], self.weights, strict=True):
            yield line if weight == 1.0 else _weighed(line, weight)

    def some(self, sample: Sample) -> Iterator[LogRow]:
        """The rows of a sample, with its weights. What was added must be flushed."""
        for i, weight in zip(sample.rows.tolist(), sample.weights.tolist(), strict=True):
            self._files[ROWS].seek(self._start(i))
            line = self._files[ROWS].readline()
            yield row_of(json.loads(line if weight == 1.0 else _weighed(line, weight)))

    def _start(self, row: int) -> int:
        if not row:
            return 0
        self._files[INDEX].seek((row - 1) * _OF_ROW.itemsize)
        return int(np.frombuffer(self._files[INDEX].read(_OF_ROW.itemsize), _OF_ROW)["end"][0])

    def _load(self) -> tuple[Seen, Seen]:
        """The keys of requests and of names, from the files; weights are filled in."""
        requests, names = array("Q"), array("Q")
        for piece in self._pieces(INDEX, _OF_ROW):
            requests.frombytes(piece["key"].tobytes())
            names.frombytes(piece["name"][piece["name"] != 0].tobytes())
            self.weights.frombytes(piece["weight"].tobytes())
        for piece in self._pieces(REPEATS, _OF_REPEAT):
            for number, weight in zip(
                piece["number"].tolist(), piece["weight"].tolist(), strict=True
            ):
                self.weights[number] += weight
        return Seen(requests), Seen(names)

    def _pieces(self, name: str, kind: np.dtype[np.void]) -> Iterator[npt.NDArray[np.void]]:
        file = self._files[name]
        file.seek(0)
        while data := file.read(_PIECE * kind.itemsize):
            yield np.frombuffer(data, kind)


def packed(row: LogRow) -> bytes:
    """A row as the line that waits for its weight."""
    record = row.to_dict()
    record.pop("weight", None)
    return _line(record)


def _line(record: Mapping[str, Any]) -> bytes:
    # Halves of surrogate pairs, which JSON may hold and no file, become question marks.
    return _JSON(record).encode("utf-8", "replace") + b"\n"


def _weighed(line: bytes, weight: float) -> bytes:
    return b'%b, "weight": %b}\n' % (line[:-2], json.dumps(weight).encode())


def _name(id: str) -> int:
    return key_of(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest())

"""The work folder of a run, beside its output file: what is done, so that a run can go on.

    scores.parquet.work/
      manifest.json     what the run is: inputs with their hashes, bundle, settings
      chunks.jsonl      a line for each chunk that is done, appended and synced
      parts/00000017.parquet, parts/00000017.rejects
      centers.npy       where clusters were asked for

A chunk counts as done where its line and its part are there, with the size that the line says: a
run that was killed between the two does that chunk again. The folder goes when the file is whole.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..logs.folder import MANIFEST, check_same, lock, read_manifest, way_out, write_manifest
from .chunks import Input, Plan, plan

VERSION = 1
PARTS = "parts"


@dataclass(frozen=True, slots=True)
class Done:
    """One chunk that was scored: `rows` written to its part of `bytes`, `repeats` of them with a
    prompt that this worker had just scored, `bad` rows skipped, `problems` the first of these,
    `left_out` entries of other tools' logs that are no request that was answered."""

    chunk: int
    rows: int
    bytes: int
    repeats: int
    left_out: int
    bad: int
    problems: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Work:
    """An open work folder: its path, the plan, and what is done of it, by chunk."""

    path: Path
    plan: Plan
    done: dict[int, Done] = field(repr=False)
    suffix: str

    @property
    def parts(self) -> Path:
        """The folder of the parts."""
        return self.path / PARTS

    def part(self, chunk: int) -> Path:
        """Where the part of a chunk is written."""
        return part_path(self.parts, chunk, self.suffix)

    def add(self, done: Done) -> None:
        """Write down that a chunk is done."""
        with (self.path / "chunks.jsonl").open("ab") as file:
            file.write(json.dumps(asdict(done)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[done.chunk] = done

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def part_path(parts: Path, chunk: int, suffix: str) -> Path:
    """Where the part of a chunk is written, in the folder of the parts."""
    return parts / f"{chunk:08d}{suffix}"


@contextlib.contextmanager
def open_work(
    out: Path,
    paths: Sequence[str | Path],
    settings: Mapping[str, Any],
    *,
    format: str,
    chunk_rows: int,
    chunk_bytes: int,
) -> Iterator[Work]:
    """The work folder of `out`, new or as an earlier run left it; no other run may have it open.

    `settings`: all else that the rows of the output depend on. Raises ConfigError where the folder
    is of a run with other settings or inputs, or in use; DataError (see `chunks.plan`).
    """
    path = out.with_name(f"{out.name}.work")
    made = not path.exists()
    path.mkdir(mode=0o700, exist_ok=True)
    try:
        with (path / "lock").open("wb") as file:
            lock(file.fileno(), path)
            planned = plan(paths, format=format, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
            limits = {"format": format, "chunk_rows": chunk_rows, "chunk_bytes": chunk_bytes}
            yield _opened(path, planned, {**settings, **limits}, out.suffix)
    finally:
        # Where nothing could begin, nothing is left behind.
        if made and path.exists() and not (path / MANIFEST).exists():
            shutil.rmtree(path, ignore_errors=True)


def _opened(path: Path, planned: Plan, settings: dict[str, Any], suffix: str) -> Work:
    files = [i.path for i in planned.inputs]
    # As JSON gives it back.
    wanted = json.loads(json.dumps({"version": VERSION, "inputs": files, **settings}))
    manifest = path / MANIFEST
    found = [asdict(i) for i in planned.inputs]
    if manifest.exists():
        _check_same(manifest, wanted, planned.inputs)
        # What a killed run was writing.
        for rest in (path / PARTS).glob("*.tmp"):
            rest.unlink(missing_ok=True)
    else:
        (path / PARTS).mkdir(exist_ok=True)
        write_manifest(manifest, {**wanted, "files": found})
    work = Work(path, planned, {}, suffix)
    work.done.update(_journal(work))
    return work


def _check_same(manifest: Path, wanted: dict[str, Any], inputs: Sequence[Input]) -> None:
    was = read_manifest(manifest)
    try:
        files = {entry["path"]: entry["sha256"] for entry in was.pop("files")}
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{manifest} is not what a run writes ({error}); {way_out(manifest.parent)}"
        ) from error
    check_same(manifest.parent, was, wanted)
    for now in inputs:
        if files.get(now.path) != now.sha256:
            raise ConfigError(
                f"{now.path} has changed since the run in {manifest.parent} began; "
                f"{way_out(manifest.parent)}"
            )


def _journal(work: Work) -> Iterator[tuple[int, Done]]:
    journal = work.path / "chunks.jsonl"
    if not journal.exists():
        return
    whole = 0
    with journal.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
                done = Done(**{**values, "problems": tuple(values["problems"])})
            except (ValueError, TypeError, KeyError):
                break  # torn: the machine went down in the middle of it
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            part = work.part(done.chunk)
            if part.exists() and part.stat().st_size == done.bytes:
                yield done.chunk, done
    if whole != journal.stat().st_size:
        os.truncate(journal, whole)

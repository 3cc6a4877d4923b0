"""One chunk, from its rows to its part: the function that a loop, a pool and Ray Data all call.

Every worker is one process with one thread: the graph is run once a prompt, and processes, not
threads, take the cores, since tokenising and features hold Python's lock.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...router.scorer import Scorer
from ...router.text import Conversation, as_conversation
from ..logs.folder import whole_file
from ..logs.normalize import LeftOutError
from .chunks import Chunk, prompts_of
from .clusters import nearest
from .folder import Done, part_path
from .output import Columns, Scored, is_parquet, write_part

# Prompts whose result a worker remembers: logs repeat themselves. About 15 MB, 30 with embeddings.
REMEMBERED = 20_000
_KEPT_PROBLEMS = 3
# A worker that is told to stop does so within so many rows.
_LOOK = 16


class StoppedError(Exception):
    """The run was told to stop; the chunk is not done."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs beside its chunk. Paths are absolute: workers may be elsewhere.

    `parts` is the folder of the parts, `suffix` that of the output file, `centers` a .npy file of
    cluster centres or None. With `skip_bad` bad rows are left out and kept beside the part.
    """

    bundle: str
    strong: str
    weak: str
    context: str
    parts: str
    suffix: str
    embeddings: bool = False
    centers: str | None = None
    skip_bad: bool = False
    remembered: int = REMEMBERED


class RowScorer(Scorer):
    """A scorer that gives all that is written of a prompt from one run of the graph."""

    @classmethod
    def of(cls, job: Job) -> "RowScorer":
        """The bundle of a job, verified and loaded, with one thread."""
        loaded = cls.load(
            job.bundle, threads=1, context=job.context, strong=job.strong, weak=job.weak
        )
        return cast("RowScorer", loaded)

    @cached_property
    def tells_familiarity(self) -> bool:
        """Whether the graph says how like its training prompts a prompt is."""
        return "familiarity" in {output.name for output in self._session.get_outputs()}

    def read(
        self, conversation: Conversation, centers: npt.NDArray[np.float32] | None, *, keep: bool
    ) -> Scored:
        """Score, familiarity and cluster of a prompt, and with `keep` its embedding.

        The score is that of `score`, to the last bit."""
        names = ["quality", "embedding"]
        if self.tells_familiarity:
            names.append("familiarity")
        quality, embedding, *rest = self._run(conversation, names)
        return Scored(
            score=float(self.calibrated(float(quality[self._strong] - quality[self._weak]))),
            familiarity=float(rest[0][0]) if rest else None,
            cluster=None if centers is None else nearest(embedding, centers),
            embedding=embedding.astype(np.float16) if keep else None,
        )


class Worker:
    """A loaded scorer that does chunks one after the other.

    Raises BundleError and ConfigError where the job's bundle cannot be used.
    """

    def __init__(self, job: Job, stopped: Callable[[], bool] = lambda: False) -> None:
        self._job = job
        self._stopped = stopped
        self._scorer = RowScorer.of(job)
        self._centers = None if job.centers is None else np.load(job.centers, allow_pickle=False)
        dim = self._scorer.bundle.manifest.dim
        self._columns = Columns(
            familiarity=self._scorer.tells_familiarity,
            cluster=self._centers is not None,
            dim=dim if job.embeddings else None,
        )
        self._seen: OrderedDict[bytes, Scored] = OrderedDict()

    def do(self, chunk: Chunk) -> Done:
        """Score a chunk and write its part; doing it again gives the same file.

        Raises DataError at a bad row, unless the job skips them, StoppedError, OSError.
        """
        began = time.perf_counter()
        parts = Path(self._job.parts)
        ids: list[str] = []
        rows: list[Scored] = []
        bad: list[DataError] = []
        repeats = left_out = 0
        for i, found in enumerate(prompts_of(chunk)):
            if i % _LOOK == 0 and self._stopped():
                raise StoppedError
            if isinstance(found, LeftOutError):
                left_out += 1
                continue
            try:
                if isinstance(found, DataError):
                    raise found
                row, repeated = self._scored(as_conversation(found.prompt))
            except DataError as error:
                if not isinstance(found, DataError):
                    error = DataError(
                        error.problem, path=chunk.path, line=found.line, field=error.field
                    )
                if not self._job.skip_bad:
                    raise error from None
                bad.append(error)
                continue
            ids.append(found.id)
            rows.append(row)
            repeats += repeated
        part = part_path(parts, chunk.index, self._job.suffix)
        write_part(part, ids, rows, self._columns, parquet=is_parquet(part))
        if bad:
            _write_rejects(part_path(parts, chunk.index, ".rejects"), bad)
        return Done(
            chunk=chunk.index,
            rows=len(rows),
            bytes=part.stat().st_size,
            repeats=repeats,
            left_out=left_out,
            bad=len(bad),
            problems=tuple(str(error) for error in bad[:_KEPT_PROBLEMS]),
            seconds=round(time.perf_counter() - began, 3),
        )

    def _scored(self, conversation: Conversation) -> tuple[Scored, bool]:
        context = self._job.context
        # Only what is scored: one system text stands before many questions.
        texts = [
            conversation.system if context == "full" else "",
            "" if context == "last" else conversation.history,
            conversation.last,
        ]
        data = json.dumps(texts).encode()  # ASCII, lone surrogates too
        key = hashlib.blake2b(data, digest_size=16).digest()
        if (known := self._seen.get(key)) is not None:
            self._seen.move_to_end(key)
            return known, True
        row = self._scorer.read(conversation, self._centers, keep=self._job.embeddings)
        self._seen[key] = row
        if len(self._seen) > self._job.remembered:
            self._seen.popitem(last=False)
        return row, False


def _write_rejects(path: Path, bad: list[DataError]) -> None:
    with whole_file(path) as file:
        for error in bad:
            entry = {
                "path": error.path,
                "line": error.line,
                "field": error.field,
                "problem": error.problem,
            }
            file.write(json.dumps(entry).encode() + b"\n")

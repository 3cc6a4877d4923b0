"""One chunk, from its rows to its part: what threads and Ray's actors do, one after the other.

In the work folder a chunk has `parts/00000017.parquet` (or .jsonl), where rows were skipped
`parts/00000017.rejects`, and last `parts/00000017.json`, which says that it is done.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, DataError
from ...files import private, whole_file
from ...router.scorer import Scorer
from ...router.text import Conversation, as_conversation
from ..logs.normalize import LeftOutError
from .chunks import Chunk, LogPrompt, prompts_of
from .output import write_part
from .settings import ScoreSettings

CENTERS = "centers.npy"
REJECTS = ".rejects"
# Prompts whose result is remembered: logs repeat themselves. About 15 MB, 30 with embeddings.
_REMEMBERED = 20_000
_KEPT_PROBLEMS = 3


class StoppedError(Exception):
    """The run was told to stop; the chunk is not done."""


@dataclass(slots=True)
class ChunkDone:
    """One chunk that was scored: `rows` written to its part of `bytes`, `repeats` of them with a
    prompt that had just been scored, `bad` rows skipped, `problems` the first of these, `left_out`
    entries of other tools' logs that are no request that was answered."""

    chunk: int
    rows: int = 0
    bytes: int = 0
    repeats: int = 0
    left_out: int = 0
    bad: int = 0
    problems: tuple[str, ...] = ()


def part_path(folder: Path, chunk: int, suffix: str) -> Path:
    """A file of a chunk in the work folder."""
    return folder / "parts" / f"{chunk:08d}{suffix}"


def earlier(folder: Path, chunk: int, suffix: str) -> ChunkDone | None:
    """What an earlier run did of a chunk; None where it is to be done (again)."""
    part = part_path(folder, chunk, suffix)
    try:
        found = ChunkDone(**json.loads(part_path(folder, chunk, ".json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if part.exists() and part.stat().st_size == found.bytes else None


class RowScorer(Scorer):
    """A scorer that gives all that is written of a prompt from one run of the graph."""

    @classmethod
    def of(cls, settings: ScoreSettings) -> "RowScorer":
        """The settings' bundle. Raises BundleError, ConfigError where it cannot score with them."""
        pair = {"strong": settings.strong, "weak": settings.weak}
        # One thread a run of the graph: whole chunks are what is spread over the cores.
        loaded = cls.load(settings.bundle, threads=1, context=settings.context, **pair)
        if not loaded.bundle.manifest.models:
            raise ConfigError(f"{loaded.bundle} is an encoder: it embeds, but knows no models")
        return cast("RowScorer", loaded)

    @property
    def outputs(self) -> list[str]:
        """The graph's outputs that are written; not every graph tells familiarity."""
        told = {output.name for output in self._session.get_outputs()}
        return ["quality", "embedding", *({"familiarity"} & told)]

    def row(
        self, conversation: Conversation, outputs: list[str]
    ) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
        """Score (that of `score`, to the last bit) and familiarity; and the embedding."""
        quality, embedding, *rest = self._run(conversation, outputs)
        margin = float(quality[self._strong] - quality[self._weak])
        found = {"score": float(self.calibrated(margin))}
        if rest:
            found["familiarity"] = float(rest[0][0])
        return found, embedding


class ChunkScorer:
    """Scores chunks; threads share it. Once `stop` is set, it scores no more."""

    def __init__(self, scorer: RowScorer, settings: ScoreSettings, folder: Path) -> None:
        self.stop = threading.Event()
        self._scorer = scorer
        self._settings = settings
        self._folder = folder
        self._outputs = scorer.outputs
        centers = folder / CENTERS
        self._centers = np.load(centers, allow_pickle=False) if centers.exists() else None
        kinds = {"id": "string", "score": "float64", "familiarity": "float32", "cluster": "int32"}
        left_out = {
            "familiarity": "familiarity" not in self._outputs,
            "cluster": self._centers is None,
        }
        self._columns: dict[str, str | int] = {
            name: kind for name, kind in kinds.items() if not left_out.get(name)
        }
        if settings.embeddings:
            self._columns["embedding"] = scorer.bundle.manifest.dim
        self._seen: OrderedDict[bytes, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def do(self, chunk: Chunk) -> ChunkDone:
        """Score a chunk and write its part; doing it again gives the same file.

        Raises DataError at a bad row, unless the run skips them, StoppedError, OSError.
        """
        done = ChunkDone(chunk.index)
        rows: list[dict[str, Any]] = []
        bad: list[DataError] = []
        for found in prompts_of(chunk):
            if self.stop.is_set():
                raise StoppedError
            if isinstance(found, LeftOutError):
                done.left_out += 1
                continue
            try:
                row, repeated = self._row(found)
            except DataError as error:
                line = found.line if isinstance(found, LogPrompt) else error.line
                told = DataError(error.problem, path=chunk.path, line=line, field=error.field)
                if not self._settings.skip_bad:
                    raise told from None
                bad.append(told)
            else:
                rows.append(row)
                done.repeats += repeated
        self._write(done, rows, bad)
        return done

    def _row(self, found: LogPrompt | DataError) -> tuple[dict[str, Any], bool]:
        """What is written of a row, and whether its prompt had been scored. Raises DataError."""
        if isinstance(found, DataError):
            raise found
        conversation = as_conversation(found.prompt)
        context = self._settings.context
        # Only what is scored: one system text stands before many questions.
        texts = [
            conversation.system if context == "full" else "",
            "" if context == "last" else conversation.history,
            conversation.last,
        ]
        data = json.dumps(texts).encode()  # ASCII, lone surrogates too
        key = hashlib.blake2b(data, digest_size=16).digest()
        with self._lock:
            if (known := self._seen.get(key)) is not None:
                self._seen.move_to_end(key)
                return {"id": found.id, **known}, True
        row, embedding = self._scorer.row(conversation, self._outputs)
        if self._centers is not None:
            row["cluster"] = int((self._centers @ embedding).argmax())
        if self._settings.embeddings:
            row["embedding"] = embedding.astype(np.float16)
        with self._lock:
            self._seen[key] = row
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return {"id": found.id, **row}, False

    def _write(self, done: ChunkDone, rows: list[dict[str, Any]], bad: list[DataError]) -> None:
        part = part_path(self._folder, done.chunk, self._settings.target.suffix)
        write_part(part, rows, self._columns if self._settings.parquet else {})
        if bad:
            rejects = [
                {"path": e.path, "line": e.line, "field": e.field, "problem": e.problem}
                for e in bad
            ]
            write_part(part.with_suffix(REJECTS), rejects, {})
        done.rows, done.bytes, done.bad = len(rows), part.stat().st_size, len(bad)
        done.problems = tuple(str(error) for error in bad[:_KEPT_PROBLEMS])
        with whole_file(part.with_suffix(".json"), opener=private) as file:
            file.write(json.dumps(asdict(done)).encode())

"""One chunk, from its rows to its part: what threads and Ray's actors do, one after the other.

In the work folder a chunk has `parts/00000017.parquet` (or .jsonl), where rows were skipped
`parts/00000017.rejects`, and last `parts/00000017.json`, which says that it is done.
"""

import hashlib
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, DataError, require_extra
from ...files import private, whole_file
from ...router.scorer import Scorer
from ...router.text import Conversation, as_conversation
from ..lines import write_jsonl
from ..logs.normalize import LeftOutError
from .chunks import Chunk, LogPrompt, prompts_of
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

    def outputs(self, embedding: bool) -> list[str]:
        """The graph's outputs that are needed; not every graph tells familiarity."""
        told = {output.name for output in self._session.get_outputs()}
        return ["quality", *({"familiarity"} & told), *(["embedding"] if embedding else [])]

    def row(
        self, conversation: Conversation, outputs: list[str]
    ) -> tuple[dict[str, Any], npt.NDArray[np.float32] | None]:
        """Score (that of `score`, to the last bit) and familiarity; and the embedding, if asked."""
        values = dict(zip(outputs, self._run(conversation, outputs), strict=True))
        margin = float(values["quality"][self._strong] - values["quality"][self._weak])
        found = {"score": float(self.calibrated(margin))}
        if "familiarity" in values:
            found["familiarity"] = float(values["familiarity"][0])
        return found, values.get("embedding")


class ChunkScorer:
    """Scores chunks; threads share it. Once `stop` is set, it scores no more."""

    def __init__(self, scorer: RowScorer, settings: ScoreSettings, folder: Path) -> None:
        self.stop = threading.Event()
        self._scorer, self._settings, self._folder = scorer, settings, folder
        centers = folder / CENTERS
        self._centers = np.load(centers, allow_pickle=False) if centers.exists() else None
        self._outputs = scorer.outputs(settings.embeddings or self._centers is not None)
        self._seen: dict[bytes, dict[str, Any]] = {}
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
                if isinstance(found, DataError):
                    raise found
                row, repeated = self._row(found)
            except DataError as error:
                line = found.line if isinstance(found, LogPrompt) else error.line
                bad.append(error.at(chunk.path, line))
                if not self._settings.skip_bad:
                    raise bad[0] from None
            else:
                rows.append(row)
                done.repeats += repeated
        part = part_path(self._folder, chunk.index, self._settings.target.suffix)
        if self._settings.parquet:
            self._write_parquet(part, rows)
        else:
            write_jsonl(part, rows)
        if bad:
            names = ("path", "line", "field", "problem")
            rejects = [{name: getattr(error, name) for name in names} for error in bad]
            write_jsonl(part.with_suffix(REJECTS), rejects)
        done.rows, done.bytes, done.bad = len(rows), part.stat().st_size, len(bad)
        done.problems = tuple(str(error) for error in bad[:_KEPT_PROBLEMS])
        write_jsonl(part.with_suffix(".json"), [asdict(done)])
        return done

    def _row(self, found: LogPrompt) -> tuple[dict[str, Any], bool]:
        """What is written of a row, and whether its prompt had been scored. Raises DataError."""
        conversation = as_conversation(found.prompt)
        context = self._settings.context
        # Only what is scored: one system text stands before many questions.
        system = conversation.system if context == "full" else ""
        history = "" if context == "last" else conversation.history
        data = json.dumps([system, history, conversation.last]).encode()  # ASCII
        key = hashlib.blake2b(data, digest_size=16).digest()
        if (known := self._seen.get(key)) is not None:
            return {"id": found.id, **known}, True
        row, embedding = self._scorer.row(conversation, self._outputs)
        if embedding is not None and self._centers is not None:
            row["cluster"] = int((self._centers @ embedding).argmax())
        if embedding is not None and self._settings.embeddings:
            row["embedding"] = embedding.astype(np.float16)
        with self._lock:
            self._seen[key] = row
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return {"id": found.id, **row}, False

    def _write_parquet(self, path: Path, rows: list[dict[str, Any]]) -> None:
        arrow = require_extra("pyarrow", "eval")
        types = {"id": arrow.string(), "score": arrow.float64()}
        if "familiarity" in self._outputs:
            types["familiarity"] = arrow.float32()
        if self._centers is not None:
            types["cluster"] = arrow.int32()
        if self._settings.embeddings:
            dim = self._scorer.bundle.manifest.dim
            types["embedding"] = arrow.list_(arrow.float16(), dim)
        table = arrow.Table.from_pylist(rows, schema=arrow.schema(list(types.items())))
        with whole_file(path, opener=private) as file:
            require_extra("pyarrow.parquet", "eval").write_table(table, file, compression="zstd")

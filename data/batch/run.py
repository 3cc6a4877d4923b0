"""Score a log of any length into one file: `score_logs`.

Interrupted or killed, the same call goes on where it stopped. Memory does not grow with the log:
each worker holds one chunk's results, the run the places of the chunks.
"""

import contextlib
import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, DataError, require_extra
from ...files import private, whole_file
from ...router.bundle import Bundle
from ...router.scorer import Scorer
from ..clusters import fit
from ..work_folder import begin, work_folder
from .chunks import Chunk, ChunkPlan, LogPrompt, plan_chunks, prompts_of
from .scoring import CENTERS, REJECTS, ChunkDone, ChunkScorer, RowScorer, earlier, part_path
from .settings import ScoreSettings, check

Floats = npt.NDArray[np.float32]

VERSION = 2  # of the work folder
# Of the sample that clusters are fitted on: rows a cluster on average, rows, chunks.
_CLUSTER_ROWS, _LEAST_ROWS, _MOST_CHUNKS = 50, 1000, 200
# Parts are joined to row groups of about so many rows, fewer where each has an embedding.
_GROUP_ROWS = 131_072
_GROUP_ROWS_EMBEDDED = 16_384


@dataclass(frozen=True, slots=True)
class ScoreProgress:
    """How far a run is: lines of the log that are done (before this run: `earlier`) of `total`, and
    seconds since this run began to score."""

    done: int
    earlier: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Lines a second in this run; 0 before the first chunk is done."""
        return (self.done - self.earlier) / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this rate; None before the first chunk is done."""
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What a run did. `rows` are in the file: `repeats` of them were not scored again, `resumed`
    were there from an earlier run. `bad` ones were skipped, and `left_out` entries are no requests.
    `seconds` is scoring in this run; `plan_s` and `join_s` are reading and writing whole files."""

    out: str
    rows: int
    repeats: int
    left_out: int
    bad: int
    problems: tuple[str, ...]
    chunks: int
    resumed: int
    workers: int
    plan_s: float
    seconds: float
    join_s: float
    rows_per_s: float


def score_logs(
    settings: ScoreSettings, progress: Callable[[ScoreProgress], None] | None = None
) -> ScoreSummary:
    """Write {id, score, familiarity?, cluster?, embedding?} of each row of a log, in its order.

    The work goes on in `<out>.work`, which is deleted when `out` is whole. Raises ConfigError (a
    setting that does not fit, a folder of another run), DataError (a bad row: file, line, field),
    BundleError, MissingExtraError.
    """
    check(settings)
    scorer = RowScorer.of(settings)
    centers = None if settings.centers is None else read_centers(settings.centers)
    if centers is not None and centers.shape[1] != (dim := scorer.bundle.manifest.dim):
        told = f"the centres have {centers.shape[1]} numbers each"
        raise ConfigError(f"{told}; the bundle's embeddings have {dim}")
    about = _about(settings, scorer.bundle, centers)
    times = [time.perf_counter()]
    limits = {"chunk_rows": settings.chunk_rows, "chunk_bytes": settings.chunk_bytes}
    plan = plan_chunks(settings.inputs, format=settings.format, **limits)
    out = settings.target
    with work_folder(out) as folder:
        begin(folder, {**about, "inputs": list(plan.files), "files": dict(plan.files)})
        times.append(time.perf_counter())
        if centers is None and settings.clusters is not None and not (folder / CENTERS).exists():
            centers = fit_centers(plan, scorer, settings.clusters, seed=settings.seed)
        if centers is not None:
            with whole_file(folder / CENTERS, opener=private) as file:
                np.save(file, centers)
        done, resumed = _score(scorer, settings, plan, folder, progress)
        times.append(time.perf_counter())
        names = ("rows", "repeats", "left_out", "bad")
        counts = {name: sum(getattr(d, name) for d in done) for name in names}
        problems = tuple(problem for d in done for problem in d.problems)[:3]
        if counts["rows"]:
            _join(settings, plan, folder, {**about, "router": settings.router})
        # A log without a row is a mistake; what was done of it is no work to keep.
        shutil.rmtree(folder, ignore_errors=True)
        times.append(time.perf_counter())
    if not (rows := counts["rows"]):
        raise _nothing(plan, counts, problems)
    plan_s, seconds, join_s = (round(b - a, 3) for a, b in itertools.pairwise(times))
    return ScoreSummary(
        out=str(out),
        **counts,
        problems=problems,
        chunks=len(done),
        resumed=resumed,
        workers=settings.workers,
        plan_s=plan_s,
        seconds=seconds,
        join_s=join_s,
        rows_per_s=round((rows - resumed) / seconds, 2) if rows > resumed else 0.0,
    )


def _about(settings: ScoreSettings, bundle: Bundle, centers: Floats | None) -> dict[str, Any]:
    """All that the rows of the output depend on, beside the inputs; as JSON."""
    given = None if centers is None else hashlib.sha256(centers.tobytes()).hexdigest()
    names = ("context", "embeddings", "skip_bad", "format", "chunk_rows", "chunk_bytes")
    return {
        "version": VERSION,
        "bundle": bundle.model_sha256,
        "calibration": dict(bundle.manifest.calibration),
        "strong": settings.strong or bundle.manifest.strong,
        "weak": settings.weak or bundle.manifest.weak,
        "clusters": given or settings.clusters,
        "seed": settings.seed if settings.clusters else None,
        **{name: getattr(settings, name) for name in names},
    }


def _score(
    scorer: RowScorer,
    settings: ScoreSettings,
    plan: ChunkPlan,
    folder: Path,
    progress: Callable[[ScoreProgress], None] | None,
) -> tuple[list[ChunkDone], int]:
    """What was done of all chunks, in their order, and the rows that were there before."""
    began = time.perf_counter()
    (folder / "parts").mkdir(exist_ok=True)
    for rest in (folder / "parts").glob("*.part"):  # what a killed run was writing
        rest.unlink(missing_ok=True)
    suffix = settings.target.suffix
    found = {c.index: done for c in plan.chunks if (done := earlier(folder, c.index, suffix))}
    resumed = sum(done.rows for done in found.values())
    todo = [chunk for chunk in plan.chunks if chunk.index not in found]
    at = before = plan.lines - sum(chunk.lines for chunk in todo)
    # Closed now, and not when the garbage collector comes by: workers write into the folder.
    with contextlib.closing(_scored(scorer, settings, folder, todo)) as scored:
        for done in scored:
            found[done.chunk] = done
            at += plan.chunks[done.chunk].lines
            if progress:
                progress(ScoreProgress(at, before, plan.lines, time.perf_counter() - began))
    return [found[chunk.index] for chunk in plan.chunks], resumed


def _scored(
    scorer: RowScorer, settings: ScoreSettings, folder: Path, todo: Sequence[Chunk]
) -> Generator[ChunkDone]:
    """Chunks as they are done, in no order. Where the caller stops early, no worker goes on."""
    if not todo:
        return
    if settings.ray is not None:
        from .on_ray import done_by_ray

        # Its processes have working directories of their own.
        absolute = replace(settings, router=str(settings.bundle), out=settings.target)
        yield from done_by_ray(absolute, folder, todo)
        return
    chunks = ChunkScorer(scorer, settings, folder)
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="thriftroute-score")
    try:
        for future in as_completed([pool.submit(chunks.do, chunk) for chunk in todo]):
            yield future.result()
    finally:
        chunks.stop.set()
        pool.shutdown(cancel_futures=True)


def _nothing(plan: ChunkPlan, counts: Mapping[str, int], problems: Sequence[str]) -> DataError:
    """Why no row of a log was scored."""
    names = ", ".join(plan.files)
    if problems:
        return DataError(f"no usable row: all {counts['bad']:,} are bad, the first: {problems[0]}")
    if counts["left_out"]:
        told = (
            f"none of {counts['left_out']:,} entries is a request that was answered, with its text"
        )
        return DataError(f"{told}; thriftroute logs import says what they are", path=names)
    return DataError("is empty; expected at least one row of a log", path=names)


def _join(settings: ScoreSettings, plan: ChunkPlan, folder: Path, about: Mapping[str, Any]) -> None:
    """Join the parts, in order, to one file each of scores, rejects and centres."""

    def parts(suffix: str) -> list[Path]:
        return [part_path(folder, chunk.index, suffix) for chunk in plan.chunks]

    out = settings.target
    if settings.rejects is not None:
        _join_bytes(parts(REJECTS), Path(settings.rejects).absolute())
    if (folder / CENTERS).exists():
        _join_bytes([folder / CENTERS], out.with_name(f"{out.name}.centers.npy"))
    if not settings.parquet:
        _join_bytes(parts(out.suffix), out)
        return
    arrow = require_extra("pyarrow", "eval")
    parquet = require_extra("pyarrow.parquet", "eval")
    names = ("router", "bundle", "strong", "weak", "context")
    told = {f"thriftroute.{name}": str(about[name]) for name in names}
    schema = parquet.read_schema(parts(out.suffix)[0]).with_metadata(told)
    most = _GROUP_ROWS_EMBEDDED if settings.embeddings else _GROUP_ROWS
    held: list[Any] = []
    with (
        whole_file(out, opener=private) as file,
        parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for part in parts(out.suffix):
            held.append(parquet.read_table(part))
            if sum(table.num_rows for table in held) >= most:
                writer.write_table(arrow.concat_tables(held))
                held = []
        if held:
            writer.write_table(arrow.concat_tables(held))


def _join_bytes(parts: Sequence[Path], out: Path) -> None:
    """Join those of the parts that are there."""
    with whole_file(out, opener=private) as file:
        for part in parts:
            if part.exists():
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)


def fit_centers(
    plan: ChunkPlan, scorer: Scorer, k: int, *, seed: int = 0, rows: int | None = None
) -> Floats:
    """Centres float32[k', dim], k' <= k, fitted on rows drawn at random from chunks drawn at random
    (in proportion to their rows), about `rows`. Raises ConfigError where the sample has no row."""
    rng = np.random.default_rng(seed)
    rows = rows or max(_LEAST_ROWS, _CLUSTER_ROWS * k)
    count = min(len(plan.chunks), _MOST_CHUNKS)
    share = np.array([chunk.lines for chunk in plan.chunks]) / plan.lines
    drawn = rng.choice(len(plan.chunks), count, replace=False, p=share)
    prompts: list[Any] = []
    for index in sorted(drawn.tolist()):
        chunk = plan.chunks[index]
        wanted = set(rng.choice(chunk.lines, min(chunk.lines, -(-rows // count)), replace=False))
        prompts += [
            row.prompt
            for i, row in enumerate(prompts_of(chunk))
            if i in wanted and isinstance(row, LogPrompt)
        ]
    return fit(scorer.embeddings(prompts, workers=1), k, seed=seed)


def read_centers(path: str | Path) -> Floats:
    """Centres that a run has written. Raises ConfigError where it is no such file."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: no readable .npy file of cluster centres ({error})") from error
    if found.ndim != 2 or found.dtype != np.float32 or not len(found):
        told = f"{path} holds {found.dtype}{list(found.shape)}"
        raise ConfigError(f"{told}; expected centres float32[k, dim]")
    return np.ascontiguousarray(found)

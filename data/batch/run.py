"""Score a log of any length into one file: `score_logs`.

    summary = score_logs(ScoreSettings(inputs=["logs.jsonl"], out="scores.parquet", workers=2))

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

from ...errors import ConfigError, DataError
from ...files import private, whole_file
from ...router.bundle import Bundle
from ..work_folder import work_folder
from .chunks import Chunk, ChunkPlan, plan_chunks
from .clusters import Floats, fit_centers, read_centers
from .output import join_files, join_parts
from .scoring import CENTERS, REJECTS, ChunkDone, ChunkScorer, RowScorer, earlier, part_path
from .settings import ScoreSettings, check

VERSION = 2  # of the work folder


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
    `seconds` is scoring in this run, at `rows_per_s`; `plan_s` and `join_s` are reading the inputs
    through once and writing the one file."""

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
        raise ConfigError(
            f"the centres have {centers.shape[1]} numbers each; the bundle's embeddings have {dim}"
        )
    about = _about(settings, scorer.bundle, centers)
    times = [time.perf_counter()]
    plan = plan_chunks(
        settings.inputs,
        format=settings.format,
        chunk_rows=settings.chunk_rows,
        chunk_bytes=settings.chunk_bytes,
    )
    out = settings.target
    with work_folder(out, about, plan.files) as folder:
        times.append(time.perf_counter())
        if centers is None and settings.clusters is not None and not (folder / CENTERS).exists():
            centers = fit_centers(plan, scorer, settings.clusters, seed=settings.seed)
        if centers is not None:
            with whole_file(folder / CENTERS, opener=private) as file:
                np.save(file, centers)
        done, resumed = _score(scorer, settings, plan, folder, progress)
        times.append(time.perf_counter())
        _check_rows(done, plan, folder)
        _join(settings, plan, folder, {**about, "router": settings.router})
        shutil.rmtree(folder, ignore_errors=True)
        times.append(time.perf_counter())
    plan_s, seconds, join_s = (round(b - a, 3) for a, b in itertools.pairwise(times))
    rows = sum(d.rows for d in done)
    return ScoreSummary(
        out=str(out),
        rows=rows,
        repeats=sum(d.repeats for d in done),
        left_out=sum(d.left_out for d in done),
        bad=sum(d.bad for d in done),
        problems=_problems(done),
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
    return {
        "version": VERSION,
        "bundle": bundle.model_sha256,
        "calibration": dict(bundle.manifest.calibration),
        "strong": settings.strong or bundle.manifest.strong,
        "weak": settings.weak or bundle.manifest.weak,
        "context": settings.context,
        "embeddings": settings.embeddings,
        "clusters": given or settings.clusters,
        "seed": settings.seed if settings.clusters else None,
        "skip_bad": settings.skip_bad,
        "format": settings.format,
        "chunk_rows": settings.chunk_rows,
        "chunk_bytes": settings.chunk_bytes,
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


def _problems(done: Sequence[ChunkDone]) -> tuple[str, ...]:
    return tuple(problem for d in done for problem in d.problems)[:3]


def _check_rows(done: Sequence[ChunkDone], plan: ChunkPlan, folder: Path) -> None:
    """A log without a row is a mistake; what was done of it is no work to keep."""
    if any(d.rows for d in done):
        return
    shutil.rmtree(folder, ignore_errors=True)
    if problems := _problems(done):
        bad = sum(d.bad for d in done)
        raise DataError(f"no usable row: all {bad:,} are bad, the first: {problems[0]}")
    names = ", ".join(plan.files)
    if left_out := sum(d.left_out for d in done):
        raise DataError(
            f"none of {left_out:,} entries is a request that was answered, with its text; "
            "thriftroute logs import says what they are",
            path=names,
        )
    raise DataError("is empty; expected at least one row of a log", path=names)


def _join(settings: ScoreSettings, plan: ChunkPlan, folder: Path, about: Mapping[str, Any]) -> None:
    def parts(suffix: str) -> list[Path]:
        return [part_path(folder, chunk.index, suffix) for chunk in plan.chunks]

    out = settings.target
    if settings.rejects is not None:
        join_files(parts(REJECTS), Path(settings.rejects).absolute())
    if (folder / CENTERS).exists():
        join_files([folder / CENTERS], out.with_name(f"{out.name}.centers.npy"))
    if not settings.parquet:
        join_files(parts(out.suffix), out)
        return
    names = ("router", "bundle", "strong", "weak", "context")
    join_parts(parts(out.suffix), out, {f"thriftroute.{n}": str(about[n]) for n in names})

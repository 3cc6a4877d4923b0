"""Score a log of any length into one file: `score_logs`.

    summary = score_logs(["logs.jsonl"], "scores.parquet", router="mf", workers=2)

Interrupted or killed, the same call goes on where it stopped. Memory does not grow with the log:
each worker holds one chunk's results, this process the places of the chunks.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...router.bundle import Bundle
from ...router.routers import BUNDLED, CHECKPOINTS
from ...router.scorer import Scorer
from ...router.text import validate_context
from ..logs.folder import whole_file
from .chunks import CHUNK_BYTES, CHUNK_ROWS
from .clusters import fit_centers, read_centers
from .folder import Done, Work, open_work, part_path
from .output import check_out, join_lines, join_parts
from .pool import done_by_pool
from .worker import Job, Worker

CENTERS = "centers.npy"
Progress = Callable[["State"], None]


@dataclass(frozen=True, slots=True)
class State:
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
class Summary:
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
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    router: str = "mf",
    strong: str | None = None,
    weak: str | None = None,
    context: str = "conversation",
    format: str = "auto",
    workers: int = 1,
    ray: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    chunk_bytes: int = CHUNK_BYTES,
    embeddings: bool = False,
    clusters: int | None = None,
    centers: str | Path | None = None,
    skip_bad: bool = False,
    rejects: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Write {id, score, familiarity?, cluster?, embedding?} of each row of a log, in its order.

    inputs: what `logs import` wrote, or Parquet with `id` and `prompt` or `messages`; or JSONL of a
    `format` that it reads, as it is: then every request is scored, repeats too. out: a .parquet
    file, or any other name for JSONL. router: mf, bert, or a bundle's folder; strong, weak: another
    pair of its models. workers: processes, of about 200 MB each; ray: the same on a Ray cluster
    ("local" starts one). clusters: fit as many on a sample drawn with `seed`, and write their
    centres to `<out>.centers.npy`; centers: use those of such a file instead. embeddings: float16,
    into Parquet only. skip_bad: leave bad rows out, and write where and why to `rejects`.

    With several workers a script calls this below `if __name__ == "__main__":`, as for every pool
    of processes. The work goes on in `<out>.work`, which is deleted when `out` is whole.

    Raises ConfigError (a setting that does not fit, a folder of another run), DataError (a bad row:
    file, line, field), BundleError, MissingExtraError, ScalingError.
    """
    out = Path(out).absolute()
    _check(inputs, out, workers, chunk_rows, chunk_bytes, clusters, centers, overwrite)
    if rejects is not None and not skip_bad:
        raise ConfigError("a file of rejects is for bad rows that are skipped: ask for that too")
    check_out(out, embeddings=embeddings)
    bundle = Bundle.open(_folder(router))
    given = None if centers is None else read_centers(Path(centers))
    manifest = bundle.manifest
    _check_bundle(bundle, strong, weak, given)
    settings: dict[str, Any] = {
        "bundle": bundle.model_sha256,
        "calibration": dict(manifest.calibration),
        "strong": strong or manifest.strong,
        "weak": weak or manifest.weak,
        "context": validate_context(context),
        "embeddings": embeddings,
        "clusters": clusters if given is None else given.tolist(),
        "seed": None if clusters is None else seed,
        "skip_bad": skip_bad,
    }
    began = time.perf_counter()
    limits = {"chunk_rows": chunk_rows, "chunk_bytes": chunk_bytes}
    with open_work(out, inputs, settings, format=format, **limits) as work:
        plan_s = time.perf_counter() - began
        job = Job(
            bundle=str(bundle.path.absolute()),
            strong=settings["strong"],
            weak=settings["weak"],
            context=context,
            parts=str(work.parts),
            suffix=out.suffix,
            embeddings=embeddings,
            centers=_centers(work, bundle, settings, given),
            skip_bad=skip_bad,
        )
        earlier = {index: done.rows for index, done in work.done.items()}
        began = time.perf_counter()
        _score(work, job, workers, ray, progress)
        seconds = time.perf_counter() - began
        _check_rows(work)
        began = time.perf_counter()
        _join(work, out, rejects, {**settings, "router": str(router)})
        join_s = time.perf_counter() - began
        done = list(work.done.values())
        work.remove()
    rows = sum(d.rows for d in done)
    resumed = sum(earlier.values())
    return Summary(
        out=str(out),
        rows=rows,
        repeats=sum(d.repeats for d in done),
        left_out=sum(d.left_out for d in done),
        bad=sum(d.bad for d in done),
        problems=tuple(p for d in sorted(done, key=lambda d: d.chunk) for p in d.problems)[:3],
        chunks=len(done),
        resumed=resumed,
        workers=workers,
        plan_s=round(plan_s, 3),
        seconds=round(seconds, 3),
        join_s=round(join_s, 3),
        rows_per_s=round((rows - resumed) / seconds, 2) if rows > resumed else 0.0,
    )


def _check(
    inputs: Sequence[str | Path],
    out: Path,
    workers: int,
    chunk_rows: int,
    chunk_bytes: int,
    clusters: int | None,
    centers: str | Path | None,
    overwrite: bool,
) -> None:
    if isinstance(inputs, str | Path) or not inputs:
        raise ConfigError("give a list of at least one file of a log")
    numbers = {"workers": workers, "chunk_rows": chunk_rows, "chunk_bytes": chunk_bytes}
    if clusters is not None:
        numbers["clusters"] = clusters
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected a whole number >= 1, got {value!r}")
    if clusters is not None and centers is not None:
        raise ConfigError("clusters are fitted or their centres are given, not both")
    if out.exists() and not out.is_dir() and not overwrite:
        raise ConfigError(f"{out} exists already; name another file, or overwrite it")
    names = [Path(path).absolute() for path in inputs]
    if len(set(names)) != len(names):
        raise ConfigError("a file is given twice")
    if out in names:
        raise ConfigError(f"{out} is an input too")


def _check_bundle(bundle: Bundle, strong: str | None, weak: str | None, centers: Any) -> None:
    """What the workers would else stumble over, after the inputs are read through."""
    manifest = bundle.manifest
    if not manifest.models:
        raise ConfigError(f"{bundle} is an encoder, which embeds but cannot score; give a router")
    for key, name in (("strong", strong), ("weak", weak)):
        if name is not None and name not in manifest.models:
            raise ConfigError(
                f"{key} model {name!r} is not in {bundle}; it knows: {', '.join(manifest.models)}"
            )
    if (strong or manifest.strong) == (weak or manifest.weak):
        raise ConfigError(f"strong and weak are both {strong or weak!r}")
    if centers is not None and centers.shape[1] != manifest.dim:
        raise ConfigError(
            f"the centres have {centers.shape[1]} numbers each; the bundle's embeddings have "
            f"{manifest.dim}"
        )


def _folder(router: str) -> Path:
    if router in BUNDLED and not Path(router).exists():
        return CHECKPOINTS / router
    if router == "random":
        raise ConfigError("router 'random' reads no prompt: there is nothing to score with")
    return Path(router)


def _centers(work: Work, bundle: Bundle, settings: dict[str, Any], given: Any) -> str | None:
    """The file of cluster centres that the workers read; made once a run, and kept with it."""
    path = work.path / CENTERS
    if given is None and settings["clusters"] is None:
        return None
    if not path.exists():
        if given is None:
            scorer = Scorer.load(bundle, context=settings["context"])
            given = fit_centers(work.plan, scorer, settings["clusters"], seed=settings["seed"])
        with whole_file(path) as file:
            np.save(file, given)
    return str(path)


def _score(work: Work, job: Job, workers: int, ray: str | None, progress: Progress | None) -> None:
    todo = [chunk for chunk in work.plan.chunks if chunk.index not in work.done]
    lines = {chunk.index: chunk.lines for chunk in todo}
    total = work.plan.lines
    at = earlier = total - sum(lines.values())
    began = time.perf_counter()
    if not todo:
        return
    found: Generator[Done]
    if ray is not None:
        from .on_ray import done_by_ray

        found = done_by_ray(job, todo, workers=workers, address=ray)
    elif workers == 1:
        worker = Worker(job)
        found = (worker.do(chunk) for chunk in todo)
    else:
        found = done_by_pool(job, todo, workers)
    try:
        for done in found:
            work.add(done)
            at += lines[done.chunk]
            if progress:
                progress(State(at, earlier, total, time.perf_counter() - began))
    finally:
        # Now, and not when the garbage collector comes by: workers write into the folder.
        found.close()


def _check_rows(work: Work) -> None:
    """A log without a row is a mistake; what was done of it is no work to keep."""
    done = work.done.values()
    if any(d.rows for d in done):
        return
    problems = [p for d in sorted(done, key=lambda d: d.chunk) for p in d.problems]
    work.remove()
    if problems:
        bad = sum(d.bad for d in done)
        raise DataError(f"no usable row: all {bad:,} are bad, the first: {problems[0]}")
    names = ", ".join(i.path for i in work.plan.inputs)
    left_out = sum(d.left_out for d in done)
    if left_out:
        raise DataError(
            f"none of {left_out:,} entries is a request that was answered, with its text; "
            "thriftroute logs import says what they are",
            path=names,
        )
    raise DataError("is empty; expected at least one row of a log", path=names)


def _join(work: Work, out: Path, rejects: str | Path | None, about: dict[str, Any]) -> None:
    parts = [work.part(chunk.index) for chunk in work.plan.chunks]
    if rejects is not None:
        join_lines((part_path(work.parts, c.index, ".rejects") for c in work.plan.chunks),
                   Path(rejects).absolute())  # fmt: skip
    centers = work.path / CENTERS
    if centers.exists():
        with whole_file(out.with_name(f"{out.name}.centers.npy")) as file:
            file.write(centers.read_bytes())
    names = ("router", "bundle", "strong", "weak", "context")
    join_parts(parts, out, about={f"thriftroute.{name}": str(about[name]) for name in names})

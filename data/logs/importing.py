"""Import: files of logs in, one JSONL of distinct requests out, all of them or a sample.

Entries are read a block at a time. Distinct requests wait in files beside the output until it is
known how often each came; per request some 45 bytes stay in memory, however long it is. An import
that was stopped goes on from those files (see `resume`).
"""

import contextlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, DataError
from ..clusters import assign, default_k, fit
from ..schema import Message
from .folder import whole_file
from .import_rows import Imported, Options, masked, read_block, read_entries, seconds
from .normalize import NO_TEXT
from .pool import in_order
from .reader import Place
from .resume import Work, open_work
from .sampling import draw
from .schema import LogRow, row_of, write_logs
from .traffic_profile import Language, Tally, Traffic, describe

Progress = Callable[[str, int, int | None], None]
Vectors = npt.NDArray[np.float32]

DESCRIBED = 2000  # rows that are embedded for a report or a sample, at least
PER_SAMPLED = 3  # and so many for each row of the sample
# After so many entries, or bytes, it is written down what was read: what a stop may lose.
KEEP_ENTRIES = 50_000
KEEP_BYTES = 64 << 20
_BLOCK = 128
_NO_TEXT_HINTS = {
    "litellm": "set general_settings.store_prompts_in_spend_logs: true in the proxy's config",
    "records": "set records.text: true in the server's config",
    "otel": "have the instrumentation record the content of messages, such as by "
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true",
}


class Embedder(Protocol):
    """What embeds requests: `eval.scored.CachedScorer`, `router.scorer.Scorer`."""

    def embeddings(self, prompts: Sequence[Sequence[Message]], /) -> Vectors:
        """Of n requests float32[n, dim], of unit length."""


def import_logs(
    files: Sequence[str | Path],
    out: str | Path,
    options: Options | None = None,
    *,
    embedder: Embedder | None = None,
    report: bool = False,
    language: Language | None = None,
    workers: int = 1,
    keep_entries: int = KEEP_ENTRIES,
    progress: Progress | None = None,
) -> Imported:
    """Write the distinct requests of log files to `out`, or a sample of them.

    A request that came n times is one row of weight n, with the first answer. A sample is drawn
    along cluster and time (see `sampling`) from rows that were embedded: all, or 2,000 and three
    for each row of the sample, themselves drawn along time. embedder: for a sample or a report.
    workers: processes that parse lines; with several, a script calls this below
    `if __name__ == "__main__":`.

    After every `keep_entries` entries it is written down, in `<out>.work`, what was read:
    interrupted or killed, the same call goes on from there. The folder goes when `out` is whole.

    Raises DataError (see `read_entries`; also where nothing is left), ConfigError (a setting that
    does not fit, a folder of another import), ScalingError (a worker died) and OSError (`out`
    cannot be written).
    """
    options = options or Options()
    if embedder is None and (report or options.sample is not None):
        raise ConfigError("a sample or a report needs a bundle to embed with: give --router mf")
    for name, value in (("workers", workers), ("keep_entries", keep_entries)):
        if value < 1:
            raise ConfigError(f"{name}: expected a whole number >= 1, got {value!r}")
    if options.rejects is not None:
        _check_rejects(options.rejects)
    progress = progress or (lambda stage, done, total: None)
    out = Path(out).absolute()
    names = [str(path) for path in files]
    with open_work(out, names, options) as work:
        result, spool = work.result, work.spool
        _read(names, options, work, workers, keep_entries, progress)
        if options.rejects is not None:
            work.write_rejects(options.rejects)
        if not len(spool):
            work.remove()
            raise DataError(_nothing(result, files))
        result.distinct, result.requests = len(spool), float(sum(spool.weights))
        if embedder is None:
            result.written = _write(spool.all(), out)
        else:
            _look(work, out, options, embedder, report, language, progress)
        work.remove()
        return result


def _check_rejects(path: Path) -> None:
    """Now, and not when all is read."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        problem = "the rejects file cannot be written; expected a file's name in a folder"
        raise DataError(f"{problem} that is there", path=path)


def _read(
    names: Sequence[str],
    options: Options,
    work: Work,
    workers: int,
    keep_entries: int,
    progress: Progress,
) -> None:
    """Read all that was not read yet into the work folder."""
    result = work.result
    if result.resumed:
        progress("resumed", result.resumed, None)

    def jobs() -> Iterator[tuple[tuple[int, Place], tuple[Any, ...], bool]]:
        for i, block in work.blocks(names):
            format = result.formats.get(names[i], options.format)
            # The format of a file follows from its beginning. What is parsed already stays here.
            can_be_sent = bool(block.lines) and format != "auto"
            yield (i, block.end), (block, names[i], options, format), can_be_sent

    with contextlib.closing(in_order(read_block, jobs(), workers)) as found:
        for (i, end), read in found:
            work.add(i, end, read)
            work.keep(names, entries=keep_entries, bytes=KEEP_BYTES)
            progress("reading", result.entries, None)
    work.end(names)


def _look(
    work: Work,
    out: Path,
    options: Options,
    embedder: Embedder,
    report: bool,
    language: Language | None,
    progress: Progress,
) -> None:
    """Embed some of the rows, for a report or a sample, and write the output."""
    result, spool = work.result, work.spool
    most = max(DESCRIBED, PER_SAMPLED * (options.sample or 0))
    chosen = draw(spool.weights, most, seed=options.seed, order=spool.by_time())
    rows = list(spool.some(chosen))
    embeddings = embed(rows, embedder, progress)
    weights = np.array([row.weight for row in rows], np.float64)
    k = options.clusters or default_k(len(rows))
    centers = fit(embeddings, k, seed=options.seed, weights=weights)
    if report:
        tally = Tally()
        for line in spool.all():
            tally.add(row_of(json.loads(line)))
        result.traffic = describe(
            tally, rows, embeddings, language=language, centers=centers, seed=options.seed
        )
    if options.sample is None:
        result.written = _write(spool.all(), out)
    else:
        sampled = _sampled(rows, assign(embeddings, centers), weights, options)
        result.written = write_logs(sampled, out)


def describe_logs(
    files: Sequence[str | Path],
    options: Options,
    *,
    embedder: Embedder,
    language: Language | None = None,
    progress: Progress | None = None,
) -> Traffic:
    """The report of log files, imported or not; they are read twice, and nothing is written.

    Raises DataError as `read_entries`, and where there is no row.
    """
    progress = progress or (lambda stage, done, total: None)
    tally, result = Tally(), Imported()
    weights = array("d")
    times = array("d")
    for row in read_entries(files, options, result):
        tally.add(row)
        weights.append(row.weight)
        times.append(seconds(row))
    if not tally.rows:
        raise DataError(_nothing(result, files))
    order = np.argsort(np.frombuffer(times), kind="stable")
    chosen = draw(weights, DESCRIBED, seed=options.seed, order=order)
    wanted = dict(zip(chosen.rows.tolist(), chosen.weights.tolist(), strict=True))
    again = replace(options, rejects=None)
    rows = [
        masked(replace(row, weight=wanted[i]))[0] if options.mask else
        replace(row, weight=wanted[i])
        for i, row in enumerate(read_entries(files, again)) if i in wanted
    ]  # fmt: skip
    embeddings = embed(rows, embedder, progress)
    return describe(
        tally, rows, embeddings, language=language, k=options.clusters, seed=options.seed
    )


def embed(rows: Sequence[LogRow], embedder: Embedder, progress: Progress) -> Vectors:
    """Embeddings of n rows, float32[n, dim]."""
    blocks = []
    for start in range(0, len(rows), _BLOCK):
        progress("embedding", start, len(rows))
        block = [row.messages for row in rows[start : start + _BLOCK]]
        blocks.append(embedder.embeddings(block))
    progress("embedding", len(rows), len(rows))
    return np.concatenate(blocks)


def _write(lines: Iterable[bytes], out: Path) -> int:
    """Write lines to a file, whole or not at all; how many."""
    with whole_file(out) as file:
        return sum(bool(file.write(line)) for line in lines)


def _sampled(
    rows: Sequence[LogRow],
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    options: Options,
) -> Iterator[LogRow]:
    times = np.array([seconds(row) for row in rows])
    sample = draw(
        weights,
        options.sample or len(rows),
        # Another start than that of the rows to draw from.
        seed=[options.seed, 1],
        order=np.lexsort((times, labels)),
        groups=labels,
        at_least=options.at_least,
    )
    for i, weight in zip(sample.rows.tolist(), sample.weights.tolist(), strict=True):
        yield replace(rows[i], weight=weight, cluster=int(labels[i]))


def _nothing(result: Imported, files: Sequence[str | Path]) -> str:
    """Why an import has no row, and what would help."""
    names = ", ".join(map(str, files))
    told = f"no request can be used of {result.entries:,} entries in {names}"
    if result.left_out:
        told += "; left out: " + ", ".join(f"{n:,} {r}" for r, n in result.left_out.most_common())
    if result.bad:
        told += f"; {result.bad:,} bad, the first: {result.problem}"
    hints = {_NO_TEXT_HINTS[f] for f in result.formats.values() if f in _NO_TEXT_HINTS}
    if result.left_out[NO_TEXT] and hints:
        told += "; to log the text of requests from now on, " + ", or ".join(sorted(hints))
    return told

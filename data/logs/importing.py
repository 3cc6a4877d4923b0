"""Import: files of logs in, one JSONL of distinct requests out, all of them or a sample.

Entries are read a block at a time into a store beside the output (`dedupe_store`), until it is
known how often each came.
"""

import contextlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import ConfigError, DataError
from ...files import private, whole_file
from ..clusters import Vectors, assign, default_k, fit
from ..schema import Message
from .dedupe_store import ImportStore, open_store
from .import_rows import (
    Imported,
    ImportSettings,
    format_of,
    masked,
    read_block,
    read_entries,
    seconds,
)
from .normalize import NO_TEXT
from .pool import in_order
from .reader import Block, Place, expand
from .sampling import draw
from .schema import LogRow, row_of, write_logs
from .traffic_profile import Language, Tally, Traffic, describe

Progress = Callable[[str, int, int | None], None]

DESCRIBED = 2000  # rows that are embedded for a report or a sample, at least
PER_SAMPLED = 3  # and so many for each row of the sample
# After so many entries, or bytes, it is written down what was read: what a stop may lose.
KEEP_ENTRIES, KEEP_BYTES = 50_000, 64 << 20
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
    options: ImportSettings | None = None,
    *,
    embedder: Embedder | None = None,
    language: Language | None = None,
    workers: int = 1,
    keep_entries: int = KEEP_ENTRIES,
    progress: Progress = lambda stage, done, total: None,
) -> Imported:
    """Write the distinct requests of log files to `out`, or a sample of them.

    A request that came n times is one row of weight n, with the first answer. A sample is drawn
    along cluster and time (see `sampling`) from rows that were embedded: all, or 2,000 and three
    for each row of the sample, themselves drawn along time. embedder: for a sample or a report.
    workers: processes that parse; with several, a script calls this below
    `if __name__ == "__main__":`. After every `keep_entries` entries it is written down, in
    `<out>.work`, what was read: interrupted or killed, the same call goes on from there.

    Raises DataError (see `read_entries`; also where nothing is left), ConfigError (a setting that
    does not fit, a folder of another import), ScalingError (a worker died), OSError.
    """
    options = options or ImportSettings()
    if embedder is None and (options.report or options.sample is not None):
        raise ConfigError("a sample or a report needs a bundle to embed with: give --router mf")
    if workers < 1:
        raise ConfigError(f"workers: expected a whole number >= 1, got {workers!r}")
    rejects = options.rejects
    if rejects is not None and (not rejects.absolute().parent.is_dir() or rejects.is_dir()):
        problem = "the rejects file cannot be written; expected a file's name in a folder"
        raise DataError(f"{problem} that is there", path=rejects)
    out = Path(out).absolute()
    names = [str(path) for path in expand(files)]
    with open_store(out, names, options) as store:
        result = store.result
        if result.resumed:
            progress("resumed", result.resumed, None)
        jobs = _jobs(store, names, options)
        with contextlib.closing(in_order(read_block, jobs, workers)) as found:
            for where, read in found:
                store.add(*where, read)
                store.commit(keep_entries, KEEP_BYTES)
                progress("reading", result.entries, None)
        store.count()
        if rejects is not None:
            store.write_rejects(rejects)
        if result.distinct:
            sample = _look(store, options, embedder, language, progress) if embedder else None
            if sample is None:
                with whole_file(out, opener=private) as file:
                    result.written = sum(bool(file.write(line)) for line in store.rows())
            else:
                result.written = write_logs(sample, out)
        store.kept = False
        if not result.distinct:
            raise DataError(_nothing(result, files))
        return result


def _jobs(
    store: ImportStore, names: Sequence[str], options: ImportSettings
) -> Iterator[tuple[tuple[int, Place, int], tuple[Block, str, ImportSettings, str]]]:
    """(file, end and size of a block), and what is to be read of it."""
    formats: dict[str, str] = dict(store.result.formats)
    for i, block in store.blocks():
        name = names[i]
        if formats.get(name, "auto") == "auto":
            formats[name] = format_of(block) if options.format == "auto" else options.format
        yield (i, block.end, block.size), (block, name, options, formats[name])


def _look(
    store: ImportStore,
    options: ImportSettings,
    embedder: Embedder,
    language: Language | None,
    progress: Progress,
) -> Iterator[LogRow] | None:
    """Embed some of the rows, for the report and the sample; the rows of the sample."""
    result = store.result
    weights, order = store.weights()
    most = max(DESCRIBED, PER_SAMPLED * (options.sample or 0))
    rows = list(store.some(draw(weights, most, seed=options.seed, order=order)))
    embeddings = _embed(rows, embedder, progress)
    weights = np.array([row.weight for row in rows], np.float64)
    k = options.clusters or default_k(len(rows))
    centers = fit(embeddings, k, seed=options.seed, weights=weights)
    if options.report:
        tally = Tally()
        for line in store.rows():
            tally.add(row_of(json.loads(line)))
        result.traffic = describe(
            tally, rows, embeddings, language=language, centers=centers, seed=options.seed
        )
    if options.sample is None:
        return None
    labels = assign(embeddings, centers)
    sample = draw(
        weights,
        options.sample,
        # Another start than that of the rows to draw from.
        seed=[options.seed, 1],
        order=np.lexsort((np.array(list(map(_sorts_as, rows))), labels)),
        groups=labels,
        at_least=options.at_least,
    )
    drawn = zip(sample.rows.tolist(), sample.weights.tolist(), strict=True)
    return (replace(rows[i], weight=weight, cluster=int(labels[i])) for i, weight in drawn)


def describe_logs(
    files: Sequence[str | Path],
    options: ImportSettings,
    *,
    embedder: Embedder,
    language: Language | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Traffic:
    """The report of log files, imported or not; they are read twice, and nothing is written.

    Raises DataError as `read_entries`, and where there is no row.
    """
    tally, result = Tally(), Imported()
    found = array("d")  # weights and times by turns: 16 bytes a row
    for row in read_entries(files, options, result):
        tally.add(row)
        found.extend((row.weight, _sorts_as(row)))
    if not found:
        raise DataError(_nothing(result, files))
    weights, times = np.array(found).reshape(-1, 2).T
    order = np.argsort(times, kind="stable")
    chosen = draw(weights, DESCRIBED, seed=options.seed, order=order)
    wanted = dict(zip(chosen.rows.tolist(), chosen.weights.tolist(), strict=True))
    again = enumerate(read_entries(files, options))
    rows = [replace(row, weight=wanted[i]) for i, row in again if i in wanted]
    if options.mask:
        rows = list(map(masked, rows))
    embeddings = _embed(rows, embedder, progress)
    return describe(
        tally, rows, embeddings, language=language, k=options.clusters, seed=options.seed
    )


def _embed(rows: Sequence[LogRow], embedder: Embedder, progress: Progress) -> Vectors:
    """Embeddings of n rows, float32[n, dim]."""
    blocks = []
    for start in range(0, len(rows), _BLOCK):
        progress("embedding", start, len(rows))
        blocks.append(embedder.embeddings([r.messages for r in rows[start : start + _BLOCK]]))
    progress("embedding", len(rows), len(rows))
    return np.concatenate(blocks)


def _sorts_as(row: LogRow) -> float:
    """Its time; the last of all where it has none."""
    time = seconds(row)
    return float("inf") if time is None else time


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

"""Import: files of logs in, one JSONL of distinct requests out, all of them or a sample.

Entries are read one at a time. Distinct requests wait in a file beside the output until it is
known how often each came; per request some 85 bytes stay in memory, however long it is.
"""

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..data.schema import Message, render
from ..router import personal
from ..router.errors import ConfigError, DataError
from .clusters import assign, default_k, fit
from .files import Found, objects
from .formats import FORMATS, detect, rows_of
from .hashes import Seen, digest
from .sampling import Sample, draw
from .schema import LogRow, moment, row_of, write_logs
from .shapes import NO_TEXT, LeftOutError
from .traffic import Language, Tally, Traffic, describe

OnBad = Literal["stop", "skip"]
Progress = Callable[[str, int, int | None], None]
Vectors = npt.NDArray[np.float32]

DESCRIBED = 2000  # rows that are embedded for a report or a sample, at least
PER_SAMPLED = 3  # and so many for each row of the sample
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


@dataclass(frozen=True, slots=True)
class Options:
    """What to do. `sample` rows (None: all); of each cluster `at_least` so many of them."""

    format: str = "auto"
    sample: int | None = None
    at_least: int = 0
    clusters: int | None = None
    mask: bool = False
    on_bad: OnBad = "stop"
    rejects: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMATS):
            raise ConfigError(
                f"format {self.format!r}: expected auto or one of {', '.join(FORMATS)}"
            )
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"a sample of {self.sample}: expected at least 1")
        if self.at_least and self.sample is None:
            raise ConfigError("so many of each cluster are of a sample: say how large it is")


@dataclass(slots=True)
class Imported:
    """What came of an import: `entries` read, of which `left_out` by reason and `bad` ones;
    `distinct` requests, how often they came in all (`requests`), and rows `written`."""

    formats: dict[str, str] = field(default_factory=dict)
    entries: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    problem: str | None = None  # of the first bad one
    masked: int = 0  # distinct requests in which something was
    distinct: int = 0
    requests: float = 0.0
    written: int = 0
    traffic: Traffic | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "left_out": dict(self.left_out)}


def read_entries(
    files: Iterable[str | Path], options: Options, result: Imported | None = None
) -> Iterator[LogRow]:
    """The rows of log files, in their order, repeats and all; counted into `result`.

    Raises DataError with file, line and field for what cannot be read, unless it is to be skipped.
    """
    result = Imported() if result is None else result
    for path in files:
        format = options.format
        for line, found in objects(path):
            result.entries += 1
            try:
                if isinstance(found, DataError):
                    raise found
                if format == "auto":
                    format = detect(found)
                result.formats[str(path)] = format
                for row in rows_of(found, format):
                    if isinstance(row, LeftOutError):
                        result.left_out[row.reason] += 1
                    else:
                        yield row
            except DataError as error:
                _reject(DataError(error.problem, path=path, line=line, field=error.field),
                        (line, found), options, result)  # fmt: skip


def import_logs(
    files: Sequence[str | Path],
    out: str | Path,
    options: Options | None = None,
    *,
    embedder: Embedder | None = None,
    report: bool = False,
    language: Language | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Write the distinct requests of log files to `out`, or a sample of them.

    A request that came n times is one row of weight n, with the first answer. A sample is drawn
    along cluster and time (see `sampling`) from rows that were embedded: all, or 2,000 and three
    for each row of the sample, themselves drawn along time. embedder: for a sample or a report.

    Raises DataError (see `read_entries`; also where nothing is left), ConfigError (a setting that
    does not fit) and OSError (`out` cannot be written).
    """
    options = options or Options()
    if embedder is None and (report or options.sample is not None):
        raise ConfigError("a sample or a report needs a bundle to embed with: give --router mf")
    progress = progress or (lambda stage, done, total: None)
    result = Imported()
    out = Path(out)
    with tempfile.TemporaryFile(dir=out.parent, prefix=f".{out.name}-") as file:
        spool = _Spool(file)
        for row in read_entries(files, options, result):
            result.masked += spool.add(row, options.mask)
            if result.entries % 1000 == 0:
                progress("reading", result.entries, None)
        if not len(spool):
            raise DataError(_nothing(result, files))
        result.distinct, result.requests = len(spool), float(sum(spool.weights))
        if embedder is None:
            result.written = write_logs_raw(spool.all(), out)
            return result
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
            result.written = write_logs_raw(spool.all(), out)
            return result
        sampled = _sampled(rows, assign(embeddings, centers), weights, options)
        result.written = write_logs(sampled, out)
        return result


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
        times.append(_seconds(row))
    if not tally.rows:
        raise DataError(_nothing(result, files))
    order = np.argsort(np.frombuffer(times), kind="stable")
    chosen = draw(weights, DESCRIBED, seed=options.seed, order=order)
    wanted = dict(zip(chosen.rows.tolist(), chosen.weights.tolist(), strict=True))
    again = replace(options, rejects=None)
    rows = [
        _masked(replace(row, weight=wanted[i]))[0] if options.mask else
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


class _Spool:
    """Distinct requests in a file, and what has to be known of each without reading it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._starts = array("Q")
        self._end = 0
        self._times = array("d")
        self._requests = Seen()
        self._ids = Seen()

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Of each request, how often it came: float64[n]."""
        return np.array(self._requests.weights)

    def add(self, row: LogRow, mask: bool) -> bool:
        """Count a row, and keep it where it is new; whether something in it was masked then."""
        changed = False
        if mask:
            row, changed = _masked(row)
        key = digest(row.messages)
        if not self._requests.add(key, row.weight):
            return False
        if not self._ids.add(digest([{"id": row.id}])):
            row = replace(row, id=f"{row.id}-{key.hex()[:12]}")
        self._starts.append(self._end)
        self._times.append(_seconds(row))
        self._end += self._file.write(_line(row))
        return changed

    def by_time(self) -> npt.NDArray[np.int64]:
        """The rows by time, those without one last: int64[n]."""
        return np.argsort(np.frombuffer(self._times), kind="stable")

    def all(self) -> Iterator[str]:
        """The JSON of every row, with its weight."""
        self._file.seek(0)
        for line, weight in zip(self._file, self._requests.weights, strict=True):
            yield _weighed(line, weight)

    def some(self, sample: Sample) -> Iterator[LogRow]:
        """The rows of a sample, with its weights."""
        for i, weight in zip(sample.rows.tolist(), sample.weights.tolist(), strict=True):
            self._file.seek(self._starts[i])
            yield row_of(json.loads(_weighed(self._file.readline(), weight)))


def write_logs_raw(lines: Iterable[str], out: Path) -> int:
    """Write lines of JSON to a file, whole or not at all; how many."""
    part = Path(f"{out}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            count = sum(bool(file.write(f"{line}\n")) for line in lines)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return count


def _line(row: LogRow) -> bytes:
    """A row as it waits for its weight."""
    return json.dumps(replace(row, weight=1.0).to_dict()).encode() + b"\n"


def _weighed(line: bytes, weight: float) -> str:
    record = json.loads(line)
    if weight != 1.0:
        record["weight"] = weight
    return json.dumps(record, ensure_ascii=False)


def _sampled(
    rows: Sequence[LogRow],
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    options: Options,
) -> Iterator[LogRow]:
    times = np.array([_seconds(row) for row in rows])
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


def _masked(row: LogRow) -> tuple[LogRow, bool]:
    """A row without personal data and keys, and whether there were any.

    Names of sessions and tenants become hashes where they hold some: they still tell who is who.
    """
    messages = tuple(personal.masked(list(row.messages)))
    answer = None if row.answer is None else personal.mask(row.answer)
    names = {n: getattr(row, n) for n in ("session", "tenant", "task", "id")}
    hidden: dict[str, Any] = {
        name: f"masked-{digest([{name: value}]).hex()[:12]}"
        for name, value in names.items()
        if personal.mask(value) != value
    }
    found = replace(row, messages=messages, prompt=render(messages), answer=answer, **hidden)
    return found, found != row


def _seconds(row: LogRow) -> float:
    """Its time in seconds; NaN, which sorts last, where it has none."""
    return float("nan") if row.time is None else moment(row.time).timestamp()


def _reject(error: DataError, found: Found, options: Options, result: Imported) -> None:
    if options.on_bad == "stop":
        raise error
    result.bad += 1
    result.problem = result.problem or str(error)
    if options.rejects is None:
        return
    entry = None if isinstance(found[1], DataError) else found[1]
    told = {"path": error.path, "line": error.line, "field": error.field, "problem": error.problem}
    try:
        with options.rejects.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**told, "row": entry}, default=repr) + "\n")
    except OSError as problem:
        raise DataError(
            f"the rejects file cannot be written ({problem})", path=options.rejects
        ) from problem


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

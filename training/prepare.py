"""From a request to the prompts that are trained on: read, decontaminated, weighted."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.readers import read_rows
from ..data.schema import Row
from ..data.sketch import sketch
from ..data.sources import SOURCES, is_evaluation_file
from ..data.split import decontaminate, dedupe
from ..data.tables import ComparisonTable, PairTable, both_tables
from ..errors import TrainingError
from ..router.scorer import Scorer
from .embed import embed
from .progress import Progress
from .request import TrainRequest


@dataclass(frozen=True)
class Prepared:
    """What is trained on: the pair's table and all comparisons, of the same prompts in the same
    order, and what the card says of where they come from."""

    pairs: PairTable
    comparisons: ComparisonTable
    facts: dict[str, Any]


def prepare(request: TrainRequest, scorer: Scorer, say: Progress) -> Prepared:
    """Read the request's data and drop what must not be trained on.

    scorer: whose embeddings tell near-duplicates. Raises DataError, TrainingError.
    """
    if request.rejects is not None:
        # Readers append, since a run reads several files; what an earlier run left is not ours.
        request.rejects.unlink(missing_ok=True)
    counts: dict[str, Any] = {}
    # Read once: a stream from a hub or a log of many gigabytes is not read again.
    pairs, comparisons = both_tables(request_rows(request, counts), request.strong, request.weak)
    say.note(f"{pairs.n:,} prompts of {len(set(pairs.source))} sources; {pairs.usage}")
    dropped: dict[str, Any] = {}
    if request.against:
        with say.bar("embedding evaluation prompts") as update:
            clean = decontaminate(
                pairs.prompts,
                pairs.source,
                request.against,
                embed=lambda texts: embed(scorer, texts, progress=update),
            )
        dropped = {
            source: {
                "prompts": total,
                "dropped": clean.dropped[source],
                "rules": {
                    f"{name} ({rule})": count
                    for (of, name, rule), count in clean.counts.items()
                    if of == source
                },
            }
            for source, total in sorted(clean.totals.items())
        }
        say.note(f"decontaminated: {int((~clean.keep).sum()):,} of {pairs.n:,} prompts dropped")
        pairs, comparisons = pairs.subset(clean.keep), comparisons.subset(clean.keep)
    duplicates: dict[str, int] = {}
    if request.dedupe:
        with say.bar("embedding prompts") as update:
            vectors = embed(scorer, pairs.prompts, progress=update)
        repeated = dedupe(pairs.prompts, embeddings=vectors)
        duplicates = dict(repeated.dropped)
        say.note(f"near-duplicates: {int((~repeated.keep).sum()):,} of {pairs.n:,} prompts dropped")
        pairs, comparisons = pairs.subset(repeated.keep), comparisons.subset(repeated.keep)
    pairs = _reweighted(pairs, request.source_weights)
    # A source of weight 0 is left out: its prompts must not validate either.
    pairs, comparisons = pairs.subset(pairs.weight > 0), comparisons.subset(pairs.weight > 0)
    facts = {
        "kind": request.kind,
        "encoder": request.encoder_name,
        "strong": list(request.strong),
        "weak": list(request.weak),
        "seed": request.seed,
        "data": counts,
        "dropped": dropped,
        "duplicates": duplicates,
        "sources": dict(sorted(Counter(pairs.source).items())),
        "sketch": " ".join(sketch(pairs.prompts)),
        "source_weights": request.source_weights,
        "weights": _mean_weights(pairs),
        "weak_fails": request.weak_fails,
        "command": request.command,
    }
    return Prepared(pairs, comparisons, facts)


def request_rows(request: TrainRequest, counts: dict[str, Any]) -> Iterable[Row]:
    """The rows of all `data`: names of `data.sources`, or files and datasets.

    counts: filled, by name, with the rows that were read and skipped.
    """
    for name in request.data:
        if name in SOURCES and not Path(name).exists():
            source = SOURCES[name]
            rows = 0
            for row in source.rows(for_training=True, own_logs=request.own_logs):
                rows += 1
                yield row
            counts[name] = {"rows": rows, "skipped": 0, "licence": source.licence}
            continue
        if is_evaluation_file(name):
            SOURCES[Path(name).stem].check_training(own_logs=request.own_logs)
        on_bad: Literal["stop", "skip"] = "skip" if request.skip_bad else "stop"
        reader = read_rows(name, on_bad=on_bad, rejects=request.rejects)
        yield from reader
        counts[Path(name).name] = {"rows": reader.rows, "skipped": reader.skipped}


def _reweighted(table: PairTable, factors: dict[str, float]) -> PairTable:
    bad = {source: factor for source, factor in factors.items() if not 0 <= factor < float("inf")}
    if bad:
        raise TrainingError(f"source weights {bad}: expected finite numbers of 0 or more")
    unknown = sorted(set(factors) - set(table.source))
    if unknown:
        raise TrainingError(
            f"no prompt has source {unknown[0]!r}; sources: {', '.join(sorted(set(table.source)))}"
        )
    factor = np.array([factors.get(source, 1.0) for source in table.source])
    return dataclasses.replace(table, weight=table.weight * factor)


def _mean_weights(table: PairTable) -> dict[str, float]:
    """What a prompt of each source weighs on average: the rows' weights times the factors."""
    sources, at = np.unique(table.source, return_inverse=True)
    means = np.bincount(at, table.weight) / np.bincount(at)
    return {str(source): round(float(mean), 4) for source, mean in zip(sources, means, strict=True)}

"""What a run starts from: a bundle or encoder, and the prompts: read, decontaminated, weighted."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.readers import read_rows
from ..data.schema import PromptScore, Row
from ..data.sketch import sketch
from ..data.sources import SOURCES, is_evaluation_file
from ..data.split import decontaminate, dedupe, prompt_key, split_by_hash
from ..data.tables import ComparisonTable, PairTable, both_tables
from ..errors import ConfigError, TrainingError, require_extra
from ..router.routers import BundleRouter, load_router
from ..router.scorer import Scorer
from .embed import embed
from .export import read_base
from .models.head import Base
from .progress import Progress
from .settings import MAX_TOKENS, TrainSettings

MIN_PROMPTS = 40


@dataclass(frozen=True)
class Start:
    """What is built on: a bundle with a representation, and a head that is known, if any.

    fp32: the graph before quantization, where it is at hand.
    """

    scorer: Scorer
    base: Base | None
    fp32: Path | None
    name: str


@dataclass(frozen=True)
class Prepared:
    """What is trained on: the pair's table and all comparisons, of the same prompts in the same
    order, and what the card says of where they come from."""

    pairs: PairTable
    comparisons: ComparisonTable
    facts: dict[str, Any]

    def subset(self, keep: Any) -> "Prepared":
        """Those of the prompts where `keep` bool[n] is true."""
        return Prepared(self.pairs.subset(keep), self.comparisons.subset(keep), self.facts)


def start_of(settings: TrainSettings) -> Start:
    """The bare encoder, or the bundle that is started from. Raises TrainingError, ConfigError."""
    if settings.encoder is not None and settings.kind == "fast":
        raise TrainingError("fast starts from a bundle of its kind; it takes no --encoder")
    if settings.encoder is not None or settings.kind == "bert":
        require_extra("torch", "train")
        from .encoder import encoder_bundle

        name = settings.encoder_name
        encoder, fp32 = encoder_bundle(name, max_tokens=settings.max_tokens)
        return Start(Scorer.load(encoder), None, fp32, name)
    name = settings.base or settings.kind
    router = load_router(name)
    if not isinstance(router, BundleRouter):
        raise ConfigError(f"--base {name!r} is no bundle")
    bundle = router.scorer.bundle
    if not bundle.manifest.width:
        raise TrainingError(
            f"--base {name}: this bundle gives no representation to fit on (bundles of format 1 "
            "and fine-tuned ones do not); start from another, or give --encoder"
        )
    base = read_base(bundle)
    if settings.max_tokens not in (MAX_TOKENS, bundle.manifest.max_tokens):
        raise TrainingError(
            f"--max-tokens {settings.max_tokens}: a router that starts from {name} reads "
            f"{bundle.manifest.max_tokens} tokens as that does; give --encoder to start anew"
        )
    return Start(router.scorer, base, None, name)


def prepare(settings: TrainSettings, scorer: Scorer, say: Progress) -> Prepared:
    """Read the data and drop what must not be trained on.

    scorer: whose embeddings tell near-duplicates. Raises DataError, TrainingError.
    """
    if settings.rejects is not None:
        # Readers append, since a run reads several files; what an earlier run left is not ours.
        settings.rejects.unlink(missing_ok=True)
    counts: dict[str, Any] = {}
    # Read once: a stream from a hub or a log of many gigabytes is not read again.
    rows = read_data(settings, counts)
    found = Prepared(*both_tables(rows, settings.strong, settings.weak), {})
    pairs = found.pairs
    say.note(f"{pairs.n:,} prompts of {len(set(pairs.source))} sources; {pairs.usage}")
    dropped: dict[str, Any] = {}
    duplicates: dict[str, int] = {}
    if settings.against:
        with say.bar("embedding evaluation prompts") as update:
            clean = decontaminate(
                pairs.prompts,
                pairs.source,
                settings.against,
                embed=lambda texts: embed(scorer, texts, progress=update),
            )
        for source, total in sorted(clean.totals.items()):
            rules = {f"{n} ({r})": c for (of, n, r), c in clean.counts.items() if of == source}
            dropped[source] = {"prompts": total, "dropped": clean.dropped[source], "rules": rules}
        say.note(f"decontaminated: {int((~clean.keep).sum()):,} of {pairs.n:,} prompts dropped")
        found = found.subset(clean.keep)
    if settings.dedupe:
        pairs = found.pairs
        with say.bar("embedding prompts") as update:
            vectors = embed(scorer, pairs.prompts, progress=update)
        repeated = dedupe(pairs.prompts, embeddings=vectors)
        duplicates = dict(repeated.dropped)
        say.note(f"near-duplicates: {int((~repeated.keep).sum()):,} of {pairs.n:,} prompts dropped")
        found = found.subset(repeated.keep)
    found = dataclasses.replace(found, pairs=_reweighted(found.pairs, settings.source_weights))
    # A source of weight 0 is left out: its prompts must not validate either.
    found = found.subset(found.pairs.weight > 0)
    facts = {
        **{name: getattr(settings, name) for name in (
            "kind", "seed", "source_weights", "weak_fails", "command"
        )},
        "encoder": settings.encoder_name,
        "strong": list(settings.strong),
        "weak": list(settings.weak),
        "data": counts,
        "dropped": dropped,
        "duplicates": duplicates,
        "sources": dict(sorted(Counter(found.pairs.source).items())),
        "sketch": " ".join(sketch(found.pairs.prompts)),
        "weights": _mean_weights(found.pairs),
    }  # fmt: skip
    return dataclasses.replace(found, facts=facts)


def read_data(settings: TrainSettings, counts: dict[str, Any]) -> Iterable[Row]:
    """The rows of all `data`: names of `data.sources`, or files and datasets.

    counts: filled, by name, with the rows that were read and skipped.
    """
    for name in settings.data:
        if name in SOURCES and not Path(name).exists():
            source = SOURCES[name]
            rows = 0
            for row in source.rows(for_training=True, own_logs=settings.own_logs):
                rows += 1
                yield row
            counts[name] = {"rows": rows, "skipped": 0, "licence": source.licence}
            continue
        if is_evaluation_file(name):
            SOURCES[Path(name).stem].check_training(own_logs=settings.own_logs)
        reader = read_rows(
            name, on_bad="skip" if settings.skip_bad else "stop", rejects=settings.rejects
        )
        yield from _assumed(settings, reader) if settings.assume_strong else reader
        counts[Path(name).name] = {"rows": reader.rows, "skipped": reader.skipped}


def _assumed(settings: TrainSettings, rows: Iterable[Row]) -> Iterable[Row]:
    """The weak model's rows, each with one of the strong model, which is right."""
    for row in rows:
        yield row
        if isinstance(row, PromptScore) and row.model in settings.weak:
            right: dict[str, Any] = {"model": settings.strong[0], "score": 1.0}
            yield dataclasses.replace(row, **right, output_tokens=None, cost_usd=None)


def split_tables(settings: TrainSettings, pairs: PairTable) -> tuple[PairTable, PairTable]:
    """Training and validation part, by the hash of the prompt. Raises TrainingError."""
    # A key of its own: who held out a part by the same hash and seed would leave none to validate.
    part = split_by_hash(
        pairs.prompts,
        (1 - settings.validation, settings.validation),
        seed=settings.seed,
        key=lambda prompt: f"validation {prompt_key(prompt)}",
    )
    tables = (pairs.subset(part == 0), pairs.subset(part == 1))
    if tables[1].n < 10:
        raise _too_few(f"{pairs.n} prompts ({tables[1].n} for validation)")
    for name, table in zip(("training", "validation"), tables, strict=True):
        check_labels(table, name, least=0)
    return tables


def check_labels(table: PairTable, name: str = "training", least: int = MIN_PROMPTS) -> None:
    """Raise TrainingError where the labels are too few, or all of one class."""
    if table.n < least:
        raise _too_few(f"{table.n} prompts")
    share = float(np.average(table.win, weights=table.weight))
    if share in (0.0, 1.0):
        always = "always wins" if share else "never wins (ties count for weak)"
        raise TrainingError(
            f"the labels have one class only: on all {table.n} {name} prompts strong {always}; "
            "there is nothing to route"
        )


def _too_few(what: str) -> TrainingError:
    return TrainingError(
        f"{what} are too few to train on: at least {MIN_PROMPTS} are needed, and about 1,500 make "
        "a good router"
    )


def _reweighted(table: PairTable, factors: dict[str, float]) -> PairTable:
    bad = {source: factor for source, factor in factors.items() if not 0 <= factor < float("inf")}
    if bad:
        raise TrainingError(f"source weights {bad}: expected finite numbers of 0 or more")
    known = set(table.source)
    if unknown := sorted(set(factors) - known):
        raise TrainingError(
            f"no prompt has source {unknown[0]!r}; sources: {', '.join(sorted(known))}"
        )
    factor = np.array([factors.get(source, 1.0) for source in table.source])
    return dataclasses.replace(table, weight=table.weight * factor)


def _mean_weights(table: PairTable) -> dict[str, float]:
    """What a prompt of each source weighs on average: the rows' weights times the factors."""
    sources, at = np.unique(table.source, return_inverse=True)
    means = np.bincount(at, table.weight) / np.bincount(at)
    return {str(source): round(float(mean), 4) for source, mean in zip(sources, means, strict=True)}

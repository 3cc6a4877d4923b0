"""`thriftroute train`: from files of preference data to a verified bundle."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..data.readers import read_rows
from ..data.schema import Row
from ..data.sources import SOURCES, is_evaluation_file
from ..data.split import decontaminate, dedupe, prompt_key, split_by_hash
from ..data.tables import ComparisonTable, PairTable, both_tables
from ..router.bundle import Bundle
from ..router.errors import TrainingError
from ..router.scorer import Scorer
from ..router.text import as_conversation, encode, special_tokens
from .bert import BertModel, BertSettings, BertTask, pad
from .embed import embed
from .encoder import LoadedEncoder, encoder_bundle, load_encoder, torch_probe
from .export import export_module, graft_head, quantize
from .finish import Exported, finish, occupied
from .loop import History, fit
from .mf import MFSettings, MFTask
from .progress import Progress
from .request import KINDS, TrainRequest, TrainResult

__all__ = ["KINDS", "TrainRequest", "TrainResult", "train"]

MIN_PROMPTS = 40
TORCH_PROMPTS = 16


def train(request: TrainRequest, progress: Progress | None = None) -> TrainResult:
    """Train, calibrate, export, check and write a bundle to `request.out`.

    State of an unfinished run is kept beside it in `<out>.run` and removed at the end. Raises
    DataError, TrainingError (among them TrainingInterruptedError and ExportError), BundleError.
    """
    say = progress or Progress()
    if request.kind not in KINDS:
        raise TrainingError(f"kind {request.kind!r}: expected one of {', '.join(KINDS)}")
    if request.out.exists() and not request.out.is_dir():
        raise TrainingError(f"{request.out} is a file; --out is a folder to write the bundle to")
    if occupied(request.out) and not request.overwrite:
        raise TrainingError(f"{request.out} exists already; give --overwrite or another --out")
    if not 0 <= request.weak_fails <= 1:
        raise TrainingError(f"weak_fails {request.weak_fails}: expected a share from 0 to 1")
    for tier, models in (("strong", request.strong), ("weak", request.weak)):
        taken = {*request.strong, *request.weak} & {"strong", "weak"}
        if len(models) > 1 and taken:
            raise TrainingError(
                f"{min(taken)!r} is the name of a tier of several models ({tier}), and of a model; "
                "rename the model in the data"
            )
    if not 0 < request.validation < 0.9:
        raise TrainingError(f"validation share {request.validation}: expected between 0 and 0.9")
    encoder, fp32 = encoder_bundle(request.encoder, max_tokens=request.max_tokens)
    scorer = Scorer.load(encoder)
    if request.rejects is not None:
        # Readers append, since a run reads several files; what an earlier run left is not ours.
        request.rejects.unlink(missing_ok=True)
    counts: dict[str, Any] = {}
    # Read once: a stream from a hub or a log of many gigabytes is not read again.
    pairs, comparisons = both_tables(_rows(request, counts), request.strong, request.weak)
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
    # A key of its own: who held out a part by the same hash and seed would leave none to validate.
    part = split_by_hash(
        pairs.prompts,
        (1 - request.validation, request.validation),
        seed=request.seed,
        key=lambda prompt: f"validation {prompt_key(prompt)}",
    )
    split = tuple(np.flatnonzero(part == i) for i in (0, 1))
    tables = (pairs.subset(split[0]), pairs.subset(split[1]))
    _check_labels(tables)
    base = {
        "kind": request.kind,
        "encoder": request.encoder,
        "strong": list(request.strong),
        "weak": list(request.weak),
        "seed": request.seed,
        "data": counts,
        "dropped": dropped,
        "duplicates": duplicates,
        "sources": dict(sorted(Counter(pairs.source).items())),
        "source_weights": request.source_weights,
        "weights": _mean_weights(pairs),
        "weak_fails": request.weak_fails,
        "prompts": {"train": tables[0].n, "validation": tables[1].n},
        "command": request.command,
    }
    work = request.out.with_name(request.out.name + ".run")
    if request.kind == "mf":
        result = _train_mf(request, base, tables, comparisons, split, scorer, fp32, work, say)
    else:
        result = _train_bert(request, base, tables, scorer, work, say)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _train_mf(
    request: TrainRequest,
    base: dict[str, Any],
    tables: tuple[PairTable, PairTable],
    comparisons: ComparisonTable,
    split: Sequence[npt.NDArray[np.int64]],
    scorer: Scorer,
    fp32: Path,
    work: Path,
    say: Progress,
) -> TrainResult:
    settings = request.settings or MFSettings()
    assert isinstance(settings, MFSettings)
    share = request.weak_fails
    label = (1 - share) * comparisons.win + share * (1 - comparisons.weak_score)
    comparisons = dataclasses.replace(comparisons, win=label.astype(np.float32))
    parts = [_weighed(comparisons.subset(i), t) for t, i in zip(tables, split, strict=True)]
    with say.bar("embedding prompts") as update:
        embeddings = embed(scorer, comparisons.inputs(), progress=update)
    vectors = (embeddings[split[0]], embeddings[split[1]])
    task = MFTask(parts[0], parts[1], vectors, settings, request.seed)
    threads = torch.get_num_threads()
    # The products are tiny: threads would wait for each other, and their number change the sums.
    torch.set_num_threads(1)
    try:
        history = _fit(request, base, settings, tables, scorer.bundle, task, work, say)
    finally:
        torch.set_num_threads(threads)
    task.model.eval()
    w1, b1, u = task.model.factors()  # type: ignore[operator]
    models, u, pair = _with_tiers(comparisons.models, u, request)

    say.note("exporting")
    encoder = scorer.bundle
    ids, reference = torch_probe(fp32)
    strong, weak = (models.index(name) for name in pair)
    quality = (vectors[1] @ w1.T + b1) @ u.T
    exported = Exported(
        model=graft_head(encoder.file("model.onnx").read_bytes(), w1, b1, u),
        whole=graft_head(fp32.read_bytes(), w1, b1, u),
        models=models,
        pair=pair,
        tokenizer=encoder.file("tokenizer.json").read_bytes(),
        dim=encoder.manifest.dim,
        specials=(list(encoder.manifest.prefix_ids), list(encoder.manifest.suffix_ids)),
        torch_ids=ids,
        torch_outputs=((reference @ w1.T + b1) @ u.T, reference),
        margin=(quality[:, strong] - quality[:, weak]).astype(np.float64),
    )
    return finish(request, base, tables, history, settings, exported, say)


def _train_bert(
    request: TrainRequest,
    base: dict[str, Any],
    tables: tuple[PairTable, PairTable],
    scorer: Scorer,
    work: Path,
    say: Progress,
) -> TrainResult:
    settings = request.settings or BertSettings()
    assert isinstance(settings, BertSettings)
    loaded = load_encoder(request.encoder)
    torch.manual_seed(request.seed)
    module = BertModel(loaded.module, loaded.dim)
    short = min(settings.train_tokens, request.max_tokens)
    ids = tuple(_token_ids(loaded, table, short) for table in tables)
    share = request.weak_fails
    labelled = tuple(
        dataclasses.replace(t, win=(1 - share) * t.win + share * (1 - t.weak)) for t in tables
    )
    task = BertTask(module, (ids[0], ids[1]), (labelled[0], labelled[1]), settings, request.seed)
    history = _fit(request, base, settings, tables, scorer.bundle, task, work, say)
    module.eval()

    say.note("exporting")
    whole = work / "fp32.onnx"
    export_module(module, whole, outputs=["quality", "embedding"])
    sample = [scorer.token_ids(p) for p in tables[1].inputs()[:TORCH_PROMPTS]]
    with torch.no_grad():
        outputs = [[output.numpy() for output in module(*pad([row]))] for row in sample]
    models = _tier_names(request)
    exported = Exported(
        model=quantize(whole),
        whole=whole,
        models=models,
        pair=models,
        tokenizer=loaded.tokenizer.to_str().encode(),
        dim=loaded.dim,
        specials=special_tokens(loaded.tokenizer),
        torch_ids=sample,
        torch_outputs=(
            np.concatenate([row[0] for row in outputs]),
            np.concatenate([row[1] for row in outputs]),
        ),
    )
    return finish(request, base, tables, history, settings, exported, say)


def _rows(request: TrainRequest, counts: dict[str, Any]) -> Iterable[Row]:
    """The rows of all `data`: names of `data.sources`, or files and datasets."""
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


def _weighed(comparisons: ComparisonTable, pairs: PairTable) -> ComparisonTable:
    """Comparisons that weigh, prompt by prompt, what the prompt weighs in the pair's table.

    However many models were asked: the pairs of a tier are far from independent, and sources with
    many models would drown the others.
    """
    total = np.bincount(comparisons.prompt_index, comparisons.weight, comparisons.n)
    weight = (pairs.weight / total)[comparisons.prompt_index] * comparisons.weight
    return dataclasses.replace(comparisons, weight=weight.astype(np.float32))


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


def _check_labels(tables: tuple[PairTable, PairTable]) -> None:
    total = tables[0].n + tables[1].n
    if total < MIN_PROMPTS or tables[1].n < 10:
        raise TrainingError(
            f"{total} prompts ({tables[1].n} for validation) are too few to train on: at least "
            f"{MIN_PROMPTS} are needed, and about 1,500 make a good router"
        )
    for name, table in zip(("training", "validation"), tables, strict=True):
        share = float(np.average(table.win, weights=table.weight))
        if share in (0.0, 1.0):
            always = "always wins" if share else "never wins (ties count for weak)"
            raise TrainingError(
                f"the labels have one class only: on all {table.n} {name} prompts strong {always}; "
                "there is nothing to route"
            )


def _fit(
    request: TrainRequest,
    base: dict[str, Any],
    settings: MFSettings | BertSettings,
    tables: tuple[PairTable, PairTable],
    encoder: Bundle,
    task: MFTask | BertTask,
    work: Path,
    say: Progress,
) -> History:
    identity = {
        **base,
        "settings": dataclasses.asdict(settings),
        "max_tokens": request.max_tokens,
        "encoder": encoder.model_sha256,
        "tables": [_digest(table) for table in tables],
    }
    identity.pop("command")
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    with say.training(request.kind, settings.epochs) as report:
        return fit(
            task,
            epochs=settings.epochs,
            patience=settings.patience,
            seed=request.seed,
            folder=work,
            fingerprint=fingerprint,
            report=report,
        )


def _digest(table: PairTable) -> str:
    """Hash of prompts and labels: the same number of rows need not be the same data."""
    digest = hashlib.sha256(json.dumps(table.inputs()).encode())
    for column in (table.win, table.weak, table.weight):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _tier_names(request: TrainRequest) -> list[str]:
    """Names of the two tiers: the model's own where a tier is one model."""
    return [
        models[0] if len(models) == 1 else tier
        for tier, models in (("strong", request.strong), ("weak", request.weak))
    ]


def _with_tiers(
    models: tuple[str, ...], u: npt.NDArray[np.float32], request: TrainRequest
) -> tuple[list[str], npt.NDArray[np.float32], list[str]]:
    """Add a row for each tier of several models: the mean of its models' vectors."""
    names, rows, pair = list(models), [u], _tier_names(request)
    for name, tier in zip(pair, (request.strong, request.weak), strict=True):
        if name not in names:
            names.append(name)
            rows.append(u[[models.index(m) for m in tier if m in models]].mean(0, keepdims=True))
    return names, np.concatenate(rows), pair


def _token_ids(loaded: LoadedEncoder, table: PairTable, max_tokens: int) -> list[list[int]]:
    prefix, suffix = special_tokens(loaded.tokenizer)
    return [
        encode(
            as_conversation(prompt),
            loaded.tokenizer,
            max_tokens=max_tokens,
            prefix=prefix,
            suffix=suffix,
        )
        for prompt in table.inputs()
    ]

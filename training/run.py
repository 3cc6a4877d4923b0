"""`thriftroute train`: from files of preference data to a verified bundle."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..data.readers import read_rows
from ..data.schema import Row
from ..data.sources import SOURCES, is_evaluation_file
from ..data.split import decontaminate, split_by_hash
from ..data.tables import ComparisonTable, PairTable, both_tables
from ..eval import metrics
from ..eval.probability import calibrate_scores
from ..router.bundle import Bundle, write_bundle
from ..router.errors import CalibrationError, EvaluationError, TrainingError
from ..router.scorer import Scorer
from ..router.text import Promptlike, encode, special_tokens
from ..router.threshold import ThresholdTable, apply_calibration
from .bert import BertModel, BertSettings, BertTask, pad
from .card import render_card
from .embed import embed
from .encoder import DEFAULT_ENCODER, MAX_TOKENS, LoadedEncoder, encoder_bundle, load_encoder
from .export import Parity, export_module, graft_head, quantize, run_graph
from .loop import History, fit
from .mf import MFSettings, MFTask
from .progress import Progress

KINDS = ("mf", "bert")
MIN_PROMPTS = 40
PARITY_PROMPTS = 200
TORCH_PROMPTS = 16

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what. `strong` and `weak` are models, or tiers of several.

    against: evaluation prompts by name; training prompts that match one are dropped.
    weak_fails: share, in [0, 1], of the label "the weak answer falls short" (1 - its score) beside
        "strong wins". Where strong often fails too, as on hard problems, "strong wins" teaches that
        hard prompts need it less, which is wrong for ordinary traffic. Scores are calibrated to
        "strong wins" either way.
    source_weights: factor on the weight of a source's prompts (default 1).
    own_logs: allow evaluation-only data as training data, for the own-logs protocol.
    notes: lines for the card (what is known of the data, limits).
    """

    kind: str
    data: Sequence[str]
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    out: Path
    seed: int = 0
    encoder: str = DEFAULT_ENCODER
    max_tokens: int = MAX_TOKENS
    validation: float = 0.1
    settings: MFSettings | BertSettings | None = None
    against: dict[str, list[str]] = field(default_factory=dict)
    source_weights: dict[str, float] = field(default_factory=dict)
    weak_fails: float = 0.0
    own_logs: bool = False
    skip_bad: bool = False
    rejects: Path | None = None
    overwrite: bool = False
    command: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainResult:
    """The bundle and its summary, which also stands in its manifest and card."""

    bundle: Bundle
    summary: dict[str, Any]


def train(request: TrainRequest, progress: Progress | None = None) -> TrainResult:
    """Train, calibrate, export, check and write a bundle to `request.out`.

    State of an unfinished run is kept beside it in `<out>.run` and removed at the end. Raises
    DataError, TrainingError (among them TrainingInterruptedError and ExportError), BundleError.
    """
    say = progress or Progress()
    if request.kind not in KINDS:
        raise TrainingError(f"kind {request.kind!r}: expected one of {', '.join(KINDS)}")
    if request.out.exists() and not request.overwrite and any(request.out.iterdir()):
        raise TrainingError(f"{request.out} exists already; give --overwrite or another --out")
    if not 0 <= request.weak_fails <= 1:
        raise TrainingError(f"weak_fails {request.weak_fails}: expected a share from 0 to 1")
    if not 0 < request.validation < 0.9:
        raise TrainingError(f"validation share {request.validation}: expected between 0 and 0.9")
    encoder, fp32 = encoder_bundle(request.encoder, max_tokens=request.max_tokens)
    scorer = Scorer.load(encoder)
    counts: dict[str, Any] = {}
    # Read once: a stream from a hub or a log of many gigabytes is not read again.
    pairs, comparisons = both_tables(_rows(request, counts), request.strong, request.weak)
    say.note(f"{pairs.n:,} prompts of {len(set(pairs.source))} sources; {pairs.usage}")

    embeddings = None
    if request.kind == "mf" or request.against:
        with say.bar("embedding prompts") as update:
            embeddings = embed(scorer, pairs.inputs(), progress=update)
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
        embeddings = None if embeddings is None else embeddings[clean.keep]
    pairs = _reweighted(pairs, request.source_weights)
    part = split_by_hash(
        pairs.prompts, (1 - request.validation, request.validation), seed=request.seed
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
        "sources": dict(sorted(Counter(pairs.source).items())),
        "source_weights": request.source_weights,
        "weak_fails": request.weak_fails,
        "prompts": {"train": tables[0].n, "validation": tables[1].n},
        "command": request.command,
    }
    work = request.out.with_name(request.out.name + ".run")
    if request.kind == "mf":
        assert embeddings is not None
        result = _train_mf(
            request, base, tables, comparisons, embeddings, split, encoder, fp32, work, say
        )
    else:
        result = _train_bert(request, base, tables, scorer, work, say)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _train_mf(
    request: TrainRequest,
    base: dict[str, Any],
    tables: tuple[PairTable, PairTable],
    comparisons: ComparisonTable,
    embeddings: npt.NDArray[np.float32],
    split: Sequence[npt.NDArray[np.int64]],
    encoder: Bundle,
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
    vectors = (embeddings[split[0]], embeddings[split[1]])
    task = MFTask(parts[0], parts[1], vectors, settings, request.seed)
    history = _fit(request, base, settings, task, work, say)
    task.model.eval()
    w1, b1, u = task.model.factors()  # type: ignore[operator]
    models, u, pair = _with_tiers(comparisons.models, u, request)
    head = (w1, b1, u)

    say.note("exporting")
    model = graft_head(encoder.file("model.onnx").read_bytes(), *head)
    whole = graft_head(fp32.read_bytes(), *head)
    scorer = Scorer.load(encoder)
    sample = [scorer.token_ids(p) for p in tables[1].inputs()[:PARITY_PROMPTS]]
    loaded = load_encoder(request.encoder)

    def torch_outputs(ids: list[int]) -> list[npt.NDArray[Any]]:
        with torch.no_grad():
            tokens = torch.tensor([ids])
            e = loaded.module(tokens, torch.ones_like(tokens))
            q = (e @ torch.tensor(w1).T + torch.tensor(b1)) @ torch.tensor(u).T
        return [q.numpy(), e.numpy()]

    return _finish(
        request, base, tables, history, settings, model, whole, sample, torch_outputs,
        models, pair, encoder.file("tokenizer.json").read_bytes(), loaded, say,
    )  # fmt: skip


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
    history = _fit(request, base, settings, task, work, say)
    module.eval()

    say.note("exporting")
    sample = [scorer.token_ids(p) for p in tables[1].inputs()[:PARITY_PROMPTS]]
    work.mkdir(parents=True, exist_ok=True)
    whole = work / "fp32.onnx"
    export_module(module, whole, outputs=["quality", "embedding"])

    def torch_outputs(row: list[int]) -> list[npt.NDArray[Any]]:
        with torch.no_grad():
            return [output.numpy() for output in module(*pad([row]))]

    models = _tier_names(request)
    return _finish(
        request, base, tables, history, settings, quantize(whole), whole, sample, torch_outputs,
        models, models, loaded.tokenizer.to_str().encode(), loaded, say,
    )  # fmt: skip


def _finish(
    request: TrainRequest,
    base: dict[str, Any],
    tables: tuple[PairTable, PairTable],
    history: History,
    settings: MFSettings | BertSettings,
    model: bytes,
    whole: bytes | Path,
    sample: list[list[int]],
    torch_outputs: Any,
    models: Sequence[str],
    pair: Sequence[str],
    tokenizer: bytes,
    loaded: LoadedEncoder,
    say: Progress,
) -> TrainResult:
    """Parity, calibration, metrics and card of a trained model; then the bundle is written."""
    at = [list(models).index(name) for name in pair]
    fields: dict[str, Any] = {
        "kind": request.kind,
        "encoder": request.encoder,
        "dim": loaded.dim,
        "models": list(models),
        "strong": pair[0],
        "weak": pair[1],
        "max_tokens": request.max_tokens,
        "calibration": {"method": "platt", "a": 1.0, "b": 0.0},
    }
    fields["prefix_ids"], fields["suffix_ids"] = special_tokens(loaded.tokenizer)
    files: dict[str, bytes | Path] = {
        "model.onnx": model,
        "tokenizer.json": tokenizer,
        "card.md": b"",
    }
    draft = request.out.with_name(request.out.name + ".run") / "bundle"
    scorer = Scorer.load(write_bundle(draft, files=files, overwrite=True, **fields))
    validation = tables[1]
    with say.bar("scoring the validation split") as update:
        done = 0

        def count(k: int) -> None:
            nonlocal done
            done += k
            update(done, validation.n)

        inputs: list[Promptlike] = list(validation.inputs())
        margin = np.array(
            [
                float(e.quality[at[0]] - e.quality[at[1]])
                for e in scorer.encode_all(inputs, progress=count)
            ]
        )
    calibration, probability = _calibrate(margin, validation, request.seed)
    fields["calibration"] = calibration["spec"]

    fp32 = run_graph(whole, sample, ["quality", "embedding"])
    reference = [torch_outputs(row) for row in sample[:TORCH_PROMPTS]]
    distance = max(
        float(np.abs(fp32[i][k] - out[i][0]).max())
        for k, out in enumerate(reference)
        for i in (0, 1)
    )
    parity = _parity(
        margin[: len(sample)],
        fp32[0][:, at[0]] - fp32[0][:, at[1]],
        validation,
        calibration["spec"],
        distance,
    )
    parity.check()
    scores = apply_calibration(margin, calibration["spec"])
    summary = {
        **base,
        "settings": dataclasses.asdict(settings),
        "epochs": history.epoch,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "losses": [round(loss, 5) for loss in history.losses],
        "validation": {**_quality(scores, validation), **probability},
        "parity": dataclasses.asdict(parity),
    }
    name = "validation"
    fields["thresholds"] = {name: ThresholdTable.from_scores(name, scores).to_dict()}
    files["card.md"] = render_card(summary, request.notes).encode()
    bundle = write_bundle(
        request.out, files=files, overwrite=request.overwrite or not _occupied(request.out),
        **fields, training=summary,
    )  # fmt: skip
    return TrainResult(bundle, summary)


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
    unknown = sorted(set(factors) - set(table.source))
    if unknown:
        raise TrainingError(
            f"no prompt has source {unknown[0]!r}; sources: {', '.join(sorted(set(table.source)))}"
        )
    factor = np.array([factors.get(source, 1.0) for source in table.source])
    return dataclasses.replace(table, weight=table.weight * factor)


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
    task: MFTask | BertTask,
    work: Path,
    say: Progress,
) -> History:
    identity = {**base, "settings": dataclasses.asdict(settings), "max_tokens": request.max_tokens}
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
    from ..router.text import as_conversation

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


def _calibrate(
    margin: Floats, table: PairTable, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best of temperature, Platt and isotonic on the validation split, and its figures."""
    # Isotonic has as many parameters as steps: with few labels it fits noise.
    methods = ("temperature", "platt", "isotonic") if table.n >= 1000 else ("temperature", "platt")
    try:
        result = calibrate_scores(margin, table.win, methods=methods, seed=seed)
    except CalibrationError as error:
        raise TrainingError(f"the validation split cannot calibrate the scores: {error}") from error
    if result.brier_after >= result.brier_before:
        # No method helps on held-out folds: the margins stay as they are.
        result = dataclasses.replace(
            result,
            spec={"method": "platt", "a": 1.0, "b": 0.0},
            ece_after=result.ece_before,
            brier_after=result.brier_before,
        )
    found = result.to_dict()
    return found, {
        "ece": found["ece"],
        "brier": found["brier"],
        "calibration": found["spec"]["method"],
    }


def _quality(scores: Floats, table: PairTable) -> dict[str, Any]:
    result: dict[str, Any] = {
        "n": table.n,
        "auc": round(float(metrics.auc(scores, (table.win > 0.5).astype(float))), 4),
        "strong_mean": round(float(table.strong.mean()), 4),
        "weak_mean": round(float(table.weak.mean()), 4),
        "strong_wins": round(float(table.win.mean()), 4),
    }
    lengths = np.array([len(p) for p in table.prompts], dtype=np.float64)
    for name, values in (("apgr", scores), ("apgr_prompt_length", lengths)):
        try:
            result[name] = round(metrics.apgr(values, table.strong, table.weak), 4)
        except EvaluationError:
            result[name] = None  # strong is not better than weak on this split
    return result


def _parity(
    int8: Floats, fp32: Floats, table: PairTable, spec: dict[str, Any], distance: float
) -> Parity:
    n = len(int8)
    a, b = apply_calibration(int8, spec), apply_calibration(fp32.astype(np.float64), spec)
    try:
        strong, weak = table.strong[:n], table.weak[:n]
        apgr = metrics.apgr(a, strong, weak) - metrics.apgr(b, strong, weak)
    except EvaluationError:
        apgr = None
    moved = np.abs(a - b)
    return Parity(n, distance, float(moved.mean()), float(moved.max()), apgr)


def _occupied(path: Path) -> bool:
    return path.exists() and any(path.iterdir())

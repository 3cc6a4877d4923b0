"""`thriftroute train`: from files of preference data to a verified bundle."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data.split import prompt_key, split_by_hash
from ..data.tables import PairTable
from ..errors import ConfigError, TrainingError
from ..router.bundle import Bundle
from ..router.routers import BundleRouter, load_router
from ..router.scorer import Scorer
from ..router.text import as_conversation, encode, special_tokens
from .embed import embed
from .encoder import MAX_TOKENS, LoadedEncoder, encoder_bundle, load_encoder, torch_probe
from .export import export_module, graft_head, quantize, read_head
from .models.bert import BertModel, BertSettings, BertTask, pad
from .models.loop import History, fit
from .models.mf import Base, Head, MFSettings, fit_pair, pair_head, tier_abilities
from .prepare import Prepared, prepare
from .progress import Progress
from .request import KINDS, TrainRequest, TrainResult
from .write_bundle import Check, Evidence, Exported, finish, occupied

__all__ = ["KINDS", "TrainRequest", "TrainResult", "train"]

MIN_PROMPTS = 40
TORCH_PROMPTS = 16
DEFAULT_BASE = "mf"


def train(request: TrainRequest, progress: Progress | None = None) -> TrainResult:
    """Train, calibrate, export, check and write a bundle to `request.out`.

    State of an unfinished run is kept beside it in `<out>.run` and removed at the end. Raises
    DataError, TrainingError (among them TrainingInterruptedError and ExportError), BundleError.
    """
    say = progress or Progress()
    check_request(request)
    work = request.out.with_name(request.out.name + ".run")
    if request.kind == "bert":
        result = _train_bert(request, work, say)
        shutil.rmtree(work, ignore_errors=True)
        return result
    try:
        return _train_mf(request, say)
    finally:
        # There is no state to go on from: the embeddings are in the cache, the rest is quick.
        shutil.rmtree(work, ignore_errors=True)


def check_request(request: TrainRequest) -> None:
    """Raise TrainingError for what can be told to be wrong before anything is read."""
    if request.kind not in KINDS:
        raise TrainingError(f"kind {request.kind!r}: expected one of {', '.join(KINDS)}")
    if request.out.exists() and not request.out.is_dir():
        raise TrainingError(f"{request.out} is a file; --out is a folder to write the bundle to")
    if occupied(request.out) and not request.overwrite:
        raise TrainingError(f"{request.out} exists already; give --overwrite or another --out")
    if not 0 <= request.weak_fails <= 1:
        raise TrainingError(f"weak_fails {request.weak_fails}: expected a share from 0 to 1")
    if request.base is not None and request.encoder is not None:
        raise TrainingError("give a base bundle or an encoder, not both: a bundle has its encoder")
    if request.base is not None and request.kind != "mf":
        raise TrainingError("only mf starts from a bundle; bert starts from an --encoder")
    for tier, models in (("strong", request.strong), ("weak", request.weak)):
        taken = {*request.strong, *request.weak} & {"strong", "weak"}
        if len(models) > 1 and taken:
            raise TrainingError(
                f"{min(taken)!r} is the name of a tier of several models ({tier}), and of a model; "
                "rename the model in the data"
            )
    if not 0 < request.validation < 0.9:
        raise TrainingError(f"validation share {request.validation}: expected between 0 and 0.9")


@dataclasses.dataclass(frozen=True)
class Start:
    """What an mf is built on: a graph with a representation, and a head that is known.

    fp32: the graph before quantization, where it is at hand.
    """

    scorer: Scorer
    base: Base | None
    fp32: Path | None
    name: str


def start_of(request: TrainRequest) -> Start:
    """The base bundle of a request, or its bare encoder. Raises TrainingError, ConfigError."""
    if request.encoder is not None:
        encoder, fp32 = encoder_bundle(request.encoder, max_tokens=request.max_tokens)
        return Start(Scorer.load(encoder), None, fp32, request.encoder)
    name = request.base or DEFAULT_BASE
    router = load_router(name)
    if not isinstance(router, BundleRouter):
        raise ConfigError(f"--base {name!r} is no bundle")
    bundle = router.scorer.bundle
    if not bundle.manifest.width:
        raise TrainingError(
            f"--base {name}: this bundle gives no representation to fit on (bundles of format 1 "
            "and fine-tuned ones do not); start from another, or give --encoder"
        )
    base = bundle_base(bundle)
    if request.max_tokens not in (MAX_TOKENS, bundle.manifest.max_tokens):
        raise TrainingError(
            f"--max-tokens {request.max_tokens}: an mf that starts from {name} reads "
            f"{bundle.manifest.max_tokens} tokens as that does; give --encoder to start anew"
        )
    return Start(router.scorer, base, None, name)


def bundle_base(bundle: Bundle) -> Base:
    """A bundle's head and its own pair. Raises ExportError where it has no mf head."""
    head = read_head(bundle.graph(), bundle.manifest.models)
    return Base(head, bundle.manifest.strong, bundle.manifest.weak)


def _train_mf(request: TrainRequest, say: Progress) -> TrainResult:
    settings = request.settings or MFSettings()
    assert isinstance(settings, MFSettings)
    start = start_of(request)
    scorer = start.scorer
    data = prepare(request, scorer, say)
    table = _labelled(data.pairs, request.weak_fails)
    check_labels(table)
    with say.bar("embedding prompts") as update:
        x = embed(scorer, table.inputs(), progress=update, representation=True)
    say.note("fitting")
    folds = settings.folds
    fold = split_by_hash(table.prompts, (1 / folds,) * folds, seed=request.seed, key=_fold_key)
    found = fit_pair(
        x,
        table.strong - table.weak,
        fold,
        weight=table.weight,
        known=None if start.base is None else start.base(x),
        features=len(scorer.bundle.manifest.features),
        settings=settings,
        seed=request.seed,
    )
    models = tier_names(request)
    abilities = tier_abilities(data.comparisons, (request.strong, request.weak), models)
    head = pair_head(found, abilities, models, start.base)
    base = {
        **data.facts,
        "encoder": scorer.bundle.manifest.encoder,
        "base": start.name,
        "prompts": {"train": table.n, "validation": table.n},
        "validated": f"{folds}-fold cross-validation",
        "fitted_on": found.used,
        "evidence": None if found.fit is None else round(found.fit.evidence, 2),
    }
    exported = mf_export(start, head, models, x[:TORCH_PROMPTS], table.inputs()[:TORCH_PROMPTS])
    evidence = Evidence(data.pairs, found.out_of_fold)
    history = History(fingerprint="")
    return finish(request, base, evidence, history, settings, exported, say)


def _fold_key(prompt: str) -> str:
    # A key of its own: who held out a part by the same hash and seed would leave a fold empty.
    return f"fold {prompt_key(prompt)}"


def _labelled(table: PairTable, weak_fails: float) -> PairTable:
    """The gain that is fitted: strong minus weak, blended with "the weak answer falls short"."""
    if not weak_fails:
        return table
    strong = (1 - weak_fails) * table.strong + weak_fails
    return dataclasses.replace(table, strong=strong)


def mf_export(
    start: Start,
    head: Head,
    pair: Sequence[str],
    x: npt.NDArray[np.float32],
    inputs: Sequence[Any],
) -> Exported:
    """The head on the start's graph, with what numpy says of a few prompts' representations x."""
    bundle = start.scorer.bundle
    manifest = bundle.manifest
    whole = None
    checks = [Check([start.scorer.feeds(p) for p in inputs], head.quality(x), "int8")]
    if start.fp32 is not None:
        whole = graft_head(start.fp32.read_bytes(), head)
        probe = torch_probe(start.fp32)
        checks.append(Check(probe.feeds, head.quality(probe.representations), "fp32"))
    return Exported(
        model=graft_head(bundle.graph(), head),
        whole=whole,
        models=head.models,
        pair=pair,
        tokenizer=bundle.file("tokenizer.json").read_bytes(),
        fields={
            "encoder": manifest.encoder,
            "dim": manifest.dim,
            "max_tokens": manifest.max_tokens,
            "prefix_ids": list(manifest.prefix_ids),
            "suffix_ids": list(manifest.suffix_ids),
            "features": list(manifest.features),
            "width": manifest.width,
        },
        checks=checks,
    )


def _train_bert(request: TrainRequest, work: Path, say: Progress) -> TrainResult:
    settings = request.settings or BertSettings()
    assert isinstance(settings, BertSettings)
    encoder, _ = encoder_bundle(request.encoder_name, max_tokens=request.max_tokens)
    scorer = Scorer.load(encoder)
    data = prepare(request, scorer, say)
    tables = split_tables(request, data)
    loaded = load_encoder(request.encoder_name)
    torch.manual_seed(request.seed)
    module = BertModel(loaded.module, loaded.dim)
    short = min(settings.train_tokens, request.max_tokens)
    ids = tuple(token_ids(loaded, table.inputs(), short) for table in tables)
    share = request.weak_fails
    labelled = tuple(
        dataclasses.replace(t, win=(1 - share) * t.win + share * (1 - t.weak)) for t in tables
    )
    task = BertTask(module, (ids[0], ids[1]), (labelled[0], labelled[1]), settings, request.seed)
    base = {**data.facts, "prompts": {"train": tables[0].n, "validation": tables[1].n}}
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
        history = fit(
            task,
            epochs=settings.epochs,
            patience=settings.patience,
            seed=request.seed,
            folder=work,
            fingerprint=fingerprint,
            report=report,
        )
    module.eval()

    say.note("exporting")
    whole = work / "fp32.onnx"
    export_module(module, whole, outputs=["quality", "embedding"])
    sample = [scorer.token_ids(p) for p in tables[1].inputs()[:TORCH_PROMPTS]]
    feeds = []
    outputs = []
    for row in sample:
        tokens, mask = pad([row])
        feeds.append({"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            outputs.append(module(tokens, mask)[0].numpy())
    models = tier_names(request)
    specials = special_tokens(loaded.tokenizer)
    exported = Exported(
        model=quantize(whole),
        whole=whole,
        models=models,
        pair=models,
        tokenizer=loaded.tokenizer.to_str().encode(),
        fields={
            "encoder": request.encoder_name,
            "dim": loaded.dim,
            "max_tokens": request.max_tokens,
            "prefix_ids": specials[0],
            "suffix_ids": specials[1],
        },
        checks=[Check(feeds, np.concatenate(outputs), "fp32")],
    )
    return finish(request, base, Evidence(tables[1]), history, settings, exported, say)


def split_tables(request: TrainRequest, data: Prepared) -> tuple[PairTable, PairTable]:
    """Training and validation part, by the hash of the prompt. Raises TrainingError."""
    pairs = data.pairs
    # A key of its own: who held out a part by the same hash and seed would leave none to validate.
    part = split_by_hash(
        pairs.prompts,
        (1 - request.validation, request.validation),
        seed=request.seed,
        key=lambda prompt: f"validation {prompt_key(prompt)}",
    )
    tables = (pairs.subset(part == 0), pairs.subset(part == 1))
    if tables[1].n < 10:
        raise TrainingError(
            f"{pairs.n} prompts ({tables[1].n} for validation) are too few to train on: at least "
            f"{MIN_PROMPTS} are needed, and about 1,500 make a good router"
        )
    for name, table in zip(("training", "validation"), tables, strict=True):
        check_labels(table, name)
    return tables


def check_labels(table: PairTable, name: str = "") -> None:
    """Raise TrainingError where the labels are too few, or all of one class."""
    if not name and table.n < MIN_PROMPTS:
        raise TrainingError(
            f"{table.n} prompts are too few to train on: at least {MIN_PROMPTS} are needed, and "
            "about 1,500 make a good router"
        )
    share = float(np.average(table.win, weights=table.weight))
    if share in (0.0, 1.0):
        always = "always wins" if share else "never wins (ties count for weak)"
        raise TrainingError(
            f"the labels have one class only: on all {table.n} {name or 'training'} prompts strong "
            f"{always}; there is nothing to route"
        )


def _digest(table: PairTable) -> str:
    """Hash of prompts and labels: the same number of rows need not be the same data."""
    digest = hashlib.sha256(json.dumps(table.inputs()).encode())
    for column in (table.win, table.weak, table.weight):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def tier_names(request: TrainRequest) -> list[str]:
    """Names of the two tiers: the model's own where a tier is one model."""
    return [
        models[0] if len(models) == 1 else tier
        for tier, models in (("strong", request.strong), ("weak", request.weak))
    ]


def token_ids(loaded: LoadedEncoder, inputs: Sequence[Any], max_tokens: int) -> list[list[int]]:
    """Token ids of prompts, as the runtime cuts them."""
    prefix, suffix = special_tokens(loaded.tokenizer)
    return [
        encode(
            as_conversation(prompt),
            loaded.tokenizer,
            max_tokens=max_tokens,
            prefix=prefix,
            suffix=suffix,
        ).ids
        for prompt in inputs
    ]

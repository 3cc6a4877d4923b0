"""The built-in bundles: python -m thriftroute.research.built_in mf --out checkpoints/mf

Needs THRIFTROUTE_DATA (the files of `data.sources`). mf takes about ten minutes on two cores the
first time, bert about half an hour; interrupted, bert goes on where it stopped.
"""

import argparse
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
from rich.console import Console

from ..data.sources import (
    JUDGED_STRONG,
    JUDGED_WEAK,
    SOURCES,
    eval_sources,
    train_sources,
)
from ..data.split import split_by_hash
from ..data.tables import PairTable
from ..errors import ThriftrouteError
from ..router.scorer import Scorer
from ..router.text import Promptlike
from ..router.threshold import ORDINARY
from ..training.embed import embed
from ..training.encoder import encoder_bundle, load_encoder
from ..training.models.head import Head, Memory
from ..training.models.loop import fit
from ..training.models.mf import CHECKED_PROMPTS, export_head, tier_abilities
from ..training.prepare import Start, prepare, read_data, split_tables
from ..training.progress import History, Progress
from ..training.settings import KINDS, MFSettings, TrainSettings, evaluation_prompts
from ..training.write_bundle import Trained, TrainResult, write_trained
from .difficulty import DifficultyTable, difficulty_table
from .difficulty_head import (
    GeneralSettings,
    built_in_head,
    fit_gate,
    fit_memory,
    general_direction,
    ordinary_direction,
)
from .finetune_encoder import (
    TuneModel,
    TuneSettings,
    TuneTask,
    hard_direction,
    save_encoder,
)
from .routellm_mf import fit_routellm
from .static_encoder import static_bundle

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Tiers by what the sources know: frontier-class models of their day, and models of the class of
# Mixtral-8x7B. Names differ from source to source.
STRONG = (
    JUDGED_STRONG,
    "gpt-4o-2024-05-13", "gpt-4o-2024-08-06", "gpt-4o", "gpt-4-turbo-2024-04-09", "gpt-4-turbo",
    "claude-3-5-sonnet-20240620", "claude-3-opus-20240229", "gemini-1.5-pro", "gemini-1.5-pro-002",
    "Mistral-Large-2", "Mistral-Large-Instruct-2407", "Llama-3.1-405B-Inst@hyperbolic",
    "Meta-Llama-3.1-405B-Instruct", "gpt-4o_chat", "gpt-4-turbo_chat", "claude-3.5-sonnet_aws",
    "claude-3-opus", "llama-3.1-405b_aws", "llama-3.1-nemotron-51b-instruct",
)  # fmt: skip
WEAK = (
    JUDGED_WEAK,
    "Mixtral-8x7B-Instruct-v0.1", "gpt-3.5-turbo-0125", "claude-3-haiku-20240307",
    "Meta-Llama-3-8B-Instruct", "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3_1-8B-Instruct",
    "Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.3", "Qwen1.5-7B-Chat", "Qwen2-7B-Instruct",
    "gemma-2-9b-it", "Yi-1.5-9B-Chat", "Yi-1.5-34B-Chat", "Phi-3-mini-4k-instruct",
    "c4ai-command-r-v01", "llama3-70b-8192_groq", "gemini-pro", "mistral-7b-instruct-v0.3",
    "qwen2.5-7b-instruct", "llama-3.1-8b-instruct",
)  # fmt: skip
# Sources of one skill or of a few templates must not set the scale of difficulty for all.
DIFFICULTY_WEIGHTS = {"planbench": 0.25, "zeroeval/numersense-v2": 0.25}
# Sources whose categories are subjects of one exam.
POOLED = ("mmlu_pro",)
TUNE = TuneSettings()
GENERAL = {kind: GeneralSettings(mix=1.0 if kind == "bert" else 0.5) for kind in KINDS}
FOLDS = 5
ROUTELLM = "routellm-mf"

# A strong answer is clearly better where the mean rating gives it so much more to satisfy.
CLEAR = 0.25

NOTES = (
    "What is known are tiers: frontier-class models of 2024 against models of the class of "
    "Mixtral-8x7B. Of a pair that it never saw the bundle says what it says of the tiers.",
    "A score is the probability that judges find the strong tier's answer clearly better (25 "
    "points of 100 likelier to satisfy), on traffic like the corpus of ordinary prompts. The "
    "labels of the corpus are judgements of language models, not results.",
    "The corpus holds as many hard prompts as easy ones; your traffic may not. Measure on your own "
    "domain before you trust a score.",
    "Left out for unknown or unclear licences of their results: routerbench, bfcl, livecodebench.",
)


def settings_of(kind: str, out: Path) -> TrainSettings:
    """What the built-in `kind` is trained from."""
    names = train_sources(publishable=True)
    licences = ", ".join(f"{name} {SOURCES[name].licence}" for name in names)
    return TrainSettings(
        kind=kind,
        data=names,
        strong=STRONG,
        weak=WEAK,
        out=out,
        against={name: evaluation_prompts(name) for name in eval_sources()},
        overwrite=True,
        command=f"python -m thriftroute.research.built_in {kind} --out checkpoints/{kind}",
        notes=(*NOTES, f"Licences of the training files: {licences}."),
    )


def train_general(settings: TrainSettings, say: Progress) -> TrainResult:
    """A router for prompts that nobody has labelled: see `difficulty_head`.

    mf stands on the frozen encoder; bert on the encoder tuned to see difficulty
    (`finetune_encoder`). Raises as `training.train`.
    """
    settings.check()
    tuned, start = None, _encoder(settings)
    data = prepare(settings, start.scorer, say)
    train_part, held_out = split_tables(settings, data.pairs)
    labels = difficulty_table(read_data(settings, {}), pooled=POOLED)
    parts = [
        labels.subset(np.array([prompt in chosen for prompt in labels.prompts]))
        for chosen in (set(train_part.prompts), set(held_out.prompts))
    ]
    say.note(
        f"difficulty of {parts[0].n:,} prompts of {len(set(parts[0].task))} tasks; left out: "
        + "; ".join(f"{task} ({why})" for task, why in labels.left_out.items())
    )
    history = History()
    if settings.kind == "fast":
        loaded, texts = load_encoder(settings.encoder_name), train_part.inputs()
        static = static_bundle(loaded, start.scorer, texts, settings.work / "static", say)
        start = Start(Scorer.load(static), None, None, static.manifest.encoder)
    if settings.kind == "bert":
        factors_of = tuple(_factors(part, DIFFICULTY_WEIGHTS) for part in parts)
        history, start, tuned = _tune(settings, (parts[0], parts[1]), factors_of, start, say)
    ordinary, judged = (
        table.subset(np.array([source == ORDINARY for source in table.source]))
        for table in (train_part, held_out)
    )
    x, of_ordinary, of_judged = (
        _embedded(start.scorer, inputs, say)
        for inputs in (_inputs(parts[0]), ordinary.inputs(), judged.inputs())
    )
    options = GENERAL[settings.kind]
    weight = _factors(parts[0], DIFFICULTY_WEIGHTS)
    models = settings.pair
    abilities = tier_abilities(data.comparisons, (settings.strong, settings.weak), models)
    dim = start.scorer.bundle.manifest.dim
    general = general_direction(x, parts[0], weight, options, tuned=tuned)

    def head_of(keep: Bools, memory: Memory | None = None) -> Head:
        """A head fitted on some of the ordinary prompts."""
        gate = fit_gate(of_ordinary[keep], x, options)
        kept = ordinary.subset(keep)
        direction = ordinary_direction(of_ordinary[keep], kept, options, settings.seed)
        return built_in_head(direction, general, gate, abilities, options, memory)

    # Probabilities are fitted on margins of prompts that the directions have not seen.
    at = split_by_hash(ordinary.prompts, (1 / FOLDS,) * FOLDS, seed=settings.seed)
    margin = np.empty(ordinary.n)
    with say.bar("fitting") as update:
        for fold in range(FOLDS):
            held = at == fold
            margin[held] = head_of(~held).margin(of_ordinary[held], models[0], models[1])
            update(fold + 1, FOLDS + 1)
        memory = fit_memory(np.concatenate((x, of_ordinary)), dim, options, settings.seed)
        head = head_of(np.ones(len(at), np.bool_), memory)
        update(FOLDS + 1, FOLDS + 1)
    inputs = judged.inputs()[:CHECKED_PROMPTS]
    exported = export_head(start, head, models, of_judged[:CHECKED_PROMPTS], inputs)
    if settings.kind == "bert":
        exported.fields["encoder"] = settings.encoder_name
    facts = {
        **data.facts,
        "label": "how many models fail, within each task of the benchmarks; of ordinary prompts "
        "how much likelier the strong tier satisfies, as judged (see research/difficulty_head.py)",
        "general": dataclasses.asdict(options),
        "tasks": len(set(parts[0].task)),
        "left_out": labels.left_out,
        "weights": {
            source: DIFFICULTY_WEIGHTS.get(source, 1.0) for source in data.facts["sources"]
        },
        "prompts": {"train": parts[0].n + ordinary.n, "validation": judged.n},
    }
    clear = dataclasses.replace(judged, win=_clearly(judged))
    used = TUNE if settings.kind == "bert" else MFSettings()
    seen = head.margin(of_judged, models[0], models[1])
    trained = Trained(
        exported, facts, used, clear,
        calibration=(margin, _clearly(ordinary)),
        thresholds=(ORDINARY, np.concatenate((margin, seen))),
        history=history,
    )  # fmt: skip
    result = write_trained(settings, trained, say)
    shutil.rmtree(settings.work, ignore_errors=True)
    return result


def train_routellm(settings: TrainSettings, say: Progress) -> TrainResult:
    """RouteLLM's own mf recipe (`routellm_mf`) on the data of the built-in bundles.

    A baseline, which ships with nothing: what the same prompts, labels and encoder give that way.
    """
    settings.check()
    start = _encoder(settings, whole=True)
    data = prepare(settings, start.scorer, say)
    train_part, held_out = split_tables(settings, data.pairs)
    chosen = set(train_part.prompts)
    comparisons = data.comparisons.subset(np.array([p in chosen for p in data.comparisons.prompts]))
    with say.bar("embedding prompts") as update:
        x = embed(start.scorer, comparisons.inputs(), progress=update, representation=True)
    say.note(f"fitting {comparisons.m:,} comparisons")
    # Scores may differ by less than their single precision shows: who won is no tie.
    tie = (comparisons.strong_score == comparisons.weak_score) & (comparisons.win == 0)
    manifest = start.scorer.bundle.manifest
    last = manifest.width - len(manifest.features)
    # The last layer, of unit length: the embedding of encoders that close with a norm.
    columns = slice(last - manifest.dim, last)
    fitted = fit_routellm(x[:, columns], comparisons, seed=settings.seed, tie=tie)
    w1 = np.zeros((fitted.w1.shape[1], manifest.width), np.float32)
    w1[:, columns] = fitted.w1.T
    models, rows = list(fitted.models), [fitted.u]
    for name, tier in zip(settings.pair, (settings.strong, settings.weak), strict=True):
        if name in models:  # a tier of one model is that model
            continue
        known = [models.index(model) for model in tier if model in fitted.models]
        models.append(name)
        rows.append(fitted.u[known].mean(0, keepdims=True))
    u = np.concatenate(rows).astype(np.float32)
    head = Head(models, w1, np.zeros(len(w1), np.float32), u, np.zeros(len(w1), np.bool_))
    inputs = held_out.inputs()[:CHECKED_PROMPTS]
    sample = embed(start.scorer, inputs, representation=True)
    exported = export_head(start, head, settings.pair, sample, inputs)
    facts = {
        **data.facts,
        "label": "strong wins, ties dropped (RouteLLM's recipe)",
        "prompts": {"train": train_part.n, "validation": held_out.n},
    }
    return write_trained(settings, Trained(exported, facts, MFSettings(), held_out), say)


def _encoder(settings: TrainSettings, *, whole: bool = False) -> Start:
    name = settings.encoder_name
    encoder, fp32 = encoder_bundle(name, max_tokens=settings.max_tokens, whole=whole)
    return Start(Scorer.load(encoder), None, fp32, name)


def _tune(
    settings: TrainSettings,
    parts: tuple[DifficultyTable, DifficultyTable],
    weights: Sequence[Floats],
    start: Start,
    say: Progress,
) -> tuple[History, Start, Floats]:
    """Tune the encoder; returns what happened, the tuned start, and what its head says."""
    loaded = load_encoder(settings.encoder_name)
    torch.manual_seed(settings.seed)
    tasks = len(set(parts[0].task))
    model = TuneModel(loaded.module, loaded.dim, tasks)
    ids = tuple(loaded.token_ids(_inputs(part), settings.max_tokens) for part in parts)
    task = TuneTask(model, (ids[0], ids[1]), parts, (weights[0], weights[1]), TUNE, settings.seed)
    with say.bar("embedding prompts") as update:
        task.probe(embed(start.scorer, _inputs(parts[0]), progress=update))
    labels = [hashlib.sha256(part.bands.tobytes()).hexdigest() for part in parts]
    encoder = start.scorer.bundle.model_sha256
    identity = [dataclasses.asdict(TUNE), settings.seed, encoder, labels, *ids]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    with say.training("bert", TUNE.epochs) as report:
        history = fit(
            task,
            epochs=TUNE.epochs,
            patience=TUNE.patience,
            folder=settings.work,
            fingerprint=fingerprint,
            report=report,
        )
    model.eval()
    folder = settings.work / "encoder"
    save_encoder(loaded, folder)
    # What the head was tuned on is the last layer.
    bundle, fp32 = encoder_bundle(str(folder), max_tokens=settings.max_tokens, whole=True)
    scorer = Scorer.load(bundle)
    layers = bundle.manifest.width - len(bundle.manifest.features)
    return history, Start(scorer, None, fp32, settings.encoder_name), hard_direction(model, layers)


def _clearly(table: PairTable) -> Floats:
    """Whether the strong tier is clearly better on each ordinary prompt, 0 or 1, float64[n]."""
    # Sums of ratings in steps of 1/200 are a rounding error away from the limit.
    return (table.strong - table.weak >= CLEAR - 1e-9).astype(np.float64)


def _embedded(
    scorer: Scorer, inputs: Sequence[Promptlike], say: Progress
) -> npt.NDArray[np.float32]:
    with say.bar("embedding prompts") as update:
        return embed(scorer, inputs, progress=update, representation=True)


def _inputs(table: DifficultyTable) -> list[Any]:
    return [
        prompt if messages is None else list(messages)
        for prompt, messages in zip(table.prompts, table.messages, strict=True)
    ]


def _factors(table: DifficultyTable, weights: dict[str, float]) -> Floats:
    return np.array([weights.get(source, 1.0) for source in table.source])


def main() -> None:
    """Train one of the built-in bundles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(*KINDS, ROUTELLM))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        routellm = arguments.kind == ROUTELLM
        settings = settings_of("mf" if routellm else arguments.kind, arguments.out)
        run = train_routellm if routellm else train_general
        result = run(settings, Progress(Console(stderr=True)))
    except ThriftrouteError as error:
        raise SystemExit(f"error: {error}") from error
    Console().print(result.bundle.file("card.md").read_text(), markup=False)


if __name__ == "__main__":
    main()

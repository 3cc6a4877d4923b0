"""BERT router: an encoder fine-tuned as a classifier of P(strong wins) for one pair or two tiers.

Two outputs, one for strong and one for weak; the score is the sigmoid of their difference, so that
mf and bert bundles have the same shape. The label of a prompt is the share of its comparisons that
strong wins; ties count for weak. Source: the BERT router of RouteLLM (arXiv 2406.18665, section
4.2), which has three classes and one pair.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...data.tables import PairTable
from ...router.text import special_tokens
from ..encoder import EncoderModule, LoadedEncoder, load_encoder
from ..export import Check, Exported, export_module, quantize
from ..prepare import Prepared, Start, split_tables
from ..progress import Progress
from ..settings import BertSettings, TrainSettings
from ..write_bundle import Trained
from .loop import fit

Batch = npt.NDArray[np.int64]
# Prompts whose graph is compared with torch.
CHECKED_PROMPTS = 16


def train_bert(settings: TrainSettings, start: Start, data: Prepared, say: Progress) -> Trained:
    """Fine-tune on one part of the prompts; the other stops the training and gives the figures."""
    options = settings.options or BertSettings()
    assert isinstance(options, BertSettings)
    tables = split_tables(settings, data.pairs)
    loaded = load_encoder(settings.encoder_name)
    torch.manual_seed(settings.seed)
    model = BertModel(loaded.module, loaded.dim)
    short = min(options.train_tokens, settings.max_tokens)
    ids = tuple(loaded.token_ids(table.inputs(), short) for table in tables)
    share = settings.weak_fails
    labelled = tuple(
        dataclasses.replace(t, win=(1 - share) * t.win + share * (1 - t.weak)) for t in tables
    )
    task = BertTask(model, (ids[0], ids[1]), (labelled[0], labelled[1]), options, settings.seed)
    facts = {**data.facts, "prompts": {"train": tables[0].n, "validation": tables[1].n}}
    # What the state of an interrupted run must agree with.
    identity = {
        **facts,
        "command": None,
        "settings": dataclasses.asdict(options),
        "max_tokens": settings.max_tokens,
        "encoder": start.scorer.bundle.model_sha256,
        "tables": [_digest(table) for table in tables],
    }
    with say.training("bert", options.epochs) as report:
        history = fit(
            task,
            epochs=options.epochs,
            patience=options.patience,
            folder=settings.work,
            fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            report=report,
        )
    say.note("exporting")
    sample = [start.scorer.token_ids(p) for p in tables[1].inputs()[:CHECKED_PROMPTS]]
    exported = export_bert(settings, model.eval(), loaded, sample)
    return Trained(exported, facts, options, tables[1], history=history)


def export_bert(
    settings: TrainSettings, model: "BertModel", loaded: LoadedEncoder, sample: list[list[int]]
) -> Exported:
    """The model as graphs, with what torch says of a few rows of token ids."""
    whole = settings.work / "fp32.onnx"
    export_module(model, whole, outputs=["quality", "embedding"])
    batches = [pad([row]) for row in sample]
    with torch.no_grad():
        outputs = [model(*batch)[0].numpy() for batch in batches]
    names = ("input_ids", "attention_mask")
    feeds = [{n: t.numpy() for n, t in zip(names, batch, strict=True)} for batch in batches]
    prefix, suffix = special_tokens(loaded.tokenizer)
    return Exported(
        model=quantize(whole),
        whole=whole,
        models=settings.pair,
        pair=settings.pair,
        tokenizer=loaded.tokenizer.to_str().encode(),
        fields={
            "encoder": settings.encoder_name,
            "dim": loaded.dim,
            "max_tokens": settings.max_tokens,
            "prefix_ids": prefix,
            "suffix_ids": suffix,
        },
        checks=[Check(feeds, np.concatenate(outputs), "fp32")],
    )


def _digest(table: PairTable) -> str:
    """Hash of prompts and labels: the same number of rows need not be the same data."""
    digest = hashlib.sha256(json.dumps(table.inputs()).encode())
    for column in (table.win, table.weak, table.weight):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


class BertModel(torch.nn.Module):
    """input_ids, attention_mask int64[b, t] -> quality float32[b, 2], embedding float32[b, dim]."""

    def __init__(self, encoder: EncoderModule, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(dim, 2)
        self.dropout = torch.nn.Dropout(0.1)
        # Gives the head inputs of about unit variance where the embedding has unit length.
        self.factor = math.sqrt(dim) if encoder.normalize else 1.0
        torch.nn.init.normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Qualities of strong and weak in logits, and the pooled embedding."""
        embedding = self.encoder(input_ids, attention_mask)
        return self.head(self.dropout(embedding * self.factor)), embedding


class BertTask:
    """Fine-tuning on a PairTable, for `loop.fit`."""

    def __init__(
        self,
        model: BertModel,
        ids: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
        tables: tuple[PairTable, PairTable],
        settings: BertSettings,
        seed: int,
    ) -> None:
        self.settings = settings
        self.seed = seed
        torch.manual_seed(seed)
        freeze(model.encoder, settings.frozen_layers)
        self.model: torch.nn.Module = model
        head = list(model.head.parameters())
        body = [p for p in model.encoder.parameters() if p.requires_grad]
        groups = [
            {"params": body, "lr": settings.lr, "base": settings.lr},
            {"params": head, "lr": settings.head_lr, "base": settings.head_lr},
        ]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            groups, weight_decay=settings.weight_decay
        )
        self._bf16 = native_bf16()
        self._ids = ids
        self._labels = tuple(torch.tensor(t.win, dtype=torch.float32) for t in tables)
        # Mean 1, so that the loss does not depend on the unit of the weights.
        self._weights = tuple(
            torch.tensor(t.weight / t.weight.mean(), dtype=torch.float32) for t in tables
        )

    def batches(self, epoch: int) -> list[Batch]:
        """Batches of prompts of similar length, so that little is padding, in random order."""
        return length_batches(self._ids[0], self.settings.batch, (self.seed, epoch))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Weighted log loss of a batch."""
        return self._loss(0, batch)

    def validate(self) -> float:
        """Log loss of the validation split."""
        self.model.eval()
        return validation_loss(self._ids[1], self._weights[1], lambda batch: self._loss(1, batch))

    def before_step(self, progress: float) -> None:
        """Linear warm-up, then linear decay."""
        linear_schedule(self.optimizer, progress, self.settings.warmup)

    def _loss(self, split: int, batch: Batch) -> torch.Tensor:
        ids, mask = pad([self._ids[split][i] for i in batch])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            quality, _ = self.model(ids, mask)
        margin = (quality[:, 0] - quality[:, 1]).float()
        at = torch.from_numpy(batch)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            margin, self._labels[split][at], reduction="none"
        )
        weights = self._weights[split][at]
        return (losses * weights).sum() / weights.sum()


def length_batches(ids: Sequence[Sequence[int]], size: int, seed: tuple[int, int]) -> list[Batch]:
    """Indices of sequences in batches of similar length, in random order."""
    random = np.random.default_rng(seed)
    lengths = np.array([len(row) for row in ids])
    # Noise on the length, so that the same prompts do not meet in every epoch.
    order = np.argsort(lengths * random.uniform(0.85, 1.15, len(lengths)), kind="stable")
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    random.shuffle(batches)
    return batches


def validation_loss(
    ids: Sequence[Sequence[int]], weights: torch.Tensor, loss: Callable[[Batch], torch.Tensor]
) -> float:
    """Weighted mean of `loss` over sequences, in batches of similar length, without gradients."""
    order = np.argsort([len(row) for row in ids], kind="stable")
    total = weight = 0.0
    with torch.no_grad():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            mass = float(weights[torch.from_numpy(batch)].sum())
            total += float(loss(batch)) * mass
            weight += mass
    return total / weight


def linear_schedule(optimizer: torch.optim.Optimizer, progress: float, warmup: float) -> None:
    """Set the learning rates: linear warm-up to each group's "base", then linear decay."""
    factor = min(progress / warmup if warmup else 1.0, (1 - progress) / (1 - warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * max(factor, 1e-3)


def native_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively, which halves the time of a step.

    Elsewhere it is emulated, and slower than float32. Weights and optimizer stay in float32.
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def freeze(encoder: EncoderModule, layers: int) -> None:
    """Freeze the embedding tables and the lowest `layers` layers.

    The tables hold half of a small encoder's weights, and a few thousand prompts touch a tenth of
    their rows.
    """
    transformer: Any = encoder.transformer
    frozen = [transformer.get_input_embeddings()]
    blocks = getattr(getattr(transformer, "encoder", None), "layer", None)
    if layers and blocks is not None:
        frozen += [transformer.embeddings, *list(blocks)[:layers]]
    # The pooler of BERT's first training task is not used: without a gradient it would still decay.
    if getattr(transformer, "pooler", None) is not None:
        frozen.append(transformer.pooler)
    for module in frozen:
        module.requires_grad_(False)


def pad(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of unequal length -> (input_ids, attention_mask), int64[b, longest]."""
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    batch = torch.nn.utils.rnn.pad_sequence
    return batch(ids, batch_first=True), batch([torch.ones_like(row) for row in ids], True)

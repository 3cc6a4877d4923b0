"""Tuning the encoder to see difficulty, before any head is fitted on it.

Four outputs predict, for each prompt, the mean score of the weakest to the strongest quarter of the
models that answered it. Each task has intercepts of its own (penalised, so that half of what sets
tasks apart is left to the text): what is learned is mostly which of two prompts of a task is the
harder one, which carries over to tasks that nobody has seen, and less which task it is, which does
not. The head starts from a probe on the frozen encoder, so that the first steps do not tear up
features that are good already (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features",
arXiv 2202.10054).
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..training.encoder import EncoderModule, LoadedEncoder, resolve_encoder
from ..training.models.bert import (
    Batch,
    freeze,
    length_batches,
    linear_schedule,
    native_bf16,
    pad,
    validation_loss,
)
from .difficulty import BANDS, DifficultyTable

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TuneSettings:
    """Settings of a run. layer_decay: factor on the learning rate from each layer to the one below.

    balance: a prompt weighs (prompts of its task) ** -balance. intercept_penalty: on the mean
    square of the tasks' intercepts, in units of the loss.
    """

    epochs: int = 2
    patience: int = 2
    lr: float = 2e-4
    head_lr: float = 5e-4
    layer_decay: float = 0.8
    weight_decay: float = 0.01
    warmup: float = 0.06
    batch: int = 32
    frozen_layers: int = 1
    train_tokens: int = 128
    balance: float = 0.3
    intercept_penalty: float = 0.02
    probe_steps: int = 400


class TuneModel(torch.nn.Module):
    """Token ids, mask and task int64[b] -> logits of the bands' mean scores, float32[b, BANDS]."""

    def __init__(self, encoder: EncoderModule, dim: int, tasks: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(dim, BANDS)
        self.intercepts = torch.nn.Parameter(torch.zeros(tasks, BANDS))
        self.dropout = torch.nn.Dropout(0.1)
        self.factor = math.sqrt(dim) if encoder.normalize else 1.0
        torch.nn.init.normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, task: torch.Tensor
    ) -> torch.Tensor:
        """Logits, the task's intercepts included."""
        return self.logits(self.encoder(input_ids, attention_mask), task)

    def logits(self, embedding: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Logits from embeddings."""
        logits: torch.Tensor = self.head(self.dropout(embedding * self.factor))
        return logits + self.intercepts[task]


class TuneTask:
    """Tuning on a DifficultyTable, for `loop.fit`."""

    def __init__(
        self,
        model: TuneModel,
        ids: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
        tables: tuple[DifficultyTable, DifficultyTable],
        factors: tuple[Floats, Floats],
        settings: TuneSettings,
        seed: int,
    ) -> None:
        """ids, tables, factors (a weight for each prompt): of the training and validation split."""
        self.settings = settings
        self.seed = seed
        self.model: torch.nn.Module = model
        self._ids = ids
        names = sorted(set(tables[0].task))
        number = {name: i for i, name in enumerate(names)}
        # A task that only the validation split has is scored with the intercept of the first.
        self._task = tuple(torch.tensor([number.get(t, 0) for t in table.task]) for table in tables)
        self._bands = tuple(torch.tensor(t.bands, dtype=torch.float32) for t in tables)
        self._weights = tuple(
            _weights(table, factor, settings.balance)
            for table, factor in zip(tables, factors, strict=True)
        )
        self._bf16 = native_bf16()
        torch.manual_seed(seed)
        freeze(model.encoder, settings.frozen_layers)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            _groups(model, settings), weight_decay=settings.weight_decay
        )

    def probe(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Fit head and intercepts on the frozen encoder's embeddings float32[n, dim]."""
        model = self.model
        assert isinstance(model, TuneModel)
        optimizer = torch.optim.AdamW(
            [*model.head.parameters(), model.intercepts], lr=3e-3, weight_decay=0.03
        )
        random = np.random.default_rng(self.seed)
        torch.manual_seed(self.seed)  # dropout: whatever was drawn before must not matter
        vectors = torch.from_numpy(embeddings)
        for _ in range(self.settings.probe_steps):
            batch = random.integers(0, len(embeddings), 512)
            logits = model.logits(vectors[torch.from_numpy(batch)], self._task[0][batch])
            optimizer.zero_grad()
            (self._loss_of(0, batch, logits) + self._penalty()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def batches(self, epoch: int) -> list[Batch]:
        """Batches of prompts of similar length, so that little is padding, in random order."""
        return length_batches(self._ids[0], self.settings.batch, (self.seed, epoch))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Weighted log loss of a batch, with the penalty on the intercepts."""
        return self._loss(0, batch) + self._penalty()

    def validate(self) -> float:
        """Weighted log loss of the validation split."""
        self.model.eval()
        return validation_loss(self._ids[1], self._weights[1], lambda batch: self._loss(1, batch))

    def before_step(self, progress: float) -> None:
        """Linear warm-up, then linear decay."""
        linear_schedule(self.optimizer, progress, self.settings.warmup)

    def _loss(self, split: int, batch: Batch) -> torch.Tensor:
        ids, mask = pad(
            [_shortened(self._ids[split][i], self.settings.train_tokens) for i in batch]
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            logits = self.model(ids, mask, self._task[split][torch.from_numpy(batch)])
        return self._loss_of(split, batch, logits.float())

    def _loss_of(self, split: int, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        at = torch.from_numpy(batch)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, self._bands[split][at], reduction="none"
        ).mean(1)
        weights = self._weights[split][at]
        return (losses * weights).sum() / weights.sum()

    def _penalty(self) -> torch.Tensor:
        intercepts = self.model.intercepts
        assert isinstance(intercepts, torch.Tensor)
        return self.settings.intercept_penalty * (intercepts**2).mean()


def hard_direction(model: TuneModel, layers: int) -> Floats:
    """float64[layers]: how likely the weakest models fail, on the pooled layers of the encoder.

    layers: columns of `EncoderModule.layers`, whose last `dim` are the tuned embedding.
    """
    weights = model.head.weight.detach().numpy()[0]
    direction = np.zeros(layers)
    direction[layers - len(weights) :] = -weights
    return direction


def save_encoder(encoder: LoadedEncoder, folder: Path) -> None:
    """Write a tuned encoder as a sentence-transformers folder, which `--encoder` takes."""
    source = resolve_encoder(encoder.name)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(
        source, partial, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx", "*.md")
    )
    encoder.module.transformer.save_pretrained(partial)  # type: ignore[operator]
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _weights(table: DifficultyTable, factor: Floats, balance: float) -> torch.Tensor:
    _, at, counts = np.unique(table.task, return_inverse=True, return_counts=True)
    weight = factor * counts[at] ** -balance * np.maximum(table.reliability, 0.1)
    return torch.tensor(weight / weight.mean(), dtype=torch.float32)


def _groups(model: TuneModel, settings: TuneSettings) -> list[dict[str, object]]:
    """Parameter groups with falling learning rates from the top layer down."""
    transformer = model.encoder.transformer
    blocks = list(getattr(getattr(transformer, "encoder", None), "layer", None) or [])
    inside = {id(p) for block in blocks for p in block.parameters()}
    rates = [(block, settings.lr * settings.layer_decay**i) for i, block in enumerate(blocks[::-1])]
    groups: list[dict[str, object]] = [
        {"params": trained, "base": rate}
        for block, rate in rates
        if (trained := [p for p in block.parameters() if p.requires_grad])
    ]
    # Encoders of another make, and what lies outside the layers.
    other = [p for p in transformer.parameters() if p.requires_grad and id(p) not in inside]
    if other:
        groups.append({"params": other, "base": settings.lr})
    groups.append({"params": list(model.head.parameters()), "base": settings.head_lr})
    groups.append({"params": [model.intercepts], "base": 3e-3, "weight_decay": 0.0})
    for group in groups:
        group["lr"] = group["base"]
    return groups


def _shortened(ids: Sequence[int], most: int) -> Sequence[int]:
    """Head and tail of a long sequence: attention costs most on the longest prompts."""
    if len(ids) <= most:
        return ids
    tail = most // 4
    return [*ids[: most - tail], *ids[len(ids) - tail :]]

"""Matrix factorization: delta_m(q) = w2^T (v_m * (W1 e(q) + b)).

P(a wins) = sigmoid(delta_a - delta_b).
After RouteLLM (Ong et al. 2024, arXiv 2406.18665, section 4.2), with a bias b, a frozen local
encoder e, and ties that count for the weak model. Each v_m is the vector of one model; where a tier
has several, the tier's vector is their mean, which the linearity of delta in v_m allows.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..data.tables import ComparisonTable

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MFSettings:
    """Settings of a run. weight_decay is AdamW's; batch counts prompts, not comparisons."""

    hidden: int = 128
    epochs: int = 40
    patience: int = 5
    lr: float = 1e-3
    weight_decay: float = 0.3
    batch: int = 64
    dropout: float = 0.5


class MFModel(torch.nn.Module):
    """Embeddings float32[b, dim] -> qualities float32[b, n_models]."""

    def __init__(self, dim: int, n_models: int, settings: MFSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self.w1 = torch.nn.Linear(dim, hidden)
        self.v = torch.nn.Parameter(torch.randn(n_models, hidden) * 0.1)
        self.w2 = torch.nn.Parameter(torch.ones(hidden) / math.sqrt(hidden))
        self.dropout = torch.nn.Dropout(settings.dropout)
        # Embeddings share a large common part; centred and scaled, all directions train alike.
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, embeddings: Floats32) -> None:
        """Set centre and scale from the training embeddings, float32[n, dim]."""
        mean = embeddings.mean(0)
        self.mean = torch.from_numpy(mean)
        self.scale = torch.tensor(float(1.0 / max((embeddings - mean).std(), 1e-6)))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Quality of every model for each prompt, in logits; only differences mean anything."""
        hidden = self.w1(self.dropout((embeddings - self.mean) * self.scale))
        quality: torch.Tensor = hidden @ (self.v * self.w2).T
        return quality

    def factors(self) -> tuple[Floats32, Floats32, Floats32]:
        """(w1 [d, dim], b1 [d], u [n_models, d]) on raw embeddings: quality = (e w1^T + b1) u^T."""
        with torch.no_grad():
            w1 = self.w1.weight * self.scale
            b1 = self.w1.bias - w1 @ self.mean
            return w1.numpy().copy(), b1.numpy().copy(), (self.v * self.w2).numpy().copy()


class MFTask:
    """Training of an MFModel on comparisons, for `loop.fit`."""

    def __init__(
        self,
        train: ComparisonTable,
        validation: ComparisonTable,
        embeddings: tuple[Floats32, Floats32],
        settings: MFSettings,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.seed = seed
        self.model: torch.nn.Module = MFModel(embeddings[0].shape[1], len(train.models), settings)
        self.model.standardize(embeddings[0])
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._train = _Rows(train, embeddings[0])
        self._validation = _Rows(validation, embeddings[1])

    def batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Prompts in an order of their own each epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self._train.n)
        size = self.settings.batch
        return [order[i : i + size] for i in range(0, len(order), size)]

    def loss(self, batch: npt.NDArray[np.int64]) -> torch.Tensor:
        """Weighted log loss of the batch's comparisons."""
        return self._train.loss(self.model, batch)

    def validate(self) -> float:
        """Log loss of the validation split."""
        self.model.eval()
        with torch.no_grad():
            return float(self._validation.loss(self.model, np.arange(self._validation.n)))

    def before_step(self, progress: float) -> None:
        """Cosine decay to a tenth."""
        factor = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor


class _Rows:
    """Comparisons grouped by prompt, so that a batch is a set of prompts."""

    def __init__(self, table: ComparisonTable, embeddings: Floats32) -> None:
        order = np.argsort(table.prompt_index, kind="stable")
        self.n = table.n
        self.start = np.searchsorted(table.prompt_index[order], np.arange(table.n + 1))
        self.a, self.b = table.a[order].astype(np.int64), table.b[order].astype(np.int64)
        self.win = table.win[order]
        self.weight = table.weight[order]
        self.embeddings = torch.from_numpy(embeddings)

    def loss(self, model: torch.nn.Module, prompts: npt.NDArray[np.int64]) -> torch.Tensor:
        counts = self.start[prompts + 1] - self.start[prompts]
        local = np.repeat(np.arange(len(prompts)), counts)
        rows = np.repeat(self.start[prompts] - (np.cumsum(counts) - counts), counts) + np.arange(
            counts.sum()
        )
        quality = model(self.embeddings[torch.from_numpy(prompts)])
        at = torch.from_numpy(local)
        margin = (
            quality[at, torch.from_numpy(self.a[rows])]
            - quality[at, torch.from_numpy(self.b[rows])]
        )
        weight = torch.from_numpy(self.weight[rows])
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            margin, torch.from_numpy(self.win[rows]), reduction="none"
        )
        return (losses * weight).sum() / weight.sum()

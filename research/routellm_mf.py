"""RouteLLM's own matrix factorization, retrained on equal data: the fair baseline for ours.

delta_m(q) = w2^T (v_m * W1^T v_q), P(a wins) = sigmoid(delta_a - delta_b), after Ong et al. 2024
(arXiv 2406.18665, section 4.2): d = 128, no bias, Adam at 3e-4 with weight decay 1e-5, batches of
64 comparisons, 10 epochs, ties dropped. v_q is a frozen sentence embedding, that of our bundles in
place of a paid service's. What the paper leaves open is PyTorch's default: v_m starts as
torch.nn.Embedding does (normal, variance 1), W1 and w2 as torch.nn.Linear does.

    fitted = fit_routellm(embeddings, table, tie=tie)
    margins = fitted.margins(test_embeddings, strong=["gpt-4"], weak=["mixtral"])
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..data.tables import ComparisonTable
from ..errors import TrainingError

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RouteLLMSettings:
    """The paper's. `batch` counts comparisons, `weight_decay` is Adam's (an L2 penalty)."""

    dim: int = 128
    lr: float = 3e-4
    weight_decay: float = 1e-5
    batch: int = 64
    epochs: int = 10


@dataclass(frozen=True, eq=False)
class RouteLLM:
    """A fit: `w1` float32[dim, d], `u` float32[n_models, d], the product of v_m and w2.

    `comparisons` counts those that it was fitted on, `ties` those that were dropped.
    """

    models: tuple[str, ...]
    w1: Floats32
    u: Floats32
    comparisons: int
    ties: int

    def margins(
        self, embeddings: npt.NDArray[np.floating], strong: Sequence[str], weak: Sequence[str]
    ) -> Floats:
        """Logit that the strong tier wins, float64[k], for embeddings [k, dim].

        A tier's vector is the mean of its models' vectors, which the linearity of delta in v_m
        allows. Raises TrainingError for an empty tier, a model that was not in the training data,
        or embeddings of another width.
        """
        _check_embeddings(embeddings, self.w1.shape[0])
        difference = self._tier(strong) - self._tier(weak)
        direction = self.w1.astype(np.float64) @ difference
        margins: Floats = embeddings.astype(np.float64) @ direction
        return margins

    def _tier(self, names: Sequence[str]) -> Floats:
        given = (names,) if isinstance(names, str) else tuple(names)
        if not given:
            raise TrainingError("routellm: a tier without models; name at least one")
        if unknown := [name for name in given if name not in self.models]:
            raise TrainingError(
                f"routellm: {', '.join(unknown)} not in its training data; it knows "
                f"{', '.join(self.models)}"
            )
        rows = [self.models.index(name) for name in given]
        mean: Floats = self.u[rows].astype(np.float64).mean(axis=0)
        return mean


@dataclass(frozen=True, eq=False)
class RouteLLMPair:
    """The fit of one pair. `fitted` is None where every label was a tie: nothing was learned."""

    fitted: RouteLLM | None

    def margins(self, embeddings: npt.NDArray[np.floating]) -> Floats:
        """Logit that strong wins, float64[k], for embeddings [k, dim]; all 0 without a fit."""
        if self.fitted is None:
            return np.zeros(len(embeddings))
        return self.fitted.margins(embeddings, ("strong",), ("weak",))


def fit_routellm(
    embeddings: npt.NDArray[np.floating],
    table: ComparisonTable,
    settings: RouteLLMSettings | None = None,
    seed: int = 0,
    *,
    tie: npt.NDArray[np.bool_] | None = None,
) -> RouteLLM:
    """Fit on the comparisons of a table whose n prompts have `embeddings` [n, dim].

    `tie` bool[m] marks the comparisons that are ties, which the recipe drops; a ComparisonTable's
    `win` counts a tie as a loss of a, so that they cannot all be told from it. Weights are not
    used: the recipe has none. One thread; the same seed and data give the same result.

    Raises TrainingError where shapes differ, where `tie` is not given though the table holds ties,
    or where no comparison is left.
    """
    win = table.win > 0.5
    if tie is None:
        # Both earned nothing, so neither won. Ties at higher scores look like losses here.
        certain = np.flatnonzero(~win & (table.weak_score == 0))
        if len(certain):
            raise TrainingError(
                f"routellm: the table holds ties (comparison {certain[0]} is one of {len(certain)} "
                "that are certain): its recipe drops them; give tie=, bool of each comparison"
            )
        tie = np.zeros(table.m, np.bool_)
    if tie.shape != (table.m,) or len(embeddings) != table.n:
        raise TrainingError(
            f"routellm: {len(embeddings)} embeddings and ties of shape {tie.shape} for a table of "
            f"{table.n} prompts and {table.m} comparisons; give one for each"
        )
    if bool(np.any(tie & win)):
        raise TrainingError(
            f"routellm: comparison {np.flatnonzero(tie & win)[0]} is marked as a tie, but a won it"
        )
    kept = np.flatnonzero(~tie)
    prompt, a, b = (c[kept].astype(np.int64) for c in (table.prompt_index, table.a, table.b))
    rows = prompt, a, b, win[kept]
    w1, u = _train(embeddings, len(table.models), rows, settings or RouteLLMSettings(), seed)
    return RouteLLM(table.models, w1, u, len(kept), int(tie.sum()))


def fit_routellm_pair(
    embeddings: npt.NDArray[np.floating],
    strong: npt.ArrayLike,
    weak: npt.ArrayLike,
    seed: int = 0,
    *,
    settings: RouteLLMSettings | None = None,
) -> RouteLLMPair:
    """Fit on the scores of one pair: `embeddings` [n, dim], `strong` and `weak` float64[n].

    One comparison a prompt; equal scores are ties and dropped, the sizes of the others do not
    count. Raises TrainingError where shapes differ or a score is not finite.
    """
    a, b = np.asarray(strong, dtype=np.float64), np.asarray(weak, dtype=np.float64)
    if a.shape != (len(embeddings),) or b.shape != a.shape:
        raise TrainingError(
            f"routellm: {len(embeddings)} embeddings, scores of shapes {a.shape} and {b.shape}; "
            "give one of each a prompt"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise TrainingError("routellm: scores must be finite; leave out prompts without a result")
    kept = np.flatnonzero(a != b)
    if not len(kept):
        return RouteLLMPair(None)
    first = np.zeros(len(kept), np.int64)
    rows = kept, first, first + 1, (a > b)[kept]
    w1, u = _train(embeddings, 2, rows, settings or RouteLLMSettings(), seed)
    return RouteLLMPair(RouteLLM(("strong", "weak"), w1, u, len(kept), len(a) - len(kept)))


class _Model(torch.nn.Module):
    """delta_a - delta_b of comparisons; without dropout, bias or scaling, as in the paper."""

    def __init__(self, width: int, n_models: int, dim: int) -> None:
        super().__init__()
        self.w1 = torch.nn.Linear(width, dim, bias=False)
        self.v = torch.nn.Embedding(n_models, dim)
        self.w2 = torch.nn.Linear(dim, 1, bias=False)

    def forward(self, q: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """q float32[c, width], a and b int64[c] -> logit that a wins, float32[c]."""
        # delta is linear in v, so that one pass serves both models.
        logit: torch.Tensor = self.w2((self.v(a) - self.v(b)) * self.w1(q))[:, 0]
        return logit


def _train(
    embeddings: npt.NDArray[np.floating],
    n_models: int,
    rows: tuple[Ints, Ints, Ints, npt.NDArray[np.bool_]],
    settings: RouteLLMSettings,
    seed: int,
) -> tuple[Floats32, Floats32]:
    """`rows` are (prompt, a, b, a wins) of comparisons without ties. Returns (w1, v * w2)."""
    _check_embeddings(embeddings)
    if not len(rows[0]):
        raise TrainingError("routellm: no comparison is left without ties; give others")
    vectors = torch.from_numpy(np.array(embeddings, np.float32))
    prompt, a, b = (torch.from_numpy(column) for column in rows[:3])
    win = torch.from_numpy(rows[3].astype(np.float32))
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Model(vectors.shape[1], n_models, settings.dim)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        for _ in range(settings.epochs):
            for batch in torch.split(torch.randperm(len(win)), settings.batch):
                optimizer.zero_grad(set_to_none=True)
                logit = model(vectors[prompt[batch]], a[batch], b[batch])
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, win[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            w1 = model.w1.weight.T.numpy().copy()
            u = (model.v.weight * model.w2.weight).numpy().copy()
    if not (np.isfinite(w1).all() and np.isfinite(u).all()):
        raise TrainingError("routellm: its weights are not finite; try a lower learning rate")
    return w1, u


def _check_embeddings(embeddings: npt.NDArray[np.floating], width: int | None = None) -> None:
    if embeddings.ndim != 2 or (width is not None and embeddings.shape[1] != width):
        raise TrainingError(
            f"routellm: embeddings of shape {embeddings.shape}; expected "
            f"[n, {'dim' if width is None else width}]"
        )
    if not np.isfinite(embeddings).all():
        raise TrainingError("routellm: embeddings must be finite; some are not")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products this small only wait for each other; and sums in one order are reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

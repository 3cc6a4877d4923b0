"""Baselines that every router is shown beside.

random         scores i.i.d. uniform; its expectation is known, its spread is sampled
oracle         the true gain of the strong model: the best that any router could do
prompt-length  characters; longer prompts go to the strong model
knn            mean label of the nearest training prompts, the router's own training data
knn-in-domain  the same, fitted by cross-validation on the benchmark itself; it has seen labels of
               the benchmark's own kind, which a router before its first day of use has not
ridge          linear regression of the training labels on the embeddings
ridge-in-domain  the same of the benchmark's own gains (strong - weak), by cross-validation
always-strong, always-weak are points, not curves: their reward and cost stand in every report.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from .metrics import Floats, apgr_of_groups, check_rewards, cpt_of_groups

Embeddings = npt.NDArray[np.floating]
# (queries [q, d], embeddings [m, d], labels float64[m]) -> float64[q]
FitAndScore = Callable[[Embeddings, Embeddings, Floats], Floats]

# Cells of one block of similarities: 32 MB of float32.
BLOCK_CELLS = 8_000_000
# What `ridge_alpha` chooses among: from hardly any penalty to one that leaves little but the mean,
# for embeddings of unit length (the eigenvalues of m of them sum to at most m).
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Parts of an in-domain cross-validation; fewer distinct prompts than this may not fill two.
FOLDS, FOLD_PROMPTS = 5, 10


def random_routing(
    strong: npt.ArrayLike, weak: npt.ArrayLike, *, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, Floats]]:
    """Of "apgr", "cpt50" and "cpt80" at random: (expected, float64[draws] of random orders).

    APGR is 0.5 in expectation; the CPTs are those of the expected curve, a straight line.
    Raises EvaluationError for bad rewards.
    """
    r_strong, r_weak, _ = check_rewards(strong, weak, weak)
    gain = r_strong - r_weak
    rng = np.random.default_rng(seed)

    def figures(calls: Floats, gains: Floats) -> list[Floats]:
        cpts = [cpt_of_groups(calls, gains, target) for target in (0.5, 0.8)]
        return [apgr_of_groups(calls, gains), *cpts]

    parts = []
    step = max(1, BLOCK_CELLS // (8 * gain.size))
    for start in range(0, draws, step):
        rows = np.broadcast_to(gain, (min(step, draws - start), gain.size))
        gains = rng.permuted(rows, axis=1)
        parts.append(figures(np.ones_like(gains), gains))
    expected = figures(np.array([float(gain.size)]), np.array([gain.sum()]))
    drawn = [np.concatenate(column) for column in zip(*parts, strict=True)]
    names = ("apgr", "cpt50", "cpt80")
    return {name: (float(expected[i]), drawn[i]) for i, name in enumerate(names)}


def length_scores(prompts: Sequence[str]) -> Floats:
    """Characters of each prompt, float64[n]."""
    return np.array([len(prompt) for prompt in prompts], dtype=np.float64)


def knn_scores(
    queries: Embeddings, embeddings: Embeddings, labels: npt.ArrayLike, k: int = 40
) -> Floats:
    """Mean label of the k nearest `embeddings` by cosine, weighted by similarity: float64[q].

    `queries` [q, d], `embeddings` [m, d], `labels` float64[m] in [0, 1]. Negative similarities
    weigh as nothing; k is cut to m. Raises EvaluationError for other shapes, k < 1 or m = 0.
    """
    y = _checked("knn", queries, embeddings, labels)
    if k < 1:
        raise EvaluationError(f"knn: k is {k}; it must be at least 1")
    k = min(k, len(y))
    base, asked = _unit_rows(embeddings), _unit_rows(queries)
    scores = np.empty(len(asked))
    step = max(1, BLOCK_CELLS // len(base))
    for start in range(0, len(asked), step):
        similarity = asked[start : start + step] @ base.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 1e-6)
        scores[start : start + step] = np.sum(weight * y[nearest], axis=1) / weight.sum(axis=1)
    return scores


def ridge_scores(
    queries: Embeddings,
    embeddings: Embeddings,
    labels: npt.ArrayLike,
    alpha: float | None = None,
) -> Floats:
    """Linear least squares with a penalty alpha * |w|^2 and a free intercept: float64[q].

    `queries` [q, d], `embeddings` [m, d], `labels` float64[m], any finite numbers. In closed form,
    on centred embeddings (Hoerl and Kennard 1970, Technometrics 12); alpha is by default that of
    the lowest leave-one-out error. Raises EvaluationError for other shapes, m = 0, or alpha that is
    not above 0.
    """
    y = _checked("ridge", queries, embeddings, labels)
    alpha = ridge_alpha(embeddings, y) if alpha is None else alpha
    _check_alphas([alpha])
    x = embeddings.astype(np.float64)
    centre = x.mean(axis=0)
    x = x - centre
    weights = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    scores: Floats = (queries.astype(np.float64) - centre) @ weights + y.mean()
    return scores


def ridge_press(
    embeddings: Embeddings, labels: npt.ArrayLike, alphas: Sequence[float] = ALPHAS
) -> Floats:
    """Mean squared leave-one-out error of ridge regression for each alpha: float64[len(alphas)].

    No refitting: leaving out row i leaves the error e_i / (1 - h_i), with e the residual and h the
    diagonal of the hat matrix of all rows (Allen 1974, Technometrics 16: PRESS), here
    h_i = 1/m + sum_j z_ij^2 / (l_j + alpha) with l, V the eigenvalues and vectors of X^T X and
    Z = X V. NaN for a single row, which cannot be left out. Raises EvaluationError as
    `ridge_scores`.
    """
    y = _checked("ridge", embeddings, embeddings, labels)
    _check_alphas(alphas)
    if len(y) == 1:
        return np.full(len(alphas), np.nan)
    x = embeddings.astype(np.float64)
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    z = x @ vectors
    projected, squares = z.T @ (y - y.mean()), z**2
    errors = np.empty(len(alphas))
    for i, alpha in enumerate(alphas):
        shrunk = 1.0 / (np.maximum(values, 0.0) + alpha)
        residual = y - y.mean() - z @ (shrunk * projected)
        # 1 - h is above 0, but may round to it where the penalty is tiny beside the embeddings.
        left = np.maximum(1.0 - 1.0 / len(y) - squares @ shrunk, 1e-12)
        errors[i] = np.mean((residual / left) ** 2)
    return errors


def ridge_alpha(
    embeddings: Embeddings, labels: npt.ArrayLike, alphas: Sequence[float] = ALPHAS
) -> float:
    """The alpha with the lowest leave-one-out error, the largest of equals."""
    errors = ridge_press(embeddings, labels, alphas)
    lowest = np.inf if np.isnan(errors).all() else np.nanmin(errors)
    return max(a for a, error in zip(alphas, errors, strict=True) if not error > lowest)


def in_domain_scores(
    fit: FitAndScore,
    prompts: Sequence[str],
    embeddings: Embeddings,
    labels: npt.ArrayLike,
    seed: int = 0,
) -> Floats:
    """`knn_scores` or `ridge_scores` fitted on the benchmark's other folds: float64[n].

    A prompt's fold comes from its hash, so repeated prompts never see their own label. Raises
    EvaluationError where the prompts fill fewer than two folds.
    """
    y = np.asarray(labels, dtype=np.float64)
    # Lone surrogates may occur in prompts that were read from JSON.
    texts = [f"{seed}\0{prompt}".encode(errors="surrogatepass") for prompt in prompts]
    digests = [hashlib.sha256(text).digest() for text in texts]
    fold = np.array([int.from_bytes(digest[:8], "big") % FOLDS for digest in digests])
    if len(np.unique(fold)) < 2:
        raise EvaluationError("in-domain baselines need prompts in at least two folds; give more")
    scores = np.empty(len(fold))
    for held in np.unique(fold):
        out = fold == held
        scores[out] = fit(embeddings[out], embeddings[~out], y[~out])
    return scores


def _checked(
    name: str, queries: Embeddings, embeddings: Embeddings, labels: npt.ArrayLike
) -> Floats:
    """The labels, float64[m], where shapes fit and all is finite; else EvaluationError."""
    y = np.asarray(labels, dtype=np.float64)
    if queries.ndim != 2 or embeddings.ndim != 2 or queries.shape[1] != embeddings.shape[1]:
        raise EvaluationError(
            f"{name}: embeddings must be [n, d] with one d, got {queries.shape}, {embeddings.shape}"
        )
    if y.shape != (len(embeddings),) or y.size == 0:
        raise EvaluationError(
            f"{name}: embeddings {embeddings.shape} and labels {y.shape}; expected [m, d] and [m] "
            "with m of at least 1"
        )
    if not (np.isfinite(embeddings).all() and np.isfinite(y).all()):
        raise EvaluationError(f"{name}: embeddings and labels must be finite; some are not")
    return y


def _check_alphas(alphas: Sequence[float]) -> None:
    if not len(alphas) or not all(0 < alpha < float("inf") for alpha in alphas):
        raise EvaluationError(f"ridge: alphas are {list(alphas)}; give finite numbers above 0")


def _unit_rows(embeddings: Embeddings) -> npt.NDArray[np.float32]:
    rows = embeddings.astype(np.float32)
    unit: npt.NDArray[np.float32] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)
    )
    return unit

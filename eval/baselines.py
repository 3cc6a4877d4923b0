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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from .metrics import Floats, apgr_of_groups, check_rewards, cpt_of_groups

# Cells of one block of similarities: 32 MB of float32.
BLOCK_CELLS = 8_000_000
# What `ridge_alpha` chooses among: from hardly any penalty to one that leaves little but the mean,
# for embeddings of unit length (the eigenvalues of m of them sum to at most m).
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True, slots=True)
class RandomRouting:
    """Random routing on one benchmark. `apgr` is the exact expectation, 0.5; `cpt50` and `cpt80`
    are those of the expected curve, a straight line. `draws_*` float64[draws] are sampled."""

    apgr: float
    cpt50: float
    cpt80: float
    draws_apgr: Floats
    draws_cpt50: Floats
    draws_cpt80: Floats


def random_routing(
    strong: npt.ArrayLike, weak: npt.ArrayLike, *, draws: int = 1000, seed: int = 0
) -> RandomRouting:
    """What routing at random gives, in expectation and over `draws` random orders.

    Raises EvaluationError for bad rewards, or where no draw has a positive gap to recover.
    """
    r_strong, r_weak, _ = check_rewards(strong, weak, weak)
    n = r_strong.size
    gain = r_strong - r_weak
    rng = np.random.default_rng(seed)
    parts = []
    step = max(1, BLOCK_CELLS // (8 * n))
    for start in range(0, draws, step):
        rows = np.broadcast_to(gain, (min(step, draws - start), n))
        gains = rng.permuted(rows, axis=1)
        calls = np.ones_like(gains)
        parts.append(
            (
                apgr_of_groups(calls, gains),
                cpt_of_groups(calls, gains, 0.5),
                cpt_of_groups(calls, gains, 0.8),
            )
        )
    apgr, cpt50, cpt80 = (np.concatenate(column) for column in zip(*parts, strict=True))
    whole, size = np.array([gain.sum()]), np.array([float(n)])
    return RandomRouting(
        apgr=float(apgr_of_groups(size, whole)),
        cpt50=float(cpt_of_groups(size, whole, 0.5)),
        cpt80=float(cpt_of_groups(size, whole, 0.8)),
        draws_apgr=apgr,
        draws_cpt50=cpt50,
        draws_cpt80=cpt80,
    )


def oracle_scores(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """The gain of the strong model, float64[n]: no ranking has a higher APGR."""
    gain: Floats = np.asarray(strong, dtype=np.float64) - np.asarray(weak, dtype=np.float64)
    return gain


def length_scores(prompts: Sequence[str]) -> Floats:
    """Characters of each prompt, float64[n]."""
    return np.array([len(prompt) for prompt in prompts], dtype=np.float64)


def knn_scores(
    queries: npt.NDArray[np.floating],
    embeddings: npt.NDArray[np.floating],
    labels: npt.ArrayLike,
    k: int = 40,
) -> Floats:
    """Mean label of the k nearest `embeddings` by cosine, weighted by similarity: float64[q].

    `queries` [q, d], `embeddings` [m, d], `labels` float64[m] in [0, 1]. Negative similarities
    weigh as nothing; k is cut to m. Raises EvaluationError for other shapes, k < 1 or m = 0.
    """
    y = np.asarray(labels, dtype=np.float64)
    if queries.ndim != 2 or embeddings.ndim != 2 or queries.shape[1] != embeddings.shape[1]:
        raise EvaluationError(
            f"knn: embeddings must be [n, d] with one d, got {queries.shape}, {embeddings.shape}"
        )
    if len(y) != len(embeddings) or len(y) == 0 or k < 1:
        raise EvaluationError(f"knn: {len(embeddings)} embeddings, {len(y)} labels, k = {k}")
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


def knn_in_domain_scores(
    prompts: Sequence[str],
    embeddings: npt.NDArray[np.floating],
    labels: npt.ArrayLike,
    *,
    k: int = 40,
    folds: int = 5,
    seed: int = 0,
) -> Floats:
    """kNN fitted on the benchmark's other folds: float64[n].

    A prompt's fold comes from its hash, so repeated prompts never see their own label. Raises
    EvaluationError where the prompts fill fewer than two folds.
    """
    y = np.asarray(labels, dtype=np.float64)
    return _in_domain(
        "knn-in-domain",
        prompts,
        lambda out: knn_scores(embeddings[out], embeddings[~out], y[~out], k),
        folds=folds,
        seed=seed,
    )


def ridge_scores(
    queries: npt.NDArray[np.floating],
    embeddings: npt.NDArray[np.floating],
    labels: npt.ArrayLike,
    alpha: float,
) -> Floats:
    """Linear least squares with a penalty alpha * |w|^2 and a free intercept: float64[q].

    `queries` [q, d], `embeddings` [m, d], `labels` float64[m], any finite numbers. In closed form,
    on centred embeddings (Hoerl and Kennard 1970, Technometrics 12). Raises EvaluationError for
    other shapes, m = 0, or alpha that is not above 0.
    """
    if queries.ndim != 2 or embeddings.ndim != 2 or queries.shape[1] != embeddings.shape[1]:
        raise EvaluationError(
            f"ridge: embeddings must be [n, d] with one d, got {queries.shape}, {embeddings.shape}"
        )
    x, y, centre = _centred(embeddings, labels)
    if not 0 < alpha < float("inf"):
        raise EvaluationError(f"ridge: alpha is {alpha!r}; it must be a finite number above 0")
    weights = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    scores: Floats = (queries.astype(np.float64) - centre) @ weights + y.mean()
    return scores


def ridge_press(
    embeddings: npt.NDArray[np.floating], labels: npt.ArrayLike, alphas: Sequence[float] = ALPHAS
) -> Floats:
    """Mean squared leave-one-out error of ridge regression for each alpha: float64[len(alphas)].

    No refitting: leaving out row i leaves the error e_i / (1 - h_i), with e the residual and h the
    diagonal of the hat matrix of all rows (Allen 1974, Technometrics 16: PRESS), here
    h_i = 1/m + sum_j z_ij^2 / (l_j + alpha) with l, V the eigenvalues and vectors of X^T X and
    Z = X V. NaN for a single row, which cannot be left out. Raises EvaluationError as
    `ridge_scores`.
    """
    x, y, _ = _centred(embeddings, labels)
    if not len(alphas) or not all(0 < alpha < float("inf") for alpha in alphas):
        raise EvaluationError(f"ridge: alphas are {list(alphas)}; give finite numbers above 0")
    if len(y) == 1:
        return np.full(len(alphas), np.nan)
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
    embeddings: npt.NDArray[np.floating], labels: npt.ArrayLike, alphas: Sequence[float] = ALPHAS
) -> float:
    """The alpha with the lowest leave-one-out error, the largest of equals."""
    errors = ridge_press(embeddings, labels, alphas)
    if np.isnan(errors).all():
        return max(alphas)
    lowest = float(np.nanmin(errors))
    return max(alpha for alpha, error in zip(alphas, errors, strict=True) if error <= lowest)


def ridge_in_domain_scores(
    prompts: Sequence[str],
    embeddings: npt.NDArray[np.floating],
    labels: npt.ArrayLike,
    *,
    alphas: Sequence[float] = ALPHAS,
    folds: int = 5,
    seed: int = 0,
) -> Floats:
    """Ridge fitted on the benchmark's other folds, float64[n]; alpha by leave-one-out on them.

    `labels` float64[n], such as the gain strong - weak. Folds and errors as `knn_in_domain_scores`.
    """
    y = np.asarray(labels, dtype=np.float64)

    def fit(out: npt.NDArray[np.bool_]) -> Floats:
        alpha = ridge_alpha(embeddings[~out], y[~out], alphas)
        return ridge_scores(embeddings[out], embeddings[~out], y[~out], alpha)

    return _in_domain("ridge-in-domain", prompts, fit, folds=folds, seed=seed)


def _in_domain(
    name: str,
    prompts: Sequence[str],
    fit: Callable[[npt.NDArray[np.bool_]], Floats],
    *,
    folds: int,
    seed: int,
) -> Floats:
    """`fit` gets the mask of a held-out fold and returns its scores, from the rest alone."""
    fold = np.array([_fold(prompt, folds, seed) for prompt in prompts])
    if len(np.unique(fold)) < 2:
        raise EvaluationError(f"{name}: needs prompts in at least two folds; give more")
    scores = np.empty(len(fold))
    for held in np.unique(fold):
        out = fold == held
        scores[out] = fit(out)
    return scores


def _centred(
    embeddings: npt.NDArray[np.floating], labels: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """(embeddings less their mean [m, d], labels [m], that mean [d]), all float64."""
    y = np.asarray(labels, dtype=np.float64)
    if embeddings.ndim != 2 or y.shape != (len(embeddings),) or y.size == 0:
        raise EvaluationError(
            f"ridge: embeddings {embeddings.shape} and labels {y.shape}; expected [m, d] and [m] "
            "with m of at least 1"
        )
    x = embeddings.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EvaluationError("ridge: embeddings and labels must be finite; some are not")
    centre = x.mean(axis=0)
    return x - centre, y, centre


def _fold(prompt: str, folds: int, seed: int) -> int:
    # Lone surrogates may occur in prompts that were read from JSON.
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % folds


def _unit_rows(embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    rows = embeddings.astype(np.float32)
    unit: npt.NDArray[np.float32] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)
    )
    return unit

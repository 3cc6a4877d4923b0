"""Baselines that every router is shown beside.

random         scores i.i.d. uniform; its expectation is known, its spread is sampled
oracle         the true gain of the strong model: the best that any router could do
prompt-length  characters; longer prompts go to the strong model
knn            mean label of the nearest training prompts, the router's own training data
knn-in-domain  the same, fitted by cross-validation on the benchmark itself; it has seen labels of
               the benchmark's own kind, which a router before its first day of use has not
always-strong, always-weak are points, not curves: their reward and cost stand in every report.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..router.errors import EvaluationError
from .metrics import Floats, apgr_of_groups, check_rewards, cpt_of_groups

# Cells of one block of similarities: 32 MB of float32.
BLOCK_CELLS = 8_000_000


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
    fold = np.array([_fold(prompt, folds, seed) for prompt in prompts])
    if len(np.unique(fold)) < 2:
        raise EvaluationError("knn-in-domain: needs prompts in at least two folds; give more")
    scores = np.empty(len(fold))
    for held in np.unique(fold):
        out = fold == held
        scores[out] = knn_scores(embeddings[out], embeddings[~out], y[~out], k)
    return scores


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

"""Kinds of request: clusters of their embeddings, and the words that name them."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

_STARTS = 5
_STEPS = 50
_MOST = 20
_SAME = 1e-6  # of a cosine: nearer than this two embeddings are one
_WORD = re.compile(r"[^\W\d_]{3,30}")
_LOOKED_AT = 4000  # characters of a text, for words


def default_k(n: int) -> int:
    """How many clusters n requests are sorted into: few enough to be read, 20 at most."""
    return int(np.clip(round((n / 8) ** 0.5), 1, _MOST))


def fit(
    embeddings: Vectors, k: int, *, seed: int = 0, weights: npt.ArrayLike | None = None
) -> Vectors:
    """Centres float32[k', dim] of unit length, the heaviest cluster first, for embeddings
    float32[n, dim] of unit length; k' < k where fewer than k of them differ.

    Spherical k-means (Dhillon and Modha 2001), started by k-means++ (Arthur and Vassilvitskii
    2007). weights: of the rows, float64[n], above 0. Raises ConfigError for k < 1 or no embedding.
    """
    if k < 1 or not len(embeddings):
        raise ConfigError(f"{k} clusters of {len(embeddings)} requests: expected at least one each")
    w: Floats = np.ones(len(embeddings)) if weights is None else np.asarray(weights, np.float64)
    rng = np.random.default_rng(seed)
    # One start may end with two groups in one cluster and another group in two.
    tries = [_settled(embeddings, w, _start(embeddings, w, k, rng)) for _ in range(_STARTS)]
    centers = max(tries, key=lambda c: float(w @ (embeddings @ c.T).max(axis=1)))
    sizes = np.bincount(assign(embeddings, centers), weights=w, minlength=len(centers))
    order = np.argsort(-sizes, kind="stable")
    return np.ascontiguousarray(centers[order[sizes[order] > 0]])


def assign(embeddings: Vectors, centers: Vectors) -> Numbers:
    """The number of the nearest centre of each of n embeddings, int64[n]."""
    return np.asarray((embeddings @ centers.T).argmax(axis=1), dtype=np.int64)


def telling_words(
    texts: Sequence[str],
    labels: Numbers,
    k: int,
    *,
    weights: npt.ArrayLike | None = None,
    most: int = 6,
) -> list[tuple[str, ...]]:
    """For each of k clusters the words, at most `most`, that say most about being in it.

    labels int64[n]: the cluster of each text. A word scores its share inside times the log-ratio of
    that share to the share everywhere; where one cluster has all texts, its frequency.
    """
    w: Floats = np.ones(len(texts)) if weights is None else np.asarray(weights, np.float64)
    inside: list[dict[str, float]] = [defaultdict(float) for _ in range(k)]
    everywhere: dict[str, float] = defaultdict(float)
    for text, label, weight in zip(texts, labels.tolist(), w.tolist(), strict=True):
        for word in set(_WORD.findall(text[:_LOOKED_AT].lower())):
            inside[label][word] += weight
            everywhere[word] += weight
    total, sizes = float(w.sum()), np.bincount(labels, w, k)

    def named(words: Mapping[str, float], size: float) -> tuple[str, ...]:
        def score(word: str) -> float:
            share = words[word] / size
            return share if size >= total else share * math.log(share * total / everywhere[word])

        return tuple(sorted(words, key=lambda word: (-score(word), word))[:most])

    return [named(words, float(size)) for words, size in zip(inside, sizes, strict=True)]


def _start(embeddings: Vectors, weights: Floats, k: int, rng: np.random.Generator) -> Vectors:
    centers = embeddings[[rng.choice(len(embeddings), p=weights / weights.sum())]]
    while len(centers) < k:
        # Of unit vectors the squared distance is twice this.
        far = 1.0 - (embeddings @ centers.T).max(axis=1).astype(np.float64)
        far = np.where(far > _SAME, far, 0.0) * weights
        if not far.any():
            break
        chosen = rng.choice(len(far), p=far / far.sum())
        centers = np.concatenate([centers, embeddings[[chosen]]])
    return centers


def _settled(embeddings: Vectors, weights: Floats, centers: Vectors) -> Vectors:
    """Centres moved into the middle of their rows until no row changes its centre."""
    labels = assign(embeddings, centers)
    for _ in range(_STEPS):
        sums = ((labels == np.arange(len(centers))[:, None]) * weights) @ embeddings
        # A centre that no row is nearest to has no use.
        sums = sums[np.linalg.norm(sums, axis=1) > _SAME]
        centers = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
        before, labels = labels, assign(embeddings, centers)
        if np.array_equal(before, labels):
            break
    return centers

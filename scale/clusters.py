"""Cluster centres of embeddings: spherical k-means on a sample, then the nearest of each row."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..router.errors import ConfigError

Floats = npt.NDArray[np.float32]

_STEPS = 50


def fit(embeddings: Floats, k: int, *, seed: int = 0) -> Floats:
    """Centres float32[k', dim] of unit length, largest cluster first, of embeddings float32[n, dim]
    of unit length; k' < k only where fewer than k embeddings differ.

    Spherical k-means (Dhillon and Modha 2001, Machine Learning 42) from k-means++ starts (Arthur
    and Vassilvitskii 2007, SODA). Raises ConfigError where k < 1 or there are no embeddings.
    """
    if k < 1 or len(embeddings) == 0:
        raise ConfigError(f"{k} clusters of {len(embeddings)} rows; expected at least one of both")
    rng = np.random.default_rng(seed)
    centers = embeddings[[int(rng.integers(len(embeddings)))]]
    while len(centers) < k:
        # Squared distance on the sphere, but for a factor; rounding makes tiny ones of zeros.
        far = np.maximum(1.0 - (embeddings @ centers.T).max(axis=1), 0.0).astype(np.float64)
        far[far < 1e-6] = 0.0
        if not far.any():
            break
        centers = np.vstack([centers, embeddings[rng.choice(len(far), p=far / far.sum())]])
    labels = np.full(len(embeddings), -1)
    for _ in range(_STEPS):
        now = (embeddings @ centers.T).argmax(axis=1)
        if np.array_equal(now, labels):
            break
        labels = now
        sums = np.zeros_like(centers)
        np.add.at(sums, labels, embeddings)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A centre that no row is nearest to stays where it was.
        centers = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centers)
    sizes = np.bincount(labels, minlength=len(centers))
    return np.ascontiguousarray(centers[np.argsort(-sizes, kind="stable")], dtype=np.float32)


def nearest(embedding: Floats, centers: Floats) -> int:
    """The number of the centre with the largest cosine to an embedding float32[dim]."""
    return int((centers @ embedding).argmax())


def read_centers(path: Path) -> Floats:
    """Centres that a run has written. Raises ConfigError where it is no such file."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: no readable .npy file of cluster centres ({error})") from error
    if found.ndim != 2 or found.dtype != np.float32 or not len(found):
        raise ConfigError(
            f"{path} holds {found.dtype}{list(found.shape)}; expected centres float32[k, dim]"
        )
    return np.ascontiguousarray(found)

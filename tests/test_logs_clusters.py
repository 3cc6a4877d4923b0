"""Clusters of embeddings."""

import numpy as np
import pytest
from thriftroute.data.clusters import assign, default_k, fit, telling_words
from thriftroute.errors import ConfigError


def around(sizes: list[int], dim: int = 16, noise: float = 0.1) -> np.ndarray:
    """Unit vectors around so many axes."""
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(dim)[: len(sizes)], sizes, axis=0)
    found = centers + rng.normal(0, noise, (sum(sizes), dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(10))
def test_groups_that_are_apart_are_found_the_largest_first(seed: int) -> None:
    embeddings = around([50, 200, 100])
    centers = fit(embeddings, 3, seed=seed)
    labels = assign(embeddings, centers)
    assert np.allclose(np.linalg.norm(centers, axis=1), 1.0)
    assert np.bincount(labels).tolist() == [200, 100, 50]
    assert all(len(set(part)) == 1 for part in np.split(labels, [50, 250]))


def test_weights_order_the_clusters() -> None:
    embeddings = around([50, 200])
    weights = np.repeat([10.0, 1.0], [50, 200])
    labels = assign(embeddings, fit(embeddings, 2, seed=0, weights=weights))
    assert set(labels[:50]) == {0}


def test_the_same_seed_gives_the_same_centers() -> None:
    embeddings = around([30, 30], noise=1.0)
    assert np.array_equal(fit(embeddings, 5, seed=4), fit(embeddings, 5, seed=4))


def test_no_more_clusters_than_there_are_differences() -> None:
    embeddings = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    assert len(fit(embeddings, 8)) == 3
    assert len(fit(embeddings[:1], 8)) == 1


def test_how_many_clusters_by_default() -> None:
    assert [default_k(n) for n in (1, 8, 100, 800, 10_000)] == [1, 1, 4, 10, 20]


def test_nothing_to_cluster() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        fit(np.empty((0, 4), np.float32), 3)
    with pytest.raises(ConfigError, match="0 clusters"):
        fit(np.eye(4, dtype=np.float32), 0)


def test_words_that_tell_a_cluster_from_the_others() -> None:
    texts = ["solve this integral", "solve this sum", "translate this sentence", "empty"]
    labels = np.array([0, 0, 1, 1])
    first, second, third = telling_words(texts, labels, 3, most=2)
    assert first[0] == "solve" and "this" not in first + second
    assert set(telling_words(texts, labels, 2, weights=[1, 1, 1, 9])[1]) >= {"empty"}
    assert third == ()
    assert telling_words(["b aaa", "aaa ccc"], np.zeros(2, np.int64), 1) == [("aaa", "ccc")]

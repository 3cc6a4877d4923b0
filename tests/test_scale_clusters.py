"""Cluster centres: they are found where they are, the same for the same seed."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.router.errors import ConfigError
from thriftroute.scale.clusters import fit, nearest, read_centers


def around(centers: npt.NDArray[np.float32], sizes: list[int]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    rows = np.repeat(centers, sizes, axis=0) + rng.normal(0, 0.05, (sum(sizes), centers.shape[1]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rng.permutation(rows).astype(np.float32)


def test_three_kinds_are_found_the_largest_first() -> None:
    truth = np.eye(8, dtype=np.float32)[:3]
    centers = fit(around(truth, [20, 70, 40]), 3, seed=0)
    assert centers.dtype == np.float32
    assert [nearest(row, truth) for row in centers] == [1, 2, 0]
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose((centers * truth[[1, 2, 0]]).sum(axis=1), 1.0, atol=0.01)


def test_the_same_seed_gives_the_same_centres() -> None:
    rows = around(np.eye(6, dtype=np.float32), [9] * 6)
    np.testing.assert_array_equal(fit(rows, 4, seed=3), fit(rows, 4, seed=3))


def test_there_are_no_more_centres_than_distinct_rows() -> None:
    rows = np.repeat(np.eye(4, dtype=np.float32)[:2], 10, axis=0)
    assert sorted(fit(rows, 5).tolist()) == sorted(np.eye(4)[:2].tolist())


@pytest.mark.parametrize(("n", "k"), [(0, 2), (3, 0)])
def test_nothing_to_cluster(n: int, k: int) -> None:
    with pytest.raises(ConfigError, match="at least one of both"):
        fit(np.ones((n, 2), np.float32), k)


def test_centres_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.npy"
    np.save(path, np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(read_centers(path), np.eye(3, dtype=np.float32))
    np.save(path, np.eye(3))
    with pytest.raises(ConfigError, match=r"float64\[3, 3\]; expected centres"):
        read_centers(path)
    path.write_text("no array")
    with pytest.raises(ConfigError, match="no readable"):
        read_centers(path)
    with pytest.raises(ConfigError, match="no readable"):
        read_centers(tmp_path / "none.npy")

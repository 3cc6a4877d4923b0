"""Samples that stand for a log: sizes, weights without bias, shares of clusters and of time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thriftroute.data.logs.sampling import draw
from thriftroute.errors import ConfigError


def test_equal_weights_are_drawn_evenly_along_the_order() -> None:
    order = np.random.default_rng(0).permutation(1000)
    sample = draw(np.ones(1000), 100, seed=0, order=order)
    places = np.flatnonzero(np.isin(order, sample.rows))
    assert len(sample.rows) == 100
    assert set(np.diff(places)) == {10}
    assert np.allclose(sample.weights, 10.0)


def test_the_same_seed_draws_the_same() -> None:
    first, again, other = (draw(np.ones(1000), 50, seed=seed).rows for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_sample_as_large_as_the_log_is_all_of_it() -> None:
    weights = np.array([1.0, 5.0, 2.0])
    for size in (3, 10):
        sample = draw(weights, size, seed=0)
        assert sample.rows.tolist() == [0, 1, 2]
        assert sample.weights.tolist() == weights.tolist()


def test_what_stands_for_much_is_drawn_surely_and_for_itself() -> None:
    weights = np.ones(100)
    weights[7] = 900.0
    sample = draw(weights, 10, seed=3)
    assert 7 in sample.rows
    assert sample.weights[sample.rows.tolist().index(7)] == 900.0
    others = sample.weights[sample.rows != 7]
    assert np.allclose(others, 99 / 9)


@pytest.mark.parametrize("at_least", [0, 4])
def test_sums_over_samples_have_no_bias(at_least: int) -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 9, 300).astype(np.float64)
    weights[5] = 400.0
    groups = rng.choice(4, 300, p=[0.75, 0.2, 0.03, 0.02])
    values = rng.normal(groups, 1.0)
    sums = []
    for seed in range(2000):
        sample = draw(
            weights, 40, seed=seed, order=np.argsort(groups), groups=groups, at_least=at_least
        )
        assert 39 <= len(sample.rows) <= 41
        sums.append(float((values[sample.rows] * sample.weights).sum()))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - (values * weights).sum()) < 4 * error


def test_clusters_have_their_shares_and_at_least_so_many() -> None:
    groups = np.repeat([0, 1, 2, 3], [700, 250, 47, 3])
    for seed in range(20):
        shares = np.bincount(groups[draw(np.ones(1000), 100, seed=seed, groups=groups).rows])
        assert np.all(np.abs(shares - [70, 25, 4.7, 0.3][: len(shares)]) <= 1)
        sample = draw(np.ones(1000), 100, seed=seed, groups=groups, at_least=10)
        assert np.bincount(groups[sample.rows]).tolist()[2:] == [10, 3]
        assert sample.weights.sum() == pytest.approx(1000, rel=0.05)


@given(
    weights=st.lists(st.floats(0.5, 1e6), min_size=1, max_size=60),
    size=st.integers(1, 70),
    seed=st.integers(0, 9),
)
def test_any_weights_give_the_size_and_no_row_twice(
    weights: list[float], size: int, seed: int
) -> None:
    sample = draw(weights, size, seed=seed)
    assert len(sample.rows) == min(size, len(weights))
    assert np.all(np.diff(sample.rows) > 0)
    assert np.all(sample.weights >= np.array(weights)[sample.rows] * (1 - 1e-9))


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        draw([1.0], 0, seed=0)
    with pytest.raises(ConfigError, match="make it at least 20"):
        draw(np.ones(100), 10, seed=0, groups=np.arange(100) % 2, at_least=10)

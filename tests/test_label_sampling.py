"""Drawing with known probabilities, and weights that keep means unbiased."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.errors import ConfigError
from thriftroute.labels.ledger import Round
from thriftroute.labels.sampling import next_round, probabilities, systematic, uncertainty, weights


def test_a_router_is_least_certain_at_the_threshold() -> None:
    assert uncertainty([0.0, 0.3, 0.5, 1.0]) == pytest.approx([0.0, 0.6, 1.0, 0.0])
    assert uncertainty([0.0, 0.2, 1.0], 0.2) == pytest.approx([0.75, 1.0, 0.0])


def test_routers_that_disagree_are_uncertain() -> None:
    found = uncertainty([[0.9, 0.9, 0.0], [0.9, 0.5, 1.0]])
    assert found[0] < found[1] < found[2] == 1.0


def test_scores_that_are_none_are_refused() -> None:
    for bad in ([0.5, 1.5], [0.5, float("nan")]):
        with pytest.raises(ConfigError, match="not in"):
            uncertainty(bad)


@settings(max_examples=200)
@given(
    doubt=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    n=st.integers(0, 40),
    explore=st.floats(0.01, 1),
)
def test_probabilities_add_up_to_what_is_drawn(doubt: list[float], n: int, explore: float) -> None:
    n = min(n, len(doubt))
    p = probabilities(doubt, n, explore=explore)
    assert p.sum() == pytest.approx(n)
    assert np.all((p > 0) | (n == 0))
    assert np.all(p <= 1 + 1e-12)
    drawn = systematic(p, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == len(drawn) == n
    assert set(np.flatnonzero(p >= 1).tolist()) <= set(drawn.tolist())


def test_more_doubt_is_drawn_more_often_and_none_never() -> None:
    doubt = np.array([1.0, 0.5, 0.0, 0.0])
    p = probabilities(doubt, 2, explore=0.4)
    assert p[0] > p[1] > p[2] == p[3] > 0
    assert probabilities(np.zeros(4), 2, explore=0.4) == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("explore", [0.0, -1.0, 1.5, float("nan")])
def test_without_any_exploring_nothing_is_drawn(explore: float) -> None:
    with pytest.raises(ConfigError, match="--explore"):
        probabilities([1.0, 0.5], 1, explore=explore)


def test_rows_are_drawn_as_often_as_their_probabilities_say() -> None:
    p = probabilities([1.0, 0.9, 0.3, 0.1, 0.0, 0.0], 3, explore=0.3)
    rng = np.random.default_rng(1)
    counts, firsts = np.zeros(6), np.zeros(6)
    for _ in range(4000):
        drawn = systematic(p, rng)
        counts[drawn] += 1
        firsts[drawn[0]] += 1
    # Four standard errors.
    assert np.all(np.abs(counts / 4000 - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 1e-9)
    # Of what is drawn, the first is any of it alike.
    assert np.all(np.abs(firsts / 4000 - p / 3) < 4 * np.sqrt(p / 3 / 4000))


def test_neighbours_are_drawn_together_too() -> None:
    rng = np.random.default_rng(0)
    draws = [set(systematic(np.full(10, 0.5), rng).tolist()) for _ in range(300)]
    # 2 of 9 for any pair; in the rows' own order neighbours would never meet.
    assert 30 < sum({0, 1} <= drawn for drawn in draws) < 110


def test_a_round_leaves_out_what_was_drawn_and_is_drawn_alike() -> None:
    rows = {f"r{i}": 1.0 for i in range(10)}
    one = next_round(rows, [], 4, seed=[3, 1])
    assert one == next_round(rows, [], 4, seed=[3, 1])
    assert one.population == 10
    assert set(one.rows.values()) == {0.4}
    two = next_round(rows, list(one.rows), 100, seed=[3, 2])
    assert set(one.rows) | set(two.rows) == set(rows)
    assert two.population == len(two.rows) == 6
    assert set(two.rows.values()) == {1.0}


def test_equal_chances_have_equal_weights() -> None:
    found = weights([Round(10, {"a": 0.2, "b": 0.2})], ["a", "b"])
    assert found == {"a": 1.0, "b": 1.0}
    assert weights([Round(10, {"a": 0.2})], []) == {}


def test_weights_keep_the_mean_whatever_earlier_labels_led_to() -> None:
    """Three rounds, the later ones hunting for what the earlier ones found: the weighted mean is
    that of the whole, and the plain mean is far from it."""
    rng = np.random.default_rng(0)
    value = (rng.random(60) < 0.3).astype(float)
    near = np.clip(value * 0.8 + rng.random(60) * 0.3, 0, 1)  # a hint of the value
    rows = {str(i): 1.0 for i in range(60)}
    plain, weighted = [], []
    for seed in range(1500):
        rounds = [next_round(rows, [], 6, seed=[seed, 1])]
        for number in (2, 3):
            drawn = [row for r in rounds for row in r.rows]
            seen = [value[int(row)] for row in drawn]
            # What is drawn next depends on what was found.
            power = 1.0 + 3.0 * np.mean(seen)
            rounds.append(
                next_round(
                    rows, drawn, 6, seed=[seed, number], explore=0.2,
                    doubt=lambda ids, power=power: near[[int(i) for i in ids]] ** power,
                )
            )  # fmt: skip
        drawn = [row for r in rounds for row in r.rows]
        weight = weights(rounds, drawn)
        plain.append(np.mean([value[int(row)] for row in drawn]))
        # The weights without their scaling: sums over the log, then their mean.
        raw = {}
        for t, r in enumerate(rounds):
            for row, p in r.rows.items():
                raw[row] = (1 / p + (len(rounds) - 1 - t)) / len(rounds)
        total = sum(raw.values())
        assert all(weight[row] * total / len(raw) == pytest.approx(raw[row]) for row in raw)
        weighted.append(sum(raw[row] * value[int(row)] for row in drawn) / 60)
    truth = value.mean()
    error = np.std(weighted) / np.sqrt(1500)
    assert abs(np.mean(weighted) - truth) < 4 * error
    assert abs(np.mean(plain) - truth) > 20 * error


def test_rows_without_a_label_are_taken_to_be_like_their_round() -> None:
    rounds = [Round(10, {"a": 0.2, "b": 0.2}), Round(8, {"c": 0.25, "d": 0.25})]
    found = weights(rounds, ["a", "c", "d"])
    assert found["a"] == pytest.approx(2 * (0.5 / 0.2 + 0.5) / (0.5 / 0.25) * found["c"])
    assert sum(found.values()) == pytest.approx(3)


def test_rows_that_stand_for_many_requests_are_not_missed() -> None:
    mass = np.array([100.0] + [1.0] * 99)
    p = probabilities(np.ones(100), 10, mass=mass)
    assert p[0] == 1.0
    assert p[1:] == pytest.approx(9 / 99)
    # Of rows that stand for as much, what a label stands for is the same, however it was drawn.
    mass = np.linspace(1, 3, 40)
    drawn = next_round({str(i): m for i, m in enumerate(mass)}, [], 8, seed=[1, 1])
    each = {row: mass[int(row)] / chance for row, chance in drawn.rows.items()}
    assert list(each.values()) == pytest.approx([mass.sum() / 8] * 8)


def test_doubt_and_mass_both_count() -> None:
    p = probabilities([1.0, 0.0, 1.0, 0.0], 1, explore=0.5, mass=[3.0, 3.0, 1.0, 1.0])
    assert p == pytest.approx([0.5 * 3 / 8 + 0.5 * 3 / 4, 0.5 * 3 / 8, 0.0625 + 0.125, 0.0625])

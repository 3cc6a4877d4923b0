"""Agreement of two ways of labelling."""

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.labels.agreement import agreement


def test_kappa_is_that_of_the_textbook() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed .7, by chance .5.
    first = [1.0] * 25 + [0.0] * 25
    second = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    found = agreement(first, second)
    assert found["n"] == 50
    assert found["agreement"] == pytest.approx(0.7)
    assert found["kappa"] == pytest.approx(0.4)
    low, high = found["kappa_ci"]
    # The large-sample standard error is .13 (Fleiss, Cohen and Everitt 1969).
    assert low == pytest.approx(0.4 - 1.96 * 0.13, abs=0.05)
    assert high == pytest.approx(0.4 + 1.96 * 0.13, abs=0.05)


def test_full_agreement_of_few_is_not_certainty() -> None:
    found = agreement([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert found["kappa"] == found["kappa_ci"][1] == found["agreement_ci"][1] == 1.0
    assert found["kappa_ci"][0] < 0.7
    assert agreement([1.0, 0.0] * 100, [1.0, 0.0] * 100)["kappa_ci"][0] > 0.95


def test_where_chance_would_agree_too_kappa_is_not_defined() -> None:
    found = agreement([0.5] * 10, [0.5] * 10)
    assert found["agreement"] == 1.0
    assert found["kappa"] is None
    assert found["agreement_ci"][0] < 1.0
    assert found["kappa_ci"] == [None, None]


def test_full_disagreement_is_below_chance() -> None:
    assert agreement([1.0, 0.0], [0.0, 1.0])["kappa"] == -1.0


def test_intervals_cover_what_they_say() -> None:
    rng = np.random.default_rng(0)
    table = np.array([[0.30, 0.05, 0.05], [0.05, 0.15, 0.05], [0.05, 0.05, 0.25]])
    chance = float(table.sum(0) @ table.sum(1))
    kappa = (float(np.trace(table)) - chance) / (1 - chance)
    hits = 0
    for _ in range(200):
        cells = rng.choice(9, size=60, p=table.ravel())
        found = agreement((cells // 3).astype(float).tolist(), (cells % 3).astype(float).tolist())
        hits += found["kappa_ci"][0] <= kappa <= found["kappa_ci"][1]
    assert 180 <= hits <= 199


@pytest.mark.parametrize(("one", "other"), [([], []), ([1.0], [1.0, 0.0])])
def test_what_is_no_pair_is_refused(one: list[float], other: list[float]) -> None:
    with pytest.raises(EvaluationError, match="expected pairs"):
        agreement(one, other)

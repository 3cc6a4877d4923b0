"""Arms of an experiment: the error of a ratio over units, the interval, too few of them."""

import numpy as np
import pytest
from thriftroute.eval.drift.arms import LEAST, ArmSums, compare, difference


def sums(x: np.ndarray, d: np.ndarray) -> ArmSums:
    parts = (x.sum(), d.sum(), (x * x).sum(), (x * d).sum(), (d * d).sum())
    return ArmSums(int((d > 0).sum()), *(float(part) for part in parts))


def drawn(seed: int, units: int = 400, price: float = 1.0) -> ArmSums:
    random = np.random.default_rng(seed)
    requests = random.geometric(0.3, units).astype(float)
    return sums(price * requests * random.lognormal(0, 0.5, units), requests)


def test_the_variance_is_that_of_many_samples() -> None:
    samples = [drawn(seed) for seed in range(600)]
    observed = np.var([s.mean for s in samples])
    assert np.mean([s.variance() for s in samples]) == pytest.approx(observed, rel=0.15)
    # One request a unit: the variance of a plain mean.
    x = np.random.default_rng(1).random(50)
    assert sums(x, np.ones(50)).variance() == pytest.approx(x.var(ddof=1) / 50)


def test_alike_arms_do_not_differ_and_others_do() -> None:
    same = difference("cost", drawn(1), drawn(2), alpha=0.05)
    assert not same.differs
    assert same.interval is not None
    assert same.difference is not None
    assert same.interval[0] < same.difference < same.interval[1]
    other = difference("cost", drawn(1), drawn(2, price=1.5), alpha=0.05)
    assert other.differs
    # Narrower at a lower level of confidence.
    narrow = difference("cost", drawn(1), drawn(2), alpha=0.3).interval
    assert narrow is not None
    assert narrow[1] - narrow[0] < same.interval[1] - same.interval[0]


def test_too_few_units_have_no_interval() -> None:
    few = difference("cost", drawn(1, LEAST - 1), drawn(2), alpha=0.05)
    assert (few.interval, few.differs) == (None, False)
    assert few.difference is not None


def test_an_arm_without_anything_is_said_to_be_unknown() -> None:
    found = compare("e", {"control": {"units": 3, "requests": 9, "metrics": {"cost": drawn(1, 3)}}})
    (cost,) = found.differences
    assert (cost.treatment, cost.difference, cost.interval, cost.differs) == (
        None,
        None,
        None,
        False,
    )
    assert found.units == {"control": 3, "treatment": 0}
    assert compare("e", {}).to_dict()["metrics"] == {}


def test_arms_that_never_vary_differ_where_they_are_not_the_same() -> None:
    none, all_ = (sums(np.full(200, value), np.ones(200)) for value in (0.0, 1.0))
    assert difference("cost", none, none, alpha=0.05).interval == (0.0, 0.0)
    assert not difference("cost", none, none, alpha=0.05).differs
    for metric in ("cost", "errors", "strong_share"):
        assert difference(metric, none, all_, alpha=0.05).differs


def test_no_error_in_a_small_arm_is_no_proof_that_it_has_fewer() -> None:
    # Errors of 1% of 3,000 requests; none in 100, as in every third sample of 100.
    control = sums(np.repeat([1.0, 0.0], [30, 2970]), np.ones(3000))
    treatment = sums(np.zeros(100), np.ones(100))
    found = difference("errors", control, treatment, alpha=0.05)
    assert found.difference == pytest.approx(-0.01)
    assert not found.differs
    # As plain numbers, which may be anything, the two would differ.
    assert difference("cost", control, treatment, alpha=0.05).differs


@pytest.mark.parametrize(
    ("metric", "rate", "rated"), [("errors", 0.002, 1.0), ("feedback", 0.9, 0.05)]
)
def test_rare_events_raise_no_more_false_alarms_than_stated(
    metric: str, rate: float, rated: float
) -> None:
    # A tenth is treated, arms are alike, and all is looked at every 100 sessions of 2,000.
    random = np.random.default_rng(5)
    alarms = 0
    for _ in range(100):
        requests = random.binomial(random.geometric(0.3, 2000), rated).astype(float)
        x = random.binomial(requests.astype(int), rate).astype(float)
        treated = random.random(2000) < 0.1
        alarms += any(
            difference(metric, _arm(x, requests, ~treated, k), _arm(x, requests, treated, k),
                       alpha=0.05).differs
            for k in range(100, 2001, 100)
        )  # fmt: skip
    assert alarms <= 5


def _arm(x: np.ndarray, d: np.ndarray, inside: np.ndarray, k: int) -> ArmSums:
    x, d = x[:k][inside[:k]], d[:k][inside[:k]]
    parts = (x.sum(), d.sum(), (x * x).sum(), (x * d).sum(), (d * d).sum())
    return ArmSums(len(x), *(float(part) for part in parts))

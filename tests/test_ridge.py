"""Ridge in blocks: the same as the Gaussian process that it stands for, on data small enough to
write that out; and what few, many and meaningless labels make of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.errors import TrainingError

optimize = pytest.importorskip("scipy.optimize")

from thriftroute.training.models import ridge  # noqa: E402
from thriftroute.training.models.ridge import (  # noqa: E402
    Block,
    Variances,
    cross_validated,
    estimate_variances,
    fit_blocks,
)

Floats = npt.NDArray[np.float64]
BLOCKS = (Block(0, 6), Block(6, 10, own_units=True))
GIVEN = Variances((0.3, 0.07), 0.5, 1.5)


def data(n: int, seed: int = 0, signal: float = 1.0) -> tuple[Floats, Floats, Floats]:
    """x [n, 10] (its second block in four units that differ, its last column constant), a base
    score, and y: half of the base, a direction of each block, and noise of variance 1."""
    rng = np.random.default_rng(seed)
    x = np.concatenate((rng.normal(3, 1, (n, 6)), rng.normal(0, [1, 10, 0.1, 0], (n, 4))), axis=1)
    base = rng.normal(size=n)
    y = 0.5 * base + signal * (x[:, 0] - x[:, 1] + 0.1 * x[:, 7]) + rng.normal(size=n)
    return x, base, y


def kernels(x: Floats, new: Floats) -> list[Floats]:
    """Of each block: inner products of new rows with x's, in the units that x's rows set."""
    found = []
    for block in BLOCKS:
        part, other = x[:, block.start : block.stop], new[:, block.start : block.stop]
        center, scale = part.mean(0), np.ones(part.shape[1])
        if block.own_units:
            scale = np.array([0 if s < 1e-9 else 1 / s for s in part.std(0)])
        z, w = (part - center) * scale, (other - center) * scale
        found.append(w @ z.T / np.mean([row @ row for row in z]))
    return found


def process(
    x: Floats, y: Floats, new: Floats, variances: Variances, weight: Floats | None = None,
    base: Floats | None = None, new_base: Floats | None = None, slope: float = 0.0,
) -> Floats:  # fmt: skip
    """What a Gaussian process with a mean of unknown size predicts for new rows."""
    noise = variances.noise / (np.ones(len(y)) if weight is None else weight / weight.mean())
    covariance = sum(v * k for v, k in zip(variances.blocks, kernels(x, x), strict=True))
    to_new = sum(v * k for v, k in zip(variances.blocks, kernels(x, new), strict=True))
    rest, add = y, np.zeros(len(new))
    if base is not None and new_base is not None:
        rest, add = y - slope * base, slope * new_base
        covariance = covariance + (slope / 2) ** 2 * np.outer(base, base)
        to_new = to_new + (slope / 2) ** 2 * np.outer(new_base, base)
    inverse = np.linalg.inv(covariance + np.diag(noise))
    mean = inverse.sum(0) @ rest / inverse.sum()
    return np.asarray(mean + to_new @ inverse @ (rest - mean) + add)


class TestFit:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_it_is_the_gaussian_process(self, weighted: bool) -> None:
        x, _, y = data(40)
        new, _, _ = data(15, seed=1)
        weight = np.random.default_rng(2).uniform(0.2, 3, 40) if weighted else None
        fitted = fit_blocks(x, y, BLOCKS, variances=GIVEN, weight=weight)
        expected = process(x, y, new, GIVEN, weight)
        np.testing.assert_allclose(fitted.predict(new), expected, atol=1e-8)
        assert fitted.slope == 0.0

    def test_with_a_base(self) -> None:
        x, base, y = data(40)
        new, new_base, _ = data(15, seed=1)
        weight = np.random.default_rng(2).uniform(0.2, 3, 40)
        fitted = fit_blocks(x, y, BLOCKS, variances=GIVEN, weight=weight, base=base, base_slope=0.3)
        expected = process(x, y, new, GIVEN, weight, base, new_base, 0.3)
        np.testing.assert_allclose(fitted.predict(new, new_base), expected, atol=1e-8)
        assert fitted.slope != 0.3

    def test_weights_are_on_raw_columns(self) -> None:
        x, base, y = data(40)
        fitted = fit_blocks(x, y, BLOCKS, variances=GIVEN, base=base, base_slope=0.3)
        by_hand = [
            fitted.intercept + fitted.slope * base[i] + sum(fitted.weights * x[i])
            for i in range(40)
        ]
        np.testing.assert_allclose(fitted.predict(x, base), by_hand, atol=1e-12)

    def test_a_column_that_varies_nowhere_has_no_weight(self) -> None:
        x, _, y = data(40)
        x[:, 3] = 7.0
        fitted = fit_blocks(x, y, BLOCKS, variances=GIVEN)
        assert (fitted.weights == 0).tolist() == [i in (3, 9) for i in range(10)]

    def test_units_of_cheap_features_do_not_matter(self) -> None:
        x, _, y = data(40)
        other = x.copy()
        other[:, 6:] = other[:, 6:] * [3, 1e-3, 1e4, 5] - 100
        one, two = (fit_blocks(values, y, BLOCKS, variances=GIVEN) for values in (x, other))
        np.testing.assert_allclose(one.predict(x), two.predict(other), atol=1e-8)

    def test_one_unit_for_all_layers(self) -> None:
        """A larger column of a block that shares one unit is shrunk less."""
        x, _, y = data(40)
        other = x.copy()
        other[:, 0] *= 3
        one, two = (fit_blocks(values, y, BLOCKS, variances=GIVEN) for values in (x, other))
        assert np.abs(one.predict(x) - two.predict(other)).max() > 0.05
        np.testing.assert_allclose(
            fit_blocks(100 * x, y, BLOCKS, variances=GIVEN).predict(100 * x), one.predict(x)
        )

    def test_a_weight_of_two_is_a_row_twice(self) -> None:
        """Rows of length one, each beside its mirror image: repeating a pair moves neither the
        centre nor the scale, so that nothing but the weights differs."""
        rng = np.random.default_rng(0)
        half = rng.normal(size=(20, 6))
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        x, y = np.concatenate((half, -half)), rng.normal(size=40)
        twice = np.arange(40) % 20 < 7
        weight = np.where(twice, 2.0, 1.0)
        rows = np.concatenate((np.arange(40), np.flatnonzero(twice)))
        blocks = (Block(0, 6),)
        # Weights have mean 1: the noise is that of an average row, 54 / 40 of a single one's.
        fitted = fit_blocks(x, y, blocks, variances=Variances((0.4,), 0.2, 0.0), weight=weight)
        repeated = Variances((0.4,), 0.2 * 54 / 40, 0.0)
        expected = fit_blocks(x[rows], y[rows], blocks, variances=repeated)
        np.testing.assert_allclose(fitted.weights, expected.weights, atol=1e-10)
        assert fitted.intercept == pytest.approx(expected.intercept)
        plain = fit_blocks(x, y, blocks, variances=Variances((0.4,), 0.2, 0.0))
        assert np.abs(plain.weights - fitted.weights).max() > 1e-3

    def test_the_unit_of_the_weights_does_not_matter(self) -> None:
        x, base, y = data(40)
        weight = np.random.default_rng(2).uniform(0.2, 3, 40)
        options: dict[str, Any] = {"variances": GIVEN, "base": base, "base_slope": 0.3}
        one = fit_blocks(x, y, BLOCKS, weight=weight, **options)
        two = fit_blocks(x, y, BLOCKS, weight=50 * weight, **options)
        np.testing.assert_allclose(one.weights, two.weights, atol=1e-10)

    def test_what_is_told_of_it(self) -> None:
        x, _, y = data(40)
        fitted = fit_blocks(x, y, BLOCKS, variances=GIVEN)
        assert fitted.evidence == 1.5


def log_posterior(
    log: Floats, x: Floats, y: Floats, weight: Floats, base: Floats, slope: float, blocks: bool
) -> float:
    """Of the logarithms of the variances, in units of the variance of y; written from the model."""
    total = y.var()
    share = weight / weight.mean()
    centred = base - np.average(base, weights=share)
    mean = np.average(y, weights=share) + slope * centred
    covariance = np.full((len(y), len(y)), total) + (slope / 2) ** 2 * np.outer(centred, centred)
    if blocks:
        for value, kernel in zip(log[:-1], kernels(x, x), strict=True):
            covariance += np.exp(value) * total * kernel
    covariance += np.diag(np.exp(log[-1]) * total / share)
    _, size = np.linalg.slogdet(covariance)
    rest = y - mean
    prior = np.array([*[np.log(0.03)] * (len(log) - 1), 0.0])
    nll = (size + rest @ np.linalg.solve(covariance, rest)) / 2
    return float(-nll - np.sum(((log - prior) / 0.5) ** 2) / 2)


class TestVariances:
    @pytest.mark.parametrize("signal", [0.0, 0.3])
    def test_they_are_the_likeliest(self, signal: float) -> None:
        x, base, y = data(60, signal=signal)
        weight = np.random.default_rng(2).uniform(0.5, 2, 60)
        options: dict[str, Any] = {"weight": weight, "base": base, "base_slope": 0.3}
        found = estimate_variances(x, y, BLOCKS, **options)
        log = np.log(np.array([*found.blocks, found.noise]) / y.var())
        at = log_posterior(log, x, y, weight, base, 0.3, True)

        def best(start: list[float], blocks: bool) -> Any:
            return optimize.minimize(
                lambda log: -log_posterior(log, x, y, weight, base, 0.3, blocks),
                start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7, "maxiter": 800},
            )  # fmt: skip

        whole, bare = best([-3.0, -3.0, -0.1], True), best([-0.1], False)
        assert at == pytest.approx(-whole.fun, abs=0.01)
        assert np.abs(log - whole.x).max() < 0.2
        # The determinant of the weights is the same with and without the blocks.
        assert found.evidence == pytest.approx(bare.fun - whole.fun, abs=0.01)

    def test_the_base_is_part_of_what_is_known_without_the_blocks(self) -> None:
        """What the base tells already is no evidence for the blocks."""
        x, _, _ = data(200)
        base = x[:, 0] - x[:, 1]
        base = (base - base.mean()) / base.std()
        y = 2 * base + np.random.default_rng(5).normal(size=200)
        alone = estimate_variances(x, y, BLOCKS)
        beside = estimate_variances(x, y, BLOCKS, base=base, base_slope=2.0)
        assert alone.evidence > 30
        assert beside.evidence < 1
        assert max(beside.blocks) < 0.1 * max(alone.blocks)

    @pytest.mark.parametrize("seed", range(3))
    def test_noise_shrinks_the_blocks_and_the_base_stays(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        x, base = rng.normal(size=(300, 40)), rng.normal(size=300)
        blocks = (Block(0, 30), Block(30, 40, own_units=True))
        y = rng.normal(size=300)
        slope = 0.14
        variances = estimate_variances(x, y, blocks, base=base, base_slope=slope)
        fitted = fit_blocks(x, y, blocks, variances=variances, base=base, base_slope=slope)
        assert sum(variances.blocks) < 0.1 * y.var()
        assert variances.noise > 0.8 * y.var()
        assert fitted.evidence < 2
        predicted = fitted.predict(x, base)
        assert np.std(predicted - fitted.slope * base) < 0.25 * y.std()

    def test_a_strong_signal_takes_over(self) -> None:
        x, base, y = data(400)
        slope = 0.14 * float(y.std())
        variances = estimate_variances(x, y, BLOCKS, base=base, base_slope=slope)
        fitted = fit_blocks(x, y, BLOCKS, variances=variances, base=base, base_slope=slope)
        new, new_base, new_y = data(400, seed=1)
        truth = new[:, 0] - new[:, 1] + 0.1 * new[:, 7]
        predicted = fitted.predict(new, new_base)
        assert np.corrcoef(predicted - fitted.slope * new_base, truth)[0, 1] > 0.99
        assert 1 - np.mean((new_y - predicted) ** 2) / new_y.var() > 0.7
        assert fitted.evidence > 100
        assert variances.noise == pytest.approx(1.0, abs=0.2)
        # y holds half of the base; a slope of more than twice what was expected is held back.
        assert 0.3 < fitted.slope < 0.55

    def test_more_labels_let_the_blocks_say_more(self) -> None:
        """And with few it is no worse than the base that it starts from: means of eight draws."""
        new, new_base, _ = data(500, seed=99, signal=0.3)
        truth = 0.5 * new_base + 0.3 * (new[:, 0] - new[:, 1] + 0.1 * new[:, 7])
        told = []
        for n in (15, 60, 300):
            found = []
            for seed in range(8):
                x, base, y = data(n, seed, signal=0.3)
                options: dict[str, Any] = {"base": base, "base_slope": 0.2}
                variances = estimate_variances(x, y, BLOCKS, **options)
                fitted = fit_blocks(x, y, BLOCKS, variances=variances, **options)
                found.append(np.corrcoef(fitted.predict(new, new_base), truth)[0, 1])
            told.append(float(np.mean(found)))
        assert np.corrcoef(new_base, truth)[0, 1] < told[0] < told[1] < told[2]
        assert told[2] > 0.95

    def test_of_many_rows_a_part_is_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, base, y = data(300)
        weight = np.random.default_rng(2).uniform(0.5, 2, 300)
        options: dict[str, Any] = {"weight": weight, "base": base, "base_slope": 0.3}
        whole = estimate_variances(x, y, BLOCKS, **options)
        monkeypatch.setattr(ridge, "MAX_FOR_VARIANCES", 150)
        one, again, other = (
            estimate_variances(x, y, BLOCKS, **options, seed=seed) for seed in (0, 0, 1)
        )
        assert one == again != other
        for part in (one, other):
            np.testing.assert_allclose(
                np.log([*part.blocks, part.noise]),
                np.log([*whole.blocks, whole.noise]),
                atol=0.8,
            )

    def test_same_data_same_result(self) -> None:
        x, _, y = data(80)
        assert estimate_variances(x, y, BLOCKS) == estimate_variances(x.copy(), y, BLOCKS)

    @pytest.mark.parametrize("n", [1, 9])
    def test_too_few_labels(self, n: int) -> None:
        x, _, y = data(n)
        with pytest.raises(TrainingError, match=f"^{n} labels, {n} different: at least 10 labels"):
            estimate_variances(x, y, BLOCKS)

    def test_labels_that_are_all_the_same(self) -> None:
        x, _, _ = data(50)
        with pytest.raises(TrainingError, match=r"50 labels, 1 different.*not all the same"):
            estimate_variances(x, np.full(50, 0.25), BLOCKS)


class TestCrossValidated:
    def test_each_fold_is_predicted_by_the_others(self) -> None:
        x, base, y = data(60)
        weight = np.random.default_rng(2).uniform(0.5, 2, 60)
        fold = np.random.default_rng(3).integers(0, 4, 60)
        options: dict[str, Any] = {"variances": GIVEN, "base_slope": 0.3}
        got = cross_validated(x, y, BLOCKS, fold, weight=weight, base=base, **options)
        for held in range(4):
            out = fold == held
            rest = fit_blocks(
                x[~out], y[~out], BLOCKS, weight=weight[~out], base=base[~out], **options
            )
            np.testing.assert_allclose(got[out], rest.predict(x[out], base[out]), atol=1e-12)

    def test_no_row_sees_the_labels_of_its_own_fold(self) -> None:
        x, base, y = data(60)
        fold = np.arange(60) % 3
        options: dict[str, Any] = {"variances": GIVEN, "base": base, "base_slope": 0.3}
        before = cross_validated(x, y, BLOCKS, fold, **options)
        changed = np.where(fold == 1, y + 100 * base, y)
        after = cross_validated(x, changed, BLOCKS, fold, **options)
        assert (after[fold == 1] == before[fold == 1]).all()
        assert np.abs(after - before)[fold != 1].min() > 0

    def test_without_weights_or_a_base(self) -> None:
        x, _, y = data(60)
        fold = np.arange(60) % 3 + 5
        got = cross_validated(x, y, BLOCKS, fold, variances=GIVEN)
        rest = fit_blocks(x[fold != 6], y[fold != 6], BLOCKS, variances=GIVEN)
        np.testing.assert_allclose(got[fold == 6], rest.predict(x[fold == 6]))

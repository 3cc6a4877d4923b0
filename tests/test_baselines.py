"""Baselines: what must hold by construction, on small data."""

import functools
import itertools

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.eval import baselines, metrics, run
from thriftroute.eval.benchmarks import Benchmark


def test_random_routing_has_the_exact_expectation_and_a_spread_around_it() -> None:
    strong, weak = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    result = baselines.random_routing(strong, weak, draws=4000, seed=3)
    every = [
        metrics.apgr([-order.index(i) for i in range(4)], strong, weak)
        for order in itertools.permutations(range(4))
    ]
    apgr, drawn = result["apgr"]
    assert apgr == pytest.approx(np.mean(every)) == 0.5
    # 24 orders, 4000 draws: the same values, and the mean within four standard errors.
    assert {round(v, 9) for v in drawn} == {round(v, 9) for v in every}
    assert abs(drawn.mean() - 0.5) < 4 * np.std(every) / np.sqrt(4000)
    assert (result["cpt50"][0], result["cpt80"][0]) == (0.5, 1.0)
    again = baselines.random_routing(strong, weak, draws=4000, seed=3)
    np.testing.assert_array_equal(drawn, again["apgr"][1])


def test_no_ranking_beats_the_oracle() -> None:
    rng = np.random.default_rng(0)
    strong, weak = rng.integers(0, 3, 7) / 2 + 0.25, rng.integers(0, 3, 7) / 2
    best = metrics.apgr(strong - weak, strong, weak)
    others = [metrics.apgr(order, strong, weak) for order in itertools.permutations(range(7))]
    assert best == pytest.approx(max(others))


def test_length_counts_characters() -> None:
    assert baselines.length_scores(["", "ab", "日本語"]).tolist() == [0, 2, 3]


def test_knn_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    base, queries = rng.normal(size=(50, 6)), rng.normal(size=(23, 6))
    labels = rng.random(50)
    expected = []
    for q in queries:
        cosine = base @ q / np.linalg.norm(base, axis=1) / np.linalg.norm(q)
        near = np.argsort(-cosine)[:5]
        weight = np.maximum(cosine[near], 1e-6)
        expected.append(np.sum(weight * labels[near]) / weight.sum())
    np.testing.assert_allclose(baselines.knn_scores(queries, base, labels, k=5), expected, 1e-5)
    monkeypatch.setattr(baselines, "BLOCK_CELLS", 200)  # several blocks
    np.testing.assert_allclose(baselines.knn_scores(queries, base, labels, k=5), expected, 1e-5)


def test_knn_with_few_or_bad_rows() -> None:
    one = np.ones((1, 3))
    assert baselines.knn_scores(one, one, [0.25], k=40).tolist() == [0.25]
    assert np.isfinite(baselines.knn_scores(np.zeros((1, 3)), one, [0.25])).all()
    with pytest.raises(EvaluationError, match="one d"):
        baselines.knn_scores(one, np.ones((1, 4)), [1.0])
    with pytest.raises(EvaluationError, match="labels"):
        baselines.knn_scores(one, one, [1.0, 0.0])


def test_in_domain_knn_never_sees_the_label_of_a_prompt_or_of_its_copies() -> None:
    # Every prompt occurs twice, its embedding unlike all others. Were a copy in another fold, it
    # would be the nearest neighbour and give the label away: AUC 1 instead of chance.
    rng = np.random.default_rng(2)
    prompts = [f"question {i}" for i in range(200)] * 2
    embeddings = np.tile(rng.normal(size=(200, 32)), (2, 1))
    labels = np.tile(rng.integers(0, 2, 200), 2)
    nearest = functools.partial(baselines.knn_scores, k=1)
    scores = baselines.in_domain_scores(nearest, prompts, embeddings, labels)
    assert 0.35 < metrics.auc(scores, labels) < 0.65
    # And where neighbours do carry the label, it finds them.
    helpful = embeddings + 10 * labels[:, None]
    scores = baselines.in_domain_scores(nearest, prompts, helpful, labels)
    assert metrics.auc(scores, labels) > 0.95


def test_in_domain_knn_needs_two_folds_and_takes_any_text() -> None:
    with pytest.raises(EvaluationError, match="two folds"):
        baselines.in_domain_scores(baselines.knn_scores, ["a"], np.ones((1, 2)), [1.0])
    prompts = [f"\ud800\0 {i}" for i in range(10)]
    assert (
        len(baselines.in_domain_scores(baselines.knn_scores, prompts, np.eye(10), np.ones(10)))
        == 10
    )


@pytest.mark.parametrize(("m", "d", "alpha"), [(60, 8, 0.5), (5, 12, 3.0), (1, 3, 1.0)])
def test_ridge_equals_sklearns(m: int, d: int, alpha: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    base, queries = rng.normal(2.0, 1.0, (m, d)), rng.normal(size=(9, d))
    labels = rng.normal(size=m)
    expected = linear.Ridge(alpha=alpha).fit(base, labels).predict(queries)
    got = baselines.ridge_scores(queries, base, labels, alpha)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("m", "d"), [(40, 5), (12, 20)])
def test_press_equals_leaving_each_row_out(m: int, d: int) -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(1.0, 1.0, (m, d))
    labels = base[:, 0] + rng.normal(size=m)
    alphas = (0.1, 1.0, 10.0, 100.0)
    errors = []
    for alpha in alphas:
        left = [
            baselines.ridge_scores(
                base[i : i + 1], np.delete(base, i, 0), np.delete(labels, i), alpha
            )[0]
            for i in range(m)
        ]
        errors.append(np.mean((labels - left) ** 2))
    np.testing.assert_allclose(baselines.ridge_press(base, labels, alphas), errors, rtol=1e-8)
    assert baselines.ridge_alpha(base, labels, alphas) == alphas[int(np.argmin(errors))]


def test_ridge_alpha_shrinks_noise_and_follows_a_signal() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(size=(200, 10))
    assert baselines.ridge_alpha(base, base[:, 0]) == min(baselines.ALPHAS)
    assert baselines.ridge_alpha(base, rng.normal(size=200)) >= 100
    # One label alone, or one row alone: any penalty does, so the largest.
    assert baselines.ridge_alpha(base, np.ones(200)) == max(baselines.ALPHAS)
    assert baselines.ridge_alpha(base[:1], [1.0]) == max(baselines.ALPHAS)
    assert baselines.ridge_scores(base, base[:1], [0.25], 1.0).tolist() == [0.25] * 200


def test_ridge_with_rows_that_it_cannot_use() -> None:
    one = np.ones((1, 3))
    with pytest.raises(EvaluationError, match="one d"):
        baselines.ridge_scores(one, np.ones((1, 4)), [1.0], 1.0)
    with pytest.raises(EvaluationError, match="at least 1"):
        baselines.ridge_scores(one, one, [1.0, 0.0], 1.0)
    with pytest.raises(EvaluationError, match="at least 1"):
        baselines.ridge_scores(one, np.ones((0, 3)), [], 1.0)
    with pytest.raises(EvaluationError, match="finite"):
        baselines.ridge_scores(one, one, [np.nan], 1.0)
    for alpha in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(EvaluationError, match="alpha"):
            baselines.ridge_scores(one, one, [1.0], alpha)
        with pytest.raises(EvaluationError, match="alphas"):
            baselines.ridge_press(one, [1.0], [alpha])
    with pytest.raises(EvaluationError, match="alphas"):
        baselines.ridge_press(one, [1.0], [])


def test_in_domain_ridge_never_sees_the_label_of_a_prompt_or_of_its_copies() -> None:
    # As many directions as prompts: a fit that saw a copy would know its gain.
    prompts = [f"question {i}" for i in range(200)] * 2
    embeddings = np.tile(np.eye(200), (2, 1))
    gains = np.tile(np.random.default_rng(6).choice([-1.0, 1.0], 200), 2)
    scores = baselines.in_domain_scores(baselines.ridge_scores, prompts, embeddings, gains)
    assert 0.35 < metrics.auc(scores, (gains + 1) / 2) < 0.65
    helpful = np.column_stack((embeddings, gains))
    scores = baselines.in_domain_scores(baselines.ridge_scores, prompts, helpful, gains)
    assert metrics.auc(scores, (gains + 1) / 2) > 0.95
    with pytest.raises(EvaluationError, match="two folds"):
        baselines.in_domain_scores(baselines.ridge_scores, ["a"], np.ones((1, 2)), [1.0])


def test_an_evaluation_shows_ridge_on_equal_data_and_in_domain() -> None:
    rng = np.random.default_rng(7)
    n = 150
    known = rng.normal(size=(n, 3))
    prompts = [f"{i}" for i in range(n)]
    # Weak loses by much where the first number is high and wins by a little elsewhere: a label
    # that only says who won hides the sizes, the gain shows them.
    strong = np.where(known[:, 0] > 0, 0.9, 0.5)
    weak = np.where(known[:, 0] > 0, 0.1, 0.45 + 0.1 * (known[:, 1] > 0))
    benchmark = Benchmark("b", prompts, strong, weak, "s", "w")
    train = rng.normal(size=(80, 3))
    report = run.evaluate(
        {},
        [benchmark],
        embed=lambda asked: known[[int(prompt) for prompt in asked]],
        train=(train, (train[:, 0] > 0) * 1.0),
        bootstraps=5,
    )
    rows = {row["router"]: row for row in report.results}
    gains = baselines.in_domain_scores(baselines.ridge_scores, prompts, known, strong - weak)
    assert rows["ridge-in-domain"]["apgr"] == metrics.apgr(gains, strong, weak)
    alpha = baselines.ridge_alpha(train, train[:, 0] > 0)
    scores = baselines.ridge_scores(known, train, train[:, 0] > 0, alpha)
    assert rows["ridge"]["apgr"] == metrics.apgr(scores, strong, weak) > 0.6
    # Neither is a probability, whatever its values.
    assert np.isnan([rows[name]["ece"] for name in ("ridge", "ridge-in-domain")]).all()
    assert not np.isnan(rows["knn"]["ece"])

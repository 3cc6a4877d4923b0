"""Baselines: what must hold by construction, on small data."""

import itertools

import numpy as np
import pytest
from thriftroute.eval import baselines, metrics
from thriftroute.router.errors import EvaluationError


def test_random_routing_has_the_exact_expectation_and_a_spread_around_it() -> None:
    strong, weak = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    result = baselines.random_routing(strong, weak, draws=4000, seed=3)
    every = [
        metrics.apgr([-order.index(i) for i in range(4)], strong, weak)
        for order in itertools.permutations(range(4))
    ]
    assert result.apgr == pytest.approx(np.mean(every)) == 0.5
    # 24 orders, 4000 draws: the same values, and the mean within four standard errors.
    assert {round(v, 9) for v in result.draws_apgr} == {round(v, 9) for v in every}
    assert abs(result.draws_apgr.mean() - 0.5) < 4 * np.std(every) / np.sqrt(4000)
    assert (result.cpt50, result.cpt80) == (0.5, 1.0)
    again = baselines.random_routing(strong, weak, draws=4000, seed=3)
    np.testing.assert_array_equal(result.draws_apgr, again.draws_apgr)


def test_no_ranking_beats_the_oracle() -> None:
    rng = np.random.default_rng(0)
    strong, weak = rng.integers(0, 3, 7) / 2 + 0.25, rng.integers(0, 3, 7) / 2
    best = metrics.apgr(baselines.oracle_scores(strong, weak), strong, weak)
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
    scores = baselines.knn_in_domain_scores(prompts, embeddings, labels, k=1, seed=0)
    assert 0.35 < metrics.auc(scores, labels) < 0.65
    # And where neighbours do carry the label, it finds them.
    helpful = embeddings + 10 * labels[:, None]
    scores = baselines.knn_in_domain_scores(prompts, helpful, labels, k=5, seed=0)
    assert metrics.auc(scores, labels) > 0.95


def test_in_domain_knn_needs_two_folds_and_takes_any_text() -> None:
    with pytest.raises(EvaluationError, match="two folds"):
        baselines.knn_in_domain_scores(["a"], np.ones((1, 2)), [1.0])
    prompts = [f"\ud800\0 {i}" for i in range(10)]
    assert len(baselines.knn_in_domain_scores(prompts, np.eye(10), np.ones(10))) == 10

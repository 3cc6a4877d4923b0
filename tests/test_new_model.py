"""A model that the router never saw: what a fit gets, and how its curve is made."""

import json
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.eval import metrics
from thriftroute.research.model_pairs import Ints, ModelMatrix
from thriftroute.research.new_model import NewModelLogs, new_model_curve


def matrix_of(n: int = 400) -> ModelMatrix:
    """'good' beats 'bad' where the first feature is high; 'gone' answered every other prompt."""
    rng = np.random.default_rng(0)
    feature = rng.random(n)
    bad = (rng.random(n) > feature) * 1.0
    gone = np.where(np.arange(n) % 2, np.nan, bad)
    scores = np.stack((np.ones(n), bad, gone), axis=1)
    return ModelMatrix([f"{value:.6f}" for value in feature], ("good", "bad", "gone"), scores)


def features(matrix: ModelMatrix) -> metrics.Floats:
    return np.array([float(prompt) for prompt in matrix.prompts])


class Regression:
    """A straight line of new - known on the feature; keeps what it was given."""

    def __init__(self, matrix: ModelMatrix) -> None:
        self.x = features(matrix)
        self.seen: list[NewModelLogs] = []
        self.asked: list[Ints] = []

    def __call__(self, logs: NewModelLogs) -> Any:
        self.seen.append(logs)
        slope, start = np.polyfit(self.x[logs.index], logs.new_score - logs.known_score, 1)

        def score(index: Ints) -> metrics.Floats:
            self.asked.append(index)
            return np.asarray(slope * self.x[index] + start)

        return score


def test_a_fit_sees_the_size_it_was_given_and_never_a_held_out_prompt() -> None:
    matrix = matrix_of()
    fit = Regression(matrix)
    pairs = [("good", "bad"), ("gone", "good")]
    new_model_curve(matrix, pairs, fit, sizes=(20, 50), draws=2)
    sizes = [len(logs.index) for logs in fit.seen]
    assert sizes[:8] == [20] * 4 + [50] * 4
    assert sizes[8] == 200 and 80 < sizes[9] < 120
    assert [(logs.new, logs.known) for logs in fit.seen[:2]] == pairs
    held_out = fit.asked[0]
    assert len(held_out) == 200
    for logs, asked in zip(fit.seen, fit.asked, strict=True):
        assert not set(logs.index) & set(held_out)
        assert set(asked) <= set(held_out)
        np.testing.assert_array_equal(logs.new_score, matrix.column(logs.new)[logs.index])
        np.testing.assert_array_equal(logs.known_score, matrix.column(logs.known)[logs.index])
    assert len({tuple(logs.index) for logs in fit.seen}) == len({logs.seed for logs in fit.seen})


def test_the_new_model_may_be_the_strong_one_or_the_weak_one() -> None:
    matrix = matrix_of()
    report = new_model_curve(
        matrix, [("good", "bad"), ("bad", "good")], Regression(matrix), sizes=(100,), draws=3
    )
    first, second = report.pairs
    assert (first.new_is_strong, second.new_is_strong) == (True, False)
    # The same two models on the same prompts: a line fitted to the opposite is the opposite line.
    assert first.apgr["all"] == pytest.approx(second.apgr["all"])
    assert first.apgr["100"] == pytest.approx(second.apgr["100"])
    assert first.apgr["all"][0] > 0.6
    assert (first.n_train, first.n_test) == (200, 200)


def test_the_curve_is_the_mean_over_pairs_and_draws() -> None:
    matrix = matrix_of()
    report = new_model_curve(
        matrix, [("good", "bad"), ("gone", "good")], Regression(matrix), sizes=(10,), draws=4
    )
    few, full = report.points
    assert (few.size, full.size) == ("10", "all")
    by_draw = np.mean([pair.apgr["10"] for pair in report.pairs], axis=0)
    at_all = np.mean([pair.apgr["all"][0] for pair in report.pairs])
    assert by_draw.shape == (4,) and [len(pair.apgr["all"]) for pair in report.pairs] == [1, 1]
    assert few.mean == pytest.approx(by_draw.mean())
    assert full.mean == pytest.approx(at_all)
    assert few.difference == pytest.approx(by_draw.mean() - at_all)
    assert few.ci[0] < few.mean < few.ci[1] and few.prompts_ci[0] < few.mean < few.prompts_ci[1]
    # All is one fit: no spread over draws, and no difference from itself.
    assert full.ci == pytest.approx((full.mean, full.mean))
    assert full.prompts_ci[0] < full.mean < full.prompts_ci[1]
    assert (full.difference, full.difference_prompts_ci) == (0.0, (0.0, 0.0))


def test_one_seed_one_report_strict_json_and_progress() -> None:
    matrix = matrix_of(100)
    calls: list[tuple[int, int]] = []

    def measure(seed: int) -> dict[str, Any]:
        return new_model_curve(
            matrix,
            [("good", "bad")],
            Regression(matrix),
            sizes=(10,),
            draws=2,
            seed=seed,
            data="mine",
            progress=lambda *done: calls.append(done),
        ).to_dict()

    first = measure(0)
    assert first == measure(0) != measure(1)
    assert calls[:3] == [(1, 3), (2, 3), (3, 3)]
    value = json.loads(json.dumps(first, allow_nan=False))
    assert value["data"] == "mine" and [p["size"] for p in value["points"]] == ["10", "all"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": []}, "at least one pair"),
        ({"sizes": ()}, "at least one pair, sizes"),
        ({"sizes": (1,)}, "sizes of at least 2"),
        ({"draws": 1}, "at least 2 draws"),
        ({"sizes": (200,)}, "good and bad have 200 common prompts .* no more than the size 200"),
        ({"pairs": [("good", "gpt")]}, "'gpt'; there are: good, bad, gone"),
        ({"pairs": [("good", "good")]}, "good against good: .*not above"),
    ],
)
def test_what_cannot_be_measured_says_why(changes: dict[str, Any], says: str) -> None:
    matrix = matrix_of()
    options: dict[str, Any] = {"pairs": [("good", "bad")], "sizes": (20,), "draws": 2}
    options |= changes
    with pytest.raises(EvaluationError, match=says):
        new_model_curve(matrix, options.pop("pairs"), Regression(matrix), **options)


def test_a_fit_that_scores_badly_is_named() -> None:
    matrix = matrix_of(100)
    with pytest.raises(EvaluationError, match=r"good against bad from 20: the fit .*not finite"):
        new_model_curve(
            matrix,
            [("good", "bad")],
            lambda logs: lambda index: np.full(len(index), np.nan),
            sizes=(20,),
        )

"""Predicted tokens of answers: what is fitted, what is said of its error, and what little gives."""

import numpy as np
import pytest
from thriftroute.router.output_tokens import DEFAULT_TOKENS, LEAST, OutputTokens

Rows = list[tuple[str, tuple[float, float, float | None]]]


def rows(n: int, arm: str = "m", per_token: float = 3.0, score: float = 0.0) -> Rows:
    """Answers that grow with the square root of the prompt, and with the log odds of the score."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(10, 4000, n)
    scores = rng.uniform(0.05, 0.95, n)
    mean = per_token * np.sqrt(prompts) * (scores / (1 - scores)) ** score
    found = mean * np.exp(rng.normal(0, 0.5, n) - 0.5**2 / 2)
    return [
        (arm, (float(p), float(max(y, 1)), float(s)))
        for p, y, s in zip(prompts, found, scores, strict=True)
    ]


def test_predictions_follow_the_prompt_and_add_up_to_what_was_written() -> None:
    known = rows(2000)
    fitted = OutputTokens.fitted(known)
    assert fitted.tokens("m", 900) == pytest.approx(3 * 30, rel=0.15)
    assert fitted.tokens("m", 3600) == pytest.approx(3 * 60, rel=0.15)
    total = sum(fitted.tokens("m", p, s) for _, (p, _, s) in known)
    assert total == pytest.approx(sum(y for _, (_, y, _) in known), rel=1e-6)


def test_the_error_is_out_of_fold_and_beside_the_constants() -> None:
    arm = OutputTokens.fitted(rows(2000)).arms["m"]
    truth = np.array([y for _, (_, y, _) in rows(2000)])
    assert arm.n == 2000
    assert arm.mean == pytest.approx(truth.mean())
    constant = np.abs(DEFAULT_TOKENS - truth).mean() / truth.mean()
    assert arm.default_error == pytest.approx(constant)
    assert arm.error is not None
    assert 0.2 < arm.error < np.abs(truth.mean() - truth).mean() / truth.mean() < constant


def test_a_score_counts_where_it_is_known() -> None:
    known = rows(2000, score=0.5)
    fitted = OutputTokens.fitted(known)
    easy, unknown, hard = (fitted.tokens("m", 900, s) for s in (0.1, None, 0.9))
    assert hard > 2 * unknown > 4 * easy
    # Rows without one are as those of an average score.
    half = [(arm, (p, y, s if i % 2 else None)) for i, (arm, (p, y, s)) in enumerate(known)]
    assert OutputTokens.fitted(half).tokens("m", 900, 0.9) > 1.5 * unknown


def test_nothing_is_extrapolated() -> None:
    fitted = OutputTokens.fitted(rows(500))
    longest = max(p for _, (p, _, _) in rows(500))
    assert fitted.tokens("m", 1e6) == fitted.tokens("m", longest)
    assert fitted.tokens("m", 900, 0.0) > 0


def test_where_the_prompt_says_nothing_the_mean_stays() -> None:
    rng = np.random.default_rng(1)
    known = [("m", (float(rng.integers(1, 999)), 100.0 if i % 2 else 300.0, None))
             for i in range(400)]  # fmt: skip
    found = {OutputTokens.fitted(known).tokens("m", prompt) for prompt in (1, 30, 999)}
    assert found == {200.0}


@pytest.mark.parametrize(
    ("told", "expected"),
    [([], DEFAULT_TOKENS), ([100.0], (100 + DEFAULT_TOKENS) / 2), ([0.0], DEFAULT_TOKENS)],
)
def test_few_rows_give_their_mean_with_one_more_of_the_default(
    told: list[float], expected: float
) -> None:
    fitted = OutputTokens.fitted([("m", (10.0, y, None)) for y in told])
    assert fitted.tokens("m", 10) == expected
    assert all(arm.error is None for arm in fitted.arms.values())


def test_a_ratio_is_of_prompts_that_are_alike() -> None:
    # Hard prompts have longer answers, and go to one of the two: answers to the same ones are
    # three times as long.
    short = [row for row in rows(2000, score=0.5) if (row[1][2] or 0) < 0.7]
    long = [row for row in rows(2000, "long", per_token=9.0, score=0.5) if (row[1][2] or 0) >= 0.7]
    fitted = OutputTokens.fitted([*short, *long])
    means = fitted.arms["long"].mean / fitted.arms["m"].mean
    assert means > 6
    assert 3 <= fitted.ratio("long", "m") < 5
    assert fitted.ratio("m", "long") == pytest.approx(1 / fitted.ratio("long", "m"))
    # Of prompts that are drawn, the same as that of the means.
    drawn = OutputTokens.fitted([*rows(2000), *rows(2000, "long", per_token=9.0)])
    assert drawn.ratio("long", "m") == pytest.approx(3, rel=0.1)


def test_a_ratio_needs_enough_of_both() -> None:
    few = rows(4 * LEAST - 1, "few", per_token=30.0)
    unscored = [("unscored", (p, 9 * y, None)) for _, (p, y, _) in rows(500)]
    fitted = OutputTokens.fitted([*rows(500), *few, *unscored])
    for other in ("m", "few", "unscored", "nobody"):
        assert fitted.ratio(other, "m") == fitted.ratio("m", other) == 1


def test_what_is_told_is_json() -> None:
    told = OutputTokens.fitted([*rows(500), *rows(3, "new")]).to_dict()
    assert set(told) == {"m", "new"}
    assert set(told["m"]) == {"n", "mean", "error", "default_error", "times"}
    assert (told["new"]["n"], told["new"]["error"]) == (3, None)

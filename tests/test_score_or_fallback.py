"""What of a request is scored, and what is said where there is no score."""

import numpy as np
import pytest
from thriftroute.router.score_or_fallback import compare, score_or_problem
from thriftroute.tests.helpers.asking import Failing, Scores, in_tool_calls

USER = [{"role": "user", "content": "What is 2 + 2?"}]


def test_a_score() -> None:
    assert score_or_problem(Scores(0.25), USER, "conversation") == (0.25, "")


@pytest.mark.parametrize(
    ("context", "system", "history"),
    [("full", "Be brief.", "hello"), ("conversation", "", "hello"), ("last", "", "")],
)
def test_what_of_the_conversation_is_scored(context: str, system: str, history: str) -> None:
    router = Scores()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "hello"},
        *USER,
    ]
    score_or_problem(router, messages, context)
    (seen,) = router.seen
    assert (seen.system, seen.history, seen.last) == (system, history, "What is 2 + 2?")


def test_results_of_tools_are_history() -> None:
    router = Scores()
    score_or_problem(router, in_tool_calls().messages, "conversation")
    assert "sunny" in router.seen[0].history


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_no_text_has_no_score(text: str | None) -> None:
    router = Scores()
    messages = [{"role": "user", "content": text}]
    assert score_or_problem(router, messages, "conversation") == (None, "no text to score")
    assert router.seen == []


def test_a_failure_is_told_without_the_prompt() -> None:
    score, problem = score_or_problem(Failing(), "my secret", "conversation")
    assert score is None
    assert problem.startswith("scoring failed: ValueError in asking.py:")
    assert "secret" not in problem


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_a_score_that_is_none_is_told(value: float) -> None:
    score, problem = score_or_problem(Scores(value), USER, "conversation")
    assert score is None
    assert problem.startswith("scoring failed: the router returned")


def test_the_reason_names_score_and_threshold() -> None:
    assert compare(0.5, 0.5) == ("strong", "score 0.5 >= threshold 0.5")
    assert compare(0.25, 0.5) == ("weak", "score 0.25 < threshold 0.5")

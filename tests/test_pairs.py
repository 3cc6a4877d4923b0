"""The other-pairs protocol: what is said of a router on many pairs."""

import json
import math

import numpy as np
import pytest
from thriftroute.data.schema import PromptScore, Row
from thriftroute.errors import EvaluationError
from thriftroute.eval import baselines, metrics
from thriftroute.eval.bootstrap import bootstrap, interval
from thriftroute.research.model_pairs import (
    Inputs,
    ModelMatrix,
    Pair,
    PairSet,
    choose_pairs,
    model_matrix,
)
from thriftroute.research.other_pairs import other_pairs, sign_test
from thriftroute.tests.helpers.matrices import matrix_of


def hardness(inputs: Inputs, strong: str, weak: str) -> list[float]:
    return [float(str(prompt)[:11]) for prompt in inputs]


def flat(inputs: Inputs, strong: str, weak: str) -> list[float]:
    return [0.5] * len(inputs)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 0.0625),
        (8, 2, 0.109375),
        (2, 8, 0.109375),
        (10, 0, 2 / 1024),
        (15, 5, 0.04138946533203125),
        (20, 0, 2**-19),
    ],
)
def test_the_sign_test_has_its_exact_values(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, rel=1e-12)


def test_the_sign_test_is_that_of_the_binomial() -> None:
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((3, 9), (40, 21), (200, 260)):
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    # Far too many for floating point alone.
    assert 0 <= sign_test(5000, 0) < 1e-300
    with pytest.raises(EvaluationError, match="0 or more"):
        sign_test(-1, 2)


class TestProtocol:
    def test_figures_are_those_of_the_metrics(self) -> None:
        chosen = choose_pairs(matrix_of(), 10)
        report = other_pairs(chosen, hardness, others={"flat": flat}, data="mine", bootstraps=50)
        assert (report.data, report.prompts, len(report.pairs)) == ("mine", 120, 10)
        assert list(report.mean) == ["router", "prompt-length", "flat", "random"]
        for row, pair in zip(report.pairs, chosen.pairs, strict=True):
            asked = [chosen.prompts[i] for i in pair.index]
            for name, scores in (
                ("router", hardness(list(asked), "", "")),
                ("prompt-length", baselines.length_scores(asked)),
            ):
                assert row.apgr[name] == metrics.apgr(scores, pair.strong_score, pair.weak_score)
            assert row.apgr["flat"] == pytest.approx(0.5, abs=1e-12)
            assert row.strong_mean - row.weak_mean == pytest.approx(pair.gap)
        ours = np.array([row.apgr["router"] for row in report.pairs])
        lengths = np.array([row.apgr["prompt-length"] for row in report.pairs])
        assert report.mean["router"] == pytest.approx(ours.mean())
        assert report.difference["prompt-length"] == pytest.approx((ours - lengths).mean())
        assert report.sign["random"].wins == (ours > 0.5).sum()
        assert report.sign["prompt-length"].losses == (ours < lengths).sum()
        test = report.sign["random"]
        assert test.p == sign_test(test.wins, test.losses)
        # A flat score has 0.5 like random routing, up to rounding, and so the same test.
        assert report.sign["flat"] == test
        assert report.difference_ci["flat"] == pytest.approx(report.difference_ci["random"])

    def test_equal_scores_are_ties(self) -> None:
        chosen = choose_pairs(matrix_of(), 6)
        report = other_pairs(chosen, hardness, others={"same": hardness}, bootstraps=20)
        test = report.sign["same"]
        assert (test.wins, test.losses, test.ties, test.p) == (0, 0, 6, 1.0)
        assert report.difference_ci["same"] == (0.0, 0.0)

    def test_one_pair_has_the_interval_of_its_bootstrap(self) -> None:
        matrix = matrix_of()
        chosen = choose_pairs(matrix, 1)
        (pair,) = chosen.pairs
        report = other_pairs(chosen, hardness, bootstraps=200, seed=3)
        alone = bootstrap(
            hardness(list(chosen.prompts), "", ""),
            pair.strong_score,
            pair.weak_score,
            resamples=200,
            seed=3,
        )
        assert report.ci["router"] == pytest.approx(interval(alone.apgr))

    def test_pairs_are_resampled_together(self) -> None:
        """One pair five times over is no more evidence than once."""
        chosen = choose_pairs(matrix_of(), 1)
        five = PairSet(chosen.prompts, chosen.pairs * 5, 5)
        once, often = (other_pairs(c, hardness, bootstraps=100) for c in (chosen, five))
        assert often.ci["router"] == pytest.approx(once.ci["router"])
        assert often.sign["random"].wins + often.sign["random"].losses == 5

    def test_pairs_on_different_prompts_are_resampled_by_prompt(self) -> None:
        """Two pairs on two halves: each resample takes both from one draw of all prompts."""
        matrix = matrix_of(200)
        scores = np.full((200, 4), np.nan)
        scores[:100, :2] = matrix.scores[:100][:, [7, 0]]
        scores[100:, 2:] = matrix.scores[100:][:, [7, 0]]
        chosen = choose_pairs(ModelMatrix(matrix.prompts, tuple("abcd"), scores), 2)
        assert {(p.strong, p.weak) for p in chosen.pairs} == {("a", "b"), ("c", "d")}
        report = other_pairs(chosen, hardness, bootstraps=300)
        low, high = report.ci["router"]
        assert low < report.mean["router"] < high
        assert (report.prompts, report.models) == (200, 4)

    def test_the_router_is_told_the_models_and_gets_the_conversation(self) -> None:
        talk = ({"role": "system", "content": "s"}, {"role": "user", "content": "longer, still"})
        rows: list[Row] = []
        for i in range(40):
            more = {"messages": talk} if i == 3 else {}
            rows.append(PromptScore(f"prompt {i:02}", "good", 1.0, **more))  # type: ignore[arg-type]
            rows.append(PromptScore(f"prompt {i:02}", "bad", float(i % 2)))
        asked: list[tuple[Inputs, str, str]] = []

        def spy(inputs: Inputs, strong: str, weak: str) -> list[float]:
            asked.append((inputs, strong, weak))
            return [0.5] * len(inputs)

        report = other_pairs(choose_pairs(model_matrix(rows), 1), spy, bootstraps=10)
        (inputs, strong, weak), *rest = asked
        assert (strong, weak, rest) == ("good", "bad", [])
        assert inputs[2] == "prompt 02" and inputs[3] == list(talk)
        # Every prompt has nine characters: its length says nothing, whatever the messages are.
        assert report.mean["prompt-length"] == pytest.approx(0.5)

    def test_one_seed_one_report_and_progress(self) -> None:
        chosen = choose_pairs(matrix_of(), 4)
        calls: list[tuple[int, int]] = []
        first, again = (
            other_pairs(
                chosen, hardness, bootstraps=30, progress=lambda *done: calls.append(done)
            ).to_dict()
            for _ in range(2)
        )
        assert first == again
        assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2
        other = other_pairs(chosen, hardness, bootstraps=30, seed=1).to_dict()
        assert other["ci"] != first["ci"] and other["mean"] == first["mean"]

    def test_json_is_strict_where_a_gap_is_in_doubt(self) -> None:
        strong = np.repeat([1.0, 0.0], [16, 14])
        pair = Pair("s", "w", np.arange(30), strong, 1 - strong)
        chosen = PairSet([f"{i / 30:.9f}" for i in range(30)], (pair,), 1)
        report = other_pairs(chosen, hardness, bootstraps=100)
        assert math.isnan(report.ci["router"][0])
        value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert value["ci"]["router"] == [None, None]
        assert value["pairs"][0]["apgr"]["router"] == report.mean["router"]

    def test_bad_scores_and_names_say_where(self) -> None:
        chosen = choose_pairs(matrix_of(), 2)
        with pytest.raises(EvaluationError, match=r"m\d against m\d: router .*each of 120 prompts"):
            other_pairs(chosen, lambda inputs, strong, weak: [1.0])
        with pytest.raises(EvaluationError, match=r"against m\d: mine .* 120 of them not finite"):
            other_pairs(chosen, flat, others={"mine": lambda i, s, w: np.full(len(i), np.nan)})
        with pytest.raises(EvaluationError, match="random is the protocol's own"):
            other_pairs(chosen, flat, others={"random": flat})

"""Labelling against a provider on the loopback: what is asked, paid, written and told."""

import json
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.readers import read_rows
from thriftroute.data.schema import Comparison
from thriftroute.data.tables import pair_table
from thriftroute.errors import CalibrationError, ConfigError, DataError
from thriftroute.labels.settings import LabelSettings
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.labelling import (
    Panel,
    fair,
    lines,
    make_log,
    make_request,
    run,
    shown,
)


@pytest.fixture
def panel() -> Any:
    with Panel() as running:
        yield running


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path / "log.jsonl")


def outcomes(request: LabelSettings) -> dict[str, str]:
    return {line["id"]: line["outcome"] for line in lines(request.out)}


def test_the_judge_decides_in_both_orders_and_the_log_answers_for_strong(
    panel: Panel, log: Path
) -> None:
    request = make_request(panel, log)
    result, told = run(request)
    assert outcomes(request) == {
        "r0": "a", "r1": "b", "r2": "tie", "r3": "a", "r4": "b", "r5": "tie",
    }  # fmt: skip
    assert panel.asked() == {"weak": 6, "judge": 12}
    firsts = [shown(r.body)[1].split()[0] for r in panel.requests if r.body["model"] == "judge"]
    assert sorted(firsts) == ["strong"] * 6 + ["weak"] * 6
    assert result.stopped is None
    assert result.summary["strong_better"] == result.summary["weak_better"] == 2
    assert result.summary["sources"] == {"judge:openai/judge": 6}
    assert "6 rows drawn, 6 to ask about: 12 of openai/judge" in told


def test_what_is_written_is_read_as_comparisons(panel: Panel, log: Path) -> None:
    request = make_request(panel, log)
    run(request)
    rows = list(read_rows(request.out))
    assert all(isinstance(row, Comparison) for row in rows)
    table = pair_table(rows, strong="openai/strong", weak="openai/weak")
    assert table.n == 6
    assert sorted(table.win.tolist()) == [0, 0, 0, 0, 1, 1]
    first = lines(request.out)[0]
    assert first["cost_b"] == pytest.approx((first_tokens(panel) * 1 + first["tokens_b"] * 2) / 1e6)
    assert "cost_a" not in first  # the log does not say


def first_tokens(panel: Panel) -> int:
    """What the stub counts for every one of these prompts: words of the messages' JSON."""
    sizes = {
        len(json.dumps(r.body["messages"]).split())
        for r in panel.requests
        if r.body["model"] == "weak"
    }
    assert len(sizes) == 1
    return sizes.pop()


def test_the_judge_is_told_no_names(panel: Panel, tmp_path: Path) -> None:
    panel.say = lambda model, body: "VERDICT: TIE" if model == "judge" else "It is four."
    log = make_log(tmp_path / "log.jsonl", 1, answer="It is 4.")
    run(make_request(panel, log))
    sent = [r.body["messages"] for r in panel.requests if r.body["model"] == "judge"]
    assert len(sent) == 2
    assert not any(name in json.dumps(sent) for name in ("strong", "weak", "openai"))
    assert sent[0][0] == sent[1][0]  # the rubric
    assert shown({"messages": sent[0]})[1:] == shown({"messages": sent[1]})[:0:-1]


def test_a_judge_that_prefers_a_place_sees_ties_and_is_told_of(panel: Panel, log: Path) -> None:
    panel.say = lambda model, body: "VERDICT: 1" if model == "judge" else fair(model, body)
    result, _ = run(make_request(panel, log))
    assert result.summary["tie"] == 6
    judge = result.summary["judge"]
    assert judge["orders"]["agreement"] == 0.0
    assert judge["first_preferred"] == 1.0


def test_strong_is_called_where_the_log_has_no_answer_of_it(panel: Panel, tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "log.jsonl",
        model=lambda i: ("strong", "gpt-0613", "weak", None, "strong", "weak")[i],
        answer=lambda i: f"strong on: {i}" if i < 4 else None,
    )
    request = make_request(panel, log)
    _, told = run(request)
    # r2's answer is weak's own; r4 and r5 have none.
    assert panel.asked()["strong"] == 5
    assert panel.asked()["weak"] == 5
    assert "answers of gpt-0613, which are not used; --logged-as" in told


def test_other_names_in_the_log_can_mean_strong(panel: Panel, tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "log.jsonl", model=lambda i: ("gpt-0613", "openai/strong", None)[i % 3]
    )
    run(make_request(panel, log, logged_as=("gpt-0613",)))
    assert panel.asked()["strong"] == 2  # where nobody says whose the answer is


def test_any_name_can_mean_strong_but_weaks_own(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", model=lambda i: ("x", "weak", None)[i % 3])
    run(make_request(panel, log, logged_as=("*",)))
    assert panel.asked()["strong"] == 2
    assert panel.asked()["weak"] == 4


def test_equal_answers_are_a_tie_that_nobody_is_paid_for(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 3, answer=lambda i: None)
    panel.say = lambda model, body: "Four." if model == "weak" else "Four. \n"
    request = make_request(panel, log)
    run(request)
    assert panel.asked() == {"strong": 3, "weak": 3}
    assert {line["source"] for line in lines(request.out)} == {"check:same"}
    assert set(outcomes(request).values()) == {"tie"}


def test_unreadable_verdicts_are_asked_for_once_more(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 3)
    panel.say = lambda model, body: "I like 1." if model == "judge" else fair(model, body)
    request = make_request(panel, log)
    result, _ = run(request)
    assert panel.asked()["judge"] == 3 * 2 * 2
    assert result.summary["unlabelled"] == {"the judge's verdict cannot be read": 3}
    assert not request.out.exists()
    result, _ = run(request)  # nor is there a third time
    assert result.expected.calls == {}
    assert panel.asked()["judge"] == 12


def test_answers_without_text_are_told_of(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 2)
    panel.always(Fault(message={"role": "assistant", "content": ""}, finish="length"), "weak")
    result, _ = run(make_request(panel, log))
    assert result.summary["unlabelled"] == {"no text in weak's answer within --max-tokens": 2}
    assert panel.asked() == {"weak": 2}


def test_answers_that_were_cut_off_are_counted(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 2)
    words = {"role": "assistant", "content": "Well, first of all"}
    panel.always(Fault(message=words, finish="length"), "weak")
    result, _ = run(make_request(panel, log))
    assert result.summary["labelled"] == result.summary["cut"] == 2


def test_a_conversation_is_sent_and_judged_whole(panel: Panel, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hard one"},
        {"role": "assistant", "content": "Which?"},
        {"role": "user", "content": "that one"},
    ]
    path.write_text(json.dumps({"id": "c", "messages": messages, "time": "2026-01-02"}) + "\n")
    request = make_request(panel, path)
    run(request)
    asked = [r.body["messages"] for r in panel.requests if r.body["model"] == "weak"]
    assert asked == [messages]
    judged = next(r.body for r in panel.requests if r.body["model"] == "judge")
    assert shown(judged)[0].splitlines()[::2] == [
        "system: Be brief.", "user: hard one", "assistant: Which?", "user: that one",
    ]  # fmt: skip
    (line,) = lines(request.out)
    assert line["messages"] == messages
    assert line["time"] == "2026-01-02"


def test_a_rubric_of_ones_own_replaces_what_counts(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Only rhymes count.")
    run(make_request(panel, log))
    run(make_request(panel, log, rubric=rubric))
    systems = [
        r.body["messages"][0]["content"] for r in panel.requests if r.body["model"] == "judge"
    ]
    assert len(systems) == 4  # a changed rubric asks the judge again
    assert systems[2].startswith("Only rhymes count.")
    assert all("VERDICT: TIE" in system for system in systems)
    assert panel.asked()["weak"] == 1  # and nobody else


def test_parameters_go_to_the_side_they_are_for(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    every = {"api_base": panel.url, "api_key": "k"}
    params = {"all": every, "weak": {"temperature": 0.7, "max_tokens": 77}, "judge": {"seed": 5}}
    run(make_request(panel, log, params=params))
    weak, judge = (
        next(r.body for r in panel.requests if r.body["model"] == name)
        for name in ("weak", "judge")
    )
    assert (weak["temperature"], weak["max_tokens"]) == (0.7, 77)
    assert (judge["temperature"], judge["seed"], judge["max_tokens"]) == (0, 5, 512)
    assert "seed" not in weak


def test_usage_that_nobody_counted_is_counted_here(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    none = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}
    panel.always(Fault(usage=none), "weak")
    request = make_request(panel, log)
    result, _ = run(request)
    assert result.summary["usd"]["by_model"]["openai/weak"] > 0
    (answered,) = [
        line for line in lines(request.state_path)
        if line["kind"] == "answered" and line["text"].startswith("weak on")
    ]  # fmt: skip
    assert answered["counted"] is False
    assert answered["output_tokens"] > 0


def test_the_summary_adds_up(panel: Panel, log: Path) -> None:
    request = make_request(panel, log)
    result, _ = run(request)
    summary = result.summary
    paid = sum(line["usd"] for line in lines(request.state_path) if line["kind"] == "answered")
    assert summary["usd"]["spent"] == pytest.approx(paid, abs=1e-6)
    assert sum(summary["usd"]["by_model"].values()) == pytest.approx(paid, abs=1e-5)
    assert paid <= result.expected.most_usd
    assert summary["rows"] == summary["drawn"] == summary["labelled"] == 6
    assert result.expected.calls == {"openai/weak": 6, "openai/judge": 12}


def test_an_estimate_asks_nobody_and_draws_nothing(panel: Panel, log: Path) -> None:
    request = make_request(panel, log, only_estimate=True, count=3, max_usd=None)
    result, _ = run(request)
    assert result.stopped == "estimate"
    assert result.expected.rows == 3
    assert 0 < result.expected.usd < result.expected.most_usd
    assert not panel.requests
    assert lines(request.state_path) == []


def test_a_sample_has_weights_and_grows_by_rounds(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 9)
    run(make_request(panel, log, count=4))
    assert panel.asked()["weak"] == 4
    request = make_request(panel, log, count=6)
    result, _ = run(request)
    assert panel.asked()["weak"] == 6
    assert result.summary["drawn"] == 6
    found = lines(request.out)
    assert sum(line["weight"] for line in found) == pytest.approx(6, abs=1e-4)
    _, told = run(make_request(panel, log, count=2))
    assert "6 rows were drawn by earlier runs" in told


def test_the_logs_own_weights_are_kept(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 4, weight=lambda i: 3.0 if i == 0 else 1.0)
    request = make_request(panel, log)
    run(request)
    weight = {line["id"]: line["weight"] for line in lines(request.out)}
    assert weight["r0"] == pytest.approx(3 * weight["r1"], rel=1e-4)


def test_rows_are_drawn_where_the_router_is_least_certain(
    panel: Panel, tmp_path: Path, tiny_bundle: Path
) -> None:
    log = make_log(tmp_path / "log.jsonl", 30)
    request = make_request(panel, log, count=10, routers=(str(tiny_bundle),), explore=0.2)
    run(request)
    (drawn,) = [line for line in lines(request.state_path) if line["kind"] == "round"]
    assert drawn["population"] == 30
    assert len(drawn["rows"]) == 10
    assert len({p for _, p in drawn["rows"]}) > 1
    weight = {line["id"]: line["weight"] for line in lines(request.out)}
    (one, p_one), (other, p_other) = drawn["rows"][0], drawn["rows"][-1]
    assert weight[one] * p_one == pytest.approx(weight[other] * p_other, rel=1e-4)


def test_checks_need_no_judge(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 4, answer=lambda i: f"The answer is {i}.")
    panel.say = lambda model, body: "The answer is 1."
    checks = tmp_path / "checks.jsonl"
    wanted = [{"id": f"r{i}", "number": i} for i in range(3)]
    checks.write_text("".join(json.dumps(w) + "\n" for w in wanted))
    scores = tmp_path / "scores.jsonl"
    request = make_request(panel, log, checks=checks, judge=None, scores_out=scores)
    result, _ = run(request)
    assert outcomes(request) == {"r0": "a", "r1": "tie", "r2": "a"}
    assert panel.asked() == {"weak": 4}
    assert result.summary["unlabelled"] == {"not compared yet": 1}
    assert {line["source"] for line in lines(request.out)} == {"check:number"}
    table = pair_table(read_rows(scores), strong="openai/strong", weak="openai/weak")
    assert table.strong.sum() == 3
    assert table.weak.sum() == 1


def test_the_judge_takes_what_cannot_be_checked(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 2)
    checks = tmp_path / "checks.jsonl"
    checks.write_text(json.dumps({"prompt": "easy question 1", "exact": "nothing"}) + "\n")
    result, _ = run(make_request(panel, log, checks=checks))
    assert result.summary["sources"] == {"judge:openai/judge": 1, "check:exact": 1}
    assert panel.asked()["judge"] == 2


def test_a_judge_of_its_own_answers_is_warned_of(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    panel.say = lambda model, body: "VERDICT: TIE" if "VERDICT" in str(body) else f"I am {model}"
    _, told = run(make_request(panel, log, judge="openai/weak", prices={**{"strong": "1,1"},
                               "weak": "1,1", "judge": "1,1"}))  # fmt: skip
    assert "openai/weak judges its own answers" in told


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"max_usd": None}, ConfigError, "give --max-usd"),
        ({"max_usd": float("nan")}, ConfigError, "--max-usd: expected a finite number"),
        ({"judge": None}, ConfigError, "give --judge MODEL, --checks FILE or --votes N"),
        ({"strong": "openai/weak"}, ConfigError, "are both 'openai/weak'"),
        ({"threshold": 2.0}, ConfigError, "--threshold"),
        ({"params": {"judges": {}}}, ConfigError, "unknown name 'judges'"),
        ({"prices": {"judge": "5,5"}}, CalibrationError, "--weak-price IN,OUT"),
        ({"prices": {"weak": "1,1"}}, CalibrationError, "--judge-price IN,OUT"),
        ({"prices": {"weak": "1;1", "judge": "1,1"}}, CalibrationError, "'1;1' is not IN,OUT"),
        ({"rubric": Path("no-such-file")}, ConfigError, "--rubric no-such-file"),
        ({"explore": 0.0, "count": 2, "routers": ("random",)}, ConfigError, "--explore"),
    ],
)
def test_what_cannot_be_is_refused_before_anyone_is_asked(
    panel: Panel, log: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(make_request(panel, log, **changes))
    assert not panel.requests


def test_a_price_of_strong_is_needed_only_where_it_is_called(panel: Panel, tmp_path: Path) -> None:
    prices = {"weak": "1,1", "judge": "1,1"}
    run(make_request(panel, make_log(tmp_path / "all.jsonl", 2), prices=prices))
    some = make_log(tmp_path / "some.jsonl", 2, answer=lambda i: "yes" if i else None)
    with pytest.raises(CalibrationError, match="--strong-price"):
        run(make_request(panel, some, prices=prices, state=tmp_path / "other"))


def test_what_costs_nothing_needs_no_cap(panel: Panel, log: Path) -> None:
    free = dict.fromkeys(("strong", "weak", "judge"), "0,0")
    result, _ = run(make_request(panel, log, prices=free, max_usd=None))
    assert result.summary["labelled"] == 6


def test_two_rows_of_one_id_are_refused(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    log.write_text(log.read_text() * 2)
    with pytest.raises(DataError, match="two rows have the id 'r0'"):
        run(make_request(panel, log))


def test_the_state_of_another_log_is_refused(panel: Panel, tmp_path: Path) -> None:
    run(make_request(panel, make_log(tmp_path / "log.jsonl", 6), count=6))
    shorter = make_log(tmp_path / "shorter.jsonl", 3)
    with pytest.raises(DataError, match="it is the state of another log"):
        run(make_request(panel, shorter))


def test_checks_of_no_row_are_refused(panel: Panel, log: Path, tmp_path: Path) -> None:
    checks = tmp_path / "checks.jsonl"
    checks.write_text('{"id": "nobody", "exact": "x"}\n')
    with pytest.raises(ConfigError, match="none of its 1 checks names a row"):
        run(make_request(panel, log, checks=checks))


# LiteLLM warns of its own types as it loads what it has for such models.
def test_one_model_at_two_efforts_is_a_pair(panel: Panel, tmp_path: Path) -> None:
    def say(model: str, body: Any) -> str:
        return fair(model, body) if model == "judge" else f"{body['reasoning_effort']} says so"

    panel.say = say
    log = make_log(tmp_path / "log.jsonl", 2, answer=None, model="gpt-5-mini")
    names = {"strong": "openai/gpt-5-mini@high", "weak": "openai/gpt-5-mini@low"}
    request = make_request(panel, log, **names, prices={"judge": "5,5"})
    result, told = run(request)
    assert result.stopped is None, told
    asked = [r.body for r in panel.requests if r.body["model"] == "gpt-5-mini"]
    assert sorted(body["reasoning_effort"] for body in asked) == ["high"] * 2 + ["low"] * 2
    first = lines(request.out)[0]
    assert (first["model_a"], first["model_b"]) == tuple(names.values())
    assert first["answer_b"] == "low says so"
    assert first["cost_a"] > 0 and first["cost_b"] > 0
    with pytest.raises(ConfigError, match="NAME@high and NAME@low"):
        run(make_request(panel, log, strong="m", weak="m"))

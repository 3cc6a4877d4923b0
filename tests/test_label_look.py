"""What `label` keeps for a second look, and that `train second-look` can read it as it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.data.answers import read_answers
from thriftroute.eval.look_command import LookOptions, run_look
from thriftroute.router.second_look import SecondLook
from thriftroute.testing.stub_faults import Fault
from thriftroute.training.second_look import LookSettings, train_second_look
from thriftroute.training.settings import TrainSettings

from .helpers.labelling import Panel, fair, lines, make_log, make_request, run, shown

STRONG, WEAK = "openai/strong", "openai/weak"


def told(text: str, *probabilities: float) -> str:
    """A provider's answer, with the log-probability of its tokens."""
    tokens = [{"token": "t", "logprob": float(np.log(p)), "bytes": None} for p in probabilities]
    content = [{**token, "top_logprobs": []} for token in tokens]
    choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}}
    choice |= {"message": {"role": "assistant", "content": text}}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "weak"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({**whole, "choices": [choice], "usage": usage})


class TellingPanel(Panel):
    """Its weak model tells how sure it is; of hard requests less, and then it changes its mind."""

    def fault(self, model: str) -> Fault:
        fault, body = super().fault(model), self._own.body
        if model != "weak" or fault.status != 200:
            return fault
        asked = str(body["messages"][-1]["content"])
        again = " again" if "hard" in asked and body.get("temperature") == 1.0 else ""
        sure = (0.5, 0.125) if "hard" in asked else (0.9, 0.9)
        return Fault(raw=told(fair("weak", body) + again, *(sure if body.get("logprobs") else ())))


@pytest.fixture
def panel() -> Any:
    with TellingPanel() as running:
        yield running


def weak_calls(panel: Panel) -> list[dict[str, Any]]:
    return [dict(r.body) for r in panel.requests if r.body["model"] == "weak"]


def test_the_weak_answer_its_confidence_and_a_second_one_are_kept(
    panel: Panel, tmp_path: Path
) -> None:
    request = make_request(panel, make_log(tmp_path / "log.jsonl"), second_sample=True)
    result, text = run(request)
    assert result.stopped is None and "12 of openai/weak" in text
    hard = next(row for row in lines(request.out) if row["prompt"] == "hard question 0")
    assert hard["answer_b"] == "weak on: hard question 0"
    assert hard["second_b"] == "weak on: hard question 0 again"
    assert hard["confidence_b"] == pytest.approx(0.25)  # the geometric mean
    assert len(hard["logprobs_b"]) > 1 and set(hard["logprobs_b"][0]) == {"token", "logprob"}
    plain = [body for body in weak_calls(panel) if body.get("temperature") != 1.0]
    assert len(plain) == 6 and all(body["logprobs"] is True for body in plain)
    found = read_answers(str(request.out), WEAK)["hard question 0"]
    assert (found.text, found.second) == (hard["answer_b"], hard["second_b"])
    assert found.confidence == pytest.approx(0.25)
    assert [token for token, _ in found.tokens] == [t["token"] for t in hard["logprobs_b"]]
    assert request.out.stat().st_mode & 0o077 == 0  # answers are their owner's alone


def test_nothing_is_paid_twice_and_a_second_sample_can_come_later(
    panel: Panel, tmp_path: Path
) -> None:
    log = make_log(tmp_path / "log.jsonl")
    run(make_request(panel, log))
    first = len(panel.requests)
    result, text = run(make_request(panel, log, second_sample=True))
    assert "6 of openai/weak" in text and result.stopped is None
    assert len(panel.requests) == first + 6
    run(make_request(panel, log, second_sample=True))
    assert len(panel.requests) == first + 6
    capped = make_request(panel, log, second_sample=True, max_usd=0.0, state=tmp_path / "new")
    result, _ = run(capped)
    assert result.stopped == "cap" and len(panel.requests) == first + 6


def test_a_state_of_an_earlier_version_is_gone_on_from(panel: Panel, tmp_path: Path) -> None:
    request = make_request(panel, make_log(tmp_path / "log.jsonl"))
    run(request)
    rows = [
        {k: v for k, v in row.items() if k not in {"confidence", "logprobs"}}
        for row in lines(request.state_path)
    ]
    request.state_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = len(panel.requests)
    run(request)
    assert len(panel.requests) == asked
    assert all("confidence_b" not in row and row["answer_b"] for row in lines(request.out))


def test_a_provider_that_refuses_probabilities_is_asked_without_them(tmp_path: Path) -> None:
    class Refusing(Panel):
        def fault(self, model: str) -> Fault:
            asked = self._own.body.get("logprobs")
            refused = Fault(status=400, error="logprobs is not supported")
            return refused if asked else super().fault(model)

    with Refusing() as panel:
        request = make_request(panel, make_log(tmp_path / "log.jsonl"), concurrency=1)
        result, _ = run(request)
        assert result.stopped is None and len(lines(request.out)) == 6
        assert len(weak_calls(panel)) == 12  # each is refused once
        assert all("confidence_b" not in row for row in lines(request.out))


def test_what_the_users_own_parameters_say_of_probabilities_holds(
    panel: Panel, tmp_path: Path
) -> None:
    own = {"all": {"api_base": panel.url, "api_key": "k"}, "weak": {"logprobs": False}}
    run(make_request(panel, make_log(tmp_path / "log.jsonl"), params=own))
    assert all(not body.get("logprobs") for body in weak_calls(panel))


def test_scores_of_checks_have_the_answer_too(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 2)
    checks, scores = tmp_path / "checks.jsonl", tmp_path / "scores.jsonl"
    right = {"exact": "strong on: hard question 0"}
    checks.write_text(json.dumps({"id": "r0", **right}) + "\n")
    wanted = {"checks": checks, "scores_out": scores, "judge": None, "second_sample": True}
    run(make_request(panel, log, **wanted))
    strong, weak = lines(scores)
    assert "answer" not in strong and weak["answer"] == "weak on: hard question 0"
    assert weak["confidence"] == pytest.approx(0.25) and weak["second"].endswith("again")


def test_a_look_is_trained_on_what_was_labelled(panel: Panel, tmp_path: Path) -> None:
    def say(model: str, body: Mapping[str, Any]) -> str:
        tie = model == "judge" and "easy" in shown(body)[0]
        return "VERDICT: TIE" if tie else fair(model, body)

    panel.say = say
    log = make_log(tmp_path / "log.jsonl", 90)
    request = make_request(panel, log, second_sample=True, max_usd=100.0)
    run(request)
    data, out = str(request.out), tmp_path / "looks"
    settings = TrainSettings("mf", [data], (STRONG,), (WEAK,), out, base="fast")
    result = train_second_look(settings, LookSettings())
    look = SecondLook.of(result.bundle)
    assert look is not None and look.facts["n"] == 90
    assert {"agreement", "confidence"} & set(look.signals) and look.second is None
    assert look.facts["auc"] > 0.9
    found = run_look(LookOptions(str(out), data, (STRONG,), (WEAK,)), bootstraps=100)
    assert found.n == 90

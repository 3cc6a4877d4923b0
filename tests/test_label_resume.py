"""Money: nothing is paid twice, whatever ended a run; the cap holds; failures and retries."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from thriftroute.errors import ConfigError
from thriftroute.labels.asking import Call, CallFailed, PaidCaller
from thriftroute.labels.ledger import LabelError, LabelLedger, Purse, RowMoney
from thriftroute.labels.output import summary_lines
from thriftroute.labels.settings import PricedModel
from thriftroute.providers.calls import told
from thriftroute.providers.error_meaning import CallError, FailureKind
from thriftroute.providers.prices import Price
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.labelling import PRICES, Panel, lines, make_log, make_request, run


@pytest.fixture
def panel() -> Iterator[Panel]:
    with Panel() as running:
        yield running


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path / "log.jsonl", 8)


def start(panel: Panel, log: Path, *more: str) -> "subprocess.Popen[str]":
    """The command as a process of its own."""
    arguments = [
        *("label", str(log), "--out", str(log.parent / "labels.jsonl"), "--api-base", panel.url),
        *("--strong", "openai/strong", "--weak", "openai/weak", "--judge", "openai/judge"),
        *("--strong-price", PRICES["strong"], "--weak-price", PRICES["weak"]),
        *("--judge-price", PRICES["judge"], "--max-usd", "1", "--retries", "0", *more),
    ]
    code = "from thriftroute.cli import main; main()"
    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def wait_for(panel: Panel, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(panel.requests) < count:
        assert time.monotonic() < deadline, "the process made no calls"
        time.sleep(0.01)


def answered(state: Path) -> set[str]:
    return {line["key"] for line in lines(state) if line["kind"] == "answered"}


def test_a_killed_run_pays_again_for_at_most_what_was_under_way(log: Path) -> None:
    with Panel(delay_s=0.15) as panel:
        request = make_request(panel, log, concurrency=2)
        child = start(panel, log, "--concurrency", "2")
        wait_for(panel, 9)
        child.kill()
        child.communicate()
        panel.delay_s = 0
        before = answered(request.state_path)
        asked = {
            line["key"]: line["most_usd"]
            for line in lines(request.state_path)
            if line["kind"] == "asked"
        }
        lost = {key: usd for key, usd in asked.items() if key not in before}
        assert before
        assert len(lost) <= 2
        made = len(panel.requests)
        result, told_ = run(request)
        # 8 of weak and 16 of the judge in all: what was answered before is not asked again.
        assert len(panel.requests) - made == 24 - len(before)
        assert result.summary["labelled"] == 8
        assert result.summary["usd"]["perhaps"] == pytest.approx(sum(lost.values()), abs=1e-6)
        assert ("were under way when an earlier run was killed" in told_) == bool(lost)
        made = len(panel.requests)
        run(request)
        assert len(panel.requests) == made


def test_ctrl_c_waits_for_what_is_under_way_and_goes_on_later(log: Path) -> None:
    with Panel(delay_s=0.15) as panel:
        child = start(panel, log, "--concurrency", "2")
        wait_for(panel, 5)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=300)
        assert child.returncode == 130
        assert "interrupted; the same command goes on" in out
        assert "error: interrupted" in err
        panel.delay_s = 0
        request = make_request(panel, log)
        state = lines(request.state_path)
        kinds = [line["kind"] for line in state]
        assert kinds.count("asked") == kinds.count("answered") == len(panel.requests) < 24
        written = len(lines(request.out))
        assert 0 < written < 8
        result, _ = run(request)
        assert result.summary["labelled"] == 8
        assert len(panel.requests) == 24
        assert panel.repeated() == []


def test_a_second_run_asks_nobody_and_writes_the_same(panel: Panel, log: Path) -> None:
    request = make_request(panel, log)
    run(request)
    made, wrote = len(panel.requests), request.out.read_bytes()
    result, _ = run(request)
    assert len(panel.requests) == made
    assert request.out.read_bytes() == wrote
    assert result.expected.calls == {}
    run(make_request(panel, log, max_usd=None))  # nor does it need a cap


def test_rows_that_are_alike_are_paid_for_once(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    row = json.loads(log.read_text())
    log.write_text("".join(json.dumps({**row, "id": f"r{i}"}) + "\n" for i in range(4)))
    with Panel(delay_s=0.1) as panel:
        request = make_request(panel, log, concurrency=4)
        result, _ = run(request)
        assert panel.asked() == {"weak": 1, "judge": 2}
    assert result.summary["labelled"] == 4
    assert result.summary["usd"]["perhaps"] == 0
    _, told_ = run(request)
    assert "when an earlier run was killed" not in told_


def test_another_judge_is_paid_only_for_judging(panel: Panel, log: Path) -> None:
    run(make_request(panel, log))
    panel.say = lambda model, body: "VERDICT: TIE"
    run(make_request(panel, log, judge="openai/judge2"))
    assert panel.asked() == {"weak": 8, "judge": 16, "judge2": 16}


def test_a_line_cut_in_the_middle_costs_its_call_and_no_more(panel: Panel, log: Path) -> None:
    request = make_request(panel, log, concurrency=1)
    run(request)
    state = request.state_path
    whole = state.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    assert json.loads(last)["kind"] == "answered"
    state.write_bytes(whole[: -len(last) // 2])
    made = len(panel.requests)
    result, _ = run(request)
    assert len(panel.requests) == made + 1
    assert result.summary["labelled"] == 8
    assert all(json.loads(line) for line in state.read_bytes().splitlines())


@pytest.mark.parametrize("concurrency", [1, 5])
def test_the_cap_is_never_passed_and_more_money_goes_on(
    panel: Panel, log: Path, concurrency: int
) -> None:
    whole, _ = run(make_request(panel, log, state=log.parent / "free", out=log.parent / "x"))
    first = len(panel.requests)
    row_most = whole.expected.most_usd / 8
    cap = row_most + 3.5 * whole.summary["usd"]["spent"] / 8
    request = make_request(panel, log, max_usd=cap, concurrency=concurrency)
    result, _ = run(request)
    assert result.stopped == "cap"
    # Rows wait for the money that others set aside and did not need.
    assert 3 <= result.summary["labelled"] <= 5
    assert result.summary["usd"]["spent"] <= cap
    assert len(lines(request.out)) == result.summary["labelled"]
    # No row is left half paid: answers are judged.
    assert (len(panel.requests) - first) == 3 * result.summary["labelled"]
    result, _ = run(make_request(panel, log, max_usd=1.0))
    assert result.summary["labelled"] == 8
    assert len(panel.requests) - first == 24


def test_what_is_left_is_estimated_by_the_answers_so_far(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "long.jsonl", 60)
    before, _ = run(make_request(panel, log, only_estimate=True, max_usd=None))
    most = before.expected.most_usd / 60
    result, _ = run(make_request(panel, log, max_usd=2.7 * most, concurrency=1))
    assert result.stopped == "cap"
    usd, labelled = result.summary["usd"], result.summary["labelled"]
    assert 30 <= labelled < 60
    assert f"about ${usd['left']:.4f} more for the rest" in "\n".join(
        summary_lines(result.summary, log)
    )
    # Answers and verdicts of some words, where 300 tokens and 80 were expected.
    assert usd["left"] / (60 - labelled) < before.expected.usd / 60 / 2
    again, _ = run(make_request(panel, log, only_estimate=True))
    fixed, _ = run(make_request(panel, log, only_estimate=True, output_tokens=300))
    assert usd["left"] <= again.expected.usd < fixed.expected.usd / 1.5


def test_a_cap_of_nothing_asks_nobody(panel: Panel, log: Path) -> None:
    result, _ = run(make_request(panel, log, max_usd=0.0))
    assert result.stopped == "cap"
    assert not panel.requests


def test_what_earlier_runs_spent_counts_against_the_cap(panel: Panel, log: Path) -> None:
    result, _ = run(make_request(panel, log, count=4))
    spent = result.summary["usd"]["spent"]
    result, _ = run(make_request(panel, log, max_usd=spent))
    assert result.stopped == "cap"
    assert result.summary["labelled"] == 4  # they are still written
    assert panel.asked()["weak"] == 4


def test_transient_failures_are_tried_again_and_cost_nothing(panel: Panel, log: Path) -> None:
    panel.fail(Fault(status=500), Fault(status=429), model="weak")
    panel.fail(Fault(status=503), model="judge")
    request = make_request(panel, log, retries=2, concurrency=1)
    result, _ = run(request)
    assert result.summary["labelled"] == 8
    assert panel.asked() == {"weak": 10, "judge": 17}
    failed = [line for line in lines(request.state_path) if line["kind"] == "failed"]
    assert [line["usd"] for line in failed] == [0, 0, 0]
    assert {line["error"].split()[0] for line in failed} >= {"RateLimitError"}


@pytest.mark.parametrize(
    "fault",
    [Fault(drop=True), Fault(cut=1), Fault(raw='{"id": "broken')],
    ids=["drop", "cut", "raw"],
)
def test_a_call_that_nobody_refused_counts_as_paid(panel: Panel, log: Path, fault: Fault) -> None:
    panel.fail(fault, model="weak")
    request = make_request(panel, log, retries=1, concurrency=1)
    result, _ = run(request)
    assert result.summary["labelled"] == 8
    (failed,) = [line for line in lines(request.state_path) if line["kind"] == "failed"]
    asked = next(line for line in lines(request.state_path) if line["kind"] == "asked")
    assert failed["usd"] == asked["most_usd"] > 0


def test_a_call_that_takes_too_long_counts_as_paid(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    panel.fail(Fault(hang_s=30), model="weak")
    request = make_request(panel, log, retries=0, timeout_s=2.0)
    result, _ = run(request)
    (reason,) = result.summary["unlabelled"]
    assert reason.startswith("call failed: Timeout")
    assert result.summary["usd"]["spent"] > 0


def test_a_provider_that_is_not_there_costs_nothing(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 2)
    with StubProvider() as gone:
        url = gone.url
    request = make_request(panel, log, params={"all": {"api_base": url, "api_key": "k"}})
    result, _ = run(request)
    assert result.summary["usd"]["spent"] == 0
    assert result.summary["labelled"] == 0
    assert sum(result.summary["unlabelled"].values()) == 2


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_key_or_name_stops_at_once(panel: Panel, log: Path, status: int) -> None:
    panel.always(Fault(status=status), "weak")
    request = make_request(panel, log, concurrency=1, retries=5)
    result, _ = run(request)
    assert result.stopped == "failures"
    assert isinstance(result.error, LabelError)
    assert "'openai/weak' cannot be called" in str(result.error)
    assert panel.asked() == {"weak": 1}
    panel.always(None, "weak")
    result, _ = run(request)
    assert result.summary["labelled"] == 8


def test_one_refused_prompt_stops_nobody_else(panel: Panel, log: Path) -> None:
    panel.fail(Fault(status=400, error="too long"), model="weak")
    result, _ = run(make_request(panel, log, retries=3))
    assert result.summary["labelled"] == 7
    (reason,) = result.summary["unlabelled"]
    assert "400" in reason
    assert panel.asked()["weak"] == 8  # what is refused is not tried again


def test_many_failures_in_a_row_stop_the_run(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 30)
    panel.always(Fault(status=500), "judge")
    result, _ = run(make_request(panel, log, concurrency=1))
    assert result.stopped == "failures"
    assert "10 calls of model 'openai/judge' in a row failed" in str(result.error)
    assert panel.asked()["judge"] in (10, 11, 12)  # both orders are asked at once
    assert panel.asked()["weak"] <= 6


def test_failures_with_answers_between_them_do_not(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 16)
    some = [Fault(status=500)] * 7
    panel.fail(*some, Fault(), *some, model="weak")
    result, _ = run(make_request(panel, log, concurrency=1))
    assert result.stopped is None
    assert result.summary["labelled"] == 2


def test_a_retry_needs_money_of_its_own(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 1)
    request = make_request(panel, log, judge=None, votes=1, retries=5)
    whole, _ = run(replace(request, only_estimate=True))
    panel.always(Fault(drop=True), "weak")
    result, _ = run(replace(request, max_usd=whole.expected.most_usd * 1.5))
    assert result.stopped == "cap"
    assert panel.asked() == {"weak": 1}
    assert result.summary["usd"]["spent"] == pytest.approx(whole.expected.most_usd, abs=1e-6)


def test_who_was_told_to_stop_tries_nothing_again(panel: Panel, tmp_path: Path) -> None:
    panel.always(Fault(status=500), "weak")
    model = PricedModel("openai/weak", Price(1, 1), 10, {"api_base": panel.url, "api_key": "k"})
    call = Call("r", model, ({"role": "user", "content": "hi"},))

    async def ask(ledger: LabelLedger, *, stopped: bool) -> None:
        stop = asyncio.Event()
        caller = PaidCaller(ledger, retries=2, wait_s=0.01, stop=stop)
        if stopped:
            stop.set()
        with pytest.raises(CallFailed, match="500"):
            await caller.ask(call, RowMoney(Purse(1.0)))
        await caller.close()

    with LabelLedger(tmp_path / "state") as ledger:
        asyncio.run(ask(ledger, stopped=True))
        assert panel.asked() == {"weak": 1}
        asyncio.run(ask(ledger, stopped=False))
        assert panel.asked() == {"weak": 1 + 3}


def test_two_runs_on_one_state_are_refused(panel: Panel, log: Path) -> None:
    request = make_request(panel, log)
    with LabelLedger(request.state_path), pytest.raises(ConfigError, match="another run writes"):
        run(request)


def test_keys_are_written_nowhere(panel: Panel, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret-123456"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    panel.always(Fault(status=400, error=f"Incorrect key: {key}"), "weak")
    params: dict[str, Any] = {"all": {"api_base": panel.url}}
    request = make_request(panel, log, params=params)
    result, out = run(request)
    monkeypatch.delenv("OPENAI_API_KEY")
    params["all"]["api_key"] = key
    other, more = run(make_request(panel, log, params=params))
    assert {request.api_key for request in panel.requests} == {key}
    shown = json.dumps([result.summary, other.summary]) + out + more
    assert key not in request.state_path.read_text() + shown
    assert shown.count("[hidden]") == 2


def test_a_full_disk_stops_the_run_before_more_is_asked(panel: Panel, log: Path) -> None:
    resource = pytest.importorskip("resource")
    request = make_request(panel, log, concurrency=1)
    run(replace(request, state=log.parent / "other", count=1))  # LiteLLM is loaded
    made = len(panel.requests)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        result, _ = run(request)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.stopped == "failures"
    assert "cannot go on" in str(result.error)
    assert request.state_path.read_bytes().endswith(b"}\n")  # no half a line
    assert 0 < len(panel.requests) - made < 24
    asked = len(panel.requests)
    result, _ = run(request)
    assert result.summary["labelled"] == 8
    assert len(panel.requests) - asked >= 24 - (asked - made)
    assert len(panel.requests) - made <= 25


def test_the_state_is_nobody_elses_to_read(panel: Panel, log: Path) -> None:
    request = make_request(panel, log)
    run(request)
    assert request.state_path.stat().st_mode & 0o077 == 0


def test_a_failure_is_told_in_a_word() -> None:
    told_as = {TimeoutError(): "Timeout", ValueError("no\n good"): "Timeout: no good"}
    for cause, words in told_as.items():
        failure = CallError(FailureKind.NEXT, "Timeout")
        failure.__cause__ = cause
        assert told(failure, {}) == words

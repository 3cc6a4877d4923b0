"""People's votes: through a pipe, on a terminal, blind, and what they change."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from thriftroute.data.logs.schema import LogRow
from thriftroute.labels.asking import Label
from thriftroute.labels.ledger import LabelLedger, Reply, Vote
from thriftroute.labels.settings import LabelSettings
from thriftroute.labels.votes import human_scores, pair_hash, take_votes
from thriftroute.tests.helpers.labelling import PRICES, Panel, lines, make_log, make_request, run


@pytest.fixture
def panel() -> Iterator[Panel]:
    with Panel() as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LabelLedger]:
    with LabelLedger(tmp_path / "state") as found:
        yield found


def rows(n: int) -> list[LogRow]:
    return [
        LogRow(id=str(i), messages=({"role": "user", "content": f"ask {i}"},), prompt=f"ask {i}")
        for i in range(n)
    ]


def labels(n: int) -> dict[str, Label]:
    return {str(i): Label(Reply(f"S{i}"), Reply(f"W{i}")) for i in range(n)}


def vote(
    ledger: LabelLedger, said: str, n: int = 4, *, voter: str = "anna", limit: int = 99
) -> str:
    told = io.StringIO()
    console = Console(file=told, width=80)
    source = io.StringIO(said)
    settings = LabelSettings(Path("log"), Path("out"), "s", "w", votes=limit, voter=voter)
    take_votes(settings, ledger, rows(n), labels(n), source, console)
    return told.getvalue()


def firsts(told: str) -> list[str]:
    """Which answer stood as A, of each that was shown."""
    shown = told.splitlines()
    return [shown[i + 1] for i, line in enumerate(shown) if line.strip("─ ") == "A"]


def test_a_vote_counts_for_what_stood_there(ledger: LabelLedger) -> None:
    told = vote(ledger, "a\nA \nb\nt\n")
    first = firsts(told)
    assert len(first) == 4
    score = [1.0 if name.startswith("S") else 0.0 for name in first]
    wanted = {"0": score[0], "1": score[1], "2": 1 - score[2], "3": 0.5}
    assert {v.item: v.strong for v in ledger.votes} == wanted
    assert human_scores(ledger, labels(4)) == {k: (v, 1) for k, v in wanted.items()}


def test_either_answer_may_stand_first_and_does_so_again(ledger: LabelLedger) -> None:
    one, other = vote(ledger, "s\n" * 40, 40), vote(ledger, "s\n" * 40, 40)
    assert firsts(one) == firsts(other)
    assert 8 <= sum(name.startswith("S") for name in firsts(one)) <= 32
    assert not ledger.votes  # what is skipped is no vote


def test_nobody_is_asked_twice_and_the_end_of_input_ends_it(ledger: LabelLedger) -> None:
    vote(ledger, "t\nt\n")
    assert [v.item for v in ledger.votes] == ["0", "1"]
    told = vote(ledger, "t\nq\n")
    assert "1 of 2: the request" in told
    assert [v.item for v in ledger.votes] == ["0", "1", "2"]
    vote(ledger, "t\n" * 9, voter="bert", limit=3)
    assert [v.item for v in ledger.votes if v.voter == "bert"] == ["0", "1", "2"]


def test_what_is_no_vote_is_asked_for_again(ledger: LabelLedger) -> None:
    told = vote(ledger, "what?\n\x1b[2Jx\n\nt\n", 1)
    assert told.count("is none of a, b, t, s, q") == 3
    assert "\x1b[2J" not in told
    assert [v.strong for v in ledger.votes] == [0.5]


def test_a_mean_of_voters_and_the_last_word_of_each(ledger: LabelLedger) -> None:
    pair = pair_hash("S0", "W0")
    for voter, strong in (("anna", 0.0), ("bert", 0.5), ("anna", 1.0)):
        ledger.vote(Vote("0", pair, voter, strong))
    ledger.vote(Vote("0", pair_hash("S0", "another answer"), "carl", 0.0))
    ledger.vote(Vote("7", pair, "anna", 0.0))
    assert human_scores(ledger, labels(1)) == {"0": (0.75, 2)}


def test_votes_overrule_the_judge_and_measure_it(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 12)
    request = make_request(panel, log, votes=6, voter="anna")
    result, told = run(request, votes="t\n" * 6)
    assert "judge" not in told.partition("the request")[2].lower()
    assert not any(f"{name} better" in told for name in ("strong", "weak"))
    summary = result.summary
    assert summary["sources"] == {"human": 6, "judge:openai/judge": 6}
    assert summary["judge"]["against_people"]["n"] == 6
    human = [line for line in lines(request.out) if line["source"] == "human"]
    assert {line["outcome"] for line in human} == {"tie"}
    made = len(panel.requests)
    result, _ = run(make_request(panel, log))  # votes stay without --votes
    assert result.summary["sources"]["human"] == 6
    assert len(panel.requests) == made


def test_votes_alone_label_what_they_reach(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 4)
    result, _ = run(make_request(panel, log, judge=None, votes=3), votes="a\nb\nq\n")
    assert panel.asked() == {"weak": 4}
    assert result.summary["sources"] == {"human": 2}
    assert result.summary["unlabelled"] == {"not compared yet": 2}


def test_votes_from_a_terminal(panel: Panel, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", 3)
    request = make_request(panel, log, judge=None, votes=3)
    master, slave = pty.openpty()
    code = "from thriftroute.cli import main; main()"
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", code, "label", str(log), "--out", str(request.out)),
            *("--strong", "openai/strong", "--weak", "openai/weak", "--votes", "3"),
            *("--weak-price", PRICES["weak"], "--max-usd", "1", "--api-base", panel.url),
        ],
        stdin=slave, stdout=slave, stderr=slave, close_fds=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(slave)
    try:
        seen = talk(master, ["t", "nonsense", "a"])
        os.write(master, b"\x04")  # the end of input
        seen += read_until(master, None)
    finally:
        os.close(master)
        assert child.wait(timeout=300) == 0
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)  # colours
    assert "1 of 3: the request" in seen
    assert "2 comparisons" in seen
    assert [line["source"] for line in lines(request.out)] == ["human"] * 2


def talk(master: int, answers: list[str]) -> str:
    seen = read_until(master, "> ")
    for answer in answers:
        os.write(master, f"{answer}\n".encode())
        seen += read_until(master, "> ")
    return seen


def read_until(master: int, end: str | None) -> str:
    """What the terminal shows until it ends so; None: until nobody writes any more."""
    seen = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(master, 65536)
        except OSError:  # the other side is closed
            return seen
        if not data:
            return seen
        seen += data.decode(errors="replace")
        if end is not None and seen.endswith(end):
            return seen
    raise AssertionError(f"the terminal never showed {end!r}: {seen}")

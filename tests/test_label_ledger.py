"""The state file and the purse."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thriftroute.errors import DataError
from thriftroute.labels.asking import Call
from thriftroute.labels.ledger import LabelLedger, Purse, Reply, Round, RowMoney, Vote
from thriftroute.labels.settings import PricedModel
from thriftroute.providers.prices import Price

REPLY = Reply("héllo \ud800", "stop", 3, 4, 0.25, True, 0.5, (("hé", -0.5), ("llo", None)))
ASKED = ({"role": "user", "content": "hi"},)


def ask(ledger: LabelLedger, key: str, usd: float = 1.0) -> None:
    ledger.ask(key, item="r1", model="m", most_usd=usd)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with LabelLedger(path) as ledger:
        ledger.draw(Round(5, {"r1": 0.4, "r2": 0.4}))
        ask(ledger, "one")
        ledger.answer("one", REPLY)
        ask(ledger, "two")
        ledger.fail("two", "Timeout", 0.5)
        ledger.vote(Vote("r1", "abc", "anna", 0.5))
        assert (ledger.spent, ledger.lost) == (0.75, 0.0)
    with LabelLedger(path) as again:
        assert again.replies == {"one": REPLY} == ledger.replies
        assert again.rounds == [Round(5, {"r1": 0.4, "r2": 0.4})]
        assert again.votes == [Vote("r1", "abc", "anna", 0.5)]
        assert again.drawn == ["r1", "r2"]
        assert again.total == 0.75
        assert again.by_model == {"m": 0.75}


def test_calls_without_an_end_count_as_spent_once(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with LabelLedger(path) as ledger:
        ask(ledger, "one", 1.0)
        ask(ledger, "two", 2.0)
        assert ledger.lost == 0  # they are under way
    with LabelLedger(path) as again:
        assert (again.lost, again.lost_calls) == (3.0, 2)
        ask(again, "one", 1.0)
        again.answer("one", REPLY)
    with LabelLedger(path) as third:
        assert (third.lost, third.lost_calls, third.spent) == (3.0, 2, 0.25)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_last_line_that_was_not_finished_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "state"
    with LabelLedger(path) as ledger:
        ask(ledger, "one")
        ledger.answer("one", Reply("x" * 300_000, usd=0.1))
    path.write_bytes(path.read_bytes()[:-cut])
    with LabelLedger(path) as again:
        assert again.replies == {}
        ask(again, "two")
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["one", "two"]


def test_a_file_of_one_unfinished_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text('{"kind": "asked"')
    with LabelLedger(path) as ledger:
        assert ledger.total == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"kind": "other"}', "unknown kind 'other'"),
        ('{"kind": "asked"}', "KeyError"),
        ('{"kind": "answered", "key": "x", "usd": 1}', "KeyError"),
        ('{"prompt": "some log"}', "KeyError"),
        ("nonsense", "not valid JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_what_is_no_state_is_refused_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "state"
    with LabelLedger(path) as ledger:
        ask(ledger, "one")
    path.write_text(path.read_text() + line + "\n")
    before = path.read_bytes()
    with pytest.raises(DataError, match=words) as caught:
        LabelLedger(path)
    assert caught.value.line == 2
    assert path.read_bytes() == before
    path.write_text("")
    LabelLedger(path).close()  # nothing holds it any more


def test_a_key_is_of_what_is_sent_and_of_no_secret() -> None:
    def key(turn: int = 0, name: str = "m", tokens: int = 5, **params: object) -> str:
        return Call("r", PricedModel(name, Price(1, 1), tokens, params), ASKED, turn).key

    assert key() == key(api_key="k", api_base="http://x", timeout=3)
    assert len({key(), key(1), key(name="n"), key(tokens=6), key(temperature=0)}) == 5
    other = Call("r", PricedModel("m", Price(2, 2), 5), ({"role": "user", "content": "ho"},))
    assert other.key != key()
    assert Call("other row", PricedModel("m", Price(2, 2), 5), ASKED).key == key()


def test_money_that_is_set_aside_comes_back() -> None:
    purse = Purse(1.0, spent=0.2)
    assert purse.hold(0.9) is None
    hold = purse.hold(0.5)
    assert hold is not None
    assert purse.hold(0.4) is None
    assert hold.take(0.3)
    hold.settle(0.3, 0.1)
    assert not hold.take(0.9)  # 0.2 is left of the hold, 0.5 of the cap
    assert hold.take(0.6)
    hold.settle(0.6, 0.6)
    hold.close()
    assert purse.spent == pytest.approx(0.9)
    assert purse.held == 0
    assert purse.hold(0.2) is None
    assert isinstance(purse.hold(0.1), RowMoney)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 1), st.integers(0, 4)), max_size=40))
def test_no_order_of_calls_passes_the_cap(calls: list[tuple[float, float, int]]) -> None:
    purse, holds = Purse(1.0), []
    for most, share, what in calls:
        if what == 0 or not holds:
            hold = purse.hold(most)
            if hold is not None:
                holds.append(hold)
        elif what == 1:
            holds.pop(0).close()
        elif holds[-1].take(most):
            holds[-1].settle(most, most * share)
        assert purse.spent + purse.held <= 1.0 + 1e-9
    for hold in holds:
        hold.close()
    assert purse.held == 0

"""What the latest decisions say of other thresholds, and their sessions, against sums by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine
from thriftroute.serve.records import Record
from thriftroute.serve.records.database import create_schema, insert, open_engine
from thriftroute.serve.records.table import to_row
from thriftroute.serve.records.traffic import BARS, traffic

SCORES = np.random.default_rng(3).random(300)
PRICES = np.random.default_rng(4).random(300) + 0.1


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("records")
    engine = open_engine(f"sqlite:///{folder / 'r.db'}")
    create_schema(engine)
    one = {"router": "mf", "model": "weak", "choice": "weak", "strong": False, "threshold": 0.5}
    rows = [
        Record(id=f"d{i}", time=float(i), score=score, strong_cost=10 * price,
               prompt_tokens=round(1000 * price), **one)
        for i, (score, price) in enumerate(zip(SCORES.tolist(), PRICES.tolist(), strict=True))
    ]  # fmt: skip
    left_out = [
        Record(id="session", time=1.0, score=0.9, **{**one, "choice": "session"}),
        Record(id="failed", time=1.0, score=0.9, status=502, **{**one, "model": None}),
        Record(id="bert", time=1.0, score=0.9, **{**one, "router": "bert"}),
        Record(id="named", time=1.0, model="strong", choice="direct"),
    ]
    agents = [
        Record(id=f"a{i}", time=500.0 + i, session_hash=session, model=model, cost=1.0,
               strong_cost=3.0, steps=[["eligibility", "all"], ["switch", f"{said}: why"]])
        for i, (session, model, said) in enumerate([
            ("one", "strong", "start"), ("two", "weak", "start"), ("one", "weak", "switch"),
            ("one", "weak", "stay"),
        ])
    ]  # fmt: skip
    chat = Record(id="chat", time=900.0, session_hash="chat")  # a session, and no agent's
    with engine.begin() as connection:
        insert(connection, [to_row(row) for row in (*rows, *left_out, *agents, chat)])
    yield engine
    engine.dispose()


def test_a_curve_says_what_each_threshold_would_have_come_to(engine: Engine) -> None:
    found = traffic(engine, "mf", 0.4242, lambda row: row["prompt_tokens"] / 1000)
    assert (found["requests"], found["scored"]) == (309, 300)
    assert found["histogram"] == np.histogram(SCORES, BARS, (0, 1))[0].tolist()
    weak = np.round(1000 * PRICES) / 1000
    for point in found["curve"]:
        strong = point["threshold"] <= SCORES
        assert point["strong_share"] == pytest.approx(strong.mean())
        cost = np.where(strong, 10 * PRICES, weak).sum()
        assert point["saving_share"] == pytest.approx(1 - cost / (10 * PRICES).sum())
    shares = {point["threshold"]: point["strong_share"] for point in found["curve"]}
    assert (shares[0], shares[1], len(shares)) == (1, 0, 42)
    assert shares[found["threshold"]] == np.mean(SCORES >= 0.4242)


def test_sessions_of_agents_are_summed_the_latest_first(engine: Engine) -> None:
    one, two = traffic(engine, "mf", None, lambda _: 0.0)["sessions"]
    assert one == {"session": "one", "time": 503.0, "model": "weak", "steps": 3, "switches": 1,
                   "cost": 3.0, "saving": 6.0}  # fmt: skip
    assert (two["session"], two["steps"], two["switches"]) == ("two", 1, 0)


def test_where_nothing_was_scored_there_is_nothing_to_draw(engine: Engine) -> None:
    for found in (
        traffic(engine, "mf", 0.5, lambda _: 0.0, {"since": 400.0, "until": 600.0}),
        traffic(None, "mf", 0.5, lambda _: 0.0),
    ):
        assert (found["scored"], found["curve"], sum(found["histogram"])) == (0, [], 0)
    assert traffic(engine, "mf", None, lambda _: 0.0)["curve"] == []  # as of a pool

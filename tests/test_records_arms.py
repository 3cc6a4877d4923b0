"""Arms and shadow mode summed in the database."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine
from thriftroute.eval.drift.arms import ArmSums
from thriftroute.serve.config.settings import RecordSettings
from thriftroute.serve.records import Record, Recorder
from thriftroute.serve.records.arms import arms, experiments, scored_by, shadow
from thriftroute.serve.records.database import create_schema, insert, open_engine
from thriftroute.serve.records.table import meta, to_row
from thriftroute.tests.helpers.servers import postgres_server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('records') / 'r.db'}"
        return
    with postgres_server() as server:
        yield server.url


@pytest.fixture
def engine(server: str) -> Iterator[Engine]:
    engine = open_engine(server)
    create_schema(engine)
    yield engine
    meta.metadata.drop_all(engine)
    engine.dispose()


def put(engine: Engine, *records: Record) -> None:
    with engine.begin() as connection:
        insert(connection, [to_row(record) for record in records])


def by_hand(records: list[Record], arm: str) -> dict[str, ArmSums]:
    units: dict[str, list[Record]] = {}
    for record in records:
        if record.arm == arm:
            units.setdefault(record.session_hash or record.id, []).append(record)
    found = {}
    rules: dict[str, tuple[Any, Any]] = {
        "cost": (lambda r: r.cost, lambda r: 1),
        "saving": (lambda r: r.strong_cost - r.cost, lambda r: 1),
        "strong_share": (
            lambda r: r.score is not None and r.score >= 0.5,
            lambda r: r.score is not None,
        ),
        "errors": (lambda r: r.status >= 400 and r.status != 499, lambda r: 1),
        "latency_s": (
            lambda r: r.latency_s if r.model and r.status < 400 else 0,
            lambda r: bool(r.model) and r.status < 400,
        ),
        "feedback": (lambda r: r.feedback or 0, lambda r: r.feedback is not None),
    }
    for name, (value, counts) in rules.items():
        x = np.array([float(sum(value(r) for r in unit)) for unit in units.values()])
        d = np.array([float(sum(counts(r) for r in unit)) for unit in units.values()])
        parts = (x.sum(), d.sum(), x @ x, x @ d, d @ d)
        found[name] = ArmSums(int((d > 0).sum()), *(float(part) for part in parts))
    return found


def test_arms_are_summed_by_session_as_by_hand(engine: Engine) -> None:
    random = np.random.default_rng(0)
    records = [
        Record(
            id=f"d{i}",
            time=float(i),
            tenant=f"t{i % 3}",
            arm=["trial/control", "trial/treatment", "older/control", None][i % 4],
            session_hash=None if i % 7 == 0 else f"s{i % 20}",
            model=None if i % 11 == 0 else "strong",
            strong=None if i % 11 == 0 else i % 3 == 0,
            choice="shadow",
            score=None if i % 6 == 0 else float(random.random()),
            threshold=0.5,
            status=[200, 200, 499, 502][i % 13 % 4],
            cost=float(random.random()),
            strong_cost=2.0,
            latency_s=float(random.random()),
            feedback=float(random.random()) if i % 5 == 0 else None,
        )
        for i in range(200)
    ]
    put(engine, *records)
    found = arms(engine, "trial")
    for arm in ("control", "treatment"):
        expected = by_hand(records, f"trial/{arm}")
        assert found[arm]["requests"] == 50
        assert set(found[arm]["metrics"]) == set(expected)
        for name, sums in found[arm]["metrics"].items():
            own = expected[name]
            assert sums.units == own.units
            assert (sums.x, sums.d, sums.xx, sums.xd, sums.dd) == pytest.approx(
                (own.x, own.d, own.xx, own.xd, own.dd)
            )
    by_tenant = arms(engine, "trial", by="tenant", since=100.0, until=150.0)
    assert by_tenant["control"]["units"] == 3
    assert by_tenant["control"]["requests"] + by_tenant["treatment"]["requests"] == 26
    assert arms(engine, "none") == {}
    assert arms(None, "trial") == {}
    assert experiments(engine) == ["older", "trial"]


def test_shadow_mode_is_summed_over_what_was_answered(engine: Engine) -> None:
    assert shadow(engine)["requests"] == shadow(None)["requests"] == 0
    assert shadow(engine)["strong_share"] is None
    own: dict[str, Any] = {"model": "strong", "strong": True, "cost": 4.0}
    shadowed: dict[str, Any] = {"choice": "shadow", "threshold": 0.5}
    put(
        engine,
        Record(id="a", time=1.0, routed="weak", routed_cost=1.0, score=0.1, **own, **shadowed),
        Record(id="b", time=2.0, routed="strong", routed_cost=4.0, score=0.9, **own, **shadowed),
        Record(id="c", time=3.0, **own),  # its model was named
        Record(id="d", time=4.0, routed="weak", status=502),  # nobody answered
    )
    assert shadow(engine) == {
        "requests": 2, "strong_share": 0.5, "cost": 8.0, "routed_cost": 5.0,
        "saving": 3.0, "saving_share": 0.375,
    }  # fmt: skip
    assert shadow(engine, since=2.0)["saving"] == 0
    assert shadow(engine, until=2.0)["saving"] == 3


def test_routers_are_counted_by_their_scores(engine: Engine) -> None:
    put(
        engine,
        *(Record(id=f"m{i}", time=i, router="mf", score=0.5) for i in range(3)),
        *(Record(id=f"b{i}", time=i, router="bert", score=0.5) for i in range(5)),
        Record(id="n", time=9.0, router="mf"),
    )
    assert list(scored_by(engine).items()) == [("bert", 5), ("mf", 3)]
    assert scored_by(engine, since=4.0) == {"bert": 1}


def test_a_recorder_asks_the_same(tmp_path: Path) -> None:
    recorder = Recorder(RecordSettings(url=None))
    assert recorder.shadow()["requests"] == 0
    assert recorder.arms("trial", "session") == {}

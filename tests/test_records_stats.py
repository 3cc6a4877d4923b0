"""Reports, lists and exports, on SQLite and on PostgreSQL, against sums made by hand."""

import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, text
from thriftroute.errors import ConfigError
from thriftroute.serve.config.settings import RecordSettings
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.records import Record, Recorder
from thriftroute.serve.records.database import create_schema, insert, open_engine
from thriftroute.serve.records.stats import GROUPS, export, export_jsonl, stats
from thriftroute.serve.records.table import to_row
from thriftroute.tests.helpers.servers import postgres_server

START = 1_700_006_400.0  # a midnight, UTC
DAY = 86_400


def some_records(n: int = 400) -> list[Record]:
    """Three days of mixed decisions."""
    rng = random.Random(7)
    records = []
    for i in range(n):
        strong = rng.random() < 0.3
        failed = rng.random() < 0.1
        left = not failed and rng.random() < 0.05
        model = None if failed else "strong" if strong else "weak"
        attempts = ["weak", "strong"] if model == "strong" and rng.random() < 0.3 else [model]
        records.append(
            Record(
                id=f"d{i}",
                time=START + i * 3 * DAY / n,
                tenant=rng.choice(["acme", "globex"]),
                key=rng.choice(["alice", "bob", "carol"]),
                tier=rng.choice(["free", "pro", None]),
                requested="auto",
                model=model,
                strong=None if failed else strong,
                choice=rng.choice(["strong" if strong else "weak", "direct", "session"]),
                score=rng.choice([None, rng.random()]),
                threshold=rng.choice([0.4, 0.6, None]),
                task=rng.choice(["chat", "code", None]),
                steps=[["rules", "none"]],
                attempts=[{"model": name} for name in attempts],
                status=502 if failed else 499 if left else 200,
                error="upstream" if failed else None,
                cache=rng.choice(["hit", "miss", "off", "semantic"]),
                prompt_tokens=rng.randrange(1000),
                completion_tokens=rng.randrange(1000),
                cached_tokens=rng.randrange(10),
                reasoning_tokens=rng.randrange(10),
                cost=rng.random(),
                strong_cost=1 + rng.random(),
                escalated=(None, len(attempts) > 1)[i % 2],
                latency_s=rng.lognormvariate(0, 1),
                overhead_s=rng.random() / 100 if rng.random() < 0.8 else None,
                feedback=rng.choice([None, 1.0]),
            )
        )
    return records


RECORDS = some_records()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('records') / 'decisions.db'}"
    else:
        with postgres_server() as server:
            yield server.url


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    create_schema(engine)
    with engine.begin() as connection:
        for _ in range(2):  # a second try adds nothing
            insert(connection, [to_row(record) for record in RECORDS])
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def recorder(url: str, engine: Engine) -> Iterator[Recorder]:
    recorder = Recorder(RecordSettings(url=url))
    yield recorder
    recorder.close()


def test_the_lengths_of_answers_are_fitted_to_those_that_a_model_gave(recorder: Recorder) -> None:
    given = [r for r in RECORDS if r.status == 200 and r.cache in {"miss", "off"}]
    lengths = recorder.output_tokens()
    assert set(lengths.arms) == {"strong", "weak"}
    for name, arm in lengths.arms.items():
        tokens = [r.completion_tokens for r in given if r.model == name and r.completion_tokens]
        assert (arm.n, arm.mean) == (len(tokens), pytest.approx(np.mean(tokens)))
        assert arm.error is not None


def by_hand(records: list[Record]) -> dict[str, Any]:
    answered = [r.latency_s for r in records if r.model is not None and r.status < 400]
    # A score without a threshold is a pool's or a band's: the model says it.
    scored = [
        r.strong if r.threshold is None else r.score >= r.threshold
        for r in records
        if r.score is not None
        and r.choice != "session"
        and (r.threshold is not None or r.strong is not None)
    ]
    saved = [(r, r.strong_cost - r.cost) for r in records]
    by_cache = sum(x for r, x in saved if r.cache in {"hit", "semantic"})
    overhead = [r.overhead_s for r in records if r.overhead_s is not None]
    cost, strong_cost = sum(r.cost for r in records), sum(r.strong_cost for r in records)
    return {
        "requests": len(records),
        "errors": sum(r.status == 502 for r in records),
        "scored": len(scored),
        "cache_hits": sum(r.cache in {"hit", "semantic"} for r in records),
        "prompt_tokens": sum(r.prompt_tokens for r in records),
        "completion_tokens": sum(r.completion_tokens for r in records),
        "cached_tokens": sum(r.cached_tokens for r in records),
        "reasoning_tokens": sum(r.reasoning_tokens for r in records),
        "cost": pytest.approx(cost),
        "strong_cost": pytest.approx(strong_cost),
        "fallbacks": sum(r.fallbacks for r in records),
        "looked": sum(r.escalated is not None for r in records),
        "escalated": sum(r.escalated is True for r in records),
        "look_cost": pytest.approx(-sum(x for r, x in saved if r.escalated is True)),
        "look_saving": pytest.approx(sum(x for r, x in saved if r.escalated is False)),
        "saving": pytest.approx(strong_cost - cost),
        "cache_saving": pytest.approx(by_cache),
        "routing_saving": pytest.approx(strong_cost - cost - by_cache),
        "saving_share": pytest.approx(1 - cost / strong_cost) if records else None,
        "strong_share": pytest.approx(sum(map(bool, scored)) / len(scored)) if scored else None,
        "latency_p50_s": pytest.approx(
            np.percentile(answered, 50, method="inverted_cdf"), rel=0.026
        )
        if answered
        else None,
        "latency_p95_s": pytest.approx(
            np.percentile(answered, 95, method="inverted_cdf"), rel=0.026
        )
        if answered
        else None,
        "overhead_mean_s": pytest.approx(np.mean(overhead)) if overhead else None,
    }


def grouped(records: list[Record], by: str) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        if by in {"day", "hour"}:
            seconds = DAY if by == "day" else 3600
            name: Any = int(record.time // seconds) * seconds
        else:
            name = getattr(record, by)
        groups.setdefault(name, []).append(record)
    return groups


def test_totals_are_the_sums_of_all_rows(recorder: Recorder) -> None:
    report = recorder.stats()
    assert report["totals"] == by_hand(RECORDS)
    assert report["groups"] == []
    assert (report["since"], report["until"], report["by"]) == (None, None, None)
    json.dumps(report)


@pytest.mark.parametrize("by", GROUPS)
def test_groups_are_the_sums_of_their_rows(recorder: Recorder, by: str) -> None:
    expected = grouped(RECORDS, by)
    report = recorder.stats(by=by)
    assert {g["name"]: g for g in report["groups"]} == {
        name: {"name": name, **by_hand(records)} for name, records in expected.items()
    }
    assert report["totals"] == by_hand(RECORDS)
    order = [g["name"] if by in {"day", "hour"} else -g["cost"] for g in report["groups"]]
    assert order == sorted(order)
    json.dumps(report)


@pytest.mark.parametrize("by", [None, *GROUPS])
@pytest.mark.parametrize("first", [None, 10, 200])
@pytest.mark.parametrize("last", [None, 220, 390])
def test_a_time_is_half_open_within_days_and_over_them(
    recorder: Recorder, by: str | None, first: int | None, last: int | None
) -> None:
    since = None if first is None else RECORDS[first].time
    until = None if last is None else RECORDS[last].time
    inside = RECORDS[first:last]
    report = recorder.stats(since, by, until=until)
    assert report["totals"] == by_hand(inside)
    if by is not None:
        assert {g["name"]: g for g in report["groups"]} == {
            name: {"name": name, **by_hand(records)}
            for name, records in grouped(inside, by).items()
        }


def test_filters_narrow(recorder: Recorder) -> None:
    first, last = RECORDS[10].time, RECORDS[390].time
    acme = [r for r in RECORDS[10:390] if r.tenant == "acme" and r.task is None]
    filters = {"tenant": "acme", "task": None}
    assert recorder.stats(first, until=last, filters=filters)["totals"] == by_hand(acme)
    nothing = recorder.stats(START + 100 * DAY, "model")
    assert nothing["totals"]["requests"] == 0
    assert nothing["totals"]["latency_p50_s"] is None
    assert nothing["groups"] == []


def test_a_report_reads_the_index_alone_and_starts_at_its_time(engine: Engine) -> None:
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    for by in GROUPS:
        stats(engine, START, by, filters={"tenant": "acme"})
    event.remove(engine, "before_cursor_execute", note)
    assert len(seen) == 2 * len(GROUPS)  # sums, and latencies
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # So small a table would be read from end to end, and no page is known as all-visible.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text("VACUUM thriftroute_decisions"))
            connection.execute(text("SET enable_seqscan = off"))
            connection.execute(text("SET enable_bitmapscan = off"))
        for statement, parameters in seen:
            if engine.dialect.name == "postgresql":
                plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
                assert re.search(
                    "Index Only Scan (Backward )?using thriftroute_decisions_report",
                    str(plan.all()),
                )
            else:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                found = "COVERING INDEX thriftroute_decisions_report (time>?)"
                assert found in str(plan.all())


def test_the_latest_come_first_as_many_as_asked_for(recorder: Recorder) -> None:
    newest = RECORDS[::-1]
    assert [row["id"] for row in recorder.recent(3)] == [r.id for r in newest[:3]]
    assert recorder.recent(1)[0] == asdict(newest[0])
    assert recorder.recent(0) == []
    assert len(recorder.recent(10_000)) == len(RECORDS)


@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        ({"tenant": "acme"}, lambda r: r.tenant == "acme"),
        ({"tier": None}, lambda r: r.tier is None),
        ({"search": "GLOB"}, lambda r: r.tenant == "globex"),
        ({"errors": True}, lambda r: r.status >= 400),
        ({"rated": True, "status": 200}, lambda r: r.feedback is not None and r.status == 200),
        ({"until": RECORDS[50].time}, lambda r: r.time < RECORDS[50].time),
        ({"since": RECORDS[50].time}, lambda r: r.time >= RECORDS[50].time),
        ({"errors": False, "rated": False, "since": None}, lambda r: True),
    ],
)
def test_lists_are_narrowed_by_filters(recorder: Recorder, filters: Any, keeps: Any) -> None:
    expected = [r.id for r in RECORDS[::-1] if keeps(r)]
    assert [row["id"] for row in recorder.recent(1000, filters)] == expected
    assert len(expected) > 0


def test_sums_outlive_the_rows_that_are_deleted(tmp_path: Path) -> None:
    settings = RecordSettings(url=f"sqlite:///{tmp_path / 'old.db'}", keep_days=1)
    with_all = Recorder(settings)
    with_all.start()
    for record in RECORDS:
        with_all.put(record)
    assert with_all.close() == 0
    recorder = Recorder(settings)
    recorder.prune(START + 100 * DAY)
    assert recorder.recent() == []
    timeless = {"latency_p50_s": None, "latency_p95_s": None}
    assert recorder.stats()["totals"] == {**by_hand(RECORDS), **timeless}
    recorder.close()


def test_unknown_groups_and_filters_are_refused_by_name(recorder: Recorder) -> None:
    with pytest.raises(RefusedError, match="by: expected one of tenant, key") as caught:
        recorder.stats(by="prompt")
    assert (caught.value.status, caught.value.param) == (400, "by")
    for call in (recorder.recent, lambda _, filters: recorder.stats(filters=filters)):
        with pytest.raises(RefusedError, match="unknown filter 'prompt'; known: tenant") as caught:
            call(1, {"prompt": "a"})  # type: ignore[operator]
        assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_an_export_holds_all_rows_oldest_first(engine: Engine, url: str) -> None:
    assert [row["id"] for row in export(engine)] == [r.id for r in RECORDS]
    out = io.StringIO()
    count = export_jsonl(url, out, since=START + DAY, until=START + 2 * DAY, rated=True)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    expected = [
        r for r in RECORDS if START + DAY <= r.time < START + 2 * DAY and r.feedback is not None
    ]
    assert count == len(rows) == len(expected) > 0
    assert rows[0] == asdict(expected[0])


def test_an_export_of_what_is_no_database_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a database"):
        export_jsonl("postgres", io.StringIO())

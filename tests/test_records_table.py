"""A record, its hashes and its row."""

import math

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import IntegrityError
from thriftroute.serve.records import Record, hash_prompt, hash_session
from thriftroute.serve.records.database import PAGE, create_schema, insert, open_engine
from thriftroute.serve.records.table import decisions, latency_step, step_seconds, to_row


def test_a_hash_tells_prompts_apart_and_not_the_order_of_their_keys() -> None:
    first = hash_prompt([{"role": "user", "content": "Grüße"}])
    assert first == hash_prompt([{"content": "Grüße", "role": "user"}])
    assert first != hash_prompt([{"role": "user", "content": "Grüsse"}])
    assert first != hash_prompt([{"role": "system", "content": "Grüße"}])
    assert len(first) == 64
    assert len(hash_prompt([{"role": "user", "content": "half a pair \ud83d"}])) == 64


def test_a_session_is_hashed_with_its_tenant() -> None:
    assert hash_session("a", "s") == hash_session("a", "s")
    assert hash_session("a", "s") != hash_session("b", "s")
    assert hash_session("ab", "c") != hash_session("a", "bc")


def test_fallbacks_are_changes_of_model_not_retries() -> None:
    def of(*models: str) -> int:
        return Record(id="d", time=0, attempts=[{"model": name} for name in models]).fallbacks

    assert [of(), of("a"), of("a", "a"), of("a", "b"), of("a", "a", "b", "c")] == [0, 0, 0, 1, 2]


def test_an_escalation_is_no_fallback() -> None:
    weak = {"model": "weak", "status": 200, "error": None}
    failed = {"model": "weak", "status": 500, "error": "InternalServerError"}
    strong = {"model": "strong", "status": 200, "error": None}
    found = [Record(id="d", time=0, attempts=a) for a in ([weak, strong], [failed, strong])]
    assert [record.fallbacks for record in found] == [0, 1]
    assert found[1].moves == [("weak", "strong")]


def test_a_row_has_a_value_for_every_column() -> None:
    assert set(to_row(Record(id="d", time=0.0))) == {column.name for column in decisions.c}


@pytest.mark.parametrize("seconds", [1e-4, 0.003, 0.25, 1.0, 7.7, 600.0, 1e5])
def test_a_latency_step_is_within_two_and_a_half_percent(seconds: float) -> None:
    assert step_seconds(latency_step(seconds)) == pytest.approx(seconds, rel=0.025)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf])
def test_an_odd_latency_has_a_step_too(seconds: float) -> None:
    assert 1e-5 < step_seconds(latency_step(seconds)) < 2e6


@pytest.mark.no_cover  # tests of records run the same lines; tracing costs half
def test_batches_of_any_size_take_few_statements() -> None:
    """The driver keeps every one of them, and of many rows each is large."""
    engine = open_engine("sqlite://")
    create_schema(engine)
    seen: set[str] = set()

    @event.listens_for(engine, "before_cursor_execute")
    def _look(*given: object) -> None:
        seen.add(str(given[2]))

    sizes = [1, 2, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 2, *range(5 * PAGE, 8 * PAGE)]
    for size in sizes:
        rows = [to_row(Record(id=f"{size}-{index}", time=0.0)) for index in range(size)]
        with engine.begin() as connection:
            insert(connection, rows)
    with engine.begin() as connection:
        assert connection.execute(select(func.count()).select_from(decisions)).scalar() == sum(
            sizes
        )
    inserts = {each for each in seen if each.startswith("INSERT INTO thriftroute_decisions")}
    assert 0 < len(inserts) <= PAGE
    engine.dispose()


def test_an_error_of_the_database_shows_no_row() -> None:
    engine = open_engine("sqlite://")
    create_schema(engine)
    rows = [to_row(Record(id="d", time=0.0, prompt="a secret"))] * 2
    with pytest.raises(IntegrityError) as caught, engine.begin() as connection:
        connection.execute(decisions.insert(), rows)
    assert "secret" not in str(caught.value)
    engine.dispose()
    assert open_engine("postgresql://u:p@host/db").hide_parameters

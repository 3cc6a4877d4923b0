"""Windows, amounts and refusals of budgets."""

import json
from datetime import UTC, datetime

import pytest

pytest.importorskip("pydantic")

from hypothesis import given
from hypothesis import strategies as st
from thriftroute.serve.config.settings import BudgetSettings, TierSettings
from thriftroute.serve.request import Principal
from thriftroute.serve.spend.budgets import NANO, Budget, budgets_of, nano, refusal, window_of


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "per", "name", "end"),
    [
        ("2026-11-22T00:00:00", "day", "2026-11-22", "2026-11-23T00:00:00"),
        ("2026-11-22T23:59:59", "day", "2026-11-22", "2026-11-23T00:00:00"),
        ("2026-12-31T12:00:00", "day", "2026-12-31", "2027-01-01T00:00:00"),
        ("2026-01-31T12:00:00", "month", "2026-01", "2026-02-01T00:00:00"),
        ("2028-02-29T12:00:00", "month", "2028-02", "2028-03-01T00:00:00"),
        ("2026-12-01T00:00:00", "month", "2026-12", "2027-01-01T00:00:00"),
    ],
)
def test_windows_are_days_and_months_in_utc(now: str, per: str, name: str, end: str) -> None:
    assert window_of(at(now), per) == (name, at(end))


@given(st.floats(1e9, 4e9), st.sampled_from(["day", "month"]))
def test_a_window_holds_its_moment_and_ends_where_the_next_begins(now: float, per: str) -> None:
    name, end = window_of(now, per)
    assert now < end
    assert window_of(end - 1, per)[0] == name
    assert window_of(end, per)[0] != name
    settings = TierSettings(budgets=(BudgetSettings(tokens=1, per=per),))
    (budget,) = budgets_of(Principal(tier="t"), settings, now)
    assert budget.since <= now
    assert window_of(budget.since, per)[0] == name
    assert window_of(budget.since - 1, per)[0] != name


def test_money_is_counted_in_whole_nano_dollars_rounded_up() -> None:
    assert nano(0.1) == NANO // 10
    assert nano(0.1 + 0.2) == 3 * NANO // 10
    assert nano(1.5e-9) == 2
    assert [nano(bad) for bad in (0.0, -1.0, float("nan"), float("inf"))] == [0, 0, 0, 0]


def test_a_request_counts_against_its_key_its_tenant_and_its_tier() -> None:
    tier = TierSettings(
        budgets=(
            BudgetSettings(usd=1, scope="key"),
            BudgetSettings(tokens=50_000, scope="tenant", per="month", soft=None),
            BudgetSettings(usd=100, scope="tier", soft=0.5),
        )
    )
    who = Principal(key="k1", tenant="acme", tier="pro")
    key, tenant, whole = budgets_of(who, tier, at("2026-11-22T10:00:00"))
    assert (key.name, key.unit, key.limit, key.soft) == ("k1", "usd", NANO, 8 * NANO // 10)
    assert (tenant.name, tenant.unit, tenant.limit, tenant.soft) == ("acme", "tokens", 50_000, None)
    assert (whole.name, whole.limit, whole.soft) == ("pro", 100 * NANO, 50 * NANO)
    assert len({key.key, tenant.key, whole.key}) == 3
    assert budgets_of(who, None, 0.0) == ()
    assert key.amount(0.25, 7) == NANO // 4
    assert tenant.amount(0.25, 7) == 7


def test_names_cannot_reach_into_each_others_counters() -> None:
    settings = TierSettings(budgets=(BudgetSettings(usd=1),))
    names = ["a", "a:day:usd", "a%3Aday%3Ausd", "{a}", "ä b\n"]
    keys = [budgets_of(Principal(tenant=each, tier="t"), settings, 0.0)[0].key for each in names]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and "\n" not in key and key.count(":") == 5 for key in keys)


def budget(unit: str = "usd", limit: int = NANO) -> Budget:
    end = int(at("2026-11-23T00:00:00"))
    return Budget("pro", "tenant", "acme", "day", unit, limit, None, "2026-11-22", end)


def test_a_refusal_says_whose_budget_what_is_left_and_when_it_starts_anew() -> None:
    error = refusal(budget(), NANO * 9 // 10, 0, NANO // 5, at("2026-11-22T23:00:00"))
    assert (error.status, error.code) == (429, "budget_exceeded")
    text = str(error)
    assert "tenant 'acme' ($1 a day) has $0.1 left" in text
    assert "$0.2 that this request may need" in text
    assert text.endswith("it starts anew at 2026-11-23T00:00:00Z")
    assert error.headers == {"retry-after": "3600", "x-should-retry": "false"}
    assert error.to_dict()["error"]["type"] == "rate_limit_error"
    spent = refusal(budget("tokens", 50_000), 50_010, 0, 5, at("2026-11-22T23:59:59.9"))
    assert "is spent (50,000 tokens a day)" in str(spent)
    assert spent.headers == {"retry-after": "1"}


def test_where_only_holds_are_in_the_way_a_retry_is_worth_it() -> None:
    error = refusal(budget(), 0, NANO, NANO // 5, at("2026-11-22T10:00:00"))
    assert error.headers == {"retry-after": "5"}
    assert "$1 are only set aside for requests in work" in str(error)


def test_a_budget_shows_itself_as_json() -> None:
    shown = budget().to_dict(NANO // 4, NANO // 8)
    assert shown == json.loads(json.dumps(shown))
    assert (shown["limit"], shown["spent"], shown["held"]) == (1.0, 0.25, 0.125)
    assert (shown["scope"], shown["name"], shown["per"], shown["unit"]) == (
        "tenant",
        "acme",
        "day",
        "usd",
    )
    assert shown["resets_at"] == "2026-11-23T00:00:00Z"

"""Budgets as numbers: whose, of what, until when. Nothing here is shared or changes.

Money is counted in whole nano-dollars (1e-9 USD): sums of integers are exact, in Python, in Redis
and, up to 2**53 (nine million dollars a window), in its Lua scripts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from ..config.settings import TierSettings
from ..errors import RefusedError
from ..request import Principal

NANO = 1_000_000_000
BUSY_S = 5  # when to try again where the budget is only held by requests in work

Per = Literal["day", "month"]
Unit = Literal["usd", "tokens"]
Stats = Callable[..., Mapping[str, Any]]  # `records.writer.Recorder.stats`


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit of one key, tenant or tier in one calendar window. `limit` and `soft` are in
    nano-USD or tokens; from `soft` on only weak models answer. `resets_at` is the window's end."""

    tier: str
    scope: Literal["key", "tenant", "tier"]
    name: str
    per: Per
    unit: Unit
    limit: int
    soft: int | None
    window: str
    resets_at: int

    @property
    def key(self) -> str:
        """Names the counter: the same for all workers, another one for each window."""
        names = (self.tier, self.scope, self.name, self.per, self.unit, self.window)
        return ":".join(quote(name, safe="") for name in names)

    @property
    def since(self) -> float:
        """When the window began, in seconds since 1970."""
        day = self.window if self.per == "day" else f"{self.window}-01"
        return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()

    def amount(self, usd: float, tokens: int) -> int:
        """What a request counts against this budget. Rounded up: nothing priced counts as 0."""
        return nano(usd) if self.unit == "usd" else max(0, tokens)

    def shown(self, value: int) -> str:
        """For people: "$1.25" or "50,000 tokens"."""
        return f"${value / NANO:,.6g}" if self.unit == "usd" else f"{value:,} tokens"

    def to_dict(self, spent: int, held: int = 0) -> dict[str, Any]:
        """As JSON: USD or tokens; `held` is set aside for requests that are being answered."""
        scale = NANO if self.unit == "usd" else 1
        amounts = {"limit": self.limit, "soft": self.soft, "spent": spent, "held": held}
        scaled = {name: None if n is None else n / scale for name, n in amounts.items()}
        whole = asdict(self) | scaled | {"resets_at": iso(self.resets_at)}
        del whole["window"]
        return whole


def nano(usd: float) -> int:
    """Whole nano-USD, rounded up. A negative or undefined amount is none."""
    if not math.isfinite(usd) or usd <= 0:
        return 0
    # Rounded first: 0.1 USD is a little more than 1e8 nano-USD in floating point.
    return math.ceil(round(usd * NANO, 3))


def window_of(now: float, per: Per) -> tuple[str, int]:
    """(name, end in seconds since 1970) of the UTC day or month that `now` lies in."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "day":
        return day.strftime("%Y-%m-%d"), int((day + timedelta(days=1)).timestamp())
    following = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return day.strftime("%Y-%m"), int(following.timestamp())


def budgets_of(principal: Principal, tier: TierSettings | None, now: float) -> tuple[Budget, ...]:
    """All budgets that a request counts against at the time `now`; none without a tier."""
    name = principal.tier or "default"
    names = {"key": principal.key, "tenant": principal.tenant, "tier": name}
    made = []
    for each in () if tier is None else tier.budgets:
        window, resets_at = window_of(now, each.per)
        unit: Unit = "tokens" if each.usd is None else "usd"
        limit = each.tokens or nano(each.usd or 0.0)
        soft = None if each.soft is None else math.ceil(round(each.soft * limit, 3))
        whose = (name, each.scope, names[each.scope], each.per)
        made.append(Budget(*whose, unit, limit, soft, window, resets_at))
    return tuple(made)


def refusal(budget: Budget, spent: int, held: int, asked: int, now: float) -> RefusedError:
    """429, with the time at which the budget starts anew; sooner if only holds are in the way."""
    whose = f"the budget of {budget.scope} {budget.name!r}"
    limit = f"{budget.shown(budget.limit)} a {budget.per}"
    wait = max(1, math.ceil(budget.resets_at - now))
    again = f"it starts anew at {iso(budget.resets_at)}"
    left = budget.shown(max(0, budget.limit - spent - held))
    if spent >= budget.limit:
        message = f"{whose} is spent ({limit}); {again}"
    else:
        message = f"{whose} ({limit}) has {left} left, less than the {budget.shown(asked)} that "
        message += f"this request may need; {again}"
        if spent + asked <= budget.limit:
            wait = min(wait, BUSY_S)
            message += f", and {budget.shown(held)} are only set aside for requests in work"
    headers = {"retry-after": str(wait)}
    if wait > 60:
        headers["x-should-retry"] = "false"  # OpenAI's clients would try twice more within seconds
    return RefusedError(429, "budget_exceeded", message, headers=headers)


def spent_before(stats: Stats, budget: Budget) -> int:
    """Spent in the budget's window so far, in its unit, by the decisions on record. Answers from
    the cache have tokens on record, but used up none."""
    filters = {"tier": budget.tier, budget.scope: budget.name}
    groups = stats(budget.since, "cache", filters=filters)["groups"]
    called = [group for group in groups if group["name"] not in {"hit", "semantic"}]
    if budget.unit == "usd":
        return nano(sum(float(group["cost"]) for group in called))
    return sum(int(group["prompt_tokens"]) + int(group["completion_tokens"]) for group in called)


def iso(seconds: float) -> str:
    """As "2026-12-01T00:00:00Z"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

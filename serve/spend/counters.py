"""Where budgets are counted: in this process, or in Redis for all workers.

Both keep two sums a budget and window: what is spent, and what is held for requests in work. A hold
lapses after `lease_s` (the process that took it may have died), which is why holds are summed in
buckets of one minute, by the minute in which they lapse. Taking and settling are atomic over all
budgets of a request. Redis remembers which holds were settled, so that a settlement that went
unanswered can be sent again; in memory none goes unanswered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from .budgets import Budget

BUCKET_S = 60

Level = Literal["open", "soft"]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one budget, in its unit."""

    spent: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """What one request may cost, an amount a budget: `full`, and `weak` on the weak model."""

    id: str
    budgets: tuple[Budget, ...]
    full: tuple[int, ...]
    weak: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """What was set aside, budget by budget, and in which bucket.

    `shared`: Redis has it, or may have it where it did not answer.
    """

    id: str
    budgets: tuple[Budget, ...]
    amounts: tuple[int, ...]
    bucket: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The budget that a request does not fit in, as it stands, and what was asked of it."""

    budget: Budget
    totals: Totals
    asked: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A hold, the level it was taken at, and the totals after it, one a budget."""

    hold: Hold
    level: Level
    totals: tuple[Totals, ...]


class Counters(Protocol):
    """The operations that `ledger.Ledger` needs."""

    async def take(self, need: Need, now: float, seen: Mapping[str, int]) -> Taken | Refused:
        """Hold `full` amounts; or `weak` ones where a soft share is reached or only they fit.

        `seen`: what counters (by `Budget.key`) are known to have reached; they are raised to it,
        because a Redis that was restarted may have forgotten.
        """

    async def settle(
        self, hold: Hold, spent: Sequence[int], now: float, seen: Mapping[str, int]
    ) -> tuple[Totals, ...]:
        """End a hold and count what was spent; `seen` as for `take`."""

    async def claim(self, budget: Budget, mark: str) -> bool:
        """True once a mark, budget and window: who gets it sends the alert."""

    async def state(self, now: float, limit: int) -> list[tuple[Budget, Totals]]:
        """The budgets of current windows that were used."""


def bucket_of(now: float, lease_s: float) -> int:
    """The minute in which a hold taken now lapses."""
    return math.floor((now + lease_s) / BUCKET_S) + 1


@dataclass(slots=True)
class _Count:
    budget: Budget
    spent: int = 0
    held: dict[int, int] = field(default_factory=dict)  # bucket -> sum
    marks: set[str] = field(default_factory=set)

    def totals(self, minute: int) -> Totals:
        for bucket in [bucket for bucket in self.held if bucket <= minute]:
            del self.held[bucket]
        return Totals(self.spent, sum(self.held.values()))


class MemoryCounters:
    """Counts of this process alone. No method awaits, so each is atomic on an event loop."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._counts: dict[str, _Count] = {}
        self._open: dict[str, float] = {}  # id of a hold -> when it lapses
        self._minute = 0

    async def take(self, need: Need, now: float, seen: Mapping[str, int]) -> Taken | Refused:
        """See `Counters`."""
        self._tidy(now)
        minute = math.floor(now / BUCKET_S)
        totals = [self._totals(budget, seen, minute) for budget in need.budgets]
        level: Level = "open"
        for budget, each, amount in zip(need.budgets, totals, need.full, strict=True):
            used = each.spent + each.held
            if budget.soft is not None and (used >= budget.soft or used + amount > budget.limit):
                level = "soft"
        amounts = need.full if level == "open" else need.weak
        for budget, each, amount in zip(need.budgets, totals, amounts, strict=True):
            # What costs nothing fits in any budget, also in one that is spent.
            if amount > 0 and each.spent + each.held + amount > budget.limit:
                # What was spent before a restart is to be seen, most of all where it refuses.
                for known, total in zip(need.budgets, totals, strict=True):
                    if total.spent:
                        self._count(known, seen)
                return Refused(budget, each, amount)
        bucket = bucket_of(now, self._lease_s)
        for budget, amount in zip(need.budgets, amounts, strict=True):
            count = self._count(budget, seen)
            count.held[bucket] = count.held.get(bucket, 0) + amount
        self._open[need.id] = now + self._lease_s
        after = tuple(
            Totals(each.spent, each.held + amount)
            for each, amount in zip(totals, amounts, strict=True)
        )
        return Taken(Hold(need.id, need.budgets, amounts, bucket), level, after)

    async def settle(
        self, hold: Hold, spent: Sequence[int], now: float, seen: Mapping[str, int]
    ) -> tuple[Totals, ...]:
        """See `Counters`. A hold that was taken in Redis ends here without having been held."""
        known = self._open.pop(hold.id, None) is not None
        minute = math.floor(now / BUCKET_S)
        result = []
        for budget, held, amount in zip(hold.budgets, hold.amounts, spent, strict=True):
            count = self._count(budget, seen)
            count.spent += amount
            if known and hold.bucket in count.held:
                count.held[hold.bucket] -= held
            result.append(count.totals(minute))
        return tuple(result)

    async def claim(self, budget: Budget, mark: str) -> bool:
        """See `Counters`."""
        marks = self._count(budget, {}).marks
        new = mark not in marks
        marks.add(mark)
        return new

    async def state(self, now: float, limit: int) -> list[tuple[Budget, Totals]]:
        """See `Counters`."""
        minute = math.floor(now / BUCKET_S)
        current = [each for each in self._counts.values() if each.budget.resets_at > now]
        return [(each.budget, each.totals(minute)) for each in current[:limit]]

    def _totals(self, budget: Budget, seen: Mapping[str, int], minute: int) -> Totals:
        count = self._counts.get(budget.key)
        found = Totals() if count is None else count.totals(minute)
        return replace(found, spent=max(found.spent, seen.get(budget.key, 0)))

    def _count(self, budget: Budget, seen: Mapping[str, int]) -> _Count:
        count = self._counts.get(budget.key)
        if count is None:
            count = self._counts[budget.key] = _Count(budget)
        count.budget = budget  # its limit may have been changed
        count.spent = max(count.spent, seen.get(budget.key, 0))
        return count

    def _tidy(self, now: float) -> None:
        """Once a minute: forget windows that are over and holds that lapsed."""
        minute = math.floor(now / BUCKET_S)
        if minute == self._minute:
            return
        self._minute = minute
        late = now - self._lease_s
        self._counts = {
            key: each for key, each in self._counts.items() if each.budget.resets_at > late
        }
        self._open = {id: end for id, end in self._open.items() if end > now}

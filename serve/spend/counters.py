"""Budgets counted in this process; `redis_counters` does the same for all workers.

Both keep two sums a budget and window: what is spent, and what is held for requests in work. What
is held lapses `lease_s` later, in whole minutes: the process that took it may have died. Taking and
settling are atomic over all budgets of a request.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .budgets import Budget, refusal

BUCKET_S = 60
MOST_SHOWN = 1000  # budgets

Level = Literal["open", "soft"]


@dataclass(frozen=True, slots=True)
class Need:
    """What one request may cost, an amount a budget: `full`, and `weak` on the weak model."""

    id: str
    budgets: tuple[Budget, ...]
    full: tuple[int, ...]
    weak: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Reservation:
    """What was set aside for one request, an amount a budget.

    level "soft": only weak models may answer. shared: Redis has it, or may have it where it did not
    answer. It ends once, by `BudgetLedger.settle` or `release`; what comes after does nothing.
    """

    id: str
    budgets: tuple[Budget, ...] = field(default=(), repr=False)
    amounts: tuple[int, ...] = ()
    level: Level = "open"
    shared: bool = False
    ended: bool = False


def lapse_minute(now: float, lease_s: float) -> int:
    """The minute in which a reservation made now lapses."""
    return math.floor((now + lease_s) / BUCKET_S) + 1


@dataclass(slots=True)
class _Count:
    budget: Budget
    spent: int = 0
    used: bool = False  # a request that was refused is not enough
    held: dict[str, tuple[int, int]] = field(default_factory=dict)  # id -> (minute it lapses, ..)

    def held_at(self, now: float) -> int:
        minute = math.floor(now / BUCKET_S)
        self.held = {id: each for id, each in self.held.items() if each[0] > minute}
        return sum(amount for _, amount in self.held.values())


class MemoryCounters:
    """Counts of this process alone. No method awaits, so each is atomic on an event loop."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._counts: dict[str, _Count] = {}

    def take(
        self, need: Need, now: float, seen: Mapping[str, int]
    ) -> tuple[Reservation, list[int]]:
        """Reserve `full` amounts; or `weak` ones where a soft share is reached or only they fit.

        Gives the reservation and what is spent, a budget each. `seen`: what counters (by
        `Budget.key`) are known to have reached; they are raised to it, because a Redis that was
        restarted, or this process, may have forgotten. Raises RefusedError.
        """
        counts = [self._count(budget, seen) for budget in need.budgets]
        used = [count.spent + count.held_at(now) for count in counts]
        soft = any(
            budget.soft is not None and (total >= budget.soft or total + amount > budget.limit)
            for budget, total, amount in zip(need.budgets, used, need.full, strict=True)
        )
        amounts = need.weak if soft else need.full
        for count, total, amount in zip(counts, used, amounts, strict=True):
            # What costs nothing fits in any budget, also in one that is spent.
            if amount > 0 and total + amount > count.budget.limit:
                raise refusal(count.budget, count.spent, total - count.spent, amount, now)
        minute = lapse_minute(now, self._lease_s)
        for count, amount in zip(counts, amounts, strict=True):
            count.held[need.id] = (minute, amount)
            count.used = True
        level: Level = "soft" if soft else "open"
        return Reservation(need.id, need.budgets, amounts, level), [c.spent for c in counts]

    def settle(self, held: Reservation, spent: Sequence[int], seen: Mapping[str, int]) -> list[int]:
        """End a reservation and count what was spent; gives the sums. One that was made in Redis
        ends here without having been held."""
        counts = [self._count(budget, seen) for budget in held.budgets]
        for count, amount in zip(counts, spent, strict=True):
            count.spent += amount
            count.used = True
            count.held.pop(held.id, None)
        return [count.spent for count in counts]

    def state(self, now: float) -> list[tuple[Budget, int, int]]:
        """(budget, spent, held) of the budgets of current windows that were used."""
        used = (each for each in self._counts.values() if each.used or each.spent)
        current = [each for each in used if each.budget.resets_at > now]
        return [(each.budget, each.spent, each.held_at(now)) for each in current[:MOST_SHOWN]]

    def forget(self, now: float) -> None:
        """Forget windows that were over one lease ago."""
        late, counts = now - self._lease_s, self._counts.items()
        self._counts = {key: each for key, each in counts if each.budget.resets_at > late}

    def _count(self, budget: Budget, seen: Mapping[str, int]) -> _Count:
        count = self._counts.setdefault(budget.key, _Count(budget))
        count.budget = budget  # its limit may have been changed
        count.spent = max(count.spent, seen.get(budget.key, 0))
        return count

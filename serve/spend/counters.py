"""Budgets counted in this process, or in Redis for all workers; a test holds both together.

Both keep two sums a budget and window: what is spent, and what is held for requests in work, which
lapses `lease_s` later: the process that took it may have died. Taking and settling are atomic over
all budgets of a request.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import RedisError

from .budgets import Budget, refusal

BUCKET_S = 60
MOST_SHOWN = 1000  # budgets
CONNECTIONS = 8  # a worker; a command takes well below a millisecond
DONE_S = 3600  # how long Redis remembers that one was settled: longer than anybody tries again
# What a Redis that is away, hung, full or being started raises.
FAILURES = (RedisError, OSError, TimeoutError)

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
    """What was set aside for one request, an amount a budget. level "soft": only weak models may
    answer. shared: Redis has it, or may have it where it did not answer."""

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
        `Budget.key`) are known to have reached, though Redis or this process, restarted, may have
        forgotten. Raises RefusedError.
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
        """End a reservation, held here or not, and count what was spent; gives the sums."""
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


class RedisCounters:
    """Counts that all workers share. Methods raise FAILURES where Redis does not answer.

    Redis remembers which reservations were settled, so that a settlement that went unanswered can
    be sent again. All keys carry one hash tag, so that they lie together on a Redis Cluster too.
    """

    def __init__(self, client: Any, lease_s: float, prefix: str = "{thriftroute}") -> None:
        self._client = client
        self._lease_s = lease_s
        self._prefix = prefix
        keep, *scripts = (
            Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8")
            for name in ("keep", "take", "settle")
        )
        self._take, self._settle = (client.register_script(keep + script) for script in scripts)

    async def take(
        self, need: Need, now: float, seen: Mapping[str, int]
    ) -> tuple[Reservation, list[int]]:
        """See `MemoryCounters.take`."""
        minute, lapses = math.floor(now / BUCKET_S), lapse_minute(now, self._lease_s)
        args: list[int | str] = [minute, lapses, math.ceil(self._lease_s * 1000)]
        for budget, full, weak in zip(need.budgets, need.full, need.weak, strict=True):
            soft = -1 if budget.soft is None else budget.soft
            args += [budget.limit, soft, full, weak, seen.get(budget.key, 0)]
            args += self._about(budget, now)
        found, *rest = await self._take(self._keys(need.id, need.budgets), args)
        if found == 2:
            index, low, spent, held = rest
            asked = (need.weak if low else need.full)[index]
            raise refusal(need.budgets[index], spent, held, asked, now)
        level: Level = "soft" if found else "open"
        amounts = need.weak if found else need.full
        return Reservation(need.id, need.budgets, amounts, level, shared=True), rest

    async def settle(
        self, held: Reservation, spent: Sequence[int], now: float, seen: Mapping[str, int]
    ) -> list[int]:
        """See `MemoryCounters.settle`; sent again it changes nothing."""
        args: list[int | str] = [DONE_S * 1000]
        for budget, amount in zip(held.budgets, spent, strict=True):
            args += [amount, seen.get(budget.key, 0), *self._about(budget, now)]
        sums: list[int] = await self._settle(self._keys(held.id, held.budgets), args)
        return sums

    async def claim(self, budget: Budget, mark: str, now: float) -> bool:
        """True once a mark, budget and window: who gets it sends the alert."""
        ms, name, _ = self._about(budget, now)
        return bool(await self._client.set(f"{self._prefix}:a:{mark}:{name}", 1, px=ms, nx=True))

    async def state(self, now: float) -> list[tuple[Budget, int, int]]:
        """See `MemoryCounters.state`."""
        index = f"{self._prefix}:budgets"
        seconds, _ = await self._client.time()
        await self._client.zremrangebyscore(index, "-inf", seconds * 1000)
        pipe = self._client.pipeline(transaction=False)
        for name in await self._client.zrange(index, 0, MOST_SHOWN - 1):
            pipe.hgetall(self._key(name.decode()))
        minute = math.floor(now / BUCKET_S)
        found = []
        for row in await pipe.execute():
            budget = Budget(**json.loads(row[b"b"])) if b"b" in row else None
            if budget is not None and budget.resets_at > now:
                buckets = ((k, v) for k, v in row.items() if k[:1] == b"h")
                held = sum(int(value) for name, value in buckets if int(name[1:]) > minute)
                found.append((budget, int(row.get(b"s", 0)), held))
        return found

    async def probe(self) -> None:
        """Raises where Redis does not answer, or does not take a write."""
        await self.settle(Reservation("probe"), (), 0.0, {})

    def _key(self, name: str) -> str:
        return f"{self._prefix}:b:{name}"

    def _keys(self, id: str, budgets: Sequence[Budget]) -> list[str]:
        counters = [self._key(budget.key) for budget in budgets]
        return [f"{self._prefix}:r:{id}", f"{self._prefix}:budgets", *counters]

    def _about(self, budget: Budget, now: float) -> tuple[int, str, str]:
        """The last three arguments of a budget: how many ms to keep it, its name, all of it."""
        ms = math.ceil((max(0.0, budget.resets_at - now) + self._lease_s) * 1000)
        return ms, budget.key, json.dumps(asdict(budget), separators=(",", ":"))

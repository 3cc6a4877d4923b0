"""Budgets counted in Redis, for all workers: what `counters.MemoryCounters` does, as scripts.

Redis runs a script as one step, so that a look and an addition over all budgets of a request cannot
be torn apart. It remembers which reservations were settled, so that a settlement that went
unanswered can be sent again. A test holds the scripts and `counters.MemoryCounters` together.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from .budgets import Budget, refusal
from .counters import BUCKET_S, MOST_SHOWN, Level, Need, Reservation, lapse_minute

CONNECTIONS = 8  # a worker; a command takes well below a millisecond
DONE_S = 3600  # how long Redis remembers that one was settled: longer than anybody tries again
# What a Redis that is away, hung, full or being started raises.
FAILURES = (RedisError, OSError, TimeoutError)


class RedisCounters:
    """Counts that all workers share. Methods raise FAILURES where Redis does not answer.

    All keys carry one hash tag, so that they lie together on a Redis Cluster too. Counters expire
    one lease after their window's end, which is as far off as this process's clock says.
    """

    def __init__(self, client: Any, lease_s: float, prefix: str = "{thriftroute}") -> None:
        self._client = client
        self._lease_s = lease_s
        self._prefix = prefix
        self._take, self._settle = (
            client.register_script(_lua("keep") + _lua(name)) for name in ("take", "settle")
        )

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


def _lua(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8")

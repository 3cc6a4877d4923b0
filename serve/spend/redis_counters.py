"""Budgets counted in Redis, for all workers: the operations of `counters.Counters` as scripts.

Redis runs a script as one step, so that a look and an addition over all budgets of a request cannot
be torn apart. The scripts and `counters.MemoryCounters` do the same; a test holds them together.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import require_extra
from .budgets import Budget
from .counters import BUCKET_S, Hold, Need, Refused, Taken, Totals, bucket_of

# Both: a counter is kept for so long from now, by Redis's clock, and never for less than before: by
# the clock of a server that is days behind its window's end may be past. Index: by that clock too.
_KEEP = """
local function keep(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end
local function list(index, ms, name)
  redis.call('ZADD', index, redis.call('TIME')[1] * 1000 + ms, name)
end
"""
CONNECTIONS = 8  # a worker; a command takes well below a millisecond
DONE_S = 3600  # how long Redis remembers that a hold was settled: longer than anybody tries again

# KEYS: the hold (its bucket and amounts, or "done"), the index, then a hash a budget: "s" spent,
# "h<minute>" holds that lapse then, "b" the budget itself, "a<mark>" alerts sent. ARGV: minute now,
# bucket, lease in ms, then eight a budget: limit, soft or -1, full, weak, seen, how many ms to keep
# it, its name in the index, itself.
_TAKE = """
local n, minute = #KEYS - 2, tonumber(ARGV[1])
local spent, held, level = {}, {}, 0
for i = 1, n do
  local key, a = KEYS[i + 2], 3 + (i - 1) * 8
  local fields = redis.call('HGETALL', key)
  spent[i], held[i] = 0, 0
  for j = 1, #fields, 2 do
    local name = fields[j]
    if name == 's' then
      spent[i] = tonumber(fields[j + 1])
    elseif string.sub(name, 1, 1) == 'h' then
      if tonumber(string.sub(name, 2)) <= minute then
        redis.call('HDEL', key, name)
      else
        held[i] = held[i] + tonumber(fields[j + 1])
      end
    end
  end
  spent[i] = math.max(spent[i], tonumber(ARGV[a + 5]))
  local used, soft = spent[i] + held[i], tonumber(ARGV[a + 2])
  if soft >= 0 and (used >= soft or used + tonumber(ARGV[a + 3]) > tonumber(ARGV[a + 1])) then
    level = 1
  end
end
for i = 1, n do
  local a = 3 + (i - 1) * 8
  local amount = tonumber(ARGV[a + 3 + level])
  if amount > 0 and spent[i] + held[i] + amount > tonumber(ARGV[a + 1]) then
    return {2, i - 1, level, spent[i], held[i]}
  end
end
local result = {level}
local parts = {ARGV[2]}
for i = 1, n do parts[i + 1] = ARGV[3 + (i - 1) * 8 + 3 + level] end
if redis.call('SET', KEYS[1], table.concat(parts, ' '), 'NX', 'PX', ARGV[3]) then
  for i = 1, n do
    local key, a = KEYS[i + 2], 3 + (i - 1) * 8
    local amount = parts[i + 1]
    if redis.call('EXISTS', key) == 0 then
      list(KEYS[2], ARGV[a + 6], ARGV[a + 7])
    end
    redis.call('HSET', key, 's', string.format('%d', spent[i]), 'b', ARGV[a + 8])
    redis.call('HINCRBY', key, 'h' .. ARGV[2], amount)
    keep(key, ARGV[a + 6])
    held[i] = held[i] + tonumber(amount)
  end
end
for i = 1, n do
  result[#result + 1] = spent[i]
  result[#result + 1] = held[i]
end
return result
"""

# KEYS as above. ARGV: how long to remember in ms, then five a budget: spent, seen, how many ms to
# keep it, its name in the index, itself.
_SETTLE = """
local state, result, parts = redis.call('GET', KEYS[1]), {}, {}
for part in string.gmatch(state or '', '%S+') do parts[#parts + 1] = part end
for i = 1, #KEYS - 2 do
  local key, a = KEYS[i + 2], 1 + (i - 1) * 5
  if state ~= 'done' then
    if redis.call('EXISTS', key) == 0 then
      list(KEYS[2], ARGV[a + 3], ARGV[a + 4])
      redis.call('HSET', key, 'b', ARGV[a + 5])
    end
    local before = tonumber(redis.call('HGET', key, 's') or '0')
    if before < tonumber(ARGV[a + 2]) then redis.call('HSET', key, 's', ARGV[a + 2]) end
    redis.call('HINCRBY', key, 's', ARGV[a + 1])
    local bucket, amount = 'h' .. (parts[1] or ''), parts[i + 1] or '0'
    if amount ~= '0' and redis.call('HEXISTS', key, bucket) == 1 then
      if redis.call('HINCRBY', key, bucket, '-' .. amount) <= 0 then
        redis.call('HDEL', key, bucket)
      end
    end
    keep(key, ARGV[a + 3])
  end
  result[i] = tonumber(redis.call('HGET', key, 's') or '0')
end
redis.call('SET', KEYS[1], 'done', 'PX', ARGV[1])
return result
"""


class RedisCounters:
    """Counts that all workers share. Raises redis.RedisError where Redis does not answer.

    All keys carry one hash tag, so that they lie together on a Redis Cluster too. Counters expire
    one lease after their window's end, which is as far off as this process's clock says.
    """

    def __init__(self, client: Any, lease_s: float, prefix: str = "{thriftroute}") -> None:
        self._client = client
        self._lease_s = lease_s
        self._prefix = prefix
        self._take = client.register_script(_KEEP + _TAKE)
        self._settle = client.register_script(_KEEP + _SETTLE)

    async def take(self, need: Need, now: float, seen: Mapping[str, int]) -> Taken | Refused:
        """See `Counters`."""
        bucket = bucket_of(now, self._lease_s)
        args: list[int | str] = [
            math.floor(now / BUCKET_S),
            bucket,
            math.ceil(self._lease_s * 1000),
        ]
        for budget, most, least in zip(need.budgets, need.full, need.weak, strict=True):
            soft = -1 if budget.soft is None else budget.soft
            args += [budget.limit, soft, most, least, seen.get(budget.key, 0)]
            args += self._about(budget, now)
        level, *rest = await self._take(self._keys(need.id, need.budgets), args)
        if level == 2:
            index, low, spent, held = rest
            asked = (need.weak if low else need.full)[index]
            return Refused(need.budgets[index], Totals(spent, held), asked)
        totals = tuple(Totals(*rest[i : i + 2]) for i in range(0, len(rest), 2))
        amounts = need.weak if level else need.full
        hold = Hold(need.id, need.budgets, amounts, bucket, shared=True)
        return Taken(hold, "soft" if level else "open", totals)

    async def settle(
        self, hold: Hold, spent: Sequence[int], now: float, seen: Mapping[str, int]
    ) -> tuple[Totals, ...]:
        """See `Counters`. The totals' `held` is 0: it is not read."""
        args: list[int | str] = [DONE_S * 1000]
        for budget, amount in zip(hold.budgets, spent, strict=True):
            args += [amount, seen.get(budget.key, 0), *self._about(budget, now)]
        totals = await self._settle(self._keys(hold.id, hold.budgets), args)
        return tuple(Totals(each) for each in totals)

    async def claim(self, budget: Budget, mark: str) -> bool:
        """See `Counters`."""
        key = self._key(budget)
        pipe = self._client.pipeline()
        pipe.hsetnx(key, f"a{mark}", 1)
        pipe.pttl(key)
        new, left = await pipe.execute()
        if left < 0:  # it had expired
            await self._client.pexpire(key, math.ceil(self._lease_s * 1000))
        return bool(new)

    async def state(self, now: float, limit: int) -> list[tuple[Budget, Totals]]:
        """See `Counters`."""
        index = f"{self._prefix}:budgets"
        seconds, _ = await self._client.time()
        await self._client.zremrangebyscore(index, "-inf", seconds * 1000)
        names = await self._client.zrange(index, 0, limit - 1)
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(f"{self._prefix}:b:{name.decode()}")
        rows = await pipe.execute()
        minute = math.floor(now / BUCKET_S)
        found = [(Budget(**json.loads(row[b"b"])), row) for row in rows if b"b" in row]
        return [(budget, _totals(row, minute)) for budget, row in found if budget.resets_at > now]

    async def probe(self) -> None:
        """Raises where Redis does not answer, or does not take a write."""
        await self.settle(Hold("probe", (), (), 0), (), 0.0, {})

    def _key(self, budget: Budget) -> str:
        return f"{self._prefix}:b:{budget.key}"

    def _keys(self, id: str, budgets: Sequence[Budget]) -> list[str]:
        index = f"{self._prefix}:budgets"
        return [f"{self._prefix}:r:{id}", index, *(self._key(budget) for budget in budgets)]

    def _about(self, budget: Budget, now: float) -> tuple[int, str, str]:
        """The last three arguments of a budget: how many ms to keep it, its name, all of it."""
        ms = math.ceil((max(0.0, budget.resets_at - now) + self._lease_s) * 1000)
        whole = {name: getattr(budget, name) for name in Budget.__dataclass_fields__}
        return ms, budget.key, json.dumps(whole, separators=(",", ":"))


def _totals(row: Mapping[bytes, bytes], minute: int) -> Totals:
    held = sum(
        int(value) for name, value in row.items() if name[:1] == b"h" and int(name[1:]) > minute
    )
    return Totals(int(row.get(b"s", 0)), held)


def connect(url: str, patience_s: float) -> Any:
    """A client without retries of its own: a command that was perhaps executed is ours to judge.

    Connects at the first command. Raises MissingExtraError without redis, and ValueError for a URL
    that it does not understand.
    """
    require_extra("redis.asyncio", "serve")
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    # Few connections, that requests wait for in turn: a burst need not open one each.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=None,
        socket_timeout=patience_s,
        socket_connect_timeout=patience_s,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


def failures() -> tuple[type[BaseException], ...]:
    """What a Redis that is away, hung, full or being started raises."""
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError)

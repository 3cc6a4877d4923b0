"""The ledger of budgets: what a request may spend is set aside before it, and settled after it.

A reservation is atomic over all budgets of its request. Therefore N parallel requests spend more
than a limit only by what they cost more than was reserved for them.
"""

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ..config.settings import Config, TierSettings
from ..errors import RefusedError
from ..redis_pool import redis_client
from ..request import Principal
from .alerts import Alerts
from .budgets import Budget, Stats, budgets_of, spent_before
from .counters import CONNECTIONS, FAILURES, MemoryCounters, Need, RedisCounters, Reservation

PATIENCE_S = 0.2
STEPS = 10  # of the patience: a loop that stands still uses up one of them, however long it does
PROBE_S = 0.5  # between looks whether Redis is back
HISTORY_S = 2.0  # the first request of a budget waits no longer for what was spent before
LEASE_S = 3600.0  # of a reservation whose process died; longer than any request takes

T = TypeVar("T")

logger = logging.getLogger(__name__)


class BudgetLedger:
    """Budgets of this process, or with `redis_url` of all workers. One event loop a ledger.

    Where Redis does not answer, requests are counted here, on top of the last known totals, and
    merged back when it returns: a request neither fails nor waits longer than `patience_s` for it.
    `degraded` is True then; `outages` counts how often that began, `degraded_requests` the
    reservations made without Redis. `history` (Budget -> spent, in its unit; called in a thread,
    once a budget) is asked for windows that began before this process, unless Redis knows.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        alerts: Alerts | None = None,
        history: Callable[[Budget], int] | None = None,
        lease_s: float = LEASE_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.alerts = alerts
        self.degraded = False
        self.outages = 0
        self.degraded_requests = 0
        self.patience_s = patience_s
        self._lease_s = lease_s
        self._clock = clock
        self._local = MemoryCounters(lease_s)
        self._client = self._remote = None
        if redis_url is not None:
            self._client = redis_client(redis_url, STEPS * patience_s, CONNECTIONS, None)
            self._remote = RedisCounters(self._client, lease_s)
        self._seen: dict[str, tuple[int, int]] = {}  # counter -> (spent as Redis said, window end)
        # What Redis was not told yet, by id; or, for what it has never seen, by its budgets.
        self._waiting: dict[str | tuple[str, ...], tuple[Reservation, tuple[int, ...]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._history = history
        self._began = clock()
        self._recalled: dict[str, asyncio.Task[None]] = {}  # by counter
        self._day = 0

    @property
    def pending(self) -> int:
        """Settlements that Redis has not been told yet."""
        return len(self._waiting)

    async def reserve(
        self,
        principal: Principal,
        tier: TierSettings | None,
        *,
        usd: float,
        tokens: int,
        weak_usd: float | None = None,
    ) -> Reservation:
        """Set aside what a request may cost, in all budgets of its key, tenant and tier, or none.

        `weak_usd` is what it may cost on the weak model (None: `usd`): that much is set aside where
        a budget's soft share is reached, or only that still fits; the level is "soft" then. Raises
        RefusedError (429, "budget_exceeded").
        """
        now = self._clock()
        budgets = budgets_of(principal, tier, now)
        if not budgets:
            return Reservation("")
        id = uuid.uuid4().hex
        low = usd if weak_usd is None else min(usd, weak_usd)
        full, weak = (tuple(b.amount(cost, tokens) for b in budgets) for cost in (usd, low))
        self._tidy(now)
        if self._remote is None:
            await self._recall(budgets)
        return await self._take(Need(id, budgets, full, weak), now)

    async def settle(self, reservation: Reservation, usd: float, tokens: int) -> None:
        """Count what the request did cost, in the windows in which it began. Never raises, and
        charges nothing twice: the first call ends the reservation."""
        if reservation.ended:
            return
        reservation.ended = True
        if reservation.budgets:
            spent = tuple(budget.amount(usd, tokens) for budget in reservation.budgets)
            # Shielded: a client that leaves cancels its request, and must be charged all the same.
            await asyncio.shield(self._keep(self._settle(reservation, spent)))

    async def state(self) -> list[dict[str, Any]]:
        """Budgets of the current windows that are used, as `Budget.to_dict` shows them. Of all
        workers where Redis is shared and answers, else of this one."""
        now = self._clock()
        # Not on a request's path, and longer than one look at a counter.
        rows = await self._ask(lambda remote: remote.state(now), 10 * self.patience_s)
        rows = self._local.state(now) if rows is None else rows
        return [budget.to_dict(spent, held) for budget, spent, held in rows]

    async def close(self) -> None:
        """Send alerts and settlements that wait, a few seconds long, and let go of Redis."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(*FAILURES):
            await self._merge()
        if self.pending:
            logger.error("%d settlements never reached Redis", self.pending)
        if self.alerts is not None:
            await self.alerts.close()
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, ask: Callable[[RedisCounters], Awaitable[T]], within_s: float) -> T | None:
        """What Redis answers; None where there is none, it is away, or falls silent now."""
        if self._remote is None or self.degraded:
            return None
        try:
            async with patience(within_s):
                return await ask(self._remote)
        except FAILURES as error:
            self._lost(error)
            return None

    async def _take(self, need: Need, now: float) -> Reservation:
        seen = self._known(need.budgets)
        asked = self._remote is not None and not self.degraded
        try:
            found = await self._ask(lambda remote: remote.take(need, now, seen), self.patience_s)
        except asyncio.CancelledError:
            if asked:
                self._keep(self._end_unknown(need))
            raise
        if found is not None:
            self._saw(need.budgets, found[1])
            return found[0]
        self.degraded_requests += self._remote is not None
        try:
            made, _ = self._local.take(need, now, seen)
        except RefusedError:
            if asked:
                self._keep(self._end_unknown(need))
            raise
        # Redis may have taken it before it fell silent, and is told of its end like of any other.
        made.shared = asked
        return made

    async def _end_unknown(self, need: Need) -> None:
        """End what Redis may hold for a request that does not go on."""
        nothing = (0,) * len(need.budgets)
        await self._settle(Reservation(need.id, need.budgets, nothing, shared=True), nothing)

    async def _recall(self, budgets: Sequence[Budget]) -> None:
        """Before a budget is first counted against: what the records say of its window."""
        for budget in () if self._history is None else budgets:
            if budget.since < self._began and budget.key not in self._recalled:
                self._recalled[budget.key] = self._keep(self._look_up(budget))
        tasks = [self._recalled[each.key] for each in budgets if each.key in self._recalled]
        if tasks:
            await asyncio.wait(tasks)

    async def _look_up(self, budget: Budget) -> None:
        assert self._history is not None
        try:
            async with asyncio.timeout(HISTORY_S):
                spent = await asyncio.to_thread(self._history, budget)
            self._seen[budget.key] = (spent, budget.resets_at)
        except Exception as error:  # noqa: BLE001 - a database that is away must not stop requests
            text, why = "the budget of %s %r counts from 0: no records (%s)", type(error).__name__
            logger.warning(text, budget.scope, budget.name, why)

    async def _settle(self, made: Reservation, spent: tuple[int, ...]) -> None:
        totals: list[int] | None = None
        if self._remote is not None:
            if made.shared or not self.degraded:
                # Kept until Redis confirms it; it counts one once, however often it is sent.
                self._waiting[made.id] = (made, spent)
            else:
                # One settlement for these budgets: an outage costs no memory a request.
                key = tuple(budget.key for budget in made.budgets)
                first, sums = self._waiting.get(key, (made, (0,) * len(spent)))
                self._waiting[key] = (first, tuple(map(sum, zip(sums, spent, strict=True))))
            totals = await self._ask(lambda _: self._deliver(made, spent), self.patience_s)
        if totals is None:
            totals = self._local.settle(made, spent, self._known(made.budgets))
        self._tell(made, totals)

    async def _deliver(self, made: Reservation, spent: Sequence[int]) -> list[int]:
        assert self._remote is not None
        seen = self._known(made.budgets)
        totals = await self._remote.settle(made, spent, self._clock(), seen)
        self._waiting.pop(made.id, None)
        self._saw(made.budgets, totals)
        return totals

    async def _merge(self) -> None:
        """Tell Redis what it missed. Raises where it goes away again; what is told is told."""
        # From here on a sum is one settlement, with the id of its first, and grows no more.
        self._waiting = {made.id: (made, spent) for made, spent in self._waiting.values()}
        for made, spent in list(self._waiting.values()):
            if made.id in self._waiting:
                async with asyncio.timeout(10 * self.patience_s):
                    totals = await self._deliver(made, spent)
                self._tell(made, totals)

    def _tell(self, made: Reservation, totals: Sequence[int]) -> None:
        if self.alerts is not None:
            for budget, spent in zip(made.budgets, totals, strict=True):
                self.alerts.passed(budget, spent, self._claim)

    async def _claim(self, budget: Budget, mark: str) -> bool:
        now, within_s = self._clock(), 10 * self.patience_s
        claimed = await self._ask(lambda remote: remote.claim(budget, mark, now), within_s)
        return claimed is None or claimed

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run on, whoever waits for it; `close` does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _known(self, budgets: Sequence[Budget]) -> dict[str, int]:
        """What Redis last said was spent, by counter."""
        return {b.key: self._seen[b.key][0] for b in budgets if b.key in self._seen}

    def _saw(self, budgets: Sequence[Budget], totals: Sequence[int]) -> None:
        for budget, spent in zip(budgets, totals, strict=True):
            # Answers may overtake each other; what is spent only grows.
            before = self._seen.get(budget.key, (0, 0))[0]
            self._seen[budget.key] = (max(before, spent), budget.resets_at)

    def _lost(self, error: BaseException) -> None:
        if self.degraded:
            return
        self.degraded = True
        self.outages += 1
        self._local = MemoryCounters(self._lease_s)
        self._recovery = asyncio.get_running_loop().create_task(self._recover(error))

    async def _recover(self, cause: BaseException) -> None:
        """Merge as soon as Redis answers. The first look is at once: a blink is not logged."""
        assert self._remote is not None
        said = False
        while True:
            try:
                async with patience(self.patience_s):
                    await self._remote.probe()
                while self.pending:
                    await self._merge()
                break
            except Exception:  # noqa: BLE001 - whatever it is, the next look may find it gone
                if not said:
                    said = True
                    why = f"{type(cause).__name__}: {str(cause)[:200]}"
                    text = "Redis does not answer (%s): budgets are counted in this process"
                    logger.warning(text, why)
            await asyncio.sleep(PROBE_S)
        self.degraded = False
        if said:
            logger.warning("Redis answers again: what was spent meanwhile is merged")

    def _tidy(self, now: float) -> None:
        """Once a day: forget what is known of windows that are over."""
        day = int(now // 86400)
        if day == self._day:
            return
        self._day = day
        self._seen = {key: each for key, each in self._seen.items() if each[1] > now}
        self._recalled = {key: each for key, each in self._recalled.items() if not each.done()}
        self._local.forget(now)
        if self.alerts is not None:
            self.alerts.forget(now)


@contextlib.asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """TimeoutError after so many seconds in which this loop turns: a process held up by a burst
    must not take a healthy Redis for away."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def step(left: int) -> None:
        nonlocal timer
        if left > 0:
            timer = loop.call_later(seconds / STEPS, step, left - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        step(STEPS)
        try:
            yield
        finally:
            assert timer is not None
            timer.cancel()


def make_ledger(config: Config, stats: Stats | None = None) -> BudgetLedger:
    """The ledger of a configuration; stats: `Recorder.stats`. Connects to nothing yet."""
    alerts = Alerts(config.alerts.webhook, config.alerts.at)
    history = None if stats is None else functools.partial(spent_before, stats)
    return BudgetLedger(config.redis_url, alerts=alerts, history=history)

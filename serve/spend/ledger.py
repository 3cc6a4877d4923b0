"""The ledger: what a request may spend is set aside before it, and settled after it.

A reservation is atomic over all budgets of its request. Therefore N parallel requests spend more
than a limit only by what they cost more than was reserved for them.
"""

import asyncio
import contextlib
import functools
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.settings import Config, TierSettings
from ..request import Principal
from .alerts import Alerts
from .budgets import Budget, budgets_of, refusal
from .counters import Hold, Level, MemoryCounters, Need, Refused, Taken, Totals
from .history import Stats, spent_before
from .redis_counters import RedisCounters, connect, failures

PATIENCE_S = 0.2  # a request waits no longer than this for Redis, and only until it is known away
STEPS = 10  # of the patience: a loop that stands still uses up one of them, however long it does
PROBE_S = 0.5  # between looks whether Redis is back
HISTORY_S = 2.0  # the first request of a budget waits no longer for what was spent before
LEASE_S = 3600.0  # of a reservation whose process died; longer than any request takes

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Reservation:
    """What was set aside for one request. `level` "soft": only weak models may answer.

    It ends once, by `Ledger.settle` or `Ledger.release`; what comes after that does nothing.
    """

    level: Level
    hold: Hold = field(repr=False)
    ended: bool = False


class Ledger:
    """Budgets of this process, or with `redis_url` of all workers. One event loop a ledger.

    Where Redis does not answer, requests are counted here, on top of the last known totals, and
    merged back when it returns: a request neither fails nor waits longer than PATIENCE_S for it.
    Meanwhile each worker holds the limits alone. `degraded` is True then; `outages` counts how
    often that began, `degraded_requests` the reservations made without Redis, `pending` the
    settlements that wait for it.

    Without Redis a restart would forget what was spent. `history` (Budget -> spent, in its unit;
    called in a thread, once a budget) is asked for windows that began before this process.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        alerts: Alerts | None = None,
        history: Callable[[Budget], int] | None = None,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.alerts = alerts
        self.degraded = False
        self.outages = 0
        self.degraded_requests = 0
        self._lease_s = lease_s
        self._clock = clock
        self._local = MemoryCounters(lease_s)
        self._client = None if redis_url is None else connect(redis_url, STEPS * PATIENCE_S)
        self._remote = None if self._client is None else RedisCounters(self._client, lease_s)
        self._seen: dict[str, tuple[int, int]] = {}  # counter -> (spent as Redis said, window end)
        self._pending: dict[str, tuple[Hold, tuple[int, ...]]] = {}  # id of a hold -> its end
        self._batches: dict[tuple[str, ...], tuple[Hold, tuple[int, ...]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._history = history
        self._began = clock()
        self._recalled: dict[
            str, tuple[asyncio.Task[None], int]
        ] = {}  # counter -> (.., window end)
        self._day = ""

    @property
    def pending(self) -> int:
        """Settlements that Redis has not been told yet."""
        return len(self._pending) + len(self._batches)

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

        `weak_usd` is what it may cost on the weak model (`usd` where it is None): that much is set
        aside where a budget's soft share is reached, or where only that still fits in a budget that
        has one; the reservation's level is "soft" then.

        Raises RefusedError (429, "budget_exceeded", with the time of reset) where it does not fit.
        """
        now = self._clock()
        budgets = budgets_of(principal, tier, now)
        id = uuid.uuid4().hex
        if not budgets:
            return Reservation("open", Hold(id, (), (), 0))
        low = usd if weak_usd is None else min(usd, weak_usd)
        need = Need(
            id,
            budgets,
            full=tuple(budget.amount(usd, tokens) for budget in budgets),
            weak=tuple(budget.amount(low, tokens) for budget in budgets),
        )
        result = await self._take(need, now)
        if isinstance(result, Refused):
            totals = result.totals
            raise refusal(result.budget, totals.spent, totals.held, result.asked, now)
        return Reservation(result.level, result.hold)

    async def settle(self, reservation: Reservation, usd: float, tokens: int) -> None:
        """Count what the request did cost, in the windows in which it began. Never raises.

        The first call ends the reservation, whatever becomes of it: nothing is charged twice.
        """
        if reservation.ended:
            return
        reservation.ended = True
        hold = reservation.hold
        if hold.budgets:
            spent = tuple(budget.amount(usd, tokens) for budget in hold.budgets)
            # Shielded: a client that leaves cancels its request, and must be charged all the same.
            await asyncio.shield(self._keep(self._settle(hold, spent)))

    async def release(self, reservation: Reservation) -> None:
        """End a reservation that cost nothing: an answer from the cache, a failed request."""
        await self.settle(reservation, 0.0, 0)

    async def state(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Budgets of the current windows, as `Budget.to_dict` shows them; at most `limit`.

        Of all workers where Redis is shared and answers, else of this one. A budget appears with
        its first request in a window.
        """
        now = self._clock()
        rows = None
        if self._remote is not None and not self.degraded:
            try:
                # Not on a request's path, and longer than one look at a counter.
                async with asyncio.timeout(10 * PATIENCE_S):
                    rows = await self._remote.state(now, limit)
            except failures() as error:
                self._lost(error)
        if rows is None:
            rows = await self._local.state(now, limit)
        return [budget.to_dict(totals.spent, totals.held) for budget, totals in rows]

    async def close(self) -> None:
        """Send alerts and settlements that wait, a few seconds long, and let go of Redis."""
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.pending:
            with contextlib.suppress(*failures()):
                await self._merge()
        if self.pending:
            logger.error("%d settlements never reached Redis", self.pending)
        if self.alerts is not None:
            await self.alerts.close()
        if self._client is not None:
            await self._client.aclose()

    async def _take(self, need: Need, now: float) -> Taken | Refused:
        self._tidy(now)
        if self._remote is None:
            await self._recall(need.budgets)
            return await self._local.take(need, now, self._known(need.budgets))
        seen = self._known(need.budgets)
        asked = not self.degraded
        if asked:
            try:
                async with _patience():
                    result = await self._remote.take(need, now, seen)
            except failures() as error:
                self._lost(error)
            except asyncio.CancelledError:
                self._keep(self._end_unknown(need.id, need.budgets))
                raise
            else:
                if isinstance(result, Taken):
                    self._saw(result.hold.budgets, result.totals)
                return result
        self.degraded_requests += 1
        result = await self._local.take(need, now, seen)
        if not asked:
            return result
        # Redis may have taken it before it fell silent, and is told of its end like of any other.
        if isinstance(result, Refused):
            self._keep(self._end_unknown(need.id, need.budgets))
            return result
        return replace(result, hold=replace(result.hold, shared=True))

    async def _recall(self, budgets: Sequence[Budget]) -> None:
        """Before a budget is first counted against: what the records say of its window."""
        if self._history is None:
            return
        waiting = []
        for budget in budgets:
            if budget.since < self._began and budget.key not in self._recalled:
                self._recalled[budget.key] = (self._keep(self._look_up(budget)), budget.resets_at)
            task, _ = self._recalled.get(budget.key, (None, 0))
            if task is not None and not task.done():
                waiting.append(task)
        if waiting:
            await asyncio.wait(waiting)

    async def _look_up(self, budget: Budget) -> None:
        assert self._history is not None
        try:
            async with asyncio.timeout(HISTORY_S):
                spent = await asyncio.to_thread(self._history, budget)
        except Exception as error:  # noqa: BLE001 - a database that is away must not stop requests
            logger.warning(
                "the budget of %s %r counts from 0, because the records cannot be read: %s",
                budget.scope,
                budget.name,
                type(error).__name__,
            )
        else:
            self._seen[budget.key] = (spent, budget.resets_at)

    async def _end_unknown(self, id: str, budgets: Sequence[Budget]) -> None:
        """End what Redis may hold for a request that does not go on."""
        nothing = (0,) * len(budgets)
        await self._settle(Hold(id, tuple(budgets), nothing, 0, shared=True), nothing)

    async def _settle(self, hold: Hold, spent: tuple[int, ...]) -> None:
        now = self._clock()
        totals: tuple[Totals, ...] | None = None
        if self._remote is not None:
            if hold.shared or not self.degraded:
                # Kept until Redis confirms it; it counts a hold once, however often it is sent.
                self._pending[hold.id] = (hold, spent)
            else:
                self._batch(hold, spent)
            if not self.degraded:
                try:
                    async with _patience():
                        totals = await self._deliver(hold, spent, now)
                except failures() as error:
                    self._lost(error)
        if totals is None:
            totals = await self._local.settle(hold, spent, now, self._known(hold.budgets))
        self._tell(hold, totals)

    def _batch(self, hold: Hold, spent: Sequence[int]) -> None:
        """Add to the one settlement for these budgets: an outage costs no memory a request."""
        key = tuple(budget.key for budget in hold.budgets)
        whole, sums = self._batches.get(key, (hold, (0,) * len(spent)))
        self._batches[key] = (whole, tuple(a + b for a, b in zip(sums, spent, strict=True)))

    async def _deliver(self, hold: Hold, spent: Sequence[int], now: float) -> tuple[Totals, ...]:
        assert self._remote is not None
        totals = await self._remote.settle(hold, spent, now, self._known(hold.budgets))
        self._pending.pop(hold.id, None)
        self._saw(hold.budgets, totals)
        return totals

    async def _merge(self) -> None:
        """Tell Redis what it missed. Raises where it goes away again; what is told is told."""
        # From here on a batch is one settlement, with the id of its first hold, and grows no more.
        for hold, spent in self._batches.values():
            self._pending[hold.id] = (hold, spent)
        self._batches.clear()
        for id in list(self._pending):
            waiting = self._pending.get(id)
            if waiting is not None:
                async with asyncio.timeout(10 * PATIENCE_S):
                    totals = await self._deliver(*waiting, self._clock())
                self._tell(waiting[0], totals)

    def _tell(self, hold: Hold, totals: Sequence[Totals]) -> None:
        if self.alerts is not None:
            for budget, each in zip(hold.budgets, totals, strict=True):
                self.alerts.passed(budget, each.spent, self._claim)

    async def _claim(self, budget: Budget, mark: str) -> bool:
        if self._remote is not None and not self.degraded:
            with contextlib.suppress(*failures()):
                async with asyncio.timeout(10 * PATIENCE_S):
                    return await self._remote.claim(budget, mark)
        return await self._local.claim(budget, mark)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run on, whoever waits for it; `close` does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _known(self, budgets: Sequence[Budget]) -> dict[str, int]:
        """What Redis last said was spent, by counter."""
        return {
            budget.key: self._seen[budget.key][0] for budget in budgets if budget.key in self._seen
        }

    def _saw(self, budgets: Sequence[Budget], totals: Sequence[Totals]) -> None:
        for budget, each in zip(budgets, totals, strict=True):
            # Answers may overtake each other; what is spent only grows.
            before = self._seen.get(budget.key, (0, 0))[0]
            self._seen[budget.key] = (max(before, each.spent), budget.resets_at)

    def _lost(self, error: BaseException) -> None:
        if self.degraded:
            return
        self.degraded = True
        self.outages += 1
        self._local = MemoryCounters(self._lease_s)
        self._recovery = asyncio.get_running_loop().create_task(self._recover(error))

    async def _recover(self, cause: BaseException) -> None:
        """Merge as soon as Redis answers. The first look is at once: a blink is not worth a line
        in the log."""
        assert self._remote is not None
        said = False
        while True:
            try:
                async with _patience():
                    await self._remote.probe()
                while self.pending:
                    await self._merge()
                break
            except Exception:  # noqa: BLE001 - whatever it is, the next look may find it gone
                if not said:
                    said = True
                    logger.warning(
                        "Redis does not answer (%s: %s): budgets are counted in this process "
                        "until it does",
                        type(cause).__name__,
                        str(cause)[:200],
                    )
            await asyncio.sleep(PROBE_S)
        self.degraded = False
        if said:
            logger.warning("Redis answers again: what was spent meanwhile is merged")

    def _tidy(self, now: float) -> None:
        """Once a day: forget what is known of windows that are over."""
        day = str(math.floor(now / 86400))
        if day != self._day:
            self._day = day
            self._seen = {key: each for key, each in self._seen.items() if each[1] > now}
            self._recalled = {key: each for key, each in self._recalled.items() if each[1] > now}
            if self.alerts is not None:
                self.alerts.forget(now)


@contextlib.asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """TimeoutError after PATIENCE_S of the time in which this loop turns. A process held up by a
    burst would else take a healthy Redis for away, count alone and spend past a shared budget."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def step(left: int) -> None:
        nonlocal timer
        if left > 0:
            timer = loop.call_later(PATIENCE_S / STEPS, step, left - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        step(STEPS)
        try:
            yield
        finally:
            assert timer is not None
            timer.cancel()


def make_ledger(config: Config, stats: Stats | None = None) -> Ledger:
    """The ledger that a configuration asks for. Connects to nothing yet.

    stats: `Recorder.stats`, from which a ledger without Redis learns what was spent before.
    """
    alerts = Alerts(config.alerts.webhook, config.alerts.at)
    history = None if stats is None else functools.partial(spent_before, stats)
    return Ledger(config.redis_url, alerts=alerts, history=history)

"""Budget alerts: one POST to a webhook when spending passes a share of a budget.

Off the hot path: events wait in a bounded queue for one task, which tries each a few times and logs
what it cannot deliver. Neither a slow webhook nor a dead one holds up a request.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from .budgets import Budget

QUEUE = 1000
TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)

Claim = Callable[[Budget, str], Awaitable[bool]]


class Alerts:
    """Sends what `passed` finds. Belongs to the event loop that calls it first.

    webhook: an http(s) URL; None: only the log says it. at: shares of the limit. tries: of each
    POST, `backoff_s`, twice that, ... apart. `sent` and `failed` count webhooks.
    """

    def __init__(
        self,
        webhook: str | None,
        at: Sequence[float],
        *,
        tries: int = 4,
        backoff_s: float = 1.0,
    ) -> None:
        self.sent = 0
        self.failed = 0
        self._webhook = webhook
        self._host = _host(webhook)
        self._at = tuple(sorted(at))
        self._tries = tries
        self._backoff_s = backoff_s
        self._known: dict[tuple[str, float], int] = {}  # (counter, share) -> its window's end
        self._queue: asyncio.Queue[tuple[Budget, float, int, Claim]] = asyncio.Queue(QUEUE)
        self._task: asyncio.Task[None] | None = None

    def passed(self, budget: Budget, spent: int, claim: Claim) -> None:
        """Note what is spent; an alert goes out for each share that is passed for the first time.

        `claim` is asked once a share, in the background: True where no other worker was first.
        """
        for share in self._at:
            if spent < share * budget.limit or (budget.key, share) in self._known:
                continue
            self._known[budget.key, share] = budget.resets_at
            try:
                self._queue.put_nowait((budget, share, spent, claim))
            except asyncio.QueueFull:
                self.failed += 1
                logger.error("budget alert dropped: %d others wait to be sent", QUEUE)
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._work())

    def forget(self, now: float) -> None:
        """Drop what is known of windows that are over."""
        self._known = {key: end for key, end in self._known.items() if end > now}

    async def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, within `timeout_s`; what is left is logged and dropped."""
        task, self._task = self._task, None
        if task is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), timeout_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if not self._queue.empty():
            logger.error("%d budget alerts were not sent before the end", self._queue.qsize())

    async def _work(self) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            while True:
                budget, share, spent, claim = await self._queue.get()
                try:
                    if await claim(budget, f"{share:g}"):
                        await self._send(client, budget, share, spent)
                except Exception:
                    self.failed += 1
                    logger.exception("a budget alert failed")
                finally:
                    self._queue.task_done()

    async def _send(
        self, client: httpx.AsyncClient, budget: Budget, share: float, spent: int
    ) -> None:
        event = alert(budget, share, spent)
        logger.warning("%s", event["text"])
        if self._webhook is None:
            return
        problem = ""
        for attempt in range(self._tries):
            if attempt:
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
            try:
                answer = await client.post(self._webhook, json=event)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = type(error).__name__
                continue
            if answer.is_success:
                self.sent += 1
                return
            problem = f"status {answer.status_code}"
            if answer.status_code not in (408, 429) and answer.status_code < 500:
                break  # the same POST would be refused again
        self.failed += 1
        logger.error("budget alert not delivered to %s: %s", self._host, problem)


def _host(webhook: str | None) -> str:
    """What logs may show: paths of webhooks are often secret."""
    try:
        return urlsplit(webhook or "").hostname or "the webhook"
    except ValueError:
        return "the webhook"


def alert(budget: Budget, share: float, spent: int) -> dict[str, Any]:
    """The body of the POST. `text` is what chat services show."""
    text = (
        f"thriftroute: {budget.scope} {budget.name!r} has spent {budget.shown(spent)} of "
        f"{budget.shown(budget.limit)} a {budget.per} ({share:.0%} passed)"
    )
    return {"event": "budget", "text": text, "share": share, **budget.to_dict(spent)}

"""Budget alerts: one POST to a webhook when spending passes a share of a budget.

They are sent in the background, one after another: no webhook holds up a request.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from .budgets import Budget

MOST_WAITING = 1000
TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)

Claim = Callable[[Budget, str], Awaitable[bool]]


class Alerts:
    """Sends what `passed` finds. Belongs to the event loop that calls it first.

    webhook: an http(s) URL; None: only the log says it. at: shares of the limit. tries: of each
    POST, `backoff_s`, twice that, ... apart. `sent` and `failed` count webhooks.
    """

    def __init__(
        self, webhook: str | None, at: Sequence[float], *, tries: int = 4, backoff_s: float = 1.0
    ) -> None:
        self.sent = 0
        self.failed = 0
        self._webhook = webhook
        self._at = tuple(sorted(at))
        self._tries = tries
        self._backoff_s = backoff_s
        self._known: dict[tuple[str, float], int] = {}  # (counter, share) -> its window's end
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def passed(self, budget: Budget, spent: int, claim: Claim) -> None:
        """Note what is spent; an alert goes out for each share that is passed for the first time.
        `claim` is asked once a share, in the background: True where no other worker was first."""
        for share in self._at:
            if spent < share * budget.limit or (budget.key, share) in self._known:
                continue
            self._known[budget.key, share] = budget.resets_at
            if len(self._tasks) >= MOST_WAITING:
                self.failed += 1
                logger.error("budget alert dropped: %d others wait to be sent", MOST_WAITING)
                continue
            task = asyncio.get_running_loop().create_task(self._send(budget, share, spent, claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def forget(self, now: float) -> None:
        """Drop what is known of windows that are over."""
        self._known = {key: end for key, end in self._known.items() if end > now}

    async def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, within `timeout_s`; what is left is logged and dropped."""
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s) if self._tasks else ((), ())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late:
            logger.error("%d budget alerts were not sent before the end", len(late))

    async def _send(self, budget: Budget, share: float, spent: int, claim: Claim) -> None:
        async with self._turn:
            if not await claim(budget, f"{share:g}"):
                return
            text = (
                f"thriftroute: {budget.scope} {budget.name!r} has spent {budget.shown(spent)} of "
                f"{budget.shown(budget.limit)} a {budget.per} ({share:.0%} passed)"
            )
            logger.warning("%s", text)
            if self._webhook is None:
                return
            # `text` is what chat services show.
            event = {"event": "budget", "text": text, "share": share, **budget.to_dict(spent)}
            try:
                problem = await self._post(self._webhook, event)
            except Exception as error:  # noqa: BLE001 - whatever it is, others wait for their turn
                problem = type(error).__name__
        if problem:
            self.failed += 1
            # Paths of webhooks are often secret.
            host = urlsplit(self._webhook).hostname
            logger.error("budget alert not delivered to %s: %s", host, problem)

    async def _post(self, webhook: str, event: dict[str, Any]) -> str:
        """What stopped it; empty where it was delivered."""
        problem = ""
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            for attempt in range(self._tries):
                if attempt:
                    await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
                try:
                    answer = await client.post(webhook, json=event)
                except httpx.HTTPError as error:
                    problem = type(error).__name__
                    continue
                if answer.is_success:
                    self.sent += 1
                    return ""
                problem = f"status {answer.status_code}"
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    break  # the same POST would be refused again
        return problem

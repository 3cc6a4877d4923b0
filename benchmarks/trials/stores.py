"""Redis and PostgreSQL killed and started again under load; two servers on one budget."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import sqlalchemy

from ...tests.helpers.servers import postgres_server, redis_server
from .harness import Row, Server, crowd, serving, settings
from .provider import Provider

CLIENTS = 16


async def stores(scale: float) -> list[Row]:
    """kill -9 of Redis, of PostgreSQL, and of both, each back later; two workers under load."""
    row, n = Row("Redis and PostgreSQL killed, restarted"), max(200, round(3000 * scale))
    async with contextlib.AsyncExitStack() as kept:
        redis = await asyncio.to_thread(kept.enter_context, redis_server(keeps=True))
        postgres = await asyncio.to_thread(kept.enter_context, postgres_server())
        provider = await kept.enter_async_context(Provider().serve())
        more: dict[str, Any] = {
            "redis_url": redis.url,
            "records": {"url": postgres.url},
            "server": {"workers": 2},
        }
        async with serving(lambda folder: settings(provider.url, folder, **more)) as server:
            acts = [
                (1, [redis.kill]),
                (2, [redis.start]),
                (3, [postgres.kill]),
                (5, [postgres.start]),
                (6, [redis.kill, postgres.kill]),
                (7, [postgres.start, redis.start]),
            ]
            trouble = asyncio.create_task(_disturb(row, n, acts))
            await crowd(row, n, CLIENTS, lambda i: server.ask("auto", f"{i}", stream=i % 2 == 0))
            await trouble
            row.budget, row.in_flight = await _both_settled(server)
        ids, cost = await asyncio.to_thread(_rows, postgres.url)
        row.losses += abs(n - ids)
        row.note = f"{ids:,} records of {n:,} requests, ${cost:.6g}; each killed twice"
    return [row]


async def two_servers(scale: float) -> list[Row]:
    """Two servers spend one budget of Redis until it refuses."""
    row, n = Row("two servers, one budget"), max(100, round(1000 * scale))
    # Each request costs $0.000024 on the weak model and sets aside more: about half of them fit.
    tier = {"budgets": [{"usd": n * 12e-6, "per": "month", "scope": "tenant", "soft": None}]}
    async with contextlib.AsyncExitStack() as kept:
        redis = await asyncio.to_thread(kept.enter_context, redis_server())
        provider = await kept.enter_async_context(Provider().serve())
        more = {"redis_url": redis.url, "tiers": {"all": tier}}

        def make(folder: Path) -> dict[str, Any]:
            return settings(provider.url, folder, **more)

        async with serving(make) as one, serving(make) as other:
            both = (one, other)
            await crowd(
                row,
                n,
                2 * CLIENTS,
                lambda i: both[i % 2].ask("weak", f"{i}", max_tokens=10),
                good=(200, 429),
            )
            (budget,) = (await one.get("/stats"))["budgets"]
            spent = 0.0
            for server in both:
                await _drained(server)
                spent += (await server.get("/stats"))["totals"]["cost"]
            row.in_flight = await one.in_flight() + await other.in_flight()
        over = max(0.0, budget["spent"] - budget["limit"])
        right = budget["held"] == 0 and abs(budget["spent"] - spent) < 2e-9 * n
        row.losses += over > 0 or not right
        row.budget = "settled" if right else json.dumps(budget)
        row.note = f"${budget['spent']:.6g} of ${budget['limit']:.6g} spent, ${over:g} over"
    return [row]


async def _disturb(row: Row, n: int, acts: list[tuple[int, list[Any]]]) -> None:
    """Each act when so many eighths of the requests are done."""
    for eighths, steps in acts:
        while sum(row.statuses.values()) < eighths * n / 8:
            await asyncio.sleep(0.02)
        for step in steps:
            await asyncio.to_thread(_again, step)


def _again(step: Any) -> None:
    """A PostgreSQL that was killed may find its own children still there for a moment."""
    for turn in range(10):
        try:
            step()
        except RuntimeError:
            if turn == 9:
                raise
        else:
            return


async def _both_settled(server: Server, wait_s: float = 120.0) -> tuple[str, float]:
    """As `Server.settled`, with workers: each tells of itself, so each is asked often enough."""
    async with asyncio.timeout(wait_s):
        while True:
            ready = [await server.get("/ready") for _ in range(8)]
            if not any(r["budgets_degraded"] or r["records_pending"] for r in ready):
                return await server.settled()
            await asyncio.sleep(0.2)


async def _drained(server: Server) -> None:
    async with asyncio.timeout(60):
        while (await server.get("/ready"))["records_pending"]:
            await asyncio.sleep(0.1)


def _rows(url: str) -> tuple[int, float]:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            sums = sqlalchemy.text("SELECT count(*), sum(cost) FROM thriftroute_decisions")
            count, cost = connection.execute(sums).one()
            return int(count), float(cost or 0)
    finally:
        engine.dispose()

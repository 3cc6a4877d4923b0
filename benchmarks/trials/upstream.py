"""A provider that answers too much, too slowly, never to the end, or nonsense with status 200."""

import asyncio

from .harness import Row, Server, crowd, leaks, serving, settings, watched
from .provider import BOMB_BYTES, HOSTILE, HUGE_BYTES, Provider, bomb

TIMEOUT_S = 5.0  # `calls.timeout_s` of these servers
TOLD = {
    "huge": f"{HUGE_BYTES // 1_000_000} MB",
    "endless": "never ends",
    "drip": "a byte at a time",
    "gzip": f"gzip, {BOMB_BYTES // 1_000_000} MB unpacked",
    "utf8": "invalid UTF-8",
    "malformed": "malformed JSON",
    "html": "HTML",
    "nothing": "no bytes",
    "wrong": "JSON of another shape",
}


HEAVY = ("huge", "gzip")  # what they leave in memory is not to be taken for another's


async def hostile(scale: float) -> list[Row]:
    """Nine hostile answers, whole and as a stream."""
    rows: list[Row] = []
    calls = {"timeout_s": TIMEOUT_S, "first_token_timeout_s": TIMEOUT_S, "failures_to_cool": 1}
    light = [model for model in HOSTILE if model not in HEAVY]
    groups = [[(model, stream)] for model in HEAVY for stream in (False, True)]
    groups += [[(model, stream) for model in light] for stream in (False, True)]
    async with Provider().serve() as provider:
        provider.bomb = await asyncio.to_thread(bomb)
        for group in groups:
            async with serving(
                lambda folder: settings(provider.url, folder, HOSTILE, calls=calls)
            ) as server:
                for model, stream in group:
                    rows.append(await _ask(server, model, stream))
    return rows


async def _ask(server: Server, model: str, stream: bool) -> Row:
    row = Row(f"provider: {TOLD[model]}, {'stream' if stream else 'whole'}")
    before = (await server.get("/stats"))["totals"]["cost"]
    n = 1 if model == "gzip" else 3
    async with watched(row, server, every_s=0.05) as stalls:
        await crowd(
            row, n, n, lambda _: server.ask(model, stream=stream), good=(200, 502, 504, "broken")
        )
    failed = model in (await server.get("/ready"))["cooling"]
    row.budget, row.in_flight = await server.settled()
    cost = (await server.get("/stats"))["totals"]["cost"] - before
    found = leaks(server)
    row.note = (
        f"/health {max(stalls) * 1000:,.0f} ms at most; ${cost:.4g} booked; "
        f"{'a failure' if failed else 'no failure'} of the model"
        f"{f'; canaries: {found}' if found else ''}"
    )
    return row

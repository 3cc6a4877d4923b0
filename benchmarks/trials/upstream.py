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


async def hostile(scale: float) -> list[Row]:
    """Nine hostile answers, whole and as a stream; a new server for each."""
    rows: list[Row] = []
    calls = {"timeout_s": TIMEOUT_S, "first_token_timeout_s": TIMEOUT_S, "failures_to_cool": 1}
    async with Provider().serve() as provider:
        provider.bomb = await asyncio.to_thread(bomb)
        for model in HOSTILE:
            for stream in (False, True):
                row = Row(f"provider: {TOLD[model]}, {'stream' if stream else 'whole'}")
                async with serving(
                    lambda folder, model=model: settings(  # type: ignore[misc]
                        provider.url, folder, (model,), calls=calls
                    )
                ) as server:
                    await _ask(server, model, stream, row)
                rows.append(row)
    return rows


async def _ask(server: Server, model: str, stream: bool, row: Row) -> None:
    n = 1 if model == "gzip" else 3
    async with watched(row, server, every_s=0.05) as stalls:
        await crowd(
            row, n, n, lambda _: server.ask(model, stream=stream), good=(200, 502, 504, "broken")
        )
    cooling = (await server.get("/ready"))["cooling"]
    row.budget, row.in_flight = await server.settled()
    cost = (await server.get("/stats"))["totals"]["cost"]
    found = leaks(server)
    row.note = (
        f"/health {max(stalls) * 1000:,.0f} ms at most; ${cost:.4g} booked; "
        f"{'a failure' if cooling else 'no failure'} of the model"
        f"{f'; canaries: {found}' if found else ''}"
    )

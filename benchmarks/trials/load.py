"""Many at once: requests, slow streams, clients that stop reading, clients that leave."""

import asyncio
import contextlib
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...tests.helpers.fuzzing import PROMPT
from .harness import CLIENT, Row, Server, crowd, leaks, serving, settings, watched
from .provider import Provider

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples" / "prompts.jsonl"
READ_TIMEOUT_S = 3.0  # of the servers here: so long a client may take nothing of its answer


async def requests(scale: float) -> list[Row]:
    """10,000 routed requests, 16 at once, then as many, 64 at once."""
    samples = [json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()]
    prompts = [row["prompt"] for row in samples if isinstance(row.get("prompt"), str)]
    rows = []
    async with Provider().serve() as provider:
        for at_once in (16, 64):
            row = Row(f"requests, {at_once} at once")
            async with serving(lambda folder: settings(provider.url, folder)) as server:
                # Imports, connections, first pages: not what is asked here.
                await crowd(
                    Row(""), 300, at_once, lambda i: server.ask("auto", prompts[i % len(prompts)])
                )
                async with watched(row, server, every_s=1.0):
                    await crowd(
                        row,
                        max(100, round(10_000 * scale)),
                        at_once,
                        lambda i: server.ask("auto", prompts[i % len(prompts)]),
                    )
                row.budget, row.in_flight = await server.settled()
                kept = (await server.get("/stats"))["totals"]["requests"]
                row.note = f"{kept - 300:,} recorded; canaries found: {len(leaks(server))}"
            rows.append(row)
    return rows


async def streams(scale: float) -> list[Row]:
    """500 slow streams at once."""
    row, n = Row("slow streams, all at once"), max(20, round(500 * scale))
    limits = {"max_concurrency": n + 10}
    async with (
        Provider().serve() as provider,
        serving(lambda folder: settings(provider.url, folder, ("slow",), server=limits)) as server,
    ):
        async with watched(row, server) as stalls:
            work = asyncio.create_task(crowd(row, n, n, lambda _: server.ask("slow", stream=True)))
            most = 0.0
            while not work.done():
                most = max(most, await server.in_flight())
                await asyncio.sleep(0.5)
            await work
        row.budget, row.in_flight = await server.settled()
        row.note = f"{most:g} in flight at most; /health {max(stalls) * 1000:.0f} ms at most"
    return [row]


async def stalled(scale: float) -> list[Row]:
    """100 clients that ask for an endless, fast stream and read nothing of it."""
    row, n = Row("clients that stop reading"), max(10, round(100 * scale))
    limits = {"max_concurrency": n + 10, "read_timeout_s": READ_TIMEOUT_S}
    async with (
        Provider().serve() as provider,
        serving(lambda folder: settings(provider.url, folder, ("flood",), server=limits)) as server,
    ):
        async with watched(row, server) as stalls:
            asked = await asyncio.gather(*(_ask_and_stop(server, "flood") for _ in range(n)))
            row.n = n
            await _all_left(provider, "flood", n)
        row.budget, row.in_flight = await server.settled()
        for _, writer in asked:
            writer.close()
        row.losses = n - provider.left["flood"]
        row.statuses.update(await _recorded(server))
        row.note = (
            f"{provider.left['flood']} of {n} upstream connections closed "
            f"(`read_timeout_s` {READ_TIMEOUT_S:g}); "
            f"/health {max(stalls) * 1000:.0f} ms at most"
        )
    return [row]


async def leavers(scale: float) -> list[Row]:
    """1,000 clients that leave a stream after its third piece, 32 at once."""
    row, n = Row("clients that leave in mid-stream"), max(20, round(1000 * scale))
    async with Provider().serve() as provider:  # noqa: SIM117
        async with serving(lambda folder: settings(provider.url, folder, ("slow",))) as server:
            async with watched(row, server, every_s=0.5):
                await crowd(row, n, 32, lambda _: _leave(server), good=("left",))
                await _all_left(provider, "slow", n)
            row.budget, row.in_flight = await server.settled()
            row.losses += n - provider.left["slow"]
            row.statuses = await _recorded(server)
            row.seconds = []
            row.note = f"{provider.left['slow']:,} of {n:,} upstream connections closed"
    return [row]


async def _ask_and_stop(
    server: Server, model: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    at = urlsplit(server.url)
    client = socket.socket()
    # A small buffer: the client's side fills at once, then the server's.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    assert at.hostname is not None
    await asyncio.get_running_loop().sock_connect(client, (at.hostname, at.port))
    reader, writer = await asyncio.open_connection(sock=client, limit=1024)
    messages = [{"role": "user", "content": PROMPT}]
    body = json.dumps({"model": model, "messages": messages, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {at.netloc}\r\n"
    head += f"authorization: {CLIENT['authorization']}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def _leave(server: Server) -> tuple[Any, float]:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": "slow", "messages": messages, "stream": True}
    async with server.session.post(
        f"{server.url}/v1/chat/completions", json=body, headers=CLIENT
    ) as answer:
        for _ in range(3):
            if not await answer.content.readuntil(b"\n\n"):
                return "ended", 0.0
        answer.close()
    return "left", 0.0


async def _all_left(provider: Provider, model: str, n: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(180):
            while provider.left[model] + provider.done[model] < n:
                await asyncio.sleep(0.1)


async def _recorded(server: Server) -> Counter[Any]:
    """Statuses of the records: what a client saw that has gone, nobody else knows."""
    groups = (await server.get("/stats?by=status"))["groups"]
    return Counter({str(group["name"]): group["requests"] for group in groups})

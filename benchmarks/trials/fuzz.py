"""2,000 mutated bodies and headers for every route."""

import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator

from ...serve.api.app import create_app
from ...serve.config.settings import Config
from ...tests.helpers.fuzzing import cases, routes_of, storm
from .harness import Row, leaks, serving, settings, watched
from .provider import Provider


async def fuzz(scale: float) -> list[Row]:
    """2,000 mutated requests for every route, 16 at once; canaries looked for everywhere."""
    row, n = Row("mutated requests"), max(20, round(2000 * scale))
    async with Provider().serve() as provider, _collector() as (collector, spans):
        routes = await asyncio.to_thread(_routes, provider.url)
        more = {"otel_endpoint": collector, "server": {"read_timeout_s": 5.0}}
        async with serving(lambda folder: settings(provider.url, folder, **more)) as server:
            start = time.monotonic()
            async with watched(row, server, every_s=1.0) as stalls:
                statuses, wrong, errors = await storm(
                    server.url, cases(routes, n, seed=1), at_once=16
                )
            seconds = time.monotonic() - start
            row.n, row.losses = sum(statuses.values()), len(wrong)
            row.statuses = statuses
            row.budget, row.in_flight = await server.settled()
            looks = [str(await server.get(path)) for path in ("/metrics", "/stats", "/decisions")]
        spans_told = b"".join(spans).decode("latin-1")
        found = leaks(server, errors, *looks, spans_told) if spans else ["no trace came"]
        for line in wrong[:10]:
            print(line)
        row.note = (
            f"{len(routes)} routes, {row.n / seconds:.0f} a second; canaries found: "
            f"{', '.join(found) or 'none'}; /health {max(stalls) * 1000:.0f} ms at most"
        )
    return [row]


def _routes(url: str) -> list[tuple[str, str]]:
    models = [
        {"name": name, "api_base": url, "api_key": "x", "price": {"input": 1, "output": 1}}
        for name in ("a", "b")
    ]
    small = {"models": models, "strong": "a", "weak": "b", "records": {"url": None}}
    return routes_of(create_app(Config.model_validate({**small, "router": {"threshold": 0.5}})))


@contextlib.asynccontextmanager
async def _collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An OpenTelemetry collector that keeps what it is sent."""
    kept: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                lines = head.split(b"\r\n")
                size = next(int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length"))
                body = await reader.readexactly(size)
                packed = b"content-encoding: gzip" in head
                kept.append(gzip.decompress(body) if packed else body)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", kept
    finally:
        server.close()

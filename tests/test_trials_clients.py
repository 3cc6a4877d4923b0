"""What was solid under load and is to stay so: clients that leave, clients that stop reading."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from thriftroute.serve.api.app import create_app
from thriftroute.serve.config.settings import Config
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.serving import Serving, pool, serving

BODY = {"model": "weak", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def settings(provider: StubProvider, folder: Path, **more: Any) -> dict[str, Any]:
    return pool(
        provider.url,
        records={"url": f"sqlite:///{folder / 'r.db'}", "flush_s": 0.05},
        tiers={"all": {"budgets": [{"usd": 1000, "per": "month"}]}},
        default_tier="all",
        **more,
    )


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("what was waited for did not come about")


def settled(server: Serving, n: int) -> dict[str, Any]:
    """The report once n requests are recorded and nothing is in work any more."""

    def is_still() -> bool:
        metrics = httpx.get(f"{server.url}/metrics").text
        found = re.search(r"^thriftroute_in_flight (\S+)", metrics, re.M)
        assert found is not None
        requests = httpx.get(f"{server.url}/stats").json()["totals"]["requests"]
        return float(found.group(1)) == 0 and requests == n

    until(is_still)
    report: dict[str, Any] = httpx.get(f"{server.url}/stats?by=status").json()
    return report


def assert_paid(report: dict[str, Any]) -> None:
    """Nothing is held, and the budget has what the records say."""
    (budget,) = report["budgets"]
    assert budget["held"] == 0
    assert budget["spent"] == pytest.approx(report["totals"]["cost"], rel=1e-3)
    assert budget["spent"] > 0


def test_clients_that_leave_in_mid_stream_close_the_upstream_and_hold_nothing(
    tmp_path: Path,
) -> None:
    n = 12
    with StubProvider() as provider, serving(settings(provider, tmp_path)) as server:
        provider.always(Fault(pause_s=0.1, message={"role": "assistant", "content": "x " * 600}))

        def leave(_: int) -> None:
            with httpx.stream(
                "POST", f"{server.url}/v1/chat/completions", json=BODY, timeout=60.0
            ) as answer:
                next(answer.iter_lines())

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(leave, range(n)))
        until(lambda: len(provider.disconnects) == n)
        report = settled(server, n)
    assert [(group["name"], group["requests"]) for group in report["groups"]] == [(499, n)]
    assert_paid(report)


@contextlib.contextmanager
def deaf(url: str) -> Iterator[socket.socket]:
    """A client that asks for a stream and reads nothing of it."""
    at = urlsplit(url)
    body = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {at.netloc}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # it is full at once
        client.connect((at.hostname, at.port))
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        yield client


def test_clients_that_stop_reading_close_the_upstream_and_hold_nothing(tmp_path: Path) -> None:
    n = 3
    # More than all the buffers between the two hold.
    answer = {"role": "assistant", "content": ("x" * 50_000 + " ") * 500}
    limits = {"port": 0, "read_timeout_s": 0.5}
    with StubProvider() as provider, serving(settings(provider, tmp_path, server=limits)) as server:
        provider.always(Fault(message=answer))
        with contextlib.ExitStack() as clients:
            for _ in range(n):
                clients.enter_context(deaf(server.url))
            until(lambda: len(provider.disconnects) == n)
            report = settled(server, n)
    assert [(group["name"], group["requests"]) for group in report["groups"]] == [(499, n)]
    assert_paid(report)


def test_a_fast_stream_lets_others_have_their_turn() -> None:
    """A provider that has sent it all, and a client that takes it all: nothing waits for anything,
    and without a pause of its own the stream would be sent in one turn of the event loop."""
    turns = 0
    sent: Counter[int] = Counter()  # events by the turn in which they were sent

    async def main(config: Config) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def turn() -> None:
            nonlocal turns
            turns += 1
            if not ended.is_set():
                loop.call_soon(turn)

        messages = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}])

        async def receive() -> Any:
            for message in messages:
                return message
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                loop.call_soon(turn)
                time.sleep(0.5)  # the provider goes on meanwhile, into the sockets' buffers
            sent[turns] += 1

        app = create_app(config)
        scope = {
            **{"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []},
            **{"query_string": b"", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)},
        }
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            ended.set()

    with StubProvider() as provider:
        provider.always(Fault(message={"role": "assistant", "content": "word " * 200}))
        asyncio.run(main(Config.model_validate(pool(provider.url))))
    assert sum(sent.values()) > 200
    assert max(sent.values()) <= 3

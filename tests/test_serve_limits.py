import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from thriftroute.serve.api.limits import HEADER_BYTES, BoundedProtocol, Limits
from thriftroute.serve.config.settings import ServerSettings
from thriftroute.serve.errors import RefusedError
from thriftroute.tests.helpers.live import live

PATIENCE_S = 20.0


async def length(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body())})


async def refuse(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return JSONResponse(error.to_dict(), error.status, headers=error.headers)


def app_of(*routes: Route, handled: bool = True, **limits: Any) -> Starlette:
    """With the middleware, and (as the server has it) a handler for refusals."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"read_timeout_s": limits.get("read_timeout_s", 30.0)}

    return Starlette(
        routes=[Route("/", length, methods=["GET", "POST"]), *routes],
        middleware=[Middleware(Limits, settings=ServerSettings(**limits))],
        exception_handlers={RefusedError: refuse} if handled else {},
        lifespan=lifespan,
    )


@contextlib.contextmanager
def raw(url: str) -> Iterator[socket.socket]:
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes; a reset counts as closed."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def pieces(n: int, size: int = 1000) -> Iterator[bytes]:
    yield from (b"x" * size for _ in range(n))


@pytest.mark.parametrize("handled", [True, False])
def test_a_body_over_the_limit_is_413_with_and_without_a_content_length(handled: bool) -> None:
    app = app_of(max_body_bytes=10_000, handled=handled)
    with live(app) as url, httpx.Client(base_url=url) as client:
        assert client.post("/", content=b"x" * 10_000).json() == {"bytes": 10_000}
        assert client.post("/", content=pieces(10)).json() == {"bytes": 10_000}
        for content in (b"x" * 10_001, pieces(11), b"x" * 5_000_000, pieces(5_000)):
            answer = client.post("/", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"
            assert answer.headers["connection"] == "close"
        assert client.get("/").json() == {"bytes": 0}


def test_a_client_that_waits_for_100_continue_is_refused_before_it_sends() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9999\r\n\r\n"
    with live(app_of(max_body_bytes=1000)) as url, raw(url) as connection:
        connection.sendall(head)
        first = connection.recv(65536)
    assert first.startswith(b"HTTP/1.1 413")


def test_a_length_that_is_not_what_comes_is_counted_as_it_comes() -> None:
    async def run() -> int:
        sent: list[Any] = []
        messages = iter(
            [{"type": "http.request", "body": b"x" * 60, "more_body": more} for more in (1, 1, 0)]
        )

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/", "headers": [(b"content-length", b"\xb2")]}
        limits = Limits(reads_all, ServerSettings(max_body_bytes=100))
        await limits(scope, receive, send)
        return int(sent[0]["status"])

    async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"bytes": len(await Request(scope, receive).body())})(
            scope, receive, send
        )

    assert asyncio.run(run()) == 413


@pytest.mark.parametrize("part", [b"", b"4\r\nxxxx\r\n"])
def test_a_body_that_does_not_arrive_is_408(part: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with live(app_of(read_timeout_s=0.2)) as url, raw(url) as connection:
        connection.sendall(head + part)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout"


def test_a_body_in_drops_is_408_though_each_drop_is_in_time() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    with live(app_of(read_timeout_s=0.5)) as url, raw(url) as connection:
        connection.sendall(head)
        connection.settimeout(0.05)
        answer = b""
        for _ in range(400):
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
                break
            connection.sendall(b"x")
    assert answer.startswith(b"HTTP/1.1 408")


def test_an_answer_may_take_longer_than_the_time_to_send_a_request() -> None:
    async def slow(request: Request) -> PlainTextResponse:
        await request.body()
        await asyncio.sleep(0.6)
        return PlainTextResponse(str(await request.is_disconnected()))

    app = app_of(Route("/slow", slow, methods=["POST"]), read_timeout_s=0.2)
    with live(app, http=BoundedProtocol) as url:
        assert httpx.post(f"{url}/slow", content=b"x", timeout=PATIENCE_S).text == "False"


def test_an_answer_before_the_body_was_read_closes_the_connection() -> None:
    async def no(_: Request) -> JSONResponse:
        raise RefusedError(401, "missing_api_key", "no key")

    app = app_of(Route("/no", no, methods=["GET", "POST"]))
    with live(app) as url, httpx.Client(base_url=url) as client:
        answer = client.post("/no", content=pieces(3000))
        assert (answer.status_code, answer.headers["connection"]) == (401, "close")
        assert "connection" not in client.get("/no").headers


class Gate:
    """A route that holds its requests until it is opened."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.open = threading.Event()

    async def route(self, request: Request) -> PlainTextResponse:
        self.waiting.release()
        await asyncio.to_thread(self.open.wait, PATIENCE_S)
        return PlainTextResponse("done")


def test_requests_past_the_limit_are_429_and_health_still_answers() -> None:
    gate = Gate()

    async def fine(_: Request) -> PlainTextResponse:
        return PlainTextResponse("fine")

    app = app_of(Route("/gate", gate.route), Route("/health", fine), max_concurrency=2)
    statuses: list[int] = []
    with live(app) as url:

        def ask() -> None:
            statuses.append(httpx.get(f"{url}/gate", timeout=PATIENCE_S).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert gate.waiting.acquire(timeout=PATIENCE_S)
        try:
            full = httpx.get(f"{url}/gate")
            health = httpx.get(f"{url}/health")
        finally:
            gate.open.set()
            for thread in threads:
                thread.join()
        after = httpx.get(f"{url}/gate").status_code
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json()["error"]["type"] == "rate_limit_error"
    assert full.headers["x-content-type-options"] == "nosniff"
    assert health.status_code == 200
    assert (statuses, after) == ([200, 200], 200)


def test_a_place_is_free_again_after_an_error() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    async def run() -> int:
        limits = Limits(broken, ServerSettings(max_concurrency=1))
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await limits({"type": "http", "path": "/", "headers": []}, never, swallow)
        return limits.in_flight

    async def never() -> Any:
        raise AssertionError

    async def swallow(_: Any) -> None:
        raise AssertionError("nothing was to be sent")

    assert asyncio.run(run()) == 0


def test_headers_protect_browsers_and_leave_the_applications_own_alone() -> None:
    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse("<p>", headers={"Content-Security-Policy": "default-src 'self'"})

    with live(app_of(Route("/page", page))) as url, httpx.Client(base_url=url) as client:
        plain, own = client.get("/"), client.get("/page")
        missing = client.get("/missing")
    for answer in (plain, own, missing):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
    assert plain.headers["content-security-policy"].startswith("default-src 'none'")
    assert own.headers.get_list("content-security-policy") == ["default-src 'self'"]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTTP/1.1\r\nhost: x\r\nx-slow: ",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: ",
    ],
)
def test_a_header_that_does_not_arrive_ends_the_connection(sent: bytes) -> None:
    app = app_of(read_timeout_s=0.2)
    with live(app, http=BoundedProtocol) as url, raw(url) as connection:
        connection.sendall(sent)
        answer = read_all(connection)  # returns: the server hung up
    assert answer.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("body", [b"", b"x" * 9])
def test_who_asks_for_a_web_socket_gets_a_plain_answer_and_no_connection_of_its_own(
    method: str, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    head = f"{method} / HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    head += "connection: upgrade, close\r\nupgrade: websocket\r\n"
    head += "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    app = app_of(read_timeout_s=0.5)
    settings = {"http": BoundedProtocol, "ws": "auto", "log_level": "warning"}
    with live(app, **settings) as url, raw(url) as connection:
        connection.sendall(head.encode() + body)
        answer = read_all(connection)  # returns: the server hung up
    assert answer.startswith(b"HTTP/1.1 200")
    assert capfd.readouterr().err == ""


def test_an_endless_header_ends_the_connection() -> None:
    with live(app_of(), http=BoundedProtocol) as url, raw(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            for number in range(100 * HEADER_BYTES // 1000):
                connection.sendall(f"x-{number}: ".encode() + b"y" * 1000 + b"\r\n")
                sent += 1000
            assert not read_all(connection)
    assert sent < 100 * HEADER_BYTES


def test_a_large_body_is_no_large_header() -> None:
    with live(app_of(), http=BoundedProtocol) as url, httpx.Client(base_url=url) as client:
        for _ in range(2):
            assert client.post("/", content=b"x" * 3_000_000).json() == {"bytes": 3_000_000}


def test_a_client_that_does_not_read_its_answer_is_hung_up_on() -> None:
    ended = threading.Event()

    def flood(_: Request) -> StreamingResponse:
        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(endless())

    async def route(request: Request) -> StreamingResponse:
        return flood(request)

    app = app_of(Route("/flood", route), read_timeout_s=0.3)
    with live(app, http=BoundedProtocol) as url, raw(url) as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        assert ended.wait(PATIENCE_S)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_heard_of() -> None:
    left = threading.Event()

    async def route(request: Request) -> PlainTextResponse:
        try:
            await request.body()
        except ClientDisconnect:
            left.set()
        return PlainTextResponse("")

    app = app_of(Route("/left", route, methods=["POST"]))
    with live(app, http=BoundedProtocol) as url:
        with raw(url) as connection:
            connection.sendall(b"POST /left HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")
        assert left.wait(PATIENCE_S)


def test_what_is_not_http_passes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    call: Callable[..., Any] = Limits(app, ServerSettings())
    asyncio.run(call({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_bodies_on_their_way_take_no_place_of_the_work() -> None:
    """Of another client: here each request says whose it is."""

    def client_of(scope: Scope) -> str:
        return dict(scope["headers"])[b"x-client"].decode()

    limits = {"max_concurrency": 1, "max_concurrency_per_key": 2, "read_timeout_s": PATIENCE_S}
    inner = app_of(Route("/work", length, methods=["POST"]))
    app = Limits(inner, ServerSettings(**limits), client_of=client_of)
    head = b"POST /work HTTP/1.1\r\nhost: x\r\nx-client: slow\r\ncontent-length: 3\r\n\r\nx"
    with live(app) as url, raw(url) as one, raw(url) as two:
        for connection in (one, two):
            connection.sendall(head)
        with httpx.Client(base_url=url) as client:
            for _ in range(1000):  # until both have arrived
                refused = client.post("/work", content=b"x", headers={"x-client": "slow"})
                if refused.status_code == 429:
                    break
            served = client.post("/work", content=b"xx", headers={"x-client": "other"})
        for connection in (one, two):
            connection.sendall(b"yz")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with httpx.Client(base_url=url) as client:
            after = client.post("/work", content=b"x", headers={"x-client": "slow"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "too_many_at_once"
    assert served.json() == {"bytes": 2}
    assert after.status_code == 200

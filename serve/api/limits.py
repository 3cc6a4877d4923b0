"""What one client, or all of them together, can take of the server.

`Limits` is an ASGI middleware. `BoundedProtocol` is for what no ASGI application sees: clients that
open a connection and send no request, endless headers, clients that stop reading an answer.
"""

import asyncio
import contextlib
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..config.settings import ServerSettings
from ..errors import RefusedError

UNLIMITED = ("/", "/health", "/ready", "/metrics", "/stats")  # a busy server still says how it is
RETRY_AFTER_S = 1
HEADER_BYTES = 65_536
LINGER_S = 2.0
_HEADERS = "thriftroute.headers"  # of a scope
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
# What scripts of another site may read of an answer, where `cors_origins` has that site.
_TOLD = (
    *("decision-id", "cache", "model", "choice", "reason"),
    *("score", "percentile", "threshold", "cost", "look", "escalated"),
)
_EXPOSED = (*(f"x-thriftroute-{name}" for name in _TOLD), "retry-after", "x-should-retry")


class Limits:
    """Middleware: bounds requests as `settings` says, and sets headers for browsers.

    A body is read no earlier than the application asks for it, and arrives unpacked. Past a limit
    `receive` raises RefusedError: 413, 408, 415 for an encoding other than gzip. A request is work
    from the last byte of its body to the last byte of its answer; `in_flight` counts those. More
    than `max_concurrency` of them, or more bytes in memory than so many bodies may have: 429. So
    too where one client (`client_of`, by default an address) has `max_concurrency_per_key` open.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        *,
        on_refusal: Callable[[int, str], None] = lambda *_: None,
        client_of: Callable[[Scope], str] | None = None,
    ) -> None:
        self.app = _for_browsers(app, settings)
        self._on_refusal = on_refusal
        self._client_of = client_of or address_of
        self.settings = settings
        self.in_flight = 0
        self._open: Counter[str] = Counter()  # client -> its requests, in work or on their way
        self._bytes = 0  # of the bodies of all open requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; anything but HTTP passes untouched."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        counted, most = scope["path"] not in UNLIMITED, self.settings.max_concurrency_per_key
        take = self._take if counted else lambda *_: None
        body = _Exchange(scope, receive, send, self.settings, take)
        client = self._client_of(scope) if counted else ""
        self._open[client] += 1
        try:
            if counted and self._open[client] > most:
                problem = f"this key (without keys, this address) has {most} requests open, as many"
                raise _busy("too_many_at_once", f"{problem} as one may have at once")
            if body.complete:
                body.begin()
            elif counted and self.in_flight >= self.settings.max_concurrency:
                raise self._overloaded()  # before it is sent in vain
            await self.app(scope, body.receive, body.send)
        except RefusedError as error:
            if body.started:
                raise
            self._on_refusal(error.status, scope["path"])
            answer = JSONResponse(error.told_at(scope["path"]), error.status, headers=error.headers)
            await _for_browsers(answer, self.settings)(scope, receive, body.send)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]
            if counted:
                self._bytes -= body.size
                self.in_flight -= body.begun

    def _take(self, size: int, whole: bool) -> None:
        """Room for `size` bytes more of a body and, once it is `whole`, for the work of it."""
        most, full = self.settings.max_concurrency, self.settings.max_body_bytes
        if self._bytes + size > most * full or (whole and self.in_flight >= most):
            raise self._overloaded()
        self._bytes += size
        self.in_flight += whole

    def _overloaded(self) -> RefusedError:
        problem = f"{self.in_flight} requests are in work, as many as this server takes at once"
        return _busy("overloaded", problem)


class _Exchange:
    """`receive` and `send` of one request. Its body is unpacked and counted, and the clock watched
    until all of it is read; `take` is asked for room for its bytes, and for its work once it is
    whole. Answers get the security headers. One that begins before the request was read to its end
    closes the connection: the rest must be neither waited for nor taken for the next request."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        settings: ServerSettings,
        take: Callable[[int, bool], None],
    ) -> None:
        headers = headers_of(scope)
        length = headers.get("content-length", "")
        self._receive, self._send, self._take = receive, send, take
        self._max = settings.max_body_bytes
        self._timeout_s = settings.read_timeout_s
        # What is no number is counted as it arrives.
        is_number = length.isascii() and length.isdigit() and len(length) < 20
        self._declared = int(length) if is_number else 0
        self._deadline: float | None = None  # runs from the first read
        self._bytes = 0  # as they were sent
        self._late = self._closes = self.started = self.begun = False
        self._encoding = headers.get("content-encoding", "identity").strip().lower()
        self._is_gzip = self._encoding in {"gzip", "x-gzip"}
        self._unzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if self._is_gzip else None
        self.size = 0  # as they are kept
        self.complete = self._declared == 0 and "transfer-encoding" not in headers

    def begin(self) -> None:
        """It is work from here on."""
        self._take(0, True)
        self.begun = True

    async def receive(self) -> Message:
        """The next piece; raises RefusedError past a limit."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        elif self.complete:  # what is left to hear is that the client went away
            return await self._receive()
        if not self._is_gzip and self._encoding not in {"", "identity"}:
            problem = "the request's Content-Encoding is not one of gzip and identity"
            told = {"accept-encoding": "gzip"}
            raise RefusedError(415, "unsupported_encoding", problem, headers=told)
        self._check_size(self._declared)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._late = True
            problem = f"the request's body did not arrive within {self._timeout_s:g} s; try again"
            raise RefusedError(408, "request_timeout", problem) from None
        if message["type"] == "http.request":
            body = message.get("body", b"")
            self._bytes += len(body)
            self._check_size(self._bytes)
            was_complete, self.complete = self.complete, not message.get("more_body", False)
            if self._is_gzip and not was_complete:
                body = message["body"] = self._unpacked(body)
            self._take(len(body), False)
            self.size += len(body)
            if self.complete and not self.begun:
                self.begin()
        return message

    def _unpacked(self, body: bytes) -> bytes:
        """More of a gzip body; never more than fits, whatever it would unpack to."""
        found: bytes | None = None
        assert self._unzip is not None
        with contextlib.suppress(zlib.error):
            found = self._unzip.decompress(body, self._max - self.size + 1)
            self._check_size(self.size + len(found))
        cut = self.complete and not self._unzip.eof
        if found is None or self._unzip.unused_data or cut:
            raise RefusedError(400, "invalid_gzip", "the request's body is not whole gzip")
        return found

    async def send(self, message: Message) -> None:
        """The next piece of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            given = [*message.get("headers", ())]
            names = {name for name, _ in given}
            message["headers"] = given + [pair for pair in _SECURITY if pair[0] not in names]
            self._closes = not self.complete
            if self._closes:
                MutableHeaders(scope=message)["connection"] = "close"
        elif self._closes and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _discard(self) -> None:
        """Read on for a moment, keeping nothing: closing a connection on a client that still sends
        resets it, and the client may lose its answer. Who was late is not waited for again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not (self.complete or self._late):
                    message = await self._receive()
                    self.complete = not message.get("more_body", False)

    def _check_size(self, size: int) -> None:
        if size > self._max:
            problem = f"the request's body is larger than {self._max} bytes, this server's limit"
            raise RefusedError(413, "request_too_large", problem)


def headers_of(scope: Scope) -> dict[str, str]:
    """A request's headers by their lower-case names, read once; of one given twice, the first."""
    found: dict[str, str] | None = scope.get(_HEADERS)
    if found is None:
        given = reversed(scope["headers"])
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
        scope[_HEADERS] = found
    return found


def address_of(scope: Scope) -> str:
    """The address that a request came from; "" where there is none, as on a Unix socket."""
    return scope["client"][0] if scope.get("client") else ""


def _for_browsers(app: ASGIApp, settings: ServerSettings) -> ASGIApp:
    """`app`, with leave for the pages of `cors_origins` to ask it."""
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # OpenAI's client sends a dozen of its own
        expose_headers=_EXPOSED,
    )


def _busy(code: str, problem: str) -> RefusedError:
    told = {"retry-after": str(RETRY_AFTER_S)}
    return RefusedError(429, code, f"{problem}; try again in {RETRY_AFTER_S} s", headers=told)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with bounds on what comes before and after the application.

    A connection is dropped where no whole header of a request arrives within `read_timeout_s` (of
    the application's state), where a header is larger than `HEADER_BYTES`, and where a client takes
    nothing of its answer for `read_timeout_s`.
    """

    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def __init__(self, config: Any, server_state: Any, app_state: Any, **more: Any) -> None:
        super().__init__(config, server_state, app_state, **more)
        self.ws_protocol_class = None  # no route is one, and its connections would have no bounds
        self._timeout_s = float(app_state.get("read_timeout_s", 30.0))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has so long for the header of its first request."""
        super().connection_made(transport)
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        _cancel(self._header_timer)
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a header are counted, as nothing else bounds them."""
        if self._header_timer is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        # Looked at after parsing: the first piece of a body may have come with its header.
        if self._header_timer is not None and self._header_bytes > HEADER_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A further request on a connection has as long for its header."""
        super().on_message_begin()
        if self._header_timer is None:
            self._await_header()

    def on_headers_complete(self) -> None:
        """From here on the application watches the clock."""
        _cancel(self._header_timer)
        self._header_timer = None
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Who asks for another protocol is answered in this one; that is no line in the log."""

    def pause_writing(self) -> None:
        """The client does not read: it has so long to begin."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        _cancel(self._write_timer)
        self._write_timer = None

    def _await_header(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self._timeout_s, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

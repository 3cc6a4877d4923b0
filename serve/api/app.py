"""The ASGI application: routes, and how answers and errors become HTTP."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ..config.settings import Config
from ..errors import RefusedError
from ..registry import short_names
from ..state import State
from .admin import admin_routes
from .auth import client_of
from .auth import principal as principal_of
from .limits import Limits, address_of
from .openai_chat import Chat, Reply, Stream, shutting_down, until_left

logger = logging.getLogger(__name__)

FAREWELL_S = 1.0  # for a client to take in that the server shuts down
_EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
_NO_BUFFER = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def create_app(config: Config, *, metrics_folder: Path | None = None) -> Starlette:
    """The server of this configuration. metrics_folder: shared by workers, see `metrics.Metrics`.

    Raises ConfigError, UnknownRouterError and BundleError before anything is opened.
    """
    state = State(config, metrics_folder=metrics_folder)
    chat = Chat(state)

    def count(status: int) -> None:
        state.metrics.refusals.labels(str(status)).inc()

    def refused(request: Request, error: Exception) -> Response:
        answer = _refused(request, error)
        count(answer.status_code)
        return answer

    def client(scope: Scope) -> str:
        return client_of(Headers(scope=scope), config, address_of(scope))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        try:
            await state.start()
            # What `limits.BoundedProtocol` goes by, which sees connections and no settings.
            yield {"read_timeout_s": config.server.read_timeout_s}
        finally:
            await chat.finish()
            await state.close()

    routes = [
        Route("/v1/chat/completions", _Completions(chat, config), methods=["POST"]),
        Route("/chat/completions", _Completions(chat, config), methods=["POST"]),
        *_reading(state),
        *admin_routes(state),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Limits, settings=config.server, on_refusal=count, client_of=client)],
        exception_handlers={
            RefusedError: refused,
            HTTPException: _no_route,
            Exception: _unexpected,
        },
    )
    app.state.thriftroute = state
    return app


class _Completions:
    """POST /v1/chat/completions. An ASGI application, since it watches for the client leaving."""

    def __init__(self, chat: Chat, config: Config) -> None:
        self._chat = chat
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._chat.serving():
            events = _Events(send)
            try:
                await self._answer(Request(scope, receive), events)
            except asyncio.CancelledError:  # uvicorn does so where `server.shutdown_s` is over
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                if not events.started:
                    raise shutting_down() from None
                await events.farewell(shutting_down())

    async def _answer(self, request: Request, events: "_Events") -> None:
        # Before the body is read: who has no key makes the server hold nothing.
        principal_of(request.headers, self._config)
        try:
            raw = await request.body()
        except ClientDisconnect:
            return

        async def left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        chat = self._chat
        answer = await until_left(chat.answer(raw, request.headers), left, chat.stop)
        if answer is None:
            return
        if isinstance(answer, Reply):
            reply = _Json(answer.body, headers=answer.headers)
            await reply(request.scope, request.receive, events)
            return
        try:
            await until_left(events.send_all(answer), left, chat.stop)
        finally:
            await answer.chunks.aclose()  # type: ignore[attr-defined]


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return _written(content)


def _written(value: Any) -> bytes:
    """JSON, whatever a provider sent: it has no NaN, and UTF-8 no half of a surrogate pair."""
    how: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}
    try:
        text = json.dumps(value, allow_nan=False, **how)
    except ValueError:
        plain = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(plain, **how)
    return text.encode("utf-8", "replace")


class _Events:
    """`send`, and an answer's server-sent events on it. `started`: whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._are_sent = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)

    async def send_all(self, answer: Stream) -> None:
        """The chunks, then [DONE]."""
        own = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        head = {"type": "http.response.start", "status": 200}
        self._are_sent = True
        await self({**head, "headers": [*_EVENT_STREAM, *_NO_BUFFER, *own]})
        broken = False
        async for chunk in answer.chunks:
            broken = broken or "error" in chunk
            await self._event(chunk)
            # Neither waits where a provider is fast: a full buffer would be sent in one turn of
            # the loop, and a few such streams hold up everybody for a second.
            await asyncio.sleep(0)
        # [DONE] would tell clients that do not look at errors that they have it all.
        await self._end(b"" if broken else b"data: [DONE]\n\n")

    async def farewell(self, error: RefusedError) -> None:
        """End the events with this one, unless the client takes in no more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                if self._are_sent:
                    await self._event(error.to_dict())
                    await self._end()

    async def _event(self, chunk: Mapping[str, Any]) -> None:
        body = b"data: " + _written(chunk) + b"\n\n"
        await self({"type": "http.response.body", "body": body, "more_body": True})

    async def _end(self, last: bytes = b"") -> None:
        await self({"type": "http.response.body", "body": last, "more_body": False})


def _reading(state: State) -> list[Route]:
    """GET /v1/models, /v1/models/{id}, /health, /ready."""
    config = state.config

    def described() -> list[dict[str, Any]]:
        names = ["auto", *state.registry.models]
        threshold = config.router.threshold
        if config.router.strategy == "pair" and threshold is not None:
            names.insert(1, f"router-{config.router.name}-{threshold:g}")
        created = int(state.started_at)
        return [
            {"id": name, "object": "model", "created": created, "owned_by": "thriftroute"}
            for name in names
        ]

    async def models(request: Request) -> Response:
        principal_of(request.headers, config)
        return JSONResponse({"object": "list", "data": described()})

    async def model(request: Request) -> Response:
        principal_of(request.headers, config)
        wanted = request.path_params["name"]
        wanted = short_names(state.registry.models).get(wanted, wanted)
        for row in described():
            if row["id"] == wanted:
                return JSONResponse(row)
        raise RefusedError(404, "model_not_found", f"there is no model {wanted[:100]!r} here")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        detail = {
            "ready": state.ready,
            "uptime_s": round(time.time() - state.started_at, 1),
            "records_pending": state.recorder.pending,
            "budgets_degraded": state.ledger.degraded,
            "cooling": sorted(state.caller.cooling()),
        }
        return JSONResponse(detail, status_code=200 if state.ready else 503)

    return [
        Route("/v1/models", models),
        Route("/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/ready", ready),
    ]


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse(error.to_dict(), status_code=error.status, headers=error.headers)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    refused = RefusedError(
        error.status_code, code, f"{request.method} {request.url.path[:100]}: {error.detail}"
    )
    return JSONResponse(refused.to_dict(), status_code=error.status_code, headers=error.headers)


def _unexpected(request: Request, error: Exception) -> Response:
    # Its text may quote a prompt: the log has the place, the client a sentence.
    if not isinstance(error, asyncio.CancelledError):
        logger.error("%s %s: %s", request.method, request.url.path, type(error).__name__)
    refused = RefusedError(500, "internal_error", "the server failed; its log says where")
    return JSONResponse(refused.to_dict(), status_code=500)

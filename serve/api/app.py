"""The ASGI application: routes, and how answers and errors become HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config.settings import Config
from ..errors import RefusedError
from ..registry import short_names
from ..state import ServerState
from .access_log import log_refusal
from .admin import admin_routes
from .auth import client_of, principal
from .chat_request import PREFIX
from .doors import DOORS
from .flow import RequestFlow
from .limits import Limits, address_of, headers_of
from .openai_chat import chat_completions
from .sending import Endpoint

_CODES = {404: "not_found", 405: "method_not_allowed"}

logger = logging.getLogger(__name__)


def create_app(config: Config, *, metrics_folder: Path | None = None) -> Starlette:
    """The server of this configuration. Raises as `ServerState`, before anything is opened."""
    state = ServerState(config, metrics_folder=metrics_folder)
    flow = RequestFlow(state)

    def refused(status: int, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        state.metrics.refusals.labels(str(status)).inc()
        if config.server.access_log and f"{PREFIX}decision-id" not in headers:
            log_refusal(status, path)

    def answered(request: Request, error: Exception) -> Response:
        where = f"{request.method} {request.url.path[:100]}"
        if isinstance(error, RefusedError):
            refused(error.status, request.url.path, error.headers)
        elif isinstance(error, HTTPException):
            code, told = _CODES.get(error.status_code, "http_error"), f"{where}: {error.detail}"
            error = RefusedError(error.status_code, code, told, headers=error.headers)
        else:
            # Its text may quote a prompt: the log has the place, the client a sentence.
            if not isinstance(error, asyncio.CancelledError):
                logger.error("%s: %s", where, type(error).__name__)
            error = RefusedError(500, "internal_error", "the server failed; its log says where")
        return JSONResponse(error.told_at(request.url.path), error.status, headers=error.headers)

    async def told(error: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
        await answered(Request(scope), error)(scope, receive, send)

    def client(scope: Scope) -> str:
        return client_of(headers_of(scope), config, address_of(scope))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        try:
            await state.start()
            # What `limits.BoundedProtocol` goes by, which sees connections and no settings.
            yield {"read_timeout_s": config.server.read_timeout_s}
        finally:
            await flow.finish()
            await state.close()

    doors = {
        f"{v1}{path}": Endpoint(flow, door, told)
        for path, door in {"/chat/completions": chat_completions, **DOORS}.items()
        for v1 in ("/v1", "")
    }
    asking = [Route(path, door, methods=["POST"]) for path, door in doors.items()]
    app = Starlette(
        routes=[*asking, *_reading(state), *admin_routes(state)],
        lifespan=lifespan,
        middleware=[
            Middleware(Limits, settings=config.server, on_refusal=refused, client_of=client),
            Middleware(_Straight, doors=doors),
        ],
        exception_handlers=dict.fromkeys((RefusedError, HTTPException, Exception), answered),
    )
    app.state.thriftroute = state
    return app


class _Straight:
    """Middleware: to the doors past Starlette's router, which tries one route after the other."""

    def __init__(self, app: ASGIApp, doors: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["method"] == "POST"
        app = self._doors.get(scope["path"]) if asks and not scope.get("root_path") else None
        await (app or self._app)(scope, receive, send)


def _reading(state: ServerState) -> list[Route]:
    """GET /v1/models, /v1/models/{id}, /health, /ready."""
    config = state.config
    names = ["auto", *state.registry]
    if config.router.strategy == "pair" and config.router.threshold is not None:
        names.insert(1, f"router-{config.router.name}-{config.router.threshold:g}")
    common = {"object": "model", "created": int(state.started_at), "owned_by": "thriftroute"}
    described = {name: {"id": name, **common} for name in names}

    async def models(request: Request) -> Response:
        principal(request.headers, config)
        return JSONResponse({"object": "list", "data": list(described.values())})

    async def model(request: Request) -> Response:
        principal(request.headers, config)
        wanted = request.path_params["name"]
        found = described.get(short_names(state.registry).get(wanted, wanted))
        if found is None:
            raise RefusedError(404, "model_not_found", f"there is no model {wanted[:100]!r} here")
        return JSONResponse(found)

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

"""What whoever runs the server sees: reports, decisions, feedback, a dry run, metrics, the page."""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ...eval.drift.arms import compare
from ..config.time_spec import moment
from ..errors import RefusedError, wrong
from ..records.stats import FILTERS
from ..registry import Model
from ..request import Principal
from ..state import ServerState
from .auth import admin, principal
from .chat_request import read_body, read_options
from .openai_chat import request_of

PAGE = Path(__file__).with_name("page.html")
_SWITCHES = ("errors", "rated")
_ROUTE_KEYS = ("prompt", "messages", "tier")


def admin_routes(state: ServerState) -> list[Route]:
    """GET /, /stats, /decisions, /decisions/{id}, /metrics; POST /feedback, /route.

    All but the page itself (which holds no data) and /feedback are for admins, see `auth.admin`;
    /metrics is everybody's where `server.public_metrics` is on. A refusal is a RefusedError, which
    the application turns into JSON.
    """
    views = _Views(state)
    return [
        Route("/", views.page),
        Route("/stats", views.stats),
        Route("/decisions", views.decisions),
        Route("/decisions/{id}", views.decision),
        Route("/feedback", views.feedback, methods=["POST"]),
        Route("/route", views.route, methods=["POST"]),
        Route("/metrics", views.metrics),
    ]


def content_security_policy(page: str) -> str:
    """What `page` may do: run its own script and style, and talk to its own server.

    Both are named by hash, and text never becomes markup: a browser refuses anything else, even
    where the page itself should have a hole.
    """
    hashes = {}
    for tag in ("script", "style"):
        digests = (
            hashlib.sha256(text.encode()).digest()
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        )
        hashes[tag] = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


class _Views:
    """The routes, over one state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._page = PAGE.read_text(encoding="utf-8")
        self._policy = content_security_policy(self._page)

    async def page(self, _: Request) -> Response:
        headers = {"content-security-policy": self._policy, "cache-control": "no-cache"}
        return HTMLResponse(self._page, headers=headers)

    async def stats(self, request: Request) -> Response:
        """`?since=24h&until=&by=model` and a value for any filter of the decisions."""
        self._admin(request)
        state, query = self._state, dict(request.query_params)
        since, until = (_moment(query.pop(name, None), name) for name in ("since", "until"))
        by = query.pop("by", None) or None
        filters, recorder = _filters(query), state.recorder
        report = await state.in_reports(
            lambda: recorder.stats(since, by, until=until, filters=filters)
        )
        more = await state.in_reports(lambda: self._watched(since, until))
        settings = state.config.router
        return JSONResponse(
            {
                **report,
                **more,
                "now": time.time(),
                "router": {
                    "name": settings.name,
                    "strategy": settings.strategy,
                    "threshold": state.pipeline.threshold,
                    "strong_share": settings.strong_share,
                    "strong": state.config.strong,
                    "weak": state.config.weak,
                },
                "models": [self._described(model) for model in state.registry.models.values()],
                "budgets": await state.ledger.state(),
                "records": {
                    "kept": recorder.engine is not None,
                    "pending": recorder.pending,
                    "dropped": recorder.dropped,
                },
            }
        )

    async def decisions(self, request: Request) -> Response:
        """`?limit=50&since=&until=&errors=1&rated=1` and a value for any other filter."""
        self._admin(request)
        query = dict(request.query_params)
        limit = query.pop("limit", "50")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", limit):
            raise wrong("limit", "expected a whole number from 1 on")
        filters: dict[str, Any] = {
            name: _moment(query.pop(name, None), name) for name in ("since", "until")
        }
        filters |= _filters(query)
        recorder = self._state.recorder
        rows = await self._state.in_reports(lambda: recorder.recent(min(int(limit), 1000), filters))
        return JSONResponse({"decisions": rows})

    async def decision(self, request: Request) -> Response:
        self._admin(request)
        id = request.path_params["id"]
        row = await self._state.in_reports(lambda: self._state.recorder.one(id))
        if row is None:
            raise _no_decision(id)
        return JSONResponse(row)

    async def feedback(self, request: Request) -> Response:
        """`{"id": ..., "value": "good" | "bad" | 0..1, "comment": ...}`; `score` for `value` too.

        An admin may rate any decision, a client those of its own tenant.
        """
        tenant: str | None = None
        try:
            self._admin(request)
        except RefusedError:
            tenant = principal(request.headers, self._state.config).tenant
        body = await self._read(request)
        id = body.get("id", body.get("decision_id"))
        value = body.get("value", body.get("score"))
        comment = body.get("comment")
        if not isinstance(id, str) or not id:
            raise wrong("id", "expected a decision's id, the header x-thriftroute-decision-id")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise wrong("value", "expected 'good', 'bad' or a number from 0 to 1")
        if not isinstance(comment, str | None):
            raise wrong("comment", "expected text")
        recorder = self._state.recorder
        found = await self._state.in_reports(
            lambda: recorder.feedback(id, value, comment, tenant=tenant)
        )
        if not found:
            raise _no_decision(id)
        return JSONResponse({"id": id, "recorded": True})

    async def route(self, request: Request) -> Response:
        """What would be done with a prompt or messages; no model is called, nothing is kept.

        The body is a chat completion's; `prompt` stands for messages of one user's, `tier` for the
        tier of the user who asks.
        """
        who, state = self._admin(request), self._state
        body = await self._read(request)
        options = read_options(body.get("metadata"), request.headers)
        who = replace(who, tenant=options.tenant or who.tenant, tier=self._tier(body, who))
        chat = {key: value for key, value in body.items() if key not in _ROUTE_KEYS}
        chat["messages"] = _messages(body)
        started = time.perf_counter()
        found = await state.in_thread(lambda: request_of(state, chat, options, who, id="dry-run"))
        plan = await state.in_thread(lambda: state.pipeline.plan(found))
        output = found.output_tokens * found.choices
        return JSONResponse(
            {
                **plan.to_dict(),
                "decision_ms": (time.perf_counter() - started) * 1000,
                "prompt_tokens": found.prompt_tokens,
                "output_tokens": output,
                "estimates": {
                    name: model.estimate(found.prompt_tokens, output)
                    for name, model in state.registry.models.items()
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        state = self._state
        if not state.config.server.public_metrics:
            self._admin(request)
        state.metrics.set_budgets(await state.ledger.state(), degraded=state.ledger.degraded)
        accept = request.headers.get("accept")
        content, kind = await state.in_reports(lambda: state.metrics.render(accept))
        return Response(content, headers={"content-type": kind})

    async def _read(self, request: Request) -> dict[str, Any]:
        raw = await request.body()
        found = await self._state.in_thread(lambda: read_body(raw), size=len(raw))
        return found

    def _admin(self, request: Request) -> Principal:
        client = None if request.client is None else request.client.host
        return admin(request.headers, self._state.config, client=client)

    def _tier(self, body: Mapping[str, Any], who: Principal) -> str | None:
        tier, tiers = body.get("tier"), self._state.config.tiers
        if tier is None:
            return who.tier
        if not isinstance(tier, str) or tier not in tiers:
            raise wrong("tier", f"expected one of {', '.join(tiers) or 'none: no tiers are set'}")
        return tier

    def _watched(self, since: float | None, until: float | None) -> dict[str, Any]:
        """Drift, and what shadow mode and the experiment come to; None where they are off."""
        state, shadow, experiment = self._state, None, None
        drift, settings = state.drift_monitor.report, state.config.experiment
        if state.config.shadow:
            shadow = state.recorder.shadow(since, until=until)
        if settings is not None:
            sums = state.recorder.arms(settings.name, settings.by, since, until=until)
            experiment = compare(settings.name, sums).to_dict()
        return {
            "drift": None if drift is None else drift.to_dict(),
            "shadow": shadow,
            "experiment": experiment,
        }

    def _described(self, model: Model) -> dict[str, Any]:
        """A model of the pool; prices in USD per million tokens."""
        caller = self._state.caller
        return {
            "name": model.name,
            "model": model.litellm_model,
            "input_price": model.input_price * 1e6,
            "output_price": model.output_price * 1e6,
            "cached_input_price": model.cached_input_price * 1e6,
            "context_window": model.context_window,
            "capabilities": sorted(model.capabilities),
            "tags": sorted(model.tags),
            "cooling": model.name in caller.cooling(),
            "latency_s": caller.latency(model.name),
        }


def _messages(body: Mapping[str, Any]) -> Any:
    if ("prompt" in body) == ("messages" in body):
        raise wrong("prompt", "give either a prompt or messages")
    if "messages" in body:
        return body["messages"]
    prompt = body["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise wrong("prompt", "expected text")
    return [{"role": "user", "content": prompt}]


def _moment(value: str | None, param: str) -> float | None:
    """Seconds since the epoch, of a number of them, an ISO date (UTC), or a time ago: 90m, 24h, 7d.

    Raises RefusedError (400) for anything else.
    """
    try:
        return moment(value)
    except ValueError as error:
        raise wrong(param, str(error)) from None


def _status(value: str) -> int:
    if not re.fullmatch(r"[0-9]{3}", value):
        raise wrong("status", "expected an HTTP status such as 429")
    return int(value)


def _filters(query: Mapping[str, str]) -> dict[str, Any]:
    """Of a query's parameters; an empty one filters nothing."""
    readers: dict[str, Callable[[str], Any]] = dict.fromkeys(FILTERS, str)
    readers["status"] = _status
    readers |= dict.fromkeys(_SWITCHES, lambda value: value not in {"0", "false", "no"})
    for name in query:
        if name not in readers:
            known = ", ".join([*FILTERS, *_SWITCHES, "since", "until"])
            raise wrong(name[:50], f"no such filter; there are {known}")
    return {name: readers[name](value) for name, value in query.items() if value}


def _no_decision(id: str) -> RefusedError:
    message = f"there is no decision {id[:100]!r} here, or none of this tenant"
    return RefusedError(404, "decision_not_found", message)

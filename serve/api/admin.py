"""What whoever runs the server sees: reports, decisions, feedback, a dry run, metrics, the page."""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...eval.drift.arms import compare
from ..config.time_spec import moment
from ..errors import RefusedError, wrong
from ..policy.eligibility import cost
from ..records.stats import FILTERS
from ..request import Principal
from ..spend.cost import cost_of, recorded_usage
from ..state import ServerState
from .auth import admin, principal
from .chat_request import read_body, read_options
from .openai_chat import request_of

PAGE = Path(__file__).with_name("page.html")
_PRICES = ("input_price", "output_price", "cached_input_price")
_SWITCHES = ("errors", "rated", "escalated")
SEARCH_CHARS = 200
SIMULATED = "simulated"  # the tag of a stub's models
_ROUTE_KEYS = ("prompt", "messages", "tier")


def admin_routes(state: ServerState) -> list[Route]:
    """GET /, /stats, /traffic, /decisions, /decisions/{id}, /metrics; POST /feedback, /route.

    All but the page itself (which holds no data) and /feedback are for admins, see `auth.admin`;
    /metrics is everybody's where `server.public_metrics` is on.
    """
    views = _Views(state)
    return [
        Route("/", views.page),
        Route("/stats", views.stats),
        Route("/traffic", views.traffic),
        Route("/decisions", views.decisions),
        Route("/decisions/{id}", views.decision),
        Route("/feedback", views.feedback, methods=["POST"]),
        Route("/route", views.route, methods=["POST"]),
        Route("/metrics", views.metrics),
    ]


def content_security_policy(page: str) -> str:
    """What `page` may do: run its own script and style, named by hash, and talk to its server. Text
    never becomes markup."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in texts)
        return " ".join(f"'sha256-{each.decode()}'" for each in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


class _Views:
    """The routes, over one state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._page = PAGE.read_text(encoding="utf-8")
        policy = content_security_policy(self._page)
        self._headers = {"content-security-policy": policy, "cache-control": "no-cache"}

    async def page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers=self._headers)

    async def stats(self, request: Request) -> Response:
        """`?since=24h&until=&by=model` and a value for any filter of the decisions."""
        self._admin(request)
        state, config = self._state, self._state.config
        recorder, caller, drift = state.recorder, state.caller, state.drift_monitor.report
        query = dict(request.query_params)
        by = query.pop("by", None) or None
        within, filters = _filters(query)

        def counted() -> dict[str, Any]:
            shadow = experiment = None
            report = recorder.stats(by=by, **within, filters=filters)
            if config.shadow:
                shadow = recorder.shadow(**within)
            if config.experiment is not None:
                sums = recorder.arms(config.experiment.name, config.experiment.by, **within)
                experiment = compare(config.experiment.name, sums).to_dict()
            return {**report, "shadow": shadow, "experiment": experiment}  # None where off

        router = {name: getattr(config.router, name) for name in ("name", "strategy")}
        router |= {"threshold": state.pipeline.threshold, "strong": config.strong}
        router |= {"strong_share": state.pipeline.strong_share, "weak": config.weak}
        records = {name: getattr(recorder, name) for name in ("pending", "dropped")}
        models = [
            {
                "name": model.name,
                "model": model.litellm_model,
                # USD per million tokens
                **{price: getattr(model, price) * 1e6 for price in _PRICES},
                "context_window": model.context_window,
                "capabilities": sorted(model.capabilities),
                "tags": sorted(model.tags),
                "cooling": model.name in caller.cooling(),
                "latency_s": caller.latency(model.name),
            }
            for model in state.registry.values()
        ]
        report = {
            **await state.in_reports(counted),
            "drift": None if drift is None else drift.to_dict(),
            "notices": [*state.drift_monitor.notices, *_simulated(state)],
            "now": time.time(),
            "router": router,
            "models": models,
            "budgets": await state.ledger.state(),
            "output_tokens": state.lengths.to_dict(),
            "records": {
                **{"kept": recorder.engine is not None, "text": config.records.text},
                **records,
            },
        }
        return JSONResponse(report)

    async def traffic(self, request: Request) -> Response:
        """`?since=24h&until=` and other filters: scores and sessions of the latest requests."""
        self._admin(request)
        state, router = self._state, self._state.config.router
        within, filters = _filters(dict(request.query_params))
        weak = state.registry[state.config.weak]

        def weak_cost(row: Mapping[str, Any]) -> float:
            return cost_of(weak, recorded_usage(row))

        threshold = state.pipeline.threshold if router.strategy == "pair" else None
        options = (router.name, threshold, weak_cost, {**within, **filters})
        return JSONResponse(await state.in_reports(partial(state.recorder.traffic, *options)))

    async def decisions(self, request: Request) -> Response:
        """`?limit=50&since=&until=&search=&errors=1&rated=1&escalated=1`, and a value for other
        filters. `format=jsonl`: all of them, a line each, oldest first."""
        self._admin(request)
        query = dict(request.query_params)
        form = query.pop("format", "json")
        if form not in {"json", "jsonl"}:
            raise wrong("format", "expected json or jsonl")
        limit = query.pop("limit", "50")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", limit):
            raise wrong("limit", "expected a whole number from 1 on")
        within, filters = _filters(query)
        if form == "jsonl":
            return await self._exported({**within, **filters})
        recent = self._state.recorder.recent
        rows = await self._state.in_reports(lambda: recent(int(limit), {**within, **filters}))
        return JSONResponse({"decisions": rows})

    async def _exported(self, filters: Mapping[str, Any]) -> Response:
        lines = self._state.recorder.export(filters)
        first = await self._state.in_reports(lambda: next(lines, ""))  # it may be refused
        named = {"content-disposition": 'attachment; filename="decisions.jsonl"'}
        return StreamingResponse(chain([first], lines), 200, named, "application/jsonl")

    async def decision(self, request: Request) -> Response:
        self._admin(request)
        id = request.path_params["id"]
        row = await self._state.in_reports(lambda: self._state.recorder.one(id))
        if row is None:
            raise _no_decision(id)
        return JSONResponse(row)

    async def feedback(self, request: Request) -> Response:
        """`{"id": ..., "value": "good" | "bad" | 0..1, "comment": ..., "look": "wrong" | "right"}`;
        `score` for `value` too.

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
        look = body.get("look")
        if look not in {None, "wrong", "right"}:
            raise wrong("look", "expected 'wrong' or 'right', of the second look at this answer")
        wrong_look = None if look is None else look == "wrong"
        note = partial(self._state.recorder.feedback, id, value, comment, look_wrong=wrong_look)
        if not await self._state.in_reports(lambda: note(tenant=tenant)):
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
        tier, tiers = body.get("tier"), state.config.tiers
        if tier is not None and (not isinstance(tier, str) or tier not in tiers):
            raise wrong("tier", f"expected one of {', '.join(tiers) or 'none: no tiers are set'}")
        who = replace(who, tenant=options.tenant or who.tenant, tier=tier or who.tier)
        chat = {key: value for key, value in body.items() if key not in _ROUTE_KEYS}
        chat["messages"] = _messages(body)
        started = time.perf_counter()
        found = await state.in_thread(lambda: request_of(state, chat, options, who, id="dry-run"))
        plan = await state.in_thread(lambda: state.pipeline.plan(found))
        passed_ms = (time.perf_counter() - started) * 1000
        output = round(found.expected_tokens(plan.models[0], plan.score))
        models = state.registry
        estimates = {name: cost(model, found, plan.score) for name, model in models.items()}
        told = {"decision_ms": passed_ms, "prompt_tokens": found.prompt_tokens}
        told |= {"output_tokens": output}
        return JSONResponse({**plan.to_dict(), **told, "estimates": estimates})

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
        return await self._state.in_thread(lambda: read_body(raw), size=len(raw))

    def _admin(self, request: Request) -> Principal:
        client = None if request.client is None else request.client.host
        return admin(request.headers, self._state.config, client=client)


def _messages(body: Mapping[str, Any]) -> Any:
    if ("prompt" in body) == ("messages" in body):
        raise wrong("prompt", "give either a prompt or messages")
    if "messages" in body:
        return body["messages"]
    prompt = body["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise wrong("prompt", "expected text")
    return [{"role": "user", "content": prompt}]


def _filters(query: Mapping[str, str]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """A query's `since` and `until` in seconds since the epoch, and its further filters; an empty
    one filters nothing. Raises RefusedError (400)."""

    def status(value: str) -> int:
        if not re.fullmatch(r"[0-9]{3}", value):
            raise ValueError("expected an HTTP status such as 429")
        return int(value)

    def text(value: str) -> str:
        if len(value) > SEARCH_CHARS:
            raise ValueError(f"expected at most {SEARCH_CHARS} characters")
        return value

    readers: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(FILTERS, str),
        "search": text,
        "status": status,
        **dict.fromkeys(_SWITCHES, lambda value: value not in {"0", "false", "no"}),
        **dict.fromkeys(("since", "until"), moment),
    }
    found: dict[str, Any] = {}
    for name, value in query.items():
        if name not in readers:
            raise wrong(name[:50], f"no such filter; there are {', '.join(readers)}")
        try:
            if value:
                found[name] = readers[name](value)
        except ValueError as error:
            raise wrong(name, str(error)) from None
    return {name: found.pop(name, None) for name in ("since", "until")}, found


def _simulated(state: ServerState) -> list[str]:
    """A notice where models are a stub's."""
    names = ", ".join(name for name, model in state.registry.items() if SIMULATED in model.tags)
    told = "answers are made up and nothing is paid; costs are what their prices come to"
    return [f"simulated models ({names}): {told}"] if names else []


def _no_decision(id: str) -> RefusedError:
    message = f"there is no decision {id[:100]!r} here, or none of this tenant"
    return RefusedError(404, "decision_not_found", message)

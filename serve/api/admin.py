"""What whoever runs the server sees: reports, decisions, feedback, a dry run, metrics, the page."""

import base64
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ...eval.drift.arms import compare
from ..config.time_spec import moment
from ..errors import RefusedError
from ..records.stats import FILTERS
from ..request import Principal
from .auth import admin, principal
from .chat_request import read_body, read_options, read_request

if TYPE_CHECKING:
    from ..state import State

PAGE = Path(__file__).with_name("page.html")
_SWITCHES = ("errors", "rated")
_ROUTE_KEYS = ("prompt", "messages", "tier")


def admin_routes(state: "State") -> list[Route]:
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
    parts = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S) for tag in ("script", "style")}
    hashes = {tag: " ".join(map(_hash, found)) for tag, found in parts.items()}
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


class _Views:
    """The routes, over one state."""

    def __init__(self, state: "State") -> None:
        self._state = state
        self._page = PAGE.read_text(encoding="utf-8")
        self._policy = content_security_policy(self._page)

    async def page(self, _: Request) -> Response:
        headers = {"content-security-policy": self._policy, "cache-control": "no-cache"}
        return HTMLResponse(self._page, headers=headers)

    async def stats(self, request: Request) -> Response:
        """`?since=24h&until=&by=model` and a value for any filter of the decisions."""
        self._admin(request)
        query = dict(request.query_params)
        since = _moment(query.pop("since", None), "since")
        until = _moment(query.pop("until", None), "until")
        by = query.pop("by", None) or None
        filters = _filters(query)
        recorder = self._state.recorder
        report = await self._state.in_reports(
            lambda: recorder.stats(since, by, until=until, filters=filters)
        )
        more = await self._state.in_reports(lambda: self._watched(since, until))
        records = {
            "kept": recorder.engine is not None,
            "pending": recorder.pending,
            "dropped": recorder.dropped,
        }
        return JSONResponse(
            {
                **report,
                **more,
                "now": time.time(),
                "router": self._router(),
                "models": self._models(),
                "budgets": await self._state.ledger.state(),
                "records": records,
            }
        )

    async def decisions(self, request: Request) -> Response:
        """`?limit=50&since=&until=&errors=1&rated=1` and a value for any other filter."""
        self._admin(request)
        query = dict(request.query_params)
        limit = query.pop("limit", "50")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", limit):
            raise _wrong("limit", "expected a whole number from 1 on")
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
        tenant = self._tenant_of_feedback(request)
        body = await self._read(request)
        id = body.get("id", body.get("decision_id"))
        value = body.get("value", body.get("score"))
        comment = body.get("comment")
        if not isinstance(id, str) or not id:
            raise _wrong("id", "expected a decision's id, the header x-thriftroute-decision-id")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _wrong("value", "expected 'good', 'bad' or a number from 0 to 1")
        if not isinstance(comment, str | None):
            raise _wrong("comment", "expected text")
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
        who = self._admin(request)
        state = self._state
        body = await self._read(request)
        options, tenant = read_options(body.get("metadata"), request.headers)
        who = replace(who, tenant=tenant or who.tenant, tier=self._tier(body, who))
        asked_body = {key: value for key, value in body.items() if key not in _ROUTE_KEYS}
        asked_body["messages"] = _messages(body)
        started = time.perf_counter()
        asked = await state.in_thread(
            lambda: read_request(
                asked_body,
                options,
                who,
                id="dry-run",
                expected_output=state.config.expected_output_tokens,
                count=state.count_tokens,
                unlimited=state.registry.is_local(asked_body.get("model")),
            )
        )
        plan = await state.in_thread(lambda: state.pipeline.plan(asked))
        output = asked.output_tokens * asked.choices
        return JSONResponse(
            {
                **plan.to_dict(),
                "decision_ms": (time.perf_counter() - started) * 1000,
                "prompt_tokens": asked.prompt_tokens,
                "output_tokens": output,
                "estimates": {
                    name: model.estimate(asked.prompt_tokens, output)
                    for name, model in state.registry.models.items()
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        if not self._state.config.server.public_metrics:
            self._admin(request)
        state = self._state
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

    def _tenant_of_feedback(self, request: Request) -> str | None:
        """None: of any tenant."""
        try:
            self._admin(request)
        except RefusedError:
            return principal(request.headers, self._state.config).tenant
        return None

    def _tier(self, body: Mapping[str, Any], who: Principal) -> str | None:
        tier = body.get("tier")
        if tier is None:
            return who.tier
        tiers = self._state.config.tiers
        if not isinstance(tier, str) or tier not in tiers:
            raise _wrong("tier", f"expected one of {', '.join(tiers) or 'none: no tiers are set'}")
        return tier

    def _router(self) -> dict[str, Any]:
        state = self._state
        return {
            "name": state.config.router.name,
            "strategy": state.config.router.strategy,
            "threshold": state.pipeline.threshold,
            "strong_share": state.config.router.strong_share,
            "strong": state.config.strong,
            "weak": state.config.weak,
        }

    def _watched(self, since: float | None, until: float | None) -> dict[str, Any]:
        """Drift, and what shadow mode and the experiment come to; None where they are off."""
        state = self._state
        drift, settings = state.drift_monitor.report, state.config.experiment
        shadow = experiment = None
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

    def _models(self) -> list[dict[str, Any]]:
        """The pool; prices in USD per million tokens."""
        state = self._state
        cooling = set(state.caller.cooling())
        return [
            {
                "name": model.name,
                "model": model.litellm_model,
                "input_price": model.input_price * 1e6,
                "output_price": model.output_price * 1e6,
                "cached_input_price": model.cached_input_price * 1e6,
                "context_window": model.context_window,
                "capabilities": sorted(model.capabilities),
                "tags": sorted(model.tags),
                "cooling": model.name in cooling,
                "latency_s": state.caller.latency(model.name),
            }
            for model in state.registry.models.values()
        ]


def _messages(body: Mapping[str, Any]) -> Any:
    if ("prompt" in body) == ("messages" in body):
        raise _wrong("prompt", "give either a prompt or messages")
    if "messages" in body:
        return body["messages"]
    prompt = body["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise _wrong("prompt", "expected text")
    return [{"role": "user", "content": prompt}]


def _moment(value: str | None, param: str) -> float | None:
    """Seconds since the epoch, of a number of them, an ISO date (UTC), or a time ago: 90m, 24h, 7d.

    Raises RefusedError (400) for anything else.
    """
    try:
        return moment(value)
    except ValueError as error:
        raise _wrong(param, str(error)) from None


def _filters(query: Mapping[str, str]) -> dict[str, Any]:
    """Of a query's parameters; an empty one filters nothing."""
    found: dict[str, Any] = {}
    for name, value in query.items():
        if name not in FILTERS and name not in _SWITCHES:
            known = ", ".join([*FILTERS, *_SWITCHES, "since", "until"])
            raise _wrong(name[:50], f"no such filter; there are {known}")
        if not value:
            continue
        if name in _SWITCHES:
            found[name] = value not in {"0", "false", "no"}
        elif name == "status":
            if not value.isascii() or not value.isdigit() or len(value) != 3:
                raise _wrong("status", "expected an HTTP status such as 429")
            found[name] = int(value)
        else:
            found[name] = value
    return found


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _wrong(param: str, problem: str) -> RefusedError:
    return RefusedError(400, "invalid_request", f"{param}: {problem}", param=param)


def _no_decision(id: str) -> RefusedError:
    return RefusedError(
        404, "decision_not_found", f"there is no decision {id[:100]!r} here, or none of this tenant"
    )

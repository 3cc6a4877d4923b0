"""A request in work and at its end, and what is told of it: headers, and one record.

A `Pending` grows while it is planned and reserved. Whatever ends it (an answer, a refusal, a client
that leaves) makes an `Ended` of it, which settlement completes. Both are frozen.
"""

import functools
import json
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..policy.course import Course
from ..policy.plan import RoutingPlan, switch_of
from ..records.record import CacheState, Record, hash_prompt, hash_session
from ..request import ChatRequest
from ..spend.cost import Usage
from ..spend.counters import Reservation
from ..state import ServerState
from ..upstream.answer import Looked
from ..upstream.failures import Attempt
from .chat_request import PREFIX


@dataclass(frozen=True)
class Pending:
    """`size`: bytes of the body; `arm`: of the experiment; `held`: what is known of its session; no
    `plan`: refused before. `cache_key`
    and `bucket` are the cache's, made for the model `meant`; `called`: when the models were asked.
    """

    request: ChatRequest
    headers: Mapping[str, str] = field(repr=False)
    size: int
    started: float
    arm: str | None
    held: Course | None = None
    plan: RoutingPlan | None = None
    cache: CacheState = "off"
    cache_key: str | None = None
    bucket: str | None = None
    meant: str | None = None
    reservation: Reservation | None = None
    called: float | None = None

    @property
    def decided(self) -> RoutingPlan:
        """The plan, where there is one."""
        assert self.plan is not None
        return self.plan

    def ended(self, **outcome: Any) -> "Ended":
        """The end of it."""
        return Ended(**vars(self), **outcome)


@dataclass(frozen=True)
class Ended(Pending):
    """`model` and `completion` are None where none answered. From `usage` on it is what settlement
    finds, in USD and tokens: `used_tokens` is of all attempts, `usage` of the last."""

    status: int = 200
    error: str | None = None
    model: str | None = None
    completion: dict[str, Any] | None = field(default=None, repr=False)
    said: str = field(default="", repr=False)
    attempts: tuple[Attempt, ...] = ()
    looked: Looked | None = None
    upstream_s: float = 0.0
    ttft_s: float | None = None  # of a stream
    overhead_s: float | None = None  # of a stream: before its first piece
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    used_tokens: int = 0
    cost: float | None = None  # None until it is settled
    strong_cost: float = 0.0
    routed_cost: float | None = None  # in shadow mode
    latency_s: float = 0.0


@functools.cache
def _recorded(part: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The fields of a part that its record has too, and what gets their values."""
    known = {each.name for each in fields(Record)}
    names = tuple(each.name for each in fields(part) if each.name in known)
    return names, operator.attrgetter(*names)


def record_of(ended: Ended, state: ServerState) -> Record:
    """The record of a settled request. Masking its text takes patterns their time."""
    request, plan = ended.request, ended.plan
    who, session, experiment = request.principal, request.session, state.experiment
    overhead_s = ended.overhead_s
    if overhead_s is None and not request.stream:
        overhead_s = max(0.0, ended.latency_s - ended.upstream_s)
    values: dict[str, Any] = {}
    for part in (request, ended.usage, ended, plan, who):
        if part is not None:
            kind: Any = type(part)
            names, get = _recorded(kind)
            values.update(zip(names, get(part), strict=True))
    values |= {
        "time": time.time() - (time.perf_counter() - ended.started),
        "requested": request.model,
        "model": ended.model,
        "strong": None if ended.model is None else ended.model == state.config.strong,
        "attempts": tuple(attempt.to_dict() for attempt in ended.attempts),
        "task": request.options.task,
        "session_hash": None if session is None else hash_session(who.tenant, session.name),
        "overhead_s": overhead_s,
        "prompt_hash": hash_prompt(request.messages),
        "arm": None if experiment is None else experiment.recorded(ended.arm),
        "cost": ended.cost or 0.0,
        "reason": None if plan is None else reason_of(ended),
    }
    if (looked := ended.looked) is not None:
        values["escalated"] = looked.escalated
        if looked.look is not None:
            values["look"] = looked.look.probability
        values["steps"] = (*values.get("steps", ()), ("second look", _seen(looked)))
    if state.config.records.text:
        choices = (ended.completion or {}).get("choices") or ()
        messages: Any = request.messages
        said: Any = [choice["message"] for choice in choices if choice.get("message")]
        sensitivity = state.pipeline.sensitivity
        # An answer may hold what its prompt did not: masked wherever anything is to be masked.
        if sensitivity.active:
            messages, said = sensitivity.masked(list(messages)), sensitivity.masked(said)
        values["prompt"] = json.dumps(messages, ensure_ascii=False)
        values["answer"] = json.dumps(said, ensure_ascii=False) if said else None
    return Record(**values)


def _seen(looked: Looked) -> str:
    look = looked.look
    if look is None:
        return looked.why
    told = {k: "unknown" if v is None else f"{v:.3g}" for k, v in look.signals.items()}
    signals = ", ".join(f"{name} {value}" for name, value in told.items())
    late = "; the stream had begun" if look.escalated and not looked.escalated else ""
    return f"{looked.why}, threshold {look.threshold:.3g}{late}; {signals}"


def reason_of(stage: Ended) -> str:
    """Why this model answered: the plan's reason, and what came between."""
    first, reason = stage.decided.models[0], stage.decided.reason
    if stage.model in {None, first}:
        return reason
    if stage.looked is not None:
        return f"{reason}; {first}'s answer would not do ({stage.looked.why})"
    return f"{reason}; {first} did not answer (fallback)"


def headers_of(stage: Ended) -> dict[str, str]:
    """Which model answered and why. The cost only where it is known before the answer goes."""
    plan = stage.plan
    values: dict[str, str] = {"decision-id": stage.request.id, "cache": stage.cache}
    if plan is not None:
        if stage.model is not None:
            values["model"] = header_value(stage.model)
        values["choice"], values["reason"] = plan.choice, header_value(reason_of(stage))
        if (switch := switch_of(plan.steps)) is not None:
            values["switch"] = switch
        for name in ("score", "percentile", "threshold"):
            if (value := getattr(plan, name)) is not None:
                values[name] = f"{value:.6g}"
    if stage.looked is not None:
        values["escalated"] = str(stage.looked.escalated).lower()
        if stage.looked.look is not None:
            values["look"] = f"{stage.looked.look.probability:.6g}"
    if stage.cost is not None:
        values["cost"] = f"{stage.cost:.10f}".rstrip("0").rstrip(".")
    return {PREFIX + name: value for name, value in values.items()}


def header_value(value: object) -> str:
    """`value` on one line of printable ASCII, as HTTP headers carry it."""
    text = " ".join(str(value).split()).encode("ascii", "replace").decode()[:500]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)

"""A request in work, stage by stage, and what is told of it: headers, and one record.

    Parsed -> Planned -> Reserved -> Answered -> Settled

Each stage is frozen, holds all of the one before and adds its own; `grown` makes it. A request that
ends early (a refusal, a client that leaves) goes from where it is to Answered.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..policy.plan import RoutingPlan
from ..records.record import CacheState, Record, hash_prompt, hash_session
from ..request import ChatRequest
from ..spend.cost import Usage
from ..spend.counters import Reservation
from ..state import ServerState
from ..upstream.failures import Attempt
from .chat_request import PREFIX


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a door has read. `size`: bytes of the body; `arm`: of the experiment."""

    request: ChatRequest
    headers: Mapping[str, str] = field(repr=False)
    size: int
    started: float
    arm: str | None


@dataclass(frozen=True, slots=True)
class Planned(Parsed):
    """`key` and `bucket` are the cache's, made for the model `meant`. No plan: refused before."""

    plan: RoutingPlan | None = None
    cache: CacheState = "off"
    key: str | None = None
    bucket: str | None = None
    meant: str | None = None

    @property
    def decided(self) -> RoutingPlan:
        """The plan, where there is one."""
        assert self.plan is not None
        return self.plan


@dataclass(frozen=True, slots=True)
class Reserved(Planned):
    """`called`: when the plan's models began to be asked."""

    reservation: Reservation | None = None
    called: float | None = None


@dataclass(frozen=True, slots=True)
class Answered(Reserved):
    """How it ended: `model` and `completion` are None where none answered."""

    status: int = 200
    error: str | None = None
    model: str | None = None
    completion: dict[str, Any] | None = field(default=None, repr=False)
    said: str = field(default="", repr=False)
    attempts: tuple[Attempt, ...] = ()
    cascade: bool = False
    upstream_s: float = 0.0
    ttft_s: float | None = None  # of a stream
    overhead_s: float | None = None  # of a stream: before its first piece


@dataclass(frozen=True, slots=True)
class Settled(Answered):
    """What it came to, in USD and tokens. `used_tokens` is of all attempts, `usage` of the last."""

    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    used_tokens: int = 0
    cost: float = 0.0
    strong_cost: float = 0.0
    routed_cost: float | None = None  # in shadow mode
    latency_s: float = 0.0


S = TypeVar("S", bound=Parsed)
# What a record has under the same names.
_OUTCOME = ("model", "status", "error", "cache", "cost", "strong_cost", "latency_s", "ttft_s")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
_DECISION = ("choice", "router", "score", "threshold", "routed")


def grown(kind: type[S], stage: Parsed, **more: Any) -> S:
    """The stage of that `kind` with all that `stage` has, and more."""
    return kind(**{f.name: getattr(stage, f.name) for f in fields(stage)} | more)


def record_of(settled: Settled, state: ServerState) -> Record:
    """The record of a settled request. Masking its text takes patterns their time."""
    request, plan, usage = settled.request, settled.plan, settled.usage
    who, session, experiment = request.principal, request.options.session, state.experiment
    overhead_s = settled.overhead_s
    if overhead_s is None and not request.stream:
        overhead_s = max(0.0, settled.latency_s - settled.upstream_s)
    record = Record(
        id=request.id,
        time=time.time() - (time.perf_counter() - settled.started),
        tenant=who.tenant,
        key=who.key,
        tier=who.tier,
        requested=request.model,
        strong=None if settled.model is None else settled.model == state.config.strong,
        attempts=tuple(attempt.to_dict() for attempt in settled.attempts),
        task=request.options.task,
        session_hash=None if session is None else hash_session(who.tenant, session),
        stream=request.stream,
        overhead_s=overhead_s,
        prompt_hash=hash_prompt(request.messages),
        arm=None if experiment is None else experiment.recorded(settled.arm),
        **{name: getattr(settled, name) for name in _OUTCOME},
        **{name: getattr(usage, name) for name in _TOKENS},
        **({} if plan is None else {name: getattr(plan, name) for name in _DECISION}),
    )
    if plan is not None:
        record.reason = reason_of(settled)
        record.steps = tuple((step.name, step.outcome) for step in plan.steps)
        record.routed_cost = None if plan.routed is None else settled.routed_cost
    if state.config.records.text:
        choices = (settled.completion or {}).get("choices") or ()
        messages: Any = request.messages
        said: Any = [choice["message"] for choice in choices if choice.get("message")]
        sensitivity = state.pipeline.sensitivity
        # An answer may hold what its prompt did not: masked wherever anything is to be masked.
        if sensitivity.active:
            messages, said = sensitivity.masked(list(messages)), sensitivity.masked(said)
        record.prompt = json.dumps(messages, ensure_ascii=False)
        record.answer = json.dumps(said, ensure_ascii=False) if said else None
    return record


def reason_of(stage: Answered) -> str:
    """Why this model answered: the plan's reason, and what came between."""
    first, reason = stage.decided.models[0], stage.decided.reason
    if stage.model in {None, first}:
        return reason
    if stage.cascade:
        return f"{reason}; {first}'s answer would not do (cascade)"
    return f"{reason}; {first} did not answer (fallback)"


def headers_of(stage: Answered) -> dict[str, str]:
    """Which model answered and why. The cost only where it is known before the answer goes."""
    plan = stage.plan
    values: dict[str, object] = {"decision-id": stage.request.id, "cache": stage.cache}
    if plan is not None:
        if stage.model is not None:
            values["model"] = stage.model
        values["choice"], values["reason"] = plan.choice, reason_of(stage)
        if plan.score is not None:
            values["score"] = f"{plan.score:.6g}"
        if plan.threshold is not None:
            values["threshold"] = f"{plan.threshold:.6g}"
    if isinstance(stage, Settled):
        values["cost"] = f"{stage.cost:.10f}".rstrip("0").rstrip(".")
    return {f"{PREFIX}{name}": header_value(value) for name, value in values.items()}


def header_value(value: object) -> str:
    """`value` on one line of printable ASCII, as HTTP headers carry it."""
    text = " ".join(str(value).split()).encode("ascii", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in text)[:500]

"""What is known of a request in work, and what is told of it: headers, and one record."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..policy.plan import Plan
from ..records.record import CacheState, Record, hash_prompt, hash_session
from ..request import Asked
from ..spend.cost import Usage
from ..spend.counters import Reservation
from ..state import State
from ..upstream.caller import Answer
from ..upstream.failures import Attempt
from .chat_request import PREFIX


@dataclass(slots=True)
class Exchange:
    """What is known so far of a request in work."""

    started: float
    asked: Asked
    headers: Mapping[str, str]
    size: int = 0  # bytes of its body
    plan: Plan | None = None
    reservation: Reservation | None = None
    answer: Answer | None = None
    failed: tuple[Attempt, ...] = ()  # where no model answered
    cache: CacheState = "off"
    key: str | None = None
    bucket: str | None = None
    meant: str | None = None  # the model that `key` was made for
    cost: float = 0.0
    strong_cost: float = 0.0
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    used_tokens: int = 0  # of all attempts
    completion: dict[str, Any] | None = None
    upstream_s: float = 0.0
    ttft_s: float | None = None
    overhead_s: float | None = None  # of a stream: before its first piece
    latency_s: float = 0.0
    model: str | None = None
    arm: str | None = None  # of the experiment
    routed_cost: float | None = None  # in shadow mode
    status: int = 200
    error: str | None = None
    closed: bool = False


def record_of(exchange: Exchange, state: State) -> Record:
    """The record of a closed exchange. Masking its text takes patterns their time."""
    asked, plan, answer = exchange.asked, exchange.plan, exchange.answer
    who, usage = asked.principal, exchange.usage
    latency = exchange.latency_s
    record = Record(
        id=asked.id,
        time=time.time() - (time.perf_counter() - exchange.started),
        tenant=who.tenant,
        key=who.key,
        tier=who.tier,
        requested=asked.model,
        model=exchange.model,
        strong=None if exchange.model is None else exchange.model == state.config.strong,
        task=asked.options.task,
        stream=asked.stream,
        status=exchange.status,
        error=exchange.error,
        cache=exchange.cache,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost=exchange.cost,
        strong_cost=exchange.strong_cost,
        latency_s=latency,
        ttft_s=exchange.ttft_s,
        prompt_hash=hash_prompt(asked.messages),
    )
    if exchange.overhead_s is not None:
        record.overhead_s = exchange.overhead_s
    elif not asked.stream:
        record.overhead_s = max(0.0, latency - exchange.upstream_s)
    if asked.options.session is not None:
        record.session_hash = hash_session(who.tenant, asked.options.session)
    if plan is not None:
        record.choice, record.router = plan.choice, plan.router
        record.reason = reason_of(exchange, plan)
        record.score, record.threshold = plan.score, plan.threshold
        record.steps = tuple((step.name, step.outcome) for step in plan.steps)
        if plan.routed is not None:
            record.routed, record.routed_cost = plan.routed, exchange.routed_cost
    if state.experiment is not None:
        record.arm = state.experiment.recorded(exchange.arm)
    attempts = exchange.failed if answer is None else answer.attempts
    record.attempts = tuple(attempt.to_dict() for attempt in attempts)
    if state.config.records.text:
        _add_text(record, exchange, state)
    return record


def _add_text(record: Record, exchange: Exchange, state: State) -> None:
    messages: Any = exchange.asked.messages
    completion = exchange.completion or {}
    choices = completion.get("choices") or ()
    said: Any = [choice["message"] for choice in choices if choice.get("message")]
    # An answer may hold what its prompt did not: masked wherever anything is to be masked.
    if state.config.sensitivity.actions:
        messages = state.pipeline.masked(messages)
        said = state.pipeline.masked(said)
    record.prompt = json.dumps(messages, ensure_ascii=False)
    record.answer = json.dumps(said, ensure_ascii=False) if said else None


def reason_of(exchange: Exchange, plan: Plan) -> str:
    """Why this model answered: the plan's reason, and what came between."""
    if exchange.model is None or exchange.model == plan.models[0]:
        return plan.reason
    if exchange.answer is not None and exchange.answer.cascade:
        return f"{plan.reason}; {plan.models[0]}'s answer would not do (cascade)"
    return f"{plan.reason}; {plan.models[0]} did not answer (fallback)"


def headers_of(exchange: Exchange) -> dict[str, str]:
    """Which model answered and why. The cost only where it is known before the answer goes."""
    plan = exchange.plan
    values: dict[str, object] = {"decision-id": exchange.asked.id, "cache": exchange.cache}
    if plan is not None:
        if exchange.model is not None:
            values["model"] = exchange.model
        values["choice"], values["reason"] = plan.choice, reason_of(exchange, plan)
        if plan.score is not None:
            values["score"] = f"{plan.score:.6g}"
        if plan.threshold is not None:
            values["threshold"] = f"{plan.threshold:.6g}"
    if exchange.closed:
        values["cost"] = f"{exchange.cost:.10f}".rstrip("0").rstrip(".")
    return {f"{PREFIX}{name}": header_value(value) for name, value in values.items()}


def header_value(value: object) -> str:
    """`value` on one line of printable ASCII, as HTTP headers carry it."""
    text = " ".join(str(value).split())
    if text.isascii() and text.isprintable():
        return text[:500]
    text = text.encode("ascii", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in text)[:500]

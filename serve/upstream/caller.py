"""Calls the models of a plan, in its order, until one answers.

LiteLLM does the call. Which model is next, how often and after what wait is decided here: its
Router knows neither a plan's order nor streams that fail before their first token, and the SDK's
own retries hide what they cost.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from ...providers.calls import judged, pause_s
from ...providers.completion import acomplete, close_connections, quiet, warm_up
from ...providers.error_meaning import CallError, FailureKind
from ...providers.http_answer import BadAnswerError, HttpAnswer
from ...providers.redaction import secrets_of
from .. import request_parts as parts
from ..config.settings import Config
from ..registry import Model
from . import wire
from .answer import Answer, AnswerStream
from .checks import failed
from .failures import Attempt, Health, UpstreamError, all_failed, refused
from .request import HINTS, ModelCall, wants_usage

__all__ = ["Answer", "Caller"]

logger = logging.getLogger(__name__)

CANCELLED = "CancelledError"  # the error of an attempt that was cut short by its client
_BACKOFF_S = 0.2  # before the first retry
_LONGEST_WAIT_S = 2.0  # who asks for more is left alone, and the next model is asked


class Caller:
    """For one event loop. Loads LiteLLM, which takes seconds, when it is made; no network."""

    def __init__(self, config: Config, models: Mapping[str, Model]) -> None:
        self._weak, self._strong, self._settings = config.weak, config.strong, config.calls
        self._health = Health(self._settings.failures_to_cool, self._settings.cooldown_s)
        warm_up()
        with quiet():
            self._targets = {name: ModelCall.of(m, self._settings) for name, m in models.items()}
        self._secrets = {s for model in models.values() for s in secrets_of(model.params)}
        self.cooling = self._health.cooling
        self.latency = self._health.latency
        self.close = close_connections

    async def call(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        cascade: bool = True,
    ) -> Answer:
        """The answer of the first of `models` that gives one to the client's `body`.

        A cascade is run where the settings say so, the first of `models` is the weak one and the
        strong one is among the others; not with `cascade` False, for a client that names its model.
        Where it is cancelled, the CancelledError has the `attempts`, the last of them cut short.
        Raises UpstreamError, a RefusedError, where none answers or the request is wrong.
        """
        first, *others = models
        cascades = cascade and self._settings.cascade.enabled and first not in self.cooling()
        if cascades and first == self._weak and self._strong in others:
            return replace(await self._cascade(first, others, body, stream=stream), cascade=True)
        return await self._in_order(models, body, stream=stream)

    async def _cascade(
        self, weak: str, others: Sequence[str], body: Mapping[str, Any], *, stream: bool
    ) -> Answer:
        """The weak model first, whole also for a client that streams; then the strong one where its
        answer comes late or fails a check. Where that fails, the weak answer is given all the same.
        """
        settings, rejected = self._settings.cascade, None
        within_s = settings.timeout_s or inf
        try:
            answer = await self._in_order([weak], body, stream=False, within_s=within_s)
        except UpstreamError as error:
            if error.final:
                raise
            made = error.attempts
        else:
            # A schema may take its time.
            why = await asyncio.to_thread(failed, answer.response or {}, body, settings.checks)
            if why is None:
                return answer
            logger.info("cascade: the answer of %r fails the check %r", weak, why)
            rejected = answer
            made = (*answer.made[:-1], replace(answer.made[-1], error=f"rejected: {why}"))
        others = sorted(others, key=lambda name: name != self._strong)
        try:
            return await self._in_order(others, body, stream=stream, attempts=made)
        except UpstreamError as error:
            if rejected is None:
                raise
            return replace(rejected, made=error.attempts)

    async def _in_order(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        attempts: Sequence[Attempt] = (),
        within_s: float = inf,
    ) -> Answer:
        """One model after the other. `within_s` bounds it all; to pass it is no model's failure."""
        deadline = asyncio.get_running_loop().time() + within_s
        made = list(attempts)
        failures: list[CallError] = []
        window: int | None = None
        for name in self._health.order(models):
            target = self._targets[name]
            size = target.model.context_window
            if window is not None and size is not None and size <= window:
                continue
            outcome = await self._tries(target, body, made, stream=stream, deadline=deadline)
            if isinstance(outcome, Answer):
                return replace(outcome, made=(*made, *outcome.made))
            failures += outcome
            if outcome[-1].kind is FailureKind.STOP:
                raise refused(made, outcome[-1], self._secrets) from None
            if outcome[-1].kind is FailureKind.WINDOW:
                window = size or 0
        if not any(each.kind in {FailureKind.RETRY, FailureKind.NEXT} for each in failures):
            raise refused(made, failures[-1], self._secrets) from None
        waits = [each.retry_after_s for each in failures if each.retry_after_s is not None]
        raise all_failed(made, min(waits, default=None)) from None

    async def _tries(
        self,
        target: ModelCall,
        body: Mapping[str, Any],
        made: list[Attempt],
        *,
        stream: bool,
        deadline: float,
    ) -> Answer | list[CallError]:
        """What one model answers, or its failures, which are added to `made` too."""
        name, clock = target.model.name, asyncio.get_running_loop().time
        failures: list[CallError] = []
        for turn in range(self._settings.retries + 1):
            start = time.perf_counter()
            try:
                return await self._once(target, body, stream=stream, within_s=deadline - clock())
            except asyncio.CancelledError as cancelled:
                # The client has left; the providers will want their money all the same.
                cut = Attempt(name, None, CANCELLED, time.perf_counter() - start)
                cancelled.attempts = (*made, cut)  # type: ignore[attr-defined]
                raise
            except CallError as caught:
                failure = caught
            seconds = time.perf_counter() - start
            made.append(Attempt(name, failure.status, failure.name, seconds))
            failures.append(failure)
            if clock() >= deadline:
                break
            if failure.counts:
                late = failure.name == "Timeout" and failure.status is None
                self._health.failed(name, seconds if late else None)
            if failure.kind in {FailureKind.RETRY, FailureKind.NEXT}:
                logger.warning("model %r failed: %s, status %s", name, failure.name, failure.status)
            pause = pause_s(failure, turn, _BACKOFF_S)
            is_last = turn == self._settings.retries
            if failure.kind is not FailureKind.RETRY or is_last or pause > _LONGEST_WAIT_S:
                return failures
            await asyncio.sleep(pause)
            if clock() >= deadline:
                break
        raise all_failed(made, None)

    async def _once(
        self, target: ModelCall, body: Mapping[str, Any], *, stream: bool, within_s: float
    ) -> Answer:
        """One call of one model. Raises CallError."""
        name, start = target.model.name, time.perf_counter()
        total = float(target.params["timeout"])
        limit = min(total, self._settings.first_token_timeout_s) if stream else total
        large = (body.get("n") or 1) != 1 or bool(body.get("logprobs") or body.get("audio"))
        http = HttpAnswer(self._settings.max_answer_bytes, parts.refers(body), large)
        async with judged(http, min(limit, within_s)):
            target.check_addresses(body)
            request = target.keywords(body, stream=stream)
            if not stream:
                response = await _completed(request, http)
            else:
                source = await acomplete(request, optional=HINTS)
                # Where the provider counts nothing LiteLLM does, at the end, of these.
                source.messages = parts.countable(request["messages"])
                waited, tells = time.perf_counter() - start, wants_usage(body)
                chunks = AnswerStream(name, source, http, self._health, total, waited, tells)
                await chunks.open()
                return Answer(name, chunks=chunks)
        seconds = time.perf_counter() - start
        self._health.succeeded(name, seconds)
        # Where the provider counts nothing, LiteLLM says that it was nothing.
        usage = response["usage"] if any(response["usage"].values()) else None
        return Answer(name, response, made=(Attempt(name, 200, None, seconds, usage),))


async def _completed(request: dict[str, Any], http: HttpAnswer) -> dict[str, Any]:
    """The completion. Raises what LiteLLM raises, and BadAnswerError."""
    try:
        response = wire.completion(wire.dumped(await acomplete(request, optional=HINTS)))
    except Exception:
        # LiteLLM may miss in a whole answer what it need not have.
        read = wire.read(http)
        if read is None:
            raise
        response = read
    if not response["choices"]:
        raise BadAnswerError("no choices")
    return response

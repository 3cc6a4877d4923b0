"""Calls the models of a plan, in its order, until one answers.

LiteLLM does the call. Which model is next, how often and after what wait is decided here: its
Router knows neither a plan's order nor streams that fail before their first token, and the SDK's
own retries hide what they cost.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from ...providers.calls import judged, pause_s
from ...providers.error_meaning import CallError, FailureKind
from ...providers.http_answer import HttpAnswer
from ...providers.redaction import secrets_of
from ...router.looking import LOOK_KEYWORDS, without_logprobs
from ...router.score_or_fallback import place_of
from .. import request_parts as parts
from ..config.settings import Config
from ..registry import Model
from .answer import Answer, AnswerStream, Looked
from .checks import failed
from .failures import Attempt, Health, UpstreamError, all_failed, refused
from .look_at import LookAt
from .request import HINTS, ModelCall, wants_usage
from .transport import Transport

__all__ = ["Answer", "Caller"]

logger = logging.getLogger(__name__)

CANCELLED = "CancelledError"  # the error of an attempt that was cut short by its client
_BACKOFF_S = 0.2  # before the first retry
_LONGEST_WAIT_S = 2.0  # who asks for more is left alone, and the next model is asked


class Caller:
    """For one event loop. Loads LiteLLM, which takes seconds, where it must: when this is made, for
    models whose chats it has to translate, else at the first request that it must; no network.
    look: at weak answers."""

    def __init__(
        self, config: Config, models: Mapping[str, Model], look: LookAt | None = None
    ) -> None:
        self._look = look
        self._weak, self._strong, self._settings = config.weak, config.strong, config.calls
        self._health = Health(self._settings.failures_to_cool, self._settings.cooldown_s)
        self._targets = {name: ModelCall.of(m, self._settings) for name, m in models.items()}
        self._transport = Transport(self._targets.values())
        self._secrets = {s for model in models.values() for s in secrets_of(model.params)}
        self.cooling = self._health.cooling
        self.latency = self._health.latency
        self.close = self._transport.close

    async def call(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        look: bool = False,
        score: float | None = None,
    ) -> Answer:
        """The answer of the first of `models` that gives one to the client's `body`.

        look: the first is the weak model, and where its answer will not do the strong one is asked,
        by the second look (for which `score` is the prompt's) or the checks of the settings.
        Where it is cancelled, the CancelledError has the `attempts`, the last of them cut short.
        Raises UpstreamError, a RefusedError, where none answers or the request is wrong.
        """
        first, *others = models
        waits = not (stream and self._settings.second_look.stream_first)
        looks = look and waits and self._settings.looking.enabled and first not in self.cooling()
        if looks and first == self._weak and self._strong in others:
            return await self._looked_at(first, others, body, score, stream=stream)
        if look and self._look is not None and not waits:  # what it says is recorded at the end
            how: Any = {"stream": stream, "optional": LOOK_KEYWORDS}
            return await self._in_order(models, self._look.asks(body), **how)
        return await self._in_order(models, body, stream=stream)

    async def _looked_at(
        self,
        weak: str,
        others: Sequence[str],
        body: Mapping[str, Any],
        score: float | None,
        *,
        stream: bool,
    ) -> Answer:
        """The weak model first, whole also for a client that streams; then the strong one where its
        answer comes late or will not do. Where that fails, the weak answer is given all the same.
        """
        rejected = None
        try:
            answer, other = await self._weak_answers(weak, body)
        except UpstreamError as error:
            if error.final:
                raise
            made, looked = error.attempts, Looked(True, "no answer")
        else:
            looked = await asyncio.to_thread(self._judged, answer, other, body, score)
            rejected = replace(answer, looked=looked)
            if not looked.escalated:
                return rejected
            logger.info("the answer of %r will not do: %s", weak, looked.why)
            last = replace(answer.made[-1], error=f"rejected: {looked.why}")
            made = (*answer.made[:-1], last)
        others = sorted(others, key=lambda name: name != self._strong)
        try:
            found = await self._in_order(others, body, stream=stream, attempts=made)
        except UpstreamError as error:
            if rejected is None:
                raise
            return replace(rejected, made=error.attempts)
        return replace(found, looked=looked)

    async def _weak_answers(
        self, weak: str, body: Mapping[str, Any]
    ) -> tuple[Answer, Answer | None]:
        """The weak model's answer, and beside it the second one that the look compares with, if it
        does and there is one. Raises as `_in_order` does for the weak model's."""
        look, within_s = self._look, self._settings.looking.timeout_s or inf
        how: dict[str, Any] = {"stream": False, "within_s": within_s}
        if look is None:
            return await self._in_order([weak], body, **how), None
        own = {**how, "optional": LOOK_KEYWORDS} if look.asks(body) != body else how
        if look.second is None:
            return await self._in_order([weak], look.asks(body), **own), None
        start, second = time.perf_counter(), look.second
        first = self._in_order([weak], look.asks(body), **own)
        beside = self._in_order([second], look.asks_again(body), **how)
        try:
            answer, other = await asyncio.gather(first, beside, return_exceptions=True)
        except asyncio.CancelledError as cancelled:
            seconds = time.perf_counter() - start
            cut = Attempt(second, None, CANCELLED, seconds, beside=True)
            cancelled.attempts = (cut, Attempt(weak, None, CANCELLED, seconds))  # type: ignore[attr-defined]
            raise
        if isinstance(other, Exception) and not isinstance(other, UpstreamError):
            logger.warning("the second answer failed: %s", place_of(other))
        made = tuple(replace(a, beside=True) for a in getattr(other, "attempts", ()))
        if isinstance(answer, UpstreamError):
            answer.attempts = (*made, *answer.attempts)
        if isinstance(answer, BaseException):
            raise answer
        answer = replace(answer, made=(*made, *answer.made))
        return answer, other if isinstance(other, Answer) else None

    def _judged(
        self, answer: Answer, other: Answer | None, body: Mapping[str, Any], score: float | None
    ) -> Looked:
        """What is seen in an answer, in which then is what the client asked for. Takes CPU."""
        completion = answer.response or {}
        # A schema may take its time.
        check = failed(completion, body, self._settings.looking.checks)
        if check is not None:
            found = Looked(True, check)
        else:
            second = None if other is None else other.response
            found = self.look(completion, body, score, second) or Looked(False, "its checks pass")
        without_logprobs(completion, body)
        return found

    def look(
        self,
        completion: Mapping[str, Any],
        body: Mapping[str, Any],
        score: float | None,
        second: Mapping[str, Any] | None = None,
    ) -> Looked | None:
        """What the second look says of a completion; None where there is no look. Never raises: an
        answer that cannot be looked at may stand. Takes CPU."""
        if self._look is None or score is None:
            return None
        try:
            seen = self._look.judge(score, completion, second, body)
        except Exception as error:  # noqa: BLE001
            logger.warning("the second look failed: %s", place_of(error))
            return Looked(False, "the look failed")
        return Looked(seen.escalated, f"falls short with {seen.probability:.3g}", seen)

    async def _in_order(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        attempts: Sequence[Attempt] = (),
        within_s: float = inf,
        optional: Collection[str] = (),
    ) -> Answer:
        """One model after the other. `within_s` bounds it all; to pass it is no model's failure.
        optional: keywords of the body that a provider can do without."""
        deadline = asyncio.get_running_loop().time() + within_s
        made = list(attempts)
        failures: list[CallError] = []
        window: int | None = None
        for name in self._health.order(models):
            target = self._targets[name]
            size = target.model.context_window
            if window is not None and size is not None and size <= window:
                continue
            how = {"stream": stream, "optional": {*HINTS, *optional}}
            outcome = await self._tries(target, body, made, deadline=deadline, how=how)
            if isinstance(outcome, Answer):
                return replace(outcome, made=(*made, *outcome.made)) if made else outcome
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
        deadline: float,
        how: Mapping[str, Any],
    ) -> Answer | list[CallError]:
        """What one model answers, or its failures, which are added to `made`. how: for `_once`."""
        name, clock = target.model.name, asyncio.get_running_loop().time
        failures: list[CallError] = []
        for turn in range(self._settings.retries + 1):
            start = time.perf_counter()
            try:
                return await self._once(target, body, within_s=deadline - clock(), **how)
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
        self,
        target: ModelCall,
        body: Mapping[str, Any],
        *,
        within_s: float,
        stream: bool,
        optional: Collection[str],
    ) -> Answer:
        """One call of one model. Raises CallError."""
        name, start = target.model.name, time.perf_counter()
        total = float(target.params["timeout"])
        limit = min(total, self._settings.first_token_timeout_s) if stream else total
        large = (body.get("n") or 1) != 1 or bool(body.get("logprobs") or body.get("audio"))
        http = HttpAnswer(self._settings.max_answer_bytes, parts.refers(body), large)
        async with judged(http, min(limit, within_s)):
            source = await self._transport.send(
                target, body, http, stream=stream, optional=optional
            )
            if stream:
                waited, tells = time.perf_counter() - start, wants_usage(body)
                marks = target.marks(body)
                chunks = AnswerStream(name, source, http, self._health, total, waited, tells, marks)
                await chunks.open()
                return Answer(name, chunks=chunks)
        response = {**source, **target.marks(body)}
        seconds = time.perf_counter() - start
        self._health.succeeded(name, seconds)
        # Where the provider counts nothing, LiteLLM says that it was nothing.
        usage = response["usage"] if any(response["usage"].values()) else None
        return Answer(name, response, made=(Attempt(name, 200, None, seconds, usage),))

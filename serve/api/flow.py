"""A parsed request to its end: plan, look in the cache, reserve, call, settle.

Every door hands its `Pending` request to `RequestFlow.answer` and writes the `Reply` as it likes.
Whatever ends a request (an answer, a refusal, a client that leaves), its money is settled once and
one record is written.
"""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ...router.looking import without_logprobs
from ..cache.answers import Assembler, Kept, replay, unpack
from ..cache.key import cache_key, semantic_bucket
from ..changed import changed
from ..errors import RefusedError
from ..policy.eligibility import cost
from ..request import ChatRequest
from ..state import ServerState
from ..upstream.caller import Answer
from ..upstream.request import wants_usage
from .request_state import Ended, Pending, headers_of
from .settlement import SHORT_BYTES, record, settle

T = TypeVar("T")

CLIENT_LEFT = 499  # as nginx counts it; no client ever sees it
SHUTTING_DOWN = "server_shutting_down"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as one JSON object, or as chunks (each an event's JSON), which must be closed where
    they are not read out."""

    headers: dict[str, str]
    body: dict[str, Any] | None = None
    chunks: AsyncGenerator[dict[str, Any]] | None = None


def shutting_down() -> RefusedError:
    """What a client is told whose answer the server could not wait for."""
    return RefusedError(503, SHUTTING_DOWN, "the server shuts down before the answer was whole")


class RequestFlow:
    """Answers requests on the parts that `state` holds. One for a server, whatever the door."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._closing: set[asyncio.Task[Any]] = set()
        self._serving: dict[asyncio.Task[Any], bool] = {}  # whether its client has left

    @contextlib.contextmanager
    def serving(self) -> Iterator[Callable[[], None]]:
        """Around all that answers one request: `finish` waits for it. Gives what is to be called
        where its client has left: else what is cancelled is so because the server shuts down."""
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = False
        try:
            yield lambda: self._serving.update({task: True})
        finally:
            del self._serving[task]

    async def finish(self) -> None:
        """Wait for what still answers or is still to be settled."""
        while self._serving or self._closing:
            await asyncio.wait({*self._serving, *self._closing})

    async def answer(self, stage: Pending) -> Reply:
        """Raises RefusedError; cancelling it cancels the call."""
        state, request = self.state, stage.request
        state.metrics.in_flight.inc()  # until it is settled, which is at a stream's end
        try:
            stage = await self._planned(stage)
            stage, kept = await self._looked_up(stage)
            if kept is None:
                stage = await self._reserved(stage)
                if stage.reservation is not None and stage.reservation.level == "soft":
                    stage = await self._narrowed(stage)
                plan, stream = stage.decided, request.stream
                answer = await state.caller.call(
                    plan.models, request.body, stream=stream, look=plan.looks, score=plan.score
                )
        except BaseException as error:
            # Cancelled: the loop is cancelling this task, and the money is settled in another.
            settling = self._settle(self._failed(stage, error))
            if isinstance(error, RefusedError):
                error.headers.update(headers_of(await settling))
            raise
        if kept is not None:
            ended = stage.ended(model=kept.model, completion=kept.completion)
        else:
            ended = _answered(stage, answer)
            if answer.chunks is not None:
                chunks = self._streamed(ended, answer)
                # Up to its first `yield`: a generator that never ran would settle nothing.
                await anext(chunks)
                return Reply(headers_of(ended), chunks=chunks)
        ended = await self._settle(ended)
        completion = ended.completion or {}
        if request.stream:
            return Reply(headers_of(ended), chunks=_replayed(completion, request))
        return Reply(headers_of(ended), body=completion)

    async def _planned(self, stage: Pending) -> Pending:
        """The models to call, in their order."""
        request, pipeline = stage.request, self.state.pipeline_of(stage.arm)
        held = await self.state.sessions.held(request)
        make = functools.partial(pipeline.plan, request, held=held)
        plan = await self._beside(
            make, stage, quick=stage.size < SHORT_BYTES and pipeline.is_quick(request)
        )
        return changed(stage, held=held, plan=plan)

    async def _looked_up(self, stage: Pending) -> tuple[Pending, Kept | None]:
        """The kept answer to the same request, or to one close enough, where that is turned on."""
        cache, semantic, request = self.state.cache, self.state.semantic, stage.request
        plan = stage.decided
        if cache is None:
            return stage, None
        if plan.mask or not request.options.cache:  # what is sensitive is not kept anywhere
            return changed(stage, cache="bypass"), None
        keys = (request, self.state.model_set, plan)
        quick = stage.size < SHORT_BYTES
        key = await self._beside(functools.partial(cache_key, *keys), stage, quick=quick)
        missed = changed(stage, cache="miss", cache_key=key, meant=plan.models[0])
        kept = unpack(key, await cache.get(key))
        if kept is not None:
            return changed(missed, cache="hit"), kept
        if semantic is None:
            return missed, None
        make = functools.partial(semantic_bucket, *keys)
        bucket = await self._beside(make, stage, quick=quick)
        missed = changed(missed, bucket=bucket)
        near = await self.state.in_thread(lambda: semantic.find(bucket, request.text))
        kept = None if near is None else unpack(near, await cache.get(near))
        if near is not None and kept is None:  # its answer has gone since
            semantic.discard(bucket, near)
        return (missed if kept is None else changed(missed, cache="semantic")), kept

    async def _reserved(self, stage: Pending) -> Pending:
        """The estimate, taken from the budgets."""
        state, request, plan = self.state, stage.request, stage.decided
        config, who = state.config, request.principal
        usd, weak_usd = (
            cost(state.registry[name], request, plan.score)
            for name in (plan.models[0], config.weak)
        )
        output = math.ceil(request.expected_tokens(plan.models[0], plan.score))
        tokens = request.prompt_tokens + output
        if plan.looks:
            usd = state.pipeline_of(stage.arm).look_cost(request, plan.score)
            tokens *= 2 if state.look is None or state.look.second is None else 3
        tier = config.tiers.get(who.tier or "")
        reservation = await state.ledger.reserve(
            who, tier, usd=usd, tokens=tokens, weak_usd=weak_usd
        )
        return changed(stage, reservation=reservation, called=time.perf_counter())

    async def _narrowed(self, stage: Pending) -> Pending:
        """With the plan that a budget leaves which runs low: weak models have to do."""
        pipeline = self.state.pipeline_of(stage.arm)
        make = functools.partial(pipeline.narrowed, stage.decided, stage.request)
        plan = await self._beside(make, stage, quick=False)
        # The key stands for answers that were looked at, or were not.
        key = stage.cache_key if plan.looks == stage.decided.looks else None
        return changed(stage, plan=plan, cache_key=key, called=time.perf_counter())

    async def _streamed(self, ended: Ended, answer: Answer) -> AsyncGenerator[dict[str, Any]]:
        """The upstream's chunks, kept as they pass; however it ends, the request is settled."""
        chunks, assembler = answer.chunks, Assembler()
        assert chunks is not None
        request, found = ended.request, dict[str, Any]()
        try:
            yield {}  # for `answer` alone
            async for chunk in chunks:
                assembler.add(chunk)
                yield without_logprobs(chunk, request.body) if ended.decided.looks else chunk
            if chunks.error is not None:
                found = {"status": 502, "error": "stream_broken"}
            found["completion"] = assembler.completion()
        except (asyncio.CancelledError, GeneratorExit):
            found = dict(zip(("status", "error"), self._cut(), strict=True))
            raise
        finally:
            await chunks.aclose()
            found |= {"attempts": answer.attempts, "said": answer.text}
            self._settle(changed(ended, **found, upstream_s=chunks.waited_s))

    async def _beside(self, work: Callable[[], T], stage: Pending, *, quick: bool) -> T:
        """`work()` that reads a request: beside the event loop, unless it is quick."""
        return work() if quick else await self.state.in_thread(work, size=stage.size)

    def _failed(self, stage: Pending, error: BaseException) -> Ended:
        """The end of a request that no model answered."""
        status, code = 500, "internal_error"
        if isinstance(error, RefusedError):
            status, code = error.status, error.code
        elif isinstance(error, asyncio.CancelledError):
            status, code = self._cut()
        upstream_s = 0.0 if stage.called is None else time.perf_counter() - stage.called
        attempts = tuple(getattr(error, "attempts", ()))
        return stage.ended(status=status, error=code, attempts=attempts, upstream_s=upstream_s)

    def _cut(self) -> tuple[int, str]:
        task = asyncio.current_task()
        # An answer that is closed by nobody's task is one that nobody reads.
        has_left = task is None or self._serving.get(task, True)
        return (CLIENT_LEFT, "client_left") if has_left else (503, SHUTTING_DOWN)

    def _settle(self, ended: Ended) -> asyncio.Future[Ended]:
        """In a task of its own, once: a client that leaves meanwhile cancels nothing of it."""
        self.state.metrics.in_flight.dec()
        settled = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._close(ended, settled))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return settled

    async def _close(self, ended: Ended, settled: asyncio.Future[Ended]) -> None:
        """Settle and record; who waits is told in between, and goes first."""
        ended = await settle(self.state, ended)
        if not settled.done():  # who waited was cancelled
            settled.set_result(ended)
            await asyncio.sleep(0)
        await record(self.state, ended)


def _answered(stage: Pending, answer: Answer) -> Ended:
    """What a call came to; of a stream, as far as its first piece."""
    now, whole = time.perf_counter(), answer.chunks is None
    upstream_s = now - (stage.called or stage.started)
    streams, ttft_s = stage.request.stream, now - stage.started
    return stage.ended(
        model=answer.model,
        looked=answer.looked,
        completion=answer.response,
        attempts=answer.attempts if whole else (),
        said=answer.text if whole else "",
        upstream_s=upstream_s,
        ttft_s=ttft_s if streams else None,
        overhead_s=max(0.0, ttft_s - upstream_s) if streams else None,
    )


async def _replayed(
    completion: dict[str, Any], request: ChatRequest
) -> AsyncGenerator[dict[str, Any]]:
    for chunk in replay(completion, wants_usage(request.body)):
        yield chunk

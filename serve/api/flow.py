"""A parsed request to its end: plan, look in the cache, reserve, call, settle.

Every door hands its `Parsed` request to `RequestFlow.answer` and writes the `Reply` as it likes.
Whatever ends a request (an answer, a refusal, a client that leaves), its money is settled once and
one record is written.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..cache.answers import Assembler, Kept, replay, unpack
from ..cache.key import cache_key, semantic_bucket
from ..errors import RefusedError
from ..request import ChatRequest
from ..state import ServerState
from ..upstream.caller import Answer
from ..upstream.request import wants_usage
from .request_state import Answered, Parsed, Planned, Reserved, Settled, grown, headers_of
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
        self._serving: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Around all that answers one request: `finish` waits for it."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            yield
        finally:
            self._serving.discard(task)

    def stop(self) -> None:
        """What is cancelled from now on was not left by its client: the server shuts down."""
        self._stopping = True

    async def finish(self) -> None:
        """Wait for what still answers or is still to be settled."""
        while self._serving or self._closing:
            await asyncio.wait({*self._serving, *self._closing})

    async def answer(self, parsed: Parsed) -> Reply:
        """Raises RefusedError; cancelling it cancels the call."""
        stage, request = parsed, parsed.request
        self.state.metrics.in_flight.inc()  # until it is settled, which is at a stream's end
        try:
            stage = planned = await self._planned(parsed)
            stage, kept = await self._looked_up(planned)
            if kept is None:
                stage = reserved = await self._reserved(stage)
                stage = reserved = await self._narrowed(reserved)
                plan = reserved.decided
                direct = plan.choice == "direct"
                answer = await self.state.caller.call(
                    plan.models, request.body, stream=request.stream, cascade=not direct
                )
        except RefusedError as error:
            settled = await asyncio.shield(
                self._settle(_ended(stage, error.status, error.code, error))
            )
            error.headers.update(headers_of(settled))
            raise
        except asyncio.CancelledError as error:
            # The loop is cancelling this task: the money is settled in one of its own.
            self._settle(_ended(stage, *self._cut(), error))
            raise
        except Exception as error:
            self._settle(_ended(stage, 500, "internal_error", error))
            raise
        if kept is not None:
            answered = grown(Answered, stage, model=kept.model, completion=kept.completion)
        else:
            answered = _answered(reserved, answer)
            if answer.chunks is not None:
                chunks = self._streamed(answered, answer)
                # Up to its first `yield`: a generator that never ran would settle nothing.
                await anext(chunks)
                return Reply(headers_of(answered), chunks=chunks)
        settled = await asyncio.shield(self._settle(answered))
        completion = settled.completion or {}
        if request.stream:
            return Reply(headers_of(settled), chunks=_replayed(completion, request))
        return Reply(headers_of(settled), body=completion)

    async def _planned(self, parsed: Parsed) -> Planned:
        """The models to call, in their order."""
        request, pipeline = parsed.request, self.state.pipeline_of(parsed.arm)
        held = await self.state.sessions.held(request)
        make = functools.partial(pipeline.plan, request, held=held)
        plan = await self._beside(make, parsed, quick=pipeline.is_quick(request))
        return grown(Planned, parsed, plan=plan)

    async def _looked_up(self, planned: Planned) -> tuple[Planned, Kept | None]:
        """The kept answer to the same request, or to one close enough, where that is turned on."""
        cache, semantic, request = self.state.cache, self.state.semantic, planned.request
        plan = planned.decided
        if cache is None:
            return planned, None
        if plan.mask or not request.options.cache:  # what is sensitive is not kept anywhere
            return replace(planned, cache="bypass"), None
        keys = (request, self.state.model_set, plan)
        quick = planned.size < SHORT_BYTES
        key = await self._beside(functools.partial(cache_key, *keys), planned, quick=quick)
        missed = replace(planned, cache="miss", key=key, meant=plan.models[0])
        kept = unpack(key, await cache.get(key))
        if kept is not None:
            return replace(missed, cache="hit"), kept
        if semantic is None:
            return missed, None
        make = functools.partial(semantic_bucket, *keys)
        bucket = await self._beside(make, planned, quick=quick)
        missed = replace(missed, bucket=bucket)
        near = await self.state.in_thread(lambda: semantic.find(bucket, request.text))
        kept = None if near is None else unpack(near, await cache.get(near))
        if near is not None and kept is None:  # its answer has gone since
            semantic.discard(bucket, near)
        return (missed if kept is None else replace(missed, cache="semantic")), kept

    async def _reserved(self, planned: Planned) -> Reserved:
        """The estimate, taken from the budgets."""
        state, request, plan = self.state, planned.request, planned.decided
        config, who = state.config, request.principal
        output = request.output_tokens * request.choices
        usd, weak_usd, strong_usd = (
            state.registry.models[name].estimate(request.prompt_tokens, output)
            for name in (plan.models[0], config.weak, config.strong)
        )
        tokens = request.prompt_tokens + output
        cascade = config.calls.cascade.enabled and plan.choice != "direct"
        if cascade and plan.models[0] == config.weak and config.strong in plan.models:
            usd, tokens = usd + strong_usd, 2 * tokens
        tier = config.tiers.get(who.tier or "")
        reservation = await state.ledger.reserve(
            who, tier, usd=usd, tokens=tokens, weak_usd=weak_usd
        )
        return grown(Reserved, planned, reservation=reservation)

    async def _narrowed(self, reserved: Reserved) -> Reserved:
        """With the plan that a budget leaves: where one runs low, weak models have to do."""
        plan, request = reserved.decided, reserved.request
        assert reserved.reservation is not None
        if reserved.reservation.level == "soft":
            pipeline = self.state.pipeline_of(reserved.arm)
            make = functools.partial(pipeline.narrowed, plan, request)
            plan = await self._beside(make, reserved, quick=False)
        return replace(reserved, plan=plan, called=time.perf_counter())

    async def _streamed(self, answered: Answered, answer: Answer) -> AsyncGenerator[dict[str, Any]]:
        """The upstream's chunks, kept as they pass; however it ends, the request is settled."""
        chunks, assembler = answer.chunks, Assembler()
        assert chunks is not None
        ended: dict[str, Any] = {}
        try:
            yield {}  # for `answer` alone
            async for chunk in chunks:
                assembler.add(chunk)
                yield chunk
            if chunks.error is not None:
                ended = {"status": 502, "error": "stream_broken"}
            ended["completion"] = assembler.completion()
        except (asyncio.CancelledError, GeneratorExit):
            ended = dict(zip(("status", "error"), self._cut(), strict=True))
            raise
        finally:
            await chunks.aclose()
            ended |= {"attempts": answer.attempts, "said": answer.text}
            self._settle(replace(answered, **ended, upstream_s=chunks.waited_s))

    async def _beside(self, work: Callable[[], T], stage: Parsed, *, quick: bool) -> T:
        """`work()` that reads a request: beside the event loop, unless it is quick."""
        return work() if quick else await self.state.in_thread(work, size=stage.size)

    def _cut(self) -> tuple[int, str]:
        return (503, SHUTTING_DOWN) if self._stopping else (CLIENT_LEFT, "client_left")

    def _settle(self, answered: Answered) -> asyncio.Task[Settled]:
        """In a task of its own, once: a client that leaves meanwhile cancels nothing."""
        self.state.metrics.in_flight.dec()
        return self._start(self._settled(answered))

    async def _settled(self, answered: Answered) -> Settled:
        settled = await settle(self.state, answered)
        self._start(record(self.state, settled))  # with nobody waiting for it
        return settled

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


def _ended(stage: Parsed, status: int, code: str, error: BaseException) -> Answered:
    """The end of a request that no model answered."""
    called = stage.called if isinstance(stage, Reserved) else None
    upstream_s = 0.0 if called is None else time.perf_counter() - called
    attempts = tuple(getattr(error, "attempts", ()))
    return grown(
        Answered, stage, status=status, error=code, attempts=attempts, upstream_s=upstream_s
    )


def _answered(reserved: Reserved, answer: Answer) -> Answered:
    """What a call came to; of a stream, as far as its first piece."""
    now, called = time.perf_counter(), reserved.called or reserved.started
    found = grown(
        Answered,
        reserved,
        model=answer.model,
        cascade=answer.cascade,
        completion=answer.response,
        upstream_s=now - called,
    )
    if answer.chunks is None:
        return replace(found, attempts=answer.attempts, said=answer.text)
    ttft_s = now - reserved.started
    return replace(found, ttft_s=ttft_s, overhead_s=max(0.0, ttft_s - found.upstream_s))


async def _replayed(
    completion: dict[str, Any], request: ChatRequest
) -> AsyncGenerator[dict[str, Any]]:
    for chunk in replay(completion, wants_usage(request.body)):
        yield chunk

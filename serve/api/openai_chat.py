"""One chat completion from end to end: decide, look in the cache, reserve, call, settle, record.

`Chat.answer` gives a `Reply` (JSON) or a `Stream` (server-sent events). Whatever ends a request
(an answer, a refusal, a client that leaves), its money is settled once and one record is written.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...router.controller import place_of
from ..cache.answers import Assembler, Kept, is_complete, pack, replay, unpack
from ..cache.key import cache_key, semantic_bucket
from ..errors import RefusedError
from ..policy.plan import Plan
from ..records.record import CacheState, Record
from ..request import Asked
from ..spend.cost import Usage, cost_of, usage_of
from ..state import State
from ..upstream.caller import CANCELLED, Answer
from ..upstream.failures import UpstreamError
from ..upstream.request import wants_usage
from .auth import principal as principal_of
from .chat_request import read_body, read_options, read_request
from .request_state import Exchange, headers_of, record_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHORT_BYTES = 4096
CLIENT_LEFT = 499  # as nginx counts it; no client ever sees it
LONGEST = 128_000  # tokens that a model may write at once of which nothing is known
SHUTTING_DOWN = "server_shutting_down"


def shutting_down() -> RefusedError:
    """What a client is told whose answer the server could not wait for."""
    return RefusedError(503, SHUTTING_DOWN, "the server shuts down before the answer was whole")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as one JSON object."""

    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer as chunks, each a `data:` event's JSON. Must be closed where it is not read out."""

    chunks: AsyncIterator[dict[str, Any]]
    headers: dict[str, str]


class Chat:
    """Answers chat completions on the parts that `state` holds. One for a server."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._closing: set[asyncio.Task[None]] = set()
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

    async def answer(self, raw: bytes, headers: Mapping[str, str]) -> Reply | Stream:
        """`headers` have lower-case names. Raises RefusedError; cancelling it cancels the call."""
        started = time.perf_counter()
        state = self._state
        # A short body is read, and a short prompt counted, sooner than a thread is woken.
        size = len(raw)
        short = size < SHORT_BYTES
        body = read_body(raw) if short else await state.in_thread(lambda: read_body(raw), size=size)
        options, tenant = read_options(body.get("metadata"), headers)
        who = principal_of(headers, state.config, tenant=tenant)

        def read() -> Asked:
            return read_request(
                body,
                options,
                who,
                id=uuid.uuid4().hex,
                expected_output=state.config.expected_output_tokens,
                count=state.count_tokens,
                unlimited=state.registry.is_local(body.get("model")),
            )

        asked = read() if short else await state.in_thread(read, size=size)
        exchange = Exchange(started, asked, headers, size)
        state.metrics.in_flight.inc()  # until it is closed, which is a stream's end
        try:
            return await self._answered(exchange)
        except RefusedError as error:
            exchange.status, exchange.error = error.status, error.code
            await self._close(exchange)
            error.headers.update(headers_of(exchange))
            raise
        except asyncio.CancelledError:
            self._cut(exchange)
            # The loop is cancelling this task: the money is settled in one of its own.
            self._close_later(exchange)
            raise
        except Exception:
            exchange.status, exchange.error = 500, "internal_error"
            self._close_later(exchange)
            raise

    async def finish(self) -> None:
        """Wait for what still answers or is still to be settled."""
        while self._serving or self._closing:
            await asyncio.wait({*self._serving, *self._closing})

    async def _answered(self, exchange: Exchange) -> Reply | Stream:
        state, asked = self._state, exchange.asked
        held = await state.sessions.held(asked)
        if state.experiment is not None:
            exchange.arm = state.experiment.arm(asked)
        pipeline = state.pipeline_of(exchange.arm)
        if pipeline.is_quick(asked):  # sooner done than a thread is woken
            plan = pipeline.plan(asked, held=held)
        else:
            size = exchange.size
            plan = await state.in_thread(lambda: pipeline.plan(asked, held=held), size=size)
        exchange.plan = plan
        found = await self._cached(exchange)
        if found is not None:
            return found
        plan = await self._reserve(exchange)
        called = time.perf_counter()
        try:
            answer = await state.caller.call(
                plan.models, asked.body, stream=asked.stream, cascade=plan.choice != "direct"
            )
        except UpstreamError as error:
            exchange.failed = tuple(error.attempts)
            raise
        except asyncio.CancelledError as error:
            exchange.failed = tuple(getattr(error, "attempts", ()))
            raise
        finally:
            exchange.upstream_s = time.perf_counter() - called
        exchange.answer, exchange.model = answer, answer.model
        if answer.chunks is not None:
            exchange.ttft_s = time.perf_counter() - exchange.started
            exchange.overhead_s = max(0.0, exchange.ttft_s - exchange.upstream_s)
            chunks = self._streamed(exchange, answer)
            # Up to its first `yield`: a generator that never ran would not close the exchange.
            await anext(chunks)
            return Stream(chunks, headers_of(exchange))
        exchange.completion = answer.response
        await self._close(exchange)
        return Reply(exchange.completion or {}, headers_of(exchange))

    async def _reserve(self, exchange: Exchange) -> Plan:
        """Take the estimate from the budgets; where one runs low, weak models have to do."""
        state, asked, plan = self._state, exchange.asked, exchange.plan
        assert plan is not None
        who = asked.principal
        tier = state.config.tiers.get(who.tier) if who.tier is not None else None
        output = asked.output_tokens * asked.choices
        usd, weak_usd = (
            state.registry.models[name].estimate(asked.prompt_tokens, output)
            for name in (plan.models[0], state.config.weak)
        )
        tokens = asked.prompt_tokens + output
        cascade = state.config.calls.cascade.enabled and plan.choice != "direct"
        if cascade and plan.models[0] == state.config.weak and state.config.strong in plan.models:
            strong = state.registry.models[state.config.strong]
            usd, tokens = usd + strong.estimate(asked.prompt_tokens, output), 2 * tokens
        exchange.reservation = await state.ledger.reserve(
            who, tier, usd=usd, tokens=tokens, weak_usd=weak_usd
        )
        if exchange.reservation.level == "soft":
            wide = plan
            pipeline = state.pipeline_of(exchange.arm)
            size = exchange.size
            plan = await state.in_thread(lambda: pipeline.narrowed(wide, asked), size=size)
            exchange.plan = plan
        return plan

    async def _cached(self, exchange: Exchange) -> Reply | Stream | None:
        """The kept answer to the same request, or to one close enough, where that is turned on."""
        state, asked, plan = self._state, exchange.asked, exchange.plan
        assert plan is not None
        if state.cache is None:
            return None
        if plan.mask or not asked.options.cache:  # what is sensitive is not kept anywhere
            exchange.cache = "bypass"
            return None
        exchange.cache = "miss"
        exchange.key = await self._hashed(exchange, cache_key)
        exchange.meant = plan.models[0]
        kept = unpack(exchange.key, await state.cache.get(exchange.key))
        kind: CacheState = "hit"
        if kept is None and state.semantic is not None:
            kind, semantic = "semantic", state.semantic
            exchange.bucket = bucket = await self._hashed(exchange, semantic_bucket)
            near = await state.in_thread(lambda: semantic.find(bucket, asked.text))
            if near is not None:
                kept = unpack(near, await state.cache.get(near))
                if kept is None:  # its answer has gone since
                    semantic.discard(bucket, near)
        if kept is None:
            return None
        completion: dict[str, Any] = dict(kept.completion)
        exchange.cache, exchange.model, exchange.completion = kind, kept.model, completion
        await self._close(exchange)
        if not asked.stream:
            return Reply(completion, headers_of(exchange))
        wants = wants_usage(asked.body)

        async def chunks() -> AsyncIterator[dict[str, Any]]:
            for chunk in replay(completion, wants):
                yield chunk

        return Stream(chunks(), headers_of(exchange))

    async def _hashed(self, exchange: Exchange, key: Callable[[Asked, Any, Plan], T]) -> T:
        """A key of the request, whose JSON is written for it."""
        asked, plan, pool, size = (
            exchange.asked,
            exchange.plan,
            self._state.model_set,
            exchange.size,
        )
        assert plan is not None
        if size < SHORT_BYTES:
            return key(asked, pool, plan)
        return await self._state.in_thread(lambda: key(asked, pool, plan), size=size)

    async def _streamed(self, exchange: Exchange, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """The upstream's chunks, kept as they pass; however it ends, the exchange is closed."""
        assert answer.chunks is not None
        assembler = Assembler()
        try:
            yield {}  # for `_answered` alone
            async for chunk in answer.chunks:
                assembler.add(chunk)
                yield chunk
            if answer.chunks.error is not None:
                exchange.status, exchange.error = 502, "stream_broken"
            exchange.completion = assembler.completion()
        except (asyncio.CancelledError, GeneratorExit):
            self._cut(exchange)
            raise
        finally:
            await answer.chunks.aclose()
            exchange.upstream_s = answer.chunks.waited_s
            self._close_later(exchange)

    def _cut(self, exchange: Exchange) -> None:
        if self._stopping:
            exchange.status, exchange.error = 503, SHUTTING_DOWN
        else:
            exchange.status, exchange.error = CLIENT_LEFT, "client_left"

    def _close_later(self, exchange: Exchange) -> asyncio.Task[None] | None:
        """Close it in a task of its own, once: a client that leaves meanwhile cancels nothing."""
        if exchange.closed:
            return None
        exchange.closed = True
        self._state.metrics.in_flight.dec()
        return self._start(self._conclude(exchange))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close(self, exchange: Exchange) -> None:
        task = self._close_later(exchange)
        if task is not None:
            await asyncio.shield(task)

    async def _conclude(self, exchange: Exchange) -> None:
        """Price, settle, keep; then, with nobody waiting for it, record."""
        for step in (self._price, self._settle, self._remember, self._keep):
            try:
                await step(exchange)
            # The answer is there: bookkeeping must not take it away.
            except Exception as error:  # noqa: BLE001
                what = step.__name__.removeprefix("_")
                logger.error("request %s: %s: %s", exchange.asked.id, what, place_of(error))
        exchange.latency_s = time.perf_counter() - exchange.started
        self._start(self._tell(exchange))

    async def _tell(self, exchange: Exchange) -> None:
        """One record: to the database, the metrics and the trace."""
        state = self._state
        try:
            # To be hashed, and with text to be masked, which takes patterns their time.
            if state.config.records.text or exchange.size >= SHORT_BYTES:
                record = await state.in_thread(
                    lambda: record_of(exchange, state), size=exchange.size
                )
            else:
                record = record_of(exchange, state)
            await self._look_at_novelty(exchange, record)
            state.recorder.put(record)
            state.drift_monitor.observe(record)
            state.metrics.observe(record)
            state.tracing.observe(record, exchange.headers)
        except Exception as error:  # noqa: BLE001
            logger.error("request %s: record: %s", exchange.asked.id, place_of(error))

    async def _look_at_novelty(self, exchange: Exchange, record: Record) -> None:
        """Of a sample: another run of the router, when the answer is there already."""
        state, share = self._state, self._state.config.watch.novelty
        if share <= 0 or record.score is None or int(record.id[:8], 16) >= share * 2**32:
            return
        pipeline, asked = state.pipeline_of(exchange.arm), exchange.asked
        record.familiarity = await state.in_thread(lambda: pipeline.familiarity(asked))

    async def _price(self, exchange: Exchange) -> None:
        """Cost of every attempt whose usage is known; of a stream that was cut, by estimate."""
        registry, answer = self._state.registry, exchange.answer
        strong = registry.models[self._state.config.strong]
        if exchange.cache in {"hit", "semantic"} and exchange.completion is not None:
            exchange.usage = usage_of(exchange.completion) or exchange.usage
            exchange.strong_cost = cost_of(strong, exchange.usage)
            exchange.routed_cost = 0.0
            return
        attempts = exchange.failed if answer is None else answer.attempts
        priced: dict[str, float] = {}  # what the latest usage comes to
        for attempt in attempts:
            usage = usage_of(attempt.usage)
            if attempt.error == CANCELLED:  # what it was given will be charged, if nothing else
                usage = Usage(exchange.asked.prompt_tokens, 0, estimated=True)
            if usage is None and answer is not None and attempt is attempts[-1]:
                if attempt.model != answer.model:
                    continue  # it failed after a cascade's weak answer, which was given then
                usage = await self._estimated(exchange, attempt.model, answer.text)
            if usage is not None:
                priced = {attempt.model: cost_of(registry.models[attempt.model], usage)}
                exchange.cost += priced[attempt.model]
                exchange.used_tokens += usage.total_tokens
                exchange.usage = usage
        if answer is None:
            return
        known = priced.get(strong.name)
        exchange.strong_cost = cost_of(strong, exchange.usage) if known is None else known
        routed = None if exchange.plan is None else exchange.plan.routed
        if routed is not None:
            exchange.routed_cost = cost_of(registry.models[routed], exchange.usage)

    async def _estimated(self, exchange: Exchange, model: str, said: str) -> Usage | None:
        """Where the provider did not come to say it: what it will have counted, which is no more
        than the request lets it write."""
        message = {"role": "assistant", "content": said}
        count, asked = self._state.count_tokens, exchange.asked
        written = await self._state.in_thread(lambda: count([message], None)) if said else 0
        most = asked.output_tokens
        if all(asked.body.get(name) is None for name in ("max_tokens", "max_completion_tokens")):
            most = max(most, self._state.registry.models[model].max_output_tokens or LONGEST)
        written = min(written, most * asked.choices)
        return Usage(asked.prompt_tokens, written, estimated=True)

    async def _settle(self, exchange: Exchange) -> None:
        if exchange.reservation is not None:
            ledger = self._state.ledger
            await ledger.settle(exchange.reservation, exchange.cost, exchange.used_tokens)

    async def _remember(self, exchange: Exchange) -> None:
        if exchange.model is not None and exchange.status == 200:
            # In shadow mode a session goes on as if the model that was meant had answered it.
            routed = None if exchange.plan is None else exchange.plan.routed
            model = routed or exchange.model
            await self._state.sessions.remember(exchange.asked, model, exchange.completion)

    async def _keep(self, exchange: Exchange) -> None:
        """Into the cache, where it is a whole answer that was called for."""
        state, asked, completion = self._state, exchange.asked, exchange.completion
        if state.cache is None or exchange.key is None or completion is None:
            return
        if exchange.cache != "miss" or exchange.status != 200 or exchange.model is None:
            return
        # The key stands for the plan's first choice. Another model's answer (a fallback's, or a
        # weak one's that a budget forced) must not be what is found under it later.
        cascaded = exchange.answer is not None and exchange.answer.cascade
        if exchange.model != exchange.meant and not cascaded:
            return
        if not is_complete(completion, asked.choices):
            return
        data = pack(exchange.key, Kept(exchange.model, dict(completion)))
        if data is None:
            return
        await state.cache.set(exchange.key, data, state.config.cache.ttl_s)
        if state.semantic is not None and exchange.bucket is not None:
            semantic, key, bucket = state.semantic, exchange.key, exchange.bucket
            await state.in_thread(lambda: semantic.add(bucket, asked.text, key))


async def until_left(
    work: Awaitable[T], left: Callable[[], Awaitable[None]], stop: Callable[[], None]
) -> T | None:
    """What `work` gives; None where the client left first (`left` returned): then it is cancelled.

    Raises what `work` raises. Where this is cancelled itself, `stop` is called before `work` is.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    except asyncio.CancelledError:
        stop()
        raise
    finally:
        for other in (task, watch):
            other.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)

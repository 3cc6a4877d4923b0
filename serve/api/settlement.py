"""The end of a request: what it cost, its budgets, what is kept of it, and its record."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...router.looking import without_logprobs
from ...router.score_or_fallback import place_of
from ..cache.answers import Kept, is_complete, pack
from ..changed import changed
from ..policy.course import Course
from ..registry import Model
from ..spend.cost import Usage, cost_here, cost_of, usage_of
from ..state import ServerState
from ..upstream.caller import CANCELLED
from ..upstream.failures import Attempt
from .access_log import log_request
from .request_state import Ended, record_of

logger = logging.getLogger(__name__)

SHORT_BYTES = 4096  # a body below it is worked on sooner than a thread is woken
LONGEST = 128_000  # tokens that a model may write at once of which nothing is known

Step = Callable[..., Awaitable[Ended | None]]


async def settle(state: ServerState, ended: Ended) -> Ended:
    """Price, pay, remember, keep. Never raises: bookkeeping must not take an answer away."""
    steps: Sequence[Step] = (_price, _pay, _look, _remember, _keep)
    for step in steps:
        try:
            ended = await step(state, ended) or ended
        except Exception as error:  # noqa: BLE001
            _log(ended, getattr(step, "__name__", "").strip("_"), error)
    return changed(ended, latency_s=time.perf_counter() - ended.started)


async def record(state: ServerState, settled: Ended) -> None:
    """One record: to the database, the metrics and the trace. Never raises."""
    try:
        # To be hashed, and with text to be masked, which takes patterns their time.
        if state.config.records.text or settled.size >= SHORT_BYTES:
            made = await state.in_thread(lambda: record_of(settled, state), size=settled.size)
        else:
            made = record_of(settled, state)
        share = state.config.watch.novelty
        if share > 0 and made.score is not None and int(made.id[:8], 16) < share * 2**32:
            # Of a sample: another run of the router, when the answer is there already.
            pipeline = state.pipeline_of(settled.arm)
            made.familiarity = await state.in_thread(lambda: pipeline.familiarity(settled.request))
        state.recorder.put(made)
        state.drift_monitor.observe(made)
        state.metrics.observe(made)
        state.tracing.observe(made, settled.headers)
        if state.config.server.access_log:
            log_request(made, settled.request.body)
    except Exception as error:  # noqa: BLE001
        _log(settled, "record", error)


async def _price(state: ServerState, ended: Ended) -> Ended:
    """Cost of every attempt whose usage is known; of a stream that was cut, by estimate."""
    models = state.registry
    strong, plan = models[state.config.strong], ended.plan
    routed = None if plan is None else plan.routed
    if ended.cache in {"hit", "semantic"} and ended.completion is not None:
        usage, kept = usage_of(ended.completion) or Usage(0, 0), None if routed is None else 0.0
        would = await _cost(state, strong, _as_long_as(ended, strong.name, usage))
        return changed(ended, usage=usage, cost=0.0, strong_cost=would, routed_cost=kept)
    usage, used_tokens, cost = Usage(0, 0), 0, 0.0
    priced: dict[str, float] = {}  # what the latest usage comes to
    for attempt in ended.attempts:
        found = await _usage(state, ended, attempt)
        if found is not None:
            usage, priced = found, {attempt.model: await _cost(state, models[attempt.model], found)}
            cost += priced[attempt.model]
            used_tokens += found.total_tokens
    spent: dict[str, Any] = {"usage": usage, "used_tokens": used_tokens, "cost": cost}
    if ended.model is None:
        return changed(ended, **spent)
    asked, now = ended.request, time.time()
    always = usage
    if asked.is_agents and routed is None:  # in shadow mode it did answer always
        always = state.pipeline.switching.always_strong(ended.held, asked, ended.model, usage, now)
    always = _as_long_as(ended, strong.name, always)
    known = priced.get(strong.name) if always is usage else None
    strong_cost = await _cost(state, strong, always) if known is None else known
    routed_cost = None
    if routed is not None:
        routed_cost = await _cost(state, models[routed], _as_long_as(ended, routed, usage))
    return changed(ended, **spent, strong_cost=strong_cost, routed_cost=routed_cost)


def _as_long_as(ended: Ended, model: str, usage: Usage) -> Usage:
    """What was counted, with an answer as long as that of `model` is expected to have been."""
    request = ended.request
    times = request.lengths.ratio(model, ended.model or model)
    if times == 1:
        return usage
    tokens = round(usage.completion_tokens * times)
    if request.sets_maximum:
        tokens = min(tokens, max(request.output_tokens * request.choices, usage.completion_tokens))
    raw = None
    if usage.raw is not None:
        raw = {name: v for name, v in usage.raw.items() if name != "completion_tokens_details"}
        raw |= {"completion_tokens": tokens, "total_tokens": usage.prompt_tokens + tokens}
    return changed(usage, completion_tokens=tokens, reasoning_tokens=0, raw=raw)


async def _cost(state: ServerState, model: Model, usage: Usage) -> float:
    cost = cost_here(model, usage)
    return cost if cost is not None else await state.in_thread(partial(cost_of, model, usage))


async def _usage(state: ServerState, ended: Ended, attempt: Attempt) -> Usage | None:
    """What an attempt used. Where the provider did not come to say it: what it will have counted,
    which is no more than the request lets it write."""
    request = ended.request
    if attempt.error == CANCELLED:  # what it was given will be charged, if nothing else
        return Usage(request.prompt_tokens, 0, estimated=True)
    usage = usage_of(attempt.usage)
    last = attempt is ended.attempts[-1]
    # The last one may have failed after a weak answer that would not do, which was given then.
    if usage is not None or not last or attempt.model != ended.model:
        return usage
    written = 0
    if ended.said:
        message = {"role": "assistant", "content": ended.said}
        written = await state.in_thread(lambda: state.count_tokens([message], None))
    most = request.output_tokens
    if not request.sets_maximum:
        most = max(most, state.registry[attempt.model].max_output_tokens or LONGEST)
    return Usage(request.prompt_tokens, min(written, most * request.choices), estimated=True)


async def _pay(state: ServerState, settled: Ended) -> None:
    if settled.reservation is not None:
        await state.ledger.settle(settled.reservation, settled.cost or 0.0, settled.used_tokens)


async def _remember(state: ServerState, settled: Ended) -> None:
    if settled.model is not None and settled.status == 200:
        # In shadow mode a session goes on as if the model that was meant had answered it.
        model, asked = settled.decided.routed or settled.model, settled.request
        course = Course(model)
        if settled.cache in {"hit", "semantic"}:  # no model was asked
            course = settled.held or course
        elif asked.is_agents or asked.body.get("tools"):
            switching = state.pipeline.switching
            course = switching.after(settled.held, asked, model, settled.usage, time.time())
        await state.sessions.remember(asked, course, settled.completion)


async def _keep(state: ServerState, settled: Ended) -> None:
    """Into the cache, where it is a whole answer that was called for."""
    key, model, completion = settled.cache_key, settled.model, settled.completion
    if state.cache is None or key is None or model is None or completion is None:
        return
    # The key stands for the plan's first choice. Another model's answer (a fallback's, or a weak
    # one's that a budget forced) must not be what is found under it later.
    own = model == settled.meant or settled.looked is not None
    called_for = own and settled.cache == "miss" and settled.status == 200
    if not called_for or not is_complete(completion, settled.request.choices):
        return
    data = pack(key, Kept(model, dict(completion)))
    if data is None:
        return
    await state.cache.set(key, data, state.config.cache.ttl_s)
    semantic, bucket, text = state.semantic, settled.bucket, settled.request.text
    if semantic is not None and bucket is not None:
        await state.in_thread(lambda: semantic.add(bucket, text, key))


async def _look(state: ServerState, settled: Ended) -> Ended | None:
    """What the look would have said of a stream that had begun (`stream_first`)."""
    plan, completion = settled.plan, settled.completion
    if plan is None or not plan.looks or settled.looked is not None or completion is None:
        return None
    if settled.cache in {"hit", "semantic"} or settled.model != plan.models[0]:
        return None
    look, body = state.caller.look, settled.request.body
    seen = await state.in_thread(lambda: look(completion, body, plan.score))
    without_logprobs(completion, body)
    return None if seen is None else changed(settled, looked=replace(seen, escalated=False))


def _log(settled: Ended, what: str, error: Exception) -> None:
    logger.error("request %s: %s: %s", settled.request.id, what, place_of(error))

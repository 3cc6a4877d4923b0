"""A cascade: the weak model first, the strong one where its answer comes late or will not do.

Both are charged. The weak answer is judged whole, so that a client that streams gets it in one go.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..cache.answers import replay
from ..config.settings import CascadeSettings
from .answer import Answer
from .checks import failed, is_slow
from .failures import Attempt, UpstreamError
from .stream import Replay
from .wire import wants_usage

logger = logging.getLogger(__name__)


class Ask(Protocol):
    """Asks models in their order: the caller's own way."""

    async def __call__(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        attempts: Sequence[Attempt] = (),
        within_s: float | None = None,
    ) -> Answer:
        """As `Caller.call`; `attempts` were made before, `within_s` bounds it all."""
        ...


async def cascade(
    ask: Ask,
    settings: CascadeSettings,
    models: Sequence[str],
    strong: str,
    body: Mapping[str, Any],
    *,
    stream: bool,
) -> Answer:
    """models: the weak one, then those to ask after it; `strong` of them is asked first.

    Where the weak answer fails a check and no other model answers, it is given all the same: it is
    what the client would have had without a cascade. Raises UpstreamError.
    """
    weak, others = models[0], [strong, *(name for name in models[1:] if name != strong)]
    rejected: dict[str, Any] | None = None
    made: tuple[Attempt, ...]
    try:
        answer = await ask([weak], body, stream=False, within_s=settings.timeout_s)
    except UpstreamError as error:
        if error.final:
            raise
        made = error.attempts
    else:
        completion = answer.response or {}
        why = await _judged(completion, body, settings)
        if why is None:
            return _as_asked(answer.model, completion, answer.attempts, body, stream=stream)
        logger.info("cascade: the answer of %r fails the check %r", weak, why)
        rejected = completion
        last = answer.attempts[-1]
        told = Attempt(last.model, last.status, f"rejected: {why}", last.seconds, last.usage)
        made = (*answer.attempts[:-1], told)
    try:
        answer = await ask(others, body, stream=stream, attempts=made)
    except UpstreamError as error:
        if rejected is None:
            raise
        return _as_asked(weak, rejected, error.attempts, body, stream=stream)
    answer.cascade = True
    return answer


async def _judged(
    completion: Mapping[str, Any], body: Mapping[str, Any], settings: CascadeSettings
) -> str | None:
    if is_slow(body, settings.checks):
        return await asyncio.to_thread(failed, completion, body, settings.checks)
    return failed(completion, body, settings.checks)


def _as_asked(
    model: str,
    completion: dict[str, Any],
    attempts: tuple[Attempt, ...],
    body: Mapping[str, Any],
    *,
    stream: bool,
) -> Answer:
    """A whole answer, as a stream where the client wants one."""
    if not stream:
        return Answer(model, response=completion, cascade=True, made=attempts)
    waited = sum(attempt.seconds for attempt in attempts)
    chunks = Replay(replay(completion, wants_usage(body)), completion.get("usage"), waited)
    return Answer(model, chunks=chunks, cascade=True, made=attempts)

"""A cascade: the weak model first, the strong one where its answer comes late or will not do.

Both are charged. The weak answer is judged whole, so that a client that streams gets it in one go.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from ..cache.answers import replay
from ..config.settings import CascadeSettings
from .answer import Answer, Replay
from .checks import failed
from .failures import UpstreamError
from .request import wants_usage

logger = logging.getLogger(__name__)


# Asks models in their order, as `Caller.call`; `attempts` were made before, `within_s` bounds it.
Ask = Callable[..., Awaitable[Answer]]


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
    rejected: Answer | None = None
    try:
        answer = await ask([weak], body, stream=False, within_s=settings.timeout_s or inf)
    except UpstreamError as error:
        if error.final:
            raise
        made = error.attempts
    else:
        # A schema may take its time.
        why = await asyncio.to_thread(failed, answer.response or {}, body, settings.checks)
        if why is None:
            return _as_asked(answer, body, stream=stream)
        logger.info("cascade: the answer of %r fails the check %r", weak, why)
        rejected = answer
        made = (*answer.made[:-1], replace(answer.made[-1], error=f"rejected: {why}"))
    try:
        answer = await ask(others, body, stream=stream, attempts=made)
    except UpstreamError as error:
        if rejected is None:
            raise
        return _as_asked(replace(rejected, made=error.attempts), body, stream=stream)
    return replace(answer, cascade=True)


def _as_asked(answer: Answer, body: Mapping[str, Any], *, stream: bool) -> Answer:
    """A whole answer, as a stream where the client wants one."""
    if not stream:
        return replace(answer, cascade=True)
    waited = sum(attempt.seconds for attempt in answer.made)
    chunks = Replay(replay(answer.response or {}, wants_usage(body)), waited)
    return Answer(answer.model, chunks=chunks, cascade=True, made=answer.made)

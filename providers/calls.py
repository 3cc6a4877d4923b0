"""One call of one model: bounded, timed, and what its failure means; the wait before the next."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from .error_meaning import CallError, meaning_of
from .http_answer import WATCHED, HttpAnswer, install


@contextlib.asynccontextmanager
async def judged(answer: HttpAnswer, timeout_s: float) -> AsyncIterator[HttpAnswer]:
    """Within it one call is made, whose HTTP answer is told and bounded as `answer`.

    Whatever goes wrong, also that it takes longer than `timeout_s`, is raised as CallError.
    """
    install()
    token = WATCHED.set(answer)
    try:
        async with asyncio.timeout(timeout_s):
            yield answer
    except Exception as error:
        raise meaning_of(error, answer) from error
    finally:
        WATCHED.reset(token)


def pause_s(failure: CallError, turn: int, first_s: float) -> float:
    """Seconds before a model is tried again after its `turn`-th failure, counted from 0: what the
    provider asks for, at least some of `first_s`, which doubles at each turn."""
    backoff = first_s * float(2**turn) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return max(failure.retry_after_s or 0.0, backoff)

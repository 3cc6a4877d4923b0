"""One call of one model: bounded, timed, and what its failure means; the wait before the next."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

from .error_meaning import CallError, meaning_of, own_words
from .http_answer import WATCHED, HttpAnswer, install
from .redaction import environment_secrets, redact, secrets_of


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


def told(failure: CallError, params: Mapping[str, Any]) -> str:
    """The failure in one line, without the keys that a provider may quote."""
    words = " ".join(own_words(failure.__cause__ or failure).split())
    words = redact(words, environment_secrets() | secrets_of(params))[:300]
    name = f"{failure.name} {failure.status}" if failure.status else failure.name
    return f"{name}: {words}" if words else name

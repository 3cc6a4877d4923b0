"""Processes that work for this one and end with it; work is handed out and taken back in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ...errors import ThriftrouteError

Kept = TypeVar("Kept")
Result = TypeVar("Result")

# Pieces of work that wait for each process, so that none waits for the one that hands them out.
AHEAD = 2


class ScalingError(ThriftrouteError):
    """A worker died. What is done is kept; the same run goes on from there."""


def begin() -> None:
    """What a pool's process does first: Ctrl-C is for the process that started it, and it ends with
    that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def in_order(
    do: Callable[..., Result], jobs: Iterable[tuple[Kept, tuple[Any, ...]]], workers: int
) -> Generator[tuple[Kept, Result]]:
    """`do(*arguments)` for each of (what is kept here, arguments), in the order of the jobs.

    Raises what `do` raises, ScalingError.
    """
    if workers == 1:
        yield from ((kept, do(*arguments)) for kept, arguments in jobs)
        return
    waiting: deque[tuple[Kept, Future[Result]]] = deque()
    # Not forked: threads and locks of this process would not survive it.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=begin)
    try:
        for job, arguments in jobs:
            waiting.append((job, pool.submit(do, *arguments)))
            if len(waiting) > workers * AHEAD:
                kept, future = waiting.popleft()
                yield kept, future.result()
        for kept, future in waiting:
            yield kept, future.result()
    except BrokenProcessPool as error:
        raise ScalingError(
            "a worker process died (out of memory?); what is done is kept: the same command goes "
            "on from there, with fewer workers if memory is short"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)

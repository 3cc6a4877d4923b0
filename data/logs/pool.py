"""Processes that work for this one and end with it; work is handed out and taken back in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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

    def __init__(self) -> None:
        super().__init__(
            "a worker process died (out of memory?); what is done is kept: the same command goes "
            "on from there, with fewer workers if memory is short"
        )


def begin() -> None:
    """What a pool's process does first: Ctrl-C is for the process that started it, and it ends with
    that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def in_order(
    do: Callable[..., Result],
    jobs: Iterable[tuple[Kept, tuple[Any, ...], bool]],
    workers: int,
) -> Generator[tuple[Kept, Result]]:
    """`do(*arguments)` for each of (what is kept here, arguments, whether it can be sent away).

    Results come in the order of the jobs. What cannot be sent is done here, when all before it is
    taken: it may depend on that. With one worker all is. Raises what `do` raises, ScalingError.
    """
    if workers == 1:
        yield from ((kept, do(*arguments)) for kept, arguments, _ in jobs)
        return
    waiting: deque[tuple[Kept, Future[Result]]] = deque()

    def taken(most: int) -> Iterator[tuple[Kept, Result]]:
        while len(waiting) > most:
            kept, future = waiting.popleft()
            yield kept, future.result()

    # Not forked: threads and locks of this process would not survive it.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=begin)
    try:
        for kept, arguments, can_be_sent in jobs:
            if can_be_sent:
                waiting.append((kept, pool.submit(do, *arguments)))
                yield from taken(workers * AHEAD)
            else:
                yield from taken(0)
                yield kept, do(*arguments)
        yield from taken(0)
    except BrokenProcessPool as error:
        raise ScalingError from error
    finally:
        pool.shutdown(cancel_futures=True)

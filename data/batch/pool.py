"""Chunks on several processes of this machine."""

import multiprocessing
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ...errors import ConfigError, ThriftrouteError
from ..logs.pool import AHEAD, ScalingError, begin
from .chunks import Chunk
from .folder import Done
from .worker import Job, StoppedError, Worker

# What a process of a pool keeps between calls has no other place. Text: why there is no worker.
_worker: Worker | str = "not begun"


def _begin(job: Job, stop: Any) -> None:
    global _worker  # noqa: PLW0603
    begin()
    try:
        _worker = Worker(job, stop.is_set)
    except ThriftrouteError as error:
        # An error here would break the pool and tell the caller nothing.
        _worker = str(error)


def _do(chunk: Chunk) -> Done | None:
    if isinstance(_worker, str):
        raise ConfigError(_worker)
    try:
        return _worker.do(chunk)
    except StoppedError:
        return None


def done_by_pool(job: Job, chunks: Sequence[Chunk], workers: int) -> Generator[Done]:
    """Chunks as `workers` processes finish them, in no order.

    Where the caller stops early, the processes are gone when this generator is closed. Raises
    DataError, ScalingError, ConfigError (the bundle does not load).
    """
    # Not forked: onnxruntime's threads and locks would not survive it.
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    todo = iter(chunks)
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)), mp_context=spawn, initializer=_begin, initargs=(job, stop)
    )
    try:
        running: set[Future[Done | None]] = set()
        for chunk in todo:
            running.add(pool.submit(_do, chunk))
            if len(running) < workers * AHEAD:
                continue
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (done for f in ready if (done := f.result()) is not None)
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (done for f in ready if (done := f.result()) is not None)
    except BrokenProcessPool as error:
        raise ScalingError from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)

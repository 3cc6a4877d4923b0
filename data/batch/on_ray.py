"""The same chunks on Ray Data: past one machine, or beside other work of a cluster.

Every node must see the inputs and the work folder under the same paths (a shared file system), and
have thriftroute installed. What travels is chunks' places and counts: the rows go from file to file
in the worker that scores them, as they do without Ray. Ray starts a worker that died anew and
repeats its chunk; a chunk may be done twice, with the same result.
"""

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ...errors import ConfigError, DataError, ThriftrouteError, require_extra
from .chunks import Chunk
from .folder import Done
from .worker import Job, Worker

LOCAL = "local"
# Ray's smallest store is 75 MB, its default a third of the machine's memory; we need none of it.
_STORE_BYTES = 100 << 20


class RayWorker:
    """What Ray Data makes once in each process and calls with one chunk after the other."""

    def __init__(self, job: Job) -> None:
        # Errors are handed on as values: Ray would wrap them in its own.
        self._failed = ""
        try:
            self._worker = Worker(job)
        except ThriftrouteError as error:
            self._failed = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """What was done of {"chunk": ...}, or what went wrong."""
        if self._failed:
            return {"done": None, "bad": None, "failed": self._failed}
        try:
            done = self._worker.do(Chunk(**row["chunk"]))
        except DataError as error:
            where = {"path": error.path, "line": error.line, "field": error.field}
            return {"done": None, "bad": {"problem": error.problem, **where}, "failed": ""}
        return {
            "done": {**asdict(done), "problems": list(done.problems)},
            "bad": None,
            "failed": "",
        }


def done_by_ray(
    job: Job, chunks: Sequence[Chunk], *, workers: int, address: str
) -> Generator[Done]:
    """Chunks as Ray finishes them, in no order, on `workers` actors of one core each.

    address: of a cluster ("auto", "ray://host:10001", "host:6379"), or "local" to start one with
    as many cores on this machine, which ends with the run. A Ray that this process is connected to
    is used as it is. Raises DataError, MissingExtraError, ConfigError (no such
    cluster, or the bundle does not load there).
    """
    require_extra("ray.data", "ray")
    ray: Any = require_extra("ray", "ray")

    with _connected(ray, workers, address):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        items = [{"chunk": asdict(chunk)} for chunk in chunks]
        # A block each: a block is what Ray hands out.
        found = ray.data.from_items(items, override_num_blocks=len(items)).map(
            RayWorker,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=1,
        )
        for row in found.iter_rows():
            if row["failed"]:
                raise ConfigError(row["failed"])
            if row["bad"] is not None:
                bad = row["bad"]
                raise DataError(
                    bad["problem"], path=bad["path"], line=bad["line"], field=bad["field"]
                )
            done = row["done"]
            yield Done(**{**done, "problems": tuple(done["problems"])})


@contextlib.contextmanager
def _connected(ray: Any, workers: int, address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Ray tells of what was chosen here, such as that it shows no progress of its own.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray at {address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()

"""The same chunks on Ray Data: past one machine, or beside other work of a cluster.

What travels is chunks' places and counts: the rows go from file to file in the worker that scores
them, on a file system that all see. A chunk may be done twice, with the same result.
"""

import contextlib
import json
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, ThriftrouteError, require_extra
from .chunks import Chunk
from .scoring import ChunkDone, ChunkScorer, RowScorer
from .settings import ScoreSettings

# Ray's smallest store is 75 MB, its default a third of the machine's memory; we need none of it.
_STORE_BYTES = 100 << 20


class RayWorker:
    """What Ray Data makes once in each process and calls with one chunk after the other. Errors
    are handed on as values: Ray would wrap them in its own."""

    def __init__(self, settings: ScoreSettings, folder: Path) -> None:
        self._failed = ""
        try:
            self._scorer = ChunkScorer(RowScorer.of(settings), settings, folder)
        except ThriftrouteError as error:
            self._failed = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """What was done of {"chunk": ...}, or what went wrong, as JSON."""
        if self._failed:
            return {"failed": self._failed}
        try:
            return {"done": json.dumps(asdict(self._scorer.do(Chunk(**row["chunk"]))))}
        except DataError as error:
            return {"bad": json.dumps([error.problem, error.path, error.line, error.field])}


def done_by_ray(
    settings: ScoreSettings, folder: Path, chunks: Sequence[Chunk]
) -> Generator[ChunkDone]:
    """Chunks as Ray finishes them, in no order, on actors of one core each.

    `settings.ray`: the address of a cluster, "auto", or "local" for one that ends with the run. A
    Ray that this process is connected to is used as it is. Raises DataError, MissingExtraError,
    ConfigError (no such cluster, or the bundle does not load there).
    """
    require_extra("ray.data", "ray")
    ray: Any = require_extra("ray", "ray")
    with _connected(ray, settings):
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"chunk": asdict(chunk)} for chunk in chunks]
        # A block each: a block is what Ray hands out.
        found = ray.data.from_items(items, override_num_blocks=len(items)).map(
            RayWorker,
            fn_constructor_args=(settings, folder),
            compute=ray.data.ActorPoolStrategy(size=min(settings.workers, len(items))),
            num_cpus=1,
        )
        for row in found.iter_rows():
            if row.get("failed"):
                raise ConfigError(row["failed"])
            if row.get("bad"):
                problem, path, line, field = json.loads(row["bad"])
                raise DataError(problem, path=path, line=line, field=field)
            yield ChunkDone(**json.loads(row["done"]))


@contextlib.contextmanager
def _connected(ray: Any, settings: ScoreSettings) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Ray tells of what was chosen here, such as that it shows no progress of its own.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.ray == "local":
        own = {"num_cpus": settings.workers, "object_store_memory": _STORE_BYTES}
        options |= {**own, "include_dashboard": False}
    try:
        ray.init(address=settings.ray, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray at {settings.ray!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()

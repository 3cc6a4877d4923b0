"""Labelled prompts as the audit and the guarantee take them: rewards, costs, sampling weights."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...data.readers import read_rows
from ...data.schema import Row
from ...data.sketch import seen
from ...data.tables import pair_table
from ...errors import ConfigError
from ...router.routers import BundleRouter, Router
from ..benchmarks import Benchmark, from_table
from ..metrics import Floats

if TYPE_CHECKING:
    from ..command import Target

# Rewards lie in [0, 1] in every file that `data.readers` reads; grades of this one do not.
GRADES = {"mt-bench": (1.0, 10.0)}


@dataclass(frozen=True, eq=False)
class Labels:
    """n labelled prompts. `weights` float64[n]: sampling weights, None where all are equal.
    `bounds`: no reward, seen or not, lies outside. `tasks`: the category of each prompt, None where
    the rows name fewer than two."""

    benchmark: Benchmark
    weights: Floats | None
    bounds: tuple[float, float]
    tasks: list[str] | None = None


def read_labels(target: "Target") -> Labels:
    """The one labelled set that `target` names, a benchmark or a file, which is read once.

    A prompt's weight is the mean of its rows' `weight`; how many rows it has does not count, as in
    `eval`. Raises ConfigError for no set or several, and what the readers raise.
    """
    if target.data is None or target.benchmarks or not (target.strong and target.weak):
        found = target.load()
        if len(found) != 1:
            raise ConfigError(f"calibrate on one set of prompts, not on {len(found)}")
        return Labels(found[0], None, GRADES.get(found[0].name, (0.0, 1.0)))
    told: dict[str, list[float]] = {}

    def noted(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            told.setdefault(row.prompt, []).append(row.weight)
            yield row

    table = pair_table(noted(read_rows(target.data)), target.strong, target.weak)
    weights = np.array([sum(told[prompt]) / len(told[prompt]) for prompt in table.prompts])
    equal = bool(np.ptp(weights) <= 1e-12 * weights.max())
    tasks = [category or "(none)" for category in table.category]
    several = len(set(filter(None, table.category))) >= 2
    benchmark = from_table(table, Path(target.data).stem)
    return Labels(benchmark, None if equal else weights, (0.0, 1.0), tasks if several else None)


def learned_from(router: Router, data: str | None, prompts: Sequence[str]) -> str | None:
    """What the router's bundle knows of being trained on these prompts; None where nothing.

    By the sketch of its prompts, or by the name of a file, where no sketch of all of them says
    that they are others.
    """
    if not isinstance(router, BundleRouter):
        return None
    training = router.scorer.bundle.manifest.training
    kept = training.get("sketch")
    if isinstance(kept, str) and kept:
        found = seen(kept.split(), prompts)
        if found.known:
            about = "" if found.whole else "about "
            return f"the router has learned from {about}{found.share:.0%} of these prompts"
        if found.whole:
            return None
    names = {Path(str(source)).name for source in training.get("data", {})}
    if data is None or Path(data).name not in names:
        return None
    return f"the router has learned from a file called {Path(data).name}"

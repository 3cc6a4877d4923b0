"""What traffic is compared with: scores of a bundle's table or of a saved file."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError, ConfigError, DataError, ThriftrouteError
from ...files import whole_file
from ...router.threshold import ThresholdTable, check_scores, share_table, validate_threshold

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FORMAT = 1
KIND = "thriftroute-baseline"
MOST = 20_000  # scores that a saved baseline holds
LEAST = 50  # below that many nothing could be told
_GRID = 1024  # cells of a baseline that holds its scores
UNFAMILIAR = 0.5  # a prompt is new to the router where its familiarity is below this


@dataclass(frozen=True)
class RunningMean:
    """How often something was so, or what values in [0, 1] add up to: `total` in `n`."""

    total: float = 0.0
    n: int = 0

    @property
    def mean(self) -> float | None:
        """None where nothing was seen."""
        return self.total / self.n if self.n else None

    def plus(self, value: float) -> "RunningMean":
        """With one value more."""
        return RunningMean(self.total + value, self.n + 1)


@dataclass(frozen=True)
class Baseline:
    """Scores as counts by cell: `edges` float64[k], increasing, and `counts` int64[k + 1]; a score
    on an edge belongs to the cell above. `scores`, sorted, are not known of a bundle's table.
    `novel`: prompts that were unfamiliar to the router; `feedback`: what users said of answers."""

    name: str
    edges: Floats
    counts: Ints
    scores: Floats | None = None
    novel: RunningMean = RunningMean()
    feedback: RunningMean = RunningMean()

    @property
    def n(self) -> int:
        """Number of scores."""
        return int(self.counts.sum())

    @classmethod
    def from_scores(cls, name: str, scores: npt.ArrayLike, **means: RunningMean) -> "Baseline":
        """means: `novel` and `feedback`, where known.

        Raises CalibrationError for scores outside [0, 1] or fewer than 50 of them."""
        found = np.sort(check_scores(scores))
        if found.size < LEAST:
            raise CalibrationError(
                f"a baseline needs at least {LEAST} scores, got {found.size}: record more traffic"
            )
        # Fixed cells, not the scores' own quantiles: those would fit the baseline better than any
        # new score.
        edges = np.arange(1, _GRID) / _GRID
        counts = np.bincount(np.searchsorted(edges, found, side="right"), minlength=_GRID)
        return cls(name, edges, counts, found, **means)

    @classmethod
    def from_table(cls, table: ThresholdTable) -> "Baseline":
        """Of the prompts that a bundle was calibrated on: a cell between each two thresholds.
        Raises CalibrationError where the table has one row, or is of fewer than 50 prompts."""
        if table.n < LEAST or len(table.rows) < 2:
            raise CalibrationError(
                f"table {table.name!r} is of {table.n} prompts and {len(table.rows)} shares: too "
                "few to compare with; `thriftroute watch --save-baseline` makes a baseline of "
                "recorded traffic"
            )
        shares, thresholds = np.array(table.rows, dtype=np.float64).T
        at_least = np.concatenate([[0], np.rint(shares * table.n).astype(np.int64), [table.n]])
        edges, counts = thresholds[::-1], np.diff(at_least)[::-1]
        return cls(table.name, edges, counts)

    def strong(self, threshold: float) -> RunningMean:
        """How many scores reach the threshold; between two edges of a table, linear."""
        limit = validate_threshold(threshold)
        if self.scores is not None:
            reached = self.n - int(np.searchsorted(self.scores, limit, side="left"))
            return RunningMean(reached, self.n)
        ends = np.concatenate([[0.0], self.edges, [1.0]])
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return RunningMean(self.n - float(np.interp(limit, ends, below)), self.n)

    def save(self, path: Path) -> None:
        """Raises CalibrationError for a table's, which is in its bundle already, and OSError."""
        if self.scores is None:
            raise CalibrationError(f"baseline {self.name!r} has no scores of its own to save")
        scores = [round(score, 7) for score in self.scores.tolist()]
        means = {"novel": asdict(self.novel), "feedback": asdict(self.feedback)}
        content = {"kind": KIND, "format": FORMAT, "name": self.name, "scores": scores, **means}
        with whole_file(path) as file:
            file.write(json.dumps(content, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> "Baseline":
        """Raises DataError where the file is missing or no baseline."""
        if not path.exists():
            raise DataError("no such file", path=path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"cannot be read as JSON: {error}", path=path) from error
        if not isinstance(raw, Mapping) or raw.get("kind") != KIND:
            problem = "no baseline; `thriftroute watch --save-baseline FILE` writes one"
            raise DataError(problem, path=path)
        if raw.get("format") != FORMAT:
            problem = f"a baseline of format {raw.get('format')!r}; this version reads {FORMAT}"
            raise DataError(f"{problem}: upgrade thriftroute", path=path)
        means = {key: _mean_from(raw.get(key), key, path) for key in ("novel", "feedback")}
        name = str(raw.get("name", path.name))
        try:
            return cls.from_scores(name, raw.get("scores", []), **means)
        except (ThriftrouteError, TypeError, ValueError, OverflowError) as error:
            raise DataError(str(error), path=path, field="scores") from error


def sampled(scores: Iterable[float], *, seed: int = 0) -> Floats:
    """At most 20,000 of the scores, drawn alike from all of them, in order (Vitter's reservoir)."""
    random = np.random.default_rng(seed)
    kept: list[tuple[int, float]] = []
    for index, score in enumerate(scores):
        if index < MOST:
            kept.append((index, score))
        elif (at := int(random.integers(index + 1))) < MOST:
            kept[at] = (index, score)
    return np.array([score for _, score in sorted(kept)], dtype=np.float64)


def baseline_of(tables: Mapping[str, Any], router: str) -> Baseline:
    """Of a bundle's last table (its own calibration stands after the built-in one).

    tables: `Manifest.thresholds`. Raises ConfigError where there is none that can be used.
    """
    try:
        table = share_table(tables)
        found = None if table is None else Baseline.from_table(table)
    except ThriftrouteError as error:
        raise ConfigError(f"router {router!r}: {error}") from error
    if found is None:
        raise ConfigError(
            f"router {router!r} has no table of thresholds to compare with: give --baseline FILE "
            "(`--save-baseline` makes one of recorded traffic), or write one into the bundle with "
            "`thriftroute calibrate --write`"
        )
    return found


def _mean_from(value: Any, name: str, path: Path) -> RunningMean:
    match value:
        case None:
            return RunningMean()
        case {"total": float() | int() as total, "n": int(n)}:
            if math.isfinite(total) and 0 <= total <= n and not isinstance(n, bool):
                return RunningMean(float(total), n)
    raise DataError("expected {'total': number, 'n': count}, total <= n", path=path, field=name)

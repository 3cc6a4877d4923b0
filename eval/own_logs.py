"""The own-logs protocol: what N labels of a user's own are worth.

    report = own_logs(load("mmlu"), {"general": general, "own": own}, sizes=(100, 300, 1500))

N items are drawn at random from a benchmark as the user's labelled logs; each method is fitted on
them and its APGR measured on the rest; and so again for other draws.

Two intervals, for two questions. `ci` is Student's t interval over the draws: the draws share most
of their test prompts, so it says how the figure varies with the labels that a user happens to
have, and nothing about other prompts or another benchmark. `prompts_ci` adds the prompts. With A_d
the APGR of draw d, s_d^2 its bootstrap variance over the rest's prompts, and S^2 the variance of
the A_d over the D draws, it is

    mean(A_d) +- 1.96 * sqrt(mean(s_d^2) + S^2 / D)

(the law of total variance). Test prompts are shared, so that what is due to them does not average
out over draws: it counts in full, as if the rests were one set. What is due to the labels is taken
as independent from draw to draw, and falls with D. Where N is a large part of n both are rough: the
rests differ more, so that the first term is too large, and the draws share labels, so that the
second is too small. Differences of two methods are paired: the same draws, the same rests, the same
resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.split import prompt_key
from ..errors import EvaluationError
from . import baselines
from .benchmarks import Benchmark
from .bootstrap import resample_counts
from .draws import EQUAL, checked_scores, draw_intervals, resampled_apgr
from .metrics import Floats, Interval, apgr, tradeoff
from .run import json_safe

Ints = npt.NDArray[np.int64]

# Fewer labels than this are no logs to fit or to validate anything on.
MIN_SIZE = 20
GENERAL = "general"
LENGTH = "prompt-length"
# Resamples a draw: only their variance is used, and it is averaged over the draws.
BOOTSTRAPS = 200


@dataclass(frozen=True, eq=False)
class OwnLogs:
    """One draw. `labelled` int64[N] and `rest` int64[m] are indices into the benchmark, without
    a common prompt. `strong`, `weak` float64[N]: rewards of the labelled items alone, the only
    labels that a method may see. `seed` is the draw's own, for the method's randomness."""

    labelled: Ints
    rest: Ints
    strong: Floats
    weak: Floats
    seed: int


# Fits on the labelled items; scores float64[m] of the rest, higher for the strong model.
Method = Callable[[OwnLogs], npt.ArrayLike]


@dataclass(frozen=True, slots=True)
class Difference:
    """APGR of a method minus that of another, draw by draw: `worse` counts the draws below 0."""

    mean: float
    ci: Interval
    prompts_ci: Interval
    worse: int


@dataclass(frozen=True, slots=True)
class OwnLogsRow:
    """One method at one size. `apgr` has an entry for each draw, `sd` is their deviation (n - 1);
    `ci` and `prompts_ci` are explained in the module's docstring; `against` by method's name."""

    method: str
    size: int
    mean: float
    sd: float
    ci: Interval
    prompts_ci: Interval
    low: float
    high: float
    apgr: tuple[float, ...]
    against: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class OwnLogsReport:
    """Rows by size, then method. `tested` is the number of test prompts of each size (of its last
    draw; groups may shift it a little); `against` whom the others are compared with."""

    benchmark: str
    n: int
    strong_model: str
    weak_model: str
    draws: int
    seed: int
    bootstraps: int
    tested: Mapping[int, int]
    against: tuple[str, ...]
    rows: tuple[OwnLogsRow, ...]

    def row(self, method: str, size: int) -> OwnLogsRow:
        """Raises EvaluationError, listing what there is, for another method or size."""
        for row in self.rows:
            if (row.method, row.size) == (method, size):
                return row
        known = ", ".join(sorted({f"{row.method} at {row.size}" for row in self.rows}))
        raise EvaluationError(f"no row {method} at {size}; there are: {known}")

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def own_logs(
    benchmark: Benchmark,
    methods: Mapping[str, Method],
    sizes: Sequence[int],
    draws: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    *,
    against: Sequence[str] = (GENERAL, LENGTH),
    bootstraps: int = BOOTSTRAPS,
) -> OwnLogsReport:
    """Every method on the same draws of each size; prompt length is always among them.

    `methods`: by name; "general" is by convention the router without own labels. `against` names
    the methods that all others are compared with, where they are there. `progress` is called with
    (fits done, fits in all). A draw depends on the seed, its size and its number alone; the same
    prompt, and prompts of one group of the benchmark, never stand on both sides, so that N may be
    missed by less than the size of a group. Whether a draw's labels have one class only is the
    method's to look after.

    Raises EvaluationError for a size below 20 or not below n, fewer than 2 draws, no method or one
    that takes a baseline's name, a benchmark or a rest of it without a gap, and scores that are
    not one finite number for each prompt of the rest.
    """
    wanted = _check_sizes(benchmark, sizes, draws)
    if not methods or LENGTH in methods:
        raise EvaluationError(
            f"own logs: methods are {sorted(methods)}; name at least one, and none {LENGTH!r}, "
            "which is always there"
        )
    if bootstraps < 2:
        raise EvaluationError(f"own logs: {bootstraps} bootstrap resamples; give at least 2")
    lengths = baselines.length_scores(benchmark.prompts)
    every: dict[str, Method] = {**methods, LENGTH: lambda logs: lengths[logs.rest]}
    unit = _units(benchmark)
    rows: list[OwnLogsRow] = []
    tested: dict[int, int] = {}
    done, total = 0, len(wanted) * draws * len(every)
    for size in wanted:
        found: dict[str, list[float]] = {name: [] for name in every}
        samples: dict[str, list[Floats]] = {name: [] for name in every}
        for draw in range(draws):
            logs = draw_logs(benchmark, size, draw, seed, unit=unit)
            tested[size] = len(logs.rest)
            where = f"own logs of {size} from {benchmark.name}, draw {draw}"
            gain = _gain(benchmark, logs, where)
            scores = {}
            for name, method in every.items():
                scores[name] = checked_scores(method(logs), len(logs.rest), f"{where}: {name}")
                done += 1
                if progress:
                    progress(done, total)
            for name, values in scores.items():
                found[name].append(
                    apgr(values, benchmark.strong[logs.rest], benchmark.weak[logs.rest])
                )
            groups = None if benchmark.groups is None else benchmark.groups[logs.rest]
            chunks = resample_counts(gain.size, bootstraps, seed=logs.seed, groups=groups)
            parts = [
                {name: resampled_apgr(values, gain, counts) for name, values in scores.items()}
                for counts in chunks
            ]
            for name in every:
                samples[name].append(np.concatenate([part[name] for part in parts]))
        rows += [_row(name, size, found, samples, against) for name in every]
    return OwnLogsReport(
        benchmark=benchmark.name,
        n=benchmark.n,
        strong_model=benchmark.strong_model,
        weak_model=benchmark.weak_model,
        draws=draws,
        seed=seed,
        bootstraps=bootstraps,
        tested=tested,
        against=tuple(name for name in against if name in every),
        rows=tuple(rows),
    )


def draw_logs(
    benchmark: Benchmark, size: int, draw: int, seed: int = 0, *, unit: Ints | None = None
) -> OwnLogs:
    """Draw number `draw` of `size` items: what `own_logs` gives its methods.

    `unit` int64[n], rows that must stay together, saves working it out again. Raises
    EvaluationError where whole groups leave fewer than 20 items.
    """
    unit = _units(benchmark) if unit is None else unit
    rng = np.random.default_rng((seed, size, draw))
    sizes = np.bincount(unit)
    room, taken = size, np.zeros(len(sizes), np.bool_)
    for u in rng.permutation(len(sizes)):
        if sizes[u] <= room:
            taken[u] = True
            room -= int(sizes[u])
        if not room:
            break
    mask = taken[unit]
    if mask.sum() < MIN_SIZE:
        raise EvaluationError(
            f"own logs: {size} items of {benchmark.name} come to {int(mask.sum())} in whole groups "
            f"(the largest has {int(sizes.max())} rows), fewer than {MIN_SIZE}; give a larger size"
        )
    # In random order, so that a method's folds need not shuffle.
    labelled = rng.permutation(np.flatnonzero(mask)).astype(np.int64)
    return OwnLogs(
        labelled=labelled,
        rest=np.flatnonzero(~mask).astype(np.int64),
        strong=benchmark.strong[labelled],
        weak=benchmark.weak[labelled],
        seed=int(rng.integers(2**31)),
    )


def embedding_methods(embeddings: npt.NDArray[np.floating]) -> dict[str, Method]:
    """The baselines that fit on embeddings [n, d] of the whole benchmark: "knn" and "ridge".

    kNN takes the label that its users know, whether strong was better; ridge the gain.
    """

    def knn(logs: OwnLogs) -> Floats:
        labels = (logs.strong > logs.weak).astype(np.float64)
        return baselines.knn_scores(embeddings[logs.rest], embeddings[logs.labelled], labels)

    def ridge(logs: OwnLogs) -> Floats:
        known, gain = embeddings[logs.labelled], logs.strong - logs.weak
        alpha = baselines.ridge_alpha(known, gain)
        return baselines.ridge_scores(embeddings[logs.rest], known, gain, alpha)

    return {"knn": knn, "ridge": ridge}


def _check_sizes(benchmark: Benchmark, sizes: Sequence[int], draws: int) -> list[int]:
    wanted = list(dict.fromkeys(sizes))
    if not wanted or draws < 2:
        raise EvaluationError(
            f"own logs: sizes {wanted}, {draws} draws; give at least one size, and at least 2 draws"
        )
    for size in wanted:
        if size < MIN_SIZE:
            raise EvaluationError(
                f"own logs: {size} labelled items are too few; give at least {MIN_SIZE}"
            )
        if size >= benchmark.n:
            raise EvaluationError(
                f"own logs: {size} of the {benchmark.n} items of {benchmark.name} leave none to "
                "test on; give a smaller size"
            )
    try:
        tradeoff(np.zeros(benchmark.n), benchmark.strong, benchmark.weak)
    except EvaluationError as error:
        raise EvaluationError(
            f"own logs: benchmark {benchmark.name} ({benchmark.strong_model} against "
            f"{benchmark.weak_model}): {error}"
        ) from error
    return wanted


def _units(benchmark: Benchmark) -> Ints:
    """Rows of one number stay on one side: equal prompts, the groups, and chains of both."""
    parent = list(range(benchmark.n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[object, int] = {}
    for i, prompt in enumerate(benchmark.prompts):
        keys: list[object] = [prompt_key(prompt)]
        if benchmark.groups is not None:
            keys.append(int(benchmark.groups[i]))
        for key in keys:
            parent[root(i)] = root(first.setdefault(key, i))
    roots = [root(i) for i in range(benchmark.n)]
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _gain(benchmark: Benchmark, logs: OwnLogs, where: str) -> Floats:
    gain: Floats = benchmark.strong[logs.rest] - benchmark.weak[logs.rest]
    try:
        tradeoff(np.zeros(len(gain)), benchmark.strong[logs.rest], benchmark.weak[logs.rest])
    except EvaluationError as error:
        raise EvaluationError(
            f"{where}: the {len(gain)} prompts that are left to test on: {error}; or draw fewer"
        ) from error
    return gain


def _row(
    name: str,
    size: int,
    found: Mapping[str, list[float]],
    samples: Mapping[str, list[Floats]],
    against: Sequence[str],
) -> OwnLogsRow:
    values = np.array(found[name])
    differences = {}
    for other in against:
        if other in found and other != name:
            paired = values - np.array(found[other])
            drawn = [a - b for a, b in zip(samples[name], samples[other], strict=True)]
            ci, prompts_ci = draw_intervals(paired, drawn)
            worse = int(np.sum(paired < -EQUAL))
            differences[other] = Difference(float(paired.mean()), ci, prompts_ci, worse)
    ci, prompts_ci = draw_intervals(values, samples[name])
    return OwnLogsRow(
        method=name,
        size=size,
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)),
        ci=ci,
        prompts_ci=prompts_ci,
        low=float(values.min()),
        high=float(values.max()),
        apgr=tuple(values.tolist()),
        against=differences,
    )

"""The own-logs protocol: what N labels of a user's own are worth.

    report = own_logs(load("mmlu"), {"general": general, "own": own}, sizes=(100, 300, 1500))

N items are drawn at random from a benchmark as the user's labelled logs; each method is fitted on
them and its APGR measured on the rest; and so again for other draws.

`ci` is Student's t interval over the draws, which share most of their test prompts: it says how the
figure varies with the labels that a user happens to have. `prompts_ci` adds the prompts. With A_d
the APGR of draw d, s_d^2 its bootstrap variance over the rest's prompts, and S^2 the variance of
the A_d over the D draws, it is (by the law of total variance)

    mean(A_d) +- 1.96 * sqrt(mean(s_d^2) + S^2 / D)

What is due to the shared prompts counts in full, what is due to the labels falls with D. Where N is
a large part of n both are rough: the first term is too large, since the rests differ more, and the
second too small, since the draws share labels. Differences of two methods are paired: the same
draws, rests and resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.split import prompt_key
from ..errors import EvaluationError
from ..terminal import new_console
from . import baselines
from .benchmarks import Benchmark
from .bootstrap import EQUAL, checked_scores, draw_intervals, resample_counts, resampled_apgr
from .metrics import Floats, Interval, apgr, check_gap
from .printing import difference_text, interval_text, json_safe, line, table

if TYPE_CHECKING:
    from rich.console import Console

Ints = npt.NDArray[np.int64]

# Fewer labels than this are no logs to fit or to validate anything on.
MIN_SIZE = 20
GENERAL = "general"
LENGTH = "prompt-length"
# Resamples a draw: only their variance is used, and it is averaged over the draws.
BOOTSTRAPS = 200
# A terminal of so many columns has room for the range and all differences.
WIDE_FROM = 100


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
class ApgrDifference:
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
    against: Mapping[str, ApgrDifference]


@dataclass(frozen=True, slots=True)
class OwnLogsReport:
    """Rows by size, then method. `tested` is the number of test prompts of each size (of its last
    draw; copies of a prompt may shift it a little); `against` whom the others are compared with."""

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
        """The row of a method at a size. Raises StopIteration for another."""
        return next(row for row in self.rows if (row.method, row.size) == (method, size))

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        value: dict[str, Any] = json_safe(asdict(self))
        return value


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
    (fits done, fits in all). A draw depends on the seed, its size and its number alone. Whether
    its labels have one class only is the method's to look after.

    Raises EvaluationError for settings that make no sense, a benchmark or a rest of it without a
    gap, and scores that are not one finite number for each prompt of the rest.
    """
    wanted = list(dict.fromkeys(sizes))
    least, most = min(wanted, default=MIN_SIZE), max(wanted, default=0)
    for bad, problem in (
        (not wanted or draws < 2, f"sizes {wanted}, {draws} draws; give at least one size, and at "
         "least 2 draws"),
        (least < MIN_SIZE, f"{least} labelled items are too few; give at least {MIN_SIZE}"),
        (most >= benchmark.n, f"{most} of the {benchmark.n} items of {benchmark.name} leave none "
         "to test on; give a smaller size"),
        (not methods or LENGTH in methods, f"methods are {sorted(methods)}; name at least one, "
         f"and none {LENGTH!r}, which is always there"),
        (bootstraps < 2, f"{bootstraps} bootstrap resamples; give at least 2"),
    ):  # fmt: skip
        if bad:
            raise EvaluationError(f"own logs: {problem}")
    check_gap(benchmark.strong, benchmark.weak, f"own logs: {benchmark}")
    lengths = baselines.length_scores(benchmark.prompts)
    every: dict[str, Method] = {**methods, LENGTH: lambda logs: lengths[logs.rest]}
    others = tuple(name for name in against if name in every)
    rows: list[OwnLogsRow] = []
    tested: dict[int, int] = {}
    done, total = 0, len(wanted) * draws * len(every)
    for size in wanted:
        # By method: the APGR of each draw, and its resamples.
        found: dict[str, list[float]] = {name: [] for name in every}
        samples: dict[str, list[Floats]] = {name: [] for name in every}
        for draw in range(draws):
            logs = draw_logs(benchmark, size, draw, seed)
            tested[size] = left = len(logs.rest)
            where = f"own logs of {size} from {benchmark.name}, draw {draw}"
            strong, weak = benchmark.strong[logs.rest], benchmark.weak[logs.rest]
            check_gap(strong, weak, f"{where}: the {left} prompts that are left to test on")
            counts = np.concatenate(list(resample_counts(left, bootstraps, seed=logs.seed)))
            for name, method in every.items():
                scores = checked_scores(method(logs), left, f"{where}: {name}")
                found[name].append(apgr(scores, strong, weak))
                samples[name].append(resampled_apgr(scores, strong - weak, counts))
                done += 1
                if progress:
                    progress(done, total)
        rows += [_row(name, size, found, samples, others) for name in every]
    facts = (benchmark.name, benchmark.n, benchmark.strong_model, benchmark.weak_model)
    return OwnLogsReport(*facts, draws, seed, bootstraps, tested, others, tuple(rows))


def draw_logs(benchmark: Benchmark, size: int, draw: int, seed: int = 0) -> OwnLogs:
    """Draw number `draw` of `size` items: what `own_logs` gives its methods.

    Copies of a prompt stay on one side. Raises EvaluationError where that leaves fewer than 20.
    """
    place: dict[str, int] = {}
    unit = np.array([place.setdefault(prompt_key(p), len(place)) for p in benchmark.prompts])
    sizes = np.bincount(unit)
    rng = np.random.default_rng((seed, size, draw))
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
            f"own logs: {size} items of {benchmark.name} come to {int(mask.sum())} with all copies "
            f"of a prompt (one has {int(sizes.max())}), fewer than {MIN_SIZE}; give a larger size"
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

    def fitted(fit: baselines.FitAndScore, logs: OwnLogs, labels: Floats) -> Floats:
        return fit(embeddings[logs.rest], embeddings[logs.labelled], labels)

    return {
        "knn": lambda o: fitted(baselines.knn_scores, o, (o.strong > o.weak).astype(np.float64)),
        "ridge": lambda o: fitted(baselines.ridge_scores, o, o.strong - o.weak),
    }


def _row(
    name: str,
    size: int,
    found: Mapping[str, list[float]],
    samples: Mapping[str, list[Floats]],
    others: Sequence[str],
) -> OwnLogsRow:
    values = np.array(found[name])
    differences = {}
    for other in others:
        if other != name:
            paired = values - np.array(found[other])
            drawn = [a - b for a, b in zip(samples[name], samples[other], strict=True)]
            worse = int(np.sum(paired < -EQUAL))
            spread = draw_intervals(paired, drawn)
            differences[other] = ApgrDifference(float(paired.mean()), *spread, worse)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    spread = draw_intervals(values, samples[name])
    ends = float(values.min()), float(values.max())
    return OwnLogsRow(name, size, mean, sd, *spread, *ends, tuple(values.tolist()), differences)


def print_own_logs(report: OwnLogsReport, console: "Console | None" = None) -> None:
    """A table a size: methods by falling APGR, and their differences from those they are set
    against; on a narrow terminal from the first of these alone."""
    out = console or new_console()
    wide = out.width >= WIDE_FROM
    others = report.against if wide else report.against[:1]
    columns = ["method", "APGR [95% CI]", "sd", *(["min to max"] if wide else [])]
    for other in others:
        columns += [f"- {other}", "worse"]
    for size, group in groupby(report.rows, key=lambda row: row.size):
        line(
            out,
            f"own logs of {size:,} from {report.benchmark} (n = {report.n:,}): {report.draws} "
            f"draws, tested on the other {report.tested[size]:,}",
            style="bold",
        )
        line(out, f"strong {report.strong_model}, weak {report.weak_model}")
        cells = []
        for row in sorted(group, key=lambda row: -row.mean):
            apgr_text = f"{row.mean:.3f} {interval_text(row.prompts_ci)}"
            range_text = [f"{row.low:.3f} to {row.high:.3f}"] if wide else []
            cells.append([row.method, apgr_text, f"{row.sd:.3f}", *range_text])
            for other in others:
                gain = row.against.get(other)
                told = (
                    (difference_text(gain.mean, gain.prompts_ci), gain.worse) if gain else ("",) * 2
                )
                cells[-1] += map(str, told)
        table(out, columns, cells)
    line(
        out,
        "Intervals: 95%, over draws of labels and over test prompts, "
        f"{report.bootstraps} resamples a draw; the JSON has those over draws alone, too. sd: of "
        "the APGR from draw to draw. Differences are paired; worse: in how many of "
        f"{report.draws} draws it was below 0. Random routing has 0.5. Seed {report.seed}.",
        style="dim",
    )

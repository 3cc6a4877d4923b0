"""A model that the router never saw: how many comparisons of it are enough?

    report = new_model_curve(matrix, [("new-model", "known-model")], fit, sizes=(50,))

Half of the prompts are held out. A fit from 50 of the others is set beside a fit from all of them,
for several draws of the 50, on the same held-out prompts. Intervals are those of `own_logs`, of the
mean over pairs: over draws, and over draws and prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..eval.bootstrap import checked_scores, draw_intervals, resample_counts, resampled_apgr
from ..eval.metrics import Floats, Interval, apgr, tradeoff
from ..eval.own_logs import BOOTSTRAPS
from ..eval.printing import json_safe
from .model_pairs import Ints, ModelMatrix

ALL = "all"


@dataclass(frozen=True, eq=False)
class NewModelLogs:
    """What a fit may see: k comparisons of the new model with one that the router knows.

    `index` int64[k] into the matrix's prompts; `new_score`, `known_score` float64[k].
    """

    new: str
    known: str
    index: Ints
    new_score: Floats
    known_score: Floats
    seed: int


# Fits the new model; what it returns scores prompts, int64[t] into the matrix -> float64[t], higher
# where the new model is the better of the two, whichever of them is the strong one.
Fit = Callable[[NewModelLogs], Callable[[Ints], npt.ArrayLike]]


@dataclass(frozen=True, slots=True)
class NewModelPair:
    """One pair: `apgr` by size ("50", "all"), an entry a draw; "all" is fitted once."""

    new: str
    known: str
    new_is_strong: bool
    n_train: int
    n_test: int
    apgr: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class NewModelPoint:
    """One size, as the mean over pairs and draws. `difference` is from the fit on all."""

    size: str
    mean: float
    ci: Interval
    prompts_ci: Interval
    difference: float
    difference_ci: Interval
    difference_prompts_ci: Interval


@dataclass(frozen=True, slots=True)
class NewModelReport:
    """The curve by size, "all" last, and the pairs that it is made of."""

    data: str
    points: tuple[NewModelPoint, ...]
    pairs: tuple[NewModelPair, ...]
    draws: int
    seed: int
    bootstraps: int

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def new_model_curve(
    matrix: ModelMatrix,
    pairs: Sequence[tuple[str, str]],
    fit: Fit,
    *,
    sizes: Sequence[int] = (50,),
    draws: int = 10,
    data: str = "data",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NewModelReport:
    """APGR of fits from `sizes` comparisons and from all, over pairs of (new, known) models.

    Held-out half and draws are the same for all pairs, by the seed; each pair takes its part of
    those prompts that both of its models answered. Whichever model has the higher mean on the
    held-out prompts is the strong one. `progress` is called with (fits done, fits).

    Raises EvaluationError for a model that the matrix has not, sizes below 2 or beyond what a pair
    has, fewer than 2 draws, a pair without a gap, or scores that are not finite.
    """
    wanted = list(dict.fromkeys(sizes))
    if not pairs or not wanted or min(wanted) < 2 or draws < 2:
        raise EvaluationError(
            f"new model: {len(pairs)} pairs, sizes {wanted}, {draws} draws; give at least one "
            "pair, sizes of at least 2, and at least 2 draws"
        )
    order = np.random.default_rng(seed).permutation(len(matrix.prompts))
    test, train = np.split(order, [len(order) // 2])
    tests = [_Test.of(matrix, new, known, np.sort(test)) for new, known in pairs]
    for one in tests:
        known_to_both = int(one.both[train].sum())
        if known_to_both <= max(wanted):
            raise EvaluationError(
                f"new model: {one.new} and {one.known} have {known_to_both} common prompts to fit "
                f"on, no more than the size {max(wanted)}; give smaller sizes or more prompts"
            )
    # A resample draws from all held-out prompts; each pair takes its part of it.
    counts = np.concatenate(list(resample_counts(len(test), BOOTSTRAPS, seed=seed)))
    done, total = 0, len(pairs) * (1 + draws * len(wanted))
    found: list[dict[str, tuple[float, ...]]] = [{} for _ in pairs]
    means: dict[str, Floats] = {}
    samples: dict[str, list[Floats]] = {}
    for size in (*wanted, None):
        values, drawn = [], []
        for draw in range(1 if size is None else draws):
            rng = np.random.default_rng((seed, size or 0, draw))
            shuffled = train if size is None else rng.permutation(train)
            of_pairs = []
            for one in tests:
                index = shuffled[one.both[shuffled]][:size]
                of_pairs.append(one.measure(matrix, fit, index, int(rng.integers(2**31)), counts))
                done += 1
                if progress:
                    progress(done, total)
            values.append([value for value, _ in of_pairs])
            # Pairs without a gap in a resample leave it undefined for all: a mean over other pairs
            # would be another figure.
            drawn.append(np.mean([sample for _, sample in of_pairs], axis=0))
        name = ALL if size is None else str(size)
        for pair, column in zip(found, zip(*values, strict=True), strict=True):
            pair[name] = column
        means[name], samples[name] = np.mean(values, axis=1), drawn
    # The one fit on all stands beside every draw.
    means[ALL], samples[ALL] = np.repeat(means[ALL], draws), samples[ALL] * draws
    return NewModelReport(
        data=data,
        points=tuple(_point(name, means, samples) for name in means),
        pairs=tuple(
            NewModelPair(
                one.new, one.known, one.sign > 0, int(one.both[train].sum()), len(one.index), apgrs
            )
            for one, apgrs in zip(tests, found, strict=True)
        ),
        draws=draws,
        seed=seed,
        bootstraps=BOOTSTRAPS,
    )


@dataclass(frozen=True, eq=False)
class _Test:
    """A pair on the held-out prompts that both answered; `sign` is 1 where the new one is strong.

    `both` bool[n] over all prompts; `at` bool[t] picks `index` out of the held-out ones.
    """

    new: str
    known: str
    both: npt.NDArray[np.bool_]
    at: npt.NDArray[np.bool_]
    index: Ints
    strong: Floats
    weak: Floats
    sign: float

    @classmethod
    def of(cls, matrix: ModelMatrix, new: str, known: str, test: Ints) -> "_Test":
        first, second = matrix.column(new), matrix.column(known)
        both = ~np.isnan(first) & ~np.isnan(second)
        index = test[both[test]]
        a, b = first[index], second[index]
        ahead = bool(len(index)) and a.mean() >= b.mean()
        strong, weak = (a, b) if ahead else (b, a)
        try:
            tradeoff(np.zeros(len(index)), strong, weak)
        except EvaluationError as error:
            raise EvaluationError(f"new model: {new} against {known}: {error}") from error
        return cls(new, known, both, both[test], index, strong, weak, 1.0 if ahead else -1.0)

    def measure(
        self, matrix: ModelMatrix, fit: Fit, index: Ints, seed: int, counts: Floats
    ) -> tuple[float, Floats]:
        """APGR of a fit on `index`, and the same in every resample."""
        new, known = matrix.column(self.new)[index], matrix.column(self.known)[index]
        score = fit(NewModelLogs(self.new, self.known, index, new, known, seed))
        where = f"new model: {self.new} against {self.known} from {len(index)}: the fit"
        scores = self.sign * checked_scores(score(self.index), len(self.index), where)
        drawn = resampled_apgr(scores, self.strong - self.weak, counts[:, self.at])
        return apgr(scores, self.strong, self.weak), drawn


def _point(
    name: str, means: Mapping[str, Floats], samples: Mapping[str, list[Floats]]
) -> NewModelPoint:
    ci, prompts_ci = draw_intervals(means[name], samples[name])
    paired = means[name] - means[ALL]
    drawn = [a - b for a, b in zip(samples[name], samples[ALL], strict=True)]
    difference_ci, difference_prompts_ci = draw_intervals(paired, drawn)
    return NewModelPoint(
        size=name,
        mean=float(means[name].mean()),
        ci=ci,
        prompts_ci=prompts_ci,
        difference=float(paired.mean()),
        difference_ci=difference_ci,
        difference_prompts_ci=difference_prompts_ci,
    )

"""The other-pairs protocol: does a router help for pairs of models that it was not made for?

    chosen = choose_pairs(model_matrix(read_rows("zeroeval_gsm8k.parquet")), 20)
    report = other_pairs(chosen, router)

APGR of the router on every pair, beside prompt length (random routing has 0.5), their mean over the
pairs, and in how many pairs the router is ahead. The pairs share prompts and models, so that they
are far from independent: the interval of the mean comes from resampling prompts once for all pairs
together, and the sign test over pairs, which takes them as independent, gives a p that is too
small. Neither says anything about models that are in no pair.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..eval import baselines
from ..eval.bootstrap import EQUAL, checked_scores, interval, resample_counts, resampled_apgr
from ..eval.metrics import Floats, Interval, apgr
from ..eval.printing import json_safe
from .model_pairs import Inputs, PairSet

LENGTH = "prompt-length"
RANDOM = "random"
ROUTER = "router"

# Prompts (or messages), strong, weak -> float64[k], higher where strong should answer.
PairScore = Callable[[Inputs, str, str], npt.ArrayLike]


@dataclass(frozen=True, slots=True)
class SignTest:
    """How often one of two was ahead over pairs. `p` is exact and two-sided, without the ties;
    optimistic where the pairs share prompts and models, as they do."""

    wins: int
    losses: int
    ties: int
    p: float


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair: `apgr` by the name of the score."""

    strong: str
    weak: str
    n: int
    strong_mean: float
    weak_mean: float
    apgr: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PairsReport:
    """`mean` and `ci` of APGR over pairs by score; `difference` and `difference_ci` of the router
    minus each other score, `sign` its test; "random" is 0.5 everywhere. An interval is NaN where
    more than 5% of the resamples leave some pair without a gap: ask for a larger one."""

    data: str
    prompts: int
    models: int
    eligible: int
    pairs: tuple[PairRow, ...]
    mean: Mapping[str, float]
    ci: Mapping[str, Interval]
    difference: Mapping[str, float]
    difference_ci: Mapping[str, Interval]
    sign: Mapping[str, SignTest]
    seed: int
    bootstraps: int

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def other_pairs(
    chosen: PairSet,
    router: PairScore,
    *,
    others: Mapping[str, PairScore] | None = None,
    data: str = "data",
    seed: int = 0,
    bootstraps: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> PairsReport:
    """APGR of the router, of prompt length and of `others` by name, on every chosen pair.

    A score function gets the inputs of a pair's prompts and the names of its models. `data` names
    the prompts in the report; `progress` is called with (pairs done, pairs). Raises EvaluationError
    for scores that are not one finite number a prompt, or a name that is taken.
    """
    taken = sorted(set(others or {}) & {ROUTER, LENGTH, RANDOM})
    if taken:
        raise EvaluationError(f"other pairs: {', '.join(taken)} is the protocol's own; rename it")

    functions: dict[str, PairScore] = {ROUTER: router, **(others or {})}
    lengths = baselines.length_scores(chosen.prompts)
    rows: list[PairRow] = []
    scored: list[dict[str, Floats]] = []
    for number, pair in enumerate(chosen.pairs, 1):
        inputs = chosen.inputs(pair)
        found = {LENGTH: lengths[pair.index]}
        for name, function in functions.items():
            where = f"other pairs, {pair.strong} against {pair.weak}: {name}"
            given = function(inputs, pair.strong, pair.weak)
            found[name] = checked_scores(given, len(pair.index), where)
        values = {name: apgr(s, pair.strong_score, pair.weak_score) for name, s in found.items()}
        rows.append(
            PairRow(
                pair.strong,
                pair.weak,
                len(pair.index),
                float(pair.strong_score.mean()),
                float(pair.weak_score.mean()),
                values,
            )
        )
        scored.append(found)
        if progress:
            progress(number, len(chosen.pairs))
    samples = _joint_samples(chosen, scored, bootstraps, seed)
    # The router first, random last, which is 0.5 for every pair and in every resample.
    rest = [LENGTH, *(name for name in functions if name != ROUTER), RANDOM]
    values_of = {name: np.array([row.apgr[name] for row in rows]) for name in samples}
    values_of[RANDOM], samples[RANDOM] = np.full(len(rows), 0.5), np.full(bootstraps, 0.5)
    mean = {name: float(values_of[name].mean()) for name in (ROUTER, *rest)}
    ahead = {name: values_of[ROUTER] - values_of[name] for name in rest}
    return PairsReport(
        data=data,
        prompts=len(np.unique(np.concatenate([pair.index for pair in chosen.pairs]))),
        models=len({name for pair in chosen.pairs for name in (pair.strong, pair.weak)}),
        eligible=chosen.eligible,
        pairs=tuple(rows),
        mean=mean,
        ci={name: interval(samples[name]) for name in mean},
        difference={name: float(values.mean()) for name, values in ahead.items()},
        difference_ci={name: interval(samples[ROUTER] - samples[name]) for name in rest},
        sign={name: _compared(values) for name, values in ahead.items()},
        seed=seed,
        bootstraps=bootstraps,
    )


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of the sign test: P(a split at least as uneven), each side with 1/2.

    Ties are left out before. Source: Arbuthnot 1710; Conover 1999, section 3.4. 1.0 without any.
    Raises EvaluationError for negative counts.
    """
    if wins < 0 or losses < 0:
        raise EvaluationError(f"sign test: {wins} wins, {losses} losses; counts are 0 or more")
    n, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    p = 2 * tail / (1 << n)
    return min(1.0, p)


def _compared(differences: Floats) -> SignTest:
    wins, losses = int(np.sum(differences > EQUAL)), int(np.sum(differences < -EQUAL))
    return SignTest(wins, losses, len(differences) - wins - losses, sign_test(wins, losses))


def _joint_samples(
    chosen: PairSet, scored: Sequence[Mapping[str, Floats]], resamples: int, seed: int
) -> dict[str, Floats]:
    """Mean APGR over pairs in the same resamples of all prompts: float64[resamples] by score.

    NaN where a resample leaves some pair without a gap: a mean over the others would be another
    figure.
    """
    indices = [pair.index for pair in chosen.pairs]
    used, place = np.unique(np.concatenate(indices), return_inverse=True)
    places = np.split(place, np.cumsum([len(index) for index in indices])[:-1])
    parts: dict[str, list[Floats]] = {name: [] for name in scored[0]}
    for counts in resample_counts(len(used), resamples, seed=seed):
        sums = {name: np.zeros(len(counts)) for name in parts}
        for pair, at, found in zip(chosen.pairs, places, scored, strict=True):
            gain, drawn = pair.strong_score - pair.weak_score, counts[:, at]
            for name, scores in found.items():
                sums[name] += resampled_apgr(scores, gain, drawn)
        for name, total in sums.items():
            parts[name].append(total / len(chosen.pairs))
    return {name: np.concatenate(part) for name, part in parts.items()}

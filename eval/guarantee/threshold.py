"""A threshold with a promise that holds for future prompts, at a stated confidence.

    found = guaranteed(scores, strong, weak, min_quality=0.95, confidence=0.9)
    found.threshold, found.strong_pct, found.feasible

The threshold that looks best on n labelled prompts breaks its promise on about every second draw of
n prompts: it was chosen because it looked good there. Here thresholds are tested one after another,
from the safest on (always strong; for a budget always weak), each at the full level, and the last
one before the first that fails is taken. To break the promise, the first threshold in this fixed
order that does not keep it would have to pass, and that happens with probability at most
1 - confidence, at every n. Source: fixed-sequence testing in Learn then Test, Angelopoulos, Bates,
Candes, Jordan and Lei 2021, arXiv 2110.01052, section 2.3; conformal risk control (arXiv
2208.02814) promises a mean over draws only, not a confidence. The tests themselves: `means`.

What it rests on: the labelled prompts are independent draws of the traffic (or weighted to be), the
router has not learned from them, and the target was not chosen by looking at the answer. Which
thresholds are tested depends on no label: every one that tells two of the n scores apart is, which
is the same as to test all numbers from 0 to 1 in order, since nothing changes between two scores.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError
from ...router.threshold import check_scores
from ..metrics import check_rewards
from . import promises
from .means import METHODS, MeanTest
from .promises import Floats, Maker, Promise
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A threshold, what is promised of it, and what it looks like on the n labelled prompts.

    `promise` is min_quality, min_gap, max_regret or max_cost, `target` its number, `confidence` the
    probability with which it holds. `feasible` says that routing has been shown to keep it; else
    `threshold` is the safest one (always strong, for a budget always weak), `message` says why, and
    `needed_n` about how many labels would do in all, None where no number would by these data.

    `quality` (mean reward of the mix over that of strong), `gap` (part of the gap recovered),
    `regret` (mean reward below always strong), `cost` (mean of a request) and `saving` (part of the
    cost of always strong) are estimates on the same prompts, None where undefined or unknown.
    `quality_bound`, `gap_bound`, `regret_bound`, `cost_bound` are what holds with `confidence`:
    that of the promise alone, the others are None.
    """

    promise: promises.Name
    target: float
    confidence: float
    threshold: float
    strong_pct: float
    n: int
    feasible: bool
    needed_n: int | None
    quality: float | None
    quality_bound: float | None
    gap: float | None
    gap_bound: float | None
    regret: float | None
    regret_bound: float | None
    cost: float | None
    cost_bound: float | None
    saving: float | None
    method: str
    seed: int
    message: str
    assumptions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able dict."""
        return {**asdict(self), "assumptions": list(self.assumptions)}


def guaranteed(
    scores: npt.ArrayLike,
    strong: npt.ArrayLike | None,
    weak: npt.ArrayLike | None,
    *,
    min_quality: float | None = None,
    min_gap: float | None = None,
    max_regret: float | None = None,
    max_cost: float | None = None,
    confidence: float = 0.9,
    strong_cost: npt.ArrayLike | None = None,
    weak_cost: npt.ArrayLike | None = None,
    cost_cap: float | None = None,
    weights: npt.ArrayLike | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    method: str = "betting",
    seed: int = 0,
) -> Guarantee:
    """The least use of strong that keeps one promise with `confidence`; for a budget the most.

    `scores` float64[n] in [0, 1]; `strong`, `weak` float64[n], rewards of either answer within
    `bounds`, None only for a budget. Exactly one of `min_quality` in (0, 1), `min_gap` in (0, 1),
    `max_regret` (> 0, in units of the reward) and `max_cost` (> 0, mean of a request, in the unit
    of the costs). `strong_cost`, `weak_cost` float64[n] >= 0: needed for a budget, otherwise for
    the estimates alone. `cost_cap`: no request costs more; by default twice the dearest of these,
    which is then an assumption. `weights` float64[n] > 0: one over the probability with which a
    prompt was sampled, up to a factor; the largest must not be exceeded by prompts unseen.
    `method`: a name in `means.METHODS`. `seed`: of the order in which the draws are taken; choose
    it before you look.

    Raises CalibrationError or EvaluationError for anything that does not fit this.
    """
    array = check_scores(scores)
    promises.check_confidence(confidence)
    test = _method(method)
    rewards = _rewards(array, strong, weak, bounds)
    costs = _costs(array, strong_cost, weak_cost)
    weight = _weights(array, weights)
    make, target, assumptions = _promise(
        rewards,
        costs,
        {
            "min_quality": min_quality,
            "min_gap": min_gap,
            "max_regret": max_regret,
            "max_cost": max_cost,
        },
        bounds,
        cost_cap,
    )
    order = np.random.default_rng(seed).permutation(array.size)
    sequence = Sequence(array, make(target), weight, order, test, 1 - confidence).run()
    promise, feasible = sequence.promise, sequence.feasible
    bound: float | None = None
    if feasible:
        whole = sequence.count == sequence.thresholds.size
        bound = sequence.tightened(make) if whole else target
    elif promise.holds_at_start:
        bound = {"min_quality": 1.0, "max_regret": 0.0}[promise.name]
    needed = None if feasible else sequence.needed()
    return _result(
        array,
        sequence.threshold,
        rewards,
        costs,
        weight,
        promise,
        bound,
        feasible,
        needed,
        confidence=confidence,
        method=method,
        seed=seed,
        assumptions=assumptions,
    )


def _result(
    scores: Floats,
    threshold: float,
    rewards: tuple[Floats, Floats] | None,
    costs: tuple[Floats, Floats] | None,
    weight: Floats,
    promise: Promise,
    bound: float | None,
    feasible: bool,
    needed: int | None,
    **rest: Any,
) -> Guarantee:
    calls = scores >= threshold

    def mean(column: Floats) -> float:
        return float(np.average(column, weights=weight))

    quality = gap = regret = cost = saving = None
    if rewards is not None:
        high, low = mean(rewards[0]), mean(rewards[1])
        mixed = mean(np.where(calls, *rewards))
        regret = high - mixed
        quality = mixed / high if high > 0 else None
        gap = (mixed - low) / (high - low) if high > low else None
    if costs is not None:
        cost = mean(np.where(calls, *costs))
        always = mean(costs[0])
        saving = 1 - cost / always if always > 0 else None
    bounds = dict.fromkeys(("min_quality", "min_gap", "max_regret", "max_cost"))
    holds: dict[str, float | None] = {**bounds, promise.name: bound}
    return Guarantee(
        promise=promise.name,
        target=promise.target,
        threshold=threshold,
        strong_pct=mean(calls.astype(np.float64)),
        n=scores.size,
        feasible=feasible,
        needed_n=needed,
        quality=quality,
        quality_bound=holds["min_quality"],
        gap=gap,
        gap_bound=holds["min_gap"],
        regret=regret,
        regret_bound=holds["max_regret"],
        cost=cost,
        cost_bound=holds["max_cost"],
        saving=saving,
        message="" if feasible else _why(promise, scores.size, needed),
        **rest,
    )


def _why(promise: Promise, n: int, needed: int | None) -> str:
    if needed is not None:
        return f"infeasible at this n ({n:,}); about {needed - n:,} more labels would do"
    if promise.name == "max_cost":
        known = "even always weak costs more, or nearly as much; raise the budget"
    elif not promise.above.any():
        known = "the strong model earns nothing; check the labels"
    elif promise.name == "min_gap" and promise.above.mean() <= 0:
        known = "strong is not better than weak, and there is no gap to recover; promise a quality"
    else:
        known = "routing does not keep it; promise less, or take a router that ranks better"
    return f"infeasible at this n ({n:,}), and more labels would not do by what these show: {known}"


def _promise(
    rewards: tuple[Floats, Floats] | None,
    costs: tuple[Floats, Floats] | None,
    asked: dict[str, float | None],
    bounds: tuple[float, float],
    cost_cap: float | None,
) -> tuple[Maker, float, tuple[str, ...]]:
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise CalibrationError(
            f"give exactly one of {', '.join(asked)}, got {', '.join(given) or 'none'}"
        )
    [(name, value)] = given.items()
    target = promises.check_target(name, value)
    if name == "max_cost":
        if costs is None:
            raise CalibrationError("max_cost needs the cost of every prompt on either model")
        dearest = max(float(c.max()) for c in costs)
        cap = 2 * dearest if cost_cap is None else float(cost_cap)
        if not cap >= dearest:
            raise CalibrationError(
                f"cost_cap {cap:g} is below the dearest request, {dearest:g}; no request may cost "
                "more than the cap"
            )
        assumed = f"no request costs more than {cap:.6g}, twice the dearest of these"
        return promises.cost(*costs, cap), target, () if cost_cap is not None else (assumed,)
    if rewards is None:
        raise CalibrationError(f"{name} needs the rewards of both models")
    make = {"min_quality": promises.quality, "min_gap": promises.gap}.get(name, promises.regret)
    return make(*rewards, bounds), target, ()


def _method(name: str) -> MeanTest:
    if name not in METHODS:
        raise CalibrationError(f"unknown method {name!r}; available: {', '.join(METHODS)}")
    return METHODS[name]


def _rewards(
    scores: Floats,
    strong: npt.ArrayLike | None,
    weak: npt.ArrayLike | None,
    bounds: tuple[float, float],
) -> tuple[Floats, Floats] | None:
    if strong is None and weak is None:
        return None
    if strong is None or weak is None:
        raise CalibrationError("give the rewards of both models, or for a budget of neither")
    _, high, low = check_rewards(scores, strong, weak)
    if not bounds[0] < bounds[1]:
        raise CalibrationError(f"bounds {bounds} are no range: the first must be below the second")
    for name, values in (("strong", high), ("weak", low)):
        out = np.flatnonzero((values < bounds[0]) | (values > bounds[1]))
        if out.size:
            raise CalibrationError(
                f"{name}[{int(out[0])}] is {values[out[0]]:g}, outside of the bounds {bounds[0]:g} "
                f"to {bounds[1]:g}; give the range of the rewards as bounds"
            )
    return high, low


def _costs(
    scores: Floats, strong: npt.ArrayLike | None, weak: npt.ArrayLike | None
) -> tuple[Floats, Floats] | None:
    if strong is None and weak is None:
        return None
    if strong is None or weak is None:
        raise CalibrationError("give the cost of both models, or of neither")
    sides = []
    for name, values in (("strong", strong), ("weak", weak)):
        cost = np.asarray(values, dtype=np.float64)
        if cost.shape != scores.shape or not np.all(np.isfinite(cost) & (cost >= 0)):
            raise CalibrationError(
                f"{name} costs must be {scores.size} finite numbers >= 0, got shape {cost.shape}"
            )
        sides.append(cost)
    return sides[0], sides[1]


def _weights(scores: Floats, weights: npt.ArrayLike | None) -> Floats:
    if weights is None:
        return np.ones(scores.size)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != scores.shape or not np.all(np.isfinite(array) & (array > 0)):
        raise CalibrationError(
            f"weights must be {scores.size} finite numbers above 0, got shape {array.shape}"
        )
    largest: Floats = array / array.max()
    return largest

"""A threshold with a promise that holds for future prompts, at a stated confidence.

    prompts = LabelledPrompts(scores, (strong, weak))
    found = guaranteed(prompts, Promise("min_quality", 0.95, confidence=0.9))
    found.threshold, found.strong_pct, found.feasible

The threshold that looks best on n labelled prompts breaks its promise on about every second draw of
n prompts: it was chosen because it looked good there. Here thresholds are tested one after another,
from the safest on (always strong; for a budget always weak), each at the full level, and the last
one before the first that fails is taken. To break the promise, the first threshold in this fixed
order that does not keep it would have to pass, and that happens with probability at most
1 - confidence, at every n. Source: fixed-sequence testing in Learn then Test, Angelopoulos, Bates,
Candes, Jordan and Lei 2021, arXiv 2110.01052, section 2.3; conformal risk control (arXiv
2208.02814) promises a mean over draws only, not a confidence. The tests
themselves: `means`; the order: `sequence`.

What it rests on: the labelled prompts are independent draws of the traffic (or weighted to be), the
router has not learned from them, and the target was not chosen by looking at the answer. Which
thresholds are tested depends on no label: every one that tells two of the n scores apart is, which
is the same as to test all numbers from 0 to 1 in order, since nothing changes between two scores.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import CalibrationError
from ..metrics import Floats
from .means import METHODS
from .promises import LabelledPrompts, Name, Promise, variable
from .sequence import FixedSequence


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A threshold, what is promised of it, and what it looks like on the n labelled prompts.

    `promise`, `target` and `confidence` are those of the Promise. `feasible` says that routing has
    been shown to keep it; else `threshold` is the safest one (always strong, for a budget always
    weak), `message` says why, and `needed_n` about how many labels would do in all, None where no
    number would by these data.

    `quality` (mean reward of the mix over that of strong), `gap` (part of the gap recovered),
    `regret` (mean reward below always strong), `cost` (mean of a request) and `saving` (part of the
    cost of always strong) are estimates on the same prompts, None where undefined or unknown.
    `quality_bound`, `gap_bound`, `regret_bound`, `cost_bound` are what holds with `confidence`:
    that of the promise alone, the others are None.
    """

    promise: Name
    target: float
    confidence: float
    threshold: float
    strong_pct: float
    n: int
    feasible: bool
    needed_n: int | None
    method: str
    seed: int
    message: str
    quality: float | None = None
    quality_bound: float | None = None
    gap: float | None = None
    gap_bound: float | None = None
    regret: float | None = None
    regret_bound: float | None = None
    cost: float | None = None
    cost_bound: float | None = None
    saving: float | None = None
    assumptions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able dict."""
        return {**asdict(self), "assumptions": list(self.assumptions)}


def guaranteed(
    prompts: LabelledPrompts, promise: Promise, *, method: str = "betting", seed: int = 0
) -> Guarantee:
    """The least use of strong that keeps the promise with its confidence; for a budget the most.

    method: a name in `means.METHODS`. seed: of the order in which the draws are taken; choose it
    before you look. Raises CalibrationError where the prompts lack what the promise is about.
    """
    if method not in METHODS:
        raise CalibrationError(f"unknown method {method!r}; available: {', '.join(METHODS)}")
    order = np.random.default_rng(seed).permutation(prompts.scores.size)
    sequence = FixedSequence(prompts, promise, METHODS[method], order)
    sequence.run()
    needed = None if sequence.feasible else sequence.labels_needed()
    bound: float | None = None
    if sequence.feasible:
        bound = sequence.bound()
    elif promise.holds_at_start:
        bound = 1.0 if promise.name == "min_quality" else 0.0
    shown = _estimates(prompts, sequence.threshold)
    shown[f"{promise.name[4:]}_bound"] = bound  # without its min_ or max_
    cap = f"no request costs more than {2 * prompts.dearest:.6g}, twice the dearest of these"
    assumed = promise.name == "max_cost" and promise.cost_cap is None
    return Guarantee(
        promise=promise.name,
        target=promise.target,
        confidence=promise.confidence,
        threshold=sequence.threshold,
        n=prompts.scores.size,
        feasible=sequence.feasible,
        needed_n=needed,
        method=method,
        seed=seed,
        message="" if sequence.feasible else _why(promise, prompts, needed),
        assumptions=(cap,) if assumed else (),
        **shown,
    )


def _estimates(prompts: LabelledPrompts, threshold: float) -> dict[str, Any]:
    calls = prompts.scores >= threshold

    def mean(column: Floats) -> float:
        return float(np.average(column, weights=prompts.relative_weights))

    found: dict[str, Any] = {"strong_pct": mean(calls.astype(np.float64))}
    if prompts.rewards is not None:
        high, low = (mean(rewards) for rewards in prompts.rewards)
        mixed = mean(np.where(calls, *prompts.rewards))
        found["regret"] = high - mixed
        found["quality"] = mixed / high if high > 0 else None
        found["gap"] = (mixed - low) / (high - low) if high > low else None
    if prompts.costs is not None:
        found["cost"] = mean(np.where(calls, *prompts.costs))
        always = mean(prompts.costs[0])
        found["saving"] = 1 - found["cost"] / always if always > 0 else None
    return found


def _why(promise: Promise, prompts: LabelledPrompts, needed: int | None) -> str:
    n = prompts.scores.size
    if needed is not None:
        return f"infeasible at this n ({n:,}); about {needed - n:,} more labels would do"
    above = variable(promise, prompts).above
    if promise.name == "max_cost":
        known = "even always weak costs more, or nearly as much; raise the budget"
    elif not above.any():
        known = "the strong model earns nothing; check the labels"
    elif promise.name == "min_gap" and above.mean() <= 0:
        known = "strong is not better than weak, and there is no gap to recover; promise a quality"
    else:
        known = "routing does not keep it; promise less, or take a router that ranks better"
    return f"infeasible at this n ({n:,}), and more labels would not do by what these show: {known}"

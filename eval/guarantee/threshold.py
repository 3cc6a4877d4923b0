"""A threshold with a promise that holds for future prompts, at a stated confidence.

    prompts = LabelledPrompts(scores, (strong, weak))
    found = guaranteed(prompts, Promise("min_quality", 0.95, confidence=0.9))

The threshold that looks best on n labelled prompts breaks its promise on about every second draw of
n prompts: it was chosen because it looked good there. Here thresholds are tested one after another,
from the safest on (always strong; for a budget always weak), each at the full level, and the last
one before the first that fails is taken. To break the promise, the first threshold in this fixed
order that does not keep it would have to pass, and that happens with probability at most
1 - confidence, at every n. Source: fixed-sequence testing in Learn then Test, Angelopoulos, Bates,
Candes, Jordan and Lei 2021, arXiv 2110.01052, section 2.3. The test itself: `means`.

It rests on this: the labelled prompts are independent draws of the traffic (or weighted to be), the
router has not learned from them, and the target was not chosen by looking at the answer. Every
threshold that tells two of the n scores apart is tested, so that no label chooses which.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ...router.threshold import achievable
from ..metrics import Floats
from .means import LARGEST_BET, Bools, MeanTest, betting
from .promises import LabelledPrompts, Name, Promise, Variable, variable

# Up to so many prompts every threshold is tested; beyond, those on a lattice that no data chose.
EVERY_THRESHOLD, LATTICE = 5_000, 2_000
# Thresholds tested at once: little is computed past the first that fails, and no block is larger.
BLOCK, BLOCK_VALUES = 64, 8_000_000
# Labels that would do are estimated for this share of calls to the other side, at this power.
USEFUL_SHARE, POWER = 0.1, 0.8
HANDFUL = 10  # fewer draws do not tell that a promise is out of reach because they are alike
SLACK = 1.25  # bets become smaller near the goal: so many times the draws of the largest bet
STEPS = 200  # in which the bound of the last threshold is tightened


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """A threshold, what is promised of it, and what it looks like on the n labelled prompts.

    `feasible`: routing has been shown to keep the promise; else `threshold` is the safest one,
    `message` says why, and `needed_n` about how many labels would do in all, None where no number
    would. `quality` (mean reward of the mix over that of strong), `gap` (part recovered), `regret`
    (mean reward below always strong), `cost` (mean of a request) and `saving` (part of the cost of
    always strong) are estimates on the same prompts, None where undefined or unknown. The bound of
    what is promised is what holds with `confidence`, the others are None.
    """

    threshold: float
    strong_pct: float
    quality: float | None = None
    quality_bound: float | None = None
    confidence: float
    n: int
    promise: Name
    target: float
    feasible: bool
    needed_n: int | None
    gap: float | None = None
    gap_bound: float | None = None
    regret: float | None = None
    regret_bound: float | None = None
    cost: float | None = None
    cost_bound: float | None = None
    saving: float | None = None
    seed: int
    message: str
    assumptions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON of the command line: costs in USD per 1,000 requests."""
        plain = {**asdict(self), "assumptions": list(self.assumptions)}
        for key, name in (("cost", "usd_per_1k"), ("cost_bound", "usd_per_1k_bound")):
            value = plain.pop(key)
            plain[name] = None if value is None else 1000 * value
        if self.promise == "max_cost":
            plain |= {"promise": "usd_per_1k", "target": 1000 * self.target}
        return {**plain, "more_labels": self.needed_n and self.needed_n - self.n}


def guaranteed(prompts: LabelledPrompts, promise: Promise, *, seed: int = 0) -> Guarantee:
    """The least use of strong that keeps the promise with its confidence; for a budget the most.

    seed: of the order in which the draws are taken; choose it before you look. Raises
    CalibrationError where the prompts lack what the promise is about.
    """
    return guaranteed_way(prompts, promise, seed=seed)[0]


def guaranteed_way(
    prompts: LabelledPrompts,
    promise: Promise,
    ways: Bools | None = None,
    costs: Floats | None = None,
    *,
    seed: int = 0,
) -> tuple[Guarantee, int]:
    """`guaranteed` for any ways to route the n prompts, and the place of the one that was taken.

    ways: as of `FixedSequence`; the threshold of the guarantee is then the place, too, and its
    costs count no call but the one that answers. costs float64[m]: the cheapest of those that have
    passed is taken instead of the last, since the promise holds for all of them at once.
    """
    n = prompts.scores.size
    order = np.random.default_rng(seed).permutation(n)
    sequence = FixedSequence(prompts, promise, order, ways=ways)
    sequence.run()
    feasible = sequence.feasible
    needed = None if feasible else sequence.labels_needed()
    place = sequence.place
    if costs is not None:
        place = int(np.argmin(costs[: place + 1]))
    bound = None
    if feasible:
        bound = sequence.bound() if place == sequence.place else promise.target
    if not feasible and promise.holds_at_start:
        bound = 1.0 if promise.name == "min_quality" else 0.0
    calls = np.empty(n, dtype=np.bool_)
    calls[order] = sequence.calls(slice(place, place + 1))[:, 0]
    shown = _estimates(prompts, calls)
    shown[f"{promise.name[4:]}_bound"] = bound  # without its min_ or max_
    cap = f"no request costs more than {2 * prompts.dearest:.6g}, twice the dearest of these"
    found = Guarantee(
        promise=promise.name,
        target=promise.target,
        confidence=promise.confidence,
        threshold=float(sequence.thresholds[place]),
        n=n,
        feasible=feasible,
        needed_n=needed,
        seed=seed,
        message="" if feasible else _why(promise, sequence.variable, n, needed),
        assumptions=(cap,) if promise.name == "max_cost" and promise.cost_cap is None else (),
        **shown,
    )
    return found, place


def _estimates(prompts: LabelledPrompts, calls: Bools) -> dict[str, Any]:
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


def _why(promise: Promise, values: Variable, n: int, needed: int | None) -> str:
    if needed is not None:
        return f"infeasible at this n ({n:,}); about {needed - n:,} more labels would do"
    if promise.name == "max_cost":
        known = "even always weak costs more, or nearly as much; raise the budget"
    elif not values.above.any():
        known = "the strong model earns nothing; check the labels"
    elif promise.name == "min_gap" and values.above.mean() <= 0:
        known = "strong is not better than weak, and there is no gap to recover; promise a quality"
    else:
        known = "routing does not keep it; promise less, or take a router that ranks better"
    return f"infeasible at this n ({n:,}), and more labels would not do by what these show: {known}"


class FixedSequence:
    """One promise, its thresholds in their order, and the tests of them.

    order int[n]: in which order the draws are taken, chosen without regard to the labels. `count`
    thresholds have passed so far. ways bool[n, m]: instead of thresholds m other ways to route, the
    first the safest, each column the prompts that strong answers; these labels must have chosen
    neither the ways nor their order. The thresholds are then the numbers of the columns.
    """

    def __init__(
        self,
        prompts: LabelledPrompts,
        promise: Promise,
        order: npt.NDArray[np.intp],
        test: MeanTest = betting,
        ways: Bools | None = None,
    ) -> None:
        self._prompts, self._promise, self._test, self._order = prompts, promise, test, order
        self._scores = prompts.scores[order]
        self._weight = prompts.relative_weights[order]
        self._level = 1 - promise.confidence
        self.variable = variable(promise, prompts)
        self._ways = None if ways is None else ways[order]
        if ways is None:
            self.thresholds = _thresholds(prompts.scores, from_strong=promise.from_strong)
        else:
            self.thresholds = np.arange(ways.shape[1], dtype=np.float64)
        self.count = int(promise.holds_at_start)
        self._ended = False

    @property
    def place(self) -> int:
        """Which in the order has passed last; the first, which is the safest, where none has."""
        return max(self.count - 1, 0)

    @property
    def threshold(self) -> float:
        """The one at `place`."""
        return float(self.thresholds[self.place])

    @property
    def feasible(self) -> bool:
        """Whether a threshold has passed that had to be tested."""
        return self.count > int(self._promise.holds_at_start)

    def run(self) -> None:
        """Test threshold after threshold, until one is not shown to keep the promise."""
        size = max(1, min(BLOCK, BLOCK_VALUES // self._scores.size))
        while (block := self.block(size)) is not None:
            self.take(self._test(block, *self.variable.bounds, self._level))

    def block(self, size: int) -> Floats | None:
        """The variable at the next thresholds, at most `size`: float64[n, m]; None at the end.
        What the test says of it goes into `take`: many sequences can be tested at once."""
        following = slice(self.count, self.count + size)
        if self._ended or self.count >= self.thresholds.size:
            return None
        return self._values(following, self.variable)

    def take(self, shown: Bools) -> None:
        """Count on to the first threshold of the block that is not shown to keep the promise."""
        self._ended = not bool(shown.all())
        self.count += int(np.argmin(shown)) if self._ended else shown.size

    def bound(self) -> float:
        """The best target that the last threshold is shown to keep: where all thresholds have
        passed, the sequence goes on with harder targets for the last, in steps fixed beforehand,
        until one fails. Once a threshold has failed, nothing is left to test with."""
        best, steps = self._promise.target, 0.005 * np.arange(1, STEPS)
        if self.count < self.thresholds.size:
            return best
        grows = self._promise.name in ("min_quality", "min_gap")
        for target in (best + steps if grows else best * (1 - steps)).tolist():
            harder = variable(self._promise, self._prompts, target)
            values = self._values(slice(-1, None), harder)
            if not self._test(values, *harder.bounds, self._level)[0]:
                break
            best = target
        return best

    def labels_needed(self) -> int | None:
        """About how many labels would show that a useful share of calls keeps the promise: from
        mean and deviation at the start, half and whole of that share (central limit theorem), and
        from how fast wealth can grow at the largest bet. A mean not above 0, yet not shown to be
        below, is taken for half a standard error. None where one of the three is below 0."""
        if self.thresholds.size == 1:
            return None  # there is nothing but the safest threshold
        n = self._scores.size
        if self._ways is None:
            calls = 1 - np.searchsorted(np.sort(self._scores), self.thresholds) / n
        else:
            calls = self._ways.mean(axis=0)
        moved = np.abs(calls - float(self._promise.from_strong))
        sure = NormalDist().inv_cdf(1 - self._level)
        z = sure + NormalDist().inv_cdf(POWER)
        low, high = self.variable.bounds
        needed = 1.1 * n  # some more than there are at least: with these it was not shown
        for share in (0.0, USEFUL_SHARE / 2, USEFUL_SHARE):
            at = min(int(np.argmax(np.append(moved, 1.0) >= share)), moved.size - 1)
            column = self._values(slice(at, at + 1), self.variable)[:, 0]
            mean, deviation = float(column.mean()), max(float(column.std()), 1e-12)
            if mean <= 0 and n < HANDFUL:
                deviation = (high - low) / 2  # the most that there can be
            error = deviation / math.sqrt(n)
            if mean + sure * error < 0 or not column.any():
                return None
            # The largest bet is never ruinous, so that the logarithm is finite.
            largest = LARGEST_BET / max(-low, float(np.abs(column).max()))
            growth = float(np.mean(np.log1p(largest * column)))
            needed = max(needed, (z * deviation / max(mean, error / 2)) ** 2)
            if growth > 0:
                needed = max(needed, -SLACK * math.log(self._level) / growth)
        return math.ceil(needed)

    def calls(self, places: slice) -> Bools:
        """Whether strong answers, at these thresholds: bool[n, m], rows in the order of the
        draws."""
        if self._ways is not None:
            return self._ways[:, places]
        above: Bools = self._scores[:, None] >= self.thresholds[None, places]
        return above

    def _values(self, places: slice, of: Variable) -> Floats:
        """The variable, weighted: float64[n, m], rows in the order of the draws."""
        calls = self.calls(places)
        above, below = of.above[self._order], of.below[self._order]
        weighted: Floats = np.where(calls, above[:, None], below[:, None]) * self._weight[:, None]
        return weighted


def _thresholds(scores: Floats, *, from_strong: bool) -> Floats:
    """What is tested, in order: rising from always strong, or falling from always weak.

    With n prompts at most, every threshold that tells two scores apart. With more, the numbers k /
    LATTICE, without those that tell nothing more apart than one that is kept: which they are is
    then settled before any score is seen, too.
    """
    if scores.size <= EVERY_THRESHOLD:
        falling = achievable(scores)[0]
    else:
        lattice = np.arange(LATTICE + 1) / LATTICE
        below = np.searchsorted(np.sort(scores), lattice)
        falling = lattice[np.unique(below, return_index=True)[1]][::-1]
    return falling[::-1].copy() if from_strong else falling.copy()

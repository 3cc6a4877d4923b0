"""The thresholds in a fixed order, from the safest on, and how far a promise is shown to hold.

Fixed-sequence testing, see `threshold`: each hypothesis is tested at the full level, up to the
first that is not rejected.
"""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ...router.threshold import achievable
from ..metrics import Floats
from .means import LARGEST_BET, MeanTest
from .promises import LabelledPrompts, Promise, Variable, variable

# Up to so many prompts every threshold is tested; beyond, those on a lattice that no data chose.
EVERY_THRESHOLD = 5_000
LATTICE = 2_000
# Thresholds tested at once: few enough that little is computed past the first that fails, and
# that no block has more values than this.
BLOCK, BLOCK_VALUES = 64, 8_000_000
# Labels that would do are estimated for this share of calls to the other side, at this power.
USEFUL_SHARE, POWER = 0.1, 0.8
# Fewer draws than this do not tell that a promise is out of reach because they are alike.
HANDFUL = 10
# Bets become smaller near the goal, which takes so many times the draws of the largest bet.
SLACK = 1.25
# Steps in which the bound of the last threshold is tightened.
STEPS = 200


class FixedSequence:
    """One promise, its thresholds in their order, and the tests of them.

    order int[n]: in which order the n draws are taken, chosen without regard to the labels.
    `count` thresholds have passed so far.
    """

    def __init__(
        self,
        prompts: LabelledPrompts,
        promise: Promise,
        test: MeanTest,
        order: npt.NDArray[np.intp],
    ) -> None:
        self._prompts = prompts
        self._promise = promise
        self._order = order
        self._scores = prompts.scores[order]
        self._weight = prompts.relative_weights[order]
        self._test = test
        self._level = 1 - promise.confidence
        self.variable = variable(promise, prompts)
        self.thresholds = _thresholds(prompts.scores, from_strong=promise.from_strong)
        self.count = int(promise.holds_at_start)
        self._ended = False

    @property
    def threshold(self) -> float:
        """The last that has passed; the safest one where none has."""
        return float(self.thresholds[max(self.count - 1, 0)])

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
        """The variable at the next thresholds in the order, at most `size`: float64[n, m].

        None where the sequence has ended. What the test says of it goes into `take`, in the same
        order: many sequences can be tested at once.
        """
        following = self.thresholds[self.count : self.count + size]
        return None if self._ended or not following.size else self._values(following, self.variable)

    def take(self, shown: npt.NDArray[np.bool_]) -> None:
        """Count on to the first threshold of the block that is not shown to keep the promise."""
        self._ended = not bool(shown.all())
        self.count += int(np.argmin(shown)) if self._ended else shown.size

    def bound(self) -> float:
        """The best target that the last threshold is shown to keep.

        Where all thresholds have passed, the sequence goes on with harder targets for the last, in
        steps fixed beforehand (of 0.005, or of a two-hundredth of the target), until one fails. Had
        a threshold failed, nothing would be left to test with: the target itself is all that holds.
        """
        best, steps = self._promise.target, 0.005 * np.arange(1, STEPS)
        if self.count < self.thresholds.size:
            return best
        grows = self._promise.name in ("min_quality", "min_gap")
        for target in (best + steps if grows else best * (1 - steps)).tolist():
            harder = variable(self._promise, self._prompts, target)
            values = self._values(self.thresholds[-1:], harder)
            if not self._test(values, *harder.bounds, self._level)[0]:
                break
            best = target
        return best

    def labels_needed(self) -> int | None:
        """About how many labels would show that a useful share of calls keeps the promise.

        From mean and deviation at the start, at half and at the whole of that share, as the central
        limit theorem has it, and from how fast wealth can grow at the largest bet. A mean that is
        not above 0, yet not shown to be below, is taken for half a standard error. None where one
        of the three is below 0 by more than these draws can err, or 0 on every prompt: there the
        promise is not kept. A handful of draws that are alike say little of how much others vary:
        that is then taken for the most that there can be.
        """
        n = self._scores.size
        calls = 1 - np.searchsorted(np.sort(self._scores), self.thresholds) / n
        moved = np.abs(calls - float(self._promise.from_strong))
        normal = NormalDist()
        sure = normal.inv_cdf(1 - self._level)
        z = sure + normal.inv_cdf(POWER)
        if moved.size == 1:
            return None  # there is nothing but the safest threshold
        needed = 0.0
        for share in (0.0, USEFUL_SHARE / 2, USEFUL_SHARE):
            at = min(int(np.searchsorted(moved, share)), moved.size - 1)
            column = self._values(self.thresholds[at : at + 1], self.variable)[:, 0]
            deviation = max(float(column.std()), 1e-12)
            error = deviation / math.sqrt(n)
            mean = float(column.mean())
            if mean <= 0 and n < HANDFUL:
                deviation = (self.variable.bounds[1] - self.variable.bounds[0]) / 2
                error = deviation / math.sqrt(n)
            if mean + sure * error < 0 or not column.any():
                return None
            mean = max(mean, error / 2)
            # The largest bet is never ruinous, so that the logarithm is finite.
            largest = LARGEST_BET / max(-self.variable.bounds[0], float(np.abs(column).max()))
            growth = float(np.mean(np.log1p(largest * column)))
            needed = max(needed, (z * deviation / mean) ** 2)
            if growth > 0:
                needed = max(needed, -SLACK * math.log(self._level) / growth)
        # Some more than there are at least: with these it was not shown.
        return math.ceil(max(needed, 1.1 * n))

    def _values(self, thresholds: Floats, of: Variable) -> Floats:
        """The variable, weighted: float64[n, m], rows in the order of the draws."""
        calls = self._scores[:, None] >= thresholds[None, :]
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

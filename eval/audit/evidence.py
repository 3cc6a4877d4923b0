"""What an audit can say of n labelled prompts: estimates, tests, and how many labels would tell.

`audit.audit` says which rows each question is asked of, and why; here they are asked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ...router.threshold import achievable, threshold_for_share
from ..guarantee.means import betting
from ..guarantee.promises import LabelledPrompts, Promise
from ..guarantee.threshold import guaranteed
from ..metrics import Floats
from .measure import (
    SHUFFLES,
    AgainstRandom,
    Measured,
    Rows,
    against_random,
    curve,
    halves,
    interval_of_difference,
    labels_needed,
    measure,
    ranks,
)
from .verdict import Option

# The level of the tests against a random mix, whatever the confidence of the quality.
CHANCE = 0.05
# Standard normal quantiles: .80 (the power that `needed_n` aims at), .95, .975.
Z80, Z95_ONE_SIDED, Z95_TWO_SIDED = 0.8416, 1.6449, 1.96
# From the z of an APGR on all rows to that of one share p on half of them: with a gain over random
# of 6 p (1 - p) times its mean, and the deviations sqrt(p (1 - p)) and sqrt(1 / 12), it is this
# times sqrt(p (1 - p)). For planning alone.
PARABOLA = math.sqrt(0.5) * 6 / math.sqrt(12)
# Fewer labels than this say no only where an APGR worth having is excluded (random has .5), which
# an interval from fewer than the second cannot say.
ENOUGH_TO_REFUSE, ENOUGH_TO_EXCLUDE = 1000, 100
WORTH_APGR = 0.55
# With fewer rows than this nothing is looked at, and so many are asked for.
MIN_ROWS, FIRST_LABELS = 20, 200
# Resamples of the whole curve, which cost more than those of one point.
CURVE_RESAMPLES = 400
# Thresholds that are looked at for the proof that every saving costs too much.
PROOF_THRESHOLDS = 101


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked of a routing; see `audit.audit`."""

    min_quality: float
    confidence: float
    min_saving: float
    max_labels: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The threshold of the first half, and about how many labels would have guaranteed one."""

    threshold: float
    guaranteed: bool
    needed_n: float


class Evidence:
    """All that is computed from the rows; asks nothing of how the answers are weighed."""

    def __init__(
        self,
        rows: Rows,
        wishes: Wishes,
        others: Mapping[str, npt.ArrayLike],
        *,
        resamples: int,
        seed: int,
    ) -> None:
        self.rows, self.wishes, self.others = rows, wishes, others
        self.resamples, self.seed = resamples, seed
        self.first, self.second = halves(rows.n, seed)
        self.weak = self.measure(rows, 0.0)
        self.curve = curve(rows, resamples=min(resamples, CURVE_RESAMPLES), seed=seed)
        self.choice: Choice | None = None
        self.found: Measured | None = None
        self.chance: dict[str, AgainstRandom] = {}
        self.baselines: dict[str, Option] = {}
        if rows.n >= MIN_ROWS:
            self._judge_router()

    def measure(self, rows: Rows, sends: float | Floats) -> Measured:
        """`measure.measure` with this audit's resamples and seed."""
        return measure(rows, sends, resamples=self.resamples, seed=self.seed)

    def _judge_router(self) -> None:
        held = self.rows.take(self.second)
        self.choice = self._choose(self.rows.take(self.first))
        sends = held.sends(self.choice.threshold)
        self.found = self.measure(held, sends)
        kinds = ["share"]
        # Without costs, or with costs that differ by a constant, the spend is the share.
        extra = held.strong_cost - held.weak_cost
        if np.ptp(extra) > 1e-12 and (held.weight * extra).sum() > 0:
            kinds.append("spend")
        for same in kinds:
            self.chance[same] = against_random(
                held, sends, same=same, resamples=self.resamples, seed=self.seed
            )
        self._compare(held)

    def _choose(self, part: Rows) -> Choice:
        """The guaranteed threshold on `part`; without one, that of the least share of strong calls
        at which the quality seen on `part` is high enough.

        The guarantee is asked for with half of the error that is allowed, so that what the other
        half measures is seldom below the promise.
        """
        labelled = LabelledPrompts(part.scores, (part.strong, part.weak), weights=part.weight)
        half = (1 + self.wishes.confidence) / 2
        promise = Promise("min_quality", self.wishes.min_quality, half)
        found = guaranteed(labelled, promise, seed=self.seed)
        if found.feasible:
            return Choice(found.threshold, True, 0.0)
        thresholds, _ = achievable(part.scores)
        goal = self.wishes.min_quality * (part.weight @ part.strong)
        for threshold in thresholds:
            d = part.sends(float(threshold))
            if part.weight @ (part.weak + d * (part.strong - part.weak)) >= goal - 1e-9:
                break
        needed = math.inf if found.needed_n is None else 2.0 * found.needed_n
        return Choice(float(threshold), False, needed)

    def _compare(self, held: Rows) -> None:
        """Baselines on the measured half, at the router's own share there."""
        assert self.found is not None
        share = self.found.share.value
        ways: dict[str, float | Floats] = {
            "always-strong": 1.0,
            "always-weak": 0.0,
            "random": share,
        }
        for name, values in self.others.items():
            # Matched by scores alone: no label takes part.
            ranked = ranks(np.asarray(values, dtype=np.float64)[self.second])
            threshold, _ = threshold_for_share(ranked, float(np.mean(self._sends(held))))
            ways[name] = (ranked >= threshold).astype(np.float64)
        gain = held.strong - held.weak
        ways["oracle"] = _best(gain, held.strong_cost - held.weak_cost, self._sends(held))
        self.baselines = {
            name: self.option(self.measure(held, sends)) for name, sends in ways.items()
        }

    def _sends(self, held: Rows) -> Floats:
        assert self.choice is not None
        return held.sends(self.choice.threshold)

    def option(self, measured: Measured) -> Option:
        """`measured` as it is shown, beside the router."""
        own = self.found
        assert own is not None
        difference, ends = own.quality.value - measured.quality.value, (math.nan, math.nan)
        if own is measured:
            difference = math.nan
        else:
            ends = interval_of_difference(own, measured)
        return Option(
            quality=measured.quality.value,
            quality_ci=measured.quality.ci,
            saving=measured.saving.value,
            saving_ci=measured.saving.ci,
            strong_pct=measured.share.value,
            usd_per_1k=1000 * measured.cost.value if self.rows.usd else math.nan,
            difference=difference,
            difference_ci=ends,
        )

    def weak_keeps_quality(self) -> bool:
        """Is the weak model alone shown to keep the quality? On all rows, by betting."""
        rows = self.rows
        values = rows.weight * (rows.weak - self.wishes.min_quality * rows.strong)
        return bool(self._shown(values[:, None], -self.wishes.min_quality, 1.0)[0])

    def _shown(self, values: Floats, low: float, high: float) -> npt.NDArray[np.bool_]:
        # In an order of its own: rows that come sorted would be no independent draws.
        order = np.random.default_rng((self.seed, SHUFFLES)).permutation(len(values))
        return betting(values[order], low, high, 1 - self.wishes.confidence)

    def beats_random(self) -> bool | None:
        """At each comparison with a random mix, at 5%; None where all rows go to one model."""
        if not self.chance or any(math.isnan(found.z) for found in self.chance.values()):
            return None
        return all(found.p_value <= CHANCE for found in self.chance.values())

    def routes(self) -> bool:
        """Is everything shown that `route` needs?"""
        if self.choice is None or self.found is None or not self.choice.guaranteed:
            return False
        worth = self.found.saving.value >= self.wishes.min_saving and self.found.saving.low > 0
        return bool(self.beats_random()) and worth and self._halves_agree()

    def _halves_agree(self) -> bool:
        """The first half has shown the quality; does the other, within its standard error?"""
        assert self.found is not None
        error = float(np.std(self.found.draws))
        return self.found.quality.value + error >= self.wishes.min_quality

    def every_saving_costs_too_much(self) -> bool:
        """Is each threshold with a saving worth having shown to keep too little quality?

        All rows, and about 101 thresholds. Each must fail by itself, which needs no correction.
        """
        rows, wishes = self.rows, self.wishes
        if rows.n < MIN_ROWS:
            return False
        bill = float(rows.weight @ rows.strong_cost)
        thresholds, _ = achievable(rows.scores)
        columns = []
        for threshold in thresholds[:: max(1, len(thresholds) // PROOF_THRESHOLDS)]:
            d = rows.sends(float(threshold))
            paid = rows.weight @ (rows.weak_cost + d * (rows.strong_cost - rows.weak_cost))
            if 1 - float(paid) / bill >= wishes.min_saving:
                routed = rows.weak + d * (rows.strong - rows.weak)
                columns.append(rows.weight * (wishes.min_quality * rows.strong - routed))
        if not columns:
            return False
        return bool(self._shown(np.column_stack(columns), -1.0, wishes.min_quality).all())

    def useless(self) -> bool:
        """Is a router worth having excluded? By the interval of APGR, which chooses no threshold
        and so uses all rows."""
        return self.rows.n >= ENOUGH_TO_EXCLUDE and self.curve.apgr.high < WORTH_APGR

    def weak_needs(self) -> float:
        """Labels at which the weak model alone would be shown to keep the quality."""
        rows = self.rows
        values = rows.weight * (rows.weak - self.wishes.min_quality * rows.strong)
        mean, spread = float(values.mean()), float(values.std())
        if self.weak.quality.high < self.wishes.min_quality:
            return math.inf
        wanted = (_quantile(self.wishes.confidence) + Z80) * spread
        # Until there are labels enough to see it: half-way from what is wanted to no loss at all.
        effect = 0.5 * (1 - self.wishes.min_quality) * float((rows.weight * rows.strong).mean())
        if mean < effect and effect > 0 and rows.n < (wanted / effect) ** 2:
            mean = effect
        if mean <= 0:
            return math.inf
        # However little the values vary, betting needs as many draws as its largest bet takes.
        return max((wanted / mean) ** 2, math.log(1 / (1 - self.wishes.confidence)) / mean)

    def router_needs(self) -> float:
        """Labels at which everything that `route` asks for would be shown."""
        if self.choice is None or self.found is None:
            return math.inf
        if self.found.saving.value < self.wishes.min_saving and self.choice.guaranteed:
            return math.inf
        needs = [self.choice.needed_n]
        if self.choice.guaranteed and not self._halves_agree():
            needs.append(2.0 * self.rows.n)
        share = self.found.share.value
        projected = self._ranking_z() * PARABOLA * math.sqrt(max(share * (1 - share), 0.0))
        seen = self.chance["share"].z
        for found in self.chance.values():
            # What costs add to the comparison is known from the measured half alone.
            z = projected + (found.z - seen if math.isfinite(found.z - seen) else 0.0)
            # Half of the labels measure.
            needs.append(2 * labels_needed(z, len(self.second), Z95_ONE_SIDED + Z80))
        return max(needs)

    def ranks_better_than_chance(self) -> bool:
        """Does the interval of APGR, on all rows, lie above a random router's .5?"""
        return self.curve.apgr.low > 0.5

    def _ranking_z(self) -> float:
        """How many standard errors the APGR is above .5: less noisy than one threshold's test."""
        apgr = self.curve.apgr
        spread = (apgr.high - apgr.low) / (2 * Z95_TWO_SIDED)
        return (apgr.value - 0.5) / spread if spread > 0 else 0.0

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know beside the verdict."""
        told = []
        if self.rows.scores.min() == self.rows.scores.max():
            told.append("all scores are equal: this router cannot tell these prompts apart")
        ahead = [
            name
            for name, option in self.baselines.items()
            if name in self.others and option.difference_ci[1] < 0
        ]
        told += [f"{name} keeps more quality than the router at the same share" for name in ahead]
        return tuple(told)


def _best(gain: Floats, extra: Floats, sends: Floats) -> Floats:
    """As many rows to strong as `sends` has, those with the largest gain; of equals the cheapest.
    Rows where the strong model gains nothing stay with the weak one."""
    order = np.lexsort((extra, -gain))[: int(sends.sum())]
    chosen = np.zeros(len(gain))
    chosen[order[gain[order] > 0]] = 1.0
    return chosen


def _quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)

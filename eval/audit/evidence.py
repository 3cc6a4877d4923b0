"""What an audit can say of n labelled prompts: estimates, tests, and how many labels would tell.

`audit.audit` says which rows each question is asked of, and why; here they are asked.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...router.threshold import achievable, threshold_for_share
from ..bootstrap import interval
from ..guarantee.means import betting
from ..guarantee.promises import LabelledPrompts, Promise
from ..guarantee.threshold import guaranteed
from ..metrics import Floats
from .measure import (
    NAN,
    SHUFFLES,
    AgainstRandom,
    Measured,
    QualityCurve,
    Rows,
    against_random,
    curve,
    halves,
    labels_needed,
    measure,
    ranks,
)
from .verdict import AuditOption, AuditSettings

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
# With fewer rows than this nothing is looked at.
MIN_ROWS = 20
# Resamples of the whole curve, which cost more than those of one point.
CURVE_RESAMPLES = 400
# Thresholds that are looked at for the proof that every saving costs too much.
PROOF_THRESHOLDS = 101


class ChosenThreshold(NamedTuple):
    """The threshold of the first half, and about how many labels would have guaranteed one."""

    threshold: float
    guaranteed: bool
    needed_n: float


class AuditEvidence:
    """All that is computed from the rows; asks nothing of how the answers are weighed.

    `weak`: the weak model alone, on all rows. `choice`, `found`, `chance` and `baselines` are of
    the routing: the threshold of the first half, and what the second half says of it.
    """

    def __init__(
        self, rows: Rows, settings: AuditSettings, others: Mapping[str, npt.ArrayLike]
    ) -> None:
        self.rows, self.settings, self.others = rows, settings, others
        self.first, self.second = halves(rows.n, settings.seed)
        self.weak = self.measure(rows, 0.0)
        # Of each row, with its weight: above 0 on average where the weak model keeps the quality.
        self._kept = rows.weight * (rows.weak - settings.min_quality * rows.strong)
        resamples = min(settings.resamples, CURVE_RESAMPLES)
        self.curve = curve(rows, resamples=resamples, seed=settings.seed)
        self.choice: ChosenThreshold | None = None
        self.found: Measured | None = None
        self.chance: dict[str, AgainstRandom] = {}
        self.baselines: dict[str, AuditOption] = {}
        if rows.n >= MIN_ROWS:
            self._judge_router()

    def measure(self, rows: Rows, sends: float | Floats) -> Measured:
        """`measure.measure` with this audit's resamples and seed."""
        return measure(rows, sends, resamples=self.settings.resamples, seed=self.settings.seed)

    def held_curve(self) -> QualityCurve:
        """The curve of the measured half alone."""
        resamples = min(self.settings.resamples, CURVE_RESAMPLES)
        return curve(self.rows.take(self.second), resamples=resamples, seed=self.settings.seed)

    def _judge_router(self) -> None:
        held = self.rows.take(self.second)
        self.choice = self._choose(self.rows.take(self.first))
        sends = held.sends(self.choice.threshold)
        self.found = self.measure(held, sends)
        # Without costs, or with costs that differ by a constant, the spend is the share.
        extra = held.strong_cost - held.weak_cost
        differs = np.ptp(extra) > 1e-12 and (held.weight * extra).sum() > 0
        drawn = {"resamples": self.settings.resamples, "seed": self.settings.seed}
        for same in ("share", "spend")[: 1 + bool(differs)]:
            self.chance[same] = against_random(held, sends, same=same, **drawn)
        # Baselines on the measured half, at the router's own share there.
        ways: dict[str, float | Floats] = {"always-strong": 1.0, "always-weak": 0.0}
        ways["random"] = self.found.share.value
        for name, values in self.others.items():
            # Matched by scores alone: no label takes part.
            ranked = ranks(np.asarray(values, dtype=np.float64)[self.second])
            threshold, _ = threshold_for_share(ranked, float(np.mean(sends)))
            ways[name] = (ranked >= threshold).astype(np.float64)
        # As many rows to strong as the router sends, those with the largest gain, of equals the
        # cheapest; where the strong model gains nothing they stay with the weak one.
        gain = held.strong - held.weak
        best = np.lexsort((extra, -gain))[: int(sends.sum())]
        ways["oracle"] = np.isin(np.arange(held.n), best[gain[best] > 0]).astype(np.float64)
        self.baselines = {name: self.option(self.measure(held, way)) for name, way in ways.items()}

    def _choose(self, part: Rows) -> ChosenThreshold:
        """The guaranteed threshold on `part`; without one, that of the least share of strong calls
        at which the quality seen on `part` is high enough."""
        labelled = LabelledPrompts(part.scores, (part.strong, part.weak), weights=part.weight)
        # Half of the error allowed: what the other half measures is then seldom below the promise.
        half = (1 + self.settings.confidence) / 2
        promise = Promise("min_quality", self.settings.min_quality, half)
        found = guaranteed(labelled, promise, seed=self.settings.seed)
        if found.feasible:
            return ChosenThreshold(found.threshold, True, 0.0)
        thresholds, _ = achievable(part.scores)
        goal = self.settings.min_quality * (part.weight @ part.strong)
        for threshold in thresholds:
            if part.weight @ part.routed(part.sends(float(threshold))) >= goal - 1e-9:
                break
        needed = math.inf if found.needed_n is None else 2.0 * found.needed_n
        return ChosenThreshold(float(threshold), False, needed)

    def option(self, measured: Measured) -> AuditOption:
        """`measured` as it is shown, beside the router."""
        own = self.found
        assert own is not None
        difference, ends = NAN, (NAN, NAN)
        if own is not measured:
            difference = own.quality.value - measured.quality.value
            ends = interval(own.draws - measured.draws)
        return AuditOption(
            quality=measured.quality.value,
            quality_ci=measured.quality.ci,
            saving=measured.saving.value,
            saving_ci=measured.saving.ci,
            strong_pct=measured.share.value,
            usd_per_1k=1000 * measured.cost.value if self.rows.usd else NAN,
            difference=difference,
            difference_ci=ends,
        )

    def weak_keeps_quality(self) -> bool:
        """Is the weak model alone shown to keep the quality? On all rows, by betting."""
        return bool(self._shown(self._kept[:, None], -self.settings.min_quality, 1.0)[0])

    def _shown(self, values: Floats, low: float, high: float) -> npt.NDArray[np.bool_]:
        # In an order of its own: rows that come sorted would be no independent draws.
        order = np.random.default_rng((self.settings.seed, SHUFFLES)).permutation(len(values))
        return betting(values[order], low, high, 1 - self.settings.confidence)

    def beats_random(self) -> bool | None:
        """At each comparison with a random mix, at 5%; None where all rows go to one model."""
        if not self.chance or any(math.isnan(found.z) for found in self.chance.values()):
            return None
        return all(found.p_value <= CHANCE for found in self.chance.values())

    def routes(self) -> bool:
        """Is everything shown that `route` needs?"""
        if self.choice is None or self.found is None or not self.choice.guaranteed:
            return False
        worth = self.found.saving.value >= self.settings.min_saving and self.found.saving.low > 0
        return bool(self.beats_random()) and worth and self._halves_agree(self.found)

    def _halves_agree(self, found: Measured) -> bool:
        # The first half has shown the quality: does the other, within its standard error?
        return found.quality.value + float(np.std(found.draws)) >= self.settings.min_quality

    def every_saving_costs_too_much(self) -> bool:
        """Is each of about 101 thresholds with a saving worth having shown to keep too little
        quality? Each must fail by itself, which needs no correction."""
        rows, settings = self.rows, self.settings
        if rows.n < MIN_ROWS:
            return False
        bill = float(rows.weight @ rows.strong_cost)
        thresholds, _ = achievable(rows.scores)
        columns = []
        for threshold in thresholds[:: max(1, len(thresholds) // PROOF_THRESHOLDS)]:
            d = rows.sends(float(threshold))
            if 1 - float(rows.weight @ rows.paid(d)) / bill >= settings.min_saving:
                lost = settings.min_quality * rows.strong - rows.routed(d)
                columns.append(rows.weight * lost)
        if not columns:
            return False
        return bool(self._shown(np.column_stack(columns), -1.0, settings.min_quality).all())

    def useless(self) -> bool:
        """Is a router worth having excluded, by the APGR's interval on all rows?"""
        return self.rows.n >= ENOUGH_TO_EXCLUDE and self.curve.apgr.high < WORTH_APGR

    def weak_needs(self) -> float:
        """Labels at which the weak model alone would be shown to keep the quality."""
        rows, settings = self.rows, self.settings
        mean, spread = float(self._kept.mean()), float(self._kept.std())
        if self.weak.quality.high < settings.min_quality:
            return math.inf
        wanted = (NormalDist().inv_cdf(settings.confidence) + Z80) * spread
        # Until there are labels enough to see it: half-way from what is wanted to no loss at all.
        effect = 0.5 * (1 - settings.min_quality) * float((rows.weight * rows.strong).mean())
        if mean < effect and effect > 0 and rows.n < (wanted / effect) ** 2:
            mean = effect
        if mean <= 0:
            return math.inf
        # However little the values vary, betting needs as many draws as its largest bet takes.
        return max((wanted / mean) ** 2, math.log(1 / (1 - settings.confidence)) / mean)

    def router_needs(self) -> float:
        """Labels at which everything that `route` asks for would be shown."""
        if self.choice is None or self.found is None:
            return math.inf
        if self.found.saving.value < self.settings.min_saving and self.choice.guaranteed:
            return math.inf
        needs = [self.choice.needed_n]
        if self.choice.guaranteed and not self._halves_agree(self.found):
            needs.append(2.0 * self.rows.n)
        share, apgr = self.found.share.value, self.curve.apgr
        # How many standard errors the APGR is above .5: less noisy than one threshold's test.
        spread = (apgr.high - apgr.low) / (2 * Z95_TWO_SIDED)
        ranking = (apgr.value - 0.5) / spread if spread > 0 else 0.0
        projected = ranking * PARABOLA * math.sqrt(max(share * (1 - share), 0.0))
        seen = self.chance["share"].z
        for found in self.chance.values():
            # What costs add to the comparison is known from the measured half alone.
            z = projected + (found.z - seen if math.isfinite(found.z - seen) else 0.0)
            # Half of the labels measure.
            needs.append(2 * labels_needed(z, len(self.second), Z95_ONE_SIDED + Z80))
        return max(needs)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know beside the verdict."""
        told = []
        if self.rows.scores.min() == self.rows.scores.max():
            told.append("all scores are equal: this router cannot tell these prompts apart")
        for name, option in self.baselines.items():
            if name in self.others and option.difference_ci[1] < 0:
                told.append(f"{name} keeps more quality than the router at the same share")
        return tuple(told)

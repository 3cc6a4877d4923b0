"""Does routing pay here? One of: route at this threshold; weak alone; strong alone; label more.

    verdict = audit(scores, strong, weak, costs, min_quality=0.95, confidence=0.9)

Quality is the mean reward over that of the strong model; saving is the part of the strong model's
bill that is not paid (of its calls, where costs are unknown). What is tested, and on what:

weak-only    the weak model alone keeps the quality. No threshold is chosen, so all rows are used:
             E[weak - min_quality * strong] >= 0 by betting, valid at any n
             (`audit.guarantee.means`).
route        One half of the rows, at random, chooses the threshold, with the guarantee of
             `audit.guarantee`; the other half, which had no part in it, gives saving, quality and
             their intervals, and tests that the routing beats a random mix of the same share and
             one of the same spend, each at 5% (`measure.against_random`). All of it must hold, the
             measured quality be at most its standard error below the wanted one, and the saving
             worth having.
strong-only  every threshold with a saving worth having loses too much quality (each of them
             proven, on all rows; an intersection-union test needs no correction, Berger 1982,
             Technometrics 24); or nothing speaks for the router, and 1,000 labels, or an interval
             that excludes an APGR of .55, leave no hope that is worth `max_labels` of them. The
             second is a judgement of effort, not a proof.
label-more   the data lean to `route` or `weak-only` without showing it: `needed_n` labels in all
             would, four times of five, if what was seen so far is the truth; or they are few, and
             tell nothing yet.

So on scores that know nothing "route" comes at most one time in twenty. What keeps less than
`min_quality` is recommended with probability 1 - `confidence` at most where it is the weak model
alone, and with half of that where it is a threshold.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...errors import CalibrationError
from .evidence import ENOUGH_TO_REFUSE, FIRST_LABELS, MIN_ROWS, Evidence, Wishes
from .measure import Measured, Rows
from .verdict import Answer, Verdict


def audit(
    scores: npt.ArrayLike,
    strong: npt.ArrayLike,
    weak: npt.ArrayLike,
    costs: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    *,
    min_quality: float = 0.95,
    confidence: float = 0.9,
    min_saving: float = 0.05,
    max_labels: int = 10_000,
    weights: npt.ArrayLike | None = None,
    others: Mapping[str, npt.ArrayLike] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """The verdict on n labelled prompts; see the module for what is tested on which of them.

    `scores` float64[n] in [0, 1] of a router that was not trained on these rows; `strong`, `weak`
    float64[n]: rewards in [0, 1]; `costs`: USD a request on strong and on weak, float64[n] each;
    `weights` float64[n]: importance weights, after sampling that was not uniform. `min_saving` is
    the least that is worth a router, `max_labels` the most that somebody would label. `others`:
    scores of other routers, any finite numbers, shown at the same share of strong calls.

    Raises CalibrationError for options and scores out of range, EvaluationError
    for rewards, costs or weights that cannot be used.
    """
    if not 0 < min_quality <= 1:
        raise CalibrationError(f"min_quality {min_quality!r} must be a share above 0, as 0.95")
    if not 0.5 <= confidence < 1:
        raise CalibrationError(f"confidence {confidence!r} must lie from 0.5 to below 1, as 0.9")
    if not 0 <= min_saving < 1:
        raise CalibrationError(f"min_saving {min_saving!r} must be a share from 0 to 1, as 0.05")
    rows = Rows.of(scores, strong, weak, costs, weights)
    wishes = Wishes(min_quality, confidence, min_saving, max_labels)
    seen = Evidence(rows, wishes, others or {}, resamples=resamples, seed=seed)
    return _Audit(seen, wishes).verdict()


class _Audit:
    """One audit; `verdict` asks in turn: weak alone? this router? strong alone? more labels?"""

    def __init__(self, evidence: Evidence, wishes: Wishes) -> None:
        self.seen, self.wishes = evidence, wishes

    def verdict(self) -> Verdict:
        rows = self.seen.rows
        strong_cost = float(rows.weight @ rows.strong_cost)
        weak_cost = float(rows.weight @ rows.weak_cost)
        if weak_cost >= strong_cost:
            return self._strong(
                "weak-not-cheaper",
                "the weak model costs no less than the strong one on these prompts: there is "
                "nothing to save",
            )
        if self.seen.weak_keeps_quality():
            return self._weak()
        if self.seen.routes():
            return self._route()
        if self.seen.every_saving_costs_too_much():
            return self._strong(
                "too-much-quality-lost",
                f"every threshold that saves {self.wishes.min_saving:.0%} or more keeps less than "
                f"{self.wishes.min_quality:.0%} of the strong model's quality",
            )
        return self._more_or_strong()

    def _more_or_strong(self) -> Verdict:
        n = self.seen.rows.n
        if n < MIN_ROWS:
            return self._label_more(FIRST_LABELS, "too-few-rows", "so few rows tell nothing")
        weak_needs, router_needs = self.seen.weak_needs(), self.seen.router_needs()
        needed = min(weak_needs, router_needs)
        if needed <= self.wishes.max_labels:
            # It was not shown with n, so fewer than a few more cannot be what it takes.
            total = max(math.ceil(needed), math.ceil(1.1 * n))
            weak = weak_needs <= router_needs
            lean = "the weak model alone may do" if weak else "this router may pay"
            return self._label_more(total, "not-shown-yet", lean)
        if n < ENOUGH_TO_REFUSE and not self.seen.useless():
            total = max(min(ENOUGH_TO_REFUSE, self.wishes.max_labels), math.ceil(1.1 * n))
            return self._label_more(total, "no-sign-yet", "nothing speaks for this router so far")
        wishes = self.wishes
        if self.seen.beats_random() or self.seen.ranks_better_than_chance():
            return self._strong(
                "too-little-saved",
                "the router ranks better than chance, but no threshold is in sight that keeps "
                f"{wishes.min_quality:.0%} of the quality, saves {wishes.min_saving:.0%} or more "
                "and beats a random mix by what a test could show",
            )
        return self._strong(
            "no-better-than-random",
            "nothing shows that this router beats a random mix of the same "
            f"{' or '.join(self.seen.chance)}{self._chance_text()}",
        )

    def _chance_text(self) -> str:
        found = self.seen.chance.get("share")
        if found is None or not math.isfinite(found.difference.low):
            return ""
        low, high = found.difference.ci
        return f" (mean reward {found.difference.value:+.4f} [{low:+.4f}, {high:+.4f}])"

    def _route(self) -> Verdict:
        assert self.seen.found is not None and self.seen.choice is not None
        found, wishes = self.seen.found, self.wishes
        what = "of the cost" if self.seen.rows.usd else "of the strong calls"
        below = found.quality.value < wishes.min_quality
        return self._answer(
            "route",
            "saves-and-keeps-quality",
            f"threshold {self.seen.choice.threshold:g} saves {found.saving.value:.1%} {what} at "
            f"{found.quality.value:.1%} of the strong model's quality, better than a random mix; "
            f"at least {wishes.min_quality:.0%} of the quality is promised with "
            f"{wishes.confidence:.0%} confidence"
            + ("; it was measured a little below that, within its error" if below else ""),
            threshold=self.seen.choice.threshold,
            measured=found,
        )

    def _weak(self) -> Verdict:
        quality, wishes = self.seen.weak.quality, self.wishes
        kept = (
            f"keeps {quality.value:.1%} [{quality.low:.1%}, {quality.high:.1%}] of the strong "
            f"model's quality, at least {wishes.min_quality:.0%}"
            if math.isfinite(quality.value)
            else "is better: the strong model earns nothing on these prompts. That holds"
        )
        return self._answer(
            "weak-only",
            "weak-is-good-enough",
            f"the weak model alone {kept} with {wishes.confidence:.0%} confidence: no router "
            "needed",
            threshold=1.0,
            measured=self.seen.weak,
        )

    def _strong(self, reason: str, why: str) -> Verdict:
        everything = self.seen.measure(self.seen.rows, 1.0)
        return self._answer("strong-only", reason, why, threshold=0.0, measured=everything)

    def _label_more(self, total: int, reason: str, lean: str) -> Verdict:
        n = self.seen.rows.n
        return self._answer(
            "label-more",
            reason,
            f"{lean}; label about {total - n:,} more than these {n:,} to tell ({total:,} in all)",
            threshold=math.nan if self.seen.choice is None else self.seen.choice.threshold,
            measured=self.seen.found,
            needed_n=total,
        )

    def _answer(
        self,
        verdict: Answer,
        reason: str,
        why: str,
        *,
        threshold: float,
        measured: Measured | None,
        needed_n: int | None = None,
    ) -> Verdict:
        rows, nan = self.seen.rows, math.nan
        weight, kilo = rows.weight / rows.weight.sum(), 1000 if rows.usd else nan
        facts = {
            "strong_reward": float(weight @ rows.strong),
            "weak_reward": float(weight @ rows.weak),
            "strong_usd_per_1k": float(weight @ rows.strong_cost * kilo),
            "weak_usd_per_1k": float(weight @ rows.weak_cost * kilo),
            "weak_quality": self.seen.weak.quality.value,
            "weak_quality_low": self.seen.weak.quality.low,
            "weak_quality_high": self.seen.weak.quality.high,
            "weak_saving": self.seen.weak.saving.value,
        }
        return Verdict(
            verdict=verdict,
            reason=reason,
            why=why,
            threshold=threshold,
            strong_pct=nan if measured is None else measured.share.value,
            saving=nan if measured is None else measured.saving.value,
            saving_ci=(nan, nan) if measured is None else measured.saving.ci,
            saving_of="usd" if rows.usd else "strong calls",
            quality=nan if measured is None else measured.quality.value,
            quality_ci=(nan, nan) if measured is None else measured.quality.ci,
            min_quality=self.wishes.min_quality,
            confidence=self.wishes.confidence,
            n=rows.n,
            n_chosen_on=0 if self.seen.found is None else len(self.seen.first),
            n_measured=0 if self.seen.found is None else len(self.seen.second),
            needed_n=needed_n,
            beats_random=self.seen.beats_random(),
            against_random=self.seen.chance,
            guaranteed=self.seen.choice is not None and self.seen.choice.guaranteed,
            candidate=None if self.seen.found is None else self.seen.option(self.seen.found),
            candidate_threshold=nan if self.seen.choice is None else self.seen.choice.threshold,
            baselines=self.seen.baselines,
            weighted=bool(np.ptp(rows.weight) > 0),
            seed=self.seen.seed,
            curve=self.seen.curve,
            warnings=self.seen.warnings(),
            facts=facts,
        )

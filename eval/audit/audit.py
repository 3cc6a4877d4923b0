"""Does routing pay here? One of: route at this threshold; weak alone; strong alone; label more.

    verdict = audit(Rows.of(scores, strong, weak, costs), AuditSettings(min_quality=0.95))

Quality is the mean reward over that of the strong model; saving is the part of the strong model's
bill that is not paid (of its calls, where costs are unknown). What is tested, and on what:

weak-only    the weak model alone keeps the quality. No threshold is chosen, so all rows are used:
             E[weak - min_quality * strong] >= 0 by betting, valid at any n (`guarantee.means`).
route        One half of the rows, at random, chooses the threshold, with the guarantee of
             `guarantee.threshold`; the other half, which had no part in it, gives saving, quality
             and their intervals, and tests that the routing beats a random mix of the same share
             and one of the same spend, each at 5% (`measure.against_random`). All of it must hold,
             the measured quality be at most its standard error below the wanted one, and the saving
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

from .evidence import ENOUGH_TO_REFUSE, MIN_ROWS, AuditEvidence
from .measure import NAN, Figure, Rows
from .verdict import Answer, AuditSettings, AuditVerdict

# So many labels are asked for where there are too few to look at.
FIRST_LABELS = 200


def audit(
    rows: Rows,
    settings: AuditSettings | None = None,
    others: Mapping[str, npt.ArrayLike] | None = None,
) -> AuditVerdict:
    """The verdict on labelled prompts; see the module for what is tested on which of them.

    `rows`: with the scores of a router that was not trained on these prompts. `others`: scores of
    other routers, any finite numbers, shown at the same share of strong calls.
    """
    seen = AuditEvidence(rows, settings or AuditSettings(), others or {})
    verdict, reason, why, needed = _decide(seen)
    candidate = NAN if seen.choice is None else seen.choice.threshold
    threshold, measured = candidate, seen.found
    if verdict == "weak-only":
        threshold, measured = 1.0, seen.weak
    elif verdict == "strong-only":
        threshold, measured = 0.0, seen.measure(rows, 1.0)
    none = Figure(NAN, NAN, NAN)
    saving, quality = (measured.saving, measured.quality) if measured else (none, none)
    weight, kilo = rows.weight / rows.weight.sum(), 1000 if rows.usd else NAN
    weak, found = seen.weak, seen.found
    return AuditVerdict(
        verdict=verdict,
        reason=reason,
        why=why,
        threshold=threshold,
        strong_pct=measured.share.value if measured else NAN,
        saving=saving.value,
        saving_ci=saving.ci,
        saving_of="usd" if rows.usd else "strong calls",
        quality=quality.value,
        quality_ci=quality.ci,
        min_quality=seen.settings.min_quality,
        confidence=seen.settings.confidence,
        n=rows.n,
        n_chosen_on=len(seen.first) if found else 0,
        n_measured=len(seen.second) if found else 0,
        needed_n=needed,
        beats_random=seen.beats_random(),
        against_random=seen.chance,
        guaranteed=seen.choice is not None and seen.choice.guaranteed,
        candidate=None if found is None else seen.option(found),
        candidate_threshold=candidate,
        baselines=seen.baselines,
        weighted=bool(np.ptp(rows.weight) > 0),
        seed=seen.settings.seed,
        curve=seen.curve,
        drawn=seen.curve if found is None or verdict == "weak-only" else seen.held_curve(),
        warnings=seen.warnings(),
        facts={
            "strong_reward": float(weight @ rows.strong),
            "weak_reward": float(weight @ rows.weak),
            "strong_usd_per_1k": float(weight @ rows.strong_cost * kilo),
            "weak_usd_per_1k": float(weight @ rows.weak_cost * kilo),
            "weak_quality": weak.quality.value,
            "weak_quality_low": weak.quality.low,
            "weak_quality_high": weak.quality.high,
            "weak_saving": weak.saving.value,
        },
    )


# The verdict, a word for the reason, the reason in a sentence, and how many labels would tell.
_Decision = tuple[Answer, str, str, int | None]


def _decide(seen: AuditEvidence) -> _Decision:
    """Asks in turn: weak alone? this router? strong alone? more labels?"""
    rows, settings, quality, found = seen.rows, seen.settings, seen.weak.quality, seen.found
    wanted, sure = f"{settings.min_quality:.0%}", f"{settings.confidence:.0%} confidence"
    if float(rows.weight @ rows.weak_cost) >= float(rows.weight @ rows.strong_cost):
        why = (
            "the weak model costs no less than the strong one on these prompts: there is nothing "
            "to save"
        )
        return "strong-only", "weak-not-cheaper", why, None
    if seen.weak_keeps_quality():
        kept = "is better: the strong model earns nothing on these prompts. That holds"
        if math.isfinite(quality.value):
            kept = (
                f"keeps {quality.value:.1%} [{quality.low:.1%}, {quality.high:.1%}] of the strong "
                f"model's quality, at least {wanted}"
            )
        why = f"the weak model alone {kept} with {sure}: no router needed"
        return "weak-only", "weak-is-good-enough", why, None
    if seen.routes():
        assert found is not None and seen.choice is not None
        what = "of the cost" if rows.usd else "of the strong calls"
        below = found.quality.value < settings.min_quality
        why = (
            f"threshold {seen.choice.threshold:g} saves {found.saving.value:.1%} {what} at "
            f"{found.quality.value:.1%} of the strong model's quality, better than a random mix; "
            f"at least {wanted} of the quality is promised with {sure}"
            + ("; it was measured a little below that, within its error" if below else "")
        )
        return "route", "saves-and-keeps-quality", why, None
    if seen.every_saving_costs_too_much():
        why = (
            f"every threshold that saves {settings.min_saving:.0%} or more keeps less than "
            f"{wanted} of the strong model's quality"
        )
        return "strong-only", "too-much-quality-lost", why, None
    return _more_or_strong(seen)


def _more_or_strong(seen: AuditEvidence) -> _Decision:
    n, settings = seen.rows.n, seen.settings

    def more(total: int, reason: str, lean: str) -> _Decision:
        why = f"{lean}; label about {total - n:,} more than these {n:,} to tell ({total:,} in all)"
        return "label-more", reason, why, total

    if n < MIN_ROWS:
        return more(FIRST_LABELS, "too-few-rows", "so few rows tell nothing")
    weak_needs, router_needs = seen.weak_needs(), seen.router_needs()
    needed = min(weak_needs, router_needs)
    # It was not shown with n, so fewer than a few more cannot be what it takes.
    least = math.ceil(1.1 * n)
    if needed <= settings.max_labels:
        weak = weak_needs <= router_needs
        lean = "the weak model alone may do" if weak else "this router may pay"
        return more(max(math.ceil(needed), least), "not-shown-yet", lean)
    if n < ENOUGH_TO_REFUSE and not seen.useless():
        total = max(min(ENOUGH_TO_REFUSE, settings.max_labels), least)
        return more(total, "no-sign-yet", "nothing speaks for this router so far")
    if seen.beats_random() or seen.curve.apgr.low > 0.5:
        why = (
            "the router ranks better than chance, but no threshold is in sight that keeps "
            f"{settings.min_quality:.0%} of the quality, saves {settings.min_saving:.0%} or more "
            "and beats a random mix by what a test could show"
        )
        return "strong-only", "too-little-saved", why, None
    share = seen.chance["share"].difference
    told = f" (mean reward {share.value:+.4f} [{share.low:+.4f}, {share.high:+.4f}])"
    why = (
        "nothing shows that this router beats a random mix of the same "
        f"{' or '.join(seen.chance)}{told if math.isfinite(share.low) else ''}"
    )
    return "strong-only", "no-better-than-random", why, None

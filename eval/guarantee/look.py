"""A promise of a second look: (low, high, threshold) together, at a stated confidence.

What is tested, and in which order, comes from the labels of the look's training alone: the policies
that `eval.second_look.policies` finds at these prices, with steps between neighbours, from always
strong to always weak. Other labels, which the router has not learned from, then test them one by
one as `threshold` does it. That is fixed-sequence testing after a split of the data (Learn then
Test, arXiv 2110.01052, section 2.3 and its split): the labels that test have chosen
neither the policies nor their order, hence no correction for how many there are.
"""

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...router.second_look import LookPolicy, SecondLook
from ...router.threshold import achievable, sigmoid
from ..metrics import Floats
from ..printing import json_safe
from ..second_look import NOTHING, Prices, outcome_masks, outcomes, policies
from .means import Bools
from .promises import LabelledPrompts, Promise
from .threshold import Guarantee, guaranteed_way

ALWAYS_STRONG = LookPolicy(0.0, 0.0, NOTHING)
STEPS = 4  # from a policy of the search to the next one


@dataclass(frozen=True)
class LookGuarantee:
    """A policy, what is promised of it, and what it does on the n labelled prompts.

    `guarantee`: as of a threshold; `strong_pct` is the share of strong's answers, `cost` and
    `saving` count all calls, `cost` in USD where `usd`, else in weak calls. `looked`, `escalated`:
    shares of the prompts. `latency_ms`: mean of the calls of a request, one after the other, for
    the policy, always strong and always weak; None where the data do not tell. `note`: why nothing
    is looked at, else empty.
    """

    policy: LookPolicy
    guarantee: Guarantee
    looked: float
    escalated: float
    prices: Prices
    usd: bool
    latency_ms: dict[str, float] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON of the command line."""
        plain = self.guarantee.to_dict()
        if not self.usd:
            plain |= {"usd_per_1k": None}
        plain |= {**asdict(self.policy), "looked": self.looked, "escalated": self.escalated}
        plain |= {"price_ratio": self.prices.ratio, "second_price": self.prices.second}
        plain |= {"latency_ms": self.latency_ms, "note": self.note}
        safe: dict[str, Any] = json_safe(plain)
        return safe

    @property
    def promise(self) -> dict[str, Any]:
        """What is kept beside the policy."""
        found = self.guarantee
        names = ("promise", "target", "confidence", "n", "seed", "quality_bound")
        return {**{n: getattr(found, n) for n in names}, "price_ratio": self.prices.ratio}


def sequence_of(look: SecondLook, prices: Prices, gap: float) -> tuple[list[LookPolicy], str]:
    """The policies to test, from always strong to always weak, as the labels of the look's training
    have them; and, where these are of the prompt alone, why.

    gap: the part of strong's gain that is to be recovered, about; where the prompt alone recovers
    it as cheaply on those labels, nothing is looked at.
    """
    sample = np.array(look.sample)
    scores, looks, gain = sigmoid(sample[:, 0]), sample[:, 1], sample[:, 2]
    found, used = policies(look, prices)
    by_prompt = [LookPolicy(t, t, NOTHING) for t in achievable(scores)[0].tolist()[::-1]]
    by_look = _with_steps(found[::-1], scores, looks)
    least = []
    for family in (by_prompt, by_look):
        cost, earned = (each.mean(0) for each in outcomes(family, scores, looks, gain, prices))
        least.append(float(np.min(cost[earned >= gap * gain.mean()], initial=1.0)))
    if not used:
        return by_prompt, "its labels do not show that looking helps at these prices"
    if least[0] <= least[1]:
        return by_prompt, "the prompt alone is as cheap on the labels of its training"
    return by_look, ""


def guaranteed_look(
    look: SecondLook,
    prompts: LabelledPrompts,
    looks: Floats,
    promise: Promise,
    prices: Prices,
    *,
    seed: int = 0,
) -> LookGuarantee:
    """The cheapest policy that keeps the promise with its confidence.

    prompts: labelled, with the router's scores, that router and look have not learned from, with
    costs in USD or none. looks float64[n]: the look's probabilities. Raises ConfigError for a
    budget, and CalibrationError as `guaranteed`.
    """
    if not promise.from_strong or prompts.rewards is None:
        raise ConfigError("a second look is promised a quality, a part of the gap or a regret")
    family, note = sequence_of(look, prices, wanted_gap(look, promise))
    ways = ways_of(family, prompts.scores, looks)
    strong, weak = prompts.costs or (np.full(len(looks), prices.ratio), np.ones(len(looks)))
    weight = prompts.relative_weights / prompts.relative_weights.sum()

    def cost_of(policy: LookPolicy) -> float:
        at_once, looked, escalated = outcome_masks(policy, prompts.scores, looks)
        paid = np.where(at_once, strong, weak) + looked * prices.second * weak
        return float(weight @ (paid + escalated * strong))

    costs = np.array([cost_of(policy) for policy in family])
    guarantee, place = guaranteed_way(prompts, promise, ways, costs, seed=seed)
    policy, cost, always = family[place], float(costs[place]), float(costs[0])
    if guarantee.feasible and not place:
        note = "always strong costs no more on these prompts"
    saving = 1 - cost / always if always > 0 else None
    _, looked, escalated = outcome_masks(policy, prompts.scores, looks)
    usd = prompts.costs is not None
    return LookGuarantee(
        policy=policy,
        guarantee=replace(guarantee, cost=cost, saving=saving, threshold=policy.threshold),
        looked=float(weight @ looked),
        escalated=float(weight @ escalated),
        prices=prices,
        usd=usd,
        note=note,
    )


def wanted_gap(look: SecondLook, promise: Promise) -> float:
    """The part of strong's gain over weak that the promise comes to on the labels of the look's
    training."""
    gain = float(np.array(look.sample)[:, 2].mean())
    if promise.name == "min_gap" or gain <= 0:
        return promise.target
    strong = float(look.facts.get("strong_mean", 1.0))
    lost = promise.target if promise.name == "max_regret" else (1 - promise.target) * strong
    return 1 - lost / gain


def ways_of(family: list[LookPolicy], scores: Floats, looks: Floats) -> Bools:
    """Which of n prompts the strong model answers by each of m policies: bool[n, m]."""
    masks = (outcome_masks(policy, scores, looks) for policy in family)
    found: Bools = np.stack([at_once | escalated for at_once, _, escalated in masks], axis=1)
    return found


def policy_text(policy: LookPolicy) -> str:
    """What a policy does, in a few words."""
    low, high, limit = (f"{t:.4g}" for t in (policy.low, policy.high, policy.threshold))
    if policy.low == policy.high:
        return f"threshold {high}: the score alone decides"
    until = "" if policy.high > 1 else f", strong at once from {high} on"
    return f"looked at from score {low}, escalated from probability {limit}{until}"


def _with_steps(found: list[LookPolicy], scores: Floats, looks: Floats) -> list[LookPolicy]:
    """Always strong, the policies of a search, and steps from each to the next, by the ranks of its
    thresholds among those of the training. The first steps go from a look that escalates all."""
    ordered = [np.sort(scores), np.sort(scores), np.sort(looks)]

    def ranks(policy: LookPolicy) -> Floats:
        limits = (policy.low, policy.high, policy.threshold)
        return np.array([np.searchsorted(v, t) for v, t in zip(ordered, limits, strict=True)])

    def policy(at: Floats) -> LookPolicy:
        places = at.round().astype(int)
        limits = [
            float(np.append(v, NOTHING)[i]) if i else 0.0
            for v, i in zip(ordered, places, strict=True)
        ]
        return LookPolicy(limits[0], max(limits[:2]), limits[2])

    steps = np.linspace(0, 1, STEPS, endpoint=False)
    chain = [LookPolicy(0.0, found[0].high, 0.0), *found]
    between = [
        policy(one + part * (other - one))
        for one, other in itertools.pairwise(map(ranks, chain))
        for part in steps
    ]
    return list(dict.fromkeys([ALWAYS_STRONG, *between, found[-1]]))

"""What a second look is worth: quality against cost, all calls counted.

A request costs 1 where the weak model answers, r (the price ratio) where the strong one does at
once, 1 + s where the weak answer is looked at and stays, and 1 + s + r where it does not; s is 1
for a look that asks for a second cheap answer, else 0. Cost-APGR(r) is the area under PGR against
(cost - 1) / (r - 1), from 0 to 1: a random mix of the two models has .5, and for routing by the
prompt alone it is APGR. Between two policies a random mix of them is possible, hence straight
lines.

The policies of a look are those that earn most for each value of a unit of cost, by search over all
(low, high, threshold) on the labelled prompts of its training, low and high at quantiles of the
score. What is searched is the expected gain and not the labels, whose noise three thresholds would
fit: a line in the look, and where strong answers at once the mean of it and a line in the score.
The policies are those of the prompt alone where the labels do not show that the look says more than
the score, and at prices at which looking would not raise the area by `LEAST_RISE`, in the mean of
what is expected and what the labels show.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..router.second_look import LookPolicy, SecondLook
from ..router.threshold import sigmoid
from .bootstrap import interval, resample_counts
from .metrics import Floats, Interval
from .printing import json_safe

PRICE_RATIO = 20.0  # where none is given: of a strong call, in weak calls
POLICIES = ("prompt", "second-look", "always-look")
NOTHING = 2.0  # a threshold that no score and no probability reaches
LIMITS = 201  # thresholds of a curve
QUANTILES = 21  # of the score, where low and high may lie
VALUES = np.geomspace(0.002, 1.5, 120)  # of a strong call, in units of the reward
LEAST_RISE = 0.02  # of cost-APGR, for a look to be used; chosen on MMLU-Pro, CRUX, MATH and KOR
GRID = np.linspace(0.0, 1.0, 401)


@dataclass(frozen=True)
class Prices:
    """In units of a call of the weak model: `ratio` of a strong call, `second` of a look."""

    ratio: float
    second: float = 0.0

    def __post_init__(self) -> None:
        if not (1 < self.ratio < 1e6 and 0 <= self.second < 1e6):
            raise EvaluationError(
                f"price ratio {self.ratio:g}: expected what a strong call costs in weak calls, "
                "above 1"
            )


@dataclass(frozen=True)
class LookRow:
    """One policy: cost-APGR with its 95% bootstrap interval, and the least cost, as a part of
    always strong's, that recovers 90% of the gap. `difference`: from `prompt`, paired."""

    policy: str
    apgr_cost: float
    ci: Interval
    cost_at_90: float
    difference: float
    difference_ci: Interval


@dataclass(frozen=True)
class LookReport:
    """All policies on n labelled prompts. `used`: whether `second-look` looks at all at this price.
    `looked`, `escalated`: shares of the prompts by the bundle's own thresholds."""

    results: tuple[LookRow, ...]
    n: int
    price_ratio: float
    second: str | None
    used: bool
    looked: float
    escalated: float
    strong_mean: float
    weak_mean: float
    seed: int
    bootstraps: int
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: NaN becomes None."""
        value: dict[str, Any] = json_safe(asdict(self))
        return value


def prices_of(look: SecondLook, ratio: float) -> Prices:
    """What calls and looks cost at a price ratio: a second answer counts as one more weak call."""
    return Prices(ratio, float("agreement" in look.signals))


def measure_look(
    look: SecondLook,
    scores: Floats,
    looks: Floats,
    rewards: tuple[Floats, Floats],
    ratio: float,
    *,
    seed: int = 0,
    bootstraps: int = 1000,
) -> LookReport:
    """Every policy on n prompts: scores, looks and rewards (strong, weak), float64[n] each, of
    prompts that the look was not fitted on. Raises EvaluationError where strong is not better."""
    prices, (strong, weak) = prices_of(look, ratio), rewards
    gain = strong - weak
    if not gain.mean() > 0:
        raise EvaluationError(
            f"the strong model's mean reward {strong.mean():.4f} is not above the weak model's "
            f"{weak.mean():.4f}: there is no gap to recover; swap the two models"
        )
    chosen, used = policies(look, prices)
    prompt = [LookPolicy(t, t, NOTHING) for t in _limits(scores)]
    families = (
        prompt,
        chosen if used else prompt,
        [LookPolicy(0.0, NOTHING, t) for t in _limits(looks)],
    )
    n, curves = len(scores), []
    for family in families:
        cost, earned = outcomes(family, scores, looks, gain, prices)
        drawn = areas(cost, earned, gain, bootstraps, seed)
        curves.append((cost.mean(0), earned.mean(0), drawn))
    rows = []
    total = float(gain.mean())
    first = area(curves[0][0], curves[0][1], total)
    for name, (cost_mean, earned_mean, drawn_areas) in zip(POLICIES, curves, strict=True):
        value = area(cost_mean, earned_mean, total)
        rows.append(
            LookRow(
                policy=name,
                apgr_cost=value,
                ci=interval(drawn_areas),
                cost_at_90=_cost_at(cost_mean, earned_mean, total, ratio),
                difference=value - first,
                difference_ci=interval(drawn_areas - curves[0][2]),
            )
        )
    _, looked, escalated = outcome_masks(look.policy, scores, looks)
    return LookReport(
        results=tuple(rows),
        n=n,
        price_ratio=ratio,
        second=look.second,
        used=used,
        looked=float(looked.mean()),
        escalated=float(escalated.mean()),
        strong_mean=float(strong.mean()),
        weak_mean=float(weak.mean()),
        seed=seed,
        bootstraps=bootstraps,
    )


def policies(look: SecondLook, prices: Prices) -> tuple[list[LookPolicy], bool]:
    """Policies from always weak to always strong at these prices, and whether they look at all."""
    sample = np.array(look.sample)
    scores, looks, gain = sigmoid(sample[:, 0]), sample[:, 1], sample[:, 2]
    prompt = [LookPolicy(t, t, NOTHING) for t in _limits(scores)]
    by_score = _line(look.gain["score"], sample[:, 0])
    by_look = _line(look.gain["look"], looks)
    if not look.tells or not by_score.mean() > 0:
        return prompt, False
    found = search(scores, looks, (by_score + by_look) / 2, by_look, prices)

    def rise(at_once: Floats, escalated: Floats) -> float:
        """What looking adds to the area, where strong brings these gains: float64[n] each."""
        areas_of = []
        for family in (found, prompt):
            cost, earned = outcomes(family, scores, looks, at_once, prices, escalated)
            areas_of.append(area(cost.mean(0), earned.mean(0), float(at_once.mean())))
        return areas_of[0] - areas_of[1]

    expected, labelled = rise(by_score, by_look), rise(gain, gain)
    if not (expected + labelled) / 2 > LEAST_RISE:
        return prompt, False
    return found, True


def search(
    scores: Floats, looks: Floats, by_score: Floats, by_look: Floats, prices: Prices
) -> list[LookPolicy]:
    """For each value of a strong call the (low, high, threshold) that earns most on n prompts.

    by_score, by_look: the gain that strong is expected to bring, float64[n], told by the score and
    by the look.
    """
    n, ends = len(scores), np.quantile(scores, np.linspace(0, 1, QUANTILES))
    ends[0], ends[-1] = 0.0, NOTHING
    m = len(ends)
    place = np.clip(np.searchsorted(ends, scores, side="right") - 1, 0, m - 2)
    order = np.argsort(-looks, kind="stable")
    limits = np.append(NOTHING, looks[order])
    # earned[k, j], calls[k, j]: of the k highest looks, those below the j-th end of the score.
    at = np.zeros((n, m - 1))
    at[np.arange(n), place[order]] = 1.0
    earned, calls = np.zeros((n + 1, m)), np.zeros((n + 1, m))
    earned[1:, 1:] = np.cumsum(np.cumsum(at * by_look[order, None], axis=0), axis=1)
    calls[1:, 1:] = np.cumsum(np.cumsum(at, axis=0), axis=1)
    below = np.append(0.0, np.cumsum(np.bincount(place, minlength=m - 1)))
    gains = np.append(0.0, np.cumsum(np.bincount(place, by_score, minlength=m - 1)))
    found: list[LookPolicy] = []
    for value in VALUES[::-1].tolist():
        unit = value / prices.ratio  # of a weak call
        net = earned - value * calls
        best, policy = -np.inf, LookPolicy(NOTHING, NOTHING, NOTHING)
        for low in range(m):
            here = net[:, low:] - net[:, low : low + 1]
            k = np.argmax(here, axis=0)
            looked = here[k, np.arange(m - low)] - unit * prices.second * (below[low:] - below[low])
            at_once = gains[-1] - gains[low:] - unit * (prices.ratio - 1) * (n - below[low:])
            high = int(np.argmax(looked + at_once))
            if looked[high] + at_once[high] > best + 1e-12:
                best = float(looked[high] + at_once[high])
                policy = LookPolicy(
                    float(ends[low]), float(ends[low + high]), float(limits[k[high]])
                )
        if policy not in found:
            found.append(policy)
    return found


def cheapest(look: SecondLook, ratio: float, gap: float) -> LookPolicy:
    """The cheapest policy that recovers the part `gap` of what strong is better by, as the labels
    of the look's training show it; no promise."""
    prices = prices_of(look, ratio)
    sample = np.array(look.sample)
    found, _ = policies(look, prices)
    found = [*found, LookPolicy(0.0, 0.0, NOTHING)]
    cost, earned = outcomes(found, sigmoid(sample[:, 0]), sample[:, 1], sample[:, 2], prices)
    enough = np.flatnonzero(earned.mean(0) >= gap * sample[:, 2].mean())
    best = int(enough[np.argmin(cost.mean(0)[enough])]) if enough.size else len(found) - 1
    return found[best]


def outcome_masks(
    policy: LookPolicy, scores: Floats, looks: Floats
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of n prompts go to strong at once, are looked at, and escalate: bool[n] each."""
    at_once = scores >= policy.high
    looked = (scores >= policy.low) & ~at_once
    return at_once, looked, looked & (looks >= policy.threshold)


def outcomes(
    family: Sequence[LookPolicy],
    scores: Floats,
    looks: Floats,
    gain: Floats,
    prices: Prices,
    escalated_gain: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Cost above the weak model's as a part of what strong costs more, and gain over weak, of n
    prompts by m policies: float64[n, m] each. The gain after a look may be another estimate."""
    after = gain if escalated_gain is None else escalated_gain
    cost, earned = np.empty((2, len(scores), len(family)))
    for j, policy in enumerate(family):
        at_once, looked, escalated = outcome_masks(policy, scores, looks)
        paid = np.where(at_once, prices.ratio - 1, looked * prices.second)
        cost[:, j] = (paid + escalated * prices.ratio) / (prices.ratio - 1)
        earned[:, j] = gain * at_once + after * escalated
    return cost, earned


def area(cost: Floats, earned: Floats, total: float) -> float:
    """Cost-APGR from the mean cost and gain of policies; NaN where there is no gap."""
    if not total > 0:
        return float("nan")
    c, g = np.append([0.0, 1.0], cost), np.append([0.0, total], earned)
    order = np.argsort(c, kind="stable")
    return float(np.trapezoid(np.interp(GRID, c[order], g[order] / total), GRID))


def areas(cost: Floats, earned: Floats, gain: Floats, resamples: int, seed: int) -> Floats:
    """Cost-APGR of the policies on bootstrap resamples of the prompts: float64[resamples]."""
    n, found = len(gain), []
    for counts in resample_counts(n, resamples, seed=seed):
        means = zip(counts @ cost / n, counts @ earned / n, counts @ gain / n, strict=True)
        found += [area(c, e, float(total)) for c, e, total in means]
    return np.array(found)


def _cost_at(cost: Floats, earned: Floats, total: float, ratio: float) -> float:
    """The least cost of a policy that recovers 90% of the gap, as a part of always strong's."""
    enough = earned >= 0.9 * total - 1e-12
    least = min(float(np.min(cost[enough], initial=1.0)), 1.0)
    return (1 + least * (ratio - 1)) / ratio


def _limits(values: Floats) -> list[float]:
    """Thresholds from one that nothing reaches to one that all do, at most LIMITS of them."""
    distinct = np.unique(values)[::-1]
    picked = np.unique(np.linspace(0, len(distinct) - 1, LIMITS).round().astype(int))
    return [NOTHING, *distinct[picked].tolist()]


def _line(of: tuple[float, float], x: Floats) -> Floats:
    return of[0] + of[1] * x

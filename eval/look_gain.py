"""Whether a second look pays on labelled prompts, and from which price ratio on."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..router.second_look import LookPolicy, SecondLook
from .metrics import Floats, Interval
from .printing import interval_text, json_safe
from .second_look import NOTHING, measure_look, outcomes, policies, prices_of

RATIOS = (2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)
RESAMPLES = 200
POINTS = 101  # of the prompt's curve
NEVER = float("inf")
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LookGain:
    """What a look adds to the prompt alone on n prompts, at the price ratio `ratio`.

    `difference`: of cost-APGR, with its 95% interval; `pays`: it is above 0. `starts`: the least of
    RATIOS from which on it is above 0 as measured, infinite where it never is; `starts_ci`: the
    same by the upper and by the lower end of the 95% intervals. `prompt`, `look`: points (cost,
    quality), each as a part of always strong's. `why`: all this in a sentence.
    """

    n: int
    ratio: float
    pays: bool
    difference: float
    difference_ci: Interval
    starts: float
    starts_ci: Interval
    prompt: Curve
    look: Curve
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON; what never happens is null."""
        safe: dict[str, Any] = json_safe(asdict(self))
        return safe


def look_gain(
    look: SecondLook,
    scores: Floats,
    looks: Floats,
    rewards: tuple[Floats, Floats],
    ratio: float,
    *,
    seed: int = 0,
) -> LookGain | None:
    """What the look adds; float64[n] each, of prompts that it has not learned from. None where
    strong is not better, or costs no more: then there is nothing to look for."""
    if not np.mean(rewards[0] - rewards[1]) > 0 or ratio <= 1:
        return None
    found = {
        r: measure_look(look, scores, looks, rewards, r, seed=seed, bootstraps=RESAMPLES)
        for r in sorted({*RATIOS, ratio})
    }

    def gain_at(r: float) -> tuple[float, Interval]:
        row = found[r].results[1]
        return row.difference, row.difference_ci

    difference, own_ci = gain_at(ratio)

    def starts(values: list[float]) -> float:
        # From the dearest down, as long as looking is better.
        last = NEVER
        for r, value in reversed(list(zip(RATIOS, values, strict=True))):
            if not value > 0:
                break
            last = r
        return last

    gains = [gain_at(r) for r in RATIOS]
    least = starts([ends[1] for _, ends in gains]), starts([ends[0] for _, ends in gains])
    pays, first = own_ci[0] > 0, starts([value for value, _ in gains])
    gain = f"{difference:+.3f} {interval_text(own_ci, '{:+.3f}')} of cost-APGR"
    where = f"at a price ratio of {ratio:.3g}"
    if pays:
        why = f"it pays {where} ({gain}), and from about {_ratio(first)} on"
    elif not any(found[r].used for r in RATIOS):
        why = "nothing to gain: its labels do not show that the answer tells more than the prompt"
    elif least[1] < NEVER:
        why = f"it is not shown to pay {where} ({gain}); it does from about {_ratio(least[1])} on"
    else:
        why = f"nothing to gain is shown here: {gain} {where}, and at no higher one"
    if first < NEVER and found[ratio].used:
        why += f" [{_ratio(least[0])}, {_ratio(least[1])}]"
    prompt, second = _curves(look, scores, looks, rewards, ratio)
    return LookGain(
        n=len(scores),
        ratio=ratio,
        pays=pays,
        difference=difference,
        difference_ci=own_ci,
        starts=first,
        starts_ci=least,
        prompt=prompt,
        look=second,
        why=why,
    )


def _ratio(value: float) -> str:
    return "never" if value == NEVER else f"{value:g}"


def _curves(
    look: SecondLook,
    scores: Floats,
    looks: Floats,
    rewards: tuple[Floats, Floats],
    ratio: float,
) -> tuple[Curve, Curve]:
    """Cost against quality by the prompt alone and with the look, from always weak to always
    strong."""
    prices, (strong, weak) = prices_of(look, ratio), rewards
    limits = np.unique(np.quantile(scores, np.linspace(0, 1, POINTS)))[::-1]
    families = [LookPolicy(t, t, NOTHING) for t in limits.tolist()], policies(look, prices)[0]
    curves = []
    for family in families:
        every = [LookPolicy(NOTHING, NOTHING, NOTHING), *family, LookPolicy(0.0, 0.0, NOTHING)]
        extra, earned = outcomes(every, scores, looks, strong - weak, prices)
        cost = (1 + extra.mean(0) * (ratio - 1)) / ratio
        quality = (weak.mean() + earned.mean(0)) / strong.mean()
        order = np.argsort(cost, kind="stable")
        points = zip(cost[order].tolist(), quality[order].tolist(), strict=True)
        curves.append(tuple((float(c), float(q)) for c, q in points))
    return curves[0], curves[1]

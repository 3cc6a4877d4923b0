"""What an audit says: the verdict, and the figures that it rests on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..metrics import Interval
from ..run import json_safe
from .measure import AgainstRandom, Band

Answer = Literal["route", "weak-only", "strong-only", "label-more"]

# Fields of a verdict that its JSON gives in another form.
NOT_PLAIN = ("against_random", "candidate", "candidate_threshold", "baselines", "curve")


@dataclass(frozen=True, slots=True)
class Option:
    """One way to answer the measured half: a routing, a baseline, or a model alone.

    `difference` is the router's quality less this one's, paired, with its 95% interval; NaN for
    the router itself. `usd_per_1k` is NaN where costs are unknown.
    """

    quality: float
    quality_ci: Interval
    saving: float
    saving_ci: Interval
    strong_pct: float
    usd_per_1k: float
    difference: float
    difference_ci: Interval


@dataclass(frozen=True, eq=False)
class Verdict:
    """What to do, and what it rests on.

    `verdict`, `reason` (a word for programs), `why` (for people). `threshold`, `strong_pct`,
    `saving`, `quality` and their 95% intervals are those of what is recommended: 0 and 1 for the
    strong model, for the weak one those on all rows; for `label-more` those of the best candidate,
    or NaN. `candidate` is the routing that was judged, measured on `n_measured` rows that did not
    choose it; None where there were too few rows. `guaranteed`: its threshold keeps `min_quality`
    with `confidence`. `saving_of`: "usd", or "strong calls" where costs are unknown. `n` labels in
    all, `needed_n` in all (None unless label-more). `beats_random`: None where nothing is mixed.
    """

    verdict: Answer
    reason: str
    why: str
    threshold: float
    strong_pct: float
    saving: float
    saving_ci: Interval
    saving_of: str
    quality: float
    quality_ci: Interval
    min_quality: float
    confidence: float
    n: int
    n_chosen_on: int
    n_measured: int
    needed_n: int | None
    beats_random: bool | None
    against_random: Mapping[str, AgainstRandom]
    guaranteed: bool
    candidate: Option | None
    candidate_threshold: float
    baselines: Mapping[str, Option]
    weighted: bool
    seed: int
    curve: Band
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: what `thriftroute audit --json` prints. NaN is null."""
        value = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in NOT_PLAIN
        }
        value["apgr"], value["apgr_ci"] = self.curve.apgr.value, self.curve.apgr.ci
        value["candidate"] = None
        if self.candidate is not None:
            value["candidate"] = {"threshold": self.candidate_threshold, **_plain(self.candidate)}
        value["against_random"] = {
            same: {
                "difference": found.difference.value,
                "difference_ci": found.difference.ci,
                "p_value": found.p_value,
            }
            for same, found in self.against_random.items()
        }
        value["baselines"] = {name: _plain(option) for name, option in self.baselines.items()}
        safe = json_safe(value)
        assert isinstance(safe, dict)
        return safe


def _plain(option: Option) -> dict[str, Any]:
    return {name: getattr(option, name) for name in option.__dataclass_fields__}

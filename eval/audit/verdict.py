"""What an audit is asked, and what it says: the verdict, and the figures that it rests on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...errors import CalibrationError
from ..look_gain import LookGain
from ..metrics import Interval
from ..printing import json_safe
from .measure import AgainstRandom, QualityCurve

Answer = Literal["route", "weak-only", "strong-only", "label-more"]

# Fields of a verdict that its JSON gives in another form.
NOT_PLAIN = (
    "against_random", "candidate", "candidate_threshold", "baselines", "curve", "drawn",
    "second_look",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What is asked of a routing: keep `min_quality` with `confidence`, save `min_saving` (the
    least that is worth a router). `max_labels`: the most that somebody would label.

    Raises CalibrationError for numbers out of range.
    """

    min_quality: float = 0.95
    confidence: float = 0.9
    min_saving: float = 0.05
    max_labels: int = 10_000
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("min_quality", 0 < self.min_quality <= 1, "be a share above 0, as 0.95"),
            ("confidence", 0.5 <= self.confidence < 1, "lie from 0.5 to below 1, as 0.9"),
            ("min_saving", 0 <= self.min_saving < 1, "be a share from 0 to 1, as 0.05"),
        ):
            if not fits:
                raise CalibrationError(f"{name} {getattr(self, name)!r} must {wanted}")


@dataclass(frozen=True, slots=True)
class AuditOption:
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
class AuditVerdict:
    """What to do, and what it rests on. `reason` is for programs, `why` for people.
    `threshold`, `strong_pct`,
    `saving`, `quality` and their 95% intervals are those of what is recommended: 0 and 1 for the
    strong model, for the weak one those on all rows; for `label-more` those of the best candidate,
    or NaN. `candidate` is the routing that was judged, measured on `n_measured` rows that did not
    choose it; None where there were too few rows. `guaranteed`: its threshold keeps `min_quality`
    with `confidence`. `saving_of`: "usd", or "strong calls" where costs are unknown. `n` labels in
    all, `needed_n` in all (None unless label-more). `beats_random`: None where nothing is mixed.
    `curve` is of all rows, `drawn` of those that the shown figures are of: the measured half, but
    where the weak model alone is recommended. `second_look`: None where the router has none, or the
    data no answers.
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
    candidate: AuditOption | None
    candidate_threshold: float
    baselines: Mapping[str, AuditOption]
    weighted: bool
    seed: int
    curve: QualityCurve
    drawn: QualityCurve
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    second_look: LookGain | None = None

    @property
    def shown(self) -> Mapping[str, AuditOption]:
        """The baselines beside the routing, all of the measured half. Without the weak model where
        that is recommended: its figures are those of all rows."""
        left = "always-weak" if self.verdict == "weak-only" else ""
        return {name: option for name, option in self.baselines.items() if name != left}

    def rivals(self, names: Mapping[str, str]) -> list[str]:
        """Why not what was measured as no worse and no dearer than the routing, a sentence each;
        none where the weak model alone is the answer, which nothing is cheaper than.
        names: of baselines, as people read them."""
        own, told = self.candidate, []
        for name, one in self.shown.items() if own and self.verdict != "weak-only" else ():
            if name in ("oracle", "always-strong", "random"):
                continue
            assert own is not None
            enough = one.quality >= min(own.quality, self.min_quality)
            if enough and one.saving >= own.saving - 1e-9:
                low, high = one.quality_ci
                told.append(
                    f"{names.get(name, name)}? It has {one.quality:.1%} [{low:.1%}, {high:.1%}] of "
                    f"the quality here and saves {one.saving:.1%}, but that it keeps "
                    f"{self.min_quality:.0%} was not shown with {self.confidence:.0%} confidence"
                    + ("" if name == "always-weak" else ": audit it as a router to know")
                )
        return told

    @property
    def unit(self) -> str:
        """What a saving is a part of, in words."""
        return "the cost" if self.saving_of == "usd" else "the strong calls"

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON: what `thriftroute audit --json` prints. NaN is null."""
        value = {name: one for name, one in vars(self).items() if name not in NOT_PLAIN}
        value |= {"apgr": self.curve.apgr.value, "apgr_ci": self.curve.apgr.ci, "candidate": None}
        if self.candidate is not None:
            value["candidate"] = {"threshold": self.candidate_threshold, **asdict(self.candidate)}
        value["against_random"] = {}
        for same, one in self.against_random.items():
            gain = {"difference": one.difference.value, "difference_ci": one.difference.ci}
            value["against_random"][same] = {**gain, "p_value": one.p_value}
        value["second_look"] = self.second_look and self.second_look.to_dict()
        value["baselines"] = {name: asdict(option) for name, option in self.baselines.items()}
        safe: dict[str, Any] = json_safe(value)
        return safe

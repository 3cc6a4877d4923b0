"""Recorded decisions against a baseline: scores, strong share, novelty, feedback.

    report = examine(rows, baseline)        # rows: decisions, oldest first, as records hold them
    report.verdict                          # "ok", "drift" or "no-data"

Each of the tests gets an equal part of `alpha`. Where nothing has changed, the chance that looking
again and again at a growing stream (the same first row, ever more rows) says "drift" even once is
at most alpha. A window that moves along is a new stream at each look.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ...errors import ConfigError
from ..printing import plain
from .arms import TREATMENT
from .baseline import UNFAMILIAR, Baseline, RunningMean, sampled
from .sequential import ScoreTest, mean_interval

BUFFER = 2000  # scores handed on at once
MOST_SEEN = 1_000_000  # prompts that are known again
MOST_THRESHOLDS = 1000  # requests may bring their own
# Of a decision, what is looked at.
FIELDS = frozenset(
    {
        *("score", "threshold", "router", "model", "strong", "routed", "arm"),
        *("prompt_hash", "familiarity", "feedback"),
    }
)
_MEANING = {
    "ok": "no drift found",
    "drift": "traffic differs: calibrate again, on prompts of now (`thriftroute calibrate`)",
    "no-data": "nothing to look at yet",
}


@dataclass(frozen=True)
class Finding:
    """One test, at level `alpha`, its own part. `observed` and `expected` are shares with their
    confidence sequences; feedback has no `p_value` and drifts where the two do not overlap."""

    name: str
    drift: bool
    alpha: float
    n: int
    observed: float | None = None
    observed_interval: tuple[float, float] | None = None
    expected: float | None = None
    expected_interval: tuple[float, float] | None = None
    p_value: float | None = None
    alarm_at: int | None = None  # after so many prompts


@dataclass(frozen=True)
class DriftReport:
    """What was found; `threshold` is the one that the strong share is of, None where none was used.

    `decisions` were read, `scored` of them had a score of this router, and `n` are left when a
    prompt that comes again counts once.
    """

    verdict: Literal["ok", "drift", "no-data"]
    alpha: float
    baseline: str
    baseline_n: int
    decisions: int
    scored: int
    n: int
    threshold: float | None
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the findings by name."""
        found = asdict(self)
        found["findings"] = {item.pop("name"): item for item in found["findings"]}
        return found


class _ScoredPrompts:
    """What is read of decisions in the order of time: prompts with a score, each once."""

    def __init__(self, router: str | None, most_seen: int = MOST_SEEN) -> None:
        self._router, self._most_seen = router, most_seen
        self._seen: set[int] = set()
        self.decisions = self.scored = self.n = 0
        self.feedback = RunningMean()

    def counts(self, row: Mapping[str, Any]) -> bool:
        """Note a decision; whether it has a score of this router (None: of any), and a prompt that
        is new. An experiment's treatment is left out, being routed in another way."""
        self.decisions += 1
        if row.get("feedback") is not None:
            self.feedback = self.feedback.plus(float(row["feedback"]))
        own = row.get("score") is not None and self._router in {None, row.get("router")}
        if not own or str(row.get("arm") or "").endswith(f"/{TREATMENT}"):
            return False
        self.scored += 1
        if len(self._seen) >= self._most_seen:
            self._seen.clear()
        hash, known = row.get("prompt_hash"), len(self._seen)
        if hash is not None:  # without one it is always new
            self._seen.add(int(hash[:16], 16))
        new = hash is None or len(self._seen) > known
        self.n += new
        return new


class Examination:
    """Reads decisions as they come, in the order of time; `report` says what is known so far.

    router: only decisions scored by it; None: by any. threshold: whose strong share is looked at;
    None: the one that most of the decisions were made by. most_seen: prompts that are known again.
    Raises ConfigError for an alpha outside (0, 1).
    """

    def __init__(
        self,
        baseline: Baseline,
        *,
        alpha: float = 0.01,
        router: str | None = None,
        threshold: float | None = None,
        most_seen: int = MOST_SEEN,
    ) -> None:
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha {alpha!r}: expected a false-alarm rate between 0 and 1")
        self._baseline, self._alpha, self._threshold = baseline, alpha, threshold
        # By the baseline alone: what the stream holds must not choose the tests.
        self._part = alpha / (2 + bool(baseline.novel.n) + bool(baseline.feedback.n))
        self._stream = _ScoredPrompts(router, most_seen)
        self._test = ScoreTest(baseline.edges, baseline.counts)
        self._buffer: list[float] = []
        self._strong: dict[float, _ShareTest] = defaultdict(_ShareTest)  # by threshold
        self._novel = _ShareTest()

    def add(self, row: Mapping[str, Any]) -> None:
        """One decision: its `score`, `router`, `threshold`, `strong`, and what else is known."""
        if not self._stream.counts(row):
            return
        self._buffer.append(float(row["score"]))
        if len(self._buffer) >= BUFFER:
            self._flush()
        if row.get("familiarity") is not None:
            self._novel.hits.append(row["familiarity"] < UNFAMILIAR)
        threshold, strong = row.get("threshold"), row.get("strong")
        known = threshold in self._strong or len(self._strong) < MOST_THRESHOLDS
        if threshold is not None and strong is not None and known:
            # In shadow mode: whether the strong model would have answered.
            meant = row.get("routed") in {None, row.get("model")}
            self._strong[threshold].hits.append(bool(strong) and meant)

    def report(self) -> DriftReport:
        """Of all decisions so far."""
        self._flush()
        part, test, baseline, threshold = self._part, self._test, self._baseline, self._threshold
        findings = [
            Finding(
                "scores",
                test.p_value <= part,
                part,
                test.n,
                p_value=test.p_value,
                alarm_at=test.alarm_at,
            )
        ]
        if threshold is None and self._strong:
            threshold = max(self._strong, key=lambda t: len(self._strong[t].hits))
        if threshold is not None:
            expected = baseline.strong(threshold)
            findings.append(self._strong[threshold].finding("strong_share", expected, part))
        if baseline.novel.n:
            findings.append(self._novel.finding("novelty", baseline.novel, part))
        if baseline.feedback.n:
            findings.append(_finding("feedback", self._stream.feedback, baseline.feedback, part))
        drifts = any(finding.drift for finding in findings)
        return DriftReport(
            "drift" if drifts else "ok" if self._stream.n else "no-data",
            self._alpha,
            baseline.name,
            baseline.n,
            self._stream.decisions,
            self._stream.scored,
            self._stream.n,
            threshold,
            tuple(findings),
        )

    def _flush(self) -> None:
        self._test.add(self._buffer, alpha=self._part)
        self._buffer.clear()


class _ShareTest:
    """Whether a stream of yes and no has the share that a baseline has: ranks among two values."""

    def __init__(self) -> None:
        self.hits = bytearray()  # a 1 for each yes
        self._test: ScoreTest | None = None
        self._read = 0

    def finding(self, name: str, expected: RunningMean, alpha: float) -> Finding:
        """What the stream so far says; `expected` and `alpha` are the same at each look."""
        if self._test is None:
            yes = round(expected.total)
            self._test = ScoreTest([0.5], [expected.n - yes, yes])
        self._test.add(np.frombuffer(bytes(self.hits[self._read :]), np.uint8), alpha=alpha)
        self._read = len(self.hits)
        seen = RunningMean(self.hits.count(1), len(self.hits))
        p, at = self._test.p_value, self._test.alarm_at
        told = _finding(name, seen, expected, alpha)
        return replace(told, drift=p <= alpha, p_value=p, alarm_at=at)


def _finding(name: str, seen: RunningMean, expected: RunningMean, alpha: float) -> Finding:
    """Drift where the two confidence sequences, each at half of the level, do not overlap."""
    own, other = (mean_interval(one.total, one.n, alpha / 2) for one in (seen, expected))
    apart = own[1] < other[0] or other[1] < own[0]
    return Finding(name, apart, alpha, seen.n, seen.mean, own, expected.mean, other)


def examine(rows: Iterable[Mapping[str, Any]], baseline: Baseline, **settings: Any) -> DriftReport:
    """All of `rows` at once; settings: of `Examination`."""
    examination = Examination(baseline, **settings)
    for row in rows:
        examination.add(row)
    return examination.report()


def unlike(report: DriftReport) -> str | None:
    """What differs from the baseline, in a line: what drifts, and a strong share whose interval
    leaves out the expected one. None where nothing does."""
    found = []
    for one in report.findings:
        apart = False
        if one.expected is not None and one.observed_interval is not None:
            apart = not one.observed_interval[0] <= one.expected <= one.observed_interval[1]
        if one.drift or apart:
            name = one.name.replace("_", " ")
            if one.expected is None:
                found.append(f"{name} (p = {one.p_value:.3g})")
            else:
                share = _share(one.observed, one.observed_interval)
                found.append(f"{name} ({share}, expected {one.expected:.1%})")
    if not found:
        return None
    return f"{' and '.join(found)} of {report.n:,} prompts differ from {report.baseline!r}"


def print_drift(report: DriftReport) -> None:
    """Print a report, a test a line."""
    lines = [
        f"{report.n:,} prompts with a score, each counted once, of {report.decisions:,} decisions; "
        f"baseline {report.baseline!r}, n = {report.baseline_n:,}"
    ]
    for one in report.findings:
        end, name = "DRIFT" if one.drift else "ok", one.name.replace("_", " ")
        if one.p_value is not None:
            at = f", so at prompt {one.alarm_at:,}" if one.alarm_at is not None else ""
            end = f"p = {one.p_value:.3g}, drift where <= {one.alpha:.3g}{at}: {end}"
        if one.name == "strong_share":
            name += f" at threshold {report.threshold:.6g}"
        if one.expected is not None:
            observed = _share(one.observed, one.observed_interval)
            end = f"{observed}, expected {_share(one.expected, one.expected_interval)}; {end}"
        lines.append(f"  {name}: {end}")
    plain(
        *lines,
        f"{report.verdict}: {_MEANING[report.verdict]} (false alarms: at most {report.alpha:.3g} "
        "of streams, ever)",
    )


def _share(value: float | None, ends: tuple[float, float] | None) -> str:
    if value is None or ends is None:
        return "unknown"
    return f"{value:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"


def baseline_from(
    rows: Iterable[Mapping[str, Any]], name: str, *, router: str | None = None
) -> Baseline:
    """What later traffic is to be compared with: the same prompts counted once, as `examine` does.

    Raises CalibrationError where fewer than 50 decisions have a score.
    """
    stream, novel = _ScoredPrompts(router), RunningMean()

    def scores() -> Iterator[float]:
        nonlocal novel
        for row in rows:
            if stream.counts(row):
                if row.get("familiarity") is not None:
                    novel = novel.plus(row["familiarity"] < UNFAMILIAR)
                yield float(row["score"])

    found = sampled(scores())  # before the tallies are looked at
    return Baseline.from_scores(name, found, novel=novel, feedback=stream.feedback)

"""Recorded decisions against a baseline: scores, strong share, novelty, feedback.

    report = examine(rows, baseline)        # rows: decisions, oldest first, as records hold them
    report.verdict                          # "ok", "drift" or "no-data"

Each of the tests gets an equal part of `alpha`. Where nothing has changed, the chance that looking
again and again at a growing stream (the same first row, ever more rows) says "drift" even once is
at most alpha. A window that moves along is a new stream at each look.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ...errors import ConfigError
from .arms import TREATMENT
from .baseline import UNFAMILIAR, Baseline, Rates, sampled
from .sequential import ScoreTest, mean_interval

Verdict = Literal["ok", "drift", "no-data"]
BUFFER = 2000  # scores handed on at once
MOST_SEEN = 1_000_000  # prompts that are known again
MOST_THRESHOLDS = 1000  # requests may bring their own
FIELDS = frozenset(
    {
        *("score", "threshold", "router", "model", "strong", "routed", "arm"),
        *("prompt_hash", "familiarity", "feedback"),
    }
)  # of a decision, that are looked at


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
class Report:
    """What was found; `threshold` is the one that the strong share is of, None where none was used.

    `decisions` were read, `scored` of them had a score of this router, and `n` are left when a
    prompt that comes again counts once.
    """

    verdict: Verdict
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


class Examination:
    """Reads decisions as they come, in the order of time; `report` says what is known so far.

    router: only decisions scored by it; None: by any. threshold: whose strong share is looked at;
    None: the one that most of the decisions were made by.
    """

    def __init__(
        self,
        baseline: Baseline,
        *,
        alpha: float = 0.01,
        router: str | None = None,
        threshold: float | None = None,
    ) -> None:
        """Raises ConfigError for an alpha outside (0, 1)."""
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha {alpha!r}: expected a false-alarm rate between 0 and 1")
        self._baseline = baseline
        self._alpha = alpha
        names = ["scores", "strong_share"]
        names += ["novelty"] if baseline.novel.n else []
        names += ["feedback"] if baseline.feedback.n else []
        # By the baseline alone: what the stream holds must not choose the tests.
        self._names = names
        self._part = alpha / len(names)
        self._router = router
        self._threshold = threshold
        self._test = ScoreTest(baseline.edges, baseline.counts)
        self._buffer: list[float] = []
        self._seen: set[int] = set()
        self._decisions = self._scored = self._n = 0
        self._strong: dict[float, bytearray] = {}  # by threshold, a 1 for each strong call
        self._share_tests: dict[float, _ShareTest] = {}
        self._novel = bytearray()
        self._novelty = _ShareTest(baseline.novel)
        self._feedback = Rates()

    def add(self, row: Mapping[str, Any]) -> None:
        """One decision: its `score`, `router`, `threshold`, `strong`, and what else is known."""
        self._decisions += 1
        if row.get("feedback") is not None:
            value = self._feedback
            self._feedback = Rates(value.total + float(row["feedback"]), value.n + 1)
        if not is_scored(row, self._router):
            return
        self._scored += 1
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        if not first_time(row, self._seen):
            return
        self._n += 1
        self._buffer.append(float(row["score"]))
        if len(self._buffer) >= BUFFER:
            self._flush()
        if row.get("familiarity") is not None:
            self._novel.append(row["familiarity"] < UNFAMILIAR)
        threshold, strong = row.get("threshold"), went_strong(row)
        known = threshold in self._strong or len(self._strong) < MOST_THRESHOLDS
        if threshold is not None and strong is not None and known:
            self._strong.setdefault(threshold, bytearray()).append(strong)

    def report(self) -> Report:
        """Of all decisions so far."""
        self._flush()
        threshold = self._threshold
        if threshold is None and self._strong:
            threshold = max(self._strong, key=lambda t: len(self._strong[t]))
        findings = []
        for name in self._names:
            if name == "scores":
                findings.append(self._scores())
            elif name == "novelty":
                findings.append(self._shares(name, self._novelty, self._novel))
            elif name == "feedback":
                findings.append(self._rates(name, self._feedback, self._baseline.feedback))
            elif threshold is not None:
                if threshold not in self._share_tests:
                    expected = self._baseline.strong(threshold)
                    self._share_tests[threshold] = _ShareTest(expected)
                test, hits = self._share_tests[threshold], self._strong.get(threshold, bytearray())
                findings.append(self._shares(name, test, hits))
        drifts = any(finding.drift for finding in findings)
        return Report(
            verdict="drift" if drifts else "ok" if self._n else "no-data",
            alpha=self._alpha,
            baseline=self._baseline.name,
            baseline_n=self._baseline.n,
            decisions=self._decisions,
            scored=self._scored,
            n=self._n,
            threshold=threshold,
            findings=tuple(findings),
        )

    def _flush(self) -> None:
        self._test.add(self._buffer, alpha=self._part)
        self._buffer.clear()

    def _scores(self) -> Finding:
        test = self._test
        return Finding(
            "scores",
            drift=test.p_value <= self._part,
            alpha=self._part,
            n=test.n,
            p_value=test.p_value,
            alarm_at=test.alarm_at,
        )

    def _shares(self, name: str, test: "_ShareTest", hits: bytearray) -> Finding:
        found = test.test
        test.read(hits, alpha=self._part)
        told = self._rates(name, Rates(hits.count(1), len(hits)), test.expected)
        return replace(
            told,
            drift=found is not None and found.p_value <= self._part,
            p_value=None if found is None else found.p_value,
            alarm_at=None if found is None else found.alarm_at,
        )

    def _rates(self, name: str, seen: Rates, expected: Rates) -> Finding:
        """Drift where the two confidence sequences, each at half of the level, do not overlap."""
        own = mean_interval(seen.total, seen.n, self._part / 2)
        other = mean_interval(expected.total, expected.n, self._part / 2)
        return Finding(
            name,
            drift=own[1] < other[0] or other[1] < own[0],
            alpha=self._part,
            n=seen.n,
            observed=seen.mean,
            observed_interval=own,
            expected=expected.mean,
            expected_interval=other,
        )


class _ShareTest:
    """Whether a stream of yes and no has the share that a baseline has: ranks among two values."""

    def __init__(self, expected: Rates) -> None:
        self.expected = expected
        yes = round(expected.total)
        self.test = ScoreTest([0.5], [expected.n - yes, yes]) if expected.n else None
        self._read = 0

    def read(self, hits: bytearray, *, alpha: float) -> None:
        """What has come since."""
        if self.test is not None:
            self.test.add(np.frombuffer(bytes(hits[self._read :]), np.uint8), alpha=alpha)
        self._read = len(hits)


def examine(
    rows: Iterable[Mapping[str, Any]],
    baseline: Baseline,
    *,
    alpha: float = 0.01,
    router: str | None = None,
    threshold: float | None = None,
) -> Report:
    """All of `rows` at once; see `Examination`."""
    examination = Examination(baseline, alpha=alpha, router=router, threshold=threshold)
    for row in rows:
        examination.add(row)
    return examination.report()


def baseline_from(
    rows: Iterable[Mapping[str, Any]], name: str, *, router: str | None = None
) -> Baseline:
    """What later traffic is to be compared with: the same prompts counted once, as `examine` does.

    Raises CalibrationError where fewer than 50 decisions have a score.
    """
    seen: set[int] = set()
    novel, feedback = Rates(), Rates()

    def scores() -> Iterable[float]:
        nonlocal novel, feedback
        for row in rows:
            if row.get("feedback") is not None:
                feedback = Rates(feedback.total + float(row["feedback"]), feedback.n + 1)
            if not is_scored(row, router) or not first_time(row, seen):
                continue
            if row.get("familiarity") is not None:
                novel = Rates(novel.total + (row["familiarity"] < UNFAMILIAR), novel.n + 1)
            yield float(row["score"])

    found = sampled(scores())
    return Baseline.from_scores(name, found, novel=novel, feedback=feedback)


def is_scored(row: Mapping[str, Any], router: str | None) -> bool:
    """Whether a decision has a score of this router (None: of any); an experiment's treatment is
    left out, being routed in another way."""
    if str(row.get("arm") or "").endswith(f"/{TREATMENT}"):
        return False
    return row.get("score") is not None and router in {None, row.get("router")}


def first_time(row: Mapping[str, Any], seen: set[int]) -> bool:
    """Whether its prompt is new; `seen` is added to. A prompt without a hash is always new."""
    hash = row.get("prompt_hash")
    if hash is None:
        return True
    number = int(hash[:16], 16)
    if number in seen:
        return False
    seen.add(number)
    return True


def went_strong(row: Mapping[str, Any]) -> bool | None:
    """Whether the strong model answered, or in shadow mode would have; None where none did."""
    if row.get("strong") is None:
        return None
    if row.get("routed") is not None:
        return bool(row["strong"]) and row["routed"] == row.get("model")
    return bool(row["strong"])

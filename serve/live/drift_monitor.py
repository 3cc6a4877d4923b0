"""What a server does beside its requests: gauges of drift, and thresholds that its traffic moves.

All are fed with finished records and work in a thread, every now and then, in each worker.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CalibrationError, ConfigError, ThriftrouteError
from ...eval.drift.baseline import Baseline, baseline_of
from ...eval.drift.drift import DriftReport, Examination, unlike
from ...router.routers import Router, tables_of
from ...router.threshold import (
    ORDINARY,
    share_table,
    threshold_for_cost,
    threshold_for_share,
)
from ..config.settings import Config, HoldSettings
from ..errors import bad_setting
from ..policy.pipeline import Pipeline
from ..records import Record, Recorder
from ..records.metrics import Metrics
from ..registry import Model
from ..spend.cost import cost_of, recorded_usage

LEAST = 100  # scores, before the threshold is moved
MOST = 2000  # scores that a strong share's threshold is read off
NEAR = 0.05  # scores that are alike may allow no share that is nearer to the one asked for
WAITING = 20_000  # records between two looks; past it the oldest are left out

_FIELDS = tuple(each.name for each in fields(Record))

logger = logging.getLogger(__name__)


class DriftMonitor:
    """`observe` every finished record; `run` until it is cancelled.

    Raises ConfigError where the baseline that the config names cannot be read.
    """

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        router: Router,
        weak: Model,
        metrics: Metrics,
        recorder: Recorder,
    ) -> None:
        self._config = config
        self._pipeline = pipeline
        self._metrics = metrics
        self._recorder = recorder
        self._waiting: deque[Record] = deque(maxlen=WAITING)
        self._warning: str | None = None
        self.report: DriftReport | None = None
        self._every_s: list[float] = []  # of what there is to do
        self._examination: Examination | None = None
        baseline = self._baseline(router)
        if baseline is not None:
            # Several workers, several tests of one stream: together they keep to the level.
            alpha = config.watch.alpha / config.server.workers
            self._examination = Examination(baseline, alpha=alpha, router=config.router.name)
            self._every_s.append(config.watch.every_s)
        self.hold: ThresholdHold | None = None
        if config.router.hold is not None:
            self.hold = ThresholdHold(config.router.hold, pipeline, weak)
            self._every_s.append(config.router.hold.every_s)
        self.own_share = OwnShare.of(config, pipeline, router, recorder)
        if self.own_share is not None:
            self._every_s.append(config.watch.every_s)
        self._set_gauges()

    @property
    def on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._every_s)

    @property
    def notices(self) -> list[str]:
        """What whoever runs the server is to know of the router, in sentences."""
        own = None if self.own_share is None else self.own_share.notice
        return [told for told in (own, self._warning) if told is not None]

    def adopt(self) -> None:
        """The threshold that was read off own traffic before; waits for the database."""
        if self.own_share is not None:
            with suppress(ThriftrouteError):
                self.own_share.adopt()

    def observe(self, record: Record) -> None:
        """A finished request; takes no time."""
        if self.on and (record.score is not None or record.feedback is not None):
            self._waiting.append(record)

    async def run(self, in_thread: Callable[[Callable[[], None]], Any]) -> None:
        """Work through what was observed, every so often, until cancelled. Thresholds start with
        the latest 1,000 decisions that were recorded."""
        with suppress(ThriftrouteError, OSError):
            await in_thread(self._begin)
        while self.on:
            try:
                await in_thread(self.step)
            except Exception:  # the task must live
                logger.exception("the drift monitor failed")
            await asyncio.sleep(min(self._every_s))

    def step(self) -> None:
        """One look at all that was observed."""
        # Not `asdict`, which copies every list in them: that took 86 us a record, and 3 now.
        found = [self._waiting.popleft() for _ in range(len(self._waiting))]
        rows = [{name: getattr(record, name) for name in _FIELDS} for record in found]
        # An experiment's treatment may have another router.
        own = [row for row in rows if row["router"] == self._config.router.name]
        if self.hold is not None:
            self.hold.add(own)
            self.hold.move()
        if self.own_share is not None:
            self.own_share.add(own)
            with suppress(ThriftrouteError):  # the database is away
                self.own_share.move()
        if self._examination is not None:
            for row in rows:
                self._examination.add(row)
            self.report = self._examination.report()
        self._set_gauges()

    def _begin(self) -> None:
        own = self.own_share
        part = self.hold if own is None or own.is_done else own
        if part is not None:
            latest = self._recorder.recent(1000, {"router": self._config.router.name})
            part.add(reversed(latest))

    def _baseline(self, router: Router) -> Baseline | None:
        settings = self._config.watch
        if not settings.enabled:
            return None
        if settings.baseline is not None:
            try:
                return Baseline.load(Path(settings.baseline))
            except ThriftrouteError as error:
                raise bad_setting("watch.baseline", str(error)) from error
        with suppress(ConfigError):  # nobody asked for it by name
            return baseline_of(tables_of(router), self._config.router.name)
        return None

    def _set_gauges(self) -> None:
        threshold, report = self._pipeline.threshold, self.report
        if threshold is not None and self._config.router.strategy == "pair":
            self._metrics.threshold.set(threshold)
        if report is None:
            return
        by_name = {finding.name: finding for finding in report.findings}
        self._metrics.drift_pvalue.set(by_name["scores"].p_value or 0.0)
        self._metrics.drift_alarm.set(report.verdict == "drift")
        share = by_name.get("strong_share")
        if share is not None and share.expected is not None:
            self._metrics.expected_share.set(share.expected)
        if report.verdict == "drift":
            told = self._warning
            self._warning = f"drift: {unlike(report)}; `thriftroute watch` tells more"
            if told is None:
                logger.warning("%s", self._warning)


class ThresholdHold:
    """The latest scores (and costs), and the threshold that their aim calls for."""

    def __init__(self, settings: HoldSettings, pipeline: Pipeline, weak: Model) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._weak = weak
        # (score, USD on the strong model, on the weak one)
        self._latest: deque[tuple[float, float, float]] = deque(maxlen=settings.window)
        self._next = 0.0
        self._failed = False

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Decisions in the order of time; those without a score, or that failed, are left out."""
        for row in rows:
            if row["score"] is None or row["model"] is None or row["status"] >= 400:
                continue
            weak_cost = cost_of(self._weak, recorded_usage(row))
            self._latest.append((row["score"], row["strong_cost"], weak_cost))

    def move(self, now: float | None = None) -> None:
        """Move the pipeline's threshold, where it is time and 100 scores are known."""
        now = time.monotonic() if now is None else now
        if now < self._next or len(self._latest) < LEAST:
            return
        aim = self._settings
        self._next = now + aim.every_s
        scores, strong, weak = np.array(self._latest).T
        try:
            if aim.usd_per_1k is None:
                found, _ = threshold_for_share(scores, aim.strong_share or 0.0)
                what = f"strong share {aim.strong_share:.3g}"
            else:
                found, _, _ = threshold_for_cost(scores, strong, weak, aim.usd_per_1k / 1000)
                what = f"${aim.usd_per_1k:.6g} per 1,000"
            self._failed = False
        except CalibrationError as error:
            found, what = aim.highest, "the least cost, more than the budget"
            if not self._failed:
                logger.warning("router.hold: %s", error)
            self._failed = True
        found = min(max(found, aim.lowest), aim.highest)
        self._pipeline.hold(found, f"held at {what} by the last {len(scores)} scores")


class OwnShare:
    """Reads the threshold of `router.strong_share` off own traffic, once: when 100 requests are
    scored that went by the bundle's own threshold for that share, which is of ordinary prompts.

    What is found is noted in the database of the records: every worker goes by it, and so does the
    next start, until the share or the bundle changes. Without a database each worker has its own.
    """

    def __init__(self, pipeline: Pipeline, share: float, router: str, recorder: Recorder) -> None:
        self._pipeline, self._share, self._recorder = pipeline, share, recorder
        before = pipeline.threshold
        assert before is not None
        self._before = before
        self._name = f"threshold of {router} for {share!r}, instead of {self._before!r}"
        self._scores: list[float] = []
        self.is_done = False
        self.notice = (
            f"Threshold {self._before:.4g} sends {share:.0%} of ordinary prompts to the strong "
            f"model. After {LEAST} scored requests it is read off those."
        )

    @classmethod
    def of(
        cls, config: Config, pipeline: Pipeline, router: Router, recorder: Recorder
    ) -> "OwnShare | None":
        """None where the threshold is given, held, of own prompts already, or to stay."""
        settings, share = config.router, pipeline.strong_share
        fixed = not settings.adapt_share or settings.strategy != "pair" or settings.hold is not None
        table = None if fixed or share is None else share_table(tables_of(router))
        if share is None or table is None or table.name != ORDINARY:
            return None
        return cls(pipeline, share, settings.name, recorder)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Decisions of this router; those by another threshold, or that failed, are left out."""
        for row in rows:
            answered = row["model"] is not None and row["status"] < 400
            scored = row["score"] is not None and row["threshold"] == self._before
            if answered and scored and len(self._scores) < MOST:
                self._scores.append(row["score"])

    def adopt(self) -> None:
        """Go by what another worker, or an earlier run, has noted. Raises RefusedError where the
        database is away."""
        noted = None if self.is_done else self._recorder.noted(self._name)
        if noted is not None:
            self._go_by(json.loads(noted))

    def move(self) -> None:
        """Raises RefusedError where the database is away; to be called again then."""
        self.adopt()
        if self.is_done or len(self._scores) < LEAST:
            return
        found, reached = threshold_for_share(self._scores, self._share)
        if abs(reached - self._share) > NEAR:
            told = f"the scores of {len(self._scores)} requests are too alike to be told apart so"
            self.notice = f"The threshold stays at {self._before:.4g}, of ordinary prompts: {told}."
            return
        scores, now = np.array(self._scores), datetime.now(UTC)
        own = {"threshold": found, "scores": len(scores), "time": f"{now:%Y-%m-%d %H:%M} UTC"}
        own["strong_before"] = float(np.mean(scores >= self._before))
        noted = json.loads(self._recorder.noted(self._name, json.dumps(own)) or "null")
        self._go_by(noted)
        if noted == own:  # else another worker was first, and says it
            logger.warning("%s", self.notice)

    def _go_by(self, noted: Mapping[str, Any]) -> None:
        threshold, scores = noted["threshold"], noted["scores"]
        source = f"strong share {self._share:.3g} of the first {scores} requests here"
        self._pipeline.hold(threshold, source, self._share)
        self.is_done = True
        self.notice = (
            f"Since {noted['time']} the threshold is {threshold:.4g} instead of "
            f"{self._before:.4g}, which sent {noted['strong_before']:.0%} of the first {scores} "
            f"scored requests to the strong model: {self._share:.0%} are asked for."
        )

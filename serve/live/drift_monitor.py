"""What a server does beside its requests: gauges of drift, and a threshold that holds its aim.

Both are fed with finished records and work in a thread, every now and then; each worker watches the
requests that it answers itself.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CalibrationError, ConfigError, ThriftrouteError
from ...eval.drift.baseline import Baseline, baseline_of
from ...eval.drift.drift import Examination, Report
from ...router.routers import BundleRouter, Router
from ...router.threshold import threshold_for_cost, threshold_for_share
from ..config.settings import Config, HoldSettings
from ..policy.pipeline import Pipeline
from ..records import Record, Recorder
from ..records.metrics import Metrics
from ..registry import Model
from ..spend.cost import Usage, cost_of

LEAST = 100  # scores, before the threshold is moved
WAITING = 20_000  # records between two looks; past it the oldest are left out

logger = logging.getLogger(__name__)


class Watching:
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
    ) -> None:
        self._config = config
        self._pipeline = pipeline
        self._metrics = metrics
        self._waiting: deque[Record] = deque(maxlen=WAITING)
        self._examination = self._examine(router)
        self._alarmed = False
        self.report: Report | None = None
        hold = config.router.hold
        self.holding = None if hold is None else Holding(hold, pipeline, weak)
        self._every_s = min(
            [config.watch.every_s] * (self._examination is not None)
            + ([] if hold is None else [hold.every_s]),
            default=0.0,
        )
        self._show()

    @property
    def on(self) -> bool:
        """Whether there is anything to do."""
        return self._every_s > 0

    def observe(self, record: Record) -> None:
        """A finished request; takes no time."""
        if self.on and (record.score is not None or record.feedback is not None):
            self._waiting.append(record)

    async def run(
        self, in_thread: Callable[[Callable[[], None]], Any], recorder: Recorder | None = None
    ) -> None:
        """Work through what was observed, every so often, until cancelled.

        recorder: whose latest decisions the held threshold starts with.
        """
        if recorder is not None and self.holding is not None:
            holding = self.holding
            with suppress(ThriftrouteError, OSError):
                await in_thread(lambda: holding.remember(recorder, self._config.router.name))
        while self.on:
            await in_thread(self._guarded)
            await asyncio.sleep(self._every_s)

    def step(self) -> None:
        """One look at all that was observed."""
        records = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if self.holding is not None:
            self.holding.add(records)
            self.holding.move()
        if self._examination is not None:
            for record in records:
                self._examination.add(record.to_dict())
            self.report = self._examination.report()
        self._show()

    def _guarded(self) -> None:
        try:
            self.step()
        except Exception:  # the task must live
            logger.exception("watching failed")

    def _examine(self, router: Router) -> Examination | None:
        settings = self._config.watch
        if not settings.enabled:
            return None
        name = self._config.router.name
        if settings.baseline is not None:
            try:
                baseline = Baseline.load(Path(settings.baseline))
            except ThriftrouteError as error:
                raise ConfigError(f"watch.baseline: {error}") from error
        else:
            tables = (
                router.scorer.bundle.manifest.thresholds if isinstance(router, BundleRouter) else {}
            )
            try:
                baseline = baseline_of(tables, name)
            except ConfigError:  # nobody asked for it by name
                return None
        # Several workers, several tests of one stream: together they keep to the level.
        alpha = settings.alpha / self._config.server.workers
        return Examination(baseline, alpha=alpha, router=name)

    def _show(self) -> None:
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
        if report.verdict == "drift" and not self._alarmed:
            self._alarmed = True
            names = ", ".join(finding.name for finding in report.findings if finding.drift)
            logger.warning(
                "drift: %s of %d prompts differ from %r; `thriftroute watch` tells more",
                names,
                report.n,
                report.baseline,
            )


class Holding:
    """The latest scores (and costs), and the threshold that their aim calls for."""

    def __init__(self, settings: HoldSettings, pipeline: Pipeline, weak: Model) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._weak = weak
        # (score, USD on the strong model, on the weak one)
        self._latest: deque[tuple[float, float, float]] = deque(maxlen=settings.window)
        self._next = 0.0
        self._failed = False

    def add(self, records: list[Record]) -> None:
        """Records in the order of time; those without a score, or that failed, are left out."""
        for record in records:
            if record.score is None or record.model is None or record.status >= 400:
                continue
            weak_cost = 0.0
            if self._settings.usd_per_1k is not None:
                counts = (record.prompt_tokens, record.completion_tokens)
                usage = Usage(*counts, record.cached_tokens, record.reasoning_tokens)
                weak_cost = cost_of(self._weak, usage)
            self._latest.append((record.score, record.strong_cost, weak_cost))

    def remember(self, recorder: Recorder, router: str) -> None:
        """Begin with the latest recorded decisions (1,000 at most)."""
        rows = recorder.recent(1000, {"router": router})
        names = Record.__dataclass_fields__
        self.add([Record(**{k: v for k, v in r.items() if k in names}) for r in reversed(rows)])

    def move(self, now: float | None = None) -> None:
        """Move the pipeline's threshold, where it is time and 100 scores are known."""
        now = time.monotonic() if now is None else now
        if now < self._next or len(self._latest) < LEAST:
            return
        self._next = now + self._settings.every_s
        scores, strong, weak = np.array(self._latest).T
        aim = self._settings
        try:
            if aim.strong_share is not None:
                found, _ = threshold_for_share(scores, aim.strong_share)
                what = f"strong share {aim.strong_share:.3g}"
            else:
                assert aim.usd_per_1k is not None
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

"""What Prometheus reads at /metrics: counts, money, tokens, times, budgets.

Labels are bounded by the configuration: no tenant, key or session is one, as clients may bring as
many as they like. The dashboard of deploy/grafana/thriftroute.json reads these names.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client.values as prometheus_values
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client import disable_created_metrics as disable_created
from prometheus_client.exposition import choose_encoder

from ..._version import __version__
from ..policy.plan import switch_of
from .record import Record

if TYPE_CHECKING:
    from .writer import Recorder

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)
FINE_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1, 5)
SCORES = tuple(step / 20 for step in range(1, 21))
MAX_BUDGETS = 200  # a budget for each of ten thousand tenants would be as many series
MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """All metrics of a server, in a registry of their own.

    folder: shared by the workers of one server; any of them can render the sum. None: this process
    alone. `models` may become labels: a record's other models are counted as "other".
    """

    def __init__(self, models: Sequence[str] = (), *, folder: Path | None = None) -> None:
        self.folder = folder
        self._models = frozenset(models)
        self._recorder: Recorder | None = None
        self._children: dict[tuple[Any, ...], Any] = {}
        self._dropped = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # The library looks at the variable when it is imported, which may have been earlier.
            os.environ[MULTIPROC] = str(folder)
            prometheus_values.ValueClass = prometheus_values.get_value_class()  # type: ignore[no-untyped-call]
        disable_created()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"thriftroute_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, steps: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"thriftroute_{name}", text, labels, buckets=steps, registry=registry)

        def gauge(name: str, text: str, mode: Any, *labels: str) -> Gauge:
            full = f"thriftroute_{name}"
            return Gauge(full, text, labels, registry=registry, multiprocess_mode=mode)

        budget = ("mostrecent", "scope", "name", "per", "unit")
        # fmt: off
        self.requests = counter("requests", "Requests, by the model that answered",
                                "model", "choice", "cache", "status")
        self.cost = counter("cost_usd", "Spent on calls", "model", "tier")
        self.strong_cost = counter("strong_cost_usd", "What the strong model would have cost",
                                   "model", "tier")
        self.tokens = counter("tokens", "Tokens; cached ones are part of prompt, reasoning of "
                              "completion", "model", "kind")
        self.latency = histogram("request_seconds", "Whole requests", SECONDS, "model")
        self.first_token = histogram("first_token_seconds", "To a stream's first piece",
                                     SECONDS, "model")
        self.overhead = histogram("overhead_seconds", "Requests without their upstream calls",
                                  FINE_SECONDS)
        self.score = histogram("score", "Scores of routed requests", SCORES, "router")
        self.fallbacks = counter("fallbacks", "Calls that went on to another model",
                                 "from_model", "to_model")
        self.looks = counter("second_looks", "Weak answers that were looked at, by what came of it",
                             "outcome")
        self.routed = counter("routed", "Requests routed by their score, by what it called for: "
                              "strong, other", "to")
        self.cache_saving = counter("cache_saving_usd", "What the strong model would have cost "
                                    "where the cache answered")
        self.switches = counter("session_steps", "Steps of agents' sessions, by what became of the "
                                "model: start, stay, switch", "outcome")
        self.refusals = counter("refusals", "Requests refused, by HTTP status", "status")
        self.in_flight = gauge("in_flight", "Requests in work", "livesum")
        self.pending = gauge("records_pending", "Decisions that wait for the database", "livesum")
        self.dropped = counter("records_dropped", "Decisions lost: queue full, or row refused")
        self.budget_limit = gauge("budget_limit", "Budget a window", *budget)
        self.budget_spent = gauge("budget_spent", "Spent of it, reservations included", *budget)
        self.degraded = gauge("budgets_degraded", "1 where a worker counts budgets for itself, "
                              "Redis being away", "livesum")
        self.drift_pvalue = gauge("drift_pvalue", "That scores are still the baseline's: how "
                                  "unlikely, valid at every look", "livemin")
        self.drift_alarm = gauge("drift_alarm", "1 once drift was found", "livemax")
        self.expected_share = gauge("strong_share_expected", "Of the baseline at the threshold",
                                    "mostrecent")
        self.threshold = gauge("threshold", "The pair's, as it is now", "mostrecent")
        # fmt: on
        self.drift_pvalue.set(1)  # 0 would be an alarm
        self.expected_share.set(math.nan)
        self.threshold.set(math.nan)
        gauge("info", "The version that runs", "livemax", "version").labels(__version__).set(1)

    def watch(self, recorder: "Recorder") -> None:
        """Show this recorder's queue; looked at at every `render`, and where other workers render
        it, with every request."""
        self._recorder = recorder
        self._look()

    def observe(self, record: Record) -> None:
        """Count one finished request. Never raises for odd numbers: they are left out."""
        model = self._name(record.model)
        self._of(self.requests, model, record.choice or "none", record.cache, record.status).inc()
        self._observe_costs(record, model)
        if record.sent_strong is not None:
            self._of(self.routed, "strong" if record.sent_strong else "other").inc()
        for kind in ("prompt", "completion", "cached", "reasoning"):
            count = getattr(record, f"{kind}_tokens")
            if count > 0:
                self._of(self.tokens, model, kind).inc(count)
        self._observe_times(record, model)
        if record.escalated is not None:
            self._of(self.looks, "escalated" if record.escalated else "stayed").inc()
        if (switch := switch_of(record.steps)) is not None:
            self._of(self.switches, switch).inc()
        for before, after in record.moves:
            self._of(self.fallbacks, self._name(before), self._name(after)).inc()
        if self.folder is not None:
            self._look()

    def _observe_costs(self, record: Record, model: str) -> None:
        for counter, usd in ((self.cost, record.cost), (self.strong_cost, record.strong_cost)):
            if usd >= 0:
                self._of(counter, model, record.tier or "none").inc(usd)
        if record.cache in {"hit", "semantic"} and record.strong_cost >= 0:
            self.cache_saving.inc(record.strong_cost)

    def _observe_times(self, record: Record, model: str) -> None:
        self._of(self.latency, model).observe(record.latency_s)
        if record.ttft_s is not None:
            self._of(self.first_token, model).observe(record.ttft_s)
        if record.overhead_s is not None:
            self.overhead.observe(record.overhead_s)
        if record.score is not None and record.router is not None:
            self._of(self.score, record.router).observe(record.score)

    def _of(self, metric: Any, *labels: Any) -> Any:
        """The metric's child of these labels, which `labels` takes ten times as long to find."""
        found = self._children.get((metric, *labels))
        if found is None:
            found = self._children[metric, *labels] = metric.labels(*labels)
        return found

    def set_budgets(self, state: Sequence[Mapping[str, Any]], *, degraded: bool = False) -> None:
        """Show budgets as `BudgetLedger.state` lists them; of more than 200 the fullest."""
        self.degraded.set(int(degraded))
        near = sorted(state, key=lambda b: b["spent"] / max(b["limit"], 1e-12), reverse=True)
        if self.folder is None:  # names of windows past; in a shared folder they cannot be cleared
            self.budget_limit.clear()
            self.budget_spent.clear()
        for budget in near[:MAX_BUDGETS]:
            labels = [str(budget[name]) for name in ("scope", "name", "per", "unit")]
            self.budget_limit.labels(*labels).set(budget["limit"])
            self.budget_spent.labels(*labels).set(budget["spent"])

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """The metrics as text, and its content type, in the format that the header asks for."""
        self._look()
        encode, content_type = choose_encoder(accept or "")
        registry = self.registry
        if self.folder is not None:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, str(self.folder))  # type: ignore[no-untyped-call]
        return encode(registry), content_type

    def _name(self, model: str | None) -> str:
        if model is None:
            return "none"
        return model if not self._models or model in self._models else "other"

    def _look(self) -> None:
        if self._recorder is None:
            return
        self.pending.set(self._recorder.pending)
        dropped = self._recorder.dropped
        if dropped > self._dropped:
            self.dropped.inc(dropped - self._dropped)
            self._dropped = dropped


def forget_worker(pid: int) -> None:
    """Leave a worker that has ended out of what is counted live; for the parent of workers."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]

"""What /metrics says after some requests, in one process and summed over several."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from thriftroute.serve.records import Record
from thriftroute.serve.records.metrics import MAX_BUDGETS, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return samples(metrics).get((f"thriftroute_{name}", frozenset(labels.items())))


def record(**fields: Any) -> Record:
    return Record(**{"id": "d", "time": 0.0, **fields})


ROUTED = record(
    tier="pro",
    tenant="acme",
    requested="auto",
    model="strong",
    strong=True,
    choice="strong",
    router="mf",
    score=0.71,
    status=200,
    cache="miss",
    attempts=[{"model": "weak"}, {"model": "weak"}, {"model": "strong"}],
    prompt_tokens=10,
    completion_tokens=20,
    cached_tokens=4,
    reasoning_tokens=5,
    cost=0.25,
    strong_cost=0.75,
    latency_s=2.5,
    overhead_s=0.004,
    ttft_s=0.6,
)


def test_the_strong_share_is_of_scores_and_a_caches_saving_is_its_own() -> None:
    metrics = Metrics(["strong", "weak"])
    metrics.observe(replace(ROUTED, threshold=0.71))
    metrics.observe(replace(ROUTED, threshold=0.72))  # a fallback's answer, or an escalation's
    assert value(metrics, "cache_saving_usd_total") == 0
    metrics.observe(replace(ROUTED, threshold=0.72, cache="semantic", cost=0.0))
    for left_out in ({"choice": "session"}, {"choice": "direct", "score": None}):
        metrics.observe(replace(ROUTED, **left_out))
    assert value(metrics, "routed_total", to="strong") == 1
    assert value(metrics, "routed_total", to="other") == 2
    assert value(metrics, "cache_saving_usd_total") == 0.75


def test_a_request_is_counted_in_every_metric() -> None:
    metrics = Metrics(["strong", "weak"])
    metrics.observe(ROUTED)
    metrics.observe(ROUTED)
    labels = {"model": "strong", "choice": "strong", "cache": "miss", "status": "200"}
    assert value(metrics, "requests_total", **labels) == 2
    assert value(metrics, "cost_usd_total", model="strong", tier="pro") == 0.5
    assert value(metrics, "strong_cost_usd_total", model="strong", tier="pro") == 1.5
    for kind, count in (("prompt", 20), ("completion", 40), ("cached", 8), ("reasoning", 10)):
        assert value(metrics, "tokens_total", model="strong", kind=kind) == count
    assert value(metrics, "request_seconds_sum", model="strong") == 5.0
    assert value(metrics, "request_seconds_bucket", model="strong", le="2.0") == 0
    assert value(metrics, "request_seconds_bucket", model="strong", le="3.0") == 2
    assert value(metrics, "first_token_seconds_bucket", model="strong", le="1.0") == 2
    assert value(metrics, "overhead_seconds_bucket", le="0.003") == 0
    assert value(metrics, "overhead_seconds_bucket", le="0.005") == 2
    assert value(metrics, "score_bucket", router="mf", le="0.7") == 0
    assert value(metrics, "score_bucket", router="mf", le="0.75") == 2
    assert value(metrics, "fallbacks_total", from_model="weak", to_model="strong") == 2
    assert value(metrics, "fallbacks_total", from_model="weak", to_model="weak") is None


def test_a_refused_request_is_counted_without_a_model_or_times() -> None:
    metrics = Metrics(["strong", "weak"])
    metrics.observe(record(status=429, error="budget_exceeded"))
    labels = {"model": "none", "choice": "none", "cache": "off", "status": "429"}
    assert value(metrics, "requests_total", **labels) == 1
    assert value(metrics, "overhead_seconds_count") == 0
    assert value(metrics, "first_token_seconds_count", model="none") is None


def test_names_that_clients_choose_make_no_series() -> None:
    metrics = Metrics(["strong", "weak"])
    metrics.observe(ROUTED)
    before = len(samples(metrics))
    names = [f"made-up-{i}" for i in range(50)]
    for name in names:
        metrics.observe(
            record(tenant=name, key=name, task=name, session_hash=name, requested=name, model=name)
        )
    after = samples(metrics)
    assert not any("made-up" in part for _, labels in after for _, part in labels)
    metrics.observe(record(model="one-more"))
    assert len(samples(metrics)) == len(after) > before
    labels = {"model": "other", "choice": "none", "cache": "off", "status": "200"}
    assert value(metrics, "requests_total", **labels) == 51


def test_odd_numbers_are_left_out() -> None:
    metrics = Metrics()
    metrics.observe(record(model="m", cost=-1.0, strong_cost=float("nan"), prompt_tokens=-5))
    assert value(metrics, "cost_usd_total", model="m", tier="none") is None
    assert value(metrics, "strong_cost_usd_total", model="m", tier="none") is None
    assert value(metrics, "tokens_total", model="m", kind="prompt") is None


class Queue:
    """As much of a recorder as is measured."""

    pending = 0
    dropped = 0


def test_the_recorder_is_shown_as_it_is() -> None:
    metrics, queue = Metrics(), Queue()
    metrics.watch(queue)  # type: ignore[arg-type]
    assert value(metrics, "records_dropped_total") == 0
    queue.pending, queue.dropped = 7, 3
    assert value(metrics, "records_pending") == 7
    assert value(metrics, "records_dropped_total") == 3
    queue.pending, queue.dropped = 0, 4
    metrics.observe(ROUTED)
    assert value(metrics, "records_pending") == 0
    assert value(metrics, "records_dropped_total") == 4


def budget(name: str, spent: float, limit: float = 10.0) -> dict[str, Any]:
    return {
        "scope": "tenant",
        "name": name,
        "per": "day",
        "unit": "usd",
        "limit": limit,
        "spent": spent,
        "resets_at": "2026-01-01T00:00:00Z",
    }


def test_budgets_are_shown_those_of_before_are_not() -> None:
    metrics = Metrics()
    metrics.set_budgets([budget("acme", 2.5), budget("globex", 1.0)])
    labels = {"scope": "tenant", "per": "day", "unit": "usd"}
    assert value(metrics, "budget_spent", name="acme", **labels) == 2.5
    assert value(metrics, "budget_limit", name="acme", **labels) == 10
    assert value(metrics, "budgets_degraded") == 0
    metrics.set_budgets([budget("acme", 3.0)], degraded=True)
    assert value(metrics, "budget_spent", name="acme", **labels) == 3
    assert value(metrics, "budget_spent", name="globex", **labels) is None
    assert value(metrics, "budgets_degraded") == 1


def test_of_many_budgets_those_nearest_their_limit_are_shown() -> None:
    metrics = Metrics()
    metrics.set_budgets([budget(f"t{i}", i / 100) for i in range(MAX_BUDGETS + 10)])
    shown = {
        dict(labels)["name"] for name, labels in samples(metrics) if name.endswith("budget_spent")
    }
    assert shown == {f"t{i}" for i in range(10, MAX_BUDGETS + 10)}


def test_requests_in_work_go_up_and_down() -> None:
    metrics = Metrics()
    with metrics.in_flight.track_inprogress():
        assert value(metrics, "in_flight") == 1
    assert value(metrics, "in_flight") == 0


def test_openmetrics_is_spoken_where_it_is_asked_for() -> None:
    body, content_type = Metrics().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


WORKER = """
import os, sys, time
from pathlib import Path
import prometheus_client  # before the folder is known, as an application may do
from thriftroute.serve.records.metrics import Metrics, forget_worker
from thriftroute.serve.records import Record

metrics = Metrics(["m"], folder=Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    metrics.observe(Record(id="d", time=0.0, model="m", cost=0.5, latency_s=1.0))
metrics.in_flight.inc()
metrics.set_budgets([{"scope": "tier", "name": "pro", "per": "day", "unit": "usd",
                      "limit": 10, "spent": float(sys.argv[2])}])
if len(sys.argv) > 3:
    forget_worker(int(sys.argv[3]))
    sys.stdout.write(metrics.render()[0].decode())
else:
    print(os.getpid())
"""


def test_workers_are_summed_and_one_that_has_ended_leaves_its_counts(tmp_path: Path) -> None:
    def worker(*arguments: str) -> str:
        command = [sys.executable, "-c", WORKER, str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    ended = worker("3").strip()
    lines = worker("4", ended).splitlines()
    assert (
        'thriftroute_requests_total{cache="off",choice="none",model="m",status="200"} 7.0' in lines
    )
    assert 'thriftroute_cost_usd_total{model="m",tier="none"} 3.5' in lines
    assert 'thriftroute_request_seconds_count{model="m"} 7.0' in lines
    assert "thriftroute_in_flight 1.0" in lines  # of the one that lives
    labels = 'name="pro",per="day",scope="tier",unit="usd"'
    assert f"thriftroute_budget_spent{{{labels}}} 4.0" in lines  # the latest word, not a sum

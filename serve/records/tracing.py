"""Spans for OpenTelemetry: one a request, one a call below it. Off unless `otel_endpoint` is set.

Spans are made from the finished record. Names follow OpenTelemetry's conventions for generative AI;
no text of a prompt, an answer or an error message is in them. Needs the extra `otel`.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ..._version import __version__
from ...errors import require_extra
from .record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_S = 5.0  # for one batch to reach the collector
QUEUE = 4096  # spans that wait; past it they are dropped

# The record's fields, by the names of https://opentelemetry.io/docs/specs/semconv/gen-ai/
_ATTRIBUTES = {
    "gen_ai.request.model": "requested",
    "gen_ai.response.model": "model",
    "gen_ai.usage.input_tokens": "prompt_tokens",
    "gen_ai.usage.output_tokens": "completion_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "http.response.status_code": "status",
    "error.type": "error",
    "thriftroute.decision.id": "id",
    "thriftroute.cost_usd": "cost",
    "thriftroute.strong_cost_usd": "strong_cost",
    "thriftroute.first_token_s": "ttft_s",
} | {
    f"thriftroute.{name}": name
    for name in (
        *("tenant", "key", "tier", "task", "choice", "reason", "router", "score", "threshold"),
        *("cache", "stream", "fallbacks", "overhead_s", "look", "escalated"),
    )
}


class Tracing:
    """Sends spans to `endpoint`, an OTLP collector over HTTP, in the background; None: to nobody.

    endpoint: "http://host:4318" (the path /v1/traces is added) or a whole URL. exporter: one to use
    instead. Raises MissingExtraError.
    """

    def __init__(self, endpoint: str | None, *, exporter: "SpanExporter | None" = None) -> None:
        self._provider: Any = None
        if endpoint is None and exporter is None:
            return
        require_extra("opentelemetry.sdk", "otel")
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            require_extra("opentelemetry.exporter.otlp.proto.http", "otel")
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=traces_url(endpoint or ""), timeout=EXPORT_S)
        resource = Resource.create({"service.name": "thriftroute", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
        self._tracer = self._provider.get_tracer("thriftroute", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @property
    def on(self) -> bool:
        """True where spans are made."""
        return self._provider is not None

    def observe(self, record: Record, headers: Mapping[str, str] | None = None) -> None:
        """Make the spans of a finished request. headers: the client's, lower case; `traceparent`
        among them makes it part of the client's trace."""
        if self._provider is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        context = self._propagator.extract(dict(headers or {}))

        def span(name: str, kind: Any, ends: tuple[int, int], failed: bool, fields: Any) -> Any:
            known = {key: value for key, value in fields.items() if value is not None}
            known["gen_ai.operation.name"] = "chat"
            made = self._tracer.start_span(
                f"chat {name}".strip(), context, kind, attributes=known, start_time=ends[0]
            )
            if failed:
                made.set_status(Status(StatusCode.ERROR))
            made.end(end_time=ends[1])
            return made

        start = round(record.time * 1e9)
        end = start + _nanoseconds(record.latency_s)
        fields = {name: getattr(record, field) for name, field in _ATTRIBUTES.items()}
        # As for any server's span: a client's own mistake is no error of the server.
        failed = record.status >= 500 or (record.error is not None and record.status < 400)
        request = span(record.requested, SpanKind.SERVER, (start, end), failed, fields)
        context = set_span_in_context(request)
        # A span for each attempt, one after the other, the last ending with the request.
        lengths = [_nanoseconds(attempt.get("seconds")) for attempt in record.attempts]
        beside = [bool(attempt.get("beside")) for attempt in record.attempts]
        start = end - sum(n for n, aside in zip(lengths, beside, strict=True) if not aside)
        for attempt, length, aside in zip(record.attempts, lengths, beside, strict=True):
            error = attempt.get("error_class") or attempt.get("error")
            model, status = str(attempt.get("model")), attempt.get("status")
            fields = {
                "gen_ai.request.model": model,
                "error.type": str(error) if error else None,
                "http.response.status_code": status if isinstance(status, int) else None,
            }
            span(model, SpanKind.CLIENT, (start, start + length), bool(error), fields)
            start += 0 if aside else length

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for `timeout` seconds at most, and stop."""
        provider, self._provider = self._provider, None
        if provider is None:
            return
        # Its own shutdown waits for a collector that is away for as long as it has spans.
        name = "thriftroute-tracing-close"
        thread = threading.Thread(target=provider.shutdown, name=name, daemon=True)
        thread.start()
        thread.join(timeout)


def traces_url(endpoint: str) -> str:
    """The URL that spans are posted to."""
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(path="/v1/traces")) if parts.path in {"", "/"} else endpoint


def _nanoseconds(seconds: Any) -> int:
    return round(seconds * 1e9) if isinstance(seconds, (int, float)) and seconds > 0 else 0

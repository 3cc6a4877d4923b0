"""Spans of finished requests, and their way to a collector over HTTP."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from thriftroute.serve.config.settings import Config
from thriftroute.serve.records import Record
from thriftroute.serve.records.tracing import Tracing, traces_url

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is missing")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

START = 1_700_000_000.0
RECORD = Record(
    id="dec_1",
    time=START,
    tenant="acme",
    requested="auto",
    model="strong",
    choice="strong",
    router="mf",
    score=0.75,
    threshold=0.5,
    reason="score 0.75 >= 0.5",
    status=200,
    attempts=[
        {"model": "weak", "status": 500, "error_class": "InternalServerError", "seconds": 0.5},
        {"model": "strong", "status": 200, "error_class": None, "seconds": 1.0},
    ],
    prompt_tokens=10,
    completion_tokens=20,
    cost=0.25,
    latency_s=2.0,
    prompt="the secret prompt",
    answer="the secret answer",
)


def spans_of(record: Record, headers: dict[str, str] | None = None) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(None, exporter=exporter)
    assert tracing.on
    tracing.observe(record, headers)
    tracing.close()
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def test_a_request_is_a_span_and_each_call_one_below_it() -> None:
    request, weak, strong = spans_of(RECORD)
    assert (request.name, request.kind) == ("chat auto", SpanKind.SERVER)
    assert (request.start_time, request.end_time) == (START * 1e9, (START + 2) * 1e9)
    attributes = dict(request.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "auto"
    assert attributes["gen_ai.response.model"] == "strong"
    assert attributes["gen_ai.usage.input_tokens"] == 10
    assert attributes["gen_ai.usage.output_tokens"] == 20
    assert attributes["http.response.status_code"] == 200
    assert attributes["thriftroute.decision.id"] == "dec_1"
    assert attributes["thriftroute.score"] == 0.75
    assert attributes["thriftroute.cost_usd"] == 0.25
    assert "thriftroute.tier" not in attributes
    assert request.status.status_code is StatusCode.UNSET
    assert request.resource.attributes["service.name"] == "thriftroute"

    assert request.context is not None
    for call in (weak, strong):
        assert call.kind is SpanKind.CLIENT
        assert call.parent is not None
        assert call.parent.span_id == request.context.span_id
    assert (weak.name, weak.status.status_code) == ("chat weak", StatusCode.ERROR)
    assert dict(weak.attributes or {})["error.type"] == "InternalServerError"
    assert (weak.start_time, weak.end_time) == ((START + 0.5) * 1e9, (START + 1) * 1e9)
    assert (strong.name, strong.end_time) == ("chat strong", request.end_time)
    assert strong.status.status_code is StatusCode.UNSET


def test_no_text_of_the_conversation_is_in_a_span() -> None:
    assert not any("secret" in span.to_json() for span in spans_of(RECORD))


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (200, None, StatusCode.UNSET),
        (429, "budget_exceeded", StatusCode.UNSET),
        (499, "client_left", StatusCode.UNSET),
        (502, "upstream", StatusCode.ERROR),
        (200, "stream_cut", StatusCode.ERROR),
    ],
)
def test_a_server_s_failure_marks_its_span(
    status: int, error: str | None, expected: StatusCode
) -> None:
    (span,) = spans_of(Record(id="d", time=START, status=status, error=error))
    assert span.status.status_code is expected
    assert dict(span.attributes or {}).get("error.type") == error


def test_a_request_joins_its_client_s_trace() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = spans_of(RECORD, {"traceparent": parent})[0]
    assert request.parent is not None and request.context is not None
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert spans_of(RECORD, {"traceparent": parent[:-1] + "0"}) == []  # it is not sampled
    assert spans_of(RECORD, {"traceparent": "nonsense"})[0].parent is None


def test_nothing_happens_without_an_endpoint() -> None:
    tracing = Tracing(None)
    assert not tracing.on
    tracing.observe(RECORD)
    tracing.close()


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://host/otlp/v1/traces?x=1", "https://host/otlp/v1/traces?x=1"),
    ],
)
def test_an_endpoint_gets_the_usual_path(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


@pytest.mark.parametrize("endpoint", ["", "collector:4318", "grpc://collector:4317", "http://"])
def test_an_endpoint_that_is_no_url_stops_the_start(endpoint: str) -> None:
    models = {"models": [{"name": "a"}], "strong": "a", "weak": "a"}
    with pytest.raises(ValueError, match=r"otel_endpoint\n.*expected a URL"):
        Config.model_validate({**models, "otel_endpoint": endpoint})


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what is posted to it; `delay` holds every answer until it is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[tuple[str, bytes]] = []
        self.answer = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.posted.append((self.path, body))
        self.server.answer.wait(30)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.answer.set()
        server.shutdown()
        thread.join()


def test_spans_reach_a_collector_over_http(collector: Collector) -> None:
    collector.answer.set()
    tracing = Tracing(collector.url)
    tracing.observe(RECORD)
    tracing.close(timeout=300)
    assert [path for path, _ in collector.posted] == ["/v1/traces"]
    message = ExportTraceServiceRequest()
    message.ParseFromString(collector.posted[0][1])
    names = [
        span.name
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(names) == ["chat auto", "chat strong", "chat weak"]


def test_a_collector_that_hangs_does_not_hold_up_the_end(collector: Collector) -> None:
    tracing = Tracing(collector.url)
    tracing.observe(RECORD)
    tracing.close(timeout=0.2)  # the answer comes only after the test
    assert not tracing.on
    # It goes on trying behind our back, which ends with the process.
    assert "thriftroute-tracing-close" in {thread.name for thread in threading.enumerate()}

"""From an entry of a log to rows: OpenAI-style, LiteLLM, Langfuse, OpenTelemetry, our own.

    openai      {"request": {...}, "response": {...}}, stored completions, fine-tuning files,
                lines of a batch, or flat: messages | prompt, and what else is there
    litellm     spend logs (`LiteLLM_SpendLogs`), and the payload that its callbacks log
    langfuse    observations and traces, from the API, the page or the blob storage
    otel        spans and log records of OTLP's JSON, with the gen_ai conventions
    records     `thriftroute records export`
    logs        what this project wrote: `thriftroute logs import`

The format of a file follows from its first entry. What is no chat that was answered, such as an
embedding or a request that failed, raises LeftOutError with the reason.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..data.schema import Messages, render
from ..router.errors import DataError
from . import otel
from .hashes import digest
from .schema import LogRow, row_of
from .shapes import (
    FAILED,
    NO_CHAT,
    NO_TEXT,
    LeftOutError,
    Object,
    answer_text,
    body,
    conversation,
    count,
    first,
    iso_time,
    number,
    rating,
    sound,
    text,
)

REFUSED = 400  # HTTP status of the first answer that is none
_OWN = {
    *("id", "time", "prompt", "messages", "answer", "model", "input_tokens", "output_tokens"),
    *("cost_usd", "task", "session", "tenant", "feedback", "cluster", "weight"),
}
_REDACTED = "redacted-by-litellm"
_CALLS = ("completion", "responses", "anthropic_messages", "generate_content", "chat")
_FEEDBACK = ("feedback", "thumb", "rating", "like")


def detect(record: Object) -> str:
    """The format of an entry. Raises DataError where none is known that looks so."""
    names = set(record)
    if otel.is_otel(record):
        return "otel"
    for name, columns in _TELLING:
        if all(names & set(one_of) for one_of in columns):
            return name
    if names <= _OWN and _is_own(record):
        return "logs"
    if names & {"messages", "request", "request_body", "body", "prompt", "choices", "input"}:
        return "openai"
    raise DataError(
        f"no known log has entries of {', '.join(sorted(map(str, names))[:12]) or 'no fields'}; "
        f"expected one of {', '.join(FORMATS)}: see docs/own-logs.md"
    )


def rows_of(record: Object, format: str) -> Iterator[LogRow | LeftOutError]:
    """The rows of one entry, and for each part of it that is none the reason.

    Raises DataError, with the field at fault, where the entry cannot be used.
    """
    if format == "otel":
        found: Iterator[Object] = otel.calls(record)
    elif format == "langfuse" and isinstance(record.get("observations"), list):
        found = _observations(record)
    else:
        found = iter((record,))
    for each in found:
        try:
            yield _MAKERS[format](each)
        except LeftOutError as error:
            yield error


def _is_own(record: Object) -> bool:
    """Whether an entry is ours: its answer stands beside the messages, not in them."""
    turns = record.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else {}
    asked = "prompt" in record or body(last).get("role", "assistant") != "assistant"
    return asked and isinstance(record.get("id"), str)


def _openai(record: Object) -> LogRow:
    request = body(first(record, "request", "request_body", "body", "input"))
    request = body(request.get("body")) or request
    if not set(request) & {"messages", "input", "prompt", "contents"}:
        request = record
    response = first(record, "response", "response_body", "output", "completion", "answer")
    outer = body(response)
    inner = body(outer.get("body")) or outer
    status = number(first(record, "status_code", "response.status_code"), "status_code")
    if (status or 0) >= REFUSED or first(record, "error") or first(inner, "error"):
        raise LeftOutError(FAILED)
    url = text(first(record, "url", "path", "endpoint"))
    if "embedding" in url or inner.get("object") == "list" or not _is_chat(request):
        raise LeftOutError(NO_CHAT)
    messages, after = conversation(dict(request))
    said = answer_text(inner if inner and inner is not outer else response)
    if said is None and set(record) & {"choices"}:
        said, inner = answer_text(record), record
    usage = body(inner.get("usage") or record.get("usage"))
    return _row(
        record,
        messages,
        answer=said or after,
        id=first(record, "id", "request_id", "custom_id", "response.id", "response.body.id"),
        time=first(
            *(record, "time", "timestamp", "created_at", "created", "start_time", "date"),
            *("response.created", "response.created_at", "response.body.created"),
        ),
        model=first(request, "model") or first(record, "model") or first(inner, "model"),
        tokens_in=_usage(usage, record, _IN),
        tokens_out=_usage(usage, record, _OUT),
        cost=first(record, "cost_usd", "cost", "spend", "response_cost", "total_cost"),
        task=first(record, "task", "metadata.task", "request.metadata.task"),
        session=first(
            *(record, "session_id", "session", "conversation_id", "thread_id"),
            *("metadata.session_id", "request.metadata.session_id"),
        ),
        tenant=first(record, "tenant", "team", "user", "user_id", "request.user"),
        feedback=rating(first(record, "feedback", "metadata.feedback")),
    )


def _litellm(record: Object) -> LogRow:
    kind = text(record.get("call_type"))
    if "failure" in (record.get("status"), first(record, "metadata.status")):
        raise LeftOutError(FAILED)
    if kind and not any(word in kind for word in _CALLS):
        raise LeftOutError(NO_CHAT)
    asked = first(record, "messages") or first(record, "proxy_server_request")
    if asked is None or _REDACTED in str(asked)[:200]:
        raise LeftOutError(NO_TEXT)
    messages, after = conversation(asked)
    said = answer_text(first(record, "response"))
    return _row(
        record,
        messages,
        answer=after if said is None or _REDACTED in said else said,
        id=first(record, "request_id", "id", "litellm_call_id"),
        time=record.get("startTime"),
        # What clients ask for; behind it may be several deployments.
        model=first(record, "model_group", "model"),
        tokens_in=record.get("prompt_tokens"),
        tokens_out=record.get("completion_tokens"),
        cost=first(record, "spend", "response_cost"),
        session=first(record, "session_id", "trace_id"),
        tenant=first(
            *(record, "team_id", "organization_id", "metadata.user_api_key_team_id"),
            *("end_user", "user"),
        ),
    )


def _langfuse(record: Object) -> LogRow:
    kind = text(record.get("type")).upper()
    if kind and kind != "GENERATION":
        raise LeftOutError(NO_CHAT)
    if text(record.get("level")).upper() == "ERROR":
        raise LeftOutError(FAILED)
    messages, after = conversation(first(record, "input"))
    usage = body(first(record, "usageDetails", "usage_details", "usage"))
    return _row(
        record,
        messages,
        answer=answer_text(first(record, "output")) or after,
        id=record.get("id"),
        time=first(record, "startTime", "start_time", "timestamp"),
        model=first(record, "providedModelName", "provided_model_name", "model"),
        tokens_in=_usage(usage, record, _IN),
        tokens_out=_usage(usage, record, _OUT),
        cost=first(
            *(record, "costDetails.total", "cost_details.total", "totalCost", "total_cost"),
            "calculatedTotalCost",
        ),
        task=first(record, "name", "traceName", "trace_name"),
        session=first(record, "sessionId", "session_id"),
        tenant=first(record, "userId", "user_id"),
        feedback=_scored(record.get("scores")),
    )


def _observations(trace: Object) -> Iterator[Object]:
    """The observations of a trace, each with what only the trace knows."""
    known = {n: trace.get(n) for n in ("sessionId", "userId", "scores", "session_id", "user_id")}
    for each in trace["observations"]:
        yield {**known, **body(each)}


def _scored(scores: object) -> float | None:
    """The mean of a user's scores that are in [0, 1]; what evaluators scored is no feedback."""
    values = []
    for score in scores if isinstance(scores, list) else ():
        name = text(body(score).get("name")).lower()
        if any(word in name for word in _FEEDBACK):
            value = number(body(score).get("value"), "scores")
            values += [value] if value is not None and 0 <= value <= 1 else []
    return sum(values) / len(values) if values else None


def _otel(record: Object) -> LogRow:
    if record["failed"]:
        raise LeftOutError(FAILED)
    messages, after = conversation(record["input"], record["system"])
    answer = answer_text(record["output"]) or after
    names = ("id", "time", "model", "tokens_in", "tokens_out", "cost", "task", "session", "tenant")
    return _row(record, messages, answer=answer, **{name: record[name] for name in names})


def _records(record: Object) -> LogRow:
    if (number(record.get("status"), "status") or 0) >= REFUSED or record.get("error"):
        raise LeftOutError(FAILED)
    messages, _ = conversation(record.get("prompt"))
    tenant = record.get("tenant")
    return _row(
        record,
        messages,
        answer=answer_text(record.get("answer")),
        id=record.get("id"),
        time=record.get("time"),
        model=record.get("model"),
        tokens_in=record.get("prompt_tokens"),
        tokens_out=record.get("completion_tokens"),
        cost=record.get("cost"),
        task=record.get("task"),
        session=record.get("session_hash"),
        tenant=None if tenant == "default" else tenant,
        feedback=record.get("feedback"),
    )


def _row(
    record: Object,
    messages: Messages,
    *,
    id: object,
    answer: str | None,
    time: object,
    model: object,
    tokens_in: object,
    tokens_out: object,
    cost: object,
    task: object = None,
    session: object = None,
    tenant: object = None,
    feedback: float | None = None,
) -> LogRow:
    messages = tuple(map(sound, messages))
    return LogRow(
        id=text(id) or f"log-{digest(messages).hex()[:16]}",
        messages=messages,
        prompt=render(messages),
        time=iso_time(time),
        answer=sound(answer),
        model=text(model) or None,
        input_tokens=count(tokens_in, "input_tokens"),
        output_tokens=count(tokens_out, "output_tokens"),
        cost_usd=number(cost, "cost_usd"),
        task=text(task),
        session=text(session),
        tenant=text(tenant),
        feedback=feedback,
    )


_IN = ("prompt_tokens", "input_tokens", "input", "promptTokens", "inputTokens")
_OUT = ("completion_tokens", "output_tokens", "output", "completionTokens", "outputTokens")


def _usage(usage: Object, record: Object, names: tuple[str, ...]) -> Any:
    # Beside its usage a record has an input and an output that are no counts.
    found = first(usage, *names)
    return first(record, *(n for n in names if "okens" in n)) if found is None else found


def _is_chat(request: Object) -> bool:
    return not ("input" in request and "embed" in text(request.get("model")))


# Columns of which one a group must be there, the most telling formats first.
_TELLING: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("records", (("prompt_hash",), ("choice",), ("threshold",))),
    ("litellm", (("spend", "response_cost"), ("startTime",))),
    ("langfuse", (("traceId", "trace_id"), ("type", "startTime", "start_time"))),
    ("langfuse", (("observations", "scores", "sessionId", "projectId"), ("input", "timestamp"))),
)
_MAKERS: Mapping[str, Callable[[Object], LogRow]] = {
    "openai": _openai,
    "litellm": _litellm,
    "langfuse": _langfuse,
    "otel": _otel,
    "records": _records,
    "logs": row_of,
}
FORMATS = tuple(_MAKERS)

"""From an entry of a log to rows: OpenAI-style, LiteLLM, Langfuse, OpenTelemetry, agents', our own.

    openai      {"request": {...}, "response": {...}}, stored completions, fine-tuning files,
                lines of a batch, or flat: messages | prompt, and what else is there
    litellm     spend logs (`LiteLLM_SpendLogs`), and the payload that its callbacks log
    langfuse    observations and traces, from the API, the page or the blob storage
    otel        spans and log records of OTLP's JSON, with the gen_ai conventions
    agent       transcripts of Claude Code, Codex and OpenCode (see `transcripts`)
    records     `thriftroute records export`
    logs        what this project wrote: `thriftroute logs import`

The format of a file follows from its first entry. What is no chat that was answered, such as an
embedding or a request that failed, raises LeftOutError with the reason.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ...errors import DataError
from ..schema import render
from . import otel
from .normalize import (
    CUT,
    FAILED,
    NO_CHAT,
    NO_TEXT,
    LeftOutError,
    Object,
    body,
    count,
    digest,
    first,
    iso_time,
    listed,
    number,
    parsed,
    rating,
    sound,
    text,
)
from .schema import LogRow, row_of
from .streams import joined
from .transcripts import is_opencode, opencode_calls
from .turns import answer_text, conversation

INSIDE_TURN = "a step inside a turn"  # which the user said nothing new before
REFUSED = 400  # HTTP status of the first answer that is none
_OWN = {
    *("id", "time", "prompt", "messages", "answer", "model", "input_tokens", "output_tokens"),
    *("cost_usd", "task", "session", "tenant", "feedback", "cluster", "weight"),
}
# LiteLLM's names of what is a chat.
_CALLS = ("completion", "responses", "anthropic_messages", "generate_content", "chat")
# What an operation, an address or a model is called that is none.
_OTHERS = re.compile(
    r"embedding|embed(_|content|$)|\bembed\b|rerank|moderation|speech|\btts\b|transcri"
    r"|whisper|/audio|images?[/_]|generateimage|dall-e|gpt-image|\bimagen|/videos",
    re.IGNORECASE,
)
_FEEDBACK = ("feedback", "thumb", "rating", "like")
_USAGE = {
    "input_tokens": "prompt_tokens input_tokens input promptTokens inputTokens promptTokenCount "
    "prompt_eval_count",
    "output_tokens": "completion_tokens output_tokens output completionTokens outputTokens "
    "candidatesTokenCount eval_count",
}
# Where each format has the fields of a row, the first that has a value.
_WRITTEN: Mapping[str, Mapping[str, str]] = {
    "openai": {
        "id": "id request_id custom_id response.id response.body.id",
        "time": "time timestamp created_at created start_time date response.created "
        "response.created_at response.body.created",
        "cost_usd": "cost_usd cost spend response_cost total_cost",
        "task": "task metadata.task request.metadata.task",
        "session": "session_id session conversation_id thread_id metadata.session_id "
        "request.metadata.session_id",
        "tenant": "tenant team user user_id request.user",
    },
    "litellm": {
        "id": "request_id id litellm_call_id",
        "time": "startTime",
        # What clients ask for; behind it may be several deployments.
        "model": "model_group model",
        "input_tokens": "prompt_tokens",
        "output_tokens": "completion_tokens",
        "cost_usd": "spend response_cost",
        "session": "session_id trace_id",
        "tenant": "team_id organization_id metadata.user_api_key_team_id end_user user",
    },
    "langfuse": {
        "id": "id",
        "time": "startTime start_time timestamp",
        "model": "providedModelName provided_model_name model",
        "cost_usd": "costDetails.total cost_details.total totalCost total_cost calculatedTotalCost",
        "task": "name traceName trace_name",
        "session": "sessionId session_id",
        "tenant": "userId user_id",
    },
    "otel": {name: name for name in otel.FIELDS},
    "agent": {
        **{name: name for name in ("id", "time", "model", "session", "output_tokens")},
        **{"cost_usd": "cost_usd", "task": "agent", "tenant": "tenant"},
    },
    "records": {
        **{name: name for name in ("id", "time", "model", "task", "feedback", "tenant")},
        "input_tokens": "prompt_tokens",
        "output_tokens": "completion_tokens",
        "cost_usd": "cost",
        "session": "session_hash",
    },
}
# Split once: every entry looks at all of them.
_FIELDS = {
    format: {name: tuple(names.split()) for name, names in fields.items()}
    for format, fields in _WRITTEN.items()
}
# Columns of which one a group must be there, the most telling formats first.
_TELLING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("agent", ("session", "cache_read_tokens", "output_tokens")),
    ("records", ("prompt_hash", "choice", "threshold")),
    ("litellm", ("spend response_cost", "startTime")),
    ("langfuse", ("traceId trace_id", "type startTime start_time")),
    ("langfuse", ("observations scores sessionId projectId", "input timestamp")),
)


def detect(record: Object) -> str:
    """The format of an entry. Raises DataError where none is known that looks so."""
    names = set(record)
    if otel.is_otel(record):
        return "otel"
    if is_opencode(record):
        return "agent"
    for name, columns in _TELLING:
        if all(names.intersection(one_of.split()) for one_of in columns):
            return name
    # Ours has its answer beside the messages, not in them.
    turns = record.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else {}
    asked = "prompt" in record or body(last).get("role", "assistant") != "assistant"
    if names <= _OWN and asked and isinstance(record.get("id"), str):
        return "logs"
    if names & {"messages", "request", "request_body", "body", "prompt", "choices", "input"}:
        return "openai"
    raise DataError(
        f"no known log has entries of {', '.join(sorted(map(str, names))[:12]) or 'no fields'}; "
        f"expected one of {', '.join(FORMATS)}: see docs/own-logs.md"
    )


def rows_of(record: Object, format: str) -> Iterator[LogRow | LeftOutError]:
    """The rows of one entry, and for each part of it that is none the reason. Raises DataError,
    with the field at fault, where the entry cannot be used."""
    try:
        for each in calls(record, format):
            try:
                yield _MAKERS[format](each)
            except LeftOutError as error:
                yield error
    except RecursionError as error:
        raise DataError("is nested too deep to be read") from error


def calls(record: Object, format: str) -> Iterable[Object]:
    """The calls of models in an entry: OTLP's JSON, Langfuse's traces and OpenCode's sessions have
    several."""
    if format == "otel":
        return otel.calls(record)
    if format == "agent" and is_opencode(record):
        return opencode_calls(record)
    if format == "langfuse" and isinstance(record.get("observations"), list):
        # Each with what only the trace knows.
        names = ("sessionId", "userId", "scores", "session_id", "user_id")
        known = {name: record.get(name) for name in names}
        return ({**known, **body(each)} for each in record["observations"])
    return (record,)


def _openai(record: Object) -> LogRow:
    request = body(first(record, "request", "request_body", "body", "input"))
    request = body(request.get("body")) or request
    if not set(request) & {"messages", "input", "prompt", "contents"}:
        request = record
    response = joined(first(record, "response", "response_body", "output", "completion", "answer"))
    outer = body(response)
    inner = body(joined(outer.get("body"))) or outer
    status = number(first(record, "status_code", "response.status_code"), "status_code")
    if (status or 0) >= REFUSED or first(record, "error") or first(inner, "error"):
        raise LeftOutError(FAILED)
    kinds = [first(record, name) for name in ("call_type", "operation", "url", "path", "endpoint")]
    # Embeddings, images, moderations and rankings come so.
    items = inner.get("object") == "list" or {"data", "results", "embeddings"} & set(inner)
    if items and not {"choices", "output", "content", "candidates"} & set(inner):
        raise LeftOutError(NO_CHAT)
    model = first(request, "model") or first(record, "model")
    if not {"messages", "contents"} & set(request):
        kinds.append(model)
    _check_chat(*kinds)
    said = answer_text(inner if inner and inner is not outer else response)
    if said is None and "choices" in record:
        said, inner = answer_text(record), record
    return _row(
        "openai",
        record,
        dict(request),
        said,
        model=model or first(inner, "model"),
        feedback=rating(first(record, "feedback", "metadata.feedback")),
        **_usage(first(inner, "usage", "usageMetadata") or record.get("usage"), record),
    )


def _litellm(record: Object) -> LogRow:
    # A table's export has its columns of JSON as text.
    record = {name: value for name, value in record.items() if value != "null"}
    kind = text(record.get("call_type"))
    if "failure" in (record.get("status"), first(record, "metadata.status")):
        raise LeftOutError(FAILED)
    if kind and not any(word in kind for word in _CALLS):
        raise LeftOutError(NO_CHAT)
    if not kind:
        _check_chat(first(record, "model_group", "model"))
    asked = first(record, "messages") or body(first(record, "proxy_server_request"))
    return _row("litellm", record, asked, answer_text(first(record, "response")))


def _langfuse(record: Object) -> LogRow:
    kind = text(record.get("type")).upper()
    if kind and kind != "GENERATION":
        raise LeftOutError(NO_CHAT)
    if text(record.get("level")).upper() == "ERROR":
        raise LeftOutError(FAILED)
    asked = first(record, "input")
    found = parsed(asked) if isinstance(asked, str) else asked
    if not any(isinstance(each, dict) for each in (found if isinstance(found, list) else (found,))):
        _check_chat(first(record, *_FIELDS["langfuse"]["model"]))  # which is asked about text
    return _row(
        "langfuse",
        record,
        asked,
        answer_text(first(record, "output")),
        feedback=_scored(record.get("scores")),
        **_usage(first(record, "usageDetails", "usage_details", "usage"), record),
    )


def _scored(scores: object) -> float | None:
    """The mean of a user's scores that are in [0, 1]; what evaluators scored is no feedback."""
    named = ((text(score.get("name")).lower(), score.get("value")) for score in listed(scores))
    told = (number(v, "scores") for name, v in named if any(word in name for word in _FEEDBACK))
    values = [value for value in told if value is not None and 0 <= value <= 1]
    return sum(values) / len(values) if values else None


def _otel(record: Object) -> LogRow:
    if record["failed"]:
        raise LeftOutError(FAILED)
    _check_chat(*record["kinds"], record["model"])
    asked, system = record["input"], record["system"]
    return _row("otel", record, asked, answer_text(record["output"]), system=system)


def _agent(record: Object) -> LogRow:
    if "conversation" not in record:
        raise LeftOutError(NO_TEXT if "agent" not in record else INSIDE_TURN)
    parts = ("input_tokens", "cache_read_tokens", "cache_write_tokens")
    prompt = sum(count(record.get(name), name) or 0 for name in parts)
    asked, answer = record["conversation"], record.get("answer")
    return _row("agent", record, asked, answer, input_tokens=prompt)


def _records(record: Object) -> LogRow:
    if (number(record.get("status"), "status") or 0) >= REFUSED or record.get("error"):
        raise LeftOutError(FAILED)
    asked, said = first(record, "prompt"), first(record, "answer")
    if _is_torn(asked):
        raise LeftOutError(CUT)
    # Where no answer was recorded, what the prompt ends with is none either.
    answer = "" if _is_torn(said) else answer_text(said) or ""
    default = {"tenant": None} if record.get("tenant") == "default" else {}
    return _row("records", record, asked, answer, **default)


def _is_torn(said: object) -> bool:
    """Whether the server cut a text that was too long: whole ones are JSON."""
    return isinstance(said, str) and said.startswith("[") and isinstance(parsed(said), str)


def _row(
    format: str,
    record: Object,
    asked: object,
    said: str | None,
    *,
    system: object = None,
    **given: Any,
) -> LogRow:
    """A row; `given` are its fields that `_FIELDS` does not have of this format."""
    found, after = conversation(asked, system)
    messages = tuple(map(sound, found))
    of = {name: first(record, *names) for name, names in _FIELDS[format].items()} | given
    return LogRow(
        id=text(of["id"]) or f"log-{digest(messages).hex()[:16]}",
        messages=messages,
        prompt=render(messages),
        time=iso_time(of["time"]),
        answer=sound(after if said is None else said) or None,
        model=text(of["model"]) or None,
        input_tokens=count(of["input_tokens"], "input_tokens"),
        output_tokens=count(of["output_tokens"], "output_tokens"),
        cost_usd=number(of["cost_usd"], "cost_usd"),
        task=text(of.get("task")),
        session=text(of["session"]),
        tenant=text(of["tenant"]),
        feedback=of.get("feedback"),
    )


def _usage(found: object, record: Object) -> dict[str, Any]:
    usage, counts = body(found), {}
    for name, names in _USAGE.items():
        known = first(usage, *names.split())
        # Beside its usage a record has an input and an output that are no counts.
        beside = (n for n in names.split() if "okens" in n)
        counts[name] = first(record, *beside) if known is None else known
    return counts


def _check_chat(*names: object) -> None:
    """Raises LeftOutError where an operation, an address or a model is called what is no chat."""
    if any(_OTHERS.search(text(name)) for name in names):
        raise LeftOutError(NO_CHAT)


_MAKERS: Mapping[str, Callable[[Object], LogRow]] = {
    "openai": _openai,
    "litellm": _litellm,
    "langfuse": _langfuse,
    "otel": _otel,
    "agent": _agent,
    "records": _records,
    "logs": row_of,
}
FORMATS = tuple(_MAKERS)

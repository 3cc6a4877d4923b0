"""Calls of models in OpenTelemetry's JSON: OTLP spans and log records, and single spans.

Read are the GenAI semantic conventions (`gen_ai.input.messages` and the older events and numbered
attributes) and, where they differ, OpenInference's names, the AI SDK's and pydantic-ai's. The
events of one message each that some SDKs send as log records apart from their span are not joined.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .normalize import Object, body, count, first, is_value, listed, text
from .parts import kind_of, type_of

_OTHER = ("execute_tool", "create_agent", "invoke_agent", "invoke_workflow", "retrieval")
# Kinds of OpenInference's spans that are calls of models; they are no chats but for the first.
_MODELS = ("LLM", "EMBEDDING", "RERANKER")
_TURN = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
_ERROR = (2, "2", "STATUS_CODE_ERROR", "ERROR")

# Attributes that hold the fields of a row, the first that has a value.
_ATTRIBUTES = {
    "model": "gen_ai.request.model gen_ai.response.model llm.request.model llm.model_name "
    "ai.model.id",
    "input_tokens": "gen_ai.usage.input_tokens gen_ai.usage.prompt_tokens llm.token_count.prompt "
    "ai.usage.inputTokens ai.usage.promptTokens",
    "output_tokens": "gen_ai.usage.output_tokens gen_ai.usage.completion_tokens "
    "llm.token_count.completion ai.usage.outputTokens ai.usage.completionTokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens "
    "gen_ai.usage.cache_read_input_tokens llm.token_count.prompt_details.cache_read "
    "ai.usage.cachedInputTokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens "
    "gen_ai.usage.cache_creation_input_tokens llm.token_count.prompt_details.cache_write",
    "cost_usd": "gen_ai.usage.cost llm.cost.total",
    "task": "gen_ai.agent.name gen_ai.prompt.name ai.telemetry.functionId",
    "session": "gen_ai.conversation.id session.id ai.telemetry.metadata.sessionId",
    "tenant": "tenant.id user.id enduser.id ai.telemetry.metadata.userId",
}
FIELDS = ("id", "time", *_ATTRIBUTES)
_IDS = (("traceId", "trace_id"), ("spanId", "span_id"))


def is_otel(record: Object) -> bool:
    """Whether an entry is OTLP's JSON, or a span by itself."""
    if set(record) & {"resourceSpans", "resourceLogs", "scopeSpans", "resource_spans"}:
        return True
    attributes = record.get("attributes")
    span = {"spanId", "span_id", "context", "startTimeUnixNano"} & set(record)
    return bool(span) and isinstance(attributes, Mapping | list)


def calls(record: Object) -> Iterator[dict[str, Any]]:
    """The calls of models in one entry, in fields that say nothing of OpenTelemetry; of its other
    spans, which a trace is full of, none."""
    for each in _entries(record):
        found = _attributes(each.get("attributes"))
        turns: list[dict[str, Any]] = []
        # pydantic-ai has the events as an attribute, too.
        own = [{"attributes": said} for said in listed(found.get("events"))]
        for event in (*listed(each.get("events")), *own):
            said = _attributes(event.get("attributes"))
            name = text(event.get("name") or said.get("event.name"))
            if turn := _TURN.fullmatch(name):
                kept = {n: said[n] for n in ("tool_calls", "name") if said.get(n)}
                if turn[1] == "tool":
                    kept["tool_call_id"] = text(said.get("id"))
                turns.append({"role": turn[1], "content": said.get("content"), **kept})
            elif name == "gen_ai.choice":
                found["gen_ai.completion"] = said.get("message", said.get("content"))
            else:
                found |= said
        call = _call(each, found, turns)
        if call is not None:
            yield call


def _call(entry: Object, found: Mapping[str, Any], turns: list[Any]) -> dict[str, Any] | None:
    # The AI SDK's outer spans repeat what the inner ones, `doGenerate` and its kin, have.
    inner = ".do" in text(found.get("ai.operationId"))
    if not inner and not any(name.startswith(("gen_ai.", "llm.")) for name in found):
        return None
    if found.get("gen_ai.operation.name") in _OTHER:
        return None
    kind = text(found.get("openinference.span.kind")).upper()
    if kind and kind not in _MODELS:
        return None

    def of(*names: str) -> Any:
        return next((found[name] for name in names if is_value(found.get(name))), None)

    said, calls = of("ai.response.text", "ai.result.text"), of("ai.response.toolCalls")
    empty = said is None and calls is None
    context, status = body(entry.get("context")), body(entry.get("status"))
    ids = (text(first(entry, *names) or first(context, *names)) for names in _IDS)
    return {
        **{name: of(*names.split()) for name, names in _ATTRIBUTES.items()},
        "id": "-".join(filter(None, ids)),
        "failed": first(status, "code", "status_code") in _ERROR or of("error.type") is not None,
        "time": _moment(first(entry, "startTimeUnixNano", "start_time", "timeUnixNano")),
        "system": of("gen_ai.system_instructions"),
        "kinds": [kind, *map(of, ("gen_ai.operation.name", "llm.request.type", "ai.operationId"))],
        "input": of("gen_ai.input.messages", "gen_ai.prompt", "ai.prompt.messages")
        or turns
        or _numbered(found, ("gen_ai.prompt.", "llm.input_messages."), "user")
        or of("input.value"),
        "output": of("gen_ai.output.messages", "gen_ai.completion")
        or _numbered(found, ("gen_ai.completion.", "llm.output_messages."), "assistant")
        or (None if empty else {"role": "assistant", "content": said, "tool_calls": calls})
        or of("ai.response.object", "output.value"),
    }


def _entries(record: Object) -> Iterator[Object]:
    """The spans and log records of an entry, however deep they lie in it."""
    groups = [
        *("resourceSpans", "resource_spans", "scopeSpans", "scope_spans", "spans"),
        *("resourceLogs", "resource_logs", "scopeLogs", "scope_logs", "logRecords", "log_records"),
    ]
    inner = [record[name] for name in groups if isinstance(record.get(name), list)]
    if not inner:
        yield record
    for group in inner:
        for each in group:
            yield from _entries(body(each))


def _attributes(value: object) -> dict[str, Any]:
    """Attributes by name, from OTLP's list of keys and typed values or from a plain object."""
    if isinstance(value, Mapping):
        return dict(value)
    pairs = (body(each) for each in value) if isinstance(value, list) else ()
    return {text(pair.get("key")): _value(pair.get("value")) for pair in pairs}


def _value(typed: object) -> Any:
    """What OTLP wraps in the name of its type; its JSON has 64-bit integers as text."""
    wrapped = body(typed)
    if "arrayValue" in wrapped:
        values = body(wrapped["arrayValue"]).get("values")
        return [_value(each) for each in values] if isinstance(values, list) else []
    if "kvlistValue" in wrapped:
        return _attributes(body(wrapped["kvlistValue"]).get("values"))
    if "intValue" in wrapped:
        return count(wrapped["intValue"], "attributes")
    return next(iter(wrapped.values()), None)


def _numbered(
    found: Mapping[str, Any], prefixes: tuple[str, ...], role: str
) -> list[dict[str, Any]]:
    """Messages from attributes such as `gen_ai.prompt.0.content`; `role` where none is named."""
    tree: dict[str, Any] = {}
    for name, value in found.items():
        if not name.startswith(prefixes):
            continue
        *path, last = name.split(".")[2:]
        at = tree
        for step in path:
            if not isinstance(inner := at.setdefault(step, {}), dict):
                break
            at = inner
        else:
            at[last] = value
    return [_as_message(turn, role) for turn in _in_order(tree, "message")]


def _as_message(turn: Object, role: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in _in_order(body(turn.get("contents")), "message_content"):
        url = first(part, "image.image.url")
        image = {"type": "image_url", "image_url": {"url": url}}
        parts.append({"type": "text", "text": part["text"]} if "text" in part else image)
    calls = [
        {"id": text(call.get("id")), "arguments": "", **(body(call.get("function")) or call)}
        for call in _in_order(body(turn.get("tool_calls")), "tool_call")
    ]
    content = parts or _from_json(turn.get("content"))
    return {"role": role, **turn, "content": content, "tool_calls": calls}


def _in_order(tree: Object, wrapper: str) -> list[Object]:
    """The objects under numbers, or what their wrapper holds."""
    numbers = sorted(filter(str.isdecimal, tree), key=lambda number: (len(number), number))
    each = (body(tree[number]) for number in numbers)
    return [body(of.get(wrapper)) or of for of in each if of]


def _from_json(content: Any) -> Any:
    """The parts of a message where its content is the JSON text of them; else the content."""
    if not isinstance(content, str) or not content.lstrip().startswith("["):
        return content
    try:
        parts = json.loads(content)
    except (ValueError, RecursionError):
        return content
    known = bool(parts) and all(type_of(body(part)) and kind_of(part) for part in parts)
    return parts if known else content


def _moment(value: object) -> object:
    """Seconds from OTLP's nanoseconds, which are text; anything else as it is."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 25:
        return int(value) / 1e9
    return value

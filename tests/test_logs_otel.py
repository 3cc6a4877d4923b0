"""Calls of models in OpenTelemetry's JSON: the conventions of today and those before."""

import json
from typing import Any

import pytest
from thriftroute.data.logs.formats import detect, rows_of
from thriftroute.data.logs.normalize import FAILED, NO_TEXT, LeftOutError

INPUT = [
    {"role": "user", "parts": [{"type": "text", "content": "q"}]},
    {"role": "assistant", "parts": [
        {"type": "tool_call", "id": "1", "name": "f", "arguments": {"a": 1}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": {"b": 2}}]},
]  # fmt: skip
OUTPUT = [
    {"role": "assistant", "parts": [{"type": "text", "content": "a"}], "finish_reason": "stop"}
]
ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.usage.input_tokens": 3,
    "gen_ai.usage.output_tokens": 2,
    "gen_ai.conversation.id": "s",
}


def typed(value: object) -> dict[str, Any]:
    """A value as OTLP's JSON wraps it."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [typed(each) for each in value]}}
    assert isinstance(value, dict)
    return {"kvlistValue": {"values": pairs(value)}}


def pairs(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": typed(value)} for key, value in values.items()]


def span(attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        **{"traceId": "aa", "spanId": "bb", "startTimeUnixNano": "1760000000000000000"},
        **{"attributes": pairs(attributes), **fields},
    }


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}


def rows(record: dict[str, Any]) -> list[Any]:
    assert detect(record) == "otel"
    found = rows_of(json.loads(json.dumps(record)), "otel")
    return [r.reason if isinstance(r, LeftOutError) else r.to_dict() for r in found]


@pytest.mark.parametrize("structured", [False, True])
def test_spans_of_the_conventions(structured: bool) -> None:
    texts: dict[str, Any] = {
        "gen_ai.system_instructions": [{"type": "text", "content": "s"}],
        "gen_ai.input.messages": INPUT,
        "gen_ai.output.messages": OUTPUT,
    }
    if not structured:
        texts = {name: json.dumps(value) for name, value in texts.items()}
    http = span({"http.request.method": "POST"}, spanId="cc")
    assert rows(export(http, span({**ATTRIBUTES, **texts}))) == [
        {
            "id": "aa-bb",
            "time": "2025-10-09T08:53:20.000+00:00",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"a": 1}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": '{"b": 2}'},
            ],
            "answer": "a",
            "model": "m",
            "input_tokens": 3,
            "output_tokens": 2,
            "session": "s",
        }
    ]


def test_the_event_with_all_details() -> None:
    details = {"gen_ai.input.messages": INPUT[:1], "gen_ai.output.messages": OUTPUT}
    record = {
        "resourceLogs": [{"scopeLogs": [{"logRecords": [{
            "timeUnixNano": "1760000000000000000", "traceId": "aa", "spanId": "bb",
            "eventName": "gen_ai.client.inference.operation.details",
            "attributes": pairs({**ATTRIBUTES, **details})}]}]}]
    }  # fmt: skip
    (row,) = rows(record)
    assert (row["prompt"], row["answer"], row["time"][:4]) == ("q", "a", "2025")
    event = {
        "name": "gen_ai.client.inference.operation.details",
        "attributes": pairs({k: json.dumps(v) for k, v in details.items()}),
    }
    (row,) = rows(export(span(ATTRIBUTES, events=[event])))
    assert (row["prompt"], row["answer"]) == ("q", "a")


@pytest.mark.parametrize(
    "record",
    [
        export(span({
            "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "q",
            "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "a"})),
        export(span({
            "openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.content": "q",
            "llm.output_messages.0.message.content": "a"})),
        export(span(ATTRIBUTES, events=[
            {"name": "gen_ai.content.prompt", "attributes": pairs({
                "gen_ai.prompt": '[{"role": "user", "content": "q"}]'})},
            {"name": "gen_ai.content.completion", "attributes": pairs({
                "gen_ai.completion": '[{"role": "assistant", "content": "a"}]'})}])),
        export(span(ATTRIBUTES, events=[
            {"name": "gen_ai.user.message", "attributes": pairs({"content": "q"})},
            {"name": "gen_ai.choice", "attributes": pairs({
                "message": '{"role": "assistant", "content": "a"}'})}])),
        {"name": "chat", "context": {"trace_id": "0xaa", "span_id": "0xbb"},
         "start_time": "2026-01-01T00:00:00.000000Z", "status": {"status_code": "UNSET"},
         "attributes": {"gen_ai.prompt": "q", "gen_ai.completion": "a"}},
    ],
)  # fmt: skip
def test_older_and_other_conventions(record: dict[str, Any]) -> None:
    (row,) = rows(record)
    assert (row["prompt"], row["answer"]) == ("q", "a")
    assert row["id"] in ("aa-bb", "0xaa-0xbb")


def test_numbered_messages_come_in_their_order() -> None:
    numbered = {f"gen_ai.prompt.{i}.content": f"turn {i}" for i in (10, 9, 2)}
    (row,) = rows(export(span(numbered)))
    assert [m["content"] for m in row["messages"]] == ["turn 2", "turn 9", "turn 10"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"db.system": "postgresql"},
        {"gen_ai.operation.name": "execute_tool"},
        {"openinference.span.kind": "CHAIN", "llm.model_name": "m", "input.value": "q"},
    ],
)
def test_other_spans_are_not_there(attributes: dict[str, Any]) -> None:
    assert rows(export(span(attributes))) == []


def test_calls_without_text_and_calls_that_failed() -> None:
    asked = {**ATTRIBUTES, "gen_ai.input.messages": json.dumps(INPUT)}
    assert rows(export(span(ATTRIBUTES), span(asked, status={"code": 2}))) == [NO_TEXT, FAILED]
    assert rows(export(span({**asked, "error.type": "timeout"}))) == [FAILED]


def test_numbered_attributes_of_parts_and_of_calls_are_messages() -> None:
    said = {
        "llm.model_name": "m",
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.contents.1.message_content.text": "in this picture?",
        "llm.input_messages.0.message.contents.0.message_content.text": "What is",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "look",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"x": 1}',
    }
    [row] = rows(export(span(said)))
    assert row["prompt"] == "What is\nin this picture?"
    assert row["answer"] == 'look({"x": 1})'
    image = "llm.input_messages.0.message.contents.2.message_content.image.image.url"
    [row] = rows(export(span({**said, image: "https://example.org/a.png"})))
    assert row["messages"][0]["content"][2] == {
        "type": "image_url",
        "image_url": {"url": "https://example.org/a.png"},
    }


def test_numbered_calls_of_the_older_convention() -> None:
    said = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "weather?",
        "gen_ai.prompt.1.role": "assistant",
        "gen_ai.prompt.1.tool_calls.0.id": "c",
        "gen_ai.prompt.1.tool_calls.0.name": "weather",
        "gen_ai.prompt.1.tool_calls.0.arguments": "{}",
        "gen_ai.prompt.2.role": "tool",
        "gen_ai.prompt.2.tool_call_id": "c",
        "gen_ai.prompt.2.content": "sunny",
        "gen_ai.completion.0.tool_calls.0.name": "again",
        "gen_ai.completion.0.tool_calls.1.name": "later",
    }
    [row] = rows(export(span(said)))
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert row["messages"][2]["tool_call_id"] == "c"
    assert row["answer"] == "again()\nlater()"


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ('[{"type": "text", "text": "what is it"}]', "what is it"),
        # What a person wrote is left alone, though it be JSON.
        ('[{"type": "bug", "text": "x"}]', '[{"type": "bug", "text": "x"}]'),
        ("[]", "[]"),
        ("[1, 2", "[1, 2"),
    ],
)
def test_parts_that_are_written_as_json_are_parts(content: str, prompt: str) -> None:
    [row] = rows(export(span({"gen_ai.prompt.0.content": content})))
    assert row["prompt"] == prompt

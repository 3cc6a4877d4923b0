"""Rows from the entries of every known log, as its tool writes them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from thriftroute.data.logs.formats import FORMATS, detect, rows_of
from thriftroute.data.logs.normalize import FAILED, NO_CHAT, NO_PROMPT, NO_TEXT, LeftOutError
from thriftroute.errors import DataError

ASKED = [{"role": "user", "content": "q"}]
SAID = {"role": "assistant", "content": "a"}
BODY = {"model": "m", "messages": ASKED}
COMPLETION = {"id": "c", "created": 1760000000, "model": "m-1", "choices": [{"message": SAID}]}
LITELLM = {
    "request_id": "r", "call_type": "acompletion", "spend": 0.5, "prompt_tokens": 3,
    "completion_tokens": 2, "startTime": "2026-01-01 00:00:00.123", "model": "m-1",
    "model_group": "m", "messages": ASKED, "response": COMPLETION, "team_id": "t",
    "session_id": "s", "status": "success", "metadata": {"status": "success"},
}  # fmt: skip
OBSERVATION = {
    "id": "o", "traceId": "t", "type": "GENERATION", "name": "sum up",
    "startTime": "2026-01-01T00:00:00.000Z", "model": "m", "input": ASKED, "output": SAID,
    "usageDetails": {"input": 3, "output": 2, "total": 5}, "costDetails": {"total": 0.5},
}  # fmt: skip
DECISION = {
    "id": "d", "time": 1760000000.5, "tenant": "acme", "choice": "weak", "threshold": 0.3,
    "prompt_hash": "x", "prompt": json.dumps(ASKED), "answer": json.dumps([SAID]), "status": 200,
    "error": None, "model": "m", "prompt_tokens": 3, "completion_tokens": 2, "cost": 0.5,
    "feedback": 1.0, "task": "sum", "session_hash": "h",
}  # fmt: skip


def rows(record: Mapping[str, Any], format: str = "auto") -> list[Any]:
    """Rows as they are written, and reasons."""
    found = rows_of(record, detect(record) if format == "auto" else format)
    return [r.reason if isinstance(r, LeftOutError) else r.to_dict() for r in found]


def row(record: Mapping[str, Any], format: str = "auto") -> Any:
    (only,) = rows(record, format)
    return only


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("openai", {"request": BODY, "response": COMPLETION}),
        ("openai", {"messages": ASKED}),
        ("openai", {"prompt": "q", "completion": "a", "extra": 1}),
        ("litellm", LITELLM),
        ("litellm", {"id": "1", "response_cost": 1, "startTime": 1760000000.0, "messages": ASKED}),
        ("langfuse", OBSERVATION),
        ("langfuse", {"id": "t", "timestamp": "x", "sessionId": None, "input": "q"}),
        ("langfuse", {"id": "o", "trace_id": "t", "type": "SPAN", "start_time": "x"}),
        ("records", DECISION),
        ("otel", {"resourceSpans": []}),
        ("logs", {"id": "1", "prompt": "q", "weight": 2.0}),
        ("logs", {"id": "1", "messages": ASKED, "answer": "a"}),
        ("openai", {"id": "1", "messages": [*ASKED, SAID]}),
        ("openai", {"id": 1, "prompt": "q"}),
    ],
)
def test_the_format_follows_from_an_entry(format: str, record: Mapping[str, Any]) -> None:
    assert detect(record) == format


def test_an_entry_of_no_known_log() -> None:
    with pytest.raises(DataError, match="entries of level, msg;"):
        detect({"msg": "started", "level": "info"})


def test_openai_request_and_response() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    record = {
        "id": "1", "request": {**BODY, "user": "u"}, "response": {**COMPLETION, "usage": usage},
        "cost": 0.5, "feedback": "thumbs_up", "metadata": {"session_id": "s", "task": "sum"},
    }  # fmt: skip
    assert row(record) == {
        "id": "1", "time": "2025-10-09T08:53:20.000+00:00", "prompt": "q", "answer": "a",
        "model": "m", "input_tokens": 3, "output_tokens": 2, "cost_usd": 0.5, "feedback": 1.0,
        "session": "s", "tenant": "u", "task": "sum",
    }  # fmt: skip
    text = {**record, "request": json.dumps(record["request"]), "response": json.dumps(COMPLETION)}
    assert row(text)["answer"] == "a"


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"messages": [*ASKED, SAID]}, "a"),
        ({"prompt": "q", "answer": "a"}, "a"),
        ({"prompt": "q", "response": '{"is": "JSON"}'}, '{"is": "JSON"}'),
        ({"prompt": "q", "response": '[{"is": "JSON"}]'}, '[{"is": "JSON"}]'),
        ({"prompt": "q", "output": {"is": "parsed"}}, '{"is": "parsed"}'),
        ({**COMPLETION, "messages": ASKED, "object": "chat.completion"}, "a"),
        ({"method": "POST", "url": "/v1/chat/completions", "custom_id": "1", "body": BODY}, None),
        (
            {"body": BODY, "response": {"status_code": 200, "body": COMPLETION}, "error": None},
            "a",
        ),
        (
            {
                "request": BODY,
                "response": [
                    {"choices": [{"delta": {"role": "assistant"}}]},
                    {"choices": [{"delta": {"content": "a"}}]},
                    {"choices": [{"delta": {"content": "b"}}]},
                    {"choices": [], "usage": {}},
                ],
            },
            "ab",
        ),
        (
            {
                "request": {"model": "m", "input": "q"},
                "response": {
                    "output": [
                        {"type": "reasoning", "summary": []},
                        {"type": "message", "role": "assistant",
                         "content": [{"type": "output_text", "text": "a"}]},
                        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
                    ]
                },
            },
            "a\nf({})",
        ),
        (
            {
                "request": BODY,
                "response": {"type": "message", "role": "assistant",
                             "content": [{"type": "thinking", "thinking": "hm"},
                                         {"type": "text", "text": "a"}]},
            },
            "a",
        ),
        ({"request": BODY, "response": {"choices": []}}, None),
    ],
)  # fmt: skip
def test_openai_style_in_its_many_shapes(record: Mapping[str, Any], answer: str | None) -> None:
    found = row(record)
    assert found["prompt"] == "q"
    assert found.get("answer") == answer


def test_messages_of_other_interfaces_become_openais() -> None:
    anthropic = {
        "system": [{"type": "text", "text": "s", "cache_control": {}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"},
                                         {"type": "image", "source": {"data": "x"}}]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"text": "7"}]},
                {"type": "text", "text": "go on"}]},
        ],
    }  # fmt: skip
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert row({"request": anthropic})["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"},
                                     {"type": "image", "source": {"data": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t", "content": "7"},
        {"role": "user", "content": "go on"},
    ]  # fmt: skip
    gemini = {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"text": "a"}]},
            {"role": "user", "parts": [{"text": "r"}]},
        ],
    }
    assert [m["role"] for m in row({"request": gemini})["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    responses = {
        "instructions": "s",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "t"},
            {"type": "function_call_output", "call_id": "t", "output": "7"},
        ],
    }
    assert row({"request": responses})["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "t", "type": "function",
                         "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "t", "content": "7"},
    ]  # fmt: skip


def test_equal_requests_are_equal_whatever_else_is_in_their_messages() -> None:
    noisy = [{"role": "user", "content": [{"type": "text", "text": "q"}], "annotations": []}]
    assert row({"messages": noisy}) == row({"messages": ASKED})


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    found = row({"prompt": "q \ud800", "answer": "a \udc00", "model": "m\udfff"})
    assert (found["prompt"], found["answer"], found["model"]) == ("q ?", "a ?", "m?")


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        (FAILED, {"request": BODY, "status_code": 500}),
        (FAILED, {"request": BODY, "response": {"error": {"message": "no"}}}),
        (FAILED, {"body": BODY, "response": {"status_code": 429, "body": {}}}),
        (FAILED, {"body": BODY, "error": {"code": "expired"}}),
        (NO_CHAT, {"body": {"model": "text-embedding-3", "input": "q"}}),
        (NO_CHAT, {"request": {"model": "e", "input": "q"}, "response": {"object": "list"}}),
        (NO_CHAT, {"request": {"model": "dall-e"}, "url": "/v1/images"}),
        (NO_PROMPT, {"messages": [{"role": "system", "content": "s"}]}),
        (NO_PROMPT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (FAILED, {**LITELLM, "status": "failure"}),
        (FAILED, {**LITELLM, "metadata": '{"status": "failure"}'}),
        (NO_CHAT, {**LITELLM, "call_type": "aembedding"}),
        (NO_TEXT, {**LITELLM, "messages": {}, "response": {}}),
        (NO_TEXT, {**LITELLM, "messages": [{"role": "user", "content": "redacted-by-litellm"}]}),
        (FAILED, {**OBSERVATION, "level": "ERROR"}),
        (NO_CHAT, {**OBSERVATION, "type": "SPAN"}),
        (NO_TEXT, {**OBSERVATION, "input": None}),
        (FAILED, {**DECISION, "status": 429}),
        (FAILED, {**DECISION, "error": "client_left"}),
        (NO_TEXT, {**DECISION, "prompt": None}),
    ],
)
def test_what_is_no_row_says_why(reason: str, record: Mapping[str, Any]) -> None:
    assert row(record) == reason


def test_litellm_spend_logs() -> None:
    wanted = {
        "id": "r", "time": "2026-01-01T00:00:00.123+00:00", "prompt": "q", "answer": "a",
        "model": "m", "input_tokens": 3, "output_tokens": 2, "cost_usd": 0.5, "session": "s",
        "tenant": "t",
    }  # fmt: skip
    assert row(LITELLM) == wanted
    # As a table's export has it: everything is text.
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in LITELLM.items()}
    assert row(texts) == wanted
    proxied = {**LITELLM, "messages": {}, "proxy_server_request": {**BODY, "stream": False}}
    assert row(proxied) == wanted


def test_litellm_payloads_of_callbacks() -> None:
    payload = {
        **{k: v for k, v in LITELLM.items() if k not in ("spend", "request_id")},
        **{"id": "p", "response_cost": 0.25, "startTime": 1760000000.5},
    }
    found = row(payload)
    assert (found["id"], found["cost_usd"]) == ("p", 0.25)
    assert found["time"] == "2025-10-09T08:53:20.500+00:00"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input": {"messages": ASKED, "tools": []}},
        {"input": json.dumps(ASKED), "output": json.dumps(SAID)},
        {"input": "q", "output": "a"},
        {"usageDetails": None, "usage": {"input": 3, "output": 2}},
        {"usageDetails": None, "promptTokens": 3, "completionTokens": 2},
        {"costDetails": None, "calculatedTotalCost": 0.5},
        {"model": None, "providedModelName": "m"},
    ],
)
def test_langfuse_observations(changes: dict[str, Any]) -> None:
    assert row({**OBSERVATION, **changes}) == {
        "id": "o", "time": "2026-01-01T00:00:00.000+00:00", "prompt": "q", "answer": "a",
        "model": "m", "input_tokens": 3, "output_tokens": 2, "cost_usd": 0.5, "task": "sum up",
    }  # fmt: skip


def test_langfuse_blob_storage() -> None:
    record = {
        "id": "o", "trace_id": "t", "type": "GENERATION", "start_time": "2026-01-01 00:00:00.5",
        "provided_model_name": "m", "input": json.dumps(ASKED), "output": "a", "user_id": "u",
        "usage_details": {"input": 3, "output": 2}, "total_cost": 0.5, "session_id": "s",
    }  # fmt: skip
    assert row(record) == {
        "id": "o", "time": "2026-01-01T00:00:00.500+00:00", "prompt": "q", "answer": "a",
        "model": "m", "input_tokens": 3, "output_tokens": 2, "cost_usd": 0.5, "tenant": "u",
        "session": "s",
    }  # fmt: skip


def test_langfuse_traces_with_their_observations() -> None:
    trace = {
        "id": "t", "timestamp": "2026-01-01T00:00:00Z", "sessionId": "s", "userId": "u",
        "scores": [{"name": "user-feedback", "value": 1}, {"name": "toxicity", "value": 0}],
        "observations": [{**OBSERVATION, "type": "SPAN"}, OBSERVATION],
    }  # fmt: skip
    first, second = rows(trace)
    assert first == NO_CHAT
    assert (second["id"], second["session"], second["tenant"]) == ("o", "s", "u")
    assert second["feedback"] == 1.0


def test_our_own_decisions() -> None:
    assert row(DECISION) == {
        "id": "d", "time": "2025-10-09T08:53:20.500+00:00", "prompt": "q", "answer": "a",
        "model": "m", "input_tokens": 3, "output_tokens": 2, "cost_usd": 0.5, "tenant": "acme",
        "feedback": 1.0, "task": "sum", "session": "h",
    }  # fmt: skip
    assert "tenant" not in row({**DECISION, "tenant": "default"})


def test_rows_of_our_own_keep_their_weight() -> None:
    record = {"id": "1", "prompt": "q", "weight": 2.5, "cluster": 3}
    assert row(record) == record


@pytest.mark.parametrize(
    ("field", "record"),
    [
        ("messages", {"messages": ["q", {"role": "user"}]}),
        ("messages", {"messages": [{"content": "q"}]}),
        ("messages", {"messages": [{"role": "user", "content": [7]}]}),
        ("time", {"prompt": "q", "timestamp": "yesterday"}),
        ("time", {"prompt": "q", "timestamp": 1e40}),
        ("time", {"prompt": "q", "timestamp": True}),
        ("cost_usd", {"prompt": "q", "cost": "much"}),
        ("cost_usd", {"prompt": "q", "cost": -1}),
        ("input_tokens", {"prompt": "q", "usage": {"prompt_tokens": [3]}}),
        ("feedback", {"prompt": "q", "feedback": 5}),
        ("feedback", {"prompt": "q", "feedback": "quite"}),
        ("status_code", {"prompt": "q", "status_code": "gone"}),
    ],
)
def test_a_bad_entry_names_its_field(field: str, record: Mapping[str, Any]) -> None:
    with pytest.raises(DataError) as error:
        row(record, "openai")
    assert error.value.field == field


@pytest.mark.parametrize("value", [1760000000, 1760000000000, 1760000000000000000, "1760000000"])
def test_moments_in_any_unit(value: object) -> None:
    found = row({"prompt": "q", "timestamp": value})
    assert found["time"] == "2025-10-09T08:53:20.000+00:00"


def test_moments_of_other_zones_are_utc() -> None:
    assert row({"prompt": "q", "time": "2026-01-01T02:00:00+02:00"})["time"].startswith(
        "2026-01-01T00:00:00"
    )


@pytest.mark.parametrize(("value", "wanted"), [(True, 1.0), ("Down", 0.0), ("0.5", 0.5), (0, 0.0)])
def test_feedback_in_its_many_forms(value: object, wanted: float) -> None:
    assert row({"prompt": "q", "feedback": value, "x": 1})["feedback"] == wanted


def test_every_format_is_known_by_name() -> None:
    assert FORMATS == ("openai", "litellm", "langfuse", "otel", "agent", "records", "logs")


@pytest.mark.parametrize(
    "response",
    [
        {"choices": [{"message": {"role": "assistant", "content": None, "refusal": "I cannot."}}]},
        {"output": [{"type": "message", "role": "assistant",
                     "content": [{"type": "refusal", "refusal": "I cannot."}]}]},
    ],
)  # fmt: skip
def test_a_refusal_is_an_answer(response: Mapping[str, Any]) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
    assert row({"request": asked, "response": response})["answer"] == "I cannot."

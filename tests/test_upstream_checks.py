"""Whether an answer will do: empty, refused, no JSON, against its schema."""

from typing import Any

import pytest
from thriftroute.serve.upstream.checks import Check, failed

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def completion(*contents: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish,
            }
            for index, content in enumerate(contents)
        ]
    }


def wanting(schema: object) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"response_format": wanted}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return completion(None, tool_calls=[call])


@pytest.mark.parametrize("content", ["", "  \n", None, []])
def test_an_answer_of_nothing_is_empty(content: object) -> None:
    assert failed(completion(content), {}, ["empty"]) == "empty"
    assert failed(completion("fine", content), {}, ["empty"]) == "empty"
    assert failed({"choices": []}, {}, ["empty"]) == "empty"


def test_a_call_a_refusal_and_parts_are_not_empty() -> None:
    assert failed(called("{}"), {}, ["empty"]) is None
    assert failed(completion(None, refusal="No."), {}, ["empty"]) is None
    assert failed(completion([{"type": "text", "text": "x"}]), {}, ["empty"]) is None


@pytest.mark.parametrize(
    "content",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist with this request.",
        "Sorry, but I am unable to do that.",
        "Unfortunately, I can't provide legal advice.",
        "I cannot help with that.",
        "I am not able to answer this question.",
        "As an AI language model, I cannot have opinions.",
        "  I won't assist with that.",
    ],
)
def test_refusals_are_known_by_how_they_begin(content: str) -> None:
    assert failed(completion(content), {}, ["refusal"]) == "refusal"
    assert failed(completion(content), {}, ["empty", "json", "schema"]) is None


@pytest.mark.parametrize(
    "content",
    [
        "I can help with that.",
        "Sorry for the delay! The capital of France is Paris.",
        "The word is 'cannot'.",
        "Unfortunately, the train was late and he can't come.",
        "I'm sorry to hear that. Here is what you could do.",
        "I'm sorry, but I can't help with that." + " But here is all of it." * 40,
    ],
)
def test_answers_are_no_refusals(content: str) -> None:
    assert failed(completion(content), {}, ["refusal"]) is None


def test_a_provider_that_says_so_refuses() -> None:
    assert failed(completion(None, refusal="No."), {}, ["refusal"]) == "refusal"
    assert failed(completion("x", finish="content_filter"), {}, ["refusal"]) == "refusal"


@pytest.mark.parametrize("content", ["{", "no JSON", "", None, '{"a": 1} and so on'])
def test_json_is_checked_where_it_was_asked_for(content: str | None) -> None:
    for body in ({"response_format": {"type": "json_object"}}, wanting(PERSON)):
        assert failed(completion(content), body, ["json"]) == "json"
    assert failed(completion(content), {"response_format": {"type": "text"}}, ["json"]) is None
    assert failed(completion(content), {}, ["json", "schema"]) is None


def test_the_arguments_of_a_call_are_json() -> None:
    assert failed(called('{"a": 1'), {}, ["json"]) == "json"
    assert failed(called('{"a": 1}'), {}, ["json"]) is None
    assert failed(called(""), {}, ["json"]) is None
    old = completion(None, function_call={"name": "f", "arguments": "{"})
    assert failed(old, {}, ["json"]) == "json"
    # Who calls a function instead owes no JSON yet.
    assert failed(called("{}"), wanting(PERSON), ["json", "schema"]) is None


@pytest.mark.parametrize(
    ("content", "passes"),
    [
        ('{"name": "Ada"}', True),
        ('{"name": "Ada", "age": 36}', True),
        ('{"name": "Ada", "age": "old"}', False),
        ('{"age": 36}', False),
        ('{"name": "Ada", "more": 1}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_a_schema_is_checked(content: str, passes: bool) -> None:
    assert (failed(completion(content), wanting(PERSON), ["schema"]) is None) == passes


def test_json_object_means_an_object() -> None:
    body = {"response_format": {"type": "json_object"}}
    assert failed(completion("[1]"), body, ["schema"]) == "schema"
    assert failed(completion("{}"), body, ["schema"]) is None


def test_arguments_are_checked_against_the_functions_schema() -> None:
    body = {"tools": [{"type": "function", "function": {"name": "f", "parameters": PERSON}}]}
    assert failed(called('{"age": 1}'), body, ["schema"]) == "schema"
    assert failed(called('{"name": "Ada"}'), body, ["schema"]) is None
    assert failed(
        called('{"age": 1}'), {"functions": [{"name": "f", "parameters": PERSON}]}, ["schema"]
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "http://127.0.0.1:9/schema.json"},  # fetched by nobody
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"properties": 5},
        "no schema",
        7,
    ],
)
def test_a_schema_that_cannot_be_used_judges_nothing(schema: object) -> None:
    assert failed(completion('{"name": 1}'), wanting(schema), ["schema"]) is None


def test_a_hostile_schema_costs_little() -> None:
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    wide: dict[str, Any] = {"$ref": "#/$defs/0", "$defs": {"40": {"type": "string"}}}
    for level in range(40):
        twice = {"$ref": f"#/$defs/{level + 1}"}
        wide["$defs"][str(level)] = {"allOf": [twice, twice]}
    # Unbounded, each would take longer than anybody waits.
    assert failed(completion('{"a": "%s!"}' % ("a" * 64)), wanting(slow), ["schema"]) is None
    assert failed(completion('"x"'), wanting(wide), ["schema"]) is None


def test_patterns_leave_other_rules_in_force() -> None:
    schema = {
        "properties": {"a": {"type": "integer"}},
        "patternProperties": {"^x": {"type": "string"}},
        "additionalProperties": False,
    }
    assert failed(completion('{"a": "no"}'), wanting(schema), ["schema"]) == "schema"
    assert failed(completion('{"xyz": 1, "other": 2}'), wanting(schema), ["schema"]) is None


def test_the_first_check_that_fails_is_named() -> None:
    checks: list[Check] = ["empty", "refusal", "json", "schema"]
    assert failed(completion(""), wanting(PERSON), checks) == "empty"
    assert failed(completion("I cannot help."), wanting(PERSON), checks) == "refusal"
    assert failed(completion("{"), wanting(PERSON), checks) == "json"
    assert failed(completion("{}"), wanting(PERSON), checks) == "schema"
    assert failed(completion("{}"), wanting(PERSON), []) is None


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": "json"},
        {"response_format": {"type": "json_schema", "json_schema": "x"}},
        {"tools": ["f"]},
        {"tools": 5},
    ],
)
def test_a_body_of_no_shape_judges_nothing(body: dict[str, Any]) -> None:
    assert failed(called("{}"), body, ["empty", "refusal", "json", "schema"]) is None
    assert failed(completion("x"), body, ["json", "schema"]) is None

"""What messages, parts, items and events of every dialect become, and what is left out of them."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.logs.formats import detect, rows_of
from thriftroute.data.logs.import_rows import ImportSettings
from thriftroute.data.logs.importing import import_logs
from thriftroute.data.logs.normalize import CUT, FAILED, NO_CHAT, NO_TEXT, LeftOutError
from thriftroute.errors import DataError

ASKED = [{"role": "user", "content": "q"}]


def row(record: Mapping[str, Any]) -> Any:
    """The one row of an entry as it is written, or the reason that there is none."""
    (only,) = rows_of(record, detect(record))
    return only.reason if isinstance(only, LeftOutError) else only.to_dict()


def turns(items: list[Any]) -> list[dict[str, Any]]:
    """The messages of a request of the Responses API."""
    found = row({"request": {"input": [*items, *ASKED]}})
    return list(found["messages"][:-1])


def call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(response: object) -> Any:
    found = row({"request": {"messages": ASKED}, "response": response})
    return found if isinstance(found, str) else found.get("answer")


def span(attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"spanId": "s", "attributes": attributes, **fields}


def imported(tmp_path: Path, name: str, text: str, **options: Any) -> tuple[list[Any], Any]:
    source, out = tmp_path / name, tmp_path / "out.jsonl"
    source.write_text(text)
    result = import_logs([source], out, ImportSettings(**options))
    return [json.loads(line) for line in out.read_text().splitlines()], result


def test_a_table_of_spend_logs_whose_columns_are_empty_json(tmp_path: Path) -> None:
    header = "request_id,call_type,spend,startTime,model,messages,response,proxy_server_request"
    body = '"{""messages"":[{""role"":""user"",""content"":""Name a river.""}]}"'
    cells = "acompletion,0.1,2026-05-01 10:00:00,m,{},{},"
    lines = [header, f"a,{cells}{body}", f"b,{cells}{body.replace('river', 'lake')}"]
    lines.append(lines[2].replace("b,", "c,").replace("{},{}", "null,[]").replace("lake", "sea"))
    rows, result = imported(tmp_path, "spend.csv", "\n".join(lines) + "\n")
    assert [r["prompt"] for r in rows] == ["Name a river.", "Name a lake.", "Name a sea."]
    assert not any("answer" in r for r in rows) and result.distinct == 3


@pytest.mark.parametrize("nothing", ["{}", "[]", " {} ", {}, []])
def test_the_text_of_an_empty_object_is_no_value(nothing: object) -> None:
    spend = {"request_id": "a", "spend": 1, "startTime": "2026-05-01", "messages": nothing}
    assert row(spend) == NO_TEXT
    assert row({"id": "o", "traceId": "t", "type": "GENERATION", "input": nothing}) == NO_TEXT
    assert row(span({"gen_ai.request.model": "m", "gen_ai.input.messages": nothing})) == NO_TEXT
    assert "answer" not in row({"messages": ASKED, "response": nothing})


@pytest.mark.parametrize("key", ["messages", "input", "contents"])
def test_a_proxied_request_in_text_is_a_request_of_any_interface(key: str) -> None:
    asked = [{"parts": [{"text": "q"}]}] if key == "contents" else ASKED
    spend = {"request_id": "a", "spend": 1, "startTime": "2026-05-01", "messages": "{}"}
    assert row({**spend, "proxy_server_request": json.dumps({key: asked})})["prompt"] == "q"


CUTS = [
    "A ... (litellm_truncated skipped 9 chars) ... Z",
    "A... (litellm_truncated skipped 9 chars. Truncation is a DB storage safeguard.) ...Z",
    "A... (truncated 812 chars)",
    "<truncated due to size exceeding limit>",
    "[This value has been dropped because this span's size exceeds the 1MB size limit.]",
]


@pytest.mark.parametrize("cut", CUTS)
def test_prompts_that_a_tool_cut_are_left_out(cut: str) -> None:
    asked = {"messages": [{"role": "user", "content": cut}]}
    spend = {"spend": 0, "startTime": "2026-05-01", "call_type": "acompletion", "messages": {}}
    assert row({**spend, "proxy_server_request": asked}) == CUT
    assert row({"id": "o", "traceId": "t", "type": "GENERATION", "input": cut}) == CUT
    assert row({"messages": [{"role": "system", "content": cut}, *ASKED]}) == CUT
    assert row({"messages": ASKED, "response": cut}) == row({"messages": ASKED})
    called = {"role": "assistant", "tool_calls": [{"id": "c", "name": "f", "args": {"a": cut}}]}
    if "exceeds" not in cut and not cut.endswith("chars)"):
        assert row({"messages": [*ASKED, called, *ASKED]}) == CUT


def test_what_speaks_of_a_cut_is_not_cut() -> None:
    asked = "What does litellm_truncated mean, and <truncated> or (truncated 3 chars) in a log?"
    assert row({"messages": [{"role": "user", "content": asked}]})["prompt"] == asked


def test_decisions_whose_text_the_server_cut() -> None:
    whole = json.dumps([{"role": "user", "content": "q" * 40_000}])
    said = json.dumps([{"role": "assistant", "content": "a" * 40_000}])
    record = {"prompt_hash": "x", "choice": "weak", "threshold": 0.5, "id": "d"}
    assert row({**record, "prompt": whole[:32_000]}) == CUT
    assert "answer" not in row({**record, "prompt": whole, "answer": said[:32_000]})
    assert row({**record, "prompt": whole, "answer": said})["answer"] == "a" * 40_000


@pytest.mark.parametrize("hidden", ["redacted-by-litellm", "__REDACTED__"])
def test_text_that_was_not_to_be_logged_is_not_there(hidden: str) -> None:
    langfuse = {"id": "o", "traceId": "t", "type": "GENERATION", "input": hidden}
    assert row(langfuse) == NO_TEXT
    assert "answer" not in row({**langfuse, "input": "q", "output": hidden})


@pytest.mark.parametrize(
    "beside",
    [
        {"type": "web_search_call", "id": "1", "action": {"query": "birds"}},
        {"type": "file_search_call", "results": [{"text": "no"}]},
        {"type": "code_interpreter_call", "code": "print()", "outputs": [{"logs": "no"}]},
        {"type": "image_generation_call", "result": "iVBORw0KGgo="},
        {"type": "mcp_call", "name": "f", "arguments": "{}", "output": "no"},
        {"type": "mcp_list_tools", "tools": []},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "no"}]},
        {"type": "compaction", "encrypted_content": "no"},
        {"type": "a_call_of_tomorrow", "text": "no"},
    ],
)
def test_items_beside_an_answer_are_not_said(beside: dict[str, Any]) -> None:
    said = {"type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "Robin."}]}  # fmt: skip
    asked = {"input": "Name a bird."}
    for output in ([beside, said], [said, beside]):
        for response in ({"output": output}, json.dumps({"object": "response", "output": output})):
            found = row({"request": asked, "response": response})
            assert (found["prompt"], found["answer"]) == ("Name a bird.", "Robin.")
    # Nor where they stand in a request.
    request = {"input": [*ASKED, said, beside, *ASKED]}
    assert [m["role"] for m in row({"request": request})["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "name", "arguments"),
    [
        ({"type": "function_call", "name": "f", "arguments": '{"a": 1}'}, "f", '{"a": 1}'),
        ({"type": "custom_tool_call", "name": "apply_patch", "input": "p"},
         "apply_patch", '{"input": "p"}'),
        ({"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"]}},
         "local_shell", '{"type": "exec", "command": ["ls"]}'),
        ({"type": "computer_call", "action": {"type": "click"}}, "computer", '{"type": "click"}'),
        ({"type": "shell_call", "action": {"commands": ["ls"]}}, "shell", '{"commands": ["ls"]}'),
        ({"type": "apply_patch_call", "operation": {"path": "a"}},
         "apply_patch", '{"path": "a"}'),
        ({"type": "tool_search_call", "arguments": {"q": 1}}, "tool_search", '{"q": 1}'),
    ],
)  # fmt: skip
def test_items_of_the_responses_api_are_calls_and_their_results(
    item: dict[str, Any], name: str, arguments: str
) -> None:
    result = {"type": f"{item['type']}_output", "call_id": "c", "output": "done"}
    assert turns([{"role": "user", "content": "Fix a.py"}, {**item, "call_id": "c"}, result]) == [
        {"role": "user", "content": "Fix a.py"},
        {"role": "assistant", "content": None, "tool_calls": [call("c", name, arguments)]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    assert answer({"output": [{**item, "call_id": "c"}]}) == f"{name}({arguments})"


def test_a_call_that_no_result_follows_keeps_no_role_of_its_own() -> None:
    made = {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "p"}
    found = turns([{"role": "user", "content": "Fix a.py"}, made])
    assert [m["role"] for m in found] == ["user", "assistant"]


def test_calls_at_once_are_one_message() -> None:
    said = {"type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "Both."}]}  # fmt: skip
    items = [{"type": "function_call", "call_id": i, "name": "f", "arguments": "{}"} for i in "ab"]
    results = [{"type": "function_call_output", "call_id": i, "output": i} for i in "ab"]
    reasoning = {"type": "reasoning", "summary": []}
    found = turns([*ASKED, said, items[0], reasoning, items[1], *results])
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "tool"]
    assert found[1] == {
        "role": "assistant", "content": "Both.",
        "tool_calls": [call("a", "f", "{}"), call("b", "f", "{}")],
    }  # fmt: skip


PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": PNG}}


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"type": "input_image", "image_url": PNG}, IMAGE),
        ({"type": "input_image", "image_url": PNG, "detail": "low"},
         {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}),
        ({"type": "input_file", "file_id": "f"}, {"type": "file", "file": {"file_id": "f"}}),
        ({"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JV"},
         {"type": "file",
          "file": {"file_data": "data:application/pdf;base64,JV", "filename": "a.pdf"}}),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                      "data": "iVBORw0KGgo="}}, IMAGE),
        ({"type": "image", "source": {"type": "url", "url": "https://e.org/a"}},
         {"type": "image_url", "image_url": {"url": "https://e.org/a"}}),
        ({"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}, IMAGE),
        ({"type": "blob", "modality": "image", "mime_type": "image/png",
          "content": "iVBORw0KGgo="}, IMAGE),
        ({"type": "blob", "modality": "image", "content": "iVBORw0KGgo="},
         {"type": "blob", "modality": "image", "content": "iVBORw0KGgo="}),
        ({"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": "UklG"},
         {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}),
        ({"type": "uri", "modality": "image", "uri": "https://e.org/a"},
         {"type": "image_url", "image_url": {"url": "https://e.org/a"}}),
        ({"type": "file", "modality": "image", "file_id": "f"},
         {"type": "file", "file": {"file_id": "f"}}),
        ({"type": "image", "image": "iVBORw0KGgo=", "mediaType": "image/png"}, IMAGE),
        ({"type": "file", "data": "iVBORw0KGgo=", "mediaType": "image/png"}, IMAGE),
        ({"kind": "image-url", "url": "https://e.org/a"},
         {"type": "image_url", "image_url": {"url": "https://e.org/a"}}),
        (IMAGE, IMAGE),
        ({"type": "of_tomorrow", "content": "iVBORw0KGgo="},
         {"type": "of_tomorrow", "content": "iVBORw0KGgo="}),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
         {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}),
    ],
)  # fmt: skip
def test_what_is_no_text_is_a_part(part: dict[str, Any], wanted: dict[str, Any]) -> None:
    text = {"type": "text", "text": "What is it?"}
    for name in ("content", "parts"):
        found = row({"messages": [{"role": "user", name: [text, part]}]})
        assert found["messages"] == [{"role": "user", "content": [text, wanted]}]


def test_blobs_of_a_span_are_no_text() -> None:
    parts = [{"type": "text", "content": "What is it?"},
             {"type": "blob", "modality": "image", "content": "iVBORw0KGgo="}]  # fmt: skip
    found = row(span({"gen_ai.input.messages": [{"role": "user", "parts": parts}]}))
    assert found["messages"][0]["content"] == [{"type": "text", "text": "What is it?"}, parts[1]]


def test_an_image_that_a_tool_returned_is_a_part() -> None:
    picture = {"type": "image", "source": {"media_type": "image/png", "data": "iVBORw0KGgo="}}
    used = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]}
    result = {"type": "tool_result", "tool_use_id": "t",
              "content": [{"type": "text", "text": "see"}, picture]}  # fmt: skip
    found = row({"messages": [*ASKED, used, {"role": "user", "content": [result]}]})
    assert found["messages"][-1] == {
        "role": "tool", "tool_call_id": "t", "content": [{"type": "text", "text": "see"}, IMAGE],
    }  # fmt: skip


def test_parts_and_calls_of_gemini() -> None:
    contents = [
        {"role": "user", "parts": [{"text": "Weather?"}]},
        {"role": "model", "parts": [{"text": "hm", "thought": True},
                                    {"functionCall": {"name": "w", "args": {"c": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "w", "response": {"t": 12}}}]},
    ]  # fmt: skip
    response = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "It is 12 C."}]}}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
    }
    found = row({"request": {"contents": contents}, "response": response})
    assert found["messages"] == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call("", "w", '{"c": 1}')]},
        {"role": "tool", "tool_call_id": "", "content": '{"t": 12}'},
    ]
    assert (found["answer"], found["input_tokens"], found["output_tokens"]) == ("It is 12 C.", 3, 2)
    assert answer(json.dumps(response)) == "It is 12 C."


def langfuse(input_: Any, output: Any = None) -> Any:
    return row({"id": "o", "traceId": "t", "type": "GENERATION", "input": input_, "output": output})


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "function", "function": {"name": "w"}},
        {"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}},
        {"name": "w", "description": "weather", "input_schema": {"type": "object"}},
    ],
)
def test_the_definition_of_a_tool_is_no_message(definition: dict[str, Any]) -> None:
    made = {"name": "w", "args": {"c": 1}, "id": "c1", "type": "tool_call"}
    said = {"role": "assistant", "content": "", "tool_calls": [made]}
    asked = {"role": "user", "content": "Weather?"}
    found = langfuse([asked, {"role": "tool", "content": definition}], said)
    assert (found["prompt"], found["answer"]) == ("Weather?", 'w({"c": 1})')


def test_what_a_tool_returned_is_a_message_though_it_be_an_object() -> None:
    used = {"role": "assistant", "tool_calls": [call("c", "w", "{}")]}
    for returned in ({"name": "Oslo", "c": 12}, [{"c": 12}]):
        result = {"role": "tool", "tool_call_id": "c", "content": returned}
        found = langfuse([*ASKED, used, result])
        assert found["messages"][-1]["content"] == json.dumps(returned)


def test_a_result_whose_role_is_the_name_of_its_tool() -> None:
    calls = [call("c1", "w", "{}"), call("c2", "v", "{}")]
    used = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [{"role": "v", "content": "7"}, {"role": "w", "content": "12 C"}]
    found = langfuse([{"role": "user", "content": "Weather?"}, used, *results], "It is 12 C.")
    assert found["messages"][2:] == [
        {"role": "tool", "tool_call_id": "c2", "content": "7"},
        {"role": "tool", "tool_call_id": "c1", "content": "12 C"},
    ]
    assert found["answer"] == "It is 12 C."


def test_a_result_without_an_id_is_of_the_call_before() -> None:
    used = {"role": "assistant", "tool_calls": [call("c1", "w", "{}")]}
    found = langfuse([*ASKED, used, {"role": "tool", "content": "12 C"}])
    assert found["messages"][-1]["tool_call_id"] == "c1"


def test_a_role_that_is_none_is_named() -> None:
    with pytest.raises(DataError, match="'planner' is no role of a chat") as error:
        langfuse([*ASKED, {"role": "planner", "content": "x"}])
    assert error.value.field == "messages"


@pytest.mark.parametrize(
    "record",
    [
        span({"llm.request.type": "embedding", "gen_ai.request.model": "m",
              "gen_ai.prompt.0.content": "a chunk"}),
        span({"llm.request.type": "rerank", "gen_ai.request.model": "m", "gen_ai.prompt": "q"}),
        span({"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "m"}),
        span({"openinference.span.kind": "EMBEDDING", "llm.model_name": "m", "input.value": "q"}),
        span({"openinference.span.kind": "RERANKER", "llm.model_name": "m", "input.value": "q"}),
        span({"gen_ai.request.model": "text-embedding-3-small", "gen_ai.prompt": "q"}),
        span({"ai.operationId": "ai.embed.doEmbed", "ai.model.id": "m", "ai.values": ["q"]}),
        {"request": {"model": "bge-m3", "input": ["a"]}, "response": {"data": [{"embedding": []}]}},
        {"request": {"model": "nomic-embed-text", "input": "a"}},
        {"request": {"model": "rerank-v3.5", "query": "q", "documents": ["a"]},
         "response": {"results": [{"index": 0}]}},
        {"request": {"model": "tts-1", "input": "Hello", "voice": "alloy"}},
        {"request": {"model": "omni-moderation-latest", "input": "q"}},
        {"request": {"model": "dall-e-3", "prompt": "a cat"}},
        {"request": {"model": "m", "prompt": "a cat"}, "url": "/v1/images/generations"},
        {"request": {"model": "m", "input": "q"}, "url": "/v1/audio/speech"},
        {"request": {"model": "m", "prompt": "a cat"}, "response": {"data": [{"url": "u"}]}},
        {"spend": 1, "startTime": "2026-05-01", "call_type": "amoderation", "messages": "q"},
        {"spend": 1, "startTime": "2026-05-01", "model": "text-embedding-3-small", "messages": "q"},
        {"id": "o", "traceId": "t", "type": "GENERATION", "model": "text-embedding-3-small",
         "input": ["a chunk"]},
        {"id": "o", "traceId": "t", "type": "EMBEDDING", "input": "a chunk"},
    ],
)  # fmt: skip
def test_what_is_no_chat_is_none_in_every_dialect(record: dict[str, Any]) -> None:
    assert row(record) == NO_CHAT


@pytest.mark.parametrize(
    "record",
    [
        {"request": {"model": "my-embedding-expert", "messages": ASKED}, "response": "a"},
        {"request": {"model": "gpt-4o-audio-preview", "input": "q"}, "response": "a"},
        span({"llm.request.type": "chat", "gen_ai.request.model": "m", "gen_ai.prompt": "q"}),
    ],
)
def test_what_sounds_alike_is_a_chat(record: dict[str, Any]) -> None:
    assert row(record)["prompt"] == "q"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400])
@pytest.mark.parametrize(
    "place",
    ['"prompt_tokens": {}', '"cost": {}', '"created": {}', '"feedback": {}', '"status_code": {}',
     '"usage": {{"completion_tokens": {}}}', '"weight": {}, "id": "1"'],
)  # fmt: skip
def test_numbers_that_are_none_are_nothing_or_bad(tmp_path: Path, number: str, place: str) -> None:
    good = '{"messages": [{"role": "user", "content": "z"}], "response": "y"}'
    bad = '{"messages": [{"role": "user", "content": "x"}], "response": "y", %s}'
    text = "\n".join((good, bad % place.format(number))) + "\n"
    rows, result = imported(tmp_path, "log.jsonl", text, on_bad="skip")
    assert len(rows) + result.bad == 2
    if result.bad:
        with pytest.raises(DataError):
            imported(tmp_path, "log.jsonl", text)
    else:
        assert "NaN" not in json.dumps(rows)
    if number == "NaN":
        assert not result.bad


def test_weights_and_amounts_of_our_own_rows_are_finite(tmp_path: Path) -> None:
    rows = [{"id": "1", "prompt": "q"}]
    huge = int("1" + "0" * 400)
    rows += [{"id": name, "prompt": "p", name: huge} for name in ("weight", "cost_usd", "cluster")]
    rows += [{"id": "5", "prompt": "p", "input_tokens": float("inf")}]
    text = "".join(json.dumps(each) + "\n" for each in rows)
    kept, result = imported(tmp_path, "log.jsonl", text, on_bad="skip", format="logs")
    assert kept[0]["id"] == "1" and result.bad >= 3


def test_what_is_nested_too_deep_is_a_bad_line(tmp_path: Path) -> None:
    part: Any = "x"
    for _ in range(300):
        part = {"type": "of_tomorrow", "in": [part]}
    deep = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, part]}]}
    lines = [json.dumps(deep), json.dumps({"messages": ASKED}), '{"prompt":' + "[" * 100_000]
    # A finalizer of another test's objects would fail too, so deep in the stack.
    gc.collect()
    gc.disable()
    try:
        rows, result = imported(tmp_path, "log.jsonl", "\n".join(lines), on_bad="skip")
    finally:
        gc.enable()
    assert (len(rows), result.bad) in ((1, 2), (2, 1))


def chunks(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]


CALLS = chunks(
    {"role": "assistant", "content": ""},
    {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    {"tool_calls": [{"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
)
ITEM = {"type": "function_call", "name": "f", "call_id": "c", "arguments": ""}
RESPONSES: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "r", "output": []}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning"}},
    {"type": "response.output_item.added", "output_index": 1,
     "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "output_index": 1, "delta": "H"},
    {"type": "response.output_text.delta", "output_index": 1, "delta": "i"},
    {"type": "response.output_item.added", "output_index": 2, "item": ITEM},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"x"'},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": ": 1}"},
]  # fmt: skip
DONE = [
    *RESPONSES,
    {"type": "response.output_item.done", "output_index": 1,
     "item": {"type": "message", "role": "assistant",
              "content": [{"type": "output_text", "text": "Hi"}]}},
    {"type": "response.output_item.done", "output_index": 2,
     "item": {**ITEM, "arguments": '{"x": 1}'}},
]  # fmt: skip
COMPLETED = [
    *RESPONSES[:4],
    {"type": "response.completed", "response": {"output": [
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hi"}]}]}},
]  # fmt: skip
ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [],
                                          "usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
    {"type": "content_block_delta", "index": 0,
     "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "H"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "i"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2,
     "content_block": {"type": "tool_use", "id": "c", "name": "f", "input": {}}},
    {"type": "content_block_delta", "index": 2,
     "delta": {"type": "input_json_delta", "partial_json": '{"x"'}},
    {"type": "content_block_delta", "index": 2,
     "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]  # fmt: skip
GEMINI = [
    {"candidates": [{"content": {"role": "model", "parts": [{"text": "H"}]}}]},
    {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "i"}]}}]},
    {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]}}]},
    {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 3}},
]
BEDROCK = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "H"}}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "i"}}},
    {"contentBlockStart": {"contentBlockIndex": 1,
                           "start": {"toolUse": {"toolUseId": "c", "name": "f"}}}},
    {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"x"'}}}},
    {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": ": 1}"}}}},
]  # fmt: skip
COHERE = [
    {"type": "message-start"},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "H"}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "i"}}}},
]
STREAMS: list[tuple[list[dict[str, Any]], str]] = [
    (chunks({"content": "Hi"}), "Hi"),
    (chunks({"content": "H"}, {"content": "i"}, {}), "Hi"),
    (chunks({"refusal": "N"}, {"refusal": "o"}), "No"),
    ([*chunks({"content": "Hi"}), {"choices": [], "usage": {}}], "Hi"),
    ([{"choices": [{"index": 1, "delta": {"content": "no"}}]}, *chunks({"content": "Hi"})], "Hi"),
    (CALLS, 'f({"x": 1})\ng({})'),
    ([{"choices": [{"text": "H"}]}, {"choices": [{"text": "i"}]}], "Hi"),
    (RESPONSES, 'Hi\nf({"x": 1})'),
    (DONE, 'Hi\nf({"x": 1})'),
    (COMPLETED, "Hi"),
    (ANTHROPIC, 'Hi\nf({"x": 1})'),
    (GEMINI, 'Hi\nf({"x": 1})'),
    (BEDROCK, 'Hi\nf({"x": 1})'),
    (COHERE, "Hi"),
    ([{"message": {"content": "H"}, "done": False},
      {"message": {"content": "i"}, "done": True}], "Hi"),
    ([{"response": "H", "done": False}, {"response": "i", "done": True}], "Hi"),
]  # fmt: skip


@pytest.mark.parametrize(("events", "said"), STREAMS)
def test_the_events_of_a_stream_are_joined(events: list[dict[str, Any]], said: str) -> None:
    kept = [(event.get("type", "message"), json.dumps(event)) for event in events]
    sse = "".join(f"event: {kind}\ndata: {data}\n\n" for kind, data in kept)
    bare = ": comment\n" + "".join(f"data:{data}\r\n\r\n" for _, data in kept) + "data: [DONE]\n\n"
    for logged in (events, sse, bare, {"status_code": 200, "body": bare}):
        assert answer(logged) == said
    assert langfuse("q", bare)["answer"] == said
    if len(kept) > 1:
        assert answer("\n".join(data for _, data in kept)) == said


def test_what_events_count_is_counted() -> None:
    found = row({"request": {"messages": ASKED}, "response": ANTHROPIC})
    assert (found["input_tokens"], found["output_tokens"]) == (3, 2)


def test_a_stream_that_broke_off_failed() -> None:
    broken = [*chunks({"content": "H"}), {"error": {"message": "overloaded"}}]
    assert answer(broken) == FAILED
    assert answer([*ANTHROPIC[:5], {"type": "error", "error": {"type": "overloaded"}}]) == FAILED


@pytest.mark.parametrize(
    "said",
    ["data: three columns of figures", "data: {}\n\n", '{"a": 1}\n{"b": 2}', "event: none",
     '{"type": "message"}', '[{"type": "bug"}]'],
)  # fmt: skip
def test_an_answer_that_looks_like_events_is_an_answer(said: str) -> None:
    assert answer(said) == said


def test_events_in_an_attribute_of_pydantic_ai() -> None:
    events = [
        {"event.name": "gen_ai.system.message", "role": "system", "content": "s"},
        {"event.name": "gen_ai.user.message", "role": "user",
         "content": ["q", {"kind": "image-url", "url": "https://e.org/a"}]},
        {"event.name": "gen_ai.assistant.message", "role": "assistant",
         "tool_calls": [call("c", "w", "{}")]},
        {"event.name": "gen_ai.tool.message", "role": "tool", "id": "c", "name": "w",
         "content": "12 C"},
        {"event.name": "gen_ai.choice", "index": 0,
         "message": {"role": "assistant", "content": "It is 12 C."}},
    ]  # fmt: skip
    for logged in (events, json.dumps(events)):
        found = row(span({"gen_ai.request.model": "m", "events": logged}))
        assert [m["role"] for m in found["messages"]] == ["system", "user", "assistant", "tool"]
        assert found["messages"][1]["content"][0] == {"type": "text", "text": "q"}
        assert found["messages"][3]["tool_call_id"] == "c"
        assert found["answer"] == "It is 12 C."


def test_spans_of_the_ai_sdk() -> None:
    asked = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [
            {"type": "tool-call", "toolCallId": "c", "toolName": "w", "input": {"a": 1}}]},
        {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c", "toolName": "w",
                                      "output": {"type": "json", "value": {"t": 12}}}]},
    ]  # fmt: skip
    inner = {
        "ai.operationId": "ai.generateText.doGenerate", "gen_ai.request.model": "m",
        "ai.prompt.messages": json.dumps(asked), "ai.response.text": "Let me see.",
        "ai.response.toolCalls": json.dumps(
            [{"toolCallType": "function", "toolCallId": "d", "toolName": "v", "args": "{}"}]),
        "ai.usage.promptTokens": 3, "ai.usage.completionTokens": 2,
    }  # fmt: skip
    outer = {"ai.operationId": "ai.generateText", "ai.model.id": "m",
             "ai.prompt": json.dumps({"messages": asked}), "ai.response.text": "a"}  # fmt: skip
    export = {"scopeSpans": [{"spans": [span(outer), span(inner)]}]}
    found = row(export)
    assert found["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call("c", "w", '{"a": 1}')]},
        {"role": "tool", "tool_call_id": "c", "content": '{"t": 12}'},
    ]
    assert found["answer"] == "Let me see.\nv({})"
    assert (found["input_tokens"], found["output_tokens"]) == (3, 2)


def test_doubled_backslashes_of_postgresqls_copy_are_named(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": 'Say "hi"\nand go'}], "response": "y"}
    copied = json.dumps(record).replace("\\", "\\\\") + "\n"
    for text in (copied, copied * 3):
        with pytest.raises(DataError, match=r"backslashes are doubled.* psql -At") as error:
            imported(tmp_path, "log.jsonl", text)
        assert error.value.line == 1
    rows, _ = imported(tmp_path, "log.jsonl", json.dumps(record) + "\n")
    assert rows[0]["prompt"] == 'Say "hi"\nand go'

"""The server as its users meet it: OpenAI's client, LangChain and curl, over real HTTP."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator

import httpx
import openai
import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

EASY = "Hi"
USER = [{"role": "user", "content": EASY}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture(scope="module")
def server(provider: StubProvider) -> Iterator[Serving]:
    with serving(pool(provider.url)) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    ("model", "answers", "choice"),
    [
        ("router-mf-0.0", "strong", "strong"),
        ("router-mf-1.0", "weak", "weak"),
        ("weak", "weak", "direct"),
        ("strong", "strong", "direct"),
    ],
)
def test_the_model_string_decides_who_answers(
    client: openai.OpenAI, provider: StubProvider, model: str, answers: str, choice: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=USER)
    completion = raw.parse()
    assert completion.choices[0].message.content == f"Answer of {answers}."
    assert raw.headers["x-thriftroute-model"] == answers
    assert raw.headers["x-thriftroute-choice"] == choice
    assert ("x-thriftroute-score" in raw.headers) == (choice != "direct")
    assert float(raw.headers["x-thriftroute-cost"]) > 0
    assert raw.headers["x-thriftroute-cache"] == "off"
    assert len(raw.headers["x-thriftroute-decision-id"]) == 32
    assert provider.requests[-1].api_key == "provider-key"


def test_auto_uses_the_configured_threshold(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=USER)
    assert float(raw.headers["x-thriftroute-threshold"]) == 0.5
    assert 0 < float(raw.headers["x-thriftroute-score"]) < 1


def test_a_stream_arrives_in_pieces_with_usage_only_where_asked(client: openai.OpenAI) -> None:
    for asked in (False, True):
        options = {"stream_options": {"include_usage": True}} if asked else {}
        with client.chat.completions.create(
            model="weak", messages=USER, stream=True, **options
        ) as stream:
            assert stream.response.headers["x-thriftroute-model"] == "weak"
            chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "Answer of weak."
        assert len(chunks) > 2
        assert [c for c in chunks if c.choices][-1].choices[0].finish_reason == "stop"
        assert (chunks[-1].usage is not None) == asked


def test_tools_go_out_and_their_results_come_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="strong", messages=USER, tools=[TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    assert message.content is None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    second = client.chat.completions.create(
        model="strong", messages=[*USER, message.model_dump(), result], tools=[TOOL]
    )
    assert second.choices[0].message.content == "Answer of strong."


def test_in_the_middle_of_tool_calls_strong_is_never_left_for_weak(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="router-mf-0.0", messages=USER, tools=[TOOL])
    message = first.choices[0].message
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    raw = client.chat.completions.with_raw_response.create(
        model="router-mf-1.0", messages=[*USER, message.model_dump(), result], tools=[TOOL]
    )
    assert raw.headers["x-thriftroute-model"] == "strong"


def test_streamed_tool_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="weak", messages=USER, tools=[TOOL], stream=True
    ) as stream:
        calls = [c.choices[0].delta.tool_calls for c in stream if c.choices]
    names = [call[0].function.name for call in calls if call and call[0].function]
    assert "weather" in names


def test_everything_else_reaches_the_model_as_it_was(
    client: openai.OpenAI, provider: StubProvider
) -> None:
    schema = {"name": "s", "schema": {"type": "object"}, "strict": True}
    client.chat.completions.create(
        model="weak",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": None, "tool_calls": None},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
        response_format={"type": "json_schema", "json_schema": schema},
        max_completion_tokens=77,
        n=1,
        seed=5,
        top_p=0.25,
        extra_body={"repetition_penalty": 1.5},
        metadata={"threshold": "0.5", "team": "search"},
    )
    body = provider.requests[-1].body
    assert body["max_completion_tokens"] == 77
    assert (body["seed"], body["top_p"]) == (5, 0.25)
    assert body["repetition_penalty"] == 1.5
    assert body["response_format"]["json_schema"]["name"] == "s"
    assert body["messages"][2]["content"][1]["type"] == "image_url"
    assert "threshold" not in body.get("metadata", {})


def test_the_asynchronous_client(server: Serving) -> None:
    async def talk() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            whole = await client.chat.completions.create(model="weak", messages=USER)
            pieces = []
            async with await client.chat.completions.create(
                model="strong", messages=USER, stream=True
            ) as stream:
                async for chunk in stream:
                    pieces += [choice.delta.content or "" for choice in chunk.choices]
        return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(talk()) == ("Answer of weak.", "Answer of strong.")


def test_the_list_of_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["auto", "router-mf-0.5", "strong", "weak"]
    assert client.models.retrieve("weak").id == "weak"
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": []}, "messages: expected a list of at least one message"),
        ({"messages": [{"content": "x"}]}, "messages\\[0\\]: expected an object with a role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages\\[0\\].content"),
        ({"model": 7}, "model: expected the name"),
        ({"model": "nobody"}, "nobody"),
        ({"model": "router-mf-x"}, "router-mf-x"),
        ({"model": "router-mf-7"}, "7"),
        ({"stream": "yes"}, "stream: expected true or false"),
        ({"n": 0}, "n: expected a whole number"),
        ({"max_tokens": "many"}, "max_tokens: expected a whole number"),
        ({"metadata": {"threshold": "high"}}, "metadata.threshold: expected a number from 0 to 1"),
        ({"metadata": {"quality": "best"}}, "metadata.quality: expected low, medium, high"),
        ({"metadata": {"max_cost": -1}}, "metadata.max_cost: expected a number 0 or more"),
        ({"metadata": 3}, "metadata: expected an object, got a number"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    server: Serving, change: dict[str, object], problem: str
) -> None:
    body = {"model": "auto", "messages": USER, **change}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code in {400, 404}
    assert set(error) == {"message", "type", "param", "code"}
    import re

    assert re.search(problem, error["message"]), error


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 50_000])
def test_a_body_that_is_no_json_object(server: Serving, raw: bytes) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_headers_win_over_metadata(server: Serving) -> None:
    body = {"model": "auto", "messages": USER, "metadata": {"threshold": 1.0}}
    plain = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert plain.headers["x-thriftroute-model"] == "weak"
    headers = {"x-thriftroute-threshold": "0"}
    won = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
    assert won.headers["x-thriftroute-model"] == "strong"


def test_health_ready_and_what_is_not_there(server: Serving) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{server.url}/ready")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    missing = httpx.get(f"{server.url}/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = httpx.get(f"{server.url}/v1/chat/completions")
    assert wrong.status_code == 405


def test_langchain(server: Serving) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(
        model="router-mf-1.0", base_url=f"{server.url}/v1", api_key="any", max_retries=0
    )
    assert chat.invoke(EASY).content == "Answer of weak."
    assert "".join(piece.content for piece in chat.stream(EASY)) == "Answer of weak."
    bound = chat.bind_tools([TOOL])
    assert bound.invoke(EASY).tool_calls[0]["name"] == "weather"


def test_curl(server: Serving) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed: apt-get install curl")
    url = f"{server.url}/v1/chat/completions"
    body = json.dumps({"model": "strong", "messages": USER, "stream": True})
    done = subprocess.run(
        [curl, "-sN", url, "-H", "content-type: application/json", "-d", body],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    events = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[0].removeprefix("data: "))["object"] == "chat.completion.chunk"

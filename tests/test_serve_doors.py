"""The doors beside chat completions, with their own clients, to providers of either protocol."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.native_provider import SIGNATURE, TEXT, NativeProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

USER: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: Any = {"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA}
FUNCTION: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Patches a file."}
CACHED: Any = {"type": "ephemeral", "ttl": "1h"}
PNG = "iVBORw0KGgo="


def models(chat: str, native: str) -> dict[str, Any]:
    """A pool: strong and weak speak chat completions, `claude` Messages, `gpt` Responses."""
    settings = pool(chat, aliases={"claude-sonnet-*": "router-mf-1.0"}, sticky_s=60)
    common = {
        "api_key": "native-key", "price": {"input": 3.0, "output": 15.0},
        "capabilities": ["tools", "vision", "json_schema", "reasoning"],
    }  # fmt: skip
    base = {"api_base": f"{native}/v1", **common}
    settings["models"] += [
        {"name": "claude", "model": "anthropic/claude-x", "api_base": native, **common},
        {
            "name": "other-claude",
            "model": "anthropic/claude-x",
            "api_base": f"{native}/v1",
            **common,
        },
        {"name": "gpt", "model": "openai/gpt-x", "responses": True, **base},
        *(
            {"name": f"{name}@{effort}", **model}
            for effort in ("low", "max")
            for name, model in {
                "claude": {"model": f"anthropic/claude-x@{effort}", "api_base": native, **common},
                "haiku": {
                    "model": f"anthropic/claude-haiku-4-5@{effort}",
                    "api_base": native,
                    **common,
                },
                "gpt": {"model": f"openai/gpt-x@{effort}", "responses": True, **base},
            }.items()
        ),
        {"name": "small", "model": "openai/small", **base, "max_output_tokens": 50},
    ]
    return settings


@pytest.fixture(scope="module")
def chat() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture(scope="module")
def native() -> Iterator[NativeProvider]:
    with NativeProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(chat: StubProvider, native: NativeProvider) -> Iterator[Serving]:
    with serving(models(chat.url, native.url)) as running:
        yield running


@pytest.fixture
def claude(server: Serving) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


class TestMessages:
    def test_plain_to_a_chat_provider(
        self, claude: anthropic.Anthropic, chat: StubProvider
    ) -> None:
        raw = claude.messages.with_raw_response.create(
            model="router-mf-1.0",
            max_tokens=100,
            system=[{"type": "text", "text": "Be brief.", "cache_control": CACHED}],
            messages=USER,
            stop_sequences=["END"],
            extra_body={"temperature": 0.0},
            metadata={"user_id": "u1"},
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
        message = raw.parse()
        assert [block.type for block in message.content] == ["text"]
        assert message.content[0].text == "Answer of weak."  # type: ignore[union-attr]
        assert (message.stop_reason, message.role) == ("end_turn", "assistant")
        assert message.usage.input_tokens > 0
        assert raw.headers["x-thriftroute-model"] == "weak"
        assert raw.headers["x-thriftroute-choice"] == "weak"
        assert float(raw.headers["x-thriftroute-cost"]) > 0
        sent = chat.requests[-1].body
        assert [m["role"] for m in sent["messages"]] == ["system", "user"]
        assert (sent["stop"], sent["max_tokens"], sent["temperature"]) == (["END"], 100, 0.0)
        assert not {"thinking", "native", "metadata", "maker"} & set(sent)

    @pytest.mark.parametrize("model", ["weak", "claude"])
    def test_streams_have_anthropics_events(self, claude: anthropic.Anthropic, model: str) -> None:
        with claude.messages.stream(model=model, max_tokens=100, messages=USER) as stream:
            kinds = [event.type for event in stream]
            message = stream.get_final_message()
        said = {"weak": "Answer of weak.", "claude": TEXT}[model]
        assert message.content[0].text == said  # type: ignore[union-attr]
        assert message.stop_reason == "end_turn"
        assert message.usage.output_tokens > 0
        assert message.usage.input_tokens > 0
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert kinds.index("content_block_start") < kinds.index("content_block_stop")

    def test_a_stream_is_named_events_without_done(self, server: Serving) -> None:
        body = {"model": "weak", "max_tokens": 9, "messages": USER, "stream": True}
        text = httpx.post(f"{server.url}/v1/messages", json=body).text
        events = [part.split("\n") for part in text.strip().split("\n\n")]
        assert all(json.loads(data[6:])["type"] == name[7:] for name, data in events)
        assert "[DONE]" not in text

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("model", ["weak", "claude"])
    def test_a_tool_loop(
        self, claude: anthropic.Anthropic, model: str, stream: bool, chat: StubProvider
    ) -> None:
        asked: Any = {"model": model, "max_tokens": 100, "tools": [TOOL]}
        if stream:
            with claude.messages.stream(messages=USER, **asked) as events:
                first = events.get_final_message()
        else:
            first = claude.messages.create(messages=USER, **asked)
        assert first.stop_reason == "tool_use"
        call = first.content[-1]
        assert call.type == "tool_use"
        assert call.name == "weather"
        assert call.input == ({"city": "Rome"} if model == "claude" else {})
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [
                {"type": "text", "text": "sunny"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                },
            ],
            "is_error": True,
        }
        turns: list[Any] = [
            *USER,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result, {"type": "text", "text": "Go on."}]},
        ]
        second = claude.messages.create(messages=turns, **{**asked, "tools": [TOOL]})
        if model == "claude":
            assert second.content[0].text == TEXT  # type: ignore[union-attr]
            return
        sent = chat.requests[-1].body
        tool, user = sent["messages"][2:]
        assert tool == {"role": "tool", "tool_call_id": call.id, "content": "Error: sunny"}
        assert [part["type"] for part in user["content"]] == ["image_url", "text"]
        assert sent["messages"][1]["tool_calls"][0]["id"] == call.id
        assert sent["tools"][0]["function"]["parameters"] == SCHEMA

    def test_what_stays_with_its_provider_is_sent_as_it_came(
        self, claude: anthropic.Anthropic, native: NativeProvider
    ) -> None:
        document = {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
            "title": "t", "citations": {"enabled": True}, "cache_control": CACHED,
        }  # fmt: skip
        image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
        text = {"type": "text", "text": "Read.", "cache_control": CACHED}
        messages: Any = [{"role": "user", "content": [document, image, text]}]
        search: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
        body: Any = {
            "max_tokens": 2000, "messages": messages, "system": [text], "tools": [TOOL, search],
            "tool_choice": {"type": "auto"}, "thinking": {"type": "enabled", "budget_tokens": 1024},
            "stop_sequences": ["END"], "metadata": {"user_id": "u1"},
        }  # fmt: skip
        further: Any = {"context_management": {"edits": []}, "top_k": 5}
        barred = {"api_base": "http://evil", "mcp_servers": []}
        claude.messages.create(
            model="claude",
            extra_body={**further, **barred},
            extra_headers={"anthropic-beta": "context-1,oauth-2025-04-20,bad name"},
            **body,
        )
        heard = native.heard[-1]
        assert heard.path == "/v1/messages"
        assert heard.body == {**body, **further, "model": "claude-x"}
        assert heard.headers["x-api-key"] == "native-key"
        assert heard.headers["anthropic-beta"] == "context-1"
        assert heard.headers["anthropic-version"] > "2023"  # the client's own
        assert "any" not in (heard.headers.get("authorization"), heard.headers["x-api-key"])

    @pytest.mark.parametrize("stream", [False, True])
    def test_thoughts_go_back_to_who_signed_them_and_to_nobody_else(
        self,
        claude: anthropic.Anthropic,
        native: NativeProvider,
        chat: StubProvider,
        stream: bool,
    ) -> None:
        asked: Any = {
            "max_tokens": 2000, "tools": [TOOL],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }  # fmt: skip
        if stream:
            with claude.messages.stream(model="claude", messages=USER, **asked) as events:
                first = events.get_final_message()
        else:
            first = claude.messages.create(model="claude", messages=USER, **asked)
        thought = first.content[0]
        assert thought.type == "thinking"
        assert thought.thinking == "Hm."
        assert thought.signature.endswith(SIGNATURE)
        call = first.content[1]
        assert call.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        turns: list[Any] = [
            *USER,
            {"role": "assistant", "content": [block.model_dump() for block in first.content]},
            {"role": "user", "content": [result]},
        ]
        claude.messages.create(model="claude", messages=turns, **asked)
        blocks = native.heard[-1].body["messages"][1]["content"]
        assert blocks[0]["signature"] == SIGNATURE
        assert blocks[1]["id"] == call.id
        claude.messages.create(model="other-claude", messages=turns, **asked)
        blocks = native.heard[-1].body["messages"][1]["content"]
        assert [block["type"] for block in blocks] == ["tool_use"]
        claude.messages.create(model="weak", messages=turns, **asked)
        assert "Hm." not in json.dumps(chat.requests[-1].body)

    def test_what_a_chat_model_thought_goes_back_to_it_alone(
        self, claude: anthropic.Anthropic, native: NativeProvider, chat: StubProvider
    ) -> None:
        said = {"role": "assistant", "reasoning_content": "I think.", "content": "Yes."}
        chat.fail(Fault(message=said), model="weak")
        with claude.messages.stream(model="weak", max_tokens=99, messages=USER) as events:
            first = events.get_final_message()
        assert [block.type for block in first.content] == ["thinking", "text"]
        turns: list[Any] = [
            *USER,
            {"role": "assistant", "content": [block.model_dump() for block in first.content]},
            *USER,
        ]
        claude.messages.create(model="weak", max_tokens=99, messages=turns)
        assert chat.requests[-1].body["messages"][1]["reasoning_content"] == "I think."
        claude.messages.create(model="claude", max_tokens=99, messages=turns)
        blocks = native.heard[-1].body["messages"][1]["content"]
        assert [block["type"] for block in blocks] == ["text"]

    def test_images_and_documents_for_a_chat_provider(
        self, claude: anthropic.Anthropic, chat: StubProvider
    ) -> None:
        data = {"type": "base64", "media_type": "image/png", "data": PNG}
        content: Any = [
            {"type": "image", "source": data},
            {"type": "document", "source": {**data, "media_type": "application/pdf"}},
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "x"},
            },
            {"type": "text", "text": "What?"},
        ]
        messages: Any = [{"role": "user", "content": content}]
        claude.messages.create(model="weak", max_tokens=9, messages=messages)
        parts = chat.requests[-1].body["messages"][0]["content"]
        assert [part["type"] for part in parts] == ["image_url", "file", "text", "text"]
        assert parts[0]["image_url"]["url"] == f"data:image/png;base64,{PNG}"

    def test_count_tokens(self, claude: anthropic.Anthropic) -> None:
        few = claude.messages.count_tokens(model="auto", messages=USER)
        many = claude.messages.count_tokens(model="auto", messages=USER * 5, tools=[TOOL])
        assert 0 < few.input_tokens < many.input_tokens

    def test_a_harness_name_of_a_model_is_an_alias(self, claude: anthropic.Anthropic) -> None:
        raw = claude.messages.with_raw_response.create(
            model="claude-sonnet-9", max_tokens=9, messages=USER
        )
        assert raw.headers["x-thriftroute-model"] == "weak"

    def test_an_answer_is_cut_to_what_the_model_can(
        self, claude: anthropic.Anthropic, native: NativeProvider
    ) -> None:
        with pytest.raises(anthropic.APIStatusError):  # the stub has no chat completions
            claude.messages.create(model="small", max_tokens=9000, messages=USER)
        assert native.heard[-1].body["max_tokens"] == 50

    @pytest.mark.parametrize(
        ("change", "status", "kind"),
        [
            ({"messages": []}, 400, "invalid_request_error"),
            (
                {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
                400,
                "invalid_request_error",
            ),
            ({"system": 5}, 400, "invalid_request_error"),
            ({"model": "nobody"}, 404, "not_found_error"),
        ],
    )
    def test_errors_have_anthropics_shape(
        self, claude: anthropic.Anthropic, change: dict[str, Any], status: int, kind: str
    ) -> None:
        body: Any = {"model": "auto", "max_tokens": 9, "messages": USER, **change}
        with pytest.raises(anthropic.APIStatusError) as caught:
            claude.messages.create(**body)
        assert caught.value.status_code == status
        told: Any = caught.value.body
        assert (told["type"], told["error"]["type"]) == ("error", kind)

    def test_a_provider_that_refuses(
        self, claude: anthropic.Anthropic, native: NativeProvider
    ) -> None:
        native.status = 400
        try:
            with pytest.raises(anthropic.BadRequestError, match="the provider says no"):
                claude.messages.create(model="claude", max_tokens=9, messages=USER)
            native.status = 529
            with pytest.raises(anthropic.APIStatusError) as caught:
                claude.messages.create(model="claude", max_tokens=9, messages=USER)
            assert caught.value.status_code >= 500
        finally:
            native.status = 200

    def test_a_stream_that_breaks_ends_with_an_error_event(
        self, claude: anthropic.Anthropic, native: NativeProvider
    ) -> None:
        native.cut = 5
        try:
            with (
                pytest.raises(anthropic.APIStatusError, match="broke off"),
                claude.messages.stream(model="claude", max_tokens=9, messages=USER) as stream,
            ):
                stream.get_final_message()
        finally:
            native.cut = None


@pytest.mark.parametrize("effort", ["low", "max"])
def test_claude_hears_the_effort_of_the_name(
    claude: anthropic.Anthropic, native: NativeProvider, effort: str
) -> None:
    schema = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "medium"}
    more: Any = {"max_tokens": 8000, "messages": USER, "extra_body": {"output_config": schema}}
    claude.messages.create(model=f"claude@{effort}", thinking={"type": "adaptive"}, **more)
    heard = native.heard[-1].body
    assert (heard["model"], heard["thinking"]) == ("claude-x", {"type": "adaptive"})
    assert heard["output_config"] == {**schema, "effort": effort}
    # A model without it: the budget of the thinking that the client has turned on.
    del more["extra_body"]
    thinks: Any = {"type": "enabled", "budget_tokens": 2000}
    claude.messages.create(model=f"haiku@{effort}", thinking=thinks, **more)
    heard = native.heard[-1].body
    assert heard["model"] == "claude-haiku-4-5"
    assert heard["thinking"] == {**thinks, "budget_tokens": 1024 if effort == "low" else 7999}
    claude.messages.create(model=f"haiku@{effort}", **more)
    assert not {"thinking", "output_config"} & native.heard[-1].body.keys()


class TestResponses:
    @pytest.mark.parametrize("model", ["weak", "gpt"])
    def test_plain_and_streamed(self, gpt: openai.OpenAI, model: str) -> None:
        said = {"weak": "Answer of weak.", "gpt": TEXT}[model]
        whole = gpt.responses.create(model=model, instructions="Be brief.", input="Hi")
        assert (whole.output_text, whole.status) == (said, "completed")
        assert whole.usage is not None
        assert whole.usage.input_tokens > 0
        with gpt.responses.stream(model=model, input=USER) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert final.output_text == said
        assert final.usage is not None
        assert final.usage.output_tokens > 0
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert "response.output_text.delta" in kinds

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("tool", [FUNCTION, PATCH])
    @pytest.mark.parametrize("model", ["weak", "gpt"])
    def test_a_tool_loop(
        self, gpt: openai.OpenAI, chat: StubProvider, model: str, tool: Any, stream: bool
    ) -> None:
        if stream:
            with gpt.responses.stream(model=model, input=USER, tools=[tool]) as events:
                for _ in events:
                    pass
                first = events.get_final_response()
        else:
            first = gpt.responses.create(model=model, input=USER, tools=[tool])
        call: Any = first.output[-1]
        assert call.name == tool["name"]
        assert call.type == f"{tool['type']}_call".replace("custom", "custom_tool")
        result = {"type": f"{call.type}_output", "call_id": call.call_id, "output": "done"}
        items: Any = [*USER, *(item.model_dump(exclude_none=True) for item in first.output), result]
        second = gpt.responses.create(model=model, input=items, tools=[tool])
        assert second.output_text == {"weak": "Answer of weak.", "gpt": TEXT}[model]
        if model == "weak":
            sent = chat.requests[-1].body["messages"]
            assert [m["role"] for m in sent] == ["user", "assistant", "tool"]
            assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == call.call_id

    def test_what_stays_with_its_provider_is_sent_as_it_came(
        self, gpt: openai.OpenAI, native: NativeProvider
    ) -> None:
        data = f"data:image/png;base64,{PNG}"
        items: Any = [
            {"type": "message", "role": "developer",
             "content": [{"type": "input_text", "text": "d"}]},
            {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": "theirs"},
            {"type": "local_shell_call", "id": "l", "call_id": "c1", "status": "completed",
             "action": {"type": "exec", "command": ["ls"], "env": {}}},
            {"type": "local_shell_call_output", "id": "c1", "output": "a.py"},
            {"type": "message", "role": "user",
             "content": [{"type": "input_image", "image_url": data, "detail": "auto"}]},
        ]  # fmt: skip
        body: Any = {
            "input": items, "instructions": "Be brief.", "parallel_tool_calls": False,
            "tools": [FUNCTION, {"type": "web_search"}], "reasoning": {"effort": "high"},
            "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
        }  # fmt: skip
        further = {"api_base": "http://evil", "client_metadata": {"a": "b"}}
        gone: Any = [{"type": "item_reference", "id": "msg_1"}]
        answer = gpt.responses.create(
            model="gpt", store=True, extra_body=further, **{**body, "input": [*gone, *items]}
        )
        assert native.heard[-1].body == {**body, "model": "gpt-x", "store": False}
        assert native.heard[-1].headers["authorization"] == "Bearer native-key"
        thought: Any = answer.output[0]
        assert thought.encrypted_content.endswith(SIGNATURE)
        more = [*USER, thought.model_dump(exclude_none=True), *USER]
        gpt.responses.create(model="gpt", input=more)
        assert native.heard[-1].body["input"][1]["encrypted_content"] == SIGNATURE

    def test_encrypted_reasoning_goes_to_nobody_else(
        self, gpt: openai.OpenAI, chat: StubProvider
    ) -> None:
        first = gpt.responses.create(model="gpt", input=USER, reasoning={"effort": "low"})
        items: Any = [*USER, *(item.model_dump(exclude_none=True) for item in first.output), *USER]
        gpt.responses.create(model="weak", input=items)
        sent = chat.requests[-1].body["messages"]
        assert [m["role"] for m in sent] == ["user", "assistant", "user"]
        assert SIGNATURE not in json.dumps(sent)

    @pytest.mark.parametrize(
        "asked",
        [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}],
    )
    def test_what_cannot_be_kept_is_said(self, gpt: openai.OpenAI, asked: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="kept here"):
            gpt.responses.create(model="auto", input="Hi", **asked)

    def test_nothing_is_stored(self, gpt: openai.OpenAI) -> None:
        answer = gpt.responses.create(model="weak", input="Hi", store=True)
        assert answer.model_dump()["store"] is False


class TestPlain:
    @pytest.mark.parametrize("effort", ["low", "max"])
    def test_the_effort_of_the_name_comes_before_the_clients(
        self, gpt: openai.OpenAI, native: NativeProvider, effort: str
    ) -> None:
        gpt.responses.create(
            model=f"gpt@{effort}", input=USER, reasoning={"effort": "medium", "summary": "auto"}
        )
        heard = native.heard[-1].body
        assert heard["model"] == "gpt-x"
        assert heard["reasoning"] == {"effort": effort, "summary": "auto"}

    def test_embeddings(self, gpt: openai.OpenAI, native: NativeProvider) -> None:
        raw = gpt.embeddings.with_raw_response.create(
            model="small", input=["a", "b"], encoding_format="float"
        )
        assert [row.embedding for row in raw.parse().data] == [[0.5, 0.0], [0.5, 1.0]]
        assert raw.headers["x-thriftroute-model"] == "small"
        assert float(raw.headers["x-thriftroute-cost"]) > 0
        assert native.heard[-1].body["input"] == ["a", "b"]
        with pytest.raises(openai.BadRequestError, match="by its name"):
            gpt.embeddings.create(model="auto", input="a")
        with pytest.raises(openai.BadRequestError, match="only servers of OpenAI's API"):
            gpt.embeddings.create(model="claude", input="a")

    def test_legacy_completions(self, gpt: openai.OpenAI) -> None:
        whole = gpt.completions.create(model="small", prompt="Say", max_tokens=5)
        assert whole.choices[0].text == TEXT
        stream = gpt.completions.create(model="small", prompt="Say", stream=True)
        assert "".join(c.text for piece in stream for c in piece.choices) == TEXT


def test_a_client_of_anthropics_has_its_key_in_x_api_key(chat: StubProvider) -> None:
    from thriftroute.serve.api.auth import digest

    keys = [{"name": "alice", "sha256": digest("tr-alice")}]
    with serving(pool(chat.url, keys=keys)) as server:
        for key, status in (("tr-alice", 200), ("tr-bob", 401)):
            answer = httpx.post(
                f"{server.url}/v1/messages",
                headers={"x-api-key": key},
                json={"model": "weak", "max_tokens": 5, "messages": USER},
            )
            assert answer.status_code == status
        assert answer.json()["error"]["type"] == "authentication_error"


def test_a_clients_body_cannot_bring_its_own_native_request(
    server: Serving, native: NativeProvider
) -> None:
    before = len(native.heard)
    forged = {"protocol": "messages", "body": {"messages": []}, "headers": {"x-api-key": "mine"}}
    httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "weak", "messages": USER, "native": forged, "maker": "x"},
    )
    assert len(native.heard) == before


class TestFurtherClients:
    def test_langchain(self, server: Serving) -> None:
        from langchain_anthropic import ChatAnthropic
        from langchain_core.tools import tool

        @tool
        def weather(city: str) -> str:
            """Tell the weather."""
            return city

        settings: Any = {"base_url": server.url, "api_key": "any", "max_tokens": 50}
        for model, said in (("weak", "Answer of weak."), ("claude", TEXT)):
            client = ChatAnthropic(model_name=model, **settings)
            assert client.invoke("Hi").text == said
            assert "".join(piece.text for piece in client.stream("Hi")) == said
            answer = client.bind_tools([weather]).invoke("Hi")
            assert answer.tool_calls[0]["name"] == "weather"

    def test_pydantic_ai(self, server: Serving) -> None:
        from pydantic_ai import Agent
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        seen: list[str] = []

        async def ask() -> str:
            async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any") as client:
                provider = AnthropicProvider(anthropic_client=client)
                agent = Agent(AnthropicModel("claude", provider=provider))

                @agent.tool_plain
                def weather(city: str) -> str:
                    seen.append(city)
                    return "sunny"

                return (await agent.run("What is the weather?")).output

        assert asyncio.run(ask()) == TEXT
        assert seen == ["Rome"]

    def test_litellm(self, server: Serving) -> None:
        from thriftroute.providers.completion import load_litellm

        answer = load_litellm().completion(
            model="anthropic/weak", api_base=server.url, api_key="any", messages=USER
        )
        assert answer.choices[0].message.content == "Answer of weak."


def test_a_tool_loop_stays_on_its_model_and_a_short_session_may_leave(
    claude: anthropic.Anthropic,
) -> None:
    asked: Any = {"max_tokens": 50, "extra_headers": {"x-claude-code-session-id": "s-1"}}
    raw = claude.messages.with_raw_response.create(model="router-mf-0.0", messages=USER, **asked)
    assert raw.headers["x-thriftroute-model"] == "strong"
    raw = claude.messages.with_raw_response.create(model="router-mf-1.0", messages=USER, **asked)
    assert raw.headers["x-thriftroute-switch"] == "switch"
    assert "a switch is expected to cost less" in raw.headers["x-thriftroute-reason"]
    assert raw.headers["x-thriftroute-model"] == "weak"
    asked["tools"] = [TOOL]
    text = {"type": "text", "text": "And now?", "cache_control": CACHED}
    start: list[Any] = [{"role": "user", "content": [text]}]
    del asked["extra_headers"]
    first = claude.messages.create(model="router-mf-0.0", messages=start, **asked)
    call = first.content[0]
    assert call.type == "tool_use"
    text.pop("cache_control")  # the mark moves on with the conversation
    turns = [
        *start,
        {"role": "assistant", "content": [call.model_dump()]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id}]},
    ]
    raw = claude.messages.with_raw_response.create(model="router-mf-1.0", messages=turns, **asked)
    assert raw.headers["x-thriftroute-model"] == "strong"


def test_the_page_on_agents_runs(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "agents.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        if "anthropic" in block:
            there = block.replace("http://127.0.0.1:6060", server.url)
            exec(compile(there, "docs/agents.md", "exec"), names)
            names["client"].close()
    assert "Answer of" in capsys.readouterr().out


@pytest.mark.parametrize("first", [False, True])
def test_a_kept_answer_is_said_whole_and_as_a_stream(native: NativeProvider, first: bool) -> None:
    settings = models("http://127.0.0.1:1", native.url)
    with (
        serving({**settings, "cache": {"backend": "memory"}}) as server,
        anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as claude,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as gpt,
    ):
        for streams in (first, not first, first):
            before = len(native.heard)
            asked: Any = {"max_tokens": 50, "thinking": {"type": "enabled", "budget_tokens": 9}}
            if streams:
                with claude.messages.stream(model="claude", messages=USER, **asked) as stream:
                    message = stream.get_final_message()
                with gpt.responses.stream(model="gpt", input="Hi") as events:
                    for _ in events:
                        pass
                    said = events.get_final_response().output_text
                pieces = gpt.completions.create(model="gpt", prompt="Say", stream=True)
                text = "".join(choice.text for piece in pieces for choice in piece.choices)
            else:
                message = claude.messages.create(model="claude", messages=USER, **asked)
                said = gpt.responses.create(model="gpt", input="Hi").output_text
                text = gpt.completions.create(model="gpt", prompt="Say").choices[0].text
            assert [block.type for block in message.content] == ["thinking", "text"]
            assert message.content[0].signature.endswith(SIGNATURE)  # type: ignore[union-attr]
            assert (said, text) == (TEXT, TEXT)
        assert len(native.heard) == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("messages", {"messages": [{"role": [], "content": "x"}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}),
        ("messages", {"output_config": {"effort": []}}),
        ("messages", {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": []}}),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": []}}]}]}),
        ("responses", {"input": [{"type": [], "role": "user"}]}),
        ("responses", {"input": [{"role": [], "content": "x"}]}),
        ("responses", {"tools": [{"type": []}]}),
        ("responses", {"tools": [{"type": "custom", "name": "f", "description": [],
                                  "format": {"definition": "x"}}]}),
    ],
)  # fmt: skip
def test_fields_of_another_type_are_no_fault_of_the_servers(
    path: str, body: dict[str, Any]
) -> None:
    given = {"messages": {"max_tokens": 9, "messages": USER}, "responses": {"input": "x"}}[path]
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        answer = httpx.post(f"{server.url}/v1/{path}", json={"model": "weak", **given, **body})
    assert answer.status_code in {200, 400}, answer.text

"""Which requests go to a provider without LiteLLM, where to, and with which key."""

import asyncio
from typing import Any

import pytest
from thriftroute.providers import price_map
from thriftroute.providers.completion import load_litellm, quiet
from thriftroute.providers.direct import CHAT, DirectModel
from thriftroute.providers.http_answer import BadAnswerError, HttpAnswer
from thriftroute.providers.http_client import DirectClient
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.callers import HELLO, KEY
from thriftroute.tests.helpers.raw_provider import RawProvider

OWN = {"api_base": "http://127.0.0.1:8000/v1", "api_key": KEY}


def takes(model: str, params: dict[str, Any] | None = None, **more: Any) -> bool:
    found = DirectModel.of(model, {"api_key": KEY} if params is None else params)
    assert CHAT in found.urls
    return found.takes({"messages": HELLO, **more})


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "name", ["openai", "groq", "together_ai", "deepseek", "mistral", "fireworks_ai", "cerebras"]
)
def test_providers_are_where_litellm_has_them(name: str) -> None:
    litellm = load_litellm()
    with quiet():
        _, provider, _, base = litellm.get_llm_provider(f"{name}/m", api_key=KEY)
    found = DirectModel.of(f"{name}/m", {"api_key": KEY})
    assert found.provider == provider
    assert found.urls[CHAT] == f"{base or 'https://api.openai.com/v1'}/chat/completions"
    assert found.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(found)


def test_azure_names_the_deployment_in_its_address() -> None:
    params = {"api_base": "https://me.openai.azure.com/", "api_version": "v", "api_key": KEY}
    found = DirectModel.of("azure/my gpt", params)
    where = "openai/deployments/my%20gpt/chat/completions?api-version=v"
    assert found.urls == {CHAT: f"https://me.openai.azure.com/{where}"}
    assert found.headers["api-key"] == KEY
    assert "authorization" not in found.headers


def test_a_name_without_its_provider_is_whose_the_map_says() -> None:
    assert DirectModel.of("gpt-4o", {"api_key": KEY}).urls[CHAT].startswith("https://api.openai")
    claude = DirectModel.of("claude-sonnet-4-5", {"api_key": KEY})
    assert claude.urls == {"messages": "https://api.anthropic.com/v1/messages"}
    assert claude.headers["x-api-key"] == KEY
    assert not DirectModel.of("no-such-model", {"api_key": KEY}).urls


def test_the_map_is_read_without_litellm_as_litellm_has_it() -> None:
    litellm = load_litellm()
    found = price_map.installed_file()
    assert found is not None
    for name in ("gpt-4o", "claude-sonnet-4-5", "deepseek/deepseek-chat"):
        ours, theirs = price_map.rates(found[name]), price_map.rates(litellm.model_cost[name])
        assert ours
        assert ours == theirs


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("anthropic/claude-sonnet-4-5", {"api_key": KEY}),
        ("ollama_chat/llama3", {"api_base": "http://127.0.0.1:11434"}),
        ("hosted_vllm/m", {"api_key": KEY}),
        ("openai/m", {**OWN, "custom_llm_provider": "openai"}),
        ("openai/m", {**OWN, "organization": "o"}),
        ("openai/m", {**OWN, "api_base": "file:///etc/passwd"}),
        ("azure/m", {"api_key": KEY, "api_base": "https://me.openai.azure.com"}),
        ("openai/gpt-4o", {}),  # LiteLLM knows other ways to log in
    ],
)
def test_all_other_chats_are_litellms(model: str, params: dict[str, Any]) -> None:
    assert CHAT not in DirectModel.of(model, params).urls


def test_a_local_server_needs_no_key() -> None:
    found = DirectModel.of("openai/m", {"api_base": OWN["api_base"]})
    assert found.headers["authorization"] == "Bearer none"


def test_what_litellm_would_translate_is_not_taken() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert takes("openai/qwen", OWN, tools=tools, seed=1, extra_body={"min_p": 0.1})
    assert not takes("openai/qwen", OWN, reasoning_effort="low")
    assert not takes("openai/gpt-5-mini", max_tokens=5)
    assert takes("openai/gpt-5-mini", max_completion_tokens=5)
    assert not takes("openai/o3")
    assert takes("openai/gpt-4o", max_tokens=5)
    assert takes("groq/llama-3.3-70b", temperature=0.1, stream=True)
    assert not takes("groq/llama-3.3-70b", tools=tools)
    assert not takes("mistral/mistral-small", stream=True)
    always = DirectModel.of("openai/o3", OWN, "direct")
    assert always.takes({"messages": HELLO, "reasoning_effort": "low"})
    assert not DirectModel.of("openai/qwen", OWN, "litellm").takes({"messages": HELLO})


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with RawProvider([b"by the proxy"]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        found = DirectModel.of("openai/m", {"api_base": "http://far.example/v1", "api_key": KEY})
        assert DirectModel.of("openai/m", OWN).proxy is None
        ask(found, http := HttpAnswer(10_000))
    assert b"".join(http.parts) == b"by the proxy"
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    assert not DirectModel.of("openai/m", {**OWN, "api_base": "http://far.example/v1"}).urls


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with StubProvider() as other:
        moved = {"Location": f"{other.url}/chat/completions"}
        with RawProvider((moved, [b""]), status=307) as provider:
            http = HttpAnswer(1000)
            with pytest.raises(BadAnswerError, match="status 307"):
                ask(DirectModel.of("openai/m", {"api_base": provider.url, "api_key": KEY}), http)
        assert http.status == 307
        assert not other.requests


def ask(model: DirectModel, http: HttpAnswer) -> None:
    async def call() -> None:
        client = DirectClient()
        try:
            await client.post(model, CHAT, {"messages": HELLO}, http, stream=False)
        finally:
            await client.close()

    asyncio.run(call())

"""Calls without LiteLLM: what a server needs of it, and what both transports do alike."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from thriftroute.errors import ConfigError
from thriftroute.providers.http_answer import HttpAnswer
from thriftroute.serve.config.settings import CallSettings
from thriftroute.serve.upstream.request import ModelCall
from thriftroute.serve.upstream.transport import Transport
from thriftroute.testing.stub import Fault, StubProvider
from thriftroute.tests.helpers.callers import HELLO, make_model

SERVER = """
import asyncio, sys
import httpx
from thriftroute.serve.api.app import create_app
from thriftroute.serve.config.settings import Config
from thriftroute.testing.stub import StubProvider

async def main(url):
    models = [{"name": n, "model": f"openai/{n}", "api_base": url, "api_key": "key",
               "price": {"input": 1, "output": 2}} for n in ("weak", "strong")]
    models.append({"name": "gpt-4o", "api_key": "key"})
    app = create_app(Config.model_validate({"models": models, "strong": "strong", "weak": "weak",
                     "router": {"name": "fast"}, "records": {"url": None}}))
    web = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=web) as client:
        for path in ("chat/completions", "messages"):
            for more in ({"model": "strong"}, {"model": "auto"}, {"model": "auto", "stream": True}):
                body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, **more}
                answer = await client.post(f"http://server/v1/{path}", json=body)
                assert answer.status_code == 200, answer.text
    print("litellm" in sys.modules, "openai" in sys.modules)

with StubProvider() as stub:
    asyncio.run(main(stub.url))
"""


def test_a_server_that_need_not_translate_does_not_load_litellm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.returncode) == (["False", "False"], 0), done.stderr


@pytest.mark.parametrize("provider", ["anthropic", "ollama_chat"])
def test_direct_calls_of_another_wire_are_refused_at_start(provider: str) -> None:
    model = make_model("weak", "http://127.0.0.1:1", provider=provider, transport="direct")
    with pytest.raises(ConfigError, match="direct needs a provider that speaks OpenAI's API"):
        ModelCall.of(model, CallSettings())


@pytest.mark.usefixtures("transport")
def test_a_server_without_log_probabilities_is_asked_again_without() -> None:
    body = {"messages": HELLO, "logprobs": True}
    with StubProvider() as provider:
        provider.fail(Fault(status=400, error="property 'logprobs' is not supported"))
        target = ModelCall.of(make_model("weak", provider.url), CallSettings())

        async def ask() -> dict[str, Any]:
            transport, http = Transport([target]), HttpAnswer(100_000)
            try:
                how: dict[str, Any] = {"stream": False, "optional": {"logprobs"}}
                found: dict[str, Any] = await transport.send(target, body, http, **how)
                return found
            finally:
                await transport.close()

        assert asyncio.run(ask())["choices"][0]["message"]["content"] == "Answer of weak."
        assert ["logprobs" in request.body for request in provider.requests] == [True, False]

"""Calls over real HTTP through LiteLLM: answers, fallbacks, retries, cooldowns, refusals."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from thriftroute.router.stub import StubProvider
from thriftroute.router.stub_faults import Fault
from thriftroute.serve.calls.caller import Answer, Caller
from thriftroute.serve.calls.failures import UpstreamError
from thriftroute.serve.registry import Model
from thriftroute.serve.settings import Config

HELLO = [{"role": "user", "content": "hello there"}]
KEY = "sk-very-secret-key-123456"
Make = Callable[..., Caller]


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


def model(name: str, url: str, **changes: Any) -> Model:
    values: dict[str, Any] = {
        "name": name,
        "litellm_model": f"openai/{name}",
        "cost_key": name,
        "input_price": 1e-6,
        "output_price": 2e-6,
        "cached_input_price": 5e-7,
        "context_window": 1000,
        "max_output_tokens": None,
        "capabilities": frozenset(),
        "tags": frozenset(),
        "bundle_model": None,
        "params": {"api_base": url, "api_key": KEY},
        **changes,
    }
    return Model(**values)


@pytest.fixture
def make(provider: StubProvider) -> Make:
    def made(models: Mapping[str, Model] | None = None, **calls: Any) -> Caller:
        pool = models or {name: model(name, provider.url) for name in ("weak", "strong", "other")}
        settings = {"retries": 0, "timeout_s": 10, **calls}
        config = Config.model_validate(
            {
                "models": [{"name": name} for name in pool],
                "strong": "strong",
                "weak": "weak",
                "calls": settings,
            }
        )
        return Caller(config, pool)

    return made


def call(caller: Caller, *models: str, **body: Any) -> Answer:
    names = models or ("weak", "strong", "other")
    return asyncio.run(caller.call(names, {"messages": HELLO, **body}, stream=False))


def refused(caller: Caller, *models: str, **body: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        call(caller, *models, **body)
    return caught.value


def tried(answer: Answer | UpstreamError) -> list[tuple[str, int | None, str | None]]:
    return [(a.model, a.status, a.error) for a in answer.attempts]


def test_an_answer_is_openais_json_with_all_that_the_provider_said(
    provider: StubProvider, make: Make
) -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "odd": [1]}
    usage = {
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    provider.fail(Fault(message=message, usage=usage, extra={"system_fingerprint": "f", "new": 1}))
    answer = call(make())
    assert answer.response is not None
    assert answer.response["choices"] == [
        {
            "index": 0,
            "message": {**message, "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert answer.response["system_fingerprint"] == "f"
    assert answer.response["new"] == 1
    told = answer.response["usage"]
    assert told["prompt_tokens_details"] == {"cached_tokens": 3}
    assert told["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert answer.model == "weak"
    (attempt,) = answer.attempts
    assert (attempt.status, attempt.error, attempt.usage) == (200, None, told)
    assert json.loads(json.dumps(answer.response)) == answer.response


def test_the_next_model_answers_where_one_fails(provider: StubProvider, make: Make) -> None:
    provider.always(Fault(status=500), model="weak")
    answer = call(make())
    assert answer.model == "strong"
    assert tried(answer) == [("weak", 500, "InternalServerError"), ("strong", 200, None)]

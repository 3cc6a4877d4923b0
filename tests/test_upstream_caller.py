"""Calls over real HTTP through LiteLLM: answers, fallbacks, retries, cooldowns, refusals."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from thriftroute.serve.registry import Model
from thriftroute.serve.upstream.caller import Answer, Caller
from thriftroute.serve.upstream.failures import UpstreamError
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.callers import (
    HELLO,
    KEY,
    POOL,
    make_caller,
    make_model,
    make_pool,
    run,
    tried,
)

WINDOW = "This model's maximum context length is 10 tokens. However, you requested 99 tokens."
POLICY = "Your request was rejected as a result of our safety system. content_policy_violation"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


@pytest.fixture
def caller(provider: StubProvider) -> Caller:
    return make_caller(make_pool(provider.url))


def call(caller: Caller, *models: str, **body: Any) -> Answer:
    request = {"messages": HELLO, **body}
    return run(caller, caller.call(models or POOL, request, stream=False))


def refused(caller: Caller, *models: str, **body: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        call(caller, *models, **body)
    return caught.value


def impatient(provider: StubProvider) -> dict[str, Model]:
    """A pool in which the weak model has a second."""
    params = {"api_base": provider.url, "api_key": KEY, "timeout": 1.0}
    pool = make_pool(provider.url)
    return {**pool, "weak": replace(pool["weak"], params=params)}


def asked(provider: StubProvider) -> list[str]:
    return [request.body["model"] for request in provider.requests]


def test_an_answer_is_openais_json_with_all_that_the_provider_said(
    provider: StubProvider, caller: Caller
) -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "odd": [1]}
    usage = {
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    provider.fail(Fault(message=message, usage=usage, extra={"system_fingerprint": "f", "new": 1}))
    answer = call(caller)
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
    assert answer.looked is None
    (attempt,) = answer.attempts
    assert (attempt.status, attempt.error, attempt.usage) == (200, None, told)
    assert json.loads(json.dumps(answer.response)) == answer.response
    assert json.loads(json.dumps(attempt.to_dict()))["usage"] == told


def test_usage_that_nobody_counted_is_none(provider: StubProvider, caller: Caller) -> None:
    nothing = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"))
    provider.fail(Fault(usage=nothing))
    answer = call(caller)
    assert answer.attempts[-1].usage is None
    assert answer.text == "Answer of weak."
    assert sorted(call(caller, tools=TOOLS).text) == sorted("f{}")


def test_tools_are_called_and_n_choices_given(caller: Caller) -> None:
    answer = call(caller, tools=TOOLS, n=2)
    assert answer.response is not None
    assert [choice["index"] for choice in answer.response["choices"]] == [0, 1]
    for choice in answer.response["choices"]:
        assert choice["message"]["content"] is None
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        (Fault(status=500), 500, "InternalServerError"),
        (Fault(status=503), 503, "ServiceUnavailableError"),
        (Fault(status=529), 529, "APIError"),
        (Fault(status=429), 429, "RateLimitError"),
        (Fault(status=408), 408, "Timeout"),
        (Fault(status=401), 401, "AuthenticationError"),
        (Fault(status=403), 403, "PermissionDeniedError"),
        (Fault(status=404), 404, "NotFoundError"),
        (Fault(drop=True), None, "ConnectionError"),
        (Fault(cut=0), None, "ConnectionError"),
        (Fault(hang_s=60), None, "Timeout"),
        (Fault(raw="{broken"), None, "BadAnswerError"),
        (Fault(raw="<html>gateway</html>"), None, "BadAnswerError"),
        (Fault(raw='{"error": {"message": "busy"}}'), None, "BadAnswerError"),
        (Fault(raw='{"choices": [{"index": 0, "message": null}]}'), None, "BadAnswerError"),
        (Fault(raw='{"id": "x", "choices": []}'), None, "BadAnswerError"),
    ],
)
def test_the_next_model_answers_where_one_fails(
    provider: StubProvider, fault: Fault, status: int | None, error: str
) -> None:
    # Only a test of waiting may be short of time: a busy machine takes long over any answer.
    pool = impatient(provider) if fault.hang_s else make_pool(provider.url)
    caller = make_caller(pool)
    provider.always(fault, model="weak")
    answer = call(caller)
    assert answer.model == "strong"
    assert tried(answer) == [("weak", status, error), ("strong", 200, None)]


def test_a_provider_that_cannot_be_reached_is_passed_over(provider: StubProvider) -> None:
    with StubProvider() as gone:
        url = gone.url
    pool = {**make_pool(provider.url), "weak": make_model("weak", url)}
    answer = call(make_caller(pool))
    assert tried(answer) == [("weak", None, "ConnectionError"), ("strong", 200, None)]


def test_the_same_model_is_tried_again_before_the_next(provider: StubProvider) -> None:
    caller = make_caller(make_pool(provider.url), retries=1)
    provider.fail(Fault(status=500))
    assert tried(call(caller)) == [("weak", 500, "InternalServerError"), ("weak", 200, None)]
    provider.fail(Fault(status=500), Fault(drop=True))
    assert [model for model, _, _ in tried(call(caller))] == ["weak", "weak", "strong"]


@pytest.mark.parametrize("fault", [Fault(status=401), Fault(hang_s=60)])
def test_what_a_second_try_cannot_mend_is_not_tried_again(
    provider: StubProvider, fault: Fault
) -> None:
    provider.fail(fault, model="weak")
    pool = impatient(provider) if fault.hang_s else make_pool(provider.url)
    caller = make_caller(pool, retries=3)
    assert [model for model, _, _ in tried(call(caller))] == ["weak", "strong"]


def test_a_provider_that_asks_for_a_long_wait_is_left_alone(provider: StubProvider) -> None:
    caller = make_caller(make_pool(provider.url), retries=1)
    provider.fail(Fault(status=429, headers={"Retry-After": "30"}))
    assert [model for model, _, _ in tried(call(caller))] == ["weak", "strong"]
    provider.fail(Fault(status=429, headers={"Retry-After": "0"}))
    assert [model for model, _, _ in tried(call(caller))] == ["weak", "weak"]


def test_a_wrong_request_is_refused_in_the_providers_words_and_goes_no_further(
    provider: StubProvider, caller: Caller
) -> None:
    said = f"temperature is too high for hello there; your key is {KEY}, Bearer abcdefgh12345678"
    provider.fail(Fault(status=400, error=said))
    error = refused(caller)
    assert (error.status, error.code, error.final) == (400, "upstream_rejected", True)
    assert asked(provider) == ["weak"]
    # What may be written down does not quote the provider, which may quote the prompt.
    assert str(error) == "model 'weak' rejected the request"
    body = error.to_dict()["error"]
    assert body["type"] == "invalid_request_error"
    assert "temperature is too high for hello there" in body["message"]
    assert "litellm" not in body["message"]
    assert KEY not in body["message"]
    assert "abcdefgh" not in body["message"]
    assert not caller.cooling()


def test_a_prompt_refused_for_its_content_goes_no_further(
    provider: StubProvider, caller: Caller
) -> None:
    provider.fail(Fault(status=400, error=POLICY))
    error = refused(caller)
    assert (error.status, error.code) == (400, "content_policy_violation")
    assert asked(provider) == ["weak"]


def test_a_prompt_too_long_goes_to_the_next_larger_window(provider: StubProvider) -> None:
    pool = make_pool(provider.url)
    pool["other"] = replace(pool["other"], context_window=2000)
    caller = make_caller(pool)
    provider.always(Fault(status=400, error=WINDOW), model="weak")
    answer = call(caller)
    assert tried(answer) == [("weak", 400, "ContextWindowExceededError"), ("other", 200, None)]
    assert not caller.cooling()
    provider.always(Fault(status=400, error=WINDOW), model="other")
    error = refused(caller)
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert asked(provider)[2:] == ["weak", "other"]


@pytest.mark.parametrize(
    ("weak", "strong", "status", "code"),
    [
        (Fault(status=500), Fault(status=500), 502, "upstream_failed"),
        (Fault(status=401), Fault(drop=True), 502, "upstream_failed"),
        (Fault(status=429), Fault(status=500), 502, "upstream_failed"),
        (Fault(hang_s=60), Fault(hang_s=60), 504, "upstream_timeout"),
        (Fault(status=503), Fault(status=503), 503, "upstream_unavailable"),
    ],
)
def test_where_no_model_answers_the_client_reads_each_cause(
    provider: StubProvider, weak: Fault, strong: Fault, status: int, code: str
) -> None:
    limits = {"timeout_s": 0.3} if weak.hang_s else {}
    caller = make_caller(make_pool(provider.url), **limits)
    provider.always(weak, model="weak")
    provider.always(strong, model="strong")
    error = refused(caller, "weak", "strong")
    assert (error.status, error.code, error.final) == (status, code, False)
    told = error.to_dict()["error"]["message"]
    assert "weak: " in told
    assert "strong: " in told
    assert KEY not in told
    assert provider.url not in told
    assert [attempt.model for attempt in error.attempts] == ["weak", "strong"]


def test_where_all_are_rate_limited_the_client_learns_when_to_come_back(
    provider: StubProvider, caller: Caller
) -> None:
    provider.fail(
        Fault(status=429, headers={"Retry-After": "40"}),
        Fault(status=429, headers={"Retry-After": "7"}),
    )
    error = refused(caller, "weak", "strong")
    assert (error.status, error.code) == (429, "upstream_rate_limited")
    assert error.headers == {"Retry-After": "7"}


def test_a_failing_model_cools_down_and_is_asked_only_where_no_other_answers(
    provider: StubProvider,
) -> None:
    caller = make_caller(make_pool(provider.url), failures_to_cool=2, cooldown_s=1000)
    provider.always(Fault(status=500), model="weak")
    call(caller)
    assert not caller.cooling()
    call(caller)
    assert set(caller.cooling()) == {"weak"}
    assert 0 < caller.cooling()["weak"] <= 1000
    assert tried(call(caller)) == [("strong", 200, None)]
    provider.always(Fault(status=500), model="strong")
    assert [model for model, _, _ in tried(call(caller))] == ["strong", "other"]
    provider.always(None, model="weak")
    answer = call(caller, "weak")
    assert tried(answer) == [("weak", 200, None)]
    assert "weak" not in caller.cooling()


def test_a_clients_body_reaches_none_of_litellms_settings(
    provider: StubProvider, caller: Caller
) -> None:
    with StubProvider() as elsewhere:
        odd = {
            "api_base": elsewhere.url,
            "base_url": elsewhere.url,
            "api_key": "theirs",
            "mock_response": "not asked",
            "fallbacks": ["openai/other"],
            "custom_llm_provider": "anthropic",
            "extra_headers": {"authorization": "theirs"},
            "extra_body": {"model": "strong"},
            "num_retries": 5,
            "timeout": 0.001,
            "no-log": True,
        }
        fine = {"metadata": {"a": "b"}, "top_k": 3, "chat_template_kwargs": {"thinking": True}}
        before = json.dumps(odd)
        answer = call(caller, **odd, **fine)
        assert elsewhere.requests == []
    assert json.dumps(odd) == before
    assert answer.model == "weak"
    (request,) = provider.requests
    assert request.api_key == KEY
    # The others go to the provider as they came: it may know them.
    assert request.body == {"model": "weak", "messages": HELLO, **fine}


def test_parameters_reach_the_provider_as_they_are(provider: StubProvider, caller: Caller) -> None:
    given = {
        "user": "u",
        "verbosity": "low",
        "thinking": {"type": "enabled"},
        "reasoning_effort": "low",
        "max_completion_tokens": 9,
        "logit_bias": {"1": 2},
        "seed": 1,
        "store": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    }
    call(caller, **given, temperature=None)
    assert provider.requests[0].body == {"model": "weak", "messages": HELLO, **given}


def test_a_model_that_litellm_knows_gets_hints_and_what_litellm_says_it_takes(
    provider: StubProvider,
) -> None:
    known = make_model("weak", provider.url, litellm_model="openai/gpt-4o-mini")
    caller = make_caller({"weak": known})
    hints = {"metadata": {"a": "b"}, "user": "u", "store": True}
    call(caller, "weak", **hints)
    assert provider.requests[0].body == {"model": "gpt-4o-mini", "messages": HELLO, **hints}
    assert refused(caller, "weak", verbosity="low").code == "unsupported_parameter"


def test_other_providers_get_no_hints_that_they_do_not_take(provider: StubProvider) -> None:
    pool = {"weak": make_model("weak", provider.url, provider="mistral")}
    call(make_caller(pool), "weak", user="u", prompt_cache_key="k", metadata={"a": "b"}, seed=1)
    sent = provider.requests[0].body
    assert not {"user", "prompt_cache_key", "metadata"} & set(sent)


def test_a_parameter_that_a_model_lacks_sends_the_request_on(provider: StubProvider) -> None:
    pool = make_pool(provider.url)
    pool["weak"] = make_model("weak", provider.url, provider="mistral")
    caller = make_caller(pool, failures_to_cool=1)
    answer = call(caller, logit_bias={"1": 2})
    assert tried(answer) == [("weak", 400, "UnsupportedParamsError"), ("strong", 200, None)]
    error = refused(caller, "weak", logit_bias={"1": 2})
    assert (error.status, error.code) == (400, "unsupported_parameter")
    assert "logit_bias" in error.to_dict()["error"]["message"]
    assert "drop_params" not in error.to_dict()["error"]["message"]
    assert not caller.cooling()


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": ["hello"]},
        {"response_format": [1]},
        {"messages": [{"role": "user", "content": [{"type": "foo"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"tool_choice": [1]},
    ],
)
def test_a_request_of_no_shape_cools_no_model(
    provider: StubProvider, wrong: dict[str, Any]
) -> None:
    caller = make_caller(make_pool(provider.url), failures_to_cool=1)
    error = refused(caller, **wrong)
    assert (error.status, error.code) == (400, "invalid_request")
    assert "Traceback" not in error.to_dict()["error"]["message"]
    assert provider.requests == []
    assert not caller.cooling()


def test_a_models_own_parameters_come_after_the_clients(provider: StubProvider) -> None:
    params = {
        "api_base": provider.url,
        "api_key": KEY,
        "temperature": 0.3,
        "seed": 7,
        "extra_body": {"top_k": 5},
    }
    caller = make_caller({"weak": make_model("weak", provider.url, params=params)})
    call(caller, "weak", seed=8, top_k=9, min_p=0.1)
    sent = provider.requests[0].body
    assert (sent["temperature"], sent["seed"], sent["top_k"], sent["min_p"]) == (0.3, 8, 5, 0.1)
    assert params["extra_body"] == {"top_k": 5}


def test_a_model_may_have_its_own_timeout(provider: StubProvider) -> None:
    provider.fail(Fault(hang_s=60), model="weak")
    answer = call(make_caller(impatient(provider), timeout_s=1000))
    assert tried(answer)[0] == ("weak", None, "Timeout")


def test_a_local_server_needs_no_key(
    provider: StubProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    params = {"api_base": provider.url}
    call(make_caller({"weak": make_model("weak", provider.url, params=params)}), "weak")
    assert provider.requests[0].api_key == "none"


def test_a_model_without_a_key_is_not_called_and_called_by_its_fault(
    provider: StubProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    pool = {**make_pool(provider.url), "weak": make_model("weak", provider.url, params={})}
    answer = call(make_caller(pool, retries=2), "weak", "strong")
    assert tried(answer) == [("weak", None, "NoApiKey"), ("strong", 200, None)]
    outcome = refused(make_caller(pool), "weak")
    assert "no model could answer: weak: the server has no API key for it" in str(outcome)


def test_cancelling_a_call_hangs_up(provider: StubProvider, caller: Caller) -> None:
    provider.fail(Fault(hang_s=60))

    async def leave() -> None:
        task = asyncio.create_task(caller.call(POOL, {"messages": HELLO}, stream=False))
        while not provider.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not provider.disconnects:
            await asyncio.sleep(0.01)

    run(caller, leave())
    assert asked(provider) == ["weak"]


def test_it_knows_how_long_a_model_takes(provider: StubProvider) -> None:
    caller = make_caller(impatient(provider))
    assert caller.latency("weak") is None
    provider.fail(Fault(hang_s=60), model="weak")
    call(caller)
    late = caller.latency("weak")
    assert late is not None
    assert late >= 1.0  # a model that lets one wait is no fast one
    answered = caller.latency("strong")
    assert answered is not None
    assert answered > 0


def test_neither_prompt_nor_key_is_printed_or_logged(
    provider: StubProvider,
    caller: Caller,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG, logger="thriftroute")
    provider.fail(Fault(status=500, error=f"{KEY} hello there"), Fault(drop=True), Fault(raw="{"))
    refused(caller)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    told = [r.getMessage() for r in caplog.records if r.name.startswith("thriftroute")]
    assert len(told) == 3
    everything = caplog.text + "".join(told)
    assert KEY not in everything
    assert "hello there" not in everything


def test_closed_connections_are_opened_again(caller: Caller) -> None:
    async def use() -> tuple[Answer, Answer]:
        before = await caller.call(POOL, {"messages": HELLO}, stream=False)
        await caller.close()
        return before, await caller.call(POOL, {"messages": HELLO}, stream=False)

    assert [answer.model for answer in run(caller, use())] == ["weak", "weak"]

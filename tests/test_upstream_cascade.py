"""The weak model first, the strong one where its answer is late or will not do."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from thriftroute.serve.cache.answers import replay
from thriftroute.serve.upstream.answer import Answer
from thriftroute.serve.upstream.caller import Caller
from thriftroute.serve.upstream.failures import UpstreamError
from thriftroute.serve.upstream.request import wants_usage
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.callers import HELLO, POOL, make_caller, make_pool, run, tried

WEAK_FAILS = ("weak", 500, "InternalServerError")

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


def make(provider: StubProvider, **cascade: Any) -> Caller:
    checks = ["empty", "refusal", "json", "schema"]
    settings = {"enabled": True, "checks": checks, **cascade}
    return make_caller(make_pool(provider.url), cascade=settings, failures_to_cool=2)


def call(caller: Caller, *models: str, look: bool = True, **body: Any) -> Answer:
    request = {"messages": HELLO, **body}
    return run(caller, caller.call(models or POOL, request, stream=False, look=look))


def read(caller: Caller, **body: Any) -> tuple[Answer, list[dict[str, Any]]]:
    async def all_of_it() -> tuple[Answer, list[dict[str, Any]]]:
        answer = await caller.call(POOL, {"messages": HELLO, **body}, stream=True, look=True)
        if answer.chunks is not None:
            return answer, [chunk async for chunk in answer.chunks]
        # As the server sends a whole answer to a client that streams.
        return answer, list(replay(answer.response or {}, wants_usage(body)))

    return run(caller, all_of_it())


def content(answer: Answer) -> str:
    assert answer.response is not None
    return str(answer.response["choices"][0]["message"]["content"])


def asked(provider: StubProvider) -> list[str]:
    return [request.body["model"] for request in provider.requests]


def says(text: str) -> Fault:
    return Fault(message={"role": "assistant", "content": text})


def test_a_weak_answer_that_will_do_is_the_answer(provider: StubProvider) -> None:
    answer = call(make(provider))
    assert (answer.model, (answer.looked is not None), content(answer)) == (
        "weak",
        True,
        "Answer of weak.",
    )
    assert asked(provider) == ["weak"]


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("{", "json"),
        ("[]", "schema"),
    ],
)
def test_an_answer_that_fails_a_check_sends_the_request_on_and_both_are_charged(
    provider: StubProvider, text: str, check: str
) -> None:
    provider.fail(says(text))
    schema = {"name": "x", "schema": {"type": "object"}}
    form = {"response_format": {"type": "json_schema", "json_schema": schema}}
    answer = call(make(provider), **form)
    assert answer.looked is not None
    assert json.loads(content(answer)) == {"model": "strong"}
    assert tried(answer) == [("weak", 200, f"rejected: {check}"), ("strong", 200, None)]
    for attempt in answer.attempts:
        assert attempt.usage is not None
        assert attempt.usage["total_tokens"] > 0


def test_the_strong_model_is_asked_next_wherever_it_stands(provider: StubProvider) -> None:
    provider.fail(says(""))
    assert call(make(provider), "weak", "other", "strong").model == "strong"
    assert asked(provider) == ["weak", "strong"]


def test_a_weak_answer_that_comes_late_is_not_waited_for(provider: StubProvider) -> None:
    caller = make(provider, timeout_s=1.0)
    provider.always(Fault(hang_s=60), model="weak")
    for _ in range(2):
        answer = call(caller)
        assert tried(answer) == [("weak", None, "Timeout"), ("strong", 200, None)]
    while len(provider.disconnects) < 2:  # the stub notices within hundredths of a second
        time.sleep(0.01)
    assert not caller.cooling()  # it was the cascade that would not wait: the model may be well


def test_a_weak_model_that_fails_is_passed_over(provider: StubProvider) -> None:
    caller = make(provider)
    provider.always(Fault(status=500), model="weak")
    for _ in range(2):
        assert tried(call(caller)) == [WEAK_FAILS, ("strong", 200, None)]
    # It cools down: the cascade does without it.
    answer = call(caller)
    assert (tried(answer), (answer.looked is not None)) == ([("strong", 200, None)], False)


def test_a_wrong_request_is_refused_once(provider: StubProvider) -> None:
    provider.fail(Fault(status=400, error="temperature is too high"))
    with pytest.raises(UpstreamError) as caught:
        call(make(provider))
    assert caught.value.status == 400
    assert asked(provider) == ["weak"]


def test_a_rejected_answer_is_better_than_none(provider: StubProvider) -> None:
    refusal = "I cannot help with that."
    provider.always(says(refusal), model="weak")
    provider.always(Fault(status=500), model="strong")
    provider.always(Fault(status=500), model="other")
    answer = call(make(provider))
    assert (answer.model, content(answer)) == ("weak", refusal)
    assert [model for model, _, _ in tried(answer)] == ["weak", "strong", "other"]
    answer, chunks = read(make(provider))
    assert answer.model == "weak"
    told = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert told == refusal
    assert [model for model, _, _ in tried(answer)] == ["weak", "strong", "other"]


def test_where_nothing_answers_all_attempts_are_told(provider: StubProvider) -> None:
    provider.status = 500
    with pytest.raises(UpstreamError) as caught:
        call(make(provider))
    assert [model for model, _, _ in tried(caught.value)] == ["weak", "strong", "other"]


def test_a_stream_gets_the_weak_answer_whole_after_it_was_judged(provider: StubProvider) -> None:
    answer, chunks = read(make(provider), stream_options={"include_usage": True})
    assert (answer.model, (answer.looked is not None)) == ("weak", True)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(c["delta"].get("content") or "" for c in choices) == "Answer of weak."
    assert choices[-1]["finish_reason"] == "stop"
    (attempt,) = answer.attempts
    assert chunks[-1]["usage"] == attempt.usage
    assert attempt.error is None
    assert attempt.seconds > 0
    _, chunks = read(make(provider))
    assert all(chunk["choices"] for chunk in chunks)


def test_a_stream_gets_the_strong_answer_as_it_comes(provider: StubProvider) -> None:
    provider.fail(says(""))
    answer, chunks = read(make(provider))
    assert (answer.model, (answer.looked is not None)) == ("strong", True)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(c["delta"].get("content") or "" for c in choices) == "Answer of strong."
    assert [request.body.get("stream") for request in provider.requests] == [None, True]
    assert [model for model, _, _ in tried(answer)] == ["weak", "strong"]
    assert all(attempt.usage for attempt in answer.attempts)


@pytest.mark.parametrize(
    ("models", "look", "enabled"),
    [
        (("weak", "strong"), False, True),
        (("weak", "strong"), True, False),
        (("strong", "weak"), True, True),
        (("weak", "other"), True, True),
        (("weak",), True, True),
    ],
)
def test_no_cascade_where_none_is_meant(
    provider: StubProvider, models: tuple[str, ...], look: bool, enabled: bool
) -> None:
    provider.always(says(""))
    answer = call(make(provider, enabled=enabled), *models, look=look)
    assert answer.looked is None
    assert asked(provider) == [models[0]]

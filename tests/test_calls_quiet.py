"""LiteLLM without its bookkeeping: the same answers, and none left out that somebody reads."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from litellm.integrations.custom_logger import CustomLogger
from thriftroute.providers.completion import load_litellm
from thriftroute.providers.quiet import CALLBACKS, Quiet
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quiet]:
    logger = logging.getLogger("LiteLLM")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # as the server has it
    # LiteLLM's own Router, where a test before this one had one, leaves its callbacks behind.
    for name in CALLBACKS:
        monkeypatch.setattr(load_litellm(), name, [])
    yield Quiet(load_litellm())
    logger.setLevel(before)


def request(provider: StubProvider, **more: Any) -> dict[str, Any]:
    where = {"api_base": provider.url, "api_key": "k", "timeout": 10.0, "max_retries": 0}
    return {"model": "openai/weak", "messages": HELLO, **where, **more}


def answers(quiet: Quiet, *requests: dict[str, Any]) -> list[Any]:
    """Of each request without and with what `quiet` gives: the answer, or the error's class."""
    litellm = load_litellm()

    async def ask(asked: dict[str, Any]) -> Any:
        try:
            return await litellm.acompletion(**asked)
        except Exception as error:  # noqa: BLE001 - that it is the same one is what is tested
            return type(error), str(error)

    async def all_of_them() -> list[Any]:
        found = []
        for each in requests:
            further = quiet.keywords(each)
            assert further
            found += [await ask(each), await ask({**each, **further})]
        # What LiteLLM logs of the first of each pair, in a task of its own, is to end first.
        await asyncio.sleep(0)
        await litellm.close_litellm_async_clients()
        litellm.in_memory_llm_clients_cache.flush_cache()
        return found

    return asyncio.run(all_of_them())


def test_what_is_sent_and_what_is_answered_is_the_same(
    provider: StubProvider, quiet: Quiet
) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}}
    provider.fail(*[Fault(usage=details, extra={"new": 1})] * 2)
    loud, silent = answers(quiet, request(provider, temperature=0.5, extra_body={"top_k": 1}))
    assert silent.model_dump() == loud.model_dump()
    first, second = provider.requests
    assert first.body == second.body
    assert first.api_key == second.api_key == "k"


def test_what_nobody_reads_is_not_made(provider: StubProvider, quiet: Quiet) -> None:
    litellm = load_litellm()
    asked = {**request(provider), "model": "openai/gpt-4o"}
    loud, silent = answers(quiet, asked)
    assert loud._hidden_params["response_cost"] > 0
    assert silent._hidden_params["response_cost"] is None
    assert litellm.callbacks == []


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_failures_are_the_same(provider: StubProvider, quiet: Quiet, status: int) -> None:
    provider.always(Fault(status=status))
    loud, silent = answers(quiet, request(provider))
    assert issubclass(loud[0], Exception)
    assert silent == loud


def test_who_logs_calls_still_does(
    provider: StubProvider, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(provider)
    assert quiet.keywords(asked)
    for name in ("callbacks", "success_callback", "_async_success_callback", "failure_callback"):
        with monkeypatch.context() as patch:
            patch.setattr(load_litellm(), name, [CustomLogger()])
            assert quiet.keywords(asked) == {}
    with monkeypatch.context() as patch:
        patch.setattr(load_litellm(), "max_budget", 1.0)
        assert quiet.keywords(asked) == {}
    logging.getLogger("LiteLLM").setLevel(logging.DEBUG)
    assert quiet.keywords(asked) == {}


def test_a_cache_of_litellms_own_reads_nothing(
    provider: StubProvider, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_litellm(), "success_callback", ["cache"])
    assert quiet.keywords(request(provider))


@pytest.mark.parametrize(
    "more",
    [
        {"callbacks": ["x"]},
        {"metadata": {"a": "b"}},
        {"messages": [*HELLO, {"role": "tool", "tool_call_id": "a", "content": "b"}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": []}]},
    ],
)
def test_calls_that_litellm_sets_more_up_for_are_left_to_it(
    provider: StubProvider, quiet: Quiet, more: dict[str, Any]
) -> None:
    assert quiet.keywords(request(provider, **more)) == {}


def test_a_version_that_makes_no_such_object_goes_without(
    provider: StubProvider, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litellm.litellm_core_utils.litellm_logging import Logging

    def other(self: Any, *, model: str) -> None:
        """As a constructor of another version may be."""

    with monkeypatch.context() as patch:
        patch.setattr(Logging, "__init__", other)
        assert quiet.keywords(request(provider)) == {}
    assert Quiet(load_litellm()).keywords(request(provider))

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from thriftroute.router.text import as_conversation
from thriftroute.serve.cache.sessions import Sessions, tool_calls
from thriftroute.serve.cache.store import MemoryStore
from thriftroute.serve.request import Asked
from thriftroute.serve.settings import Config
from thriftroute.tests import asking

USER = {"role": "user", "content": "what is the weather in Rome?"}


def config(sticky_s: float = 600.0) -> Config:
    models = [{"name": "strong"}, {"name": "weak"}]
    return Config.model_validate(
        {"models": models, "strong": "strong", "weak": "weak", "sticky_s": sticky_s}
    )


def asked(*messages: dict[str, Any], tenant: str = "acme", session: str | None = None) -> Asked:
    found = list(messages) or [USER]
    return asking.asked(
        as_conversation(found).last,
        messages=found,
        body={"messages": found},
        tenant=tenant,
        session=session,
    )


def calls(*ids: str) -> dict[str, Any]:
    made = [
        {"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ids
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def answer(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": i, "message": m} for i, m in enumerate(messages)]}


def result(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "rain"}


def with_sessions(work: Callable[[Sessions], Awaitable[None]], *, sticky_s: float = 600.0) -> None:
    asyncio.run(_run(work, sticky_s))


async def _run(work: Callable[[Sessions], Awaitable[None]], sticky_s: float) -> None:
    await work(Sessions(MemoryStore(), config(sticky_s)))


def test_a_session_is_on_its_last_model() -> None:
    async def work(sessions: Sessions) -> None:
        mine = asked(session="s")
        assert await sessions.held(mine) is None
        await sessions.remember(mine, "weak")
        await sessions.remember(mine, "strong", answer({"content": "hi"}))
        assert await sessions.held(mine) == "strong"
        assert await sessions.held(asked(session="other")) is None
        assert await sessions.held(asked(session="s", tenant="other")) is None
        assert await sessions.held(asked()) is None

    with_sessions(work)


def test_sessions_are_forgotten_in_time_and_off_at_zero() -> None:
    async def soon(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), "weak")
        await asyncio.sleep(0.1)
        assert await sessions.held(asked(session="s")) is None

    with_sessions(soon, sticky_s=0.05)

    async def off(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), "weak")
        assert await sessions.held(asked(session="s")) is None

    with_sessions(off, sticky_s=0)


def test_a_tools_result_goes_to_the_model_that_called_it() -> None:
    async def work(sessions: Sessions) -> None:
        await sessions.remember(asked(), "strong", answer(calls("a", "b")))
        assert (
            await sessions.held(asked(USER, calls("a", "b"), result("a"), result("b"))) == "strong"
        )
        assert (
            await sessions.held(asked(USER, calls("a", "b"), result("x"), result("a"))) == "strong"
        )
        assert await sessions.held(asked(USER, calls("c"), result("c"))) is None
        other = asked(USER, calls("a"), result("a"), tenant="other")
        assert await sessions.held(other) is None
        # The user has gone on: nothing is waited for.
        assert await sessions.held(asked(USER, calls("a"), result("a"), USER)) is None

    with_sessions(work, sticky_s=0)


def test_every_round_of_tools_is_remembered() -> None:
    async def work(sessions: Sessions) -> None:
        first = asked()
        await sessions.remember(first, "strong", answer(calls("a")))
        second = asked(USER, calls("a"), result("a"))
        assert await sessions.held(second) == "strong"
        await sessions.remember(second, "strong", answer(calls("b")))
        assert await sessions.held(asked(*second.messages, calls("b"), result("b"))) == "strong"

    with_sessions(work, sticky_s=0)


def test_ids_that_are_not_unique_meet_only_in_one_question() -> None:
    async def work(sessions: Sessions) -> None:
        other = {"role": "user", "content": "and in Paris?"}
        await sessions.remember(asked(), "strong", answer(calls("call_0")))
        await sessions.remember(asked(other), "weak", answer(calls("call_0")))
        assert await sessions.held(asked(USER, calls("call_0"), result("call_0"))) == "strong"
        assert await sessions.held(asked(other, calls("call_0"), result("call_0"))) == "weak"

    with_sessions(work)


def test_tool_calls_come_before_the_session() -> None:
    async def work(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), "strong", answer(calls("a")))
        await sessions.remember(asked({"role": "user", "content": "hi"}, session="s"), "weak")
        middle = asked(USER, calls("a"), result("a"), session="s")
        assert await sessions.held(middle) == "strong"
        unknown = asked(USER, calls("z"), result("z"), session="s")
        assert await sessions.held(unknown) == "weak"

    with_sessions(work)


def test_functions_of_the_old_kind_have_names() -> None:
    async def work(sessions: Sessions) -> None:
        call = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
        await sessions.remember(asked(), "strong", answer(call))
        found = {"role": "function", "name": "f", "content": "rain"}
        assert await sessions.held(asked(USER, call, found)) == "strong"
        assert await sessions.held(asked(USER, call, {**found, "name": "g"})) is None

    with_sessions(work)


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"choices": None},
        {"choices": [None, {"message": None}, {"message": {"tool_calls": 3}}]},
        {"choices": [{"message": {"tool_calls": [None, {}, {"id": 1}], "function_call": {}}}]},
    ],
)
def test_an_odd_answer_has_no_calls(completion: dict[str, Any]) -> None:
    assert tool_calls(completion) == []


def test_the_calls_of_all_choices_count_up_to_a_bound() -> None:
    assert tool_calls(answer(calls("a"), calls("b"))) == ["id a", "id b"]
    assert len(tool_calls(answer(calls(*map(str, range(1000)))))) == 64

    async def work(sessions: Sessions) -> None:
        many = [result(str(i)) for i in range(1000)]
        await sessions.remember(asked(), "strong", answer(calls("0")))
        assert await sessions.held(asked(USER, calls("0"), *many)) is None  # not looked for so far

    with_sessions(work)


def test_odd_names_are_no_trouble() -> None:
    async def work(sessions: Sessions) -> None:
        odd = asked(session="\ud800 \x00 " + "x" * 500)
        await sessions.remember(odd, "weak")
        assert await sessions.held(odd) == "weak"
        await sessions.remember(odd, "\ud800")
        assert await sessions.held(odd) == "?"

    with_sessions(work)

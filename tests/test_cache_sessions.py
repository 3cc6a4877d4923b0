import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from thriftroute.router.text import as_conversation
from thriftroute.serve.cache.sessions import Sessions
from thriftroute.serve.cache.store import RedisStore, SqliteStore, session_stores
from thriftroute.serve.config.settings import Config
from thriftroute.serve.policy.course import Course
from thriftroute.serve.request import ChatRequest, Principal, Session
from thriftroute.tests.helpers import asking
from thriftroute.tests.helpers.servers import redis_server

USER = {"role": "user", "content": "what is the weather in Rome?"}


def config(sticky_s: float = 600.0) -> Config:
    models = [{"name": "strong"}, {"name": "weak"}]
    return Config.model_validate(
        {"models": models, "strong": "strong", "weak": "weak", "sticky_s": sticky_s}
    )


def asked(
    *messages: dict[str, Any],
    tenant: str = "acme",
    key: str = "alice",
    session: str | None = None,
    user: str | None = None,
) -> ChatRequest:
    found = list(messages) or [USER]
    made = asking.asked(
        as_conversation(found).last,
        messages=found,
        body={"messages": found, "user": user},
        session=session,
    )
    return dataclasses.replace(made, principal=Principal(key=key, tenant=tenant))


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


async def held(sessions: Sessions, asked: ChatRequest) -> str | None:
    """The model that the conversation is on."""
    found = await sessions.held(asked)
    return None if found is None else found.model


async def _run(work: Callable[[Sessions], Awaitable[None]], sticky_s: float) -> None:
    await work(Sessions([SqliteStore(None)], config(sticky_s)))


def test_a_session_is_on_its_last_model() -> None:
    async def work(sessions: Sessions) -> None:
        mine = asked(session="s")
        assert await held(sessions, mine) is None
        await sessions.remember(mine, Course("weak"))
        await sessions.remember(mine, Course("strong"), answer({"content": "hi"}))
        assert await held(sessions, mine) == "strong"
        assert await held(sessions, asked(session="other")) is None
        assert await held(sessions, asked(session="s", tenant="other")) is None
        assert await held(sessions, asked()) is None

    with_sessions(work)


def test_sessions_are_forgotten_in_time_and_off_at_zero() -> None:
    async def soon(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), Course("weak"))
        await asyncio.sleep(0.1)
        assert await held(sessions, asked(session="s")) is None

    with_sessions(soon, sticky_s=0.05)

    async def off(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), Course("weak"))
        assert await held(sessions, asked(session="s")) is None

    with_sessions(off, sticky_s=0)


def test_a_tools_result_goes_to_the_model_that_called_it() -> None:
    async def work(sessions: Sessions) -> None:
        await sessions.remember(asked(), Course("strong"), answer(calls("a", "b")))
        both = asked(USER, calls("a", "b"), result("a"), result("b"))
        assert await held(sessions, both) == "strong"
        assert await held(sessions, asked(USER, calls("a", "b"), result("b"))) == "strong"
        assert await held(sessions, asked(result("a"))) is None  # of no answer
        assert await held(sessions, asked(USER, calls("c"), result("c"))) is None
        other = asked(USER, calls("a"), result("a"), tenant="other")
        assert await held(sessions, other) is None
        # The user has gone on: nothing is waited for.
        assert await held(sessions, asked(USER, calls("a"), result("a"), USER)) is None

    with_sessions(work, sticky_s=0)


def test_every_round_of_tools_is_remembered() -> None:
    async def work(sessions: Sessions) -> None:
        first = asked()
        await sessions.remember(first, Course("strong"), answer(calls("a")))
        second = asked(USER, calls("a"), result("a"))
        assert await held(sessions, second) == "strong"
        await sessions.remember(second, Course("strong"), answer(calls("b")))
        assert await held(sessions, asked(*second.messages, calls("b"), result("b"))) == "strong"

    with_sessions(work, sticky_s=0)


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "and in Paris?"}]},
        {"messages": [{"role": "system", "content": "You speak with Bob."}, USER]},
        {"messages": [{**USER, "content": "hi"}, {"role": "assistant", "content": "hi!"}, USER]},
        {"key": "bob"},
        {"session": "bob"},
        {"user": "bob"},
    ],
)
def test_ids_that_recur_are_nobody_elses(other: dict[str, Any]) -> None:
    async def work(sessions: Sessions) -> None:
        mine, whose = asked(), dict(other)
        messages = whose.pop("messages", [USER])
        await sessions.remember(mine, Course("strong"), answer(calls("call_0")))
        await sessions.remember(asked(*messages, **whose), Course("weak"), answer(calls("call_0")))
        end = calls("call_0"), result("call_0")
        assert await held(sessions, asked(USER, *end)) == "strong"
        assert await held(sessions, asked(*messages, *end, **whose)) == "weak"

    with_sessions(work, sticky_s=0)


def test_calls_with_other_arguments_are_another_conversation() -> None:
    async def work(sessions: Sessions) -> None:
        def call(arguments: str) -> dict[str, Any]:
            (made,) = calls("call_0")["tool_calls"]
            made["function"]["arguments"] = arguments
            return {"role": "assistant", "content": None, "tool_calls": [made]}

        rome = answer(call('{"city": "Rome", "days": 2}'))
        await sessions.remember(asked(), Course("strong"), rome)
        await sessions.remember(asked(), Course("weak"), answer(call('{"city": "Oslo"}')))
        # As clients write them that have read them.
        again = {**call('{"days":2,"city":"Rome"}'), "content": "", "refusal": None}
        assert await held(sessions, asked(USER, again, result("call_0"))) == "strong"
        assert await held(sessions, asked(USER, call("{broken"), result("call_0"))) is None

    with_sessions(work, sticky_s=0)


def test_tool_calls_come_before_the_session() -> None:
    async def work(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), Course("strong"), answer(calls("a")))
        aside = asked({"role": "user", "content": "hi"}, session="s")
        await sessions.remember(aside, Course("weak"))
        middle = asked(USER, calls("a"), result("a"), session="s")
        assert await held(sessions, middle) == "strong"
        unknown = asked(USER, calls("z"), result("z"), session="s")
        assert await held(sessions, unknown) == "weak"

    with_sessions(work)


def test_loops_side_by_side_in_a_named_session_keep_to_themselves() -> None:
    async def work(sessions: Sessions) -> None:
        def named(*messages: dict[str, Any]) -> ChatRequest:
            return dataclasses.replace(asked(*messages), session=Session("s", told=True))

        await sessions.remember(named(), Course("strong"), answer(calls("a")))
        await sessions.remember(named(), Course("weak"), answer(calls("b")))
        for id, model in (("a", "strong"), ("b", "weak")):
            assert await held(sessions, named(USER, calls(id), result(id))) == model
        # A new turn goes on with what was last.
        assert await held(sessions, named(USER, calls("a"), result("a"), USER)) == "weak"

    with_sessions(work, sticky_s=0)


def test_functions_of_the_old_kind_have_names() -> None:
    async def work(sessions: Sessions) -> None:
        call = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
        await sessions.remember(asked(), Course("strong"), answer(call))
        found = {"role": "function", "name": "f", "content": "rain"}
        assert await held(sessions, asked(USER, call, found)) == "strong"
        other = {**call, "function_call": {"name": "g", "arguments": "{}"}}
        assert await held(sessions, asked(USER, other, {**found, "name": "g"})) is None

    with_sessions(work)


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"choices": None},
        {"choices": [None, {"message": None}, {"message": {"tool_calls": 3}}]},
        {"choices": [{"message": {"tool_calls": [None, {}, {"id": 1}], "function_call": {}}}]},
        {"choices": [{"message": {"function_call": "f"}}]},
        {"choices": [{"message": {"function_call": {"arguments": "[" * 5000}}}]},
    ],
)
def test_an_odd_answer_is_no_trouble(completion: dict[str, Any]) -> None:
    async def work(sessions: Sessions) -> None:
        await sessions.remember(asked(session="s"), Course("strong"), completion)
        assert await held(sessions, asked(session="s")) == "strong"

    with_sessions(work)


def test_every_choice_can_be_gone_on_with() -> None:
    async def work(sessions: Sessions) -> None:
        await sessions.remember(asked(), Course("strong"), answer(calls("a"), calls("b")))
        for id in ("a", "b"):
            assert await held(sessions, asked(USER, calls(id), result(id))) == "strong"

    with_sessions(work, sticky_s=0)


def test_odd_names_are_no_trouble() -> None:
    async def work(sessions: Sessions) -> None:
        odd = asked(session="\ud800 \x00 " + "x" * 500)
        await sessions.remember(odd, Course("weak"))
        assert await held(sessions, odd) == "weak"
        await sessions.remember(odd, Course("\ud800"))
        assert await held(sessions, odd) == "\ud800"

    with_sessions(work)


def test_sessions_outlive_a_redis_that_goes_away() -> None:
    async def main() -> None:
        with redis_server() as server:
            made = config().model_copy(update={"redis_url": server.url})
            stores = session_stores(made)
            sessions = Sessions(stores, made)
            await sessions.remember(asked(session="a"), Course("strong"))
            server.stop()
            assert await held(sessions, asked(session="a")) == "strong"
            await sessions.remember(asked(session="b"), Course("weak"))
            assert await held(sessions, asked(session="b")) == "weak"
            assert isinstance(stores[0], RedisStore)
            assert stores[0].failures >= 1
            await sessions.close()

    asyncio.run(main())


def test_another_processs_word_counts_before_ones_own() -> None:
    async def main() -> None:
        shared = SqliteStore(None)
        one, other = (Sessions([shared, SqliteStore(None)], config()) for _ in range(2))
        await one.remember(asked(session="a"), Course("weak"))
        await other.remember(asked(session="a"), Course("strong"))
        assert await held(one, asked(session="a")) == "strong"

    asyncio.run(main())

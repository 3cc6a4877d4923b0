"""Which conversation a request belongs to."""

import uuid
from typing import Any

import pytest
from thriftroute.serve.session_key import HEADERS, session_of

SESSION = str(uuid.UUID(int=7))
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
TURNS = [SYSTEM, USER]
TOOLS = [{"type": "function", "function": {"name": "read"}}]


def key(
    session: str | None = None,
    headers: dict[str, str] | None = None,
    metadata: Any = None,
    messages: Any = TURNS,
    **body: Any,
) -> tuple[str, bool]:
    return session_of(session, headers or {}, body, metadata, messages)


def test_a_session_by_its_name_beats_all_else() -> None:
    assert key("mine", {HEADERS[0]: SESSION}) == ("mine", True)


@pytest.mark.parametrize("header", HEADERS)
def test_known_tools_name_their_session_in_a_header(header: str) -> None:
    name, told = key(headers={header: SESSION})
    assert told
    later = [{"role": "user", "content": "Summary of what came before compaction"}]
    assert key(headers={header: SESSION}, messages=later) == (name, told)
    assert key(headers={header: str(uuid.UUID(int=8))})[0] != name
    # A call aside, as for a title, has no tools, and is no step of the loop.
    assert key(headers={header: SESSION}, tools=TOOLS)[0] != name


@pytest.mark.parametrize(
    "user_id",
    [f"user_ab_account_cd_session_{SESSION}", f'{{"device_id": "x", "session_id": "{SESSION}"}}'],
)
def test_claude_code_names_it_in_its_user_id_too(user_id: str) -> None:
    assert key(metadata={"user_id": user_id}) == key(headers={HEADERS[0]: SESSION})


def test_else_its_beginning_is_its_key_and_no_name() -> None:
    name, told = key()
    assert not told
    more = [*TURNS, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]
    assert key(messages=more) == (name, False)
    others = [
        key(messages=[SYSTEM, {"role": "user", "content": "Ho"}]),
        key(messages=[{"role": "system", "content": "Be long."}, USER]),
        key(tools=TOOLS),
        key(user="ada"),
        key(metadata={"user_id": "ada"}),
        key(prompt_cache_key="k"),
    ]
    assert len({name, *(other[0] for other in others)}) == 7


def test_marks_of_caches_and_tool_call_ids_are_no_part_of_it() -> None:
    billing = {"type": "text", "text": "x-anthropic-billing-header: cch=1"}
    marked = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    plain = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    system = {"role": "system", "content": [billing, marked]}
    assert key(messages=[system, USER]) == key(messages=[plain, USER])
    call = {"role": "tool", "tool_call_id": "call_0", "content": "x"}
    assert key(messages=[*TURNS, call]) == key()


@pytest.mark.parametrize("metadata", [None, "text", {"user_id": 5}, []])
def test_whatever_metadata_is(metadata: Any) -> None:
    assert key(metadata=metadata) == key()

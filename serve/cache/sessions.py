"""What is known of a conversation: by its session's name, or by its messages up to tool calls.

Nothing of a conversation is kept, only hashes, numbers and names of models. All are the tenant's
own. The id of a tool call alone says nothing: some providers number the calls of each answer from
0.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.settings import Config
from ..policy.course import Course
from ..request import ChatRequest
from .key import canonical
from .store import Store

# How long a tool may take, and its conversation still finds its model; and how long an agent's
# session may rest: no prompt cache of a provider is counted on for longer.
TOOLS_S = 3600.0


class Sessions:
    """Remembers them in all stores, of which the first that knows one is believed: another
    process may have written to a shared one since. Never raises."""

    def __init__(self, stores: Sequence[Store], config: Config) -> None:
        self._stores = stores
        self._sticky_s = config.sticky_s

    async def held(self, asked: ChatRequest) -> Course | None:
        """What is known of the conversation: in the middle of tool calls since the answer that made
        them, else of its session. Whether its model is still in the pool is yours to see."""
        keys = []
        last = asked.results_from - 1
        if 0 <= last < len(asked.messages) - 1:  # it ends with the results of that answer's calls
            keys.append(_loop_key(asked, asked.messages[:last], asked.messages[last]))
        session = asked.session
        if session is not None and (session.told or asked.goes_on):
            keys += self._session_keys(asked, asked.is_agents)
        for key in keys:
            for store in self._stores:
                if (found := await store.get(key)) is not None:
                    return Course.read(found)
        return None

    async def remember(
        self, asked: ChatRequest, course: Course, completion: Mapping[str, Any] | None = None
    ) -> None:
        """Note the course up to the answer to `asked`, and which tool calls that answer made."""
        choices = (completion or {}).get("choices")
        messages = [choice.get("message") for choice in _mappings(choices)]
        notes = [
            (_loop_key(asked, asked.messages, message), TOOLS_S)
            for message in _mappings(messages)
            if _calls(message)
        ]
        agents = asked.is_agents or bool(notes)
        ttl_s = max(self._sticky_s, TOOLS_S) if agents else self._sticky_s
        notes += [(key, ttl_s) for key in self._session_keys(asked, agents)]
        if not notes:
            return
        value = course.written()
        for store in self._stores:
            await asyncio.gather(*(store.set(key, value, ttl_s) for key, ttl_s in notes))

    async def close(self) -> None:
        """Close the stores."""
        await asyncio.gather(*(store.close() for store in self._stores))

    def _session_keys(self, asked: ChatRequest, agents: bool) -> list[str]:
        session, who = asked.session, asked.principal
        if session is None or not (agents or self._sticky_s > 0):
            return []
        return [_hash("session", who.tenant, who.key, session.name)]


def _mappings(items: object) -> list[Mapping[str, Any]]:
    known = items if isinstance(items, list) else []
    return [item for item in known if isinstance(item, Mapping)]


def _calls(message: Mapping[str, Any]) -> list[list[object]]:
    """The calls that a message makes: id, name and arguments of each."""
    made = [(call.get("id"), call.get("function")) for call in _mappings(message.get("tool_calls"))]
    if message.get("function_call"):  # of the old kind, without an id
        made.append((None, message["function_call"]))
    found = []
    for id, function in made:
        told = function if isinstance(function, Mapping) else {}
        arguments = told.get("arguments")
        with contextlib.suppress(ValueError, RecursionError):  # clients read and rewrite them
            read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
            arguments = json.dumps(read, sort_keys=True)
        found.append([id, told.get("name"), str(arguments)])
    return found


def _loop_key(
    asked: ChatRequest, before: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]
) -> str:
    """Of whom and of the whole conversation, as far as clients send it back as it was: without the
    marks of prompt caches, which they move from step to step. Where a tool names its session, that
    name, its length and the calls are enough."""
    who, user = asked.principal, asked.body.get("user")
    if asked.session is not None and asked.session.told and asked.options.session is None:
        return _hash("loop", who.tenant, who.key, asked.session.name, len(before), _calls(answer))
    said = hashlib.sha256()
    for message in before:
        content, call = message.get("content"), message.get("tool_call_id") or message.get("name")
        said.update(f"\n{message.get('role')} {call}".encode(errors="surrogatepass"))
        for part in content if isinstance(content, list) else (content or "",):
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):  # long ones go in as they are
                said.update(f"\n{len(text)} ".encode() + text.encode(errors="surrogatepass"))
            else:
                plain = {**part, "cache_control": None} if isinstance(part, dict) else part
                said.update(canonical(plain, sort=True))
        if message.get("tool_calls") or message.get("function_call"):
            made = (message.get("tool_calls"), message.get("function_call"))
            said.update(repr(made).encode(errors="surrogatepass"))
    told = (asked.options.session, user, said.hexdigest(), _calls(answer))
    return _hash("loop", who.tenant, who.key, *told)


def _hash(*parts: object) -> str:
    return hashlib.sha256(canonical(parts, sort=True)).hexdigest()

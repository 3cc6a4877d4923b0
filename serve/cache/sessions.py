"""Which model a conversation is on: by its session's name, or by the tool calls that it waits for.

Nothing of a conversation is kept, only hashes and the model's name. Both are the tenant's own.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..request import Asked
from ..settings import Config
from .store import Store

TOOLS_S = 3600.0  # how long a tool may take, and its conversation still finds its model
_MOST_CALLS = 64  # of one answer; who makes more loses the rest


class Sessions:
    """Remembers models in a store; never raises."""

    def __init__(self, store: Store, config: Config) -> None:
        self._store = store
        self._sticky_s = config.sticky_s

    async def held(self, asked: Asked) -> str | None:
        """The pool's name of the model that the conversation is on; None where it is on none.

        In the middle of tool calls it is the model that made them, else the session's. Whether that
        model is still in the pool, and fits, is the caller's to see.
        """
        if asked.in_tool_calls:
            for call in _answered_calls(asked):
                found = await self._store.get(_call_key(asked, call))
                if found is not None:
                    return found.decode(errors="replace")
        session = asked.options.session
        if session is None or self._sticky_s <= 0:
            return None
        found = await self._store.get(_session_key(asked, session))
        return None if found is None else found.decode(errors="replace")

    async def remember(
        self, asked: Asked, model: str, completion: Mapping[str, Any] | None = None
    ) -> None:
        """Note that `model` answered `asked`, and which tool calls its answer made."""
        value = model.encode(errors="replace")
        notes = {_call_key(asked, call): TOOLS_S for call in tool_calls(completion or {})}
        if asked.options.session is not None and self._sticky_s > 0:
            notes[_session_key(asked, asked.options.session)] = self._sticky_s
        if notes:
            await asyncio.gather(*(self._store.set(key, value, s) for key, s in notes.items()))


def tool_calls(completion: Mapping[str, Any]) -> list[str]:
    """The tool calls of an answer: their ids, or for functions of the old kind their names."""
    found: list[str] = []
    choices = completion.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if not isinstance(message, Mapping):
            continue
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, Mapping) and isinstance(call.get("id"), str):
                found.append(f"id {call['id']}")
        function = message.get("function_call")
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            found.append(f"name {function['name']}")
    return found[:_MOST_CALLS]


def _answered_calls(asked: Asked) -> Iterator[str]:
    """The calls whose results end the conversation. The first has the model, mostly."""
    for seen, message in enumerate(reversed(asked.messages)):
        if message.get("role") not in {"tool", "function"} or seen == _MOST_CALLS:
            return
        if isinstance(message.get("tool_call_id"), str):
            yield f"id {message['tool_call_id']}"
        elif isinstance(message.get("name"), str):
            yield f"name {message['name']}"


def _call_key(asked: Asked, call: str) -> str:
    # Some providers number the calls of each answer from 0: an id alone is nobody's own. What the
    # user wrote last is the same as long as tools are called.
    return _hash("call", asked.principal.tenant, asked.text, call)


def _session_key(asked: Asked, session: str) -> str:
    return _hash("session", asked.principal.tenant, session)


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()

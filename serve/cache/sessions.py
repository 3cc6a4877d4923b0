"""Which model a conversation is on: by its session's name, or by its messages up to tool calls.

Nothing of a conversation is kept, only hashes and the model's name. Both are the tenant's own. The
id of a tool call alone says nothing: some providers number the calls of each answer from 0.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..config.settings import Config
from ..request import ChatRequest
from .store import Store

TOOLS_S = 3600.0  # how long a tool may take, and its conversation still finds its model


class Sessions:
    """Remembers models in all stores, of which the first that knows one is believed: another
    process may have written to a shared one since. Never raises."""

    def __init__(self, stores: Sequence[Store], config: Config) -> None:
        self._stores = stores
        self._sticky_s = config.sticky_s

    async def held(self, asked: ChatRequest) -> str | None:
        """The pool's name of the model that the conversation is on; None where it is on none.

        In the middle of tool calls it is the model that made them, else the session's. Whether that
        model is still in the pool, and fits, is the caller's to see.
        """
        keys = []
        last = len(asked.messages) - 1
        while last >= 0 and asked.messages[last].get("role") in {"tool", "function"}:
            last -= 1
        if 0 <= last < len(asked.messages) - 1:  # it ends with the results of that answer's calls
            keys.append(_loop_key(asked, asked.messages[:last], asked.messages[last]))
        keys += self._session_keys(asked)
        for key in keys:
            for store in self._stores:
                found = await store.get(key)
                if found is not None:
                    return found.decode(errors="replace")
        return None

    async def remember(
        self, asked: ChatRequest, model: str, completion: Mapping[str, Any] | None = None
    ) -> None:
        """Note that `model` answered `asked`, and which tool calls its answer made."""
        value = model.encode(errors="replace")
        choices = (completion or {}).get("choices")
        messages = [choice.get("message") for choice in _mappings(choices)]
        notes = [
            (_loop_key(asked, asked.messages, message), TOOLS_S)
            for message in _mappings(messages)
            if any(_calls(message))
        ]
        notes += [(key, self._sticky_s) for key in self._session_keys(asked)]
        for store in self._stores:
            await asyncio.gather(*(store.set(key, value, ttl_s) for key, ttl_s in notes))

    async def close(self) -> None:
        """Close the stores."""
        await asyncio.gather(*(store.close() for store in self._stores))

    def _session_keys(self, asked: ChatRequest) -> list[str]:
        session = asked.options.session
        if session is None or self._sticky_s <= 0:
            return []
        return [_hash("session", asked.principal.tenant, session)]


def _mappings(items: object) -> Iterator[Mapping[str, Any]]:
    return (
        item for item in (items if isinstance(items, list) else ()) if isinstance(item, Mapping)
    )


def _calls(message: Mapping[str, Any]) -> Iterator[str]:
    """The calls that a message makes: id, name and arguments of each."""
    for call in _mappings(message.get("tool_calls")):
        yield from (str(call.get("id")), *_function(call.get("function")))
    if message.get("function_call"):  # of the old kind, without an id
        yield from _function(message["function_call"])


def _function(function: object) -> tuple[str, str]:
    if not isinstance(function, Mapping):
        return "", ""
    arguments = function.get("arguments")
    name = str(function.get("name"))
    try:  # clients read them and write them anew
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        return name, json.dumps(read, sort_keys=True)
    except (ValueError, RecursionError):
        return name, str(arguments)


def _loop_key(
    asked: ChatRequest, before: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]
) -> str:
    """Of whom and of the whole conversation, as far as clients send it back as it was."""
    who, options = asked.principal, asked.options
    parts = ["loop", who.tenant, who.key, options.session or "", _plain(asked.body.get("user"))]
    for message in before:
        result = message.get("tool_call_id") or message.get("name")
        parts += [str(message.get("role")), _plain(message.get("content") or ""), _plain(result)]
        parts += _calls(message)
    return _hash(*parts, "answer", *_calls(answer))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()

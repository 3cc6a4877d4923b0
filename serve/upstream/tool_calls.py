"""The tool calls in the pieces of a stream: each gets an index of its own.

OpenAI's clients, and the cache, put the pieces of one index together. Some providers send every
call at index 0, or at none, or leave out the ids.
"""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class _Call:
    at: object  # the provider's own index
    id: object = None
    name: object = None
    arguments: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are a JSON object already, which nothing can be added to."""
        text = "".join(self.arguments).rstrip()
        try:
            return text.endswith("}") and isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            return False


class Numbering:
    """The tool calls of one choice of a stream, in the order in which they begin."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def number(self, pieces: list[dict[str, Any]]) -> None:
        """Set the `index` of each of a delta's `tool_calls`: one of its own for each call."""
        for piece in pieces:
            function = piece.get("function") or piece.get("custom") or {}
            found = self._find(piece, function)
            if found is None:
                found = len(self._calls)
                self._calls.append(_Call(piece.get("index")))
            call = self._calls[found]
            call.id = call.id or piece.get("id")
            call.name = call.name or function.get("name")
            if isinstance(function.get("arguments"), str):
                call.arguments.append(function["arguments"])
            piece["index"] = found

    def _find(self, piece: dict[str, Any], function: dict[str, Any]) -> int | None:
        """The call that the piece goes on with; None where it begins one."""
        at, id, name = piece.get("index"), piece.get("id"), function.get("name")
        here = [i for i, call in enumerate(self._calls) if at is None or call.at == at]
        named = [i for i in here if id and self._calls[i].id == id]
        if named or not here:
            return named[0] if named else None
        last = self._calls[here[-1]]
        if not name:  # no call begins without
            return here[-1]
        other = (id and last.id) or (last.name and name != last.name)
        return None if other or (function.get("arguments") and last.is_whole) else here[-1]

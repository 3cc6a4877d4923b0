"""What a call comes to: an answer, whole, or as a stream that is timed, counted and ended."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...providers.error_meaning import CutError, meaning_of
from ...providers.http_answer import HttpAnswer, Turns
from ...router.looking import Look
from . import wire
from .failures import Attempt, Health

logger = logging.getLogger(__name__)

Chunk = dict[str, Any]


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


@dataclass(slots=True)
class Numbering:
    """The tool calls of one choice of a stream, in the order in which they begin. Some providers
    send every call at index 0, or at none, or leave out the ids."""

    _calls: list[_Call] = field(default_factory=list)

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


@dataclass(slots=True, eq=False, repr=False)
class AnswerStream:
    """The chunks of one answer, as OpenAI's `chat.completion.chunk` dicts. Iterate once.

    A failure after `open` ends the stream with a chunk of the form {"error": ...}; nothing is
    raised. Closing it, or cancelling the task that iterates, closes the connection to the provider.
    `limit_s`: for all of it. `waited_s`: seconds spent waiting for the provider alone. `error`: a
    word for what broke it off. `usage`: once the provider has said it.
    """

    model: str
    source: Any
    http: HttpAnswer
    health: Health
    limit_s: float
    waited_s: float
    tell_usage: bool
    marks: Mapping[str, Any]  # what every chunk says besides
    error: str | None = None
    status: int | None = 200
    usage: Mapping[str, Any] | None = None
    _wait_s: float = 0.0  # for the latest piece
    _turns: Turns = field(default_factory=Turns)
    _held: list[Chunk] = field(default_factory=list)
    _said: list[str] = field(default_factory=list)
    _begun: set[int] = field(default_factory=set)  # indexes of the choices that were seen
    _ended: set[int] = field(default_factory=set)  # of those with a finish reason
    _calls: dict[int, Numbering] = field(default_factory=dict)  # by the choice's index
    _parts: AsyncIterator[Chunk] = field(init=False)
    _chunks: AsyncGenerator[Chunk, None] = field(init=False)

    def __post_init__(self) -> None:
        self._parts = wire.pieces(self.source, self.http)
        self._chunks = self._run()

    @property
    def text(self) -> str:
        """What was said so far, of all choices, for an estimate where no usage came."""
        return "".join(self._said)

    @property
    def attempt(self) -> Attempt:
        """This call as it stands."""
        return Attempt(self.model, self.status, self.error, self.waited_s, self.usage)

    async def open(self) -> None:
        """Wait for the first piece that says something. Raises what it fails with, closed then."""
        try:
            while (chunk := await self._next()) is not None:
                self._held.append(chunk)
                if any(_says(choice) for choice in chunk.get("choices") or ()):
                    return
            raise CutError("the stream ended before its first piece")
        except BaseException:
            await self.aclose()
            raise

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks

    async def aclose(self) -> None:
        """End it, and close the connection to the provider. Closing twice does nothing."""
        # A generator that another task is in cannot be closed; without its source it soon ends.
        with contextlib.suppress(RuntimeError):
            await self._chunks.aclose()
        await self._release()

    async def _run(self) -> AsyncGenerator[Chunk, None]:
        last: Chunk = {}
        try:
            while (chunk := self._held.pop(0) if self._held else await self._next()) is not None:
                last = chunk
                yield {**chunk, **self.marks}
            if self._is_cut():
                raise CutError("the stream ended without a finish reason")
        except Exception as error:  # noqa: BLE001 - whatever broke it, the client is told
            failure = meaning_of(error, self.http)
            self.error, self.status = failure.name, failure.status
            # A client may ask for more than can be said in the time; only who falls silent fails.
            is_slow = failure.name == "Timeout" and self._wait_s < self.limit_s / 2
            if failure.counts and not is_slow:
                self.health.failed(self.model)
            logger.warning("model %r broke off its stream: %s", self.model, self.error)
        else:
            self.health.succeeded(self.model, self.waited_s)
        finally:
            await self._release()
        if self.error is not None:
            told = f"model {self.model!r} broke off its answer ({self.error}); what came before "
            broken = {"message": told + "is incomplete", "type": "server_error", "param": None}
            yield {"error": {**broken, "code": "upstream_stream_broken"}}
        elif self.tell_usage and self.usage is not None:
            head = {name: last.get(name) for name in ("id", "created", "model")}
            kind = {"object": "chat.completion.chunk"}
            yield {**head, **kind, "choices": [], "usage": dict(self.usage)}

    def _is_cut(self) -> bool:
        """At the end: whether something is missing. LiteLLM's wrapper ends one choice only."""
        if self.http.too_large or self.http.done:
            return self.http.too_large
        return not self._ended or (self.http.is_openais and self._ended < self._begun)

    async def _next(self) -> Chunk | None:
        """The next chunk with something in it; None at the end."""
        while True:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(max(0.0, self.limit_s - self.waited_s)):
                    raw = await anext(self._parts, None)
            finally:
                self._wait_s = time.perf_counter() - start
                self.waited_s += self._wait_s
            if raw is None:
                return None
            await self._turns.give()
            chunk = self._read(raw)
            http = self.http  # a finish reason of the wrapper's own: the provider gave none
            if self._ended and http.response is not None and not (http.done or http.ended):
                raise CutError("the stream ended without a finish reason")
            if chunk is not None:
                return chunk

    def _read(self, chunk: Chunk) -> Chunk | None:
        """Note what the chunk says; None where nothing is left to pass on."""
        usage = chunk.pop("usage", None)
        if usage and isinstance(usage, Mapping):
            self.usage = usage
        choices = chunk.get("choices") or []
        for choice in choices:
            index = choice.get("index", 0)
            self._begun.add(index)
            if choice.get("finish_reason"):
                self._ended.add(index)
            elif "finish_reason" in choice:  # some say "" in every piece
                choice["finish_reason"] = None
            delta = choice.get("delta") or {}
            if delta.get("tool_calls"):
                self._calls.setdefault(index, Numbering()).number(delta["tool_calls"])
            self._said.extend(words(delta))
        says = any(c.get("delta") or c.get("finish_reason") for c in choices)
        return chunk if says or "native" in chunk else None

    async def _release(self) -> None:
        source, self.source = self.source, None
        if source is None:
            return
        # The provider's connection first: LiteLLM's wrapper closes nothing that it did not open.
        for each in (self.http.response, source):
            try:
                if close := getattr(each, "aclose", None):
                    await close()
            except Exception as error:  # noqa: BLE001 - it is to be closed; how it fails says nothing
                logger.debug("closing a stream of %r: %s", self.model, type(error).__name__)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen in a weak answer. `escalated`: the strong model was asked; `why`, in words for
    the record; `look`: what the second look said, None where a check or the clock decided."""

    escalated: bool
    why: str
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`response`, an OpenAI `chat.completion` dict, or `chunks`, a stream whose first piece is
    there already, which must be read to its end or closed. `made`: every call that has ended.
    `looked`: where the weak model's answer was looked at."""

    model: str
    response: dict[str, Any] | None = None
    chunks: AnswerStream | None = None
    looked: Looked | None = None
    made: tuple[Attempt, ...] = ()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every call, in order; a stream's has its usage at its end. Whatever has usage has to be
        paid, whether it was the answer or not."""
        return self.made if self.chunks is None else (*self.made, self.chunks.attempt)

    @property
    def text(self) -> str:
        """What was said so far, for an estimate where the provider did not count."""
        if self.chunks is not None:
            return self.chunks.text
        choices = (self.response or {}).get("choices") or ()
        return "".join(word for c in choices for word in words(c.get("message") or {}))


def _says(choice: Mapping[str, Any]) -> bool:
    """True for a piece of an answer, or its end; False where only a role is named."""
    delta = choice.get("delta") or {}
    return bool(choice.get("finish_reason")) or any(delta[name] for name in delta if name != "role")


def words(delta: Mapping[str, Any]) -> list[str]:
    """What a message, or a piece of one, says: content, reasoning, names and arguments of calls."""
    said = [v for k, v in delta.items() if k != "role" and isinstance(v, str)]
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        said.extend(v for v in function.values() if isinstance(v, str))
    return said

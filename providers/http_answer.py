"""A provider's HTTP answer before LiteLLM reads it: its status, its size, whether it is all there.

LiteLLM (1.110) bounds no answer, and says neither whether a provider had answered when a call
failed, nor whether a stream came to its `[DONE]`. It calls nearly all providers through
`httpx.AsyncClient`, whatever carries the bytes below (aiohttp by default), but makes those clients
itself, with no setting that reaches all of them. So `install` gives httpx's own event hooks to
each client at its first request of a `WATCHED` call. Other requests pass as they are.
"""

import asyncio
import contextlib
import contextvars
import functools
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

# In a stream each token has an event of its own, of some 300 bytes and more.
STREAM_FACTOR = 8
# To read an answer takes LiteLLM up to 0.1 ms for each object of it, and no loop turns: lists and
# objects of a whole answer (log probabilities are many), and of one event; choices; tool calls.
MOST_OBJECTS = 200_000
_MOST_AT_ONCE = 5_000
_MOST_CHOICES = 128
_MOST_CALLS = 1_000
_STEP = 65_536  # bytes that are unpacked at once
_TURN_S = 0.005
_DRAIN_S = 0.1  # for the end of an answer after [DONE], with which its connection can be used again
_ENCODINGS = "gzip, deflate"  # those that can be unpacked step by step here
_DONE = re.compile(rb"[\r\n]data: ?\[DONE\]")
# Why an answer ends, in the words of each provider's API; within text the quotes are escaped.
_REASON = re.compile(
    rb'(?<!\\)"(?:(?:finish_reason|finishReason|stop_reason|stopReason|done_reason)"\s*:\s*"[^"]'
    rb'|(?:done|is_finished)"\s*:\s*true)'
)


class Turns:
    """Gives the event loop its turn where a provider has always more to read and nothing waits."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    async def give(self) -> None:
        """To be called for each piece."""
        if time.perf_counter() - self._last > _TURN_S:
            await asyncio.sleep(0)
            self._last = time.perf_counter()


class AnswerTooLargeError(Exception):
    """More bytes than an answer may have, unpacked, or more objects."""


class BadAnswerError(Exception):
    """A provider's answer with status 200 that is no completion."""


@dataclass(slots=True, eq=False)
class HttpAnswer:
    """What has come of one call. `limit`: the most bytes of an answer, unpacked; a stream may have
    `STREAM_FACTOR` times as many. `refers`: the request names what its provider has to look up, so
    that its client may have brought a failure about; `large`: it asks for more than one plain
    answer. `sent`: a request to the provider was begun. `status`: HTTP's, None before any answer.
    `done`: a stream came to its `[DONE]`; `ended`: it said why it ends. `too_large`: it was given
    up for its size. `parts`: the bytes of a whole answer, unpacked; of a stream nothing is kept."""

    limit: int
    refers: bool = False
    large: bool = False
    sent: bool = False
    status: int | None = None
    is_stream: bool = False
    done: bool = False
    ended: bool = False
    too_large: bool = False
    parts: list[bytes] = field(default_factory=list, repr=False)
    response: httpx.Response | None = field(default=None, repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the provider has answered, and calls its answer a success."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_openais(self) -> bool:
        """Whether OpenAI's own client asked for a chat: what comes has the form of its API."""
        if self.response is None:
            return False
        request = self.response.request
        is_chat = request.url.path.endswith("/chat/completions")
        return is_chat and "x-stainless-lang" in request.headers

    async def events(self) -> AsyncIterator[Any]:
        """The JSON of each event of a stream that nobody else has begun to read, up to `[DONE]`.

        Raises what httpx raises, ValueError, and BadAnswerError for an error in the stream.
        """
        assert self.response is not None
        pieces = self.response.aiter_bytes()
        data: list[bytes] = []
        async for line in _lines(pieces):
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
            if line or not data:
                continue
            said, data = b"\n".join(data), []
            if said.startswith(b"[DONE]"):
                with contextlib.suppress(TimeoutError, httpx.HTTPError):
                    async with asyncio.timeout(_DRAIN_S):
                        async for _ in pieces:
                            pass
                return
            event = json.loads(said)
            if event.get("error"):
                raise BadAnswerError("an error in the stream")
            yield event


# The call that this task, or one that started it, makes: its next answer is told and bounded, a
# stream also afterwards. Past the limit reading it raises AnswerTooLargeError.
WATCHED: contextvars.ContextVar[HttpAnswer | None] = contextvars.ContextVar("watched", default=None)


@functools.cache
def install() -> None:
    """Let `WATCHED` see this process's answers. Once is enough."""
    send = httpx.AsyncClient.send

    @functools.wraps(send)
    async def hooked(self: httpx.AsyncClient, *given: Any, **named: Any) -> httpx.Response:
        if WATCHED.get() is not None:
            hooks = self.event_hooks
            if _bound not in hooks["response"]:
                ask, got = [*hooks["request"], _ask], [*hooks["response"], _bound]
                self.event_hooks = {"request": ask, "response": got}
        return await send(self, *given, **named)

    setattr(httpx.AsyncClient, "send", hooked)  # noqa: B010 - for a type checker a method is final


def _answer_to(request: httpx.Request) -> HttpAnswer | None:
    """None for what is not the provider's: with GET LiteLLM gets what a client's address names,
    before it sends anything (afterwards it is where the provider has sent it on)."""
    answer = WATCHED.get()
    return answer if answer is not None and (answer.sent or request.method == "POST") else None


async def _ask(request: httpx.Request) -> None:
    if (answer := _answer_to(request)) is not None:
        answer.sent, answer.status = True, None
        request.headers["accept-encoding"] = _ENCODINGS


async def _bound(response: httpx.Response) -> None:
    """Before a byte of its body is read: what reads it gets it through `_Bounded`, unpacked."""
    answer = _answer_to(response.request)
    if answer is None:
        return
    kind = response.headers.get("content-type", "")
    answer.response, answer.status = response, response.status_code
    answer.is_stream = kind.startswith("text/event-stream")
    # Amazon's streams say it in packed pieces; their own format tells where one is cut.
    answer.done, answer.ended, answer.parts = False, "amazon" in kind, []
    encoding = response.headers.pop("content-encoding", "identity").lower()
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _Bounded(response.stream, encoding, answer)


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, encoding: str, answer: HttpAnswer) -> None:
        self._inner = inner
        self._unpack = _unpacker(encoding)
        self._answer = answer
        self._room = answer.limit * (STREAM_FACTOR if answer.is_stream else 1)
        self._objects = 0  # of a stream: since its last whole line

    async def __aiter__(self) -> AsyncIterator[bytes]:
        answer, tail, turns = self._answer, b"\n", Turns()
        async for packed in self._inner:
            for part in self._unpack(packed):
                await turns.give()
                self._room -= len(part)
                if self._room < 0 or self._has_too_many(part):
                    answer.too_large = True
                    raise AnswerTooLargeError
                tail += part
                answer.ended = answer.ended or _REASON.search(tail) is not None
                if answer.is_stream:
                    answer.done = answer.done or _DONE.search(tail) is not None
                else:
                    answer.parts.append(part)
                tail = tail[-40:]
                yield part
        if not answer.is_stream and self._objects > _MOST_AT_ONCE and _is_crowded(answer.parts):
            answer.too_large = True
            raise AnswerTooLargeError

    def _has_too_many(self, part: bytes) -> bool:
        """Whether a piece brings more objects than may be. Brackets within text count too."""
        most = 0
        if self._answer.is_stream and (end := part.rfind(b"\n")) >= 0:
            most = self._objects + _brackets(part.split(b"\n", 1)[0])
            self._objects, part = 0, part[end:]
        self._objects += _brackets(part)
        at_once = _MOST_AT_ONCE if self._answer.is_stream else MOST_OBJECTS
        return max(most, self._objects) > at_once

    async def aclose(self) -> None:
        await self._inner.aclose()


def _brackets(part: bytes) -> int:
    return part.count(b"{") + part.count(b"[")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held: list[bytes] = []  # of a line that has not ended: joined once, however many they are
    async for piece in pieces:
        held.append(piece)
        if b"\n" in piece:
            *lines, rest = b"".join(held).split(b"\n")
            held = [rest]
            for line in lines:
                yield line.rstrip(b"\r")


def _is_crowded(parts: list[bytes]) -> bool:
    """Whether a chat completion has more choices, or tool calls, than anybody asks for."""
    try:
        choices = json.loads(b"".join(parts))["choices"]
        if len(choices) > _MOST_CHOICES:
            return True
        calls = (len(choice["message"].get("tool_calls") or ()) for choice in choices)
        return sum(calls) > _MOST_CALLS
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False  # whatever it is, it is no completion of many


def _unpacker(encoding: str) -> Callable[[bytes], Iterator[bytes]]:
    """What makes of each packed piece its unpacked ones, of `_STEP` bytes at most.

    Raises httpx.DecodingError where the encoding is none that was asked for, or the data is broken.
    """
    if encoding in {"", "identity"}:
        return lambda data: iter((data,))
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise httpx.DecodingError("an answer in an encoding that was not asked for")
    made: Any = None

    def unpack(data: bytes) -> Iterator[bytes]:
        nonlocal made
        # "deflate" is zlib's format by its definition, and raw with some servers.
        is_raw = encoding == "deflate" and data[:1] and data[0] & 0x0F != 8
        made = made or zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)
        try:
            part = b"."
            while data or len(part) == _STEP:  # a full step may have left more inside
                part = made.decompress(data, _STEP)
                data = made.unconsumed_tail
                yield part
        except zlib.error as error:
            raise httpx.DecodingError("an answer whose packing is broken") from error

    return unpack

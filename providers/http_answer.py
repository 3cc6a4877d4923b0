"""A provider's HTTP answer before LiteLLM reads it: its status, its size, whether it is all there.

LiteLLM (1.110) bounds no answer, and says neither whether a provider had answered when a call
failed, nor whether a stream came to its `[DONE]`. It calls nearly all providers through
`httpx.AsyncClient`, whatever carries the bytes below (aiohttp by default), but makes those clients
itself, with no setting that reaches all of them. So `install` gives httpx's own event hooks to
each client at its first request of a `WATCHED` call. Other requests pass as they are.
"""

import asyncio
import contextvars
import functools
import json
import re
import time
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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
ENCODINGS = "gzip, deflate"  # those that can be unpacked step by step here
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


class Body(Protocol):
    """A response whose body is read once, within the bounds of an `HttpAnswer`."""

    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102 - by names in any case

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...  # noqa: D102 - unpacked

    async def aclose(self) -> None: ...  # noqa: D102 - closes its connection


@dataclass(slots=True, eq=False)
class HttpAnswer:
    """What has come of one call. `limit`: the most bytes of an answer, unpacked; a stream may have
    `STREAM_FACTOR` times as many. `refers`: the request names what its provider has to look up, so
    that its client may have brought a failure about; `large`: it asks for more than one plain
    answer. `sent`: a request to the provider was begun. `status`: HTTP's, None before any answer.
    `done`: a stream came to its `[DONE]`; `ended`: it said why it ends. `too_large`: it was given
    up for its size. `parts`: the bytes of a whole answer, unpacked; of a stream nothing is kept.
    `is_openais`: what comes is a chat in the form of OpenAI's API."""

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
    is_openais: bool = False
    response: "Body | None" = field(default=None, repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the provider has answered, and calls its answer a success."""
        return self.status is not None and 200 <= self.status < 300

    def begin(self, response: "Body", status: int, kind: str) -> None:
        """An answer has come, with this status and content type; none of its body is read yet."""
        self.response, self.status = response, status
        self.is_stream = kind.startswith("text/event-stream")
        # Amazon's streams say it in packed pieces; their own format tells where one is cut.
        self.done, self.ended, self.parts = False, "amazon" in kind, []


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
        request.headers["accept-encoding"] = ENCODINGS


async def _bound(response: httpx.Response) -> None:
    """Before a byte of its body is read: what reads it gets it through `_Bounded`, unpacked."""
    answer = _answer_to(response.request)
    if answer is None:
        return
    answer.begin(response, response.status_code, response.headers.get("content-type", ""))
    request = response.request
    # OpenAI's own client says so, and asks for other things than chats too.
    is_chat = request.url.path.endswith("/chat/completions")
    answer.is_openais = is_chat and "x-stainless-lang" in request.headers
    encoding = response.headers.pop("content-encoding", "identity").lower()
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _Bounded(response.stream, encoding, answer)


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, encoding: str, answer: HttpAnswer) -> None:
        self._inner = inner
        self._pieces = bounded(inner, encoding, answer)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        await self._inner.aclose()


async def bounded(
    inner: AsyncIterable[bytes], encoding: str, answer: HttpAnswer
) -> AsyncIterator[bytes]:
    """The pieces of an answer, unpacked, as long as they keep to its bounds, and noted in it.

    Raises AnswerTooLargeError, and httpx.DecodingError for what cannot be unpacked."""
    unpack, tail, turns, count = _unpacker(encoding), b"\n", Turns(), _Objects(answer)
    room = answer.limit * (STREAM_FACTOR if answer.is_stream else 1)
    async for packed in inner:
        for part in unpack(packed):
            await turns.give()
            room -= len(part)
            if room < 0 or count.are_too_many(part):
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
    if not answer.is_stream and count.since > _MOST_AT_ONCE and _is_crowded(answer.parts):
        answer.too_large = True
        raise AnswerTooLargeError


class _Objects:
    """How many an answer has so far; of a stream: since its last whole line."""

    def __init__(self, answer: HttpAnswer) -> None:
        self.since = 0
        self._is_stream = answer.is_stream
        self._most = _MOST_AT_ONCE if answer.is_stream else MOST_OBJECTS

    def are_too_many(self, part: bytes) -> bool:
        """Whether a piece brings more objects than may be. Brackets within text count too."""
        most = 0
        if self._is_stream and b"\n" in part:
            first, *lines, part = part.split(b"\n")
            most = max(self.since + _brackets(first), *map(_brackets, lines), 0)
            self.since = 0
        self.since += _brackets(part)
        return max(most, self.since) > self._most


def _brackets(part: bytes) -> int:
    return part.count(b"{") + part.count(b"[")


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a body, each once it is whole."""
    held: list[bytes] = []  # of a line that has not ended: joined once, however many they are
    async for piece in pieces:
        held.append(piece)
        if b"\n" in piece:
            *whole, rest = b"".join(held).split(b"\n")
            held = [rest]
            for line in whole:
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

"""How a door hears from its client and answers it: as JSON or as server-sent events."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from ...providers import json_bytes
from ..errors import RefusedError
from .flow import Reply, RequestFlow, shutting_down
from .limits import headers_of

_JSON = (b"content-type", b"application/json")
WATCH_AFTER_S = 0.1  # seconds into a request's work: from then on it is seen that its client left
FAREWELL_S = 1.0  # for a client to take in that the server shuts down
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Dialect:
    """How a client's protocol has answers, chat completions as they are. One for each request.

    `named`: events have names, and no [DONE] after them."""

    named = False

    def body(self, completion: dict[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        return completion

    def events(self, chunk: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """What a chunk of a stream is sent as."""
        return (chunk,)

    def end(self) -> Iterable[dict[str, Any]]:
        """What is sent after the last one, where nothing failed."""
        return ()

    def error(self, told: dict[str, Any]) -> dict[str, Any]:
        """An error in a stream. told: {"error": ...}, as OpenAI has it."""
        return told


class Client:
    """Who sent one request. `started`: whether an answer to it has begun. `dialect`: its door's."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, leave: Callable[[], None]
    ) -> None:
        """leave: called where the client is gone, before what works on its answer is cancelled."""
        self.dialect = Dialect()
        self.headers = headers_of(scope)
        self.started = False
        self._receive = receive
        self._send = send
        self._leave = leave
        self._takes_events = False

    async def body(self) -> bytes | None:
        """The whole body; None where the client left meanwhile."""
        parts: list[bytes] = []
        while (message := await self._receive())["type"] == "http.request":
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)
        return None

    async def reply(self, work: Awaitable[Reply]) -> None:
        """Send what `work` gives, unless the client leaves first: then it is cancelled."""
        task, watch = asyncio.current_task(), None
        assert task is not None
        left = False

        def cancel(watch: asyncio.Task[None]) -> None:
            nonlocal left
            if not watch.cancelled():
                left = True
                self._leave()
                task.cancel()

        def begin() -> None:
            nonlocal watch
            watch = asyncio.create_task(self._left())
            watch.add_done_callback(cancel)

        # Not at once: most answers are there before a task to watch would have paid.
        timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, begin)
        try:
            await self._send_reply(await work)
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
        finally:
            timer.cancel()
            if watch is not None:
                watch.remove_done_callback(cancel)
                watch.cancel()

    async def _send_reply(self, reply: Reply) -> None:
        if reply.chunks is None:
            assert reply.body is not None
            await self.json(self.dialect.body(reply.body), reply.headers)
            return
        try:
            await self._send_events(reply)
        finally:
            await reply.chunks.aclose()

    async def json(self, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """Send this."""
        written = json_bytes.write(body)
        told = [(b"content-length", b"%d" % len(written)), _JSON, *_encoded(headers or {})]
        await self._put({"type": "http.response.start", "status": 200, "headers": told})
        await self._put({"type": "http.response.body", "body": written})

    async def farewell(self, error: RefusedError) -> None:
        """End the events with this one, unless the client takes in no more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                if self._takes_events:
                    await self._event(self.dialect.error(error.to_dict()))
                    await self._end()

    async def _send_events(self, reply: Reply) -> None:
        """The chunks, then what ends them."""
        assert reply.chunks is not None
        self._takes_events = True
        told = [*_EVENTS, *_encoded(reply.headers)]
        head = {"type": "http.response.start", "status": 200, "headers": told}
        await self._put(head)
        broken = False
        async for chunk in reply.chunks:
            broken = broken or "error" in chunk
            sent = (self.dialect.error(chunk),) if broken else self.dialect.events(chunk)
            for event in sent:
                await self._event(event)
            # Neither waits where a provider is fast: a full buffer would be sent in one turn of
            # the loop, and a few such streams hold up everybody for a second.
            await asyncio.sleep(0)
        for event in () if broken else self.dialect.end():
            await self._event(event)
        # [DONE] would tell clients that do not look at errors that they have it all.
        await self._end(b"" if broken or self.dialect.named else b"data: [DONE]\n\n")

    async def _event(self, event: dict[str, Any]) -> None:
        name = f"event: {event.get('type')}\n".encode() if self.dialect.named else b""
        body = name + b"data: " + json_bytes.write(event) + b"\n\n"
        await self._put({"type": "http.response.body", "body": body, "more_body": True})

    async def _end(self, body: bytes = b"") -> None:
        await self._put({"type": "http.response.body", "body": body, "more_body": False})

    async def _put(self, message: Message) -> None:
        self.started = True
        await self._send(message)

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Endpoint:
    """A door as an ASGI application: its clients are told where the server shuts down. `told`
    answers with an error."""

    def __init__(
        self,
        flow: RequestFlow,
        door: Callable[[RequestFlow, Client], Awaitable[None]],
        told: Callable[[RefusedError, Scope, Receive, Send], Awaitable[None]],
    ) -> None:
        self._flow = flow
        self._door = door
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        with self._flow.serving() as leave:
            client = Client(scope, receive, send, leave)
            try:
                await self._door(self._flow, client)
            except asyncio.CancelledError:  # uvicorn does so where `server.shutdown_s` is over
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                if client.started:
                    await client.farewell(shutting_down())
                else:
                    await self._told(shutting_down(), scope, receive, send)
            except RefusedError as error:
                if client.started:
                    raise
                await self._told(error, scope, receive, send)


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]

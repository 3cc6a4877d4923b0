"""A provider for the trials: well-behaved, slow or hostile, as the model's name says.

It runs in the trial's own event loop, on a free port of 127.0.0.1, and counts its connections. It
speaks HTTP/1.1 by hand, since most of what it sends no library would.
"""

import asyncio
import contextlib
import gzip
import io
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

ANSWER = "Yes."
PIECES = 20  # of a slow stream
PAUSE_S = 0.25  # before each of them
BOMB_BYTES = 800_000_000  # what the gzip bomb unpacks to
HUGE_BYTES = 50_000_000
USAGE = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
HOSTILE = ("huge", "endless", "drip", "gzip", "utf8", "malformed", "html", "nothing", "wrong")
ODD = ("slow", "flood", *HOSTILE)
_EVENT = "text/event-stream"


class Provider:
    """`url` is its api_base. Counts by model: `asked`, `left` (the server hung up before the end),
    `done`."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.bomb = b""  # of `bomb()`, which takes seconds: made by the trial that sends it
        self._acts = {name: getattr(self, f"_{name}") for name in ODD}

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator["Provider"]:
        """Listens until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; True where the connection may bring another."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        size = next(int(x.split(b":")[1]) for x in head if x.startswith(b"content-length"))
        body = json.loads(await reader.readexactly(size))
        model, stream = str(body["model"]), bool(body.get("stream"))
        self.asked[model] += 1
        act = self._acts.get(model)
        if act is None:
            await _send(writer, events() if stream else whole(), _EVENT if stream else "")
            self.done[model] += 1
            return True
        work = asyncio.create_task(act(writer, stream))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            whole_answer = work.done() and work.exception() is None
            (self.done if whole_answer else self.left)[model] += 1
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        return whole_answer

    # Models by their names. Each writes one answer.

    async def _slow(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        """A stream of PIECES, PAUSE_S apart."""
        await _chunked(writer, _EVENT)
        for index in range(PIECES):
            await asyncio.sleep(PAUSE_S)
            await _piece(writer, event(f"{index} "))
        await _piece(writer, event("", "stop") + usage_event() + b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _endless(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        """Never ends: pieces of a stream, or white space inside a JSON object."""
        await _chunked(writer, _EVENT if stream else "")
        while True:
            await _piece(writer, event("more ") if stream else b" " * 1024)
            await asyncio.sleep(0.01)

    async def _flood(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        """Never ends, as fast as it is read."""
        await _chunked(writer, _EVENT)
        while True:
            await _piece(writer, event("x" * 64_000))
            await asyncio.sleep(0)

    async def _huge(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        if not stream:
            await _send(writer, whole("x" * HUGE_BYTES))
            return
        await _chunked(writer, _EVENT)
        for _ in range(HUGE_BYTES // 1_000_000):
            await _piece(writer, event("x" * 1_000_000))
        await _piece(writer, event("", "stop") + b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _drip(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        """One byte at a time, 20 a second."""
        await _chunked(writer, _EVENT if stream else "")
        for byte in events() if stream else whole():
            await _piece(writer, bytes([byte]))
            await asyncio.sleep(0.05)

    async def _gzip(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        """0.8 MB that unpack to 800 MB, in the answer's text."""
        head = "content-encoding: gzip\r\n"
        await _send(writer, self.bomb, _EVENT if stream else "", head)

    async def _utf8(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        data = events() if stream else whole()
        await _send(writer, data.replace(b"Yes.", b"Y\xff\xfe\xc3("), _EVENT if stream else "")

    async def _malformed(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        data = b'data: {"choices": [\n\n' if stream else b'{"choices": [{"message": '
        await _send(writer, data, _EVENT if stream else "")

    async def _html(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        await _send(writer, b"<html>Please log in</html>", "text/html")

    async def _nothing(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        await _send(writer, b"", _EVENT if stream else "")

    async def _wrong(self, writer: asyncio.StreamWriter, stream: bool) -> None:
        """JSON of another shape, with status 200."""
        data = b'data: {"choices": 7}\n\n' if stream else b'{"choices": "none", "usage": []}'
        await _send(writer, data, _EVENT if stream else "")


def whole(text: str = ANSWER) -> bytes:
    """A completion as JSON."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps(
        {**head, "choices": [{**choice, "finish_reason": "stop"}], "usage": USAGE}
    ).encode()


def event(text: str, finish: str | None = None) -> bytes:
    """One piece of a stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return _data({"choices": [choice]})


def usage_event() -> bytes:
    """What a stream has used."""
    return _data({"choices": [], "usage": USAGE})


def events(text: str = ANSWER) -> bytes:
    """A whole stream."""
    return event(text) + event("", "stop") + usage_event() + b"data: [DONE]\n\n"


def bomb() -> bytes:
    """An answer whose text has BOMB_BYTES characters, packed."""
    head, tail = whole("\n").split(b"\\n")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as out:
        out.write(head)
        for _ in range(BOMB_BYTES // 1_000_000):
            out.write(b"x" * 1_000_000)
        out.write(tail)
    return packed.getvalue()


def _data(more: dict[str, Any]) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**head, **more}).encode() + b"\n\n"


async def _send(
    writer: asyncio.StreamWriter, data: bytes, kind: str = "", headers: str = ""
) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind or 'application/json'}\r\n{headers}"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()


async def _chunked(writer: asyncio.StreamWriter, kind: str) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind or 'application/json'}\r\n"
    writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    await writer.drain()


async def _piece(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()

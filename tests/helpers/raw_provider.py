"""A provider that answers with any bytes at all, for tests of what comes back.

with RawProvider(events({"content": "Hi"}, done=True)) as provider:
    ...  # provider.url, provider.requests
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = bytes | list[bytes] | Callable[[threading.Event], Iterable[bytes]]
HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


class RawProvider:
    """Each request gets the next of `answers`, the last of them again and again; `requests` are the
    bodies that came. `status` is that of all answers, `headers` of those that are no pair with
    their own. A callable is called with an event that is set when the provider closes."""

    def __init__(
        self,
        *answers: Body | tuple[Mapping[str, str], Body],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.closing = threading.Event()
        waiting = list(answers)
        lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                with lock:
                    provider.requests.append(json.loads(raw))
                    answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                own, body = answer if isinstance(answer, tuple) else (headers or {}, answer)
                pieces = body(provider.closing) if callable(body) else body
                pieces = [pieces] if isinstance(pieces, bytes) else pieces
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **own}.items():
                    self.send_header(name, value)
                self.end_headers()  # HTTP/1.0: the answer ends where the connection does
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        self.wfile.write(piece)
                        self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="raw-provider"
        )

    @property
    def url(self) -> str:
        """The `api_base` of a model that this provider serves."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "RawProvider":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


STREAM = {"Content-Type": "text/event-stream"}


def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """One event of a stream: a piece of its only choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({**HEAD, "choices": [choice], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def whole(message: Mapping[str, Any] | None, finish: str | None = "stop", **more: Any) -> bytes:
    """A chat completion of one choice."""
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    answer = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage, **more}
    return json.dumps(answer).encode()

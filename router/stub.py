"""A local OpenAI-compatible provider, for the demo and the tests: no network, no key.

    with StubProvider() as provider:
        litellm.completion(model="openai/strong", api_base=provider.url, api_key="k", messages=...)
        provider.requests[-1].body   # what arrived

It answers every model name by naming it, so that one can see which model was called.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived. `headers` has lower-case names; `body` is the parsed JSON."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: dict[str, Any] = field(repr=False)

    @property
    def api_key(self) -> str | None:
        """The bearer token, or None where there was none."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" and token else None


class StubProvider:
    """Serves `/v1/chat/completions` (plain and streamed) and `/v1/models` on 127.0.0.1.

    A call with `tools` is answered by a call of the first function (unless `tool_choice` is
    "none" or a tool's result is already the last message), `response_format` by JSON, everything
    else by "Answer of <model>.". Usage counts words, not tokens.

    `models` are what `/v1/models` lists; a completion is given for any name. `status` other than
    200 makes every completion fail with it, `delay_s` seconds pass before any answer; both can be
    set while it runs. `port` 0 takes a free one. Use as a context manager, or `start` and `close`.
    """

    def __init__(
        self,
        models: Sequence[str] = ("strong", "weak"),
        *,
        status: int = 200,
        delay_s: float = 0.0,
        port: int = 0,
    ) -> None:
        self.models = tuple(models)
        self.status = status
        self.delay_s = delay_s
        self._port = port
        self._received: list[Received] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> "StubProvider":
        """Bind and serve in a thread. Raises OSError where the port is taken."""
        if self._server is None:
            self._closing.clear()
            self._server = _Server(("127.0.0.1", self._port), self)
            self._thread = threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="stub"
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop, wait for running requests, and free the port. Closing twice does nothing."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        self._closing.set()
        server.shutdown()
        server.server_close()
        thread.join()

    def __enter__(self) -> "StubProvider":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The `api_base` to give to a client. Raises RuntimeError before `start`."""
        if self._server is None:
            raise RuntimeError("the stub provider is not running; use it in a `with` statement")
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def requests(self) -> list[Received]:
        """A copy of every completion request received so far, in order of arrival."""
        with self._lock:
            return list(self._received)

    def record(self, request: Received) -> None:
        """Called by the request handler."""
        with self._lock:
            self._received.append(request)

    def pause(self) -> None:
        """Wait `delay_s`, or less where the provider is being closed."""
        if self.delay_s > 0:
            self._closing.wait(self.delay_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the handlers, so that no socket is left open
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], provider: StubProvider) -> None:
        self.provider = provider
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: object) -> None:
        """A client that hangs up is no error of the stub's; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError | socket.timeout):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0: one request a connection, so that an idle client never holds up `close`.
    protocol_version = "HTTP/1.0"
    timeout = 10
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the stub runs inside tests and the demo."""

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            self._error(404, f"no such path: {self.path}")
            return
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "stub"}
            for name in self.server.provider.models
        ]
        self._json(200, {"object": "list", "data": rows})

    def do_POST(self) -> None:
        provider = self.server.provider
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.rstrip("/") != "/v1/chat/completions":
            self._error(404, f"no such path: {self.path}")
            return
        try:
            body = json.loads(raw)
            model, messages = body["model"], body["messages"]
        except (ValueError, TypeError, KeyError):
            self._error(400, "expected a JSON object with model and messages")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        provider.record(Received(self.path, headers, body))
        provider.pause()
        if provider.status != 200:
            self._error(provider.status, f"the stub was told to fail with {provider.status}")
            return
        message, reason = _answer(str(model), body)
        head = {"id": "chatcmpl-stub", "created": int(time.time()), "model": model}
        usage = _usage(messages, message)
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            self._json(
                200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            )
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        head["object"] = "chat.completion.chunk"
        for delta, finish in _deltas(message, reason):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            self._event(json.dumps({**head, "choices": [choice]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event(json.dumps({**head, "choices": [], "usage": usage}))
        self._event("[DONE]")

    def _event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, text: str) -> None:
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        error = {"message": text, "type": kind, "param": None, "code": None}
        self._json(status, {"error": error})


def _answer(model: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(assistant message, finish reason)."""
    functions = [tool["function"] for tool in body.get("tools") or () if "function" in tool]
    last = body["messages"][-1] if body["messages"] else {}
    if functions and body.get("tool_choice") != "none" and last.get("role") != "tool":
        call = {
            "id": "call_stub",
            "type": "function",
            "function": {"name": functions[0]["name"], "arguments": "{}"},
        }
        return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    if (body.get("response_format") or {}).get("type") in {"json_object", "json_schema"}:
        return {"role": "assistant", "content": json.dumps({"model": model})}, "stop"
    return {"role": "assistant", "content": f"Answer of {model}."}, "stop"


def _deltas(message: Mapping[str, Any], reason: str) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The message cut into (delta, finish reason) chunks: a role, a piece a word, a finish."""
    yield {"role": "assistant", "content": None if "tool_calls" in message else ""}, None
    for index, call in enumerate(message.get("tool_calls", ())):
        yield {"tool_calls": [{"index": index, **call}]}, None
    words = (message["content"] or "").split(" ")
    for index, word in enumerate(words if message["content"] else ()):
        yield {"content": word if index == 0 else f" {word}"}, None
    yield {}, reason


def _usage(messages: object, message: Mapping[str, Any]) -> dict[str, int]:
    prompt = len(json.dumps(messages).split())
    answer = len(json.dumps(message).split())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }

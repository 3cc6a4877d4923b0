"""A local OpenAI-compatible provider, for the demo and the tests: no network, no key.

    with StubProvider() as provider:
        litellm.completion(model="openai/strong", api_base=provider.url, api_key="k", messages=...)
        provider.requests[-1].body   # what arrived
    provider.fail(Fault(status=503), Fault(hang_s=60), model="weak")   # its next two answers

It answers every model name by naming it, so that one can see which model was called.
"""

import json
import socket
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .stub_answers import answer, deltas, logprobs, usage_of
from .stub_faults import Fault, is_gone, reset, wait

NO_HEADERS: Mapping[str, str] = {}
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
    else by "Answer of <model>.", `n` times. Usage counts words, not tokens. Above a temperature of
    0 each answer in plain text has a number, which the model, the messages, the `seed` and the
    choice's index decide. `logprobs` gives each word of a text a log-probability, by its hash.

    `models` are what `/v1/models` lists; a completion is given for any name. `status` other than
    200 makes every completion fail with it, `delay_s` seconds pass before any answer; both can be
    set while it runs. `fail` and `always` make single answers, or a model's, go wrong in further
    ways. `port` 0 takes a free one. Use as a context manager, or `start` and `close`.
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
        self.requests: list[Received] = []  # in order of arrival
        # The models whose clients hung up before they had the whole answer, in that order.
        self.disconnects: list[str] = []
        self.closing = threading.Event()  # handlers wait no longer
        self._next: defaultdict[str | None, deque[Fault]] = defaultdict(deque)
        self._always: dict[str | None, Fault | None] = {}
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def start(self) -> "StubProvider":
        """Bind and serve in a thread. Raises OSError where the port is taken."""
        if self._server is None:
            self.closing.clear()
            self._server = _Server(("127.0.0.1", self._port), self)
            self._server.thread.start()
        return self

    def close(self) -> None:
        """Stop, wait for running requests, and free the port. Closing twice does nothing."""
        server, self._server = self._server, None
        if server is not None:
            self.closing.set()
            server.shutdown()
            server.server_close()
            server.thread.join()

    def __enter__(self) -> "StubProvider":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The `api_base` to give to a client. Raises RuntimeError before `start`."""
        if self._server is None:
            raise RuntimeError("the stub provider is not running; use it in a `with` statement")
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def record(self, request: Received) -> None:
        """Called by the request handler."""
        self.requests.append(request)

    def fail(self, *faults: Fault, model: str | None = None) -> None:
        """The next answers (of `model`, else of any model) go wrong so, one after the other."""
        with self._lock:
            self._next[model].extend(faults)

    def always(self, fault: Fault | None, model: str | None = None) -> None:
        """All further answers (of `model`, else of any) go wrong so; None: they go right again."""
        with self._lock:
            self._always[model] = fault

    def fault(self, model: str) -> Fault:
        """Called by the request handler: how this answer goes wrong, which is then used up."""
        with self._lock:
            for name in (model, None):
                if self._next[name]:
                    return self._next[name].popleft()
            return self._always.get(model) or self._always.get(None) or Fault(status=self.status)


class _Server(ThreadingHTTPServer):
    """All its threads are daemons: a script that does not close it ends where its code ends."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], provider: StubProvider) -> None:
        self.provider = provider
        self._handlers: list[threading.Thread] = []
        super().__init__(address, _Handler)
        self.thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="stub", daemon=True
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, which closing waits for, so that no socket is left open: `socketserver`
        waits for threads alone that are no daemons."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self._handlers = [*(each for each in self._handlers if each.is_alive()), thread]
        thread.start()

    def server_close(self) -> None:
        """Free the port, and wait for the handlers."""
        super().server_close()
        for thread in self._handlers:
            thread.join()

    def handle_error(self, request: Any, client_address: object) -> None:
        """A client that hangs up is no error of the stub's; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError | socket.timeout):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    # One request a connection ("Connection: close"), so that an idle client never holds up `close`.
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the stub runs inside tests and the demo."""

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            return self._error(404, f"no such path: {self.path}")
        about = {"object": "model", "created": 0, "owned_by": "stub"}
        rows = [{"id": name, **about} for name in self.server.provider.models]
        return self._send(200, json.dumps({"object": "list", "data": rows}).encode())

    def do_POST(self) -> None:
        provider = self.server.provider
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.rstrip("/") != "/v1/chat/completions":
            self._error(404, f"no such path: {self.path}")
            return
        try:
            body = json.loads(raw)
            name, _, choices = str(body["model"]), body["messages"], max(1, int(body.get("n") or 1))
        except (ValueError, TypeError, KeyError):
            self._error(400, "expected a JSON object with model and messages")
            return
        self.close_connection = True  # also where no answer says so
        headers = {key.lower(): value for key, value in self.headers.items()}
        provider.record(Received(self.path, headers, body))
        fault = provider.fault(name)
        try:
            if not wait(self.connection, provider.delay_s + fault.hang_s, provider.closing):
                raise ConnectionAbortedError
            self._complete(name, body, choices, fault)
        except ConnectionError:  # the client's doing; the stub's own cuts raise nothing
            provider.disconnects.append(name)

    def _complete(self, model: str, body: Mapping[str, Any], choices: int, fault: Fault) -> None:
        if fault.drop:
            return reset(self.connection)
        if fault.status != 200:
            told = fault.error or f"the stub was told to fail with {fault.status}"
            return self._error(fault.status, told, fault.headers)
        if fault.raw is not None:
            return self._send(200, fault.raw.encode(), fault.headers)
        answers = [answer(model, body, index) for index in range(choices)]
        messages = [dict(fault.message or message) for message, _ in answers]
        reason = fault.finish or answers[0][1]
        head = {"id": "chatcmpl-stub", "created": int(time.time()), "model": model, **fault.extra}
        usage = usage_of(body["messages"], messages)
        usage = {k: v for k, v in {**usage, **fault.usage}.items() if v is not None}
        if body.get("stream"):
            head["object"] = "chat.completion.chunk"
            cut = zip(*(deltas(message, reason) for message in messages), strict=True)
            pieces = []
            for index, (delta, finish) in ((i, one) for row in cut for i, one in enumerate(row)):
                choice = {"index": index, "delta": delta, "finish_reason": finish}
                if body.get("logprobs"):
                    choice["logprobs"] = logprobs(delta.get("content"), body, fault)
                pieces.append({**head, "choices": [choice]})
            if (body.get("stream_options") or {}).get("include_usage") and usage:
                pieces.append({**head, "choices": [], "usage": usage})
            return self._stream(pieces, fault)
        each = [
            {
                "index": index,
                "message": message,
                "finish_reason": reason,
                "logprobs": logprobs(message.get("content"), body, fault),
            }
            for index, message in enumerate(messages)
        ]
        whole = {**head, "object": "chat.completion", "choices": each, "usage": usage}
        return self._send(200, json.dumps(whole).encode(), fault.headers, cut=fault.cut is not None)

    def _stream(self, pieces: Sequence[Mapping[str, Any]], fault: Fault) -> None:
        provider = self.server.provider
        self._head(200, "text/event-stream", {"Transfer-Encoding": "chunked", **fault.headers})
        for count, piece in enumerate(pieces):
            if count == fault.cut:
                break
            if not wait(self.connection, fault.pause_s, provider.closing):
                raise ConnectionAbortedError
            self._event(json.dumps(piece))
        if fault.cut is None or fault.cut >= len(pieces):
            self._event("[DONE]")
        elif fault.event is not None:
            self._event(fault.event)
        elif not fault.quiet:
            reset(self.connection)
            return
        self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _event(self, data: str) -> None:
        if is_gone(self.connection):  # a write to a closed connection fails only the second time
            raise ConnectionAbortedError
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()

    def _send(
        self,
        status: int,
        data: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        cut: bool = False,
    ) -> None:
        self._head(status, "application/json", {"Content-Length": str(len(data)), **headers})
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            reset(self.connection)

    def _error(self, status: int, text: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        error = {"message": text, "type": kind, "param": None, "code": None}
        self._send(status, json.dumps({"error": error}).encode(), headers)

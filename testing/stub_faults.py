"""What can go wrong with one answer of the stub provider."""

import select
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STEP_S = 0.01  # how often a waiting handler looks whether anyone still waits for it


@dataclass(frozen=True, slots=True)
class Fault:
    """One answer's faults; the default has none.

    - `status`, `error`, `headers`: an error as OpenAI words it, with this message and these headers
    - `drop`: the connection is reset without an answer
    - `hang_s`: so long passes before the first byte
    - `raw`: sent with status 200 as it is, as JSON's content type (a broken body)
    - `cut`: a stream is reset after so many pieces (0: after its headers), a plain answer in the
      middle; `quiet`: it ends instead as if it were complete, without its last event
    - `event`: a stream sends this as its next event at `cut`, and ends (as providers do that fail)
    - `pause_s`: passes before each piece of a stream
    - `message`, `finish`: instead of the answer's own message and finish reason
    - `logprobs`: False leaves them out where they were asked for; `logprob`: of each word instead
    - `usage`: further fields of usage (details of cached and reasoning tokens); None leaves a field
      out
    - `extra`: further fields of the answer, and of every piece of a stream
    """

    status: int = 200
    error: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    hang_s: float = 0.0
    raw: str | None = None
    cut: int | None = None
    quiet: bool = False
    event: str | None = None
    pause_s: float = 0.0
    message: Mapping[str, Any] | None = None
    finish: str | None = None
    logprobs: bool = True
    logprob: float | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def wait(connection: socket.socket, seconds: float, closing: threading.Event) -> bool:
    """Wait, or less where `closing` is set; False where the client hung up meanwhile."""
    left = seconds
    while left > 0 and not closing.wait(min(left, _STEP_S)):
        left -= _STEP_S
        if is_gone(connection):
            return False
    return True


def is_gone(connection: socket.socket) -> bool:
    """True where the client has closed its side: it reads no more."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def reset(connection: socket.socket) -> None:
    """Close in a way that the client sees as a failure, never as the end of the answer."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    except OSError:  # closed already: as reset as it can be
        return

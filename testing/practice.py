"""A local provider to practise on: it answers and judges by rules, for data/samples/own-logs.jsonl.

    python -m thriftroute.testing.practice --port 8765

OpenAI-compatible, on 127.0.0.1, with the models strong-sim, weak-sim and judge-sim; no network, no
key. What it says of quality is made up: see data/samples/README.md.
"""

import argparse
import hashlib
import json
import random
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .stub import Received, StubProvider
from .stub_faults import Fault

Messages = Sequence[Mapping[str, Any]]

LOG = Path(__file__).resolve().parent.parent / "data" / "samples" / "own-logs.jsonl"
DIFFICULTIES = LOG.with_name("own-logs-difficulty.json")
MODELS = ("strong-sim", "weak-sim", "judge-sim")
CONTACT = " Reach me at "
_QUALITY = re.compile(r"quality (-?\d+\.\d)")
_WIN = 2.55  # points of quality by which an answer must be better to win


class PracticeProvider(StubProvider):
    """The stub provider with something to say. Use as a context manager, or `start` and `close`."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(MODELS, port=port)
        self._own = threading.local()

    def record(self, request: Received) -> None:
        """Called by the request handler, in the thread that answers."""
        self._own.messages = request.body["messages"]
        super().record(request)

    def fault(self, model: str) -> Fault:
        """Called by the request handler: no fault, but what this model says."""
        fault = super().fault(model)
        if fault.status != 200 or model not in MODELS:
            return fault
        messages = self._own.messages
        is_judge = model == "judge-sim"
        text = verdict(str(messages[-1]["content"])) if is_judge else answer(model, messages)
        tokens_in, tokens_out = tokens(model, messages)
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
        usage["total_tokens"] = tokens_in + tokens_out
        return Fault(message={"role": "assistant", "content": text}, usage=usage)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal; the address is printed first."""
    parser = argparse.ArgumentParser(prog="python -m thriftroute.testing.practice")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        provider = PracticeProvider(port=options.port).start()
    except OSError as error:
        sys.exit(f"error: port {options.port} cannot be used: {error.strerror or error}")
    with provider:
        print(f"serving {', '.join(MODELS)} at {provider.url}", flush=True)  # noqa: T201
        stop.wait()


def request_key(messages: Messages) -> str:
    """What the difficulties know a request by."""
    return hashlib.sha256(_words(messages).encode()).hexdigest()[:16]


@cache
def _difficulties() -> dict[str, float]:
    return dict(json.loads(DIFFICULTIES.read_text(encoding="utf-8")))


def difficulty_of(messages: Messages) -> float:
    """From 0 to 10: the template author's where the log has it; else the longer the harder."""
    words = _words(messages).split()
    return _difficulties().get(request_key(messages), min(9.0, len(words) / 20))


def quality(model: str, messages: Messages) -> float:
    """The stated rule: strong is worth 8 to 9 of 10; weak less by the difficulty plus noise.

    The gap is difficulty - 2.85 + noise, the noise of mean 0 and standard deviation 2, always the
    same for a request: a win of strong as often as in data/samples/comparisons.jsonl.
    """
    rng = _seeded("quality", _words(messages))
    strong = 8.0 + rng.random()
    # Uniform sums instead of a Gaussian: no logarithm or cosine that may differ between platforms.
    noise = 2.0 * 3.0**0.5 * (sum(rng.random() for _ in range(4)) - 2.0)
    gap = difficulty_of(messages) - 2.85 + noise
    return strong - (gap if model == "weak-sim" else 0.0)


def answer(model: str, messages: Messages) -> str:
    """What a model says: how good it is."""
    return f"A simulated answer of quality {quality(model, messages):.1f}."


def verdict(text: str) -> str:
    """What the judge says of the two answers in `text`: the clearly better one, else a tie.

    One time in twenty it is careless and takes the first, whatever it says.
    """
    found = [float(number) for number in _QUALITY.findall(text)][-2:]
    if len(found) < 2:
        return "There are no two answers.\nVERDICT: TIE"
    lead = found[0] - found[1]
    if _seeded("careless", text).random() < 0.05:
        lead = 10.0
    said = "1" if lead > _WIN else "2" if lead < -_WIN else "TIE"
    return f"By the quality that is stated.\nVERDICT: {said}"


def tokens(model: str, messages: Messages) -> tuple[int, int]:
    """Tokens of a request and of its answer, which is longer the harder; verdicts are short."""
    asked = sum(len(str(m["content"])) for m in messages) // 4 + 4 * len(messages)
    if model == "judge-sim":
        return asked, 40
    rate = 36.0 if model == "weak-sim" else 45.0
    return asked, round(40 + rate * difficulty_of(messages))


def _words(messages: Messages) -> str:
    """The user's words, without how to reach the user."""
    texts = [str(m["content"]).split(CONTACT)[0] for m in messages if m["role"] == "user"]
    return " ".join(" ".join(texts).lower().split())


def _seeded(*what: str) -> random.Random:
    # Not for secrets: a seeded generator is the point.
    digest = hashlib.sha256("\0".join(what).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311


if __name__ == "__main__":
    main()

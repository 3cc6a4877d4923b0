"""A local provider to practise on: it answers and judges by the rules of data/samples/simulate.py.

    python -m thriftroute.testing.practice --port 8765

OpenAI-compatible, on 127.0.0.1, with the models strong-sim, weak-sim and judge-sim; no network, no
key. What it says of quality is made up: see data/samples/README.md.
"""

import argparse
import importlib.util
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .stub import Received, StubProvider
from .stub_faults import Fault

RULES = Path(__file__).resolve().parent.parent / "data" / "samples" / "simulate.py"
LOG = RULES.with_name("own-logs.jsonl")
MODELS = ("strong-sim", "weak-sim", "judge-sim")


class PracticeProvider(StubProvider):
    """The stub provider with something to say. Use as a context manager, or `start` and `close`."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(MODELS, port=port)
        self._rules = load_rules()
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
        if model == "judge-sim":
            text = self._rules.verdict(str(messages[-1]["content"]))
        else:
            text = self._rules.answer(model, messages)
        tokens_in, tokens_out = self._rules.tokens(model, messages)
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


def load_rules() -> Any:
    """The rules, which are no module of a package: they also run alone."""
    spec = importlib.util.spec_from_file_location("thriftroute_simulate", RULES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()

"""A provider that answers and judges as a function of what it is asked, and logs to label."""

import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from thriftroute.data.logs.schema import LogRow, write_logs
from thriftroute.labels.run import LabelResult, run_labels
from thriftroute.labels.settings import LabelSettings
from thriftroute.testing.stub import Received, StubProvider
from thriftroute.testing.stub_faults import Fault

Say = Callable[[str, Mapping[str, Any]], str]
PRICES = {"strong": "10,30", "weak": "1,2", "judge": "5,5"}
_PART = r"\[{0} [0-9a-f]{{12}}\]\n(.*?)\n\[end of {0} [0-9a-f]{{12}}\]"


def shown(body: Mapping[str, Any]) -> tuple[str, str, str]:
    """(request, first answer, second answer) as a judge was shown them."""
    text = body["messages"][-1]["content"]
    parts = [
        re.search(_PART.format(p), text, re.DOTALL) for p in ("request", "answer 1", "answer 2")
    ]
    assert all(parts), text
    request, first, second = (part[1] for part in parts if part)
    return request, first, second


def fair(model: str, body: Mapping[str, Any]) -> str:
    """strong and weak say what they are asked and who they are; the judge prefers strong where the
    request holds the word hard, weak where it holds easy, and else sees a tie."""
    if model != "judge":
        return f"{model} on: {body['messages'][-1]['content']}"
    request, first, _ = shown(body)
    better = "strong" if "hard" in request else "weak" if "easy" in request else None
    if better is None:
        return "No difference.\nVERDICT: TIE"
    return f"One is right.\nVERDICT: {1 if first.startswith(better) else 2}"


class Panel(StubProvider):
    """Says what `say(model, body)` gives, until it is told to fail."""

    def __init__(self, say: Say = fair, *, delay_s: float = 0.0) -> None:
        super().__init__(("strong", "weak", "judge"), delay_s=delay_s)
        self.say = say
        self._own = threading.local()

    def record(self, request: Received) -> None:
        self._own.body = request.body
        super().record(request)

    def fault(self, model: str) -> Fault:
        fault = super().fault(model)
        if fault.status != 200 or fault.raw is not None or fault.message is not None or fault.drop:
            return fault
        words = {"role": "assistant", "content": self.say(model, self._own.body)}
        return replace(fault, message=words)

    def asked(self) -> Counter[str]:
        """Requests so far, by model."""
        return Counter(request.body["model"] for request in self.requests)

    def repeated(self) -> list[str]:
        """What was asked more than once, word for word."""
        counts = Counter(json.dumps(request.body, sort_keys=True) for request in self.requests)
        return [body for body, count in counts.items() if count > 1]


def make_log(path: Path, n: int = 6, **fields: Any) -> Path:
    """A log of n requests: hard, easy and plain ones in turn, answered by strong."""
    rows = []
    for i in range(n):
        prompt = f"{('hard', 'easy', 'plain')[i % 3]} question {i}"
        values: dict[str, Any] = {"answer": f"strong on: {prompt}", "model": "strong", **fields}
        values = {k: v(i) if callable(v) else v for k, v in values.items()}
        messages = ({"role": "user", "content": prompt},)
        rows.append(LogRow(id=f"r{i}", messages=messages, prompt=prompt, **values))
    write_logs(rows, path)
    return path


def make_request(panel: Panel, log: Path, **changes: Any) -> LabelSettings:
    """Of all rows, by the judge, with at most 1 USD."""
    values: dict[str, Any] = {
        "log": log,
        "out": log.parent / "labels.jsonl",
        "strong": "openai/strong",
        "weak": "openai/weak",
        "judge": "openai/judge",
        "max_usd": 1.0,
        "prices": PRICES,
        "params": {"all": {"api_base": panel.url, "api_key": "k"}},
        "retries": 0,
        **changes,
    }
    return LabelSettings(**values)


def run(request: LabelSettings, votes: str = "") -> tuple[LabelResult, str]:
    """The result, and what was told on the console."""
    told = io.StringIO()
    result = run_labels(request, console=Console(file=told, width=200), source=io.StringIO(votes))
    return result, told.getvalue()


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

"""One request of a log with its answer, whatever the log was: `LogRow`, and its JSONL.

A line is a JSON object with the fields of a LogRow; what is empty is left out. A request that is
one user turn of plain text has `prompt`, every other one `messages`, as `data.readers` reads them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..layouts import request
from ..lines import write_jsonl
from ..schema import Messages, check_amount, check_text, shown
from .reader import json_lines

_TEXTS = ("model", "task", "session", "tenant")
_COUNTS = ("input_tokens", "output_tokens", "cluster")
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd")


@dataclass(frozen=True, slots=True)
class LogRow:
    """One logged request.

    `messages` are OpenAI messages, the last of them no assistant's; `prompt` is their user turns
    (`data.schema.render`). `time` is ISO 8601, `feedback` in [0, 1]: 1 good, 0 bad. `answer` and
    `model` are None where the log does not tell. `cluster` numbers the kind of request. `weight` is
    how many requests of the whole log the row stands for.
    """

    id: str
    messages: Messages
    prompt: str
    time: str | None = None
    answer: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    task: str = ""
    session: str = ""
    tenant: str = ""
    feedback: float | None = None
    cluster: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_text(self.id, "id")
        check_text(self.prompt, "prompt")
        if not self.messages:
            raise DataError("is empty; expected at least one message", field="messages")
        if self.time is not None:
            moment(self.time)
        for name in (*_AMOUNTS, "weight"):
            check_amount(getattr(self, name), name)
        check_amount(self.feedback, "feedback", 1.0)
        if self.cluster is not None and (type(self.cluster) is not int or self.cluster < 0):
            problem = f"{shown(self.cluster)} is not a whole number that is 0 or more, or left out"
            raise DataError(problem, field="cluster")
        if not self.weight:
            raise DataError("is 0; expected a finite number above 0", field="weight")

    def to_dict(self) -> dict[str, Any]:
        """What stands on its line of a file; `row_of` reads it back."""
        only = self.messages[0]
        plain = len(self.messages) == 1 and dict(only) == {"role": "user", "content": self.prompt}
        found: dict[str, Any] = {"id": self.id, "time": self.time}
        found |= {"prompt": self.prompt} if plain else {"messages": list(self.messages)}
        found |= {
            n: getattr(self, n) for n in ("answer", *_TEXTS, *_AMOUNTS, "feedback", "cluster")
        }
        found["weight"] = None if self.weight == 1.0 else self.weight
        return {name: value for name, value in found.items() if value is not None and value != ""}


def row_of(record: Mapping[str, Any]) -> LogRow:
    """The row that a JSON object describes. Raises DataError with `field`."""
    prompt, messages = request(record)
    values: dict[str, Any] = {}
    for name in ("time", "answer", *_TEXTS):
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{shown(value)} is not text", field=name)
        values[name] = value or (None if name in ("time", "answer", "model") else "")
    for name in (*_AMOUNTS, "feedback", "cluster"):
        value = record.get(name)
        # JSON writers of other languages make 12.0 of a count.
        whole = name in _COUNTS and isinstance(value, float) and value.is_integer()
        values[name] = int(value) if whole else value  # type: ignore[arg-type]
    if record.get("weight") is not None:
        values["weight"] = record["weight"]
    messages = messages or ({"role": "user", "content": prompt},)
    return LogRow(id=record.get("id", ""), prompt=prompt, messages=messages, **values)


def read_logs(path: str | Path) -> Iterator[LogRow]:
    """The rows of a JSONL file, also .gz, that `write_logs` or `thriftroute logs import` wrote.
    Raises DataError with file, line and field."""
    line = 0
    for line, record in json_lines(path):
        try:
            yield row_of(record)
        except DataError as error:
            raise error.at(path, line) from error
    if not line:
        raise DataError("is empty; expected at least one row of a log", path=path)


def write_logs(rows: Iterable[LogRow], out: str | Path) -> int:
    """Write rows as JSONL, whole or not at all; how many. Raises OSError."""
    return write_jsonl(Path(out), (row.to_dict() for row in rows))


def moment(time: str) -> datetime:
    """A row's time. Raises DataError(time) where it is not ISO 8601."""
    try:
        return datetime.fromisoformat(time)
    except (TypeError, ValueError) as error:
        problem = f"{shown(time)} is not ISO 8601, such as 2026-01-31T09:30:00+00:00"
        raise DataError(problem, field="time") from error

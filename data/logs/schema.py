"""One request of a log with its answer, whatever the log was: `LogRow`, and its JSONL.

    for row in read_logs("logs.jsonl"): ...
    write_logs(rows, "logs.jsonl")

A line of the file is a JSON object with the fields of a LogRow; what is empty is left out. A
request that is one user turn of plain text has `prompt`, every other one `messages`, as in the
files that `data.readers` reads: whatever takes prompts without labels takes a log as it is.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import private, whole_file
from ..layouts import request
from ..schema import Messages, check_text, is_finite, shown
from .reader import json_lines

_TEXTS = ("model", "task", "session", "tenant")
_COUNTS = ("input_tokens", "output_tokens", "cluster")
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd")


@dataclass(frozen=True, slots=True)
class LogRow:
    """One logged request.

    `messages` are OpenAI messages, the last of them no assistant's; `prompt` is their user turns
    (`data.schema.render`). `time` is ISO 8601, `cost_usd` US dollars, tokens are counts,
    `feedback` is in [0, 1]: 1 good, 0 bad. `answer` and `model` are None where the log does not
    tell. `cluster` numbers the kind of request. `weight` is how many requests of the whole log the
    row stands for: 1 over its probability to be in the sample.
    Raises DataError with `field` set where a value cannot be used.
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
        for name in (*_AMOUNTS, "feedback", "weight"):
            value = getattr(self, name)
            top = 1.0 if name == "feedback" else sys.float_info.max
            numeric = is_finite(value) and not isinstance(value, bool)
            if value is not None and not (numeric and 0.0 <= value <= top):
                limit = "in [0, 1]" if top == 1.0 else "that is 0 or more"
                problem = f"{shown(value)} is not a finite number {limit}, or left out"
                raise DataError(problem, field=name)
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
        for name in ("answer", *_TEXTS, *_AMOUNTS, "feedback", "cluster"):
            found[name] = getattr(self, name)
        if self.weight != 1.0:
            found["weight"] = self.weight
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
    weight = record.get("weight")
    return LogRow(
        id=record.get("id", ""),
        prompt=prompt,
        messages=messages or ({"role": "user", "content": prompt},),
        weight=1.0 if weight is None else weight,
        **values,
    )


def read_logs(path: str | Path) -> Iterator[LogRow]:
    """The rows of a file that `write_logs` or `thriftroute logs import` wrote, one at a time.

    JSONL, also .gz. Raises DataError with file, line and field.
    """
    found = False
    for line, record in json_lines(path):
        try:
            row = row_of(record)
        except DataError as error:
            raise DataError(error.problem, path=path, line=line, field=error.field) from error
        found = True
        yield row
    if not found:
        raise DataError("is empty; expected at least one row of a log", path=path)


def write_logs(rows: Iterable[LogRow], out: str | Path) -> int:
    """Write rows as JSONL, whole or not at all; how many. Raises OSError."""
    with whole_file(Path(out), opener=private) as file:
        lines = (json.dumps(row.to_dict(), ensure_ascii=False).encode() for row in rows)
        return sum(bool(file.write(line + b"\n")) for line in lines)


def moment(time: str) -> datetime:
    """A row's time. Raises DataError(time) where it is not ISO 8601."""
    try:
        return datetime.fromisoformat(time)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{shown(time)} is not ISO 8601, such as 2026-01-31T09:30:00+00:00", field="time"
        ) from error

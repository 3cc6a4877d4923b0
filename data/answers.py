"""Rows with the text of answers, for a second look.

A row has `prompt` (or `messages`), `model`, `answer` and `score`, and where they are known
`confidence` (see `router.second_look.Answer`), `second`, another answer of the same model,
`functions`, the tools offered, as JSON, and `response_format`, the JSON that was asked for. In
place of `confidence`: `logprobs`, a list of `token` and `logprob`, or OpenAI's object that holds
one. A comparison has `answer_b`, `confidence_b`, `logprobs_b` and `second_b` of its `model_b`, or
the same of a, as `thriftroute label` writes them.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import DataError
from ..providers.log_probabilities import token_logprobs
from ..router.second_look import Answer
from .layouts import LAYOUTS, detect_layout, request
from .readers import raw_records


def read_answers(path: str, weak: str, second: str | None = None) -> dict[str, Answer]:
    """Answers of the model `weak` by prompt, with those of `second` beside: of several rows of a
    prompt the first, and nothing of rows that have no `answer`. With `second` the same model, its
    second row is the second answer; without one, it is what the row itself has as such.

    Raises DataError for a bad row, and where a model has no answer.
    """
    found: dict[str, Answer] = {}
    others: dict[str, str] = {}

    def take(record: Mapping[str, Any]) -> None:
        row = _of_side(record, weak)
        model = row.get("model")
        if model not in (weak, second) or "answer" not in row:
            return
        prompt = LAYOUTS[detect_layout(row)].make(row).prompt
        text = _text(row, "answer")
        if model == weak and prompt not in found:
            again = _text(row, "second") if second is None else ""
            known = _number(row), again or None, _functions(row), _tokens(row)
            found[prompt] = Answer(text, *known, _json(row, "response_format"))
        elif model == second:
            others.setdefault(prompt, text)

    name = _each(path, take)
    for model, answers in ((weak, found), (second, others)):
        if model is not None and not answers:
            raise DataError(f"no answer of {model!r}; expected rows with its `answer`", path=name)
    return {
        prompt: replace(one, second=others.get(prompt, one.second)) for prompt, one in found.items()
    }


def read_numbers(path: str, model: str, field: str) -> dict[str, float]:
    """A number of the rows of a model, such as `cost_usd` or `latency_ms`, by prompt: of several
    rows the first; those that have none are left out. Raises DataError for a bad row."""
    found: dict[str, float] = {}

    def take(record: Mapping[str, Any]) -> None:
        if record.get("model") == model and (value := _number(record, field)) is not None:
            found.setdefault(request(record)[0], value)

    _each(path, take)
    return found


def _each(path: str, take: Callable[[Mapping[str, Any]], None]) -> str:
    """Hand over each row; its errors say where it stands. Gives the file's name."""
    name, rows = raw_records(path)
    for line, record, _ in rows:
        try:
            if isinstance(record, DataError):
                raise record
            take(record)
        except DataError as error:
            raise error.at(name, line) from error
    return name


def _of_side(record: Mapping[str, Any], weak: str) -> Mapping[str, Any]:
    """A comparison's side of the weak model as a row of its own; any other row as it is."""
    side = next((s for s in "ba" if record.get(f"model_{s}") == weak), None)
    if side is None or f"answer_{side}" not in record:
        return record
    names = ("answer", "confidence", "logprobs", "second")
    told = {name: record.get(f"{name}_{side}") for name in names}
    return {**record, "model": weak, **told}


def _text(record: Mapping[str, Any], field: str) -> str:
    """A text; tool calls and numbers as their JSON."""
    answer = record.get(field)
    if answer is None or isinstance(answer, str):
        return answer or ""
    return json.dumps(answer, default=str)


def _number(record: Mapping[str, Any], field: str = "confidence") -> float | None:
    value = record.get(field)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        told = "; expected a probability or its logarithm" if field == "confidence" else ""
        raise DataError(f"{str(value)[:40]!r} is no number{told}", field=field) from None
    return number if math.isfinite(number) else None


def _tokens(record: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    value = _json(record, "logprobs")
    content = value.get("content") if isinstance(value, Mapping) else value
    if content is not None and not isinstance(content, list):
        raise DataError("expected a list of `token` and `logprob`", field="logprobs")
    return token_logprobs({"logprobs": {"content": content}})


def _json(record: Mapping[str, Any], name: str) -> Any:
    """A field that may be JSON's text."""
    value = record.get(name)
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except (ValueError, RecursionError):
        raise DataError("no JSON; expected a list or an object", field=name) from None


def _functions(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    value = _json(record, "functions")
    listed = value if isinstance(value, list | tuple) else [] if not value else [value]
    if not all(isinstance(one, Mapping) for one in listed):
        raise DataError("expected a list of functions with names", field="functions")
    return tuple(listed)

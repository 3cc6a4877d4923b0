"""Rows with the text of answers, for a second look.

A row has `prompt` (or `messages`), `model`, `answer` and `score`, and where they are known
`confidence` (see `router.second_look.Answer`) and `functions`, the tools offered, as JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from ..router.second_look import Answer
from .layouts import LAYOUTS
from .readers import raw_records


def read_answers(path: str, weak: str, second: str | None = None) -> dict[str, Answer]:
    """Answers of the model `weak` by prompt, with those of `second` beside: of several rows of a
    prompt the first. With `second` the same model, its second row is the second answer.

    Raises DataError for a bad row, and where a model has no answer.
    """
    found: dict[str, Answer] = {}
    others: dict[str, str] = {}
    name, rows = raw_records(path)
    for line, record, _ in rows:
        try:
            if isinstance(record, DataError):
                raise record
            model = record.get("model")
            if model not in (weak, second):
                continue
            prompt = LAYOUTS["scores"].make(record).prompt
            text = _text(record)
            if model == weak and prompt not in found:
                found[prompt] = Answer(text, _number(record), None, _functions(record))
            elif model == second:
                others.setdefault(prompt, text)
        except DataError as error:
            raise error.at(name, line) from error
    for model, answers in ((weak, found), (second, others)):
        if model is not None and not answers:
            raise DataError(f"no answer of {model!r}; expected rows with its `answer`", path=name)
    return {
        prompt: Answer(one.text, one.confidence, others.get(prompt), one.functions)
        for prompt, one in found.items()
    }


def _text(record: Mapping[str, Any]) -> str:
    """The answer's text; tool calls and numbers as their JSON."""
    answer = record.get("answer")
    if answer is None or isinstance(answer, str):
        return answer or ""
    return json.dumps(answer, default=str)


def _number(record: Mapping[str, Any]) -> float | None:
    value = record.get("confidence")
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        problem = f"{str(value)[:40]!r} is no number; expected a probability or its logarithm"
        raise DataError(problem, field="confidence") from None


def _functions(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    value = record.get("functions")
    try:
        value = json.loads(value) if isinstance(value, str) and value else value
    except (ValueError, RecursionError):
        raise DataError("no JSON; expected a list of functions", field="functions") from None
    listed = value if isinstance(value, list | tuple) else [] if not value else [value]
    if not all(isinstance(one, Mapping) for one in listed):
        raise DataError("expected a list of functions with names", field="functions")
    return tuple(listed)

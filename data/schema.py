"""The two kinds of row that preference data is made of, and what makes one valid.

Both refuse a bad value with a DataError that carries the field; readers add file and line.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..errors import DataError

Message = Mapping[str, Any]
Messages = tuple[Message, ...]

_OUTCOMES = {
    **dict.fromkeys(("a", "model_a"), 1.0),
    **dict.fromkeys(("b", "model_b"), 0.0),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad"), 0.5),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of two models on one prompt.

    `score_a` is 1 where a wins, 0.5 for a tie, 0 where b wins, or any share of votes between.
    `messages` are there where the request is more than one user turn; `prompt` is then their user
    turns (see `render`). Tokens are output tokens, costs are US dollars.
    """

    prompt: str
    model_a: str
    model_b: str
    score_a: float
    messages: Messages | None = None
    weight: float = 1.0
    source: str = ""
    category: str = ""
    tokens_a: float | None = None
    tokens_b: float | None = None
    cost_a: float | None = None
    cost_b: float | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "model_a", "model_b"):
            check_text(getattr(self, name), name)
        if self.model_a == self.model_b:
            problem = f"both models are {self.model_a!r}; expected two different models"
            raise DataError(problem, field="model_b")
        _check_numbers(self, "score_a", ("tokens_a", "tokens_b", "cost_a", "cost_b"))


@dataclass(frozen=True, slots=True)
class PromptScore:
    """One model's score, in [0, 1], on one prompt; 1 is best.

    `category` is the task. `item` tells apart two items that happen to share a prompt. Tokens are
    counts, `cost_usd` is US dollars.
    """

    prompt: str
    model: str
    score: float
    messages: Messages | None = None
    weight: float = 1.0
    source: str = ""
    category: str = ""
    item: str = ""
    input_tokens: float | None = None
    output_tokens: float | None = None
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        check_text(self.prompt, "prompt")
        check_text(self.model, "model")
        _check_numbers(self, "score", ("input_tokens", "output_tokens", "cost_usd"))


Row = Comparison | PromptScore


def parse_number(value: object, field: str, what: str) -> float:
    """`value` as a float; a numeric string counts. Raises DataError(field) saying `what`."""
    if value is None:
        raise DataError(f"missing; expected {what}", field=field)
    if isinstance(value, str) or hasattr(value, "__float__"):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise DataError(f"{shown(value)} is not {what}", field=field)


def parse_outcome(value: object, field: str = "outcome") -> float:
    """The score of model a, in [0, 1], from a name of `_OUTCOMES` in any case, or a number as such
    or as text; a boolean says nothing about who won. Raises DataError with `field`."""
    what = "one of a, b, tie, model_a, model_b, tie (bothbad), or a number in [0, 1]"
    named = _OUTCOMES.get(value.strip().lower()) if isinstance(value, str) else None
    if named is not None:
        return named
    number = math.nan if isinstance(value, bool) else parse_number(value, field, what)
    if not 0.0 <= number <= 1.0:
        raise DataError(f"{shown(value)} is not {what}", field=field)
    return number


def parse_messages(value: object, field: str = "messages") -> Messages:
    """OpenAI messages from a list, or from the JSON text of one.

    Assistant turns after the last user or tool turn are the logged answer: they are left out, so
    that a router never sees what it could not know. Raises DataError with `field`.
    """
    what = 'a list of {"role": ..., "content": ...} messages with at least one user turn'
    if isinstance(value, str):
        value = parse_json(value, field, what)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise DataError(f"{shown(value)} is not {what}", field=field)
    messages: list[Message] = []
    for i, message in enumerate(value):
        problem = ""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            problem = f"{shown(message)} has no role; expected {what}"
        elif not isinstance(content := message.get("content"), (str, Sequence, type(None))):
            problem = f"content is {shown(content)}; expected text, a list of parts or null"
        if problem:
            raise DataError(f"message {i}: {problem}", field=field)
        messages.append(dict(message))
    while messages and messages[-1]["role"] not in ("user", "tool", "function"):
        messages.pop()
    if not any(message["role"] == "user" for message in messages):
        raise DataError(f"no user turn; expected {what}", field=field)
    return tuple(messages)


def parse_json(text: str, field: str, what: str) -> Any:
    """What JSON text holds. Raises DataError(field) saying `what` was expected."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"not valid JSON ({error}); expected {what}, or its JSON"
        raise DataError(problem, field=field) from error


def content_text(content: object) -> str:
    """The text of one message's content: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def render(messages: Sequence[Message]) -> str:
    """The user turns of a conversation as one text, a blank line between turns: its identity in
    tables and splits. What a router scores is rendered from the messages themselves."""
    turns = (content_text(m.get("content")) for m in messages if m.get("role") == "user")
    return "\n\n".join(turn for turn in turns if turn.strip())


def check_text(value: object, field: str) -> None:
    """Raises DataError(field) unless `value` is text that is not blank and is valid UTF-8."""
    if value is None:
        raise DataError("missing; expected text", field=field)
    if not isinstance(value, str):
        raise DataError(f"{shown(value)} is not text", field=field)
    if not value or value.isspace():
        raise DataError("is empty; expected text", field=field)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"character {error.start} is a lone surrogate or a byte that is not UTF-8"
            raise DataError(problem, field=field) from error


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that a float can hold: no NaN, no infinity, no 400 digits."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def check_amount(value: object, field: str, most: float = sys.float_info.max) -> None:
    """Raises DataError(field) unless `value` is None or a finite number from 0 to `most`."""
    if value is None or (not isinstance(value, bool) and is_finite(value) and 0.0 <= value <= most):
        return
    limit = "in [0, 1]" if most == 1.0 else "that is 0 or more"
    raise DataError(f"{shown(value)} is not a finite number {limit}, or left out", field=field)


def shown(value: object, limit: int = 60) -> str:
    """`value` as an error message quotes it, cut to `limit` characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _check_numbers(row: Row, score: str, amounts: Sequence[str]) -> None:
    value = getattr(row, score)
    # The comparison is false for NaN, so that NaN is refused here too.
    if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise DataError(f"{shown(value)} is not a number in [0, 1]", field=score)
    if not is_finite(row.weight) or not row.weight > 0.0:
        raise DataError(f"{shown(row.weight)} is not a finite number above 0", field="weight")
    for name in amounts:
        check_amount(getattr(row, name), name)

"""From one record (a mapping of column to value) to a Comparison or a PromptScore.

    scores        prompt | messages, model, score
    comparisons   prompt | messages, model_a, model_b, outcome | score_a
    arena         prompt (JSON list of turns) | conversation_a, model_a, model_b,
                  winner_model_a + winner_model_b + winner_tie | winner

The layout of a file follows from its columns. Optional columns are kept where they are known and
ignored where they are not.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import DataError
from .schema import (
    Comparison,
    Messages,
    PromptScore,
    Row,
    content_text,
    parse_messages,
    parse_number,
    parse_outcome,
    render,
    shown,
)

Record = Mapping[str, Any]

_REQUEST = ("prompt", "messages")
_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
# For each layout, groups of columns of which one must be there.
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "scores": (_REQUEST, ("model",), ("score",)),
    "comparisons": (_REQUEST, ("model_a",), ("model_b",), ("outcome", "score_a")),
    "arena": (
        ("prompt", "conversation_a", "conversation", "full_conversation"),
        ("model_a",),
        ("model_b",),
        ("winner_model_a", "winner"),
    ),
}
LAYOUTS = tuple(_NEEDED)


def detect_layout(columns: Iterable[str]) -> str:
    """The layout whose columns are all there: scores, comparisons or arena.

    Raises DataError, its `field` the first column missing from the layout that comes closest.
    """
    found = set(columns)
    missing: dict[str, list[tuple[str, ...]]] = {
        layout: [group for group in groups if not found.intersection(group)]
        for layout, groups in _NEEDED.items()
    }
    for layout in ("comparisons", "scores", "arena"):
        if not missing[layout]:
            return layout
    # Naming model_a or model_b says that comparisons are meant, however little else is there.
    pairwise = bool(found & {"model_a", "model_b"})
    order = ("arena", "comparisons") if pairwise and found & set(_WINNERS) else (
        ("comparisons",) if pairwise else ("scores", "comparisons"))  # fmt: skip
    layout = min(order, key=lambda name: len(missing[name]))
    names = " or ".join(missing[layout][0])
    every = ", ".join(" | ".join(group) for group in _NEEDED[layout])
    raise DataError(
        f"column {names} is missing; found {', '.join(sorted(map(str, found))) or 'no columns'}; "
        f"a file of {layout} has {every}",
        field=missing[layout][0][0],
    )


def row_maker(layout: str) -> Callable[[Record], Row]:
    """The function that turns a record of `layout` into a row, raising DataError(field)."""
    if layout not in _MAKERS:
        raise DataError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    return _MAKERS[layout]


def request(record: Record) -> tuple[str, Messages | None]:
    """Prompt and messages of a record; messages are None where the prompt is the whole request.

    Raises DataError(field) where there is neither, or the messages hold no text of a user.
    """
    messages = record.get("messages")
    if _absent(messages):
        prompt = record.get("prompt")
        if prompt is None:
            raise DataError("missing; expected the prompt's text, or messages", field="prompt")
        if not isinstance(prompt, str):
            raise DataError(f"{shown(prompt)} is not text", field="prompt")
        return prompt, None
    return _conversation(parse_messages(messages), "messages")


def _conversation(messages: Messages, field: str) -> tuple[str, Messages | None]:
    prompt = render(messages)
    if not prompt:
        raise DataError("no user turn holds text; expected at least one", field=field)
    if len(messages) == 1 and isinstance(messages[0].get("content"), str):
        return messages[0]["content"], None
    return prompt, messages


def _score(record: Record) -> PromptScore:
    prompt, messages = request(record)
    item = record.get("item_id")
    if _absent(item):
        item = record.get("row")
    return PromptScore(
        prompt=prompt,
        model=_text(record, "model"),
        score=_number(record, "score", "a number in [0, 1]"),
        messages=messages,
        weight=_weight(record),
        source=_optional_text(record, "source"),
        category=_optional_text(record, "task", "category"),
        item="" if _absent(item) else str(item),
        input_tokens=_amount(record, "input_tokens"),
        output_tokens=_amount(record, "output_tokens"),
        cost_usd=_amount(record, "cost_usd"),
    )


def _comparison(record: Record) -> Comparison:
    prompt, messages = request(record)
    name = "outcome" if not _absent(record.get("outcome")) else "score_a"
    outcome = record.get(name)
    if _absent(outcome):
        raise DataError("missing; expected a, b, tie or a number in [0, 1]", field="outcome")
    return _compared(record, prompt, messages, parse_outcome(outcome, name))


def _arena(record: Record) -> Comparison:
    for name in ("conversation_a", "conversation", "full_conversation"):
        if not _absent(record.get(name)):
            prompt, messages = _user_turns(_turns(record[name], name), name)
            break
    else:
        value = record.get("prompt")
        if _absent(value):
            raise DataError("missing; expected a JSON list of the user's turns", field="prompt")
        prompt, messages = _user_turns(_turns(value, "prompt"), "prompt")
    return _compared(record, prompt, messages, _winner(record))


def _compared(record: Record, prompt: str, messages: Messages | None, score_a: float) -> Comparison:
    time = record.get("time", record.get("tstamp"))
    return Comparison(
        prompt=prompt,
        model_a=_text(record, "model_a"),
        model_b=_text(record, "model_b"),
        score_a=score_a,
        messages=messages,
        weight=_weight(record, "weight", "n_votes"),
        source=_optional_text(record, "source"),
        category=_optional_text(record, "category", "task"),
        tokens_a=_amount(record, "tokens_a"),
        tokens_b=_amount(record, "tokens_b"),
        cost_a=_amount(record, "cost_a"),
        cost_b=_amount(record, "cost_b"),
        time=None if _absent(time) else str(time),
    )


def _turns(value: object, field: str) -> Sequence[Any]:
    """A conversation's turns: a list, or its JSON; any other text is one turn by itself."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [value]
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not valid JSON ({error}); expected a JSON list of turns", field=field
            ) from error
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{shown(value)} is not a list of turns", field=field)
    return value


def _user_turns(turns: Sequence[Any], field: str) -> tuple[str, Messages | None]:
    """The user's turns only: what was answered differs between the two sides of a comparison."""
    texts: list[str] = []
    for i, turn in enumerate(turns):
        if isinstance(turn, str):
            texts.append(turn)
        elif isinstance(turn, Mapping) and "role" in turn:
            if turn["role"] == "user":
                texts.append(content_text(turn.get("content")))
        elif isinstance(turn, Mapping) and isinstance(turn.get("user"), Mapping):
            texts.append(content_text(turn["user"].get("content")))
        else:
            raise DataError(
                f"turn {i} is {shown(turn)}; expected text or a message with a role", field=field
            )
    return _conversation(tuple({"role": "user", "content": text} for text in texts), field)


def _winner(record: Record) -> float:
    if not _absent(record.get("winner")):
        return parse_outcome(record["winner"], "winner")
    flags = []
    for name in _WINNERS:
        value = record.get(name)
        # Releases without ties leave the last column out; an empty cell in it is no vote either.
        if _absent(value) and name == "winner_tie":
            flags.append(0.0)
            continue
        flags.append(parse_number(value, name, "0 or 1"))
        if flags[-1] not in (0.0, 1.0):
            raise DataError(f"{shown(value)} is not 0 or 1", field=name)
    if sum(flags) != 1.0:
        raise DataError(
            f"{', '.join(_WINNERS)} are {flags}; expected exactly one 1", field=_WINNERS[0]
        )
    return flags[0] + 0.5 * flags[2]


def _absent(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(record: Record, field: str) -> str:
    value = record.get(field)
    if value is None:
        raise DataError("missing; expected a model's name", field=field)
    if not isinstance(value, str):
        raise DataError(f"{shown(value)} is not text", field=field)
    return value


def _optional_text(record: Record, *fields: str) -> str:
    for field in fields:
        value = record.get(field)
        if not _absent(value):
            return value if isinstance(value, str) else str(value)
    return ""


def _number(record: Record, field: str, what: str) -> float:
    value = record.get(field)
    if value is None:
        raise DataError(f"missing; expected {what}", field=field)
    return parse_number(value, field, what)


def _weight(record: Record, *fields: str) -> float:
    for field in fields or ("weight",):
        if not _absent(record.get(field)):
            return parse_number(record[field], field, "a finite number above 0")
    return 1.0


def _amount(record: Record, field: str) -> float | None:
    value = record.get(field)
    if _absent(value):
        return None
    return parse_number(value, field, "a finite number that is 0 or more, or left out")


_MAKERS: dict[str, Callable[[Record], Row]] = {
    "scores": _score,
    "comparisons": _comparison,
    "arena": _arena,
}

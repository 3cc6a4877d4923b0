"""From one record (a mapping of column to value) to a Comparison or a PromptScore.

    scores        prompt | messages, model, score
    comparisons   prompt | messages, model_a, model_b, outcome | score_a
    arena         prompt (JSON list of turns) | conversation_a, model_a, model_b,
                  winner_model_a + winner_model_b + winner_tie | winner

The layout of a file follows from its columns. Optional columns are kept where they are known and
ignored where they are not.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..errors import DataError
from .schema import (
    Comparison,
    Messages,
    PromptScore,
    Row,
    content_text,
    parse_json,
    parse_messages,
    parse_number,
    parse_outcome,
    render,
    shown,
)

Record = Mapping[str, Any]
# One record as a container yields it: its line or row number, and the record itself or, where it
# could not even be parsed, the problem; and the raw row for the rejects file.
Raw = tuple[int, Record | DataError, Any]
OnBad = Literal["stop", "skip"]  # what is done at a bad one

_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
_TURNS = ("conversation_a", "conversation", "full_conversation")


class Layout(NamedTuple):
    """Groups of columns of which one must be there, and what turns a record into a row, raising
    DataError(field)."""

    needed: tuple[tuple[str, ...], ...]
    make: Callable[[Record], Row]


def detect_layout(columns: Iterable[str]) -> str:
    """The layout whose columns are all there: scores, comparisons or arena. Raises DataError,
    its `field` the first column missing from the layout that comes closest."""
    found = set(columns)
    missing = {
        name: [group for group in layout.needed if not found.intersection(group)]
        for name, layout in LAYOUTS.items()
    }
    for name in ("comparisons", "scores", "arena"):
        if not missing[name]:
            return name
    # Naming model_a or model_b says that comparisons are meant, however little else is there.
    order = ["scores", "comparisons"]
    if found & {"model_a", "model_b"}:
        order = ["arena", "comparisons"] if found & set(_WINNERS) else ["comparisons"]
    closest = min(order, key=lambda name: len(missing[name]))
    names = " or ".join(missing[closest][0])
    every = ", ".join(" | ".join(group) for group in LAYOUTS[closest].needed)
    raise DataError(
        f"column {names} is missing; found {', '.join(sorted(map(str, found))) or 'no columns'}; "
        f"a file of {closest} has {every}",
        field=missing[closest][0][0],
    )


def request(record: Record) -> tuple[str, Messages | None]:
    """Prompt and messages of a record; messages are None where the prompt is the whole request.
    Raises DataError(field) where there is neither, or the messages hold no text of a user."""
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
    return PromptScore(
        prompt=prompt,
        model=record.get("model"),  # type: ignore[arg-type]  # which is checked
        score=parse_number(record.get("score"), "score", "a number in [0, 1]"),
        messages=messages,
        weight=_weight(record, "weight"),
        source=_optional_text(record, "source"),
        category=_optional_text(record, "task", "category"),
        item=_optional_text(record, "item_id", "row"),
        **_amounts(record, "input_tokens", "output_tokens", "cost_usd"),
    )


def _comparison(record: Record) -> Comparison:
    name = "score_a" if _absent(record.get("outcome")) else "outcome"
    if _absent(record.get(name)):
        raise DataError("missing; expected a, b, tie or a number in [0, 1]", field="outcome")
    return _compared(record, request(record), parse_outcome(record[name], name))


def _arena(record: Record) -> Comparison:
    field = next((name for name in _TURNS if not _absent(record.get(name))), "prompt")
    if _absent(record.get(field)):
        raise DataError("missing; expected a JSON list of the user's turns", field="prompt")
    return _compared(record, _user_turns(record[field], field), _winner(record))


def _compared(record: Record, asked: tuple[str, Messages | None], score_a: float) -> Comparison:
    return Comparison(
        prompt=asked[0],
        model_a=record.get("model_a"),  # type: ignore[arg-type]  # which is checked
        model_b=record.get("model_b"),  # type: ignore[arg-type]
        score_a=score_a,
        messages=asked[1],
        weight=_weight(record, "weight", "n_votes"),
        source=_optional_text(record, "source"),
        category=_optional_text(record, "category", "task"),
        time=_optional_text(record, "time", "tstamp") or None,
        **_amounts(record, "tokens_a", "tokens_b", "cost_a", "cost_b"),
    )


def _user_turns(value: object, field: str) -> tuple[str, Messages | None]:
    """The user's turns only: what was answered differs between the two sides of a comparison.

    value: a list of turns, or its JSON; any other text is one turn by itself.
    """
    if isinstance(value, str):
        text = value.lstrip()
        value = parse_json(value, field, "a JSON list of turns") if text[:1] == "[" else [value]
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{shown(value)} is not a list of turns", field=field)
    texts: list[str] = []
    for i, turn in enumerate(value):
        if isinstance(turn, str):
            texts.append(turn)
        elif isinstance(turn, Mapping) and "role" in turn:
            texts += [content_text(turn.get("content"))] if turn["role"] == "user" else []
        elif isinstance(turn, Mapping) and isinstance(turn.get("user"), Mapping):
            texts.append(content_text(turn["user"].get("content")))
        else:
            problem = f"turn {i} is {shown(turn)}; expected text or a message with a role"
            raise DataError(problem, field=field)
    return _conversation(tuple({"role": "user", "content": text} for text in texts), field)


def _winner(record: Record) -> float:
    if not _absent(record.get("winner")):
        return parse_outcome(record["winner"], "winner")
    flags = []
    for name in _WINNERS:
        value = record.get(name)
        # Releases without ties leave the last column out; an empty cell in it is no vote either.
        absent = _absent(value) and name == "winner_tie"
        flags.append(0.0 if absent else parse_number(value, name, "0 or 1"))
        if flags[-1] not in (0.0, 1.0):
            raise DataError(f"{shown(value)} is not 0 or 1", field=name)
    if sum(flags) != 1.0:
        problem = f"{', '.join(_WINNERS)} are {flags}; expected exactly one 1"
        raise DataError(problem, field=_WINNERS[0])
    return flags[0] + 0.5 * flags[2]


def _absent(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _first(record: Record, *fields: str) -> tuple[str, Any]:
    """The first field that has a value, and the value; None where none has."""
    return next(((f, record[f]) for f in fields if not _absent(record.get(f))), ("", None))


def _optional_text(record: Record, *fields: str) -> str:
    value = _first(record, *fields)[1]
    return "" if value is None else str(value)


def _weight(record: Record, *fields: str) -> float:
    field, value = _first(record, *fields)
    return parse_number(value, field, "a finite number above 0") if field else 1.0


def _amounts(record: Record, *fields: str) -> dict[str, float | None]:
    what = "a finite number that is 0 or more, or left out"
    values = ((field, record.get(field)) for field in fields)
    return {f: None if _absent(value) else parse_number(value, f, what) for f, value in values}


_REQUEST, _MODELS = ("prompt", "messages"), (("model_a",), ("model_b",))
LAYOUTS = {
    "scores": Layout((_REQUEST, ("model",), ("score",)), _score),
    "comparisons": Layout((_REQUEST, *_MODELS, ("outcome", "score_a")), _comparison),
    "arena": Layout((("prompt", *_TURNS), *_MODELS, ("winner_model_a", "winner")), _arena),
}

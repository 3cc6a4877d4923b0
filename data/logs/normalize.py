"""What logs write in a hundred ways, as one: values by name, counts, moments, feedback.

Objects are dicts, as JSON gives them: to ask whether one is any Mapping takes many times as long.
Messages and answers are `turns`'.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ...errors import DataError
from ..schema import shown

# Why an entry of a log is no row, and no mistake either.
FAILED = "failed"
NO_CHAT = "not a chat"
NO_TEXT = "text not logged"
NO_PROMPT = "no text of a user"
CUT = "cut short by the log"

Object = Mapping[str, Any]

_NANOSECONDS, _MILLISECONDS = 1e16, 1e11  # larger numbers are no seconds of our time


_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def digest(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """SHA-256 of the messages as canonical JSON: the same request, the same digest."""
    return hashlib.sha256(_SORTED(messages).encode("utf-8", "surrogatepass")).digest()


class LeftOutError(Exception):
    """An entry that is no row, for a `reason` that is counted: it is no mistake of the log."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def first(record: Object, *names: str) -> Any:
    """The value of the first name that has one; "a.b" looks for b in a, which may be JSON text.
    Empty objects and lists are no values, also as text."""
    for name in names:
        head, *rest = name.split(".") if "." in name else (name,)
        value = record.get(head)
        for step in rest:
            value = body(value).get(step)
        if is_value(value):
            return value
    return None


def is_value(value: object) -> bool:
    """Whether something is there: 0 and False are, an empty object is not, nor the text of one."""
    if isinstance(value, str):
        return bool(value) and not (len(value) < 9 and value.strip() in ("{}", "[]"))
    return bool(value) or not (value is None or isinstance(value, dict | list))


def body(value: object) -> Object:
    """`value` where it is an object, or the JSON text of one; else an empty one."""
    if isinstance(value, str):
        value = parsed(value)
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Object]:
    """The objects of a list, or of the JSON text of one."""
    found = parsed(value) if isinstance(value, str) else value
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text(value: object) -> str:
    """A name or an id as text; '' where there is none."""
    return "" if value is None or isinstance(value, dict | list) else str(sound(str(value)))


def sound(value: Any) -> Any:
    """JSON without halves of surrogate pairs, which it may hold and no file or request can."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: sound(part) for key, part in value.items()}
    return [sound(part) for part in value] if isinstance(value, list | tuple) else value


def number(value: object, field: str) -> float | None:
    """A number, also from text; None where there is none, such as NaN. Raises DataError(field)."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool | dict | list):
            raise TypeError
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{shown(value)} is not a number", field=field) from error
    if math.isinf(found):
        raise DataError(f"{shown(value)} is not a finite number", field=field)
    return None if math.isnan(found) else found


def count(value: object, field: str) -> int | None:
    """A whole number as `number`."""
    found = number(value, field)
    return None if found is None else round(found)


def iso_time(value: object) -> str | None:
    """A moment as ISO 8601 in UTC, from seconds, milli- or nanoseconds since 1970, or from text.
    Text without a zone counts as UTC. Raises DataError(time) where it is neither."""
    # NaN is what pandas has for nothing.
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, int | float) or str(value).replace(".", "", 1).isdigit():
            seconds = float(value)  # type: ignore[arg-type]
            scale = 1e9 if seconds > _NANOSECONDS else 1e3 if seconds > _MILLISECONDS else 1.0
            moment = datetime.fromtimestamp(seconds / scale, UTC)
        else:
            moment = datetime.fromisoformat(str(value).removesuffix(" UTC"))
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        problem = f"{shown(value)} is no moment: expected ISO 8601, or seconds since 1970"
        raise DataError(problem, field="time") from error
    return moment.isoformat(timespec="milliseconds")


def rating(value: object) -> float | None:
    """Feedback in [0, 1]: a number there, true or false, or a word. Raises DataError(feedback)."""
    words = {"up": 1.0, "good": 1.0, "positive": 1.0, "down": 0.0, "bad": 0.0, "negative": 0.0}
    said = str(value).strip().lower().removeprefix("thumbs_")
    if isinstance(value, bool) or said in words:
        return words.get(said, float(value is True))
    found = number(value, "feedback")
    if found is not None and not 0.0 <= found <= 1.0:
        expected = "a number in [0, 1], true, false, up or down"
        raise DataError(f"{shown(value)} is no feedback: expected {expected}", field="feedback")
    return found


def parsed(value: str) -> Any:
    """What JSON text holds where it is a list or an object; the text itself otherwise."""
    if value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value

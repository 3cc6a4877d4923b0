"""JSON that somebody else wrote."""

import json
import math
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """A name that stands twice in an object is an error here: readers differ in which of its values
    they take. Raises ValueError."""
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_finite(value: Any) -> bool:
    """Whether all numbers in a JSON value are those of a float. Raises RecursionError."""
    if isinstance(value, int | float):
        try:
            return math.isfinite(value)
        except OverflowError:  # a whole number with hundreds of digits
            return False
    children = value.values() if isinstance(value, dict) else value
    return not isinstance(value, dict | list) or all(is_finite(child) for child in children)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found

"""JSON to and from bytes, several times faster than Python's own where nothing is odd in it."""

import json
from typing import Any

import orjson


def read(data: bytes) -> Any:
    """A value of JSON. Raises ValueError and RecursionError. NaN, of which some providers' log
    probabilities are, is read as Python's own parser does."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def write(value: Any) -> bytes:
    """As JSON, whatever a provider sent: NaN becomes null, and half of a surrogate pair "?"."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a half of a pair, a number of more than 64 bits
        plain = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )

"""What may stand at a place of thriftroute.yaml, in words, from the JSON schema of `Config`."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from .settings import Config
from .yaml_loader import Loc

_HEX = "^[0-9a-f]{64}$"


def schema_at(loc: Loc) -> dict[str, Any]:
    """The JSON schema of what may stand at `loc`; empty where nothing is known."""
    found = _resolved(_root())
    for part in loc:
        if isinstance(part, int):
            inner = found.get("items", {})
        else:
            inner = found.get("properties", {}).get(part, found.get("additionalProperties", {}))
        found = _resolved(inner if isinstance(inner, dict) else {})
    return found


def expected(loc: Loc) -> str:
    """As "a number >= 0"."""
    return described(schema_at(loc))


def described(schema: Mapping[str, Any]) -> str:
    """What a JSON schema takes, in words."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    words: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "integer": _number,
        "number": _number,
        "string": _text,
        "array": _list,
        "object": _mapping,
        "boolean": lambda _: "true or false",
    }
    words_of = words.get(schema.get("type", ""))
    return "something else" if words_of is None else words_of(schema)


def _number(schema: Mapping[str, Any]) -> str:
    number = "a whole number" if schema["type"] == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{number} from {low:g} to {high:g}"
    if low is not None:
        return f"{number} >= {low:g}"
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if above is not None and below is not None:
        return f"{number} between {above:g} and {below:g}"
    return number if above is None else f"{number} > {above:g}"


def _text(schema: Mapping[str, Any]) -> str:
    if schema.get("pattern") == _HEX:
        return "64 small hexadecimal digits, a SHA-256 (`thriftroute keys new` prints one)"
    longest = schema.get("maxLength")
    return "text" if longest is None else f"text of 1 to {longest} characters"


def _list(schema: Mapping[str, Any]) -> str:
    return "a list with at least one entry" if schema.get("minItems") else "a list"


def _mapping(schema: Mapping[str, Any]) -> str:
    keys = ", ".join(schema.get("properties", ()))
    return f"a mapping with {keys}" if keys else "a mapping"


@cache
def _root() -> dict[str, Any]:
    return Config.model_json_schema()


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Without references, and of `X or null` the X."""
    while True:
        if "$ref" in schema:
            schema = _root()["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in schema:
            schema = next(s for s in schema["anyOf"] if s.get("type") != "null")
        else:
            return schema

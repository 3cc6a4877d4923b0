"""Whether an answer is the JSON that was asked for. What cannot be judged passes, and so does
everything but broken JSON where `jsonschema` (extra `serve`) is not installed."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import ConfigError, require_extra

_MOST_REFERENCES = 5_000  # followed in one schema; past it the answer is not judged


def asked_json(response_format: Any) -> tuple[bool, Mapping[str, Any] | bool | None]:
    """(whether OpenAI's `response_format` asks for JSON, the schema or None)."""
    asked = response_format if isinstance(response_format, Mapping) else {}
    inner = asked.get("json_schema") or {}
    if asked.get("type") not in {"json_object", "json_schema"} or not isinstance(inner, Mapping):
        return False, None
    anything = {"type": "object"} if asked["type"] == "json_object" else None
    return True, inner.get("schema", anything)


def check_schema(text: str) -> None:
    """Raise ConfigError for a text that is no JSON schema, MissingExtraError without jsonschema."""
    jsonschema = require_extra("jsonschema", "serve")
    try:
        jsonschema.Draft202012Validator.check_schema(json.loads(text))
    except (ValueError, RecursionError, jsonschema.SchemaError) as error:
        problem = getattr(error, "message", str(error))
        raise ConfigError(f"--schema {text[:80]!r} is no JSON schema: {problem}") from None


def conforms(text: object, schema: object) -> bool:
    """False where `text` is no JSON or breaks the schema; a schema that is none judges nothing."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return False
    if not isinstance(text, str) or not isinstance(schema, Mapping | bool):
        return isinstance(text, str)
    try:
        return bool(_validator(schema).is_valid(value))
    except Exception:  # noqa: BLE001 - it may be wrong, endless, or refer to what is not there
        return True


def _validator(schema: Mapping[str, Any] | bool) -> Any:
    """Of JSON Schema 2020-12, safe for a client's schema: it fetches nothing, runs no patterns (one
    can take hours), and follows a limited number of references."""
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from jsonschema.validators import extend  # type: ignore[import-untyped]
    from referencing import Registry

    known = dict(Draft202012Validator.VALIDATORS)
    left = iter(range(_MOST_REFERENCES))

    def counted(name: str, *arguments: Any) -> Any:
        next(left)  # past the last it raises, and nothing is judged
        return known[name](*arguments)

    def unless_patterns(name: str, validator: Any, value: Any, instance: Any, own: Any) -> Any:
        return () if "patternProperties" in own else known[name](validator, value, instance, own)

    changed: dict[str, Any] = dict.fromkeys(("pattern", "patternProperties"), lambda *_: ())
    changed |= {name: partial(counted, name) for name in ("$ref", "$dynamicRef")}
    unknown = ("additionalProperties", "unevaluatedProperties")
    changed |= {name: partial(unless_patterns, name) for name in unknown}
    return extend(Draft202012Validator, changed)(schema, registry=Registry())

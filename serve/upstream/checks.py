"""Whether an answer will do: the checks of a cascade.

Each looks at every choice of a completion. They never raise: what cannot be judged passes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from ...router.second_look import refuses

Check = Literal["empty", "refusal", "json", "schema"]

_MOST_REFERENCES = 5_000  # followed in one schema; past it the answer is not judged


def failed(
    completion: Mapping[str, Any], body: Mapping[str, Any], checks: Sequence[Check]
) -> Check | None:
    """The first of `checks` that an answer to the client's `body` fails; None where it will do."""
    choices = completion.get("choices") or ()
    for check in checks:
        try:
            if (check == "empty" and not choices) or any(_fails(check, c, body) for c in choices):
                return check
        except (AttributeError, TypeError):  # a body in no shape that a provider would take
            continue
    return None


def _fails(check: Check, choice: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    message = choice.get("message") or {}
    content = message.get("content")
    if check == "empty":
        said = content.strip() if isinstance(content, str) else content
        others = ("tool_calls", "function_call", "refusal", "audio", "images")
        return not said and not any(message.get(name) for name in others)
    if check == "refusal":
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return True
        said = content if isinstance(content, str) else ""
        return refuses(said)
    wanted = _wanted(message, body)
    if check == "json":
        return any(not _conforms(text, None) for text, _ in wanted)
    return any(schema is not None and not _conforms(text, schema) for text, schema in wanted)


def _wanted(
    message: Mapping[str, Any], body: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any] | bool | None]]:
    """(text that should be JSON, its schema or None): the arguments of calls, else the content."""
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    if message.get("function_call"):
        calls.append(message["function_call"])
    tools = [tool.get("function") or {} for tool in body.get("tools") or ()]
    known = [*tools, *(body.get("functions") or ())]
    schemas = {tool.get("name"): tool.get("parameters") for tool in known}
    for call in calls:
        # Without arguments some providers send no text at all.
        yield call.get("arguments") or "{}", schemas.get(call.get("name"))
    wanted = body.get("response_format") or {}
    if calls or message.get("refusal") or wanted.get("type") not in {"json_object", "json_schema"}:
        return
    schema = (wanted.get("json_schema") or {}).get("schema")
    if schema is None and wanted.get("type") == "json_object":
        schema = {"type": "object"}
    yield message.get("content") or "", schema


def _conforms(text: object, schema: object) -> bool:
    """False where `text` is no JSON or breaks the schema; a schema that is none judges nothing."""
    from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]

    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return False
    if not isinstance(text, str) or not isinstance(schema, Mapping | bool):
        return isinstance(text, str)
    try:
        _validator(schema).validate(value)
    except ValidationError:
        return False
    except Exception:  # noqa: BLE001 - it may be wrong, endless, or refer to what is not there
        return True
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

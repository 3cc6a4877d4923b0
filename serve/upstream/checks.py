"""Whether an answer will do: the checks of a cascade.

Each looks at every choice of a completion. They never raise: what cannot be judged passes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ...router.json_schema import asked_json, conforms
from ...router.second_look import refuses

Check = Literal["empty", "refusal", "json", "schema"]


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
        return any(not conforms(text, None) for text, _ in wanted)
    return any(schema is not None and not conforms(text, schema) for text, schema in wanted)


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
    asks_json, schema = asked_json(body.get("response_format"))
    if asks_json and not calls and not message.get("refusal"):
        yield message.get("content") or "", schema

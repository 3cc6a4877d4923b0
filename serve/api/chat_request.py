"""A `ChatRequest` of a client's JSON and headers: what is wrong is said, the rest passes through.

Options come in the body's `metadata` (any of the names in `OPTIONS`, taken out of what the model
gets) or in headers `x-thriftroute-<name>`, which win. Everything else in the body is the model's.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ...errors import require_extra
from ...router.output_tokens import OutputTokens
from ...router.text import last_turn
from .. import request_parts
from ..config.settings import CAPABILITIES
from ..errors import RefusedError, wrong
from ..request import LENGTHS, ChatRequest, Options, Principal
from ..request_parts import kind_of, parts_of, texts

PREFIX = "x-thriftroute-"
_NO_OPTIONS = Options.model_validate({})
OPTIONS = tuple(name for name in Options.model_fields if name != "metadata")
_ALIASES = {"maxCost": "max_cost", "strongShare": "strong_share"}
_ALIASES |= {"taskType": "task", "task_type": "task"}
# Both cost everybody's time: clients of providers take some 0.2 ms for each, and no loop turns.
MOST_PARTS = 4096  # messages and parts of their contents
MOST_OBJECTS = 20_000  # JSON objects and lists in a body
CHARACTERS_A_TOKEN = 3  # on the safe side of 4: too many tokens refuse late, too few fail upstream
_OURS = frozenset({"metadata", "native"})  # which a client cannot set
MOST_VALUES = 100_000  # entries of JSON objects and lists
LARGE_BYTES = 1_000_000  # from here on one body waits for another
DEEPEST = 100  # levels of JSON; past some hundreds nothing could write it again
# Half of a pair that stands for one character: JSON may escape it, UTF-8 has no bytes for it. Two
# patterns, each of which begins with bytes that are searched for at once.
_SURROGATES = (re.compile(rb"\\u[dD][89a-fA-F]"), re.compile(rb"\xed[\xa0-\xbf]"))

_KINDS: dict[type, str] = {
    dict: "an object", list: "a list", str: "text", bool: "true or false",
}  # fmt: skip

TokenCounter = Callable[[Sequence[Mapping[str, Any]], Sequence[Any] | None], int]


def read_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request's body, as it can be written again: halves of surrogate pairs
    become U+FFFD. Raises RefusedError (400) for anything else, NaN and infinite numbers and more
    than `MOST_VALUES` entries included: of millions of brackets a parser makes objects for seconds.
    """
    if len(raw) > MOST_VALUES:
        _check_entries(raw)
    try:
        body = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
        if any(half.search(raw) for half in _SURROGATES):
            written = json.dumps(body, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
            body = json.loads(written.decode("utf-16-le", "replace"))
    # RecursionError: nested a thousand levels deep. ValueError covers bytes that are no UTF-8.
    except (ValueError, RecursionError) as error:
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _no_json(f"is no JSON{place}; send a JSON object") from None
    if not isinstance(body, dict):
        raise _no_json(f"must be an object, got {_kind(body)}")
    return body


def _check_entries(raw: bytes) -> None:
    """Refuse JSON of too many entries before it is read, which would stop everybody else."""

    def count(text: bytes) -> int:
        return text.count(b",") + text.count(b"[") + text.count(b"{")

    if count(raw) > MOST_VALUES:  # most of them in text, perhaps
        plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
        strings = require_extra("regex", "serve").compile(rb'"[^"]*+"?')
        if count(strings.sub(b"", plain, concurrent=True)) > MOST_VALUES:
            raise _too_much(f"{MOST_VALUES} entries")


def read_options(metadata: object, headers: Mapping[str, str]) -> Options:
    """`headers` have lower-case names. Raises RefusedError (400) for a value that is none of an
    option's, and for a header of ours that is no option."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise wrong("metadata", f"expected an object, got {_kind(metadata)}")
    given: dict[str, tuple[str, Any]] = {}
    rest: dict[str, str] = {}
    for key, value in (metadata or {}).items():
        name = _ALIASES.get(key, key)
        if name in OPTIONS:
            given[name] = (f"metadata.{key}", value)
        else:
            rest[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    given |= _in_headers(headers)
    values = {name: value for name, (_, value) in given.items() if value is not None}
    if not values and not rest:
        return _NO_OPTIONS
    try:
        return Options(**values, metadata=rest)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        expected = Options.model_fields[name].description
        where = given[name][0] if name in given else name
        raise wrong(where, f"expected {expected}") from None


def read_request(
    body: Mapping[str, Any],
    options: Options,
    principal: Principal,
    *,
    id: str,
    lengths: OutputTokens,
    count: TokenCounter,
    unlimited: bool = False,
) -> ChatRequest:
    """Checks what the router relies on and nothing else: models know their own parameters.

    `lengths` are what is known of answers, `count` counts a prompt's tokens. `unlimited`: whether a
    maximum of -1 is none; it is left out then, since not every server that means it so takes it.
    Raises RefusedError (400), its `param` naming the part.
    """
    model = body.get("model", "auto")
    if not isinstance(model, str) or not model.strip():
        raise wrong("model", "expected the name of a model or router, such as 'auto'")
    messages = _checked_messages(body)
    for name, kind in (("stream", bool), ("stream_options", dict), ("tools", list)):
        if not isinstance(body.get(name), kind | None):
            raise wrong(name, f"expected {_KINDS[kind]}, got {_kind(body[name])}")
    output_tokens = request_parts.output_tokens(body, int(lengths.default), unlimited=unlimited)
    left_out = {name for name in LENGTHS if request_parts.is_unlimited(body.get(name))}
    return ChatRequest(
        id=id,
        model=model.strip(),
        body={k: v for k, v in body.items() if k not in _OURS and k not in left_out},
        messages=messages,
        text=last_turn(messages),
        stream=bool(body.get("stream")),
        needs=_needs(body, messages),
        prompt_tokens=count(messages, body.get("tools")) + _further_tokens(body),
        output_tokens=output_tokens,
        choices=request_parts.choices(body),
        principal=principal,
        options=options,
        lengths=lengths,
    )


def _checked_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "expected a list of at least one message")
    if len(messages) + sum(len(parts_of(message)) for message in messages) > MOST_PARTS:
        raise wrong("messages", f"more than {MOST_PARTS} messages and parts of their contents")
    _check_shape(body)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(f"messages[{index}]", "expected an object with a role")
        if not isinstance(message.get("content"), str | list | None):
            raise wrong(f"messages[{index}].content", "expected text, a list of parts, or null")
    request_parts.check_parts(messages)
    return messages


def _in_headers(headers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Option -> (header, value); of a header that is given twice, the first."""
    found: dict[str, tuple[str, str]] = {}
    for header, value in headers.items():
        if header.startswith(PREFIX):
            key = header.removeprefix(PREFIX).replace("-", "_")
            name = _ALIASES.get(key, key)
            if name not in OPTIONS:  # most likely misspelled, and a limit that is not set costs
                known = ", ".join(PREFIX + option.replace("_", "-") for option in OPTIONS)
                raise wrong(header, f"there is no such option; known are {known}")
            found.setdefault(name, (header, value))
    return found


def _further_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens stand beside messages and tools: a schema, functions, a prediction."""
    beside = [v for k, v in body.items() if k not in {"messages", "tools", "metadata"}]
    long = [v for v in beside if isinstance(v, dict | list) or (isinstance(v, str) and v[500:])]
    return sum(map(len, texts(long, data=True))) // CHARACTERS_A_TOKEN


def _needs(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The capabilities that a model needs for this body."""
    vision, tools, json_schema, reasoning = CAPABILITIES
    form = body.get("response_format")
    needed = {
        vision: any(kind_of(part) == "image_url" for m in messages for part in parts_of(m)),
        tools: bool(body.get("tools") or body.get("functions"))
        or any(m.get("tool_calls") or m.get("role") == "tool" for m in messages),
        json_schema: isinstance(form, Mapping) and form.get("type") == "json_schema",
        reasoning: body.get("reasoning_effort") not in (None, "none"),
    }
    return frozenset(name for name in needed if needed[name])


def _check_shape(body: Mapping[str, Any]) -> None:
    level: list[Any] = [body]
    count = depth = 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > DEEPEST:
            raise _too_much(f"{DEEPEST} levels")
        if count > MOST_OBJECTS:
            raise _too_much(f"{MOST_OBJECTS} objects and lists")
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]


def _finite(digits: str) -> float:
    found = float(digits)
    return found if math.isfinite(found) else _no_number(digits)


def _no_number(word: str) -> float:
    raise _no_json(f"is no JSON: {word[:20]} is no number that JSON can hold")


def _no_json(problem: str) -> RefusedError:
    return RefusedError(400, "invalid_json", f"the body {problem}")


def _too_much(what: str) -> RefusedError:
    return RefusedError(400, "invalid_request", f"JSON of more than {what}")


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), "a number")

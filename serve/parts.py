"""The parts of messages: which there are, and what in them names something outside the request.

An address (URL) that a client chose is no address for this server to call: some of LiteLLM's
providers take none, and for them LiteLLM (1.106 to 1.110) fetches it here, from wherever it leads.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import RefusedError

# OpenAI's, and what LiteLLM translates to other providers.
_TYPES = frozenset(
    {
        "text",
        "image_url",
        "input_audio",
        "audio_url",
        "video_url",
        "file",
        "document",
        "guarded_text",
    }
)
_OF_ANSWERS = frozenset({"refusal", "thinking", "redacted_thinking"})  # as some providers send them
_INSTEAD = {
    "input_text": "send it as 'text'",
    "output_text": "send it as 'text'",
    "input_image": "send it as 'image_url'",
    "image": "send it as 'image_url'",
    "input_file": "send it as 'file'",
    "tool_use": "send an assistant message with tool_calls",
    "tool_result": "send a message with the role 'tool' and its tool_call_id",
}
_TEXTS = frozenset({"text", "thinking", "refusal", "guarded_text"})
# Of a message, what is text or its model's own; the parts of its content are looked at one by one.
_NO_MEDIA = frozenset(
    {"content", "tool_calls", "function_call", "thinking_blocks", "reasoning_details"}
)
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Address(NamedTuple):
    """`where` in the request, such as `messages[0].content[1]`; `kind`, the part's type; `url`."""

    where: str
    kind: str
    url: str


def check_parts(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises RefusedError (400) for a part of a content that chat completions do not have."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        known = _TYPES | _OF_ANSWERS if message["role"] == "assistant" else _TYPES
        for number, part in enumerate(content):
            param = f"messages[{index}].content[{number}]"
            kind = part.get("type") if isinstance(part, Mapping) else None
            if not isinstance(kind, str):
                problem = "expected an object with a type, such as {'type': 'text', 'text': ...}"
            elif kind not in known:
                advice = _INSTEAD.get(kind) or f"known are {', '.join(sorted(known))}"
                # A type may be anything that a client wrote: no place to repeat it from.
                named = f"{kind!r}" if kind in _INSTEAD or kind in _OF_ANSWERS else "this type"
                problem = f"chat completions have no part of {named}; {advice}"
            else:
                continue
            raise RefusedError(400, "invalid_request", f"{param}: {problem}", param=param)


def addresses(messages: Sequence[Mapping[str, Any]]) -> Iterator[Address]:
    """Every address in a message that is not in a text: of images, sound, video and files."""
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue
        where = f"messages[{index}]"
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in _TEXTS:
                for url in _urls(part):
                    yield Address(f"{where}.content[{number}]", str(kind), url)
        for name, value in message.items():
            if name not in _NO_MEDIA and isinstance(value, Mapping | list):
                for url in _urls(value):
                    yield Address(f"{where}.{name}", name, url)


def refers(body: Mapping[str, Any]) -> bool:
    """Whether a request names what its provider has to look up: an address, a file or a sound that
    the provider keeps, a tool on another server. Where that fails, the client's choice failed."""
    messages = [m for m in body.get("messages") or () if isinstance(m, Mapping)]
    if any(isinstance(message.get("audio"), Mapping) for message in messages):
        return True
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") == "file":
                return True
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
            return True
    return any(True for _ in addresses(messages))


def countable(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """`messages` for LiteLLM's token counter, which gets an image of detail "high" from its address
    to learn its size: images without their detail."""
    return [_countable(message) for message in messages]


def _countable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _countable(v) for k, v in value.items() if k != "detail"}
    return [_countable(each) for each in value] if isinstance(value, list) else value


def _urls(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if _ADDRESS.match(value):
            yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _urls(each)

"""What a request's body may hold: its texts, the parts of messages, how long and how many answers.

An address (URL) that a client chose is no address for this server to call: some of LiteLLM's
providers take none, and for them LiteLLM (1.106 to 1.110) fetches it here, from wherever it leads.
Of an answer's length the largest number under any name counts, so that no budget and no `max_cost`
is passed by saying one number to us and another to a server.
"""

import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import RefusedError, wrong
from .request import LENGTHS

MOST_TOKENS = 10_000_000
MOST_CHOICES = 128
UNLIMITED = -1  # as llama.cpp, Ollama and LM Studio have it
# fmt: off
# Where the base64 of images, audio and files stands.
_DATA = frozenset({
    "data", "file_data", "url", "image_url", "video_url", "audio_url", "file", "image", "images",
})
# Types of parts: OpenAI's, and what LiteLLM translates to other providers.
_TYPES = frozenset({
    "text", "image_url", "input_audio", "audio_url", "video_url", "file", "document",
    "guarded_text",
})
# Letters of the names alone, in lower case: "maxOutputTokens" is "max_output_tokens".
_FURTHER = frozenset({
    "maxcompletiontokens", "maxtokens", "maxoutputtokens", "maxnewtokens", "maxgenlen",
    "maxgentokens", "maxtokencount", "maxtokenstosample", "maxdecodetokens", "numpredict",
    "npredict", "mintokens", "minnewtokens", "tokenstogenerate",
})
_THINKING = frozenset({
    "budgettokens", "thinkingbudget", "thinkingbudgettokens", "thinkingtokenbudget",
    "maxthinkingtokens", "reasoningbudget", "reasoningtokens", "maxreasoningtokens",
})
_CHOICES = frozenset({
    "n", "bestof", "candidatecount", "numcandidates", "numgenerations", "numreturnsequences",
    "numcompletions", "numresults", "numsamples", "numbeams", "beamwidth",
})
# fmt: on
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
# Of a body, text and schemas: a number in them is what a model reads or writes.
_NO_MAXIMA = frozenset(
    {
        *("messages", "tools", "functions", "response_format", "prediction", "metadata"),
        *("model", "stream", "temperature", "top_p", "stop", "user"),
    }
).union(LENGTHS)  # which are read by themselves
_PLAIN = {"role", "content"}
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_LONG = 1000  # characters; a shorter text is never taken for data
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Address(NamedTuple):
    """`where` in the request, such as `messages[0].content[1]`; `kind`, the part's type; `url`."""

    where: str
    kind: str
    url: str


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value in a JSON value, itself included, in order: the name that it, or the list that it
    is in, stands under, and it."""
    waiting = [("", value)]
    while waiting:
        name, each = waiting.pop()
        yield name, each
        # Most are text, and to ask for `Mapping` takes longer than all else here.
        if isinstance(each, str):
            continue
        if isinstance(each, dict | Mapping):
            waiting += reversed(list(each.items()))
        elif isinstance(each, list | tuple):
            waiting += [(name, inner) for inner in reversed(each)]


def texts(value: Any, *, data: bool = False) -> Iterator[str]:
    """Every text of a JSON value, in order: names, and numbers long enough to be a card's, too.
    The base64 of images, audio and files is left out, but where `data` is true."""
    for name, each in entries(value):
        if isinstance(each, str):
            yield each if data or name not in _DATA else _without_data(each)
        elif isinstance(each, list):
            continue
        elif isinstance(each, dict | Mapping):
            yield from each
        elif isinstance(each, int) and abs(each) >= 10**7:
            yield str(each)


def text_size(value: Any) -> int:
    """Characters of all `texts` of a JSON value, a few times sooner than they are found."""
    size, waiting = 0, [("", value)]
    while waiting:
        name, each = waiting.pop()
        if isinstance(each, str):
            size += len(each if name not in _DATA else _without_data(each))
        elif isinstance(each, dict | Mapping):
            size += sum(map(len, each))
            waiting += each.items()
        elif isinstance(each, list | tuple):
            waiting += [(name, inner) for inner in each]
        elif isinstance(each, int) and abs(each) >= 10**7:
            size += len(str(each))
    return size


def _without_data(text: str) -> str:
    if len(text) < _LONG:
        return text
    head, comma, rest = text.partition(",") if text.startswith("data:") else ("", "", text)
    return head + comma if rest.isascii() and not rest.encode().translate(None, _BASE64) else text


def parts_of(message: object) -> list[Any]:
    """The parts of a message's content; none where it is text, or no message."""
    content = message.get("content") if isinstance(message, dict | Mapping) else None
    return content if isinstance(content, list) else []


def kind_of(part: object) -> Any:
    """The type of a part, as the client wrote it."""
    return part.get("type") if isinstance(part, dict | Mapping) else None


def check_parts(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises RefusedError (400) for a part of a content that chat completions do not have."""
    for index, message in enumerate(messages):
        known = _TYPES | _OF_ANSWERS if message["role"] == "assistant" else _TYPES
        for number, part in enumerate(parts_of(message)):
            kind = kind_of(part)
            if isinstance(kind, str) and kind in known:
                continue
            problem = "expected an object with a type, such as {'type': 'text', 'text': ...}"
            if isinstance(kind, str):
                advice = _INSTEAD.get(kind) or f"known are {', '.join(sorted(known))}"
                # A type may be anything that a client wrote: no place to repeat it from.
                named = repr(kind) if kind in _INSTEAD or kind in _OF_ANSWERS else "this type"
                problem = f"chat completions have no part of {named}; {advice}"
            raise wrong(f"messages[{index}].content[{number}]", problem)


def addresses(messages: Sequence[Mapping[str, Any]]) -> Iterator[Address]:
    """Every address in a message that is not in a text: of images, sound, video and files."""
    for index, message in enumerate(messages):
        if message.keys() == _PLAIN and isinstance(message["content"], str):  # as nearly all are
            continue
        found = [(f"content[{n}]", kind_of(part), part) for n, part in enumerate(parts_of(message))]
        found = [each for each in found if each[1] not in _TEXTS]
        beside = message.items()
        found += [(k, k, v) for k, v in beside if k not in _NO_MEDIA and not isinstance(v, str)]
        for where, kind, part in found:
            for _, url in entries(part):
                if isinstance(url, str) and _ADDRESS.match(url):
                    yield Address(f"messages[{index}].{where}", str(kind), url)


def refers(body: Mapping[str, Any]) -> bool:
    """Whether a request names what its provider has to look up: an address, a file or a sound that
    the provider keeps, a tool on another server. Where that fails, the client's choice failed."""
    messages = [m for m in body.get("messages") or () if isinstance(m, Mapping)]
    tools = body["tools"] if isinstance(body.get("tools"), list) else ()
    kinds = [tool.get("type", "function") for tool in tools if isinstance(tool, Mapping)]
    return (
        any(kind != "function" for kind in kinds)
        or any(isinstance(message.get("audio"), Mapping) for message in messages)
        or any(kind_of(part) == "file" for message in messages for part in parts_of(message))
        or any(True for _ in addresses(messages))
    )


def countable(value: Any) -> Any:
    """Messages for LiteLLM's token counter, which gets an image of detail "high" from its address
    to learn its size: images without their detail."""
    if isinstance(value, Mapping):
        return {k: countable(v) for k, v in value.items() if k != "detail"}
    return [countable(each) for each in value] if isinstance(value, list | tuple) else value


def output_tokens(body: Mapping[str, Any], expected: int, *, unlimited: bool = False) -> int:
    """The longest answer that `body` allows, in tokens; `expected` where it says nothing.

    Other names than OpenAI's own make it longer, never shorter: not every server knows them. What a
    model may think first comes on top where there is no maximum. unlimited: whether `UNLIMITED`
    stands for none. Raises RefusedError (400).
    """
    said = [
        _whole(body[name], name, MOST_TOKENS)
        for name in LENGTHS
        if body.get(name) is not None and not (unlimited and is_unlimited(body[name]))
    ]
    longest = max(said, default=expected)
    thinking = max(_numbers(body, _THINKING, MOST_TOKENS), default=0)
    longest = max(longest, thinking) if said else longest + thinking
    # llama.cpp follows an endless `n_predict` whatever `max_tokens` says.
    least = 0 if said else UNLIMITED
    return max(longest, *_numbers(body, _FURTHER, MOST_TOKENS, least), 0)


def choices(body: Mapping[str, Any]) -> int:
    """How many answers `body` asks for, at most. Raises RefusedError (400)."""
    n = 1 if body.get("n") is None else _whole(body["n"], "n", MOST_CHOICES)
    return max(n, *_numbers(body, _CHOICES, MOST_CHOICES), 1)


def is_unlimited(value: object) -> bool:
    """Whether a maximum is none."""
    return isinstance(value, int) and value == UNLIMITED


def _numbers(
    body: Mapping[str, Any], names: frozenset[str], most: int, least: int = UNLIMITED
) -> Iterator[int]:
    """The numbers that stand under one of `names`, at any depth; text is left out."""
    looked_at = {name: value for name, value in body.items() if name not in _NO_MAXIMA}
    if not looked_at:
        return
    for name, value in entries(looked_at):
        letters = name.replace("_", "").replace("-", "").lower()
        # `reasoning.max_tokens` is a maximum as any other.
        if letters in names and isinstance(value, int | float | str):
            number = _number(value)
            if not least <= number <= most:
                raise _no_whole(name, most)
            yield int(number)


def _number(value: float | str) -> float:
    """A number as lenient servers read it, `UNLIMITED` for all below 0; 0 for what is none."""
    try:
        number = float(value)
    except ValueError:
        return 0.0
    except OverflowError:
        return math.inf
    return 0.0 if math.isnan(number) else max(number, float(UNLIMITED))


def _whole(value: object, name: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _no_whole(name, most)
    return value


def _no_whole(name: str, most: int) -> RefusedError:
    return wrong(name[:50], f"expected a whole number from 1 to {most}")

"""What of a request is scored: a prompt or a conversation, cut to the encoder's length.

The rule, in characters first and then in tokens:

1. Text only. Of a message's content the text parts count; images and files do not. A tool call
   counts as `name(arguments)`. System and developer messages are the *system* text, the last user
   message is the *last* turn, all the rest (earlier turns, and the tool calls and results that
   follow the last user message) is the *history*, in order.
2. `context="conversation"` (the default) scores history and last turn; `"full"` the system text
   too; `"last"` the last turn alone, as RouteLLM does. The system text is left out by default: it
   is the same for all requests of an application, so it tells nothing about their difficulty.
3. Each text is stripped and cut to its first and last `CLIP_CHARS` characters, so that a
   megabyte costs no more than a page.
4. Tokens: the history has a quarter of the budget (the system text an eighth), the last turn the
   rest; what one of them does not use goes to the others. The last turn keeps its head and its
   tail in equal parts, the history its tail, the system text its head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

from tokenizers import Tokenizer

from ..errors import ConfigError, DataError, RoutingError
from .tokenizing import token_ids

Context = Literal["last", "conversation", "full"]
Message = Mapping[str, Any]
Promptlike = str | Sequence[Message]

CLIP_CHARS = 2048


@dataclass(frozen=True, slots=True)
class Conversation:
    """The text of a request: `system`, `history` and `last` turn, each '' where there is none."""

    system: str
    history: str
    last: str

    @property
    def is_blank(self) -> bool:
        """True where there is nothing to score."""
        return not (self.last.strip() or self.history.strip())


def validate_context(context: str) -> Context:
    """Return `context` as it is; raise ConfigError where it is none of the three."""
    if context not in get_args(Context):
        raise ConfigError(f"context {context!r}: expected one of {', '.join(get_args(Context))}")
    return context  # type: ignore[return-value]


def as_conversation(prompt: Promptlike | Conversation) -> Conversation:
    """Split a prompt or a list of OpenAI messages into system text, history and last turn.

    Raises DataError where it is neither, a message is no mapping, or its content is neither text,
    parts nor null.
    """
    if isinstance(prompt, Conversation):
        return prompt
    if isinstance(prompt, str):
        return Conversation("", "", prompt)
    if not _is_list(prompt):
        raise DataError(f"expected text or a list of messages, got {type(prompt).__name__}")
    system: list[str] = []
    turns: list[str] = []
    last_user = -1
    for index, message in enumerate(prompt):
        if not isinstance(message, dict | Mapping):
            raise DataError(
                f"expected a mapping with 'role' and 'content', got {type(message).__name__}",
                field=f"messages[{index}]",
            )
        text = _message_text(message, index)
        if message.get("role") in ("system", "developer"):
            system.append(text)
            continue
        if message.get("role") == "user":
            last_user = len(turns)
        turns.append(text)
    if last_user < 0:
        last_user = len(turns) - 1
    last = turns.pop(last_user) if turns else ""
    return Conversation(_join(system), _join(turns), last)


def last_turn(messages: Sequence[Message]) -> str:
    """The last turn of messages that have been checked: `as_conversation(messages).last`."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return _message_text(message, 0)
    turns = [m for m in messages if m.get("role") not in ("system", "developer")]
    return _message_text(turns[-1], 0) if turns else ""


def check_messages(messages: object) -> None:
    """Raise RoutingError unless these are messages, at least one."""
    form = "give messages=[{'role': 'user', 'content': ...}, ...]"
    if messages is None:
        raise RoutingError(f"the request has no messages; {form}")
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise RoutingError(f"messages must be a list, got {type(messages).__name__}; {form}")
    if not messages:
        raise RoutingError(f"messages is an empty list; {form}")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping) and not hasattr(message, "model_dump"):
            kind = type(message).__name__
            raise RoutingError(f"messages[{at}] must be a mapping, got {kind}; {form}")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the graph reads of a conversation.

    ids: token ids, at most `max_tokens`, specials included. text: the last turn, clipped as rule 3
    says, of which the cheap features are made; tokens: how many tokens all of it has.
    """

    ids: list[int]
    text: str
    tokens: int


def encode(
    conversation: Conversation,
    ids_of: Callable[[str], list[int]],
    *,
    max_tokens: int,
    prefix: Sequence[int],
    suffix: Sequence[int],
    context: Context = "conversation",
) -> Encoded:
    """Token ids of a conversation by the rule above, and the text that features are made of.

    `ids_of` gives those of a text without special tokens (`tokenizing.token_ids` of a tokenizer).
    `prefix` and `suffix` are the encoder's special tokens ([CLS] and [SEP]); the suffix also stands
    between the parts. Where there is no text, the ids are prefix and suffix alone. Raises
    ValueError where the tokenizer fails.
    """
    budget = max_tokens - len(prefix) - len(suffix)
    text = _clip(conversation.last)
    texts = (
        text,
        "" if context == "last" else _clip(conversation.history),
        _clip(conversation.system) if context == "full" else "",
    )
    last, history, system = (ids_of(part) if part else [] for part in texts)
    budget -= len(suffix) * (bool(history) + bool(system))
    room_system = min(len(system), budget // 8)
    room_history = min(len(history), budget // 4)
    room_last = min(len(last), budget - room_history - room_system)
    # What the last turn leaves free goes to the history first: it is nearer to the question.
    room_history = min(len(history), budget - room_last - room_system)
    room_system = min(len(system), budget - room_last - room_history)
    tail = room_last // 2 if len(last) > room_last else 0
    kept = last[: room_last - tail] + last[len(last) - tail :]
    parts = (system[:room_system], history[len(history) - room_history :], kept)
    ids: list[int] = []
    for part in parts:
        if part:
            ids += part
            ids += suffix
    return Encoded([*prefix, *(ids or suffix)], text, len(last))


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's own template puts before and after a text."""
    bare = token_ids(tokenizer, "a")
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
    if start is None or not bare:
        raise ConfigError("the tokenizer's template changes the text's own tokens: not supported")
    return whole[:start], whole[start + len(bare) :]


def _clip(text: str) -> str:
    text = text.strip()
    if len(text) > 2 * CLIP_CHARS:
        text = f"{text[:CLIP_CHARS]} {text[-CLIP_CHARS:]}"
    # A lone surrogate is legal in a Python string and in JSON, but is no character: the tokenizer
    # would refuse the whole text for it.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _join(texts: Sequence[str]) -> str:
    return "\n\n".join(text for text in texts if text)


def _message_text(message: Message, index: int) -> str:
    content = message.get("content")
    if content is not None and not isinstance(content, str) and not _is_list(content):
        raise DataError(
            f"expected text, a list of parts or null, got {type(content).__name__}",
            field=f"messages[{index}].content",
        )
    if isinstance(content, str) and "tool_calls" not in message:
        return content
    texts: list[str] = []
    for part in [content] if isinstance(content, str) else content or ():
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
    calls = message.get("tool_calls")
    for call in calls if _is_list(calls) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            texts.append(f"{function.get('name', '')}({function.get('arguments', '')})")
    return "\n".join(texts)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    # Most are lists, and to ask for `Sequence` takes ten times as long.
    if isinstance(value, list):
        return True
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)

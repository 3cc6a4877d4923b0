"""What models thought, as clients keep it for them: signed, or encrypted, by its provider.

A provider takes back what it signed itself; signatures of another one are errors to it (Anthropic
says to leave such blocks out, OpenAI cannot decrypt such items). So each signature goes to the
client with its maker in front, and comes back without: nothing has to be remembered, and what stays
with its provider stays whole. What no maker is known of, from before this server, is left as it is.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_MARK = re.compile(r"tr1\.([0-9a-f]{8})\.")
# The type of a block -> where its signature is.
_SIGNED = {
    "thinking": "signature", "redacted_thinking": "data", "reasoning": "encrypted_content",
    "signature_delta": "signature", "compaction": "encrypted_content",
}  # fmt: skip
# What a tool is given or gives is no block, whatever it looks like.
_TOOLS = frozenset({"input", "arguments", "tools"})


def mark(maker: str, signature: str) -> str:
    """The signature as clients get it."""
    return f"tr1.{maker}.{signature}"


def maker_of(signature: object) -> tuple[str | None, str]:
    """(maker, the signature itself); no maker where none is marked."""
    text = signature if isinstance(signature, str) else ""
    found = _MARK.match(text)
    return (found.group(1), text[found.end() :]) if found else (None, text)


def marked(value: Any, maker: str) -> Any:
    """A provider's answer, or an event of one, with all its signatures marked."""

    def change(block: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        has = isinstance(block.get(name), str) and block[name]
        return {**block, name: mark(maker, block[name])} if has else None

    return _changed(value, change)


def for_maker(value: Any, maker: str) -> Any:
    """A client's messages or items as this maker may read them: its own signatures as it made them,
    without the blocks that another made, or nobody signed."""

    def change(block: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        by, signature = maker_of(block.get(name))
        if by is None:
            return None
        return {**block, name: signature} if by == maker and signature else {}

    return _changed(value, change)


def for_chat(message: Mapping[str, Any], maker: str) -> dict[str, Any]:
    """A message of a chat completion, its `thinking_blocks` as `for_maker`. What a model thought
    without a signature goes back to it as `reasoning_content`, which some demand."""
    rest = {k: v for k, v in message.items() if k != "thinking_blocks"}
    kept, plain = [], []
    for block in message["thinking_blocks"]:
        by, signature = maker_of(block.get(_SIGNED.get(block.get("type"), "")))
        if by == maker and not signature:
            plain.append(str(block.get("thinking") or ""))
        elif by == maker:
            kept += for_maker([block], maker)
    if kept:
        rest["thinking_blocks"] = kept
    if plain:
        rest["reasoning_content"] = "".join(plain)
    return rest


Change = Callable[[Mapping[str, Any], str], dict[str, Any] | None]


def _changed(value: Any, change: Change) -> Any:
    """With every signed block as `change` has it: None leaves it, {} takes it out of its list."""
    if isinstance(value, list):
        items = [_changed(each, change) for each in value]
        return [new for new, old in zip(items, value, strict=True) if new != {} or old == {}]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    if isinstance(kind, str) and kind in _SIGNED:
        found = change(value, _SIGNED[kind])
        return value if found is None else found
    return {k: v if k in _TOOLS else _changed(v, change) for k, v in value.items()}

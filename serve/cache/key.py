"""The key under which an answer is kept: a hash of everything that changes the answer.

In it are the tenant (no answer ever crosses tenants), the pool, the models that were chosen for the
request in their order of trial, the messages, and every other keyword of the body, known to us or
not, but for those of `_IGNORED` and those that are null. What a client asks of the router acts
through the chosen models alone. The order of keys counts inside `tools`, `response_format` and
other keywords: a model fills a schema's properties in the order in which it reads them.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ..policy.plan import RoutingPlan
from ..registry import Model
from ..request import ChatRequest

_VERSION = 1  # raise it where the same request must no longer find what was kept before
_IGNORED = {  # messages are hashed by themselves
    "messages", "metadata", "model", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "stream", "stream_options", "user",
}  # fmt: skip


def cache_key(asked: ChatRequest, pool: Sequence[str], plan: RoutingPlan) -> str:
    """SHA-256, 64 hex digits, of what the answer to `asked` depends on. pool: `model_id` of each
    model, so that nothing that was kept is found once a name means another one."""
    return _digest(asked, asked.messages, pool, plan, "exact")


def semantic_bucket(asked: ChatRequest, pool: Sequence[str], plan: RoutingPlan) -> str | None:
    """SHA-256 of the same but for `asked.text`, what the user wrote last. None where the last
    message is no user's text, as in the middle of tool calls."""
    if not asked.messages or asked.messages[-1].get("role") != "user":
        return None
    blanked, text = _without_text(asked.messages[-1])
    if not text.strip() or text != asked.text:  # text that stands elsewhere would be compared
        return None
    messages = [*asked.messages[:-1], blanked]
    return _digest(asked, messages, pool, plan, "semantic")


def model_id(model: Model) -> str:
    """What a pool's name stands for: name, model and parameters, without its key."""
    params = {name: value for name, value in model.params.items() if name != "api_key"}
    text = canonical([model.name, model.litellm_model, sorted(params.items())])
    return f"{model.name}:{hashlib.sha256(text).hexdigest()[:16]}"


def _digest(
    asked: ChatRequest,
    messages: Sequence[Mapping[str, Any]],
    pool: Sequence[str],
    plan: RoutingPlan,
    kind: str,
) -> str:
    who = [_VERSION, kind, asked.principal.tenant, list(pool), list(plan.models), plan.looks]
    rest = [
        [name, _number(value)]
        for name, value in sorted(asked.body.items())
        if name not in _IGNORED and value is not None
    ]
    # JSON holds no raw line break, so three lines can be told apart whatever is in them.
    try:
        parts = (canonical(who), canonical(list(messages), sort=True), canonical(rest), b"")
    except RecursionError:  # nested almost too deep to be read at all
        return secrets.token_hex(32)  # found by nobody
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def canonical(value: object, *, sort: bool = False) -> bytes:
    """JSON in ASCII: a lone surrogate, which JSON may escape but UTF-8 cannot hold, is kept."""
    return (_SORTED if sort else _AS_IT_IS)(value).encode()


def _plain(value: object) -> object:
    """What JSON does not know: any mapping; of the rest (dates of a YAML file) the text."""
    return dict(value) if isinstance(value, Mapping) else repr(value)


# `json.dumps` makes an encoder for each call.
_SORTED, _AS_IT_IS = (
    json.JSONEncoder(sort_keys=sort, separators=(",", ":"), default=_plain).encode
    for sort in (True, False)
)


def _number(value: object) -> object:
    """A temperature of 1.0 is one of 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_text(message: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The message with its text blanked, and the text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": ""}, content
    texts: list[str] = []
    parts: list[object] = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            part = {**part, "text": ""}  # noqa: PLW2901
        parts.append(part)
    return {**message, "content": parts}, "\n".join(texts)

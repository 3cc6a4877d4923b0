"""Which conversation a request belongs to, by what its client sends.

The first that is there:

1. `session` of the request's options;
2. a header, or a field, in which a known tool names its session, with the names of the request's
   tools: such a tool makes short calls aside (titles, summaries) that are no step of its loop;
3. a hash of what begins the conversation (system text, tools, first user message), with `user`,
   `metadata.user_id` and `prompt_cache_key`, which many conversations may share.

The third alone is no name: two conversations can begin alike. It holds only once an answer has been
given, and every key is within one tenant and one API key (`cache.sessions`).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .cache.key import canonical
from .request import Session

# Claude Code, Codex, OpenCode; the first that is there counts.
HEADERS = (
    "x-claude-code-session-id", "session_id", "session-id", "x-session-id", "x-opencode-session",
    "x-session-affinity", "conversation_id", "thread-id",
)  # fmt: skip
_IN_USER_ID = re.compile(r"_session_([0-9a-fA-F-]{36})$")
_LONGEST = 500  # characters of a name
_BILLING = "x-anthropic-billing-header"  # Claude Code's first system block differs in each request


def session_of(
    session: str | None,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    metadata: object,
    messages: Sequence[Mapping[str, Any]],
) -> Session:
    """session: of the options; headers with lower-case names; body: the chat completion's."""
    if session is not None:
        return Session(session, told=True)
    user = _user_id(metadata)
    named = next((headers[name] for name in HEADERS if headers.get(name)), None)
    named = named or _named_in(user)
    if named is not None:
        tools = sorted(str(_name(tool)) for tool in body.get("tools") or ())
        return Session(_hashed("tool", named[:_LONGEST], tools), told=True)
    more = [body.get("user"), user, body.get("prompt_cache_key")]
    first = next((m for m in messages if m.get("role") == "user"), {})
    system = [_text(m) for m in messages if m.get("role") in ("system", "developer")]
    return Session(_hashed("begin", more, system[:1], body.get("tools"), _text(first)), told=False)


def _user_id(metadata: object) -> str | None:
    found = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) and found else None


def _named_in(user_id: str | None) -> str | None:
    """The session that Claude Code's `metadata.user_id` names, as JSON or at its end."""
    if user_id is None:
        return None
    if found := _IN_USER_ID.search(user_id):
        return found.group(1)
    try:
        session = json.loads(user_id)["session_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return session if isinstance(session, str) and session else None


def _name(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None


def _text(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [str(part.get("text") or "") for part in parts if isinstance(part, Mapping)]
    return [text for text in texts if not text.startswith(_BILLING)]


def _hashed(*parts: object) -> str:
    return hashlib.sha256(canonical(parts, sort=True)).hexdigest()

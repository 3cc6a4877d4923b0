"""Sessions of coding agents as they keep them on disk: from lines of a file to calls of models.

    Claude Code   ~/.claude/projects/**/*.jsonl, subagents (sidechains) included
    Codex         ~/.codex/sessions/**/rollout-*.jsonl
    OpenCode      `opencode export`, and storage/message/**/*.json, which has no text

A call is an object with the columns that `steps` reads: whose session it is of, its
tokens, and how many messages and results of tools came before. The first call after a prompt of the
user also has `conversation`, the texts of both sides so far, and `answer`: to `logs import` it is a
request. Results of tools are left out of the text.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...router.switching import exit_code
from .normalize import Object, body, first, listed, text

# What harnesses write in a user's name.
_NOT_SAID = re.compile(
    r"\s*(<(local-command|command-|bash-|system-reminder|environment_context|user_instructions"
    r"|permissions|turn_aborted|INSTRUCTIONS|skill|collaboration_mode)|\[Request interrupted"
    r"|Caveat: The messages below|# AGENTS\.md)"
)
_SYNTHETIC = "<synthetic>"  # messages of Claude Code itself, such as of a limit that was reached


class Transcript(Protocol):
    """What takes the lines of one file, in their order."""

    def line(self, record: Object) -> Iterator[dict[str, Any]]:
        """The calls that a line completes."""

    def end(self) -> Iterator[dict[str, Any]]:
        """The calls that the end of the file completes."""


def transcript_of(head: Iterable[Object]) -> Transcript | None:
    """What reads the file that begins so; None where it is no transcript."""
    for record in head:
        if {"sessionId", "uuid", "message"} <= set(record):
            return ClaudeCode()
        if record.get("type") == "session_meta" and isinstance(record.get("payload"), dict):
            return Codex()
    return None


@dataclass(slots=True)
class _Thread:
    """One conversation with models: a session, or a subagent's part of it."""

    session: str
    sidechain: bool = False
    step: int = 0
    messages: int = 0
    tool_results: int = 0
    tool_errors: int = 0
    said: list[dict[str, str]] = field(default_factory=list)
    asked: bool = False  # the user has said something that no call has answered
    call: dict[str, Any] | None = None  # which more lines may belong to
    texts: list[str] = field(default_factory=list)  # of that call
    tools: list[str] = field(default_factory=list)

    def prompt(self, words: str, compacted: bool = False) -> None:
        """A message of the user; `compacted`: it takes the place of all that was said."""
        self.messages += 1
        if words.strip() and not _NOT_SAID.match(words):
            turn = {"role": "user", "content": words}
            self.said = [turn] if compacted else [*self.said, turn]
            self.asked = True

    def result(self, failed: bool) -> None:
        """A result of a tool."""
        self.messages += 1
        self.tool_results += 1
        self.tool_errors += failed

    def begin(self, agent: str, id_: str, time: object, model: str) -> None:
        """A call of a model, after what came so far."""
        counts = {name: getattr(self, name) for name in ("messages", "tool_results", "tool_errors")}
        call = {"agent": agent, "id": id_, "session": self.session, "sidechain": self.sidechain}
        self.call = {**call, "time": time, "model": model, "step": self.step, **counts}
        if self.asked:
            self.call["conversation"] = list(self.said)
        self.step += 1
        self.asked = False

    def close(self, usage: Object) -> Iterator[dict[str, Any]]:
        """The call, if one is open."""
        if self.call is not None:
            answer = "\n".join(filter(None, self.texts))
            if answer:
                self.said.append({"role": "assistant", "content": answer})
            call = {**self.call, **usage, "tools": ",".join(self.tools)}
            if "conversation" in call:
                call["answer"] = "\n".join(filter(None, (answer, *self.tools)))
            yield call
        self.call, self.texts, self.tools = None, [], []


class ClaudeCode:
    """Lines of Claude Code. One answer is written as several lines of one message id, each with the
    usage as far as it was known: they are one call. A session that was resumed repeats the lines of
    the one before: an id that came already is passed over.
    """

    def __init__(self) -> None:
        self._threads: dict[str, _Thread] = {}
        self._roots: dict[str, str] = {}  # of lines of subagents that are not named
        self._seen: set[str] = set()

    def line(self, record: Object) -> Iterator[dict[str, Any]]:
        """As of `Transcript`."""
        kind, message = record.get("type"), body(record.get("message"))
        if kind == "user" and record.get("isMeta") is not True:
            yield from self._user(self._thread(record), record, message)
        own = text(message.get("model")) == _SYNTHETIC or record.get("isApiErrorMessage")
        if kind == "assistant" and isinstance(message.get("usage"), dict) and not own:
            yield from self._assistant(self._thread(record), record, message)

    def end(self) -> Iterator[dict[str, Any]]:
        """As of `Transcript`."""
        for thread in self._threads.values():
            yield from self._close(thread)

    def _thread(self, record: Object) -> _Thread:
        session, sidechain = text(record.get("sessionId")), record.get("isSidechain") is True
        name = session
        if sidechain:
            own = text(record.get("uuid"))
            root = self._roots.get(text(record.get("parentUuid")), own)
            self._roots[own] = root
            name = f"{session}/{text(record.get('agentId')) or root}"
        return self._threads.setdefault(name, _Thread(name, sidechain))

    def _user(self, thread: _Thread, record: Object, message: Object) -> Iterator[dict[str, Any]]:
        content = message.get("content")
        parts = listed(content)
        results = [part for part in parts if part.get("type") == "tool_result"]
        for part in results:
            thread.result(part.get("is_error") is True)
        if not results:
            yield from self._close(thread)
            words = content if isinstance(content, str) else _texts(parts)
            thread.prompt(words, compacted=record.get("isCompactSummary") is True)

    def _assistant(
        self, thread: _Thread, record: Object, message: Object
    ) -> Iterator[dict[str, Any]]:
        id_ = text(message.get("id") or record.get("requestId") or record.get("uuid"))
        usage = _anthropic_usage(message["usage"])
        if thread.call is None or thread.call["id"] != id_:
            yield from self._close(thread)
            if id_ in self._seen:
                return
            self._seen.add(id_)
            thread.begin("claude-code", id_, record.get("timestamp"), text(message.get("model")))
        assert thread.call is not None
        # The last line has all tokens of the answer, those before it only what was there.
        for name, tokens in usage.items():
            thread.call[name] = max(thread.call.get(name, 0), tokens)
        for part in listed(message.get("content")):
            if part.get("type") == "text":
                thread.texts.append(text(part.get("text")))
            elif part.get("type") == "tool_use":
                thread.tools.append(text(part.get("name")))

    @staticmethod
    def _close(thread: _Thread) -> Iterator[dict[str, Any]]:
        return thread.close({})


class Codex:
    """Lines of a rollout of Codex. A `token_count` ends each call; one that repeats the totals of
    the one before, as those that tell of limits do, is none."""

    def __init__(self) -> None:
        self._thread: _Thread | None = None
        self._model = ""
        self._totals: Object = {}

    def line(self, record: Object) -> Iterator[dict[str, Any]]:
        """As of `Transcript`."""
        kind, load = record.get("type"), body(record.get("payload"))
        if kind == "session_meta" and self._thread is None:
            of = body(load.get("source"))
            self._thread = _Thread(text(load.get("id")), "subagent" in of)
        elif kind == "turn_context":
            self._model = text(load.get("model")) or self._model
        elif self._thread is None:
            return
        elif kind == "response_item":
            self._item(self._thread, load)
        elif kind == "compacted":
            self._thread.said = [{"role": "user", "content": text(load.get("message"))}]
        elif kind == "event_msg" and load.get("type") == "token_count":
            yield from self._count(self._thread, body(load.get("info")), record.get("timestamp"))

    def end(self) -> Iterator[dict[str, Any]]:
        """As of `Transcript`: a call that was not counted is none."""
        return iter(())

    @staticmethod
    def _item(thread: _Thread, item: Object) -> None:
        kind = text(item.get("type"))
        if kind == "message":
            words = _texts(listed(item.get("content")))
            if item.get("role") == "user":
                if not _NOT_SAID.match(words):
                    thread.prompt(words)
            elif item.get("role") == "assistant":
                thread.texts.append(words)
        elif kind.endswith("_call_output"):
            said = item.get("output")
            words = said if isinstance(said, str) else text(first(body(said), "content", "output"))
            thread.result(bool(exit_code(words)))
        elif kind.endswith("_call"):
            thread.tools.append(text(item.get("name")) or kind.removesuffix("_call"))

    def _count(self, thread: _Thread, info: Object, time: object) -> Iterator[dict[str, Any]]:
        totals, last = body(info.get("total_token_usage")), body(info.get("last_token_usage"))
        if not totals or totals == self._totals:
            return
        if not last:
            last = {n: _amount(totals, n) - _amount(self._totals, n) for n in totals}
        self._totals = totals
        cached = min(_amount(last, "cached_input_tokens"), _amount(last, "input_tokens"))
        usage = {
            "input_tokens": _amount(last, "input_tokens") - cached,
            "cache_read_tokens": cached,
            "cache_write_tokens": 0,
            "output_tokens": _amount(last, "output_tokens"),
        }
        id_ = f"{thread.session}:{_amount(totals, 'total_tokens')}"
        thread.begin("codex", id_, time, self._model)
        yield from thread.close(usage)


def opencode_calls(record: Object) -> Iterator[dict[str, Any]]:
    """The calls in an entry of OpenCode: an exported session, or one message of its storage."""
    messages = listed(record.get("messages")) or [{"info": record}]
    threads: dict[str, _Thread] = {}
    for message in messages:
        info, parts = body(message.get("info")), listed(message.get("parts"))
        session = text(info.get("sessionID"))
        thread = threads.setdefault(session, _Thread(session))
        if info.get("role") == "user":
            thread.prompt(_texts(parts))
            continue
        # A message of older versions has all steps of its turn, of newer ones it has one.
        steps = [p for p in parts if p.get("type") == "step-finish" and p.get("tokens")] or [info]
        thread.texts = [text(p.get("text")) for p in parts if p.get("type") == "text"]
        tools = [p for p in parts if p.get("type") == "tool"]
        thread.tools = [text(tool.get("tool")) for tool in tools]
        for number, step in enumerate(steps):
            id_ = text(info.get("id")) + (f":{number}" if number else "")
            time = first(info, "time.created")
            thread.begin("opencode", id_, time, text(info.get("modelID")))
            yield from thread.close(_opencode_usage(body(step.get("tokens"))))
        for tool in tools:
            thread.result(body(tool.get("state")).get("status") == "error")


def is_opencode(record: Object) -> bool:
    """Whether an entry is an exported session of OpenCode, or a message of its storage."""
    if isinstance(record.get("messages"), list):
        return {"id", "projectID", "directory"} & set(body(record.get("info"))) != set()
    return "sessionID" in record and record.get("role") in ("user", "assistant")


def _texts(parts: Iterable[Object]) -> str:
    # A part of OpenCode that is synthetic was read by its tools, not said.
    said = (text(part.get("text")) for part in parts if not part.get("synthetic"))
    return "\n".join(filter(None, said))


def _amount(usage: Object, name: str) -> int:
    value = usage.get(name)
    return int(value) if isinstance(value, int | float) and value >= 0 else 0


def _anthropic_usage(usage: Object) -> dict[str, int]:
    kept = body(usage.get("cache_creation"))
    return {
        "input_tokens": _amount(usage, "input_tokens"),
        "cache_read_tokens": _amount(usage, "cache_read_input_tokens"),
        "cache_write_tokens": _amount(usage, "cache_creation_input_tokens"),
        "cache_write_1h_tokens": _amount(kept, "ephemeral_1h_input_tokens"),
        "output_tokens": _amount(usage, "output_tokens"),
    }


def _opencode_usage(tokens: Object) -> dict[str, int]:
    cache = body(tokens.get("cache"))
    return {
        "input_tokens": _amount(tokens, "input"),
        "cache_read_tokens": _amount(cache, "read"),
        "cache_write_tokens": _amount(cache, "write"),
        # Which it counts apart.
        "output_tokens": _amount(tokens, "output") + _amount(tokens, "reasoning"),
    }

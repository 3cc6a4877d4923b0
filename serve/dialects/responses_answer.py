"""Answers of OpenAI's Responses: made of chat completions, and read as them."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from ...providers.http_answer import BadAnswerError
from .. import thoughts

Json = dict[str, Any]


def response_of(
    completion: Mapping[str, Any], asked: Mapping[str, Any], custom: frozenset[str]
) -> Json:
    """A chat completion as a response. asked: the client's body; custom: its tools of text."""
    choice = (completion.get("choices") or [{}])[0]
    said, maker = choice.get("message") or {}, completion.get("maker") or ""
    output: list[Json] = []
    if text := said.get("reasoning_content"):
        output.append(_reasoning(text, maker))
    if text := said.get("content") or said.get("refusal"):
        output.append(_message(text))
    for call in said.get("tool_calls") or ():
        function = call.get("function") or {}
        output.append(
            _call(call.get("id"), function.get("name"), function.get("arguments") or "", custom)
        )
    return _finished(_shell(completion, asked), output, choice.get("finish_reason"), completion)


def error_of(told: Mapping[str, Any]) -> Json:
    """An error within a stream. told: {"error": ...}, as chat completions have it."""
    about = {name: told["error"].get(name) for name in ("code", "message", "param")}
    return {"type": "error", "sequence_number": 0, **about}


class Events:
    """The events of a stream, made of a completion's chunks."""

    def __init__(self, asked: Mapping[str, Any], custom: frozenset[str]) -> None:
        self._asked, self._custom = asked, custom
        self._response: Json = {}
        self._output: list[Json] = []
        self._open: tuple[str, Any] | None = None
        self._text: list[str] = []
        self._maker = ""
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._number = 0

    def of(self, chunk: Mapping[str, Any]) -> Iterator[Json]:
        """The events that a chunk brings."""
        if not self._response:
            self._maker = chunk.get("maker") or ""
            self._response = _shell(chunk, self._asked)
            yield self._event("response.created", response=self._response)
            yield self._event("response.in_progress", response=self._response)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue
            delta = choice.get("delta") or {}
            if text := delta.get("reasoning_content"):
                yield from self._piece("reasoning", text)
            if text := delta.get("content") or delta.get("refusal"):
                yield from self._piece("message", text)
            for call in delta.get("tool_calls") or ():
                yield from self._called(call)
            self._reason = choice.get("finish_reason") or self._reason

    def end(self) -> Iterator[Json]:
        """What ends the response."""
        yield from self._close()
        usage = {"usage": self._usage}
        done = _finished(self._response, self._output, self._reason, usage)
        yield self._event(f"response.{done['status']}", response=done)

    def _piece(self, kind: str, text: str) -> Iterator[Json]:
        if self._open != (kind, None):
            item = _message("") if kind == "message" else _reasoning("", self._maker)
            start = {**item, "status": "in_progress"} if kind == "message" else item
            start |= {"content": []} if kind == "message" else {"summary": []}
            yield from self._start((kind, None), item, start)
            yield self._on(f"{_PART[kind]}.added", part=_part(kind, ""), **_place(kind))
        self._text.append(text)
        yield self._on(f"{_TEXT[kind]}.delta", delta=text, **_place(kind), **_logprobs(kind))

    def _called(self, call: Mapping[str, Any]) -> Iterator[Json]:
        function = call.get("function") or {}
        if self._open != ("call", call.get("index")):
            item = _call(call.get("id"), function.get("name"), "", self._custom)
            start = {**item, "status": "in_progress"}
            yield from self._start(("call", call.get("index")), item, start)
        if piece := function.get("arguments"):
            self._text.append(piece)
            # The text of a custom tool is within JSON, and is told when that is whole.
            if self._output[-1]["type"] == "function_call":
                yield self._on("response.function_call_arguments.delta", delta=piece)

    def _start(self, key: tuple[str, Any], item: Json, start: Json) -> Iterator[Json]:
        yield from self._close()
        self._open, self._text = key, []
        self._output.append(item)
        index = len(self._output) - 1
        yield self._event("response.output_item.added", output_index=index, item=start)

    def _close(self) -> Iterator[Json]:
        if self._open is None:
            return
        kind, text, item = self._open[0], "".join(self._text), self._output[-1]
        self._open = None
        if kind == "call":
            whole = _call(item["call_id"], item["name"], text, self._custom)
            item |= {name: value for name, value in whole.items() if name != "id"}
            if item["type"] == "function_call":
                yield self._on("response.function_call_arguments.done", arguments=text,
                               name=item["name"])  # fmt: skip
            else:
                told = "response.custom_tool_call_input"
                yield self._on(f"{told}.delta", delta=item["input"])
                yield self._on(f"{told}.done", input=item["input"])
        else:
            part, place = _part(kind, text), _place(kind)
            item["content" if kind == "message" else "summary"] = [part]
            yield self._on(f"{_TEXT[kind]}.done", text=text, **place, **_logprobs(kind))
            yield self._on(f"{_PART[kind]}.done", part=part, **place)
        index = len(self._output) - 1
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _on(self, kind: str, **more: Any) -> Json:
        at = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return self._event(kind, **at, **more)

    def _event(self, kind: str, **more: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}


_PART = {"message": "response.content_part", "reasoning": "response.reasoning_summary_part"}
_TEXT = {"message": "response.output_text", "reasoning": "response.reasoning_summary_text"}


def _place(kind: str) -> Json:
    return {"content_index": 0} if kind == "message" else {"summary_index": 0}


def _logprobs(kind: str) -> Json:
    return {"logprobs": []} if kind == "message" else {}


def _part(kind: str, text: str) -> Json:
    if kind == "reasoning":
        return {"type": "summary_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def completion_of(response: Mapping[str, Any]) -> Json:
    """A provider's response as a chat completion. Raises TypeError, KeyError or AttributeError, and
    BadAnswerError for one that failed."""
    if response.get("status") == "failed":
        raise BadAnswerError("a response that failed")
    said: Json = {"role": "assistant", "content": None}
    texts = []
    for item in response["output"]:
        if item["type"] == "message":
            texts += [str(p.get("text") or p.get("refusal") or "") for p in item["content"]]
        elif (call := _chat_call(item)) is not None:
            said.setdefault("tool_calls", []).append(call)
    if texts:
        said["content"] = "".join(texts)
    finish = _finish(response, calls="tool_calls" in said)
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": None}
    counted = _counted(response.get("usage") or {})
    tier = {"service_tier": response["service_tier"]} if response.get("service_tier") else {}
    head = {"id": response.get("id"), "object": "chat.completion", "created": 0, **tier}
    return {**head, "model": response.get("model"), "choices": [choice], "usage": counted}


class Chunks:
    """A provider's events as chunks of a chat completion."""

    def __init__(self) -> None:
        self._calls = 0

    def of(self, event: Mapping[str, Any]) -> Json:
        """The chunk that says what an event does; without choices where that is nothing. Raises
        BadAnswerError where the response failed."""
        kind, delta, finish, more = event.get("type"), {}, None, {}
        if kind in {"error", "response.failed"}:
            raise BadAnswerError("an error in the stream")
        if kind in {"response.output_text.delta", "response.refusal.delta"}:
            delta = {"content": event["delta"]}
        elif kind == "response.output_item.done":
            if (call := _chat_call(event["item"])) is not None:
                delta = {"tool_calls": [{"index": self._calls, **call}]}
                self._calls += 1
        elif kind in {"response.completed", "response.incomplete"}:
            response = event["response"]
            finish = _finish(response, calls=self._calls > 0)
            more = {"id": response.get("id"), "model": response.get("model")}
            more["usage"] = _counted(response.get("usage") or {})
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}] if delta or finish else []
        return {"object": "chat.completion.chunk", "created": 0, **more, "choices": choices}


def _chat_call(item: Mapping[str, Any]) -> Json | None:
    if item["type"] == "function_call":
        text = item["arguments"]
    elif item["type"] == "custom_tool_call":
        text = json.dumps({"input": item["input"]}, ensure_ascii=False)
    elif item["type"] in {"local_shell_call", "shell_call", "apply_patch_call"}:
        text = json.dumps(item.get("action") or {}, ensure_ascii=False)
    else:
        return None
    function = {"name": item.get("name") or item["type"], "arguments": text}
    return {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}


def _finish(response: Mapping[str, Any], *, calls: bool) -> str:
    if response.get("status") == "incomplete":
        why = (response.get("incomplete_details") or {}).get("reason")
        return "content_filter" if why == "content_filter" else "length"
    return "tool_calls" if calls else "stop"


def _counted(usage: Mapping[str, Any]) -> Json:
    prompt, output = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
    if not prompt + output:
        return {}
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    details = {
        "prompt_tokens_details": usage.get("input_tokens_details") or {},
        "completion_tokens_details": usage.get("output_tokens_details") or {},
    }
    return {**counted, **details}


def _shell(completion: Mapping[str, Any], asked: Mapping[str, Any]) -> Json:
    """A response before anything is said."""
    echoed = {
        name: asked.get(name)
        for name in ("instructions", "max_output_tokens", "metadata", "temperature", "top_p",
                     "reasoning", "text", "truncation", "user")
    }  # fmt: skip
    id = str(completion.get("id") or uuid.uuid4().hex)
    parallel = asked.get("parallel_tool_calls")
    return {
        **{name: value for name, value in echoed.items() if value is not None},
        "id": id if id.startswith("resp_") else f"resp_{id}",
        "object": "response",
        "created_at": completion.get("created") or int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": completion.get("model") or "",
        "output": [],
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "store": False,
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "usage": None,
    }


def _finished(
    shell: Json, output: list[Json], reason: str | None, counted: Mapping[str, Any]
) -> Json:
    usage = counted.get("usage") or {}
    why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason or "")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    tokens = {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.get("total_tokens") or 0,
    }
    details = {"reason": why} if why else None
    ended = {"status": "incomplete" if why else "completed", "incomplete_details": details}
    return {**shell, **ended, "output": output, "usage": tokens}


def _message(text: str) -> Json:
    content = [_part("message", text)]
    head = {"type": "message", "id": _id("msg"), "status": "completed", "role": "assistant"}
    return {**head, "content": content}


def _reasoning(text: str, maker: str) -> Json:
    item = {"type": "reasoning", "id": _id("rs"), "summary": [_part("reasoning", text)]}
    return {**item, "encrypted_content": thoughts.mark(maker, "")}


def _call(id: Any, name: Any, arguments: str, custom: frozenset[str]) -> Json:
    if name in custom:
        try:
            text = json.loads(arguments)["input"]
        except (ValueError, TypeError, KeyError):
            text = arguments
        item = {"type": "custom_tool_call", "id": _id("ctc"), "input": str(text)}
    else:
        item = {"type": "function_call", "id": _id("fc"), "arguments": arguments}
    return {**item, "call_id": id, "name": name, "status": "completed"}


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"

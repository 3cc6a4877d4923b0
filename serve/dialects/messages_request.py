"""A request of Anthropic's Messages as one of chat completions.

What the router, the rules and every provider but Anthropic's own go by. Blocks that chat
completions have no word for (a search that the provider runs itself) are left out there; a provider
that speaks Messages gets the request itself.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import RefusedError, wrong

Json = dict[str, Any]

# What a provider that speaks Messages is sent of a client's body.
FIELDS = frozenset({
    "max_tokens", "messages", "metadata", "stop_sequences", "system", "temperature", "thinking",
    "tool_choice", "tools", "top_k", "top_p", "service_tier", "output_config", "output_format",
    "context_management", "cache_control",
})  # fmt: skip
_SAME = ("model", "stream", "temperature", "top_p", "top_k", "max_tokens", "metadata", "thinking")
_as_json = json.JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` makes it each time
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(body: Mapping[str, Any]) -> Json:
    """The chat completion's body. Raises RefusedError (400) for what is no such request."""
    chat: Json = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = [*_system(body), *_messages(body)]
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    tools = [_tool(tool) for tool in _list(body, "tools") if _is_function(tool)]
    if tools:
        chat["tools"] = tools
        chat |= _choice(body.get("tool_choice"))
    form = body.get("output_format") or _mapping(body.get("output_config")).get("format")
    form = _mapping(form)
    if form.get("type") == "json_schema":
        schema = {"name": "answer", "schema": form.get("schema") or {}}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if body.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def effort_of(body: Mapping[str, Any]) -> str | None:
    """How much the model is to think, in the words of chat completions."""
    effort = _mapping(body.get("output_config")).get("effort")
    if effort in ("xhigh", "max"):
        return "high"
    return effort if effort in ("low", "medium", "high") else None


def _system(body: Mapping[str, Any]) -> list[Json]:
    system = body.get("system")
    if not isinstance(system, str | list | None):
        raise wrong("system", "expected text or a list of text blocks")
    if isinstance(system, list):
        system = [_text(block, "system") for block in system]
    return [{"role": "system", "content": system}] if system else []


def _messages(body: Mapping[str, Any]) -> Iterator[Json]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "expected a list of at least one message")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or message.get("role") not in (
            "user", "assistant", "system",
        ):  # fmt: skip
            raise wrong(where, "expected an object with the role 'user' or 'assistant'")
        content = message.get("content")
        if isinstance(content, str):
            yield {"role": message["role"], "content": content}
        elif not isinstance(content, list):
            raise wrong(f"{where}.content", "expected text or a list of blocks")
        else:
            blocks = [_block(each, f"{where}.content[{n}]") for n, each in enumerate(content)]
            write = _assistant if message["role"] == "assistant" else _user
            yield from write(blocks, message["role"])


def _assistant(blocks: list[Json], _: str) -> Iterator[Json]:
    message: Json = {"role": "assistant", "content": None}
    texts = [_text(block, "content") for block in blocks if block["type"] == "text"]
    if texts:
        message["content"] = texts
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    if calls:
        message["tool_calls"] = calls
    thoughts = [b for b in blocks if b["type"] in ("thinking", "redacted_thinking")]
    if thoughts:
        message["thinking_blocks"] = thoughts
    yield message


def _call(block: Json) -> Json:
    arguments = _as_json(block.get("input") or {})
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _user(blocks: list[Json], role: str) -> Iterator[Json]:
    """The results of tools first, as chat completions want them, then what the user says."""
    said: list[Json] = []
    for block in blocks:
        if block["type"] != "tool_result":
            said += _part(block)
            continue
        content = block.get("content")
        if isinstance(content, list):
            parts = [p for each in content if isinstance(each, dict) for p in _part(each)]
            texts = [part for part in parts if part["type"] == "text"]
            said += [part for part in parts if part["type"] != "text"]  # tools give no images there
            content = "\n".join(part["text"] for part in texts)
        text = str(content or "")
        if block.get("is_error") is True:
            text = f"Error: {text}"
        result = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
        yield result | _cached(block)
    if said:
        yield {"role": role, "content": said}


def _part(block: Json) -> list[Json]:
    """A block as parts of a chat message's content; none where it has no word for it."""
    kind, source = block.get("type"), _mapping(block.get("source"))
    if kind == "text":
        return [_text(block, "content")]
    if kind in ("search_result", "document") and isinstance(block.get("content"), list):
        source = {"type": "content", "content": block["content"]}
    if source.get("type") in ("text", "content"):
        given = source.get("data") if source["type"] == "text" else source.get("content")
        inner = given if isinstance(given, list) else [{"type": "text", "text": str(given or "")}]
        return [part for each in inner if isinstance(each, dict) for part in _part(each)]
    url = source.get("url")
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    found: Json = {}
    if kind == "image" and isinstance(url, str):
        found = {"type": "image_url", "image_url": {"url": url}}
    elif kind == "document" and isinstance(url, str):
        file = {"file_data": url, "filename": str(block.get("title") or "document.pdf")}
        found = {"type": "file", "file": file}
    return [found | _cached(block)] if found else []


def _text(block: Any, where: str) -> Json:
    if not isinstance(block, Mapping) or not isinstance(block.get("text"), str):
        raise wrong(where, "expected blocks of text, as {'type': 'text', 'text': ...}")
    return {"type": "text", "text": block["text"], **_cached(block)}


def _cached(block: Mapping[str, Any]) -> Json:
    mark = block.get("cache_control")
    return {"cache_control": mark} if isinstance(mark, Mapping) else {}


def _is_function(tool: object) -> bool:
    return isinstance(tool, Mapping) and "input_schema" in tool


def _tool(tool: Json) -> Json:
    function = {
        "name": tool.get("name"),
        "description": tool.get("description") or "",
        "parameters": tool["input_schema"],
    }
    if tool.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function} | _cached(tool)


def _choice(choice: object) -> Json:
    given = _mapping(choice)
    found: Json = {}
    if given.get("type") == "tool":
        function = {"name": given.get("name")}
        found["tool_choice"] = {"type": "function", "function": function}
    elif choice := _CHOICES.get(str(given.get("type"))):
        found["tool_choice"] = choice
    if given.get("disable_parallel_tool_use") is True:
        found["parallel_tool_calls"] = False
    return found


def _block(block: Any, where: str) -> Json:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise wrong(where, "expected a block with a type, such as {'type': 'text', 'text': ...}")
    return block


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list | None):
        raise RefusedError(400, "invalid_request", f"{name}: expected a list", param=name)
    return value or []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

"""A request of OpenAI's Responses as one of chat completions; see `messages_request`."""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import RefusedError, wrong

Json = dict[str, Any]

# What a provider that speaks Responses is sent of a client's body.
FIELDS = frozenset({
    "input", "instructions", "include", "max_output_tokens", "max_tool_calls", "metadata",
    "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning",
    "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools",
    "top_logprobs", "top_p", "truncation", "user",
})  # fmt: skip
# Tools that a provider runs, or reads from, itself: an address or a file of the client's choice.
_ELSEWHERE = frozenset({"mcp", "file_search", "code_interpreter"})
_KEPT = {
    "previous_response_id": "no answer is kept here: send the whole conversation as input",
    "conversation": "no conversation is kept here: send all of it as input",
    "prompt": "no prompt templates are kept here: send instructions and input",
}
_SAME = (
    "model", "stream", "temperature", "top_p", "metadata", "user", "parallel_tool_calls",
    "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
)  # fmt: skip
_CALLS = {"function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call"}
_RESULTS = {f"{kind}_output" for kind in _CALLS}
_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


def native_of(body: Mapping[str, Any]) -> Json:
    """What a provider that speaks Responses is sent: nothing is kept there, since every client of
    this server would share it."""
    native = {name: body[name] for name in FIELDS if body.get(name) is not None}
    if isinstance(native.get("tools"), list):
        native["tools"] = [t for t in native["tools"] if _kind(t) not in _ELSEWHERE]
    if isinstance(native.get("input"), list):
        native["input"] = [item for item in native["input"] if not _is_gone(item)]
    return native | {"store": False}


def chat_of(body: Mapping[str, Any]) -> Json:
    """The chat completion's body. Raises RefusedError (400) for what cannot be kept here, and for a
    shape that is none of Responses'."""
    for name, problem in _KEPT.items():
        if body.get(name) is not None:
            raise RefusedError(400, "not_kept", f"{name}: {problem}", param=name)
    if body.get("background"):
        raise RefusedError(
            400, "not_kept", "background: no answer is kept here", param="background"
        )
    chat: Json = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = _messages(body)
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    text = _mapping(body.get("text"))
    if text.get("verbosity"):
        chat["verbosity"] = text["verbosity"]
    form = _mapping(text.get("format"))
    if form.get("type") == "json_schema":
        schema = {k: v for k, v in form.items() if k != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.get("type") == "json_object":
        chat["response_format"] = dict(form)
    tools = functions_of(body.get("tools"))
    if tools:
        chat["tools"] = [{"type": "function", "function": each} for each in tools]
        chat |= _choice(body.get("tool_choice"))
    else:
        chat.pop("parallel_tool_calls", None)
    if body.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def effort_of(body: Mapping[str, Any]) -> str | None:
    """How much the model is to think."""
    effort = _mapping(body.get("reasoning")).get("effort")
    return effort if isinstance(effort, str) and effort != "none" else None


def custom_tools(body: Mapping[str, Any]) -> frozenset[str]:
    """The names of the tools that take text as it is instead of JSON."""
    tools = body.get("tools")
    given = tools if isinstance(tools, list) else ()
    return frozenset(str(tool.get("name")) for tool in given if _kind(tool) == "custom")


def functions_of(tools: Any) -> list[Json]:
    """The tools as functions of a chat completion: a custom tool takes its text as `input`. Those
    that a provider runs itself are left out."""
    if not isinstance(tools, list | None):
        raise wrong("tools", "expected a list")
    found: list[Json] = []
    for tool in tools or ():
        kind, about = _kind(tool), {"description": str(_mapping(tool).get("description") or "")}
        if kind == "function":
            more = {"strict": True} if tool.get("strict") is True else {}
            shape = tool.get("parameters") or {"type": "object", "properties": {}}
            found.append({"name": tool.get("name"), **about, "parameters": shape, **more})
        elif kind == "custom":
            form = _mapping(tool.get("format"))
            if form.get("definition"):
                about["description"] += f"\nGrammar of the input:\n{form['definition']}"
            found.append({"name": tool.get("name"), **about, "parameters": _INPUT})
        elif kind == "namespace":
            found += functions_of(tool.get("tools"))
    return found


def _messages(body: Mapping[str, Any]) -> list[Json]:
    given = body.get("input")
    messages: list[Json] = []
    instructions = body.get("instructions")
    if instructions:
        messages.append({"role": "system", "content": _content(instructions, "instructions")})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong("input", "expected text, or a list of at least one item")
    for index, item in enumerate(given):
        if not isinstance(item, Mapping):
            raise wrong(f"input[{index}]", "expected an object with a type or a role")
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[Json], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type") or "message"
    if not isinstance(kind, str):
        raise wrong(where, "expected a type that is text")
    if kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise wrong(where, "expected a role of user, assistant, system or developer")
        role = "system" if role == "developer" else role
        content = _content(item.get("content"), f"{where}.content")
        if role == "assistant":
            turn = _turn(messages)
            if turn["content"] or turn.get("tool_calls"):  # another answer, or text after its calls
                messages.append(turn := {"role": "assistant", "content": None})
            turn["content"] = content
        else:
            messages.append({"role": role, "content": content})
    elif kind in _CALLS:
        _turn(messages).setdefault("tool_calls", []).append(_call(item))
    elif kind in _RESULTS:
        call = {"tool_call_id": item.get("call_id") or item.get("id")}
        output, images = _output(item.get("output"), where)
        messages.append({"role": "tool", **call, "content": output})
        if images:
            messages.append({"role": "user", "content": images})
    elif kind == "reasoning" and item.get("encrypted_content"):
        block = {"type": "thinking", "thinking": _summary(item)}
        block["signature"] = item["encrypted_content"]
        _turn(messages).setdefault("thinking_blocks", []).append(block)


def _turn(messages: list[Json]) -> Json:
    """The assistant's message that goes on: an answer's text and calls are items of their own."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _call(item: Mapping[str, Any]) -> Json:
    arguments, name = item.get("arguments"), item.get("name") or item.get("type")
    if not isinstance(arguments, str):
        given = item.get("input") if "input" in item else item.get("action") or {}
        wrapped = given if isinstance(given, Mapping) else {"input": given}
        arguments = json.dumps(wrapped, ensure_ascii=False)
    function = {"name": name, "arguments": arguments}
    return {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}


def _content(content: Any, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, "expected text or a list of parts")
    return [part for each in content for part in _part(each, where)]


def _part(part: Any, where: str) -> list[Json]:
    if not isinstance(part, Mapping):
        raise wrong(where, "expected parts with a type, as {'type': 'input_text', 'text': ...}")
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text", "refusal", "summary_text"):
        return [{"type": "text", "text": str(part.get("text") or part.get("refusal") or "")}]
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return [{"type": "image_url", "image_url": {"url": part["image_url"], **detail}}]
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        file = {"file_data": part["file_data"], "filename": str(part.get("filename") or "file")}
        return [{"type": "file", "file": file}]
    if kind in ("input_image", "input_file"):
        raise wrong(where, f"{kind}: no files are kept here: send the data itself")
    return []


def _output(output: Any, where: str) -> tuple[str, list[Json]]:
    """What a tool gave: (text, images and files, which chat completions take from users alone)."""
    if isinstance(output, list):
        parts = [p for each in output for p in _part(each, where)]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        return text, [part for part in parts if part["type"] != "text"]
    return (output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)), []


def _summary(item: Mapping[str, Any]) -> str:
    parts = [p for p in item.get("content") or item.get("summary") or () if isinstance(p, Mapping)]
    return "\n".join(str(part.get("text") or "") for part in parts)


def _choice(choice: Any) -> Json:
    if isinstance(choice, str):
        return {"tool_choice": choice}
    name = _mapping(choice).get("name")
    if name is None:  # of a tool that is left out, or of several
        return {}
    return {"tool_choice": {"type": "function", "function": {"name": name}}}


def _is_gone(item: object) -> bool:
    """Whether an item is only the name of what its provider does not keep."""
    kind = _kind(item)
    return kind == "item_reference" or (
        kind == "reasoning" and not _mapping(item).get("encrypted_content")
    )


def _kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

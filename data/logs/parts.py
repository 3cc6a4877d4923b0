"""What a message, a part of one or an item is, whatever dialect wrote it; calls and media of any.

Known are OpenAI's chat completions and responses, Anthropic's, Gemini's and Bedrock's content, and
the parts of OpenTelemetry's conventions, LangChain, pydantic-ai and the AI SDK. What nobody knows
is a part of a message, and never its text.
"""

import json
from typing import Any, Literal

from .normalize import Object, body, first, text

# work: what a provider did or thought on its way, and what defines a tool; nobody said it.
Kind = Literal["message", "text", "media", "call", "result", "work"]

ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool", "function")},
    **{"human": "user", "ai": "assistant", "model": "assistant", "chatbot": "assistant"},
}


def _by_name(table: dict[Kind, str]) -> dict[str, Kind]:
    return {name: kind for kind, names in table.items() for name in names.split()}


_TYPES = _by_name(
    {
        "message": " ".join(("message", *ROLES)),
        "text": "text input_text output_text refusal",
        "media": "image image_url input_image computer_screenshot audio audio_url input_audio "
        "video video_url file input_file document document_url binary blob uri container_upload "
        "search_result",
        "call": "tool_call tool_use custom function_call local_shell_call custom_tool_call",
        "result": "tool_call_response tool_result tool_search_output",
        "work": "reasoning thinking redacted_thinking compaction compaction_summary "
        "context_compaction item_reference server_tool_use mcp_tool_use mcp_list_tools "
        "mcp_approval_request mcp_approval_response",
    }
)
# What says of an object without a type what it is: Gemini's parts and Bedrock's.
_NAMED = _by_name(
    {
        "message": "role parts",
        "call": "functionCall function_call toolUse",
        "result": "functionResponse function_response toolResult",
        "work": "executableCode executable_code codeExecutionResult code_execution_result "
        "reasoningContent cachePoint",
        "media": "inlineData inline_data fileData file_data image document video",
    }
)
_INNER = ("function", "custom", "functionCall", "function_call", "toolUse")
_IDS = ("call_id", "tool_call_id", "tool_use_id", "toolCallId", "toolUseId", "id")
_GIVEN = ("arguments", "input", "args", "action", "actions", "operation")
_SOURCES = ("source", "inlineData", "inline_data", "fileData", "file_data")
_MIMES = ("mime_type", "mimeType", "media_type", "mediaType")
_URLS = ("url", "uri", "fileUri", "file_uri", "image_url", "file_url", "image")
_DATA = ("data", "content", "file_data")


def kind_of(item: object) -> Kind | None:
    """What a message, a part of one or an item is; None where nothing tells."""
    if not isinstance(item, dict):
        return None
    if "role" in item:
        return "message"
    name = type_of(item)
    if name:
        return _of_type(item, name)
    if item.get("thought") is True:
        return "work"
    named = next((_NAMED[name] for name in item if name in _NAMED), None)
    return "text" if named is None and isinstance(item.get("text"), str) else named


def _of_type(item: Object, name: str) -> Kind | None:
    if name == "function":  # a call has arguments, a definition has none, a message says something
        called = "arguments" in item or "arguments" in body(item.get("function"))
        return "call" if called else "message" if "content" in item else "work"
    if name in _TYPES:
        return _TYPES[name]
    if name.endswith("_call"):
        # A call that the client is to answer has an id for its result, one that is done has none.
        return "call" if item.get("call_id") else "work"
    if name.endswith("_tool_result"):
        return "work"
    return "result" if name.endswith("_output") else None


def type_of(item: Object) -> str:
    """The type that an object says it is of, as OpenAI would write it; '' where it says none."""
    said = item.get("type") or item.get("kind")
    return said.lower().replace("-", "_") if isinstance(said, str) else ""


def id_of(part: Object, inner: Object) -> str:
    """The id of a call or of what it returned; inner: the object in it that holds the rest."""
    return text(first(part, *_IDS) or first(inner, *_IDS))


def call_of(part: Object) -> dict[str, Any]:
    """A call of a tool as OpenAI's chat completions have it."""
    inner = next((inner for name in _INNER if (inner := body(part.get(name)))), part)
    given = next((inner[name] for name in _GIVEN if inner.get(name) is not None), None)
    kind = type_of(part)
    if isinstance(given, str) and kind in ("custom", "custom_tool_call"):
        given = {"input": given}  # plain text; arguments are JSON
    arguments = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    name = text(inner.get("name") or inner.get("toolName")) or kind.removesuffix("_call")
    function = {"name": name, "arguments": arguments}
    return {"id": id_of(part, inner), "type": "function", "function": function}


def media_of(part: Object) -> dict[str, Any]:
    """An image, a sound or a file as OpenAI's part, where its bytes or address are there with what
    they are; else, and whatever else it is, as it was logged."""
    of = next((inner for name in _SOURCES if (inner := body(part.get(name)))), part)
    mime, file_id = text(first(of, *_MIMES)), text(first(of, "file_id", "fileId"))
    url, data = (
        next((of[name] for name in names if isinstance(of.get(name), str)), "")
        for names in (_URLS, _DATA)
    )
    if url and mime and ":" not in url[:16]:
        url, data = "", url  # bytes where others have an address
    if data.startswith("data:"):
        url = data
    elif data and mime and of.get("type") != "text":
        url = f"data:{mime};base64,{data}"
    sort = f"{type_of(part)} {text(part.get('modality'))} {mime}"
    if url and ("image" in sort or "screenshot" in sort or url.startswith("data:image/")):
        detail = {"detail": of["detail"]} if of.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    if data and mime.startswith("audio/"):
        sound = {"data": data, "format": mime.removeprefix("audio/")}
        return {"type": "input_audio", "input_audio": sound}
    if kind_of(part) == "media" and (url or file_id):
        name = {"filename": of["filename"]} if of.get("filename") else {}
        known = {"file_data": url} if url.startswith("data:") else {"file_id": file_id or url}
        return {"type": "file", "file": {**known, **name}}
    return dict(part)

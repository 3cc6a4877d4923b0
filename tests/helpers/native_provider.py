"""A provider on loopback that speaks Anthropic's Messages and OpenAI's Responses, embeddings and
legacy completions, plain and streamed: it thinks, calls the first tool, and says `TEXT`."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

TEXT = "Native answer."
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBwcm92aWRlcg=="

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """A request as it came."""

    path: str
    headers: dict[str, str] = field(repr=False)
    body: Json = field(repr=False)


class NativeProvider:
    """Serves until closed. `status` other than 200 is its answer to all; `cut`: streams break off
    after so many events."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.status = 200
        self.cut: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.provider = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "NativeProvider":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        provider: NativeProvider = self.server.provider  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        provider.heard.append(Heard(self.path, headers, body))
        if provider.status != 200:
            error = {"type": "invalid_request_error", "message": "the provider says no"}
            return self._send(json.dumps({"type": "error", "error": error}), provider.status)
        kind = self.path.rpartition("/")[2]
        whole, events = _ANSWERS[kind]
        answer = whole(body)
        if not body.get("stream"):
            return self._send(json.dumps(answer))
        made = list(events(answer))[: provider.cut]
        named = [f"event: {event['type']}\n" if "type" in event else "" for event in made]
        text = "".join(f"{n}data: {json.dumps(e)}\n\n" for n, e in zip(named, made, strict=True))
        end = "data: [DONE]\n\n" if kind == "completions" else ""
        return self._send(text + end, kind="text/event-stream")

    def _send(self, text: str, status: int = 200, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _message(body: Json) -> Json:
    content: list[Json] = []
    if body.get("thinking"):
        content.append({"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE})
    last = body["messages"][-1]["content"]
    done = isinstance(last, list) and any(block["type"] == "tool_result" for block in last)
    calls = bool(body.get("tools")) and not done
    if calls:
        name = body["tools"][0]["name"]
        content.append(
            {"type": "tool_use", "id": "toolu_1", "name": name, "input": {"city": "Rome"}}
        )
    else:
        content.append({"type": "text", "text": TEXT})
    usage = {
        "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 0,
    }  # fmt: skip
    head = {"id": "msg_native", "type": "message", "role": "assistant", "model": body["model"]}
    reason = "tool_use" if calls else "end_turn"
    return {
        **head,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _message_events(answer: Json) -> Iterator[Json]:
    yield {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}}
    yield {"type": "ping"}
    for index, block in enumerate(answer["content"]):
        empty = {**block, **{k: "" for k in ("thinking", "signature", "text") if k in block}}
        empty |= {"input": {}} if "input" in block else {}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        deltas: list[Json] = []
        if block["type"] == "thinking":
            deltas.append({"type": "thinking_delta", "thinking": block["thinking"]})
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] == "text":
            deltas += [{"type": "text_delta", "text": part} for part in ("Native", " answer.")]
        else:
            text = json.dumps(block["input"])
            parts = (text[:5], text[5:])
            deltas += [{"type": "input_json_delta", "partial_json": part} for part in parts]
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}}
    yield {"type": "message_stop"}


def _response(body: Json) -> Json:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": SIGNATURE}
    output: list[Json] = [thought] if body.get("reasoning") else []
    given = body["input"] if isinstance(body["input"], list) else []
    done = bool(given) and str(given[-1].get("type")).endswith("_output")
    tools = [] if done else body.get("tools") or []
    if tools and tools[0]["type"] == "custom":
        call = {"type": "custom_tool_call", "id": "ctc_1", "input": "*** Begin Patch"}
        output.append({**call, "call_id": "call_1", "name": tools[0]["name"]})
    elif tools:
        call = {"type": "function_call", "id": "fc_1", "arguments": '{"city": "Rome"}'}
        output.append(
            {**call, "call_id": "call_1", "name": tools[0]["name"], "status": "completed"}
        )
    else:
        part = {"type": "output_text", "text": TEXT, "annotations": []}
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                       "content": [part]})  # fmt: skip
    usage = {
        "input_tokens": 110, "input_tokens_details": {"cached_tokens": 100}, "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 115,
    }  # fmt: skip
    head = {"id": "resp_native", "object": "response", "created_at": 1, "status": "completed"}
    more = {"error": None, "incomplete_details": None, "instructions": None, "metadata": {}}
    more |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": body.get("tools") or []}
    return {**head, **more, "model": body["model"], "output": output, "usage": usage}


def _response_events(answer: Json) -> Iterator[Json]:
    begun = {**answer, "status": "in_progress", "output": []}
    events: list[Json] = [{"type": "response.created", "response": begun}]
    for index, item in enumerate(answer["output"]):
        at = {"output_index": index}
        events.append({"type": "response.output_item.added", **at, "item": item})
        if item["type"] == "message":
            inner = {"item_id": item["id"], **at, "content_index": 0, "logprobs": []}
            kind = "response.output_text"
            events.append({"type": "response.content_part.added", **inner,
                           "part": {**item["content"][0], "text": ""}})  # fmt: skip
            events += [
                {"type": f"{kind}.delta", **inner, "delta": d} for d in ("Native", " answer.")
            ]
            events.append({"type": f"{kind}.done", **inner, "text": TEXT})
        events.append({"type": "response.output_item.done", **at, "item": item})
    events.append({"type": "response.completed", "response": answer})
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def _embeddings(body: Json) -> Json:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [
        {"object": "embedding", "index": i, "embedding": [0.5, float(i)]} for i in range(len(texts))
    ]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _text(body: Json) -> Json:
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    return {**head, "choices": [choice], "usage": usage}


def _text_events(answer: Json) -> Iterator[Json]:
    for text, finish in (("Native", None), (" answer.", "stop")):
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        yield {**answer, "choices": [choice], "usage": None}


_ANSWERS: dict[str, Any] = {
    "messages": (_message, _message_events),
    "responses": (_response, _response_events),
    "embeddings": (_embeddings, None),
    "completions": (_text, _text_events),
}

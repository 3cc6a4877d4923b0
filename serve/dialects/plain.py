"""Embeddings and legacy completions, which pass as they are: what of them is counted and kept."""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def completion_of_embeddings(raw: Mapping[str, Any]) -> Json:
    """An answer of `/v1/embeddings`. Raises KeyError or TypeError for anything else."""
    if not isinstance(raw["data"], list):
        raise TypeError("data")
    return _completion(raw, "")


def completion_of_text(raw: Mapping[str, Any]) -> Json:
    """An answer of `/v1/completions`. Raises as above."""
    return _completion(raw, "".join(choice["text"] for choice in raw["choices"]))


def _completion(raw: Mapping[str, Any], text: str) -> Json:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    head = {"id": raw.get("id"), "object": "chat.completion", "created": raw.get("created") or 0}
    return {**head, "model": raw.get("model"), "choices": [choice], "usage": raw.get("usage") or {}}


def pieces_of(chunk: Mapping[str, Any]) -> list[Json]:
    """A chunk of a kept answer as the piece of a legacy completion."""
    choices = [
        {
            "index": each.get("index", 0),
            "text": (each.get("delta") or {}).get("content") or "",
            "finish_reason": each.get("finish_reason"),
            "logprobs": None,
        }
        for each in chunk.get("choices") or ()
    ]
    head = {name: chunk.get(name) for name in ("id", "created", "model")}
    return [{**head, "object": "text_completion", "choices": choices}] if choices else []


class Chunks:
    """The pieces of a streamed legacy completion as chunks of a chat completion."""

    def of(self, event: Mapping[str, Any]) -> Json:
        """The chunk of one piece."""
        choices = [
            {
                "index": each.get("index", 0),
                "delta": {"content": each["text"]} if each.get("text") else {},
                "finish_reason": each.get("finish_reason"),
            }
            for each in event.get("choices") or ()
        ]
        chunk = {"object": "chat.completion.chunk", "created": 0, "choices": choices}
        return chunk | {"usage": event["usage"]} if event.get("usage") else chunk

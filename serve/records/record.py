"""One decision, as it is kept: the row that the server hands to the recorder and to the metrics."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

CacheState = Literal["hit", "semantic", "miss", "bypass", "off"]


@dataclass(slots=True)
class Record:
    """A request and what became of it. Times are seconds, `time` since the epoch (UTC); money USD.

    `requested` is the model that the client named, `model` the one that answered and `strong`
    whether that was the configured strong model, both None where none did. `status` is the HTTP
    status that the client got, 499 where it left before the end; `error` a word for programs
    (`RefusedError.code`, or what cut a stream short), never text of the prompt or a key. `cost`
    covers every attempt that was charged, `strong_cost` is what the strong model would have taken
    for the same tokens. In shadow mode `routed` is the model that would have answered, and
    `routed_cost` what it would have taken for the same tokens. `arm` is "<experiment>/control" or
    "<experiment>/treatment". `familiarity`, in [0, 1], says how like the router's training the
    prompt is, where that was looked at. `overhead_s` is the part of `latency_s` that no upstream
    call accounts for, `ttft_s` the time to a stream's first piece. `prompt` and `answer` stay None
    unless `records.text` is on. `feedback` is in [0, 1]: 1 good, 0 bad.
    """

    id: str
    time: float
    tenant: str = "default"
    key: str = "anonymous"
    tier: str | None = None
    requested: str = ""
    model: str | None = None
    strong: bool | None = None
    choice: str | None = None
    router: str | None = None
    score: float | None = None
    threshold: float | None = None
    reason: str | None = None
    steps: Sequence[Sequence[str]] = ()  # [name, outcome] each, as in `RoutingPlan.to_dict`
    attempts: Sequence[Mapping[str, Any]] = ()  # JSON objects with at least "model"
    task: str | None = None
    session_hash: str | None = None
    stream: bool = False
    status: int = 200
    error: str | None = None
    cache: CacheState = "off"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    strong_cost: float = 0.0
    latency_s: float = 0.0
    overhead_s: float | None = None
    ttft_s: float | None = None
    prompt_hash: str | None = None
    prompt: str | None = field(default=None, repr=False)
    answer: str | None = field(default=None, repr=False)
    feedback: float | None = None
    feedback_comment: str | None = field(default=None, repr=False)
    feedback_time: float | None = None
    arm: str | None = None
    routed: str | None = None
    routed_cost: float | None = None
    familiarity: float | None = None

    @property
    def fallbacks(self) -> int:
        """How often another model had to be tried: changes of model along `attempts`."""
        models = [attempt.get("model") for attempt in self.attempts]
        return sum(a != b for a, b in pairwise(models))

    def to_dict(self) -> dict[str, Any]:
        """Its fields, as they are."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def hash_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) of the messages as canonical JSON: the same prompt, the same hash."""
    return _hash(json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def hash_session(tenant: str, session: str) -> str:
    """SHA-256 (hex) of a tenant's session, which may hold a user's name and is not kept itself."""
    return _hash(f"{tenant}\0{session}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

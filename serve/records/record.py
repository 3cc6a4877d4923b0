"""One decision, as it is kept: the row that the server hands to the recorder and to the metrics."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

CacheState = Literal["hit", "semantic", "miss", "bypass", "off"]
# `json.dumps` makes an encoder for each call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


@dataclass(slots=True)
class Record:
    """A request and what became of it. Times are seconds, `time` since the epoch (UTC); money USD.

    `model` is the one that answered and `strong` whether that was the strong one, None where none
    did. `status` is the client's, 499 where it left; `error` a word for programs, never text of the
    prompt. `cost` is of all attempts, `strong_cost` what the strong model would have taken for the
    same prompt and as long an answer as is expected of it (where little is known, for the same
    tokens), `routed_cost` the model `routed`, which shadow mode passed over. `arm` is
    "<experiment>/control" or "/treatment". `overhead_s` is the part of `latency_s` that no upstream
    call accounts for, `ttft_s` the time to a stream's first piece. `prompt` and `answer` stay None
    unless `records.text` is on. `feedback` and `familiarity` are in [0, 1]. `look` is the second
    look's probability that the weak answer falls short; `escalated` whether the strong model was
    asked for it, None where it was not looked at; `look_wrong` what a user said of that.
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
    look: float | None = None
    escalated: bool | None = None
    look_wrong: bool | None = None

    @property
    def sent_strong(self) -> bool | None:
        """Whether its score called for the strong model; None where it was not routed by a score,
        as where a request, a rule or its session named the model. The strong share is the mean."""
        if self.score is None or self.choice == "session":
            return None
        if self.threshold is not None:
            return self.score >= self.threshold
        # Of a pool or bands; in shadow mode, which the strong model answers: what would have.
        return None if self.strong is None else self.strong and self.routed in {None, self.model}

    @property
    def moves(self) -> list[tuple[Any, Any]]:
        """(failed model, the one tried next) along `attempts`. An escalation is none: the weak
        model had answered, and the second look asked the strong one too."""
        tried = [a for a in self.attempts if not a.get("beside")]
        pairs = [(a, b) for a, b in pairwise(tried) if a.get("status") != 200 or a.get("error")]
        named = [(a.get("model"), b.get("model")) for a, b in pairs]
        return [(before, after) for before, after in named if before != after]

    @property
    def fallbacks(self) -> int:
        """How often another model had to be tried."""
        return len(self.moves)


def hash_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) of the messages as canonical JSON: the same prompt, the same hash."""
    return _hash(_CANONICAL(messages))


def hash_session(tenant: str, session: str) -> str:
    """SHA-256 (hex) of a tenant's session, which may hold a user's name and is not kept itself."""
    return _hash(f"{tenant}\0{session}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

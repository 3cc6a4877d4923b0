"""What a client asks for, as the pipeline sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Quality = Literal["low", "medium", "high"]
Priority = Literal["cost", "quality", "speed"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `key` is the key's name, never the key; "anonymous" where none is needed.

    `tenant` is the key's own, else the request's, else "default". `tier` None: no tier's limits.
    """

    key: str = "anonymous"
    tenant: str = "default"
    tier: str | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What the body's `metadata` or the `x-thriftroute-*` headers ask for; headers win."""

    threshold: float | None = None
    strong_share: float | None = None
    quality: Quality | None = None
    priority: Priority | None = None
    max_cost: float | None = None  # USD, for the whole request
    task: str | None = None
    session: str | None = None
    require: frozenset[str] = frozenset()  # capabilities and tags that the model must have
    models: frozenset[str] | None = None  # allowed ones
    cache: bool = True  # False: neither read nor written
    metadata: Mapping[str, str] = field(default_factory=dict)  # the rest, for rules


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat completion request, read once.

    `body` is the client's JSON without thriftroute's own metadata; `text` what the user wrote last,
    for rules and for signals; `needs` the capabilities that the body calls for; `prompt_tokens` an
    estimate of the whole prompt; `output_tokens` the most that the client allows (a default where
    it says nothing), `choices` its `n`.
    """

    id: str
    model: str
    body: Mapping[str, Any] = field(repr=False)
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    text: str = field(repr=False)
    stream: bool
    needs: frozenset[str]
    prompt_tokens: int
    output_tokens: int
    choices: int
    principal: Principal
    options: Options

    @property
    def in_tool_calls(self) -> bool:
        """True where the last message is a tool's result: the conversation waits for its model."""
        return bool(self.messages) and self.messages[-1].get("role") in {"tool", "function"}

"""What a client asks for, as the pipeline sees it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from ..router.output_tokens import OutputTokens

Quality = Literal["low", "medium", "high"]
Priority = Literal["cost", "quality", "speed"]
RESULTS = frozenset({"tool", "function"})  # roles of messages that a tool's results are
LENGTHS = ("max_completion_tokens", "max_tokens")  # OpenAI's own names for an answer's maximum
_SWITCH = {"bypass": "off", "no-cache": "off", "no-store": "off", "use": "on"}


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _split(value: object) -> object:
    return [v for v in value.split(",") if v.strip()] if isinstance(value, str) else value


def _switch(value: object) -> object:
    word = str(value).strip().lower()
    return _SWITCH.get(word, word)


_Amount = Annotated[float, BeforeValidator(_no_switch), Field(ge=0)]
_Share = Annotated[_Amount, Field(le=1)]
# A session's name is no place for a book.
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
_Names = Annotated[frozenset[_Text], BeforeValidator(_split), Field(min_length=1)]
_SHARE, _TEXT, _NAMES = "a number from 0 to 1", "text of 1 to 500 characters", "names, by commas"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `key` is the key's name, never the key; "anonymous" where none is needed.

    `tenant` is the key's own, else the request's, else "default". `tier` None: no tier's limits.
    """

    key: str = "anonymous"
    tenant: str = "default"
    tier: str | None = None
    admin: bool = False


class Session(NamedTuple):
    """`name` of a conversation; `told`: its client says so, rather than how it begins."""

    name: str
    told: bool


class Options(BaseModel):
    """What the body's `metadata` or the `x-thriftroute-*` headers ask for. A field's description is
    what an error says was expected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: _Share | None = Field(None, description=_SHARE)
    strong_share: _Share | None = Field(None, description=_SHARE)
    quality: Quality | None = Field(None, description="low, medium, high")
    priority: Priority | None = Field(None, description="cost, quality, speed")
    # USD, for the whole request
    max_cost: _Amount | None = Field(None, description="a number 0 or more, of US dollars")
    task: _Text | None = Field(None, description=_TEXT)
    tenant: _Text | None = Field(None, description=_TEXT)
    session: _Text | None = Field(None, description=_TEXT)
    # Capabilities and tags that the model must have
    require: _Names = Field(frozenset(), description=_NAMES)
    models: _Names | None = Field(None, description=_NAMES)  # allowed ones
    # False: neither read nor written
    cache: Annotated[bool, BeforeValidator(_switch)] = Field(True, description="bypass or use")
    metadata: Mapping[str, str] = Field(default_factory=dict)  # the rest, for rules


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion request, read once.

    `body` is the client's JSON without thriftroute's own metadata; `text` what the user wrote last;
    `needs` the capabilities that the body calls for; `prompt_tokens` an estimate of the whole
    prompt; `output_tokens` the most that the client allows (a default where it says nothing).
    `session`: the conversation, as `session_key` has it. `size`: bytes as it came, 0 if unknown.
    `lengths`: how long each model's answers are, as far as that was known when it came. What is
    cached follows from messages and maxima, which no copy changes.
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
    session: Session | None = None
    size: int = 0
    lengths: OutputTokens = field(default=OutputTokens(), repr=False)

    def expected_tokens(self, model: str, score: float | None = None) -> float:
        """Tokens of all choices of that model: as many as the client allows, or where it says
        nothing, as many as are expected."""
        expected = float(self.output_tokens)
        if expected == self.lengths.default and not self.sets_maximum:
            expected = self.lengths.tokens(model, self.prompt_tokens, score)
        return expected * self.choices

    @property
    def goes_on(self) -> bool:
        """True where a model has answered in this conversation before."""
        return any(message.get("role") == "assistant" for message in self.messages)

    @functools.cached_property
    def sets_maximum(self) -> bool:
        """True where the client says how long the answer may be."""
        return any(self.body.get(name) is not None for name in LENGTHS)

    @property
    def in_tool_calls(self) -> bool:
        """True where a tool's result is the last that was said: it waits for its model."""
        return len(self.messages) > self.results_from

    @property
    def results_from(self) -> int:
        """Where the results of tools begin with which the messages end; their number if none do."""
        at = end = len(self.messages)
        while at and is_reminder(self.messages[at - 1]):
            at -= 1
        last = at
        while at and self.messages[at - 1].get("role") in RESULTS:
            at -= 1
        return at if at < last else end

    @property
    def is_agents(self) -> bool:
        """True where an agent sent it: a tool that names its sessions, or one that uses tools."""
        told = self.session is not None and self.session.told and self.options.session is None
        return told or self._uses_tools

    @functools.cached_property
    def _uses_tools(self) -> bool:
        return any(m.get("tool_calls") or m.get("role") in RESULTS for m in self.messages)


def is_reminder(message: Mapping[str, Any]) -> bool:
    """Whether a message is a note that Claude Code puts beside the results of tools, in the user's
    name."""
    content = message.get("content")
    if message.get("role") != "user" or not content:
        return False
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    return all(isinstance(t, str) and t.lstrip().startswith("<system-reminder>") for t in texts)

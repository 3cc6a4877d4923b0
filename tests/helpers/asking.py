"""Requests, pools and routers for tests of the decision pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from thriftroute.router.routers import Router
from thriftroute.router.text import Conversation
from thriftroute.serve.config.settings import Config
from thriftroute.serve.policy.pipeline import Pipeline
from thriftroute.serve.registry import Model
from thriftroute.serve.request import ChatRequest, Options, Principal, Session


def model(
    name: str,
    price: float = 1.0,
    *,
    window: int | None = 8000,
    longest: int | None = None,
    can: Sequence[str] = (),
    tags: Sequence[str] = (),
    bundle_model: str | None = None,
) -> Model:
    """A model at `price` USD per million tokens, of prompt and of answer."""
    per_token = price * 1e-6
    return Model(
        name=name,
        litellm_model=f"openai/{name}",
        cost_key=name,
        input_price=per_token,
        output_price=per_token,
        cached_input_price=per_token,
        context_window=window,
        max_output_tokens=longest,
        capabilities=frozenset(can),
        tags=frozenset(tags),
        bundle_model=bundle_model,
        params={},
    )


def asked(
    text: str | None = "What is 2 + 2?",
    *,
    model: str = "auto",
    messages: Sequence[Mapping[str, Any]] | None = None,
    body: Mapping[str, Any] | None = None,
    needs: Sequence[str] = (),
    prompt_tokens: int = 100,
    output_tokens: int = 500,
    choices: int = 1,
    tier: str | None = None,
    tenant: str = "default",
    **options: Any,
) -> ChatRequest:
    """A request; `options` are those of `Options`."""
    if messages is None:
        messages = [{"role": "user", "content": text}]
    for name in ("require", "models"):
        if name in options:
            options[name] = frozenset(options[name])
    return ChatRequest(
        id="1",
        model=model,
        body=body or {},
        messages=messages,
        text=text or "",
        stream=False,
        needs=frozenset(needs),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        choices=choices,
        principal=Principal(tenant=tenant, tier=tier),
        options=Options.model_construct(**options),
        session=Session(options["session"], told=True) if options.get("session") else None,
    )


def in_tool_calls(text: str = "What is the weather in Rome?", **more: Any) -> ChatRequest:
    """A request whose last message is a tool's result."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    return asked(text, messages=messages, **more)


@dataclass
class Scores:
    """A router whose score is the first of `by_word` that the last turn holds, else `other`."""

    other: float = 0.0
    by_word: Mapping[str, float] = field(default_factory=dict)
    seen: list[Conversation] = field(default_factory=list)

    def scores(self, conversations: Sequence[Conversation], /) -> npt.NDArray[np.float64]:
        self.seen += conversations
        return np.array(
            [
                next((s for word, s in self.by_word.items() if word in c.last), self.other)
                for c in conversations
            ]
        )


class Failing:
    """A router that cannot score, and quotes the prompt in its error."""

    def scores(self, conversations: Sequence[Conversation], /) -> npt.NDArray[np.float64]:
        raise ValueError(f"cannot score {conversations[0].last}")


def config(models: Sequence[Model], **more: Any) -> Config:
    """A config over those models: the first is the strong one, the last the weak one."""
    base: dict[str, Any] = {
        "models": [{"name": m.name} for m in models],
        "strong": models[0].name,
        "weak": models[-1].name,
    }
    merged = {**base, **more}
    merged["router"] = {"threshold": 0.5, **more.get("router", {})}
    return Config.model_validate(merged)


STRONG, WEAK = model("strong", 10.0), model("weak", 1.0)


def pipeline(
    models: Sequence[Model] = (STRONG, WEAK),
    by: Router | None = None,
    fastest: Any = None,
    **more: Any,
) -> Pipeline:
    """A pipeline over `models`, scored `by` a router that by default says 0 to everything."""
    named = {m.name: m for m in models}
    return Pipeline(config(models, **more), named, by or Scores(), fastest=fastest)

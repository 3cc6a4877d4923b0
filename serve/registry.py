"""The pool of models: what each costs and can do, and where that is known from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the pool, complete: nothing here is a guess.

    Prices are in USD per token. `context_window` and `max_output_tokens` are None where nobody
    says; then nothing is refused for its length. `cost_key` is the name under which LiteLLM's own
    cost functions know this model's prices. `sources`: field -> "config" or "litellm".
    """

    name: str
    litellm_model: str
    cost_key: str
    input_price: float
    output_price: float
    cached_input_price: float
    context_window: int | None
    max_output_tokens: int | None
    capabilities: frozenset[str]
    tags: frozenset[str]
    bundle_model: str | None
    params: Mapping[str, Any] = field(repr=False)  # api_base, api_key, timeout, ... for LiteLLM
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)

    def estimate(self, prompt_tokens: int, output_tokens: int) -> float:
        """USD for that many tokens, none of them cached."""
        return prompt_tokens * self.input_price + output_tokens * self.output_price

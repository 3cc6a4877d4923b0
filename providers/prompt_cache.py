"""What a provider's prompt cache holds of a session, until when, and what a step costs with it.

A cache keeps the prefix of a prompt for one model. Whoever sends the session to another model pays
for all of it anew. The rules are each provider's own documentation (of November 2026), the prices
and minimum lengths the one price map's (`prices`).

Everything here takes numbers or arrays of them, float64[n], one a session.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .prices import Price, find

Amount = Any  # a number, or float64[n]: numpy's operators take both

MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class CacheRules:
    """The least prompt that is cached, in tokens (infinite: none is), and how long it is kept after
    its last use, in seconds, as the provider's documentation says or, where it says nothing, as
    `documented` False tells, at least. `marked`: only what a request marks is cached."""

    min_tokens: float
    lifetime_s: float
    documented: bool = True
    marked: bool = False


# Provider, as LiteLLM's map calls it: minimum length, lifetime. The map's own minimum for a model,
# where it has one, comes first (Anthropic: 512 to 4,096; Gemini: 2,048 or 4,096).
_RULES: Mapping[str, CacheRules] = {
    # Five minutes, again from each use; an hour where the request asks for it and pays for it.
    "anthropic": CacheRules(1024, 5 * MINUTE, marked=True),
    "bedrock": CacheRules(1024, 5 * MINUTE, marked=True),
    "vertex_ai-anthropic_models": CacheRules(1024, 5 * MINUTE, marked=True),
    "databricks": CacheRules(1024, 5 * MINUTE, marked=True),
    # Automatic; cleared after 5 to 10 minutes without use (24 hours where that is asked for).
    "openai": CacheRules(1024, 5 * MINUTE),
    "azure": CacheRules(1024, 5 * MINUTE),
    "azure_ai": CacheRules(1024, 5 * MINUTE),
    # Automatic, for a time that is not said; an explicit cache is kept for an hour.
    "gemini": CacheRules(2048, 5 * MINUTE, documented=False),
    "vertex_ai": CacheRules(2048, 5 * MINUTE, documented=False),
    # On disk, for hours up to days.
    "deepseek": CacheRules(64, HOUR),
}
_OTHER = CacheRules(1024, 5 * MINUTE, documented=False)


def cache_rules(model: str) -> CacheRules:
    """The rules of a model's provider; none is cached where the map has no price for it."""
    _, entry, _ = find(model)
    if (
        not entry.get("supports_prompt_caching")
        and entry.get("cache_read_input_token_cost") is None
    ):
        return CacheRules(np.inf, 0.0, documented=bool(entry))
    provider = str(entry.get("litellm_provider", ""))
    # "bedrock_converse" is bedrock's, "vertex_ai-language-models" is vertex_ai's.
    heads = (provider, provider.partition("-")[0], provider.partition("_")[0])
    rules = next((_RULES[head] for head in heads if head in _RULES), _OTHER)
    least = entry.get("prompt_cache_min_tokens")
    if isinstance(least, int | float) and least > 0:
        return replace(rules, min_tokens=float(least))
    return rules


@dataclass(frozen=True, slots=True)
class Cached:
    """What a model's cache probably holds of a session: tokens, until a moment (seconds)."""

    tokens: Amount = 0.0
    until: Amount = -np.inf

    def readable(self, prompt: Amount, now: Amount) -> Amount:
        """Tokens of a prompt that starts with what was sent before that are read at `now`."""
        return np.where(np.less_equal(now, self.until), np.minimum(self.tokens, prompt), 0.0)


@dataclass(frozen=True, slots=True)
class CachePrice:
    """A model's prices and the rules of its prompt cache. `hour`: caches are kept for an hour, at
    the price of that, where the provider has two lifetimes."""

    price: Price
    rules: CacheRules
    hour: bool = False

    @property
    def read(self) -> float:
        """USD per 1,000,000 tokens that are read from the cache."""
        return self.price.input if self.price.cache_read is None else self.price.cache_read

    @property
    def write(self) -> float:
        """USD per 1,000,000 tokens that are written to the cache."""
        return self._hour_write if self.hour else self._write

    @property
    def lifetime_s(self) -> float:
        """Seconds after its last use for which a cache is kept."""
        longer = self.hour and self._hour_write != self._write
        return max(HOUR, self.rules.lifetime_s) if longer else self.rules.lifetime_s

    @property
    def _write(self) -> float:
        return self.price.input if self.price.cache_write is None else self.price.cache_write

    @property
    def _hour_write(self) -> float:
        return self._write if self.price.cache_write_1h is None else self.price.cache_write_1h

    def recorded(self, usage: "Usage") -> Amount:
        """USD of calls as they were counted: the model wrote and read what is told."""
        write, hour = self._write, self._hour_write
        cost = usage.input * self.price.input + usage.cache_read * self.read
        cost = cost + (usage.cache_write - usage.cache_write_1h) * write
        return (cost + usage.cache_write_1h * hour + usage.output * self.price.output) / 1e6

    def step(self, prompt: Amount, cached: Amount, output: Amount) -> Amount:
        """USD of a step of which `cached` tokens are read; the rest is written, or where the prompt
        is too short for a cache, is plain input."""
        short = np.less(prompt, self.rules.min_tokens)
        new = np.where(short, self.price.input, self.write)
        cached = np.where(short, 0.0, cached)
        return (cached * self.read + (prompt - cached) * new + output * self.price.output) / 1e6

    def after(self, prompt: Amount, now: Amount) -> Cached:
        """What the cache holds when the model has answered a prompt at `now`."""
        held = np.where(np.less(prompt, self.rules.min_tokens), 0.0, prompt)
        return Cached(held, now + self.lifetime_s)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of calls. `input` is what was neither read from a cache nor written to one;
    `cache_write_1h` is the part of `cache_write` that is kept for an hour."""

    input: Amount
    cache_read: Amount
    cache_write: Amount
    cache_write_1h: Amount
    output: Amount

    @property
    def prompt(self) -> Amount:
        """All tokens of the prompt."""
        return self.input + self.cache_read + self.cache_write


def cache_price(model: str, price: Price, *, hour: bool = False) -> CachePrice:
    """A model's price with the rules of its provider's cache.

    Where the map does not know the model, its cache is as good as its prices say: a read that costs
    less than input is one.
    """
    rules = cache_rules(model)
    if np.isinf(rules.min_tokens) and price.cache_read is not None:
        rules = _OTHER if price.cache_read < price.input else rules
    return CachePrice(price, rules, hour)

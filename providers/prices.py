"""What a model costs: the one look-up behind everything that prices a call.

The map is LiteLLM's, as it is installed or as `price_map.refresh` fetched it. Nothing is fetched
here, and a price that is missing is an error, never 0.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError, ConfigError
from . import price_map
from .completion import ASKS_OTHERS, arm_of, is_loaded, load_litellm

Floats = npt.NDArray[np.float64]
PER = 1_000_000  # prices are told for so many tokens
_WRITES = ("cache_creation_input_token_cost", "cache_creation_input_token_cost_above_1hr")
# The prices of an entry of the map, in the order of `Price`.
_PRICES = (
    *("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost"),
    *_WRITES,
)
# Prices of what `plain_cost` does not count: other tiers, other media, searches.
_APART = ("_batches", "_priority", "_flex", "_per_query", "_audio_token", "_image_token", "_image")
_USAGE = frozenset({
    "prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details",
    "completion_tokens_details",
})  # fmt: skip
_DETAILS = frozenset({
    "cached_tokens", "text_tokens", "reasoning_tokens", "accepted_prediction_tokens",
    "rejected_prediction_tokens",
})  # fmt: skip
_registered: dict[str, Mapping[str, Any]] = {}  # by `cost_key`; LiteLLM is told on first use
_plain: dict[str, tuple[float, ...]] = {}  # of these: input, output, cached, where no other counts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per 1,000,000 tokens: input, output, and input that is read from a prompt cache, written
    to one, or written to be kept for an hour. Cached input costs what input does where None."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None

    def __post_init__(self) -> None:
        given = (self.input, self.output, self.cache_read, self.cache_write, self.cache_write_1h)
        if not all(p is None or (math.isfinite(p) and p >= 0) for p in given):
            raise CalibrationError(f"prices must be finite and >= 0, got {given}")

    @classmethod
    def parse(cls, text: str) -> "Price":
        """From "IN,OUT", or "IN,OUT,CACHE READ,CACHE WRITE". Raises CalibrationError for others."""
        try:
            found = [float(part) for part in text.split(",")]
        except ValueError:
            found = []
        if len(found) not in (2, 4):
            raise CalibrationError(
                f"price {text!r} is not IN,OUT in USD per 1,000,000 tokens, such as 2.5,10; prices "
                "of cached input may follow, such as 3,15,0.3,3.75"
            )
        return cls(*found)

    def costs(self, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> Floats:
        """USD a request, float64[n], from token counts, float64[n] or one number for all.

        Raises CalibrationError for counts that are negative or not finite.
        """
        usd: Floats = np.zeros(())
        for name, tokens, price in (
            ("input", input_tokens, self.input), ("output", output_tokens, self.output),
        ):  # fmt: skip
            counts = np.asarray(tokens, dtype=np.float64)
            if not np.all(np.isfinite(counts) & (counts >= 0)):
                raise CalibrationError(f"{name} token counts must be finite numbers >= 0")
            usd = usd + counts * price
        return usd / 1e6


def listed_price(model: str, *, option: str) -> Price:
    """The price of `model` in the map, for commands that take it as `option IN,OUT` otherwise.

    Raises CalibrationError, naming `option`, where the map has no token price for the model.
    """
    _, entry, _ = find(model)
    try:
        found = token_prices(model, entry)
    except ConfigError as error:
        raise CalibrationError(
            f"{error}; give it as {option} IN,OUT in USD per 1,000,000 tokens, or refresh the map: "
            "thriftroute prices refresh"
        ) from None
    # A price such as 2.5e-06 a token, times a million, should read 2.5.
    return Price(*(round(found[name] * PER, 9) for name in _PRICES))


def find(model: str) -> tuple[str, Mapping[str, Any], str]:
    """(key, entry, where from) of a model in the map; an empty entry where it is not there.

    Where from: "refreshed" (the copy in the cache folder) or "litellm" (the installed map).
    """
    model = arm_of(model)[0]  # at any effort a token costs the same
    found = lookup(price_map.read()[1], model)
    if found is not None:
        return *found, "refreshed"
    return *(lookup(price_map.installed(), model) or (model, {})), "litellm"


def lookup(
    entries: Mapping[str, Mapping[str, Any]], model: str
) -> tuple[str, Mapping[str, Any]] | None:
    """(key, entry) of a model in a map like LiteLLM's, as `gpt-4o` or `openai/gpt-4o`.

    Not `litellm.get_model_info`: for some providers that asks a server or opens a log-in, and a
    price that is missing comes back as 0.
    """
    provider, slash, rest = model.partition("/")
    for key in (model, rest) if slash else (model,):
        entry = entries.get(key)
        if isinstance(entry, Mapping):
            own = str(entry.get("litellm_provider", ""))
            # "bedrock_converse" is bedrock's, "vertex_ai-language-models" is vertex_ai's.
            if key == model or own == provider or own.startswith((f"{provider}_", f"{provider}-")):
                return key, entry
    return None


def is_listed(model: str) -> bool:
    """Whether the installed map has the model, of whichever provider."""
    entries = price_map.installed()
    return model in entries or model.partition("/")[2] in entries


def token_prices(model: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """USD per token of an entry of the map; of a model priced in tiers those of the first.

    Raises ConfigError where the entry has no price in tokens, or says 0 for both.
    """
    tiers = entry.get("tiered_pricing")
    first = tiers[0] if isinstance(tiers, list) and tiers and isinstance(tiers[0], dict) else {}
    found = {n: entry[n] if entry.get(n) is not None else first.get(n) for n in _PRICES}
    needed = [found["input_cost_per_token"], found["output_cost_per_token"]]
    usable = all(isinstance(p, int | float) and math.isfinite(p) and p >= 0 for p in needed)
    if not usable or not any(needed):
        what = "has no price in tokens for" if entry else "does not know"
        raise ConfigError(f"LiteLLM's map {what} {model!r}")
    # What is new in a prompt is never cheaper than input: a write price of 0, as the map has it of
    # DeepSeek and others, means that input is what is paid.
    defaults = {
        "cache_read_input_token_cost": "input_cost_per_token",
        "cache_creation_input_token_cost": "input_cost_per_token",
        "cache_creation_input_token_cost_above_1hr": "cache_creation_input_token_cost",
    }
    for name, other in defaults.items():
        price = found[name]
        if price is None or (name in _WRITES and price < found["input_cost_per_token"]):
            found[name] = found[other]
    return {name: float(value or 0) for name, value in found.items()}


def cost_key(name: str, key: str, entry: Mapping[str, Any]) -> str:
    """The name by which `call_cost` knows the prices of `entry`, found under `key`: the map's own
    where only LiteLLM's cost functions price it by that, else one that is registered for `name`."""
    if _is_plain(entry):
        return register(name, entry)
    litellm = load_litellm()
    same = price_map.rates(litellm.model_cost.get(key, {})) == price_map.rates(entry)
    if same and entry.get("litellm_provider") not in ASKS_OTHERS:
        try:
            if sum(litellm.cost_per_token(model=key, prompt_tokens=PER, completion_tokens=PER)) > 0:
                return key
        except Exception as error:  # noqa: BLE001 - whatever it is, the other way stays
            logger.debug("LiteLLM cannot price %s by its name: %s", key, type(error).__name__)
    return register(name, entry)


def register(name: str, entry: Mapping[str, Any]) -> str:
    """Make the prices of `entry`, USD per token, known to `call_cost`; the name for them.

    The name holds a hash of the entry: another config in this process changes no price of ours.
    """
    # The provider's name only says which function counts: its general one.
    entry = {**entry, "mode": "chat", "litellm_provider": "openai"}
    if entry.get("tiered_pricing") is None:
        # Given, since LiteLLM warns of what it would take to be 0.
        entry.setdefault("cache_read_input_token_cost", entry["input_cost_per_token"])
        entry.setdefault("cache_creation_input_token_cost", entry["input_cost_per_token"])
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()
    key = f"thriftroute/{name}/{digest[:12]}"
    _registered[key] = entry
    if _is_plain(entry):
        price, output, cached = (entry.get(name) for name in _PRICES[:3])
        rates = (price, output, price if cached is None else cached)
        _plain[key] = tuple(float(rate or 0) for rate in rates)
    if is_loaded():
        _tell_litellm(key, entry)
    return key


def call_cost(key: str, usage: Mapping[str, Any], service_tier: str | None) -> float:
    """USD of a call by LiteLLM's cost functions: cached and reasoning tokens, cache writes, prices
    that change with the prompt's length, service tiers. `usage` is as OpenAI's API tells it.

    Raises whatever LiteLLM raises."""
    plain = plain_cost(key, usage, service_tier)
    if plain is not None:
        return plain
    if key in _registered:
        _tell_litellm(key, _registered[key])
    litellm = load_litellm()
    prompt, completion = litellm.cost_per_token(
        model=key,
        # Without it LiteLLM guesses the provider from the name, which fails for names of our own.
        custom_llm_provider=(litellm.model_cost.get(key) or {}).get("litellm_provider"),
        usage_object=litellm.Usage(**usage),
        service_tier=service_tier,
    )
    return float(prompt) + float(completion)


def _tell_litellm(key: str, entry: Mapping[str, Any]) -> None:
    if key not in load_litellm().model_cost:
        load_litellm().register_model({key: entry})


def _is_plain(entry: Mapping[str, Any]) -> bool:
    """Whether nothing but the three prices counts where a usage has only text, cached or not."""
    rates = price_map.rates(entry)
    return all(name in _PRICES[:4] or name.endswith(_APART) for name in rates)


def plain_cost(key: str, usage: Mapping[str, Any], service_tier: str | None) -> float | None:
    """As LiteLLM's cost functions count it, a tenth of a millisecond sooner; None for other prices,
    a usage that has more in it than text, or counts that are none."""
    rates = _plain.get(key)
    if rates is None or service_tier not in {None, "default"}:
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    told = [usage.get(f"{name}_details") or {} for name in ("prompt_tokens", "completion_tokens")]
    cached = told[0].get("cached_tokens") or 0
    others = {k for k, v in usage.items() if v and k not in _USAGE}
    others |= {k for each in told for k, v in each.items() if v and k not in _DETAILS}
    if others or not all(type(n) is int and n >= 0 for n in (*counts, cached)):
        return None
    prompt, completion = counts
    if not isinstance(prompt, int) or not isinstance(completion, int) or cached > prompt:
        return None
    price, output, cached_price = rates
    return (prompt - cached) * price + cached * cached_price + completion * output

"""The pool of models: what each costs and can do, and where that is known from."""

import functools
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..providers import completion
from ..providers.completion import arm_of, check_provider
from ..providers.direct import CHAT, DirectModel, provider_of
from ..providers.prices import PER, Price, cost_key, find, listed_price, register, token_prices
from .config.settings import CAPABILITIES, Config, ModelSettings, PriceSettings, Transport

_FLAGS = {
    "vision": "supports_vision",
    "tools": "supports_function_calling",
    "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning",
}
# LiteLLM's names for programs that serve models on a machine of one's own.
_LOCAL = {
    "ollama", "ollama_chat", "hosted_vllm", "vllm", "lm_studio", "llamafile", "xinference",
    "docker_model_runner", "lemonade", "oobabooga",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the pool, complete. Prices are in USD per token.

    `context_window` and `max_output_tokens` are None where nobody says. `cost_key` is the name
    under which LiteLLM's own cost functions know its prices. `sources`: field -> "config",
    "litellm" (the installed map), "refreshed" (a newer one), or "assumed": capabilities that nobody
    says are taken to be all, so that a request fails at the model and not before.
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
    responses: bool | None = None  # whether its server has OpenAI's Responses; None: only OpenAI's
    transport: Transport = "auto"

    def estimate(self, prompt_tokens: float, output_tokens: float) -> float:
        """USD for that many tokens, none of them cached."""
        return prompt_tokens * self.input_price + output_tokens * self.output_price

    @property
    def price(self) -> Price:
        """Its prices, those of writing to a prompt cache too where LiteLLM's map has them."""
        if self.sources.get("price", "config") != "config":
            return listed_price(self.litellm_model, option="price")
        rates = (self.input_price, self.output_price, self.cached_input_price)
        return Price(*(round(rate * PER, 9) for rate in rates))


class Registry(dict[str, Model]):
    """The pool by name, in the config's order. `strong` and `weak` are names in it."""

    def __init__(self, models: Mapping[str, Model], strong: str, weak: str) -> None:
        super().__init__(models)
        self.strong = strong
        self.weak = weak
        self.aliases: Mapping[str, str] = {}

    def meant(self, name: str) -> str:
        """What a client's name of a model stands for, by `aliases`; itself where it is none."""
        if name in self or not self.aliases:
            return name
        return next((to for like, to in self.aliases.items() if fnmatchcase(name, like)), name)

    @classmethod
    def build(cls, config: Config, *, called: bool = True) -> "Registry":
        """The pool of `config`; what that does not say comes from LiteLLM's map of models. Imports
        LiteLLM, which takes seconds; asks no network.

        Raises ConfigError, a line for each model without a price (none is taken to cost nothing),
        and, unless `called` is False, for each whose provider LiteLLM cannot tell.
        """
        models: dict[str, Model] = {}
        wrong: list[ConfigError] = []
        for i, settings in enumerate(config.models):
            try:
                if called:  # first: under its right name the map may know the price too
                    params = {**settings.params, "api_base": settings.api_base}
                    called_as = arm_of(settings.model or settings.name)[0]
                    # Whom we know ourselves needs no LiteLLM.
                    if not provider_of(called_as)[0]:
                        check_provider(called_as, params)
                models[settings.name] = _model(settings)
            except ConfigError as error:
                text = f"models[{i}] ({settings.name}): {error}"
                wrong.append(ConfigError(text, loc=("models", i)))
        if wrong:
            raise ConfigError("\n".join(map(str, wrong)), errors=wrong)
        built = cls(models, config.strong, config.weak)
        built.aliases = config.aliases
        return built

    def is_local(self, name: object) -> bool:
        """Whether the model of that name, or else every model, is served by a program of the
        user's own, such as llama.cpp."""
        name = name.strip() if isinstance(name, str) else None
        return name in self._local if name in self else len(self._local) == len(self)

    @functools.cached_property
    def _local(self) -> frozenset[str]:
        return frozenset(name for name, model in self.items() if is_local(model))


def short_names(names: Collection[str]) -> dict[str, str]:
    """Name without its provider's prefix -> the model of the pool that alone it can mean."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.partition("/")[2], []).append(name)
    taken = {"", "auto", *names}
    return {
        short: each[0] for short, each in found.items() if len(each) == 1 and short not in taken
    }


def is_local(model: Model) -> bool:
    """Whether a program of the user's own serves the model, by its provider or its address."""
    provider = model.params.get("custom_llm_provider") or model.litellm_model.partition("/")[0]
    if provider in _LOCAL:
        return True
    host = urlsplit(str(model.params.get("api_base") or "")).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host != "" and ("." not in host or host.endswith((".local", ".internal")))


def missing_key(model: Model) -> str | None:
    """The environment variable that would hold the API key that calls of `model` lack; None where
    they have one, need none as far as LiteLLM knows, or go to an address of the config's own."""
    if model.params.get("api_key") or model.params.get("api_base"):
        return None
    if CHAT in DirectModel.of(model.litellm_model, model.params).urls:
        return None
    return completion.missing_key(model.litellm_model)


def _model(settings: ModelSettings) -> Model:
    litellm_model, effort = arm_of(settings.model or settings.name)
    key, entry, origin = find(litellm_model)
    given = {
        "price": settings.price,
        "capabilities": settings.capabilities,
        "context_window": settings.context_window,
        "max_output_tokens": settings.max_output_tokens,
    }
    found: dict[str, Any] = {
        "price": True,
        "capabilities": entry or None,
        # The map's number is of the prompt alone; taking it for both refuses rather too early.
        "context_window": entry.get("max_input_tokens"),
        "max_output_tokens": entry.get("max_output_tokens"),
    }
    sources = {name: origin for name, value in found.items() if value is not None}
    sources |= {name: "config" for name, value in given.items() if value is not None}
    if settings.price is None:
        price = _map_price(litellm_model, entry)
        priced_as = cost_key(settings.name, key, entry)
    else:
        price = _own_price(settings.price)
        priced_as = register(settings.name, price)
    can = frozenset(c for c in CAPABILITIES if entry.get(_FLAGS[c]) or not entry)
    own = {name: getattr(settings, name) for name in ("api_base", "api_key")}
    own["timeout"] = settings.timeout_s
    params = {**effort, **settings.params, **{k: v for k, v in own.items() if v}}
    return Model(
        name=settings.name,
        litellm_model=litellm_model,
        cost_key=priced_as,
        input_price=price["input_cost_per_token"],
        output_price=price["output_cost_per_token"],
        cached_input_price=price["cache_read_input_token_cost"],
        context_window=settings.context_window or found["context_window"],
        max_output_tokens=settings.max_output_tokens or found["max_output_tokens"],
        capabilities=can if settings.capabilities is None else settings.capabilities,
        tags=settings.tags,
        bundle_model=settings.bundle_model,
        params=MappingProxyType(params),
        sources=MappingProxyType({"capabilities": "assumed"} | sources),
        responses=settings.responses,
        transport=settings.transport,
    )


def _map_price(model: str, entry: Mapping[str, Any]) -> dict[str, float]:
    try:
        return token_prices(model, entry)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; give `price: {{input: ..., output: ...}}`, USD per million "
            "tokens, 0 where it costs nothing (as flags: --strong-price and --weak-price IN,OUT), "
            "or refresh the map: thriftroute prices refresh"
        ) from None


def _own_price(price: PriceSettings) -> dict[str, float]:
    cached = price.input if price.cached_input is None else price.cached_input
    return {
        "input_cost_per_token": price.input / PER,
        "output_cost_per_token": price.output / PER,
        "cache_read_input_token_cost": cached / PER,
        # Otherwise LiteLLM would take what is written to a provider's cache to cost nothing.
        "cache_creation_input_token_cost": price.input / PER,
    }

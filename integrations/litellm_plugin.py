"""A bundle inside LiteLLM: its Router in Python, and its proxy. See docs/litellm.md.

    classifier_plugin: thriftroute.integrations.litellm_plugin.classifier      # in config.yaml

`Classifier` is a classifier plugin of LiteLLM's complexity router, which asks it for a *tier*
before a deployment is picked: in Python and in the proxy, async calls only. `Hook` is a callback of
the proxy alone, which changes the request's model before it is routed. A routing decision never
fails a request: what `on_error` names answers.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from litellm.exceptions import BadRequestError
from litellm.integrations.custom_logger import CustomLogger

from ..errors import ConfigError, RoutingError
from ..router.controller import Controller
from ..router.decision import Decision
from ..router.model_name import PREFIX, parse_model_name
from ..router.threshold import validate_threshold

if TYPE_CHECKING:
    from litellm.types.router import RoutingContext

# Tiers of LiteLLM's own ladder: with names of our own a proxy without a licence takes one router.
TIERS = ("SIMPLE", "MEDIUM", "COMPLEX", "REASONING")
WEAK, STRONG = "SIMPLE", "COMPLEX"
KEY = "thriftroute"  # of the decision in a request's metadata

logger = logging.getLogger(__name__)


class Classifier:
    """Chooses a tier of LiteLLM's complexity router; give it as `classifier_plugin`.

    routers, settings (config, context, threads, ...): as `Controller` takes them.
    threshold: where the model's name has none, and for names of another form ("auto"), which are
        scored by the first router; without it `strong_share` of the settings, 0.3.
    bands: instead of a threshold for such names, tier -> the score below which it is chosen, from
        the cheapest tier on, the last 1: {"SIMPLE": 0.2, "MEDIUM": 0.5, "COMPLEX": 1}.

    "router-mf-0.5" means that router and threshold: the strong tier, COMPLEX, where the score
    reaches it, else the weak one, SIMPLE. Raises what `Controller` raises, and ConfigError.
    """

    def __init__(
        self,
        routers: Sequence[str] = ("mf",),
        *,
        threshold: float | None = None,
        bands: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        self.threshold = None if threshold is None else validate_threshold(threshold)
        self.bands = _bands(bands or {})
        self.controller = Controller(routers, STRONG, WEAK, **settings)
        self.on_error = self.controller.on_error

    async def classify(self, context: "RoutingContext") -> str | None:
        """The tier of a request, from its messages and the model's name. Scores in a thread.

        None, with an error in the log, where the name has no threshold that can be used and the
        router no table for a strong share: LiteLLM's own fallback then answers. Never raises.
        """
        name = str(context.metadata.get("model_group") or "")
        messages = context.structured_messages or context.raw_messages
        try:
            router, threshold = _target(name, self.controller)
            banded = threshold is None and bool(self.bands)
            limit = 1.0 if banded else self.threshold if threshold is None else threshold
            decision = await self.controller.adecide(messages, router, limit)
        except RoutingError as error:
            logger.error("model %r cannot be routed: %s", name, error)
            return None
        tier = self._band(decision) if banded else decision.model
        logger.info("model %r: tier %s, %s", name, tier, decision.reason)
        return tier

    def entry(self, name: str, *, strong: str, weak: str, **tiers: str) -> dict[str, Any]:
        """The Router's `model_list` entry for the model `name`, with this as its classifier.

        `strong` and `weak` are model groups of the same Router, and so are those of further
        `tiers` (MEDIUM="gpt-4.1", with `bands`). What LiteLLM's complexity router would do besides
        choosing is turned off: change the caller's max_tokens, shorten the conversation by a model,
        obey a phrase in the prompt. Raises RoutingError for a name that it cannot route.
        """
        router, threshold = _target(name, self.controller)
        if threshold is not None or not self.bands:
            self.controller.threshold_of(router, self.threshold if threshold is None else threshold)
        _check_tiers(tiers)
        config = {
            "classifier_type": "custom",
            "classifier_plugin": self,
            "classifier_fallback": "default_model",
            "tiers": {WEAK: weak, STRONG: strong, **tiers},
            "max_tokens_from_tier_model": False,
            "context_compaction": False,
            "escalation_keywords": [],
        }
        params = {
            "model": "auto_router/complexity_router",
            "complexity_router_default_model": {"strong": strong, "weak": weak}[self.on_error],
            "complexity_router_config": config,
        }
        return {"model_name": name, "litellm_params": params}

    def close(self) -> None:
        """Wait for the scoring threads to end."""
        self.controller.close()

    def __deepcopy__(self, memo: object) -> "Classifier":
        # The Router copies its whole model list, and a loaded model cannot be copied, nor need be.
        return self

    def _band(self, decision: Decision) -> str:
        """The tier whose band the score lies in; `on_error`'s end of the ladder without a score."""
        names = list(self.bands)
        if decision.score is None:
            return names[-1] if self.on_error == "strong" else names[0]
        score = decision.score
        return next((tier for tier, below in self.bands.items() if score < below), names[-1])


class Hook(CustomLogger):
    """Routes `router-<name>-<threshold>`, and the names in `aliases`, in LiteLLM's proxy.

    Make one in a module beside the proxy's config.yaml and name it under
    `litellm_settings.callbacks`. `strong` and `weak` are model names of that config. `aliases`:
    further names that clients may ask for -> threshold, scored by the first of `routers`. The
    rest is as for `Controller`, which also says what is raised.

    LiteLLM checks a key's allowed models against the name that the client sent, before this runs:
    a key that may ask for "router-mf-0.5" gets both models through it.
    """

    def __init__(
        self,
        *,
        strong: str,
        weak: str,
        routers: Sequence[str] = ("mf",),
        aliases: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.aliases = {name: validate_threshold(at) for name, at in (aliases or {}).items()}
        self.controller = Controller(routers, strong, weak, **settings)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """Put the chosen model into the request, and the decision into its metadata.

        Other models' requests are left alone. A name with a router that is not loaded, or with no
        threshold where the router has no table for a strong share, is the client's mistake: HTTP
        400. Nothing else is raised.
        """
        name = data.get("model")
        if not isinstance(name, str) or not (name in self.aliases or name.startswith(PREFIX)):
            return None
        # What is to be scored of a chat, a response or a completion request.
        scored = data.get("messages") or data.get("input") or data.get("prompt") or ""
        try:
            router, threshold = _target(name, self.controller)
            threshold = self.aliases.get(name, threshold)
            decision = await self.controller.adecide(scored, router, threshold)
        except RoutingError as error:
            raise BadRequestError(str(error), model=name, llm_provider=KEY) from error
        logger.info("model %r: %s, %s", name, decision.model, decision.reason)
        data["model"] = decision.model
        place = _metadata_of(data)
        data[place] = {**(data.get(place) or {}), KEY: decision.to_dict()}
        return data

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], *_: Any, **__: Any
    ) -> dict[str, str] | None:
        """The decision as headers of the answer: x-thriftroute-model, -score, -threshold, -reason.

        The model is the one that was decided on; where it failed, LiteLLM's own fallback answered.
        """
        decision = (data.get(_metadata_of(data)) or {}).get(KEY)
        if not isinstance(decision, dict):
            return None
        told = {name: decision.get(name) for name in ("model", "score", "threshold", "reason")}
        return {f"x-thriftroute-{k}": str(value) for k, value in told.items() if value is not None}


def _target(name: str, controller: Controller) -> tuple[str, float | None]:
    """Router and threshold that a model's name stands for. Raises RoutingError."""
    if name.startswith(PREFIX):
        return parse_model_name(name, controller.routers)
    return next(iter(controller.routers)), None


def _metadata_of(data: Mapping[str, Any]) -> str:
    return "litellm_metadata" if "litellm_metadata" in data else "metadata"


def _bands(bands: Mapping[str, float]) -> dict[str, float]:
    """`bands`, checked: LiteLLM's tiers, limits rising to 1."""
    _check_tiers(bands, "bands: ")
    checked = {tier: validate_threshold(below) for tier, below in bands.items()}
    limits = list(checked.values())
    if limits and (limits[-1] != 1.0 or any(a >= b for a, b in pairwise(limits))):
        raise ConfigError(f"bands: the limits must rise, the last being 1, got {limits}")
    return checked


def _check_tiers(tiers: Mapping[str, Any], where: str = "") -> None:
    for tier in tiers:
        if tier not in TIERS:
            raise ConfigError(f"{where}tier {tier!r}; LiteLLM's tiers are {', '.join(TIERS)}")


def __getattr__(name: str) -> Any:
    # Made when it is first asked for: it loads the built-in bundle.
    if name == "classifier":
        globals()[name] = Classifier()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

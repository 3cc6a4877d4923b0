"""A bundle inside LiteLLM: its Router in Python, and its proxy.

    classifier_plugin: thriftroute.integrations.litellm_plugin.classifier      # in config.yaml

LiteLLM (read at 1.106.2) has two places where a request's model can be chosen from outside, and
both are used:

- `Classifier` is a classifier plugin of its complexity router: the Router asks it for a *tier*
  before it picks a deployment. It runs in the Router itself, so in Python and in the proxy alike,
  and the choice is a model group: load balancing, cooldowns and fallbacks of the chosen model
  stay. Each name that clients ask for is an entry of the model list. Async calls only: LiteLLM's
  synchronous `Router.completion` never asks what comes before routing.
- `Hook` is a callback of the proxy alone, which changes the request's model before it is routed:
  any threshold in the model's name, without an entry for each, and headers that say why.

Not used: `async_pre_routing_hook` of a callback, which the Router defines and never calls, routing
plugins, which narrow one model group by deployment and so lose the fallback from one model to the
other, and a custom routing strategy, which would replace load balancing for every model.

A routing decision never fails a request: what `on_error` names answers.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from litellm.exceptions import BadRequestError
from litellm.integrations.custom_logger import CustomLogger

from ..errors import ConfigError, RoutingError
from ..router.controller import PREFIX, Controller, parse_model_name
from ..router.decision import Decision
from ..router.threshold import validate_threshold

if TYPE_CHECKING:
    from litellm.types.router import RoutingContext

# Tiers of LiteLLM's own ladder: with names of our own a proxy without a licence takes one router.
TIERS = ("SIMPLE", "MEDIUM", "COMPLEX", "REASONING")
WEAK, STRONG = "SIMPLE", "COMPLEX"
KEY = "thriftroute"  # of the decision in a request's metadata

RouterConfig = Mapping[str, Mapping[str, Any]] | str | Path

logger = logging.getLogger(__name__)


class Classifier:
    """Chooses a tier of LiteLLM's complexity router; give it as `classifier_plugin`.

    routers: names of routers or folders of bundles, as `Controller` takes them.
    threshold: where the model's name has none, and for names of another form ("auto"), which are
        scored by the first router.
    bands: instead of a threshold for such names, tier -> the score below which it is chosen, from
        the cheapest tier on, the last 1: {"SIMPLE": 0.2, "MEDIUM": 0.5, "COMPLEX": 1}.
    config, context, threads, on_error: as `Controller` takes them.

    "router-mf-0.5" means that router and threshold: the strong tier, COMPLEX, where the score
    reaches it, else the weak one, SIMPLE. Raises what `Controller` raises, and ConfigError.
    """

    def __init__(
        self,
        routers: Sequence[str] = ("mf",),
        *,
        threshold: float | None = None,
        bands: Mapping[str, float] | None = None,
        config: RouterConfig | None = None,
        context: str = "conversation",
        threads: int = 1,
        on_error: Literal["strong", "weak"] = "strong",
    ) -> None:
        self.threshold = None if threshold is None else validate_threshold(threshold)
        self.bands = _bands(bands)
        self.controller = Controller(
            routers, STRONG, WEAK, config, on_error=on_error, context=context, threads=threads
        )

    async def classify(self, context: "RoutingContext") -> str | None:
        """The tier of a request, from its messages and the model's name. Scores in a thread.

        None, with an error in the log, where the name has no threshold that can be used: LiteLLM's
        own fallback then answers. Never raises.
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
        _, threshold = _target(name, self.controller)
        if threshold is not None:
            validate_threshold(threshold)
        elif self.threshold is None and not self.bands:
            raise RoutingError(
                f"model {name!r} has no threshold: name it '{PREFIX}<name>-<threshold>', or give "
                "the classifier threshold= or bands="
            )
        for tier in tiers:
            if tier not in TIERS:
                raise ConfigError(f"tier {tier!r}: LiteLLM's tiers are {', '.join(TIERS)}")
        config = {
            "classifier_type": "custom",
            "classifier_plugin": self,
            "classifier_fallback": "default_model",
            "tiers": {WEAK: weak, STRONG: strong, **tiers},
            "max_tokens_from_tier_model": False,
            "context_compaction": False,
            "escalation_keywords": [],
        }
        on_error = strong if self.controller.on_error == "strong" else weak
        return {
            "model_name": name,
            "litellm_params": {
                "model": "auto_router/complexity_router",
                "complexity_router_default_model": on_error,
                "complexity_router_config": config,
            },
        }

    def close(self) -> None:
        """Wait for the scoring threads to end."""
        self.controller.close()

    def __deepcopy__(self, memo: object) -> "Classifier":
        # The Router copies its whole model list, and a loaded model cannot be copied, nor need be.
        return self

    def _band(self, decision: Decision) -> str:
        """The tier whose band the score lies in; `on_error`'s end of the ladder without a score."""
        if decision.score is None:
            names = list(self.bands)
            return names[-1] if self.controller.on_error == "strong" else names[0]
        fitting = (tier for tier, below in self.bands.items() if decision.score < below)
        return next(fitting, next(reversed(self.bands)))


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
        config: RouterConfig | None = None,
        context: str = "conversation",
        threads: int = 1,
        on_error: Literal["strong", "weak"] = "strong",
    ) -> None:
        super().__init__()
        self.aliases = {name: validate_threshold(at) for name, at in (aliases or {}).items()}
        self.controller = Controller(
            routers, strong, weak, config, on_error=on_error, context=context, threads=threads
        )

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """Put the chosen model into the request, and the decision into its metadata.

        Other models' requests are left alone. A name with a router that is not loaded, or with no
        threshold, is the client's mistake: HTTP 400. Nothing else is raised.
        """
        name = data.get("model")
        if not isinstance(name, str) or not (name in self.aliases or name.startswith(PREFIX)):
            return None
        try:
            router, threshold = _target(name, self.controller)
            if name in self.aliases:
                threshold = self.aliases[name]
            decision = await self.controller.adecide(_messages(data), router, threshold)
        except RoutingError as error:
            raise BadRequestError(str(error), model=name, llm_provider=KEY) from error
        logger.info("model %r: %s, %s", name, decision.model, decision.reason)
        data["model"] = decision.model
        place = "litellm_metadata" if "litellm_metadata" in data else "metadata"
        data[place] = {**(data.get(place) or {}), KEY: decision.to_dict()}
        return data

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: object,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, object] | None = None,
    ) -> dict[str, str] | None:
        """The decision as headers of the answer: x-thriftroute-model, -score, -threshold, -reason.

        The model is the one that was decided on; where it failed, LiteLLM's own fallback answered.
        """
        place = "litellm_metadata" if "litellm_metadata" in data else "metadata"
        decision = (data.get(place) or {}).get(KEY)
        if not isinstance(decision, dict):
            return None
        fields = ("model", "score", "threshold", "reason")
        return {
            f"x-thriftroute-{field}": str(decision[field])
            for field in fields
            if decision.get(field) is not None
        }


def _target(name: str, controller: Controller) -> tuple[str, float | None]:
    """Router and threshold that a model's name stands for. Raises RoutingError."""
    if name.startswith(PREFIX):
        return parse_model_name(name, controller.routers)
    return next(iter(controller.routers)), None


def _messages(data: Mapping[str, Any]) -> Any:
    """What is to be scored of a chat, a response or a completion request."""
    for key in ("messages", "input", "prompt"):
        if data.get(key):
            return data[key]
    return ""


def _bands(bands: Mapping[str, float] | None) -> dict[str, float]:
    """`bands`, checked: LiteLLM's tiers, limits rising to 1."""
    checked = {tier: validate_threshold(below) for tier, below in (bands or {}).items()}
    limits = list(checked.values())
    wrong = [tier for tier in checked if tier not in TIERS]
    if wrong:
        raise ConfigError(f"bands: tier {wrong[0]!r}; LiteLLM's tiers are {', '.join(TIERS)}")
    if limits and (limits[-1] != 1.0 or any(a >= b for a, b in pairwise(limits))):
        raise ConfigError(f"bands: the limits must rise, the last being 1, got {limits}")
    return checked


def __getattr__(name: str) -> Any:
    # Made when it is first asked for: it loads the bundle in the box.
    if name == "classifier":
        globals()[name] = Classifier()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Which of the models that can take a request answers it: by score, by quality, by band, by wish.

Everything here chooses from `allowed`, the models that eligibility and sensitivity left, and never
fails a request for its score: without one the model that `router.on_error` names answers.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ...router.routers import BundleRouter, Router
from ...router.score_or_fallback import compare, score_or_problem
from ...router.second_look import LookPolicy
from ...router.step_head import StepHead
from ...router.threshold import STRONG_SHARE, validate_threshold
from ..changed import changed
from ..config.settings import Config
from ..errors import RefusedError
from ..registry import Model
from ..request import ChatRequest, Priority
from .course import features_of
from .eligibility import by_price, price
from .plan import ChoiceKind, ChosenModel, Draft
from .qualities import Qualities

Fastest = Callable[[str], float | None]

logger = logging.getLogger(__name__)


class Selection:
    """The ways to choose, over one config. `fastest`: model -> seconds that it takes, or None.
    `look`: thresholds of the second look, which take the place of the config's.

    A threshold is (threshold, where it is from): a rule's, else the one in the model's name, else
    the request's own; without any of them the one that is held, else the config's.
    """

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Model],
        router: Router,
        fastest: Fastest = lambda _: None,
        look: LookPolicy | None = None,
    ) -> None:
        self._config = config
        self._look = look
        self._models = models
        self._router = router
        self._fastest = fastest
        self._held: tuple[float, str] | None = None
        self._held_share: float | None = None
        self.qualities = Qualities(config, models, router)
        scorer = router.scorer if isinstance(router, BundleRouter) else None
        self._head = None if scorer is None else StepHead.of(scorer.bundle)

    def hold(self, threshold: float, source: str, share: float | None = None) -> None:
        """From now on this instead of the config's; source: said in reasons. share: the config's
        strong share, where the threshold stands for it."""
        self._held, self._held_share = (validate_threshold(threshold), source), share

    def default(self) -> tuple[float, str] | None:
        """The threshold of a request that asks for none, if there is one."""
        if self._held is not None:
            return self._held
        if self._look is not None:
            return min(self._look.high, 1.0), "of the second look"
        if self._config.router.threshold is not None:
            return self._config.router.threshold, ""
        share = self.strong_share
        return None if share is None else self.qualities.threshold_for(share)

    @property
    def strong_share(self) -> float | None:
        """The strong share that requests without a wish go by: the config's, else 0.3 for a pair
        whose router has a table; None where a threshold is configured or held."""
        settings = self._config.router
        if self._held is not None:
            return self._held_share
        if self._look is not None or settings.threshold is not None:
            return None
        by_default = settings.strategy == "pair" and self.qualities.table is not None
        default = STRONG_SHARE if by_default else None
        return default if settings.strong_share is None else settings.strong_share

    def _wanted(self, draft: Draft) -> tuple[float, str] | None:
        """The threshold that the rule or the request asks for, or None.

        Raises RefusedError (400) for a share without a table.
        """
        options, rule, qualities = draft.request.options, draft.rule, self._config.router.quality
        if rule is not None and rule.threshold is not None:
            return rule.threshold, f"of rule {rule.name!r}"
        if draft.threshold is not None:
            return draft.threshold, "of the model's name"
        if options.threshold is not None:
            return options.threshold, "of the request"
        if options.strong_share is not None:
            return self.qualities.threshold_for(options.strong_share)
        if options.quality is None:
            return None
        share = qualities[options.quality]
        threshold, source = self.qualities.threshold_for(share)
        return threshold, f"quality {options.quality}: {source}"

    def choose(self, draft: Draft) -> Draft:
        """By a threshold that is asked for, a priority, the tier's threshold, or the strategy."""
        config, settings = self._config, self._config.router
        tier_name, priority = draft.request.principal.tier, draft.request.options.priority
        tier, limit = config.tiers.get(tier_name or ""), self._wanted(draft)
        if limit is None and priority is not None:
            return changed(draft, choice=self._by_priority(draft, priority))
        if limit is None and tier is not None and tier.threshold is not None:
            limit = (tier.threshold, f"of tier {tier_name!r}")
        look = None if limit is not None else self._look
        if limit is not None or settings.strategy == "pair":
            limit = limit or self.default()
            if limit is None:
                message = "no threshold is configured: ask for a model such as "
                message += f"'router-{settings.name}-0.5', or set router.threshold in the config"
                raise RefusedError(400, "no_threshold", message, param="model")
            left = [name for name in (config.weak, config.strong) if name in draft.allowed]
            if not left:
                reason = "neither strong nor weak model can take it"
                return changed(draft, choice=self._cheapest(draft, reason))
            if len(left) == 1:  # nothing needs to be scored
                reason = f"of strong and weak only {left[0]!r} can take it"
                return changed(draft, choice=self.named(left[0], reason))
        draft, score, problem = self._scored(draft)
        if score is None:
            choice = self._first(draft, settings.on_error, problem)
        elif limit is not None:
            choice = self._by_threshold(score, limit, look)
        else:
            by = self._by_band if settings.strategy == "bands" else self._by_loss
            choice = by(draft, score)
        threshold = None if limit is None else limit[0]
        known: dict[str, Any] = {"score": score, "threshold": threshold, "router": settings.name}
        found = None if score is None else self.qualities.percentile(score)
        if found is None:
            return changed(draft, choice=changed(choice, **known))
        choice = changed(choice, **known, percentile=found[0])
        return draft.told("percentile", found[1], choice=choice)

    def _scored(self, draft: Draft) -> tuple[Draft, float | None, str]:
        """The score, that of an agent's step moved by the bundle's step head; else the problem."""
        settings, request = self._config.router, draft.request
        score, problem = score_or_problem(self._router, request.messages, settings.context)
        if problem.startswith("scoring failed"):
            logger.warning("router %r: %s", settings.name, problem)
        if score is not None and self._head is not None and request.is_agents:
            draft = draft.told("prompt score", f"{score:.6g}")
            score = self._head.moved(score, features_of(request))
        return draft, score, problem

    def _by_threshold(
        self, score: float, limit: tuple[float, str], look: LookPolicy | None
    ) -> ChosenModel:
        kind, reason = compare(score, *limit)
        choice = self.named(getattr(self._config, kind), reason)
        if look is None or not look.low <= score < look.high:
            return choice
        return changed(choice, reason=f"{reason}; looked at from {look.low:.6g}", look=True)

    def named(self, model: str, reason: str) -> ChosenModel:
        """A model that was settled on its own, with the choice that it is."""
        kinds: dict[str, ChoiceKind] = {self._config.weak: "weak", self._config.strong: "strong"}
        return ChosenModel(model, kinds.get(model, "pool"), reason)

    def _by_band(self, draft: Draft, score: float) -> ChosenModel:
        """The model of the band that the score falls into, else that of the next higher one, else
        that of the nearest lower one that can take the request."""
        bands = self._config.router.bands
        limits = [math.inf if band.below is None else band.below for band in bands[:-1]]
        at = bisect_right(limits, score)
        order = [*range(at, len(bands)), *range(at - 1, -1, -1)]
        found = next((i for i in order if bands[i].model in draft.allowed), None)
        said = f"score {score:.6g} is in band {bands[at].name!r}"
        if found is None:
            return self._cheapest(draft, f"{said}; no band's model can take it")
        if found != at:
            said += f", whose model cannot take it; {bands[found].name!r} can"
        return ChosenModel(bands[found].model, "band", said)

    def _by_loss(self, draft: Draft, score: float) -> ChosenModel:
        """The cheapest model that loses at most `router.tolerance` against the best, of those that
        the bundle knows. Loss: see `Qualities.losses`."""
        losses = {n: x for n, x in self.qualities.losses(score).items() if n in draft.allowed}
        if not losses:
            return self._cheapest(draft, "the bundle knows none that can take it")
        best = min(losses, key=lambda name: losses[name])
        tolerance = self._config.router.tolerance
        fine = [name for name, loss in losses.items() if loss - losses[best] <= tolerance]
        model = by_price(fine, self._models, draft.request)[0]
        reason = (
            f"score {score:.6g}: cheapest of {len(fine)} within {tolerance:.3g} of the best, "
            f"{best!r}; loses {losses[model] - losses[best]:.3g}"
        )
        return ChosenModel(model, "pool", reason)

    def _by_priority(self, draft: Draft, wish: Priority) -> ChosenModel:
        """cost: the weak model; quality: the strong one; speed: the fastest so far."""
        if wish != "speed":
            return self._first(draft, "weak" if wish == "cost" else "strong", f"priority {wish}")
        timed = {name: self._fastest(name) for name in draft.allowed}
        known = {name: seconds for name, seconds in timed.items() if seconds is not None}
        if not known:
            return self._first(draft, "weak", "priority speed: nothing timed yet")
        name = min(known, key=lambda n: known[n])
        return self.named(name, f"priority speed: {known[name]:.3g} s of late")

    def _first(self, draft: Draft, kind: Literal["strong", "weak"], reason: str) -> ChosenModel:
        """The strong model, else the dearest that can; or the weak one, else the cheapest."""
        wanted = getattr(self._config, kind)
        if wanted in draft.allowed:
            return self.named(wanted, reason)
        at, word = (-1, "dearest") if kind == "strong" else (0, "cheapest")
        name = self._by_price(draft)[at]
        return self.named(name, f"{reason}: the {word} that can, since {wanted!r} cannot take it")

    def _cheapest(self, draft: Draft, reason: str) -> ChosenModel:
        return self.named(self._by_price(draft)[0], f"{reason}: the cheapest that can")

    def _by_price(self, draft: Draft) -> list[str]:
        """The cheapest first; of equal ones the weak model first and the strong one last."""
        weak, strong = self._config.weak, self._config.strong
        names = sorted(draft.allowed, key=lambda name: (name == strong) - (name == weak))
        return by_price(names, self._models, draft.request)


def weaker(
    name: str, held: str, config: Config, models: Mapping[str, Model], request: ChatRequest
) -> bool:
    """Whether `name` would be a step down from `held`: of two models the weaker is the weak one of
    the pair, else the cheaper one."""
    if held in {name, config.weak} or name == config.strong:
        return False
    if name == config.weak or held == config.strong:
        return True
    return price(models[name], request) < price(models[held], request)


def stay(
    request: ChatRequest, allowed: Sequence[str], held: str | None, config: Config
) -> ChosenModel | None:
    """The model that the conversation is on, where it is to stay there; None where it need not.

    In the middle of tool calls it stays on any model but the weak one, and there too in a session:
    from the weak one the next step may well be a better model's.
    """
    if held is None or held not in allowed:
        return None
    if request.in_tool_calls and held != config.weak:
        return ChosenModel(held, "session", f"tool calls stay on {held!r}")
    if config.sticky_s > 0 and request.session is not None:
        return ChosenModel(held, "session", f"the session stays on {held!r}")
    return None

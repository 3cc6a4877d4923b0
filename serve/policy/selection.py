"""Which of the models that can take a request answers it: by score, by quality, by band, by wish.

Everything here chooses from `allowed`, the models that eligibility and sensitivity left, and never
fails a request for its score: without one the model that `router.on_error` names answers.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ...router.routers import Router
from ...router.score_or_fallback import compare, score_or_problem
from ...router.threshold import validate_threshold
from ..config.settings import Config, Rule
from ..errors import RefusedError
from ..registry import Model
from ..request import ChatRequest, Priority
from .eligibility import by_price, cost
from .plan import Choice, ChoiceKind, Draft
from .qualities import Qualities

Fastest = Callable[[str], float | None]

logger = logging.getLogger(__name__)


class Thresholds:
    """Which threshold a request's pair has, each as (threshold, where it is from).

    A rule's, else the one in the model's name, else the request's own; without any of them the one
    that is held, else the config's.
    """

    def __init__(self, config: Config, qualities: Qualities) -> None:
        self._settings = config.router
        self._qualities = qualities
        self._held: tuple[float, str] | None = None

    @property
    def standing(self) -> float | None:
        """That of a request that asks for none; None: there is none."""
        found = self._default()
        return None if found is None else found[0]

    def hold(self, threshold: float, source: str) -> None:
        """From now on this instead of the config's; source: said in reasons."""
        self._held = (validate_threshold(threshold), source)

    def wanted(
        self, request: ChatRequest, named: float | None, rule: Rule | None
    ) -> tuple[float, str] | None:
        """What the rule or the request asks for, or None. named: in the model's name.

        Raises RefusedError (400) for a quality that is not set up, or a share without a table.
        """
        options = request.options
        if rule is not None and rule.threshold is not None:
            return rule.threshold, f"of rule {rule.name!r}"
        if named is not None:
            return named, "of the model's name"
        if options.threshold is not None:
            return options.threshold, "of the request"
        if options.strong_share is not None:
            return self._qualities.threshold_for(options.strong_share)
        if options.quality is None:
            return None
        share = self._settings.quality.get(options.quality)
        if share is None:
            message = f"quality {options.quality!r} is not set up here; this server knows: "
            message += ", ".join(self._settings.quality)
            raise RefusedError(400, "no_such_quality", message, param="quality")
        threshold, source = self._qualities.threshold_for(share)
        return threshold, f"quality {options.quality}: {source}"

    def default(self) -> tuple[float, str]:
        """For a request that asks for none. Raises RefusedError (400) where none is configured."""
        found = self._default()
        if found is not None:
            return found
        message = "no threshold is configured: ask for a model such as "
        message += f"'router-{self._settings.name}-0.5', or set router.threshold in the config"
        raise RefusedError(400, "no_threshold", message, param="model")

    def _default(self) -> tuple[float, str] | None:
        settings = self._settings
        if self._held is None and settings.threshold is not None:
            return settings.threshold, ""
        if self._held is None and settings.strong_share is not None:
            return self._qualities.threshold_for(settings.strong_share)
        return self._held


class Selection:
    """The ways to choose, over one config. `fastest`: model -> seconds that it takes, or None."""

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Model],
        router: Router,
        fastest: Fastest | None = None,
    ) -> None:
        self._config = config
        self._models = models
        self._router = router
        self._fastest = fastest
        self.qualities = Qualities(config, models, router)
        self.thresholds = Thresholds(config, self.qualities)

    def choose(self, draft: Draft) -> Draft:
        """By a threshold that is asked for, a priority, the tier's threshold, or the strategy."""
        request, config, allowed = draft.request, self._config, draft.allowed
        who, settings = request.principal, config.router
        tier = config.tiers.get(who.tier or "")
        limit = self.thresholds.wanted(request, draft.threshold, draft.rule)
        if limit is None and request.options.priority is not None:
            return draft.settled(self._by_priority(draft, request.options.priority))
        if limit is None and tier is not None and tier.threshold is not None:
            limit = (tier.threshold, f"of tier {who.tier!r}")
        strategy = settings.strategy if limit is None else "pair"
        if strategy == "pair":
            limit = limit or self.thresholds.default()
            left = [name for name in (config.weak, config.strong) if name in allowed]
            if len(left) < 2:  # nothing needs to be scored
                return draft.settled(self._without_score(draft, left))
        score, problem = score_or_problem(self._router, request.messages, settings.context)
        if problem.startswith("scoring failed"):
            logger.warning("router %r: %s", settings.name, problem)
        if score is None:
            choice = self._first(draft, settings.on_error, problem)
        elif limit is not None:
            choice = self._by_threshold(score, *limit)
        elif strategy == "bands":
            choice = self._by_band(draft, score)
        else:
            choice = self._by_loss(draft, score)
        threshold = None if limit is None else limit[0]
        return draft.settled(
            replace(choice, score=score, threshold=threshold, router=settings.name)
        )

    def named(self, model: str, reason: str) -> Choice:
        """A model that was settled on its own, with the choice that it is."""
        kinds: dict[str, ChoiceKind] = {self._config.weak: "weak", self._config.strong: "strong"}
        return Choice(model, kinds.get(model, "pool"), reason)

    def _without_score(self, draft: Draft, left: Sequence[str]) -> Choice:
        """The one of the pair that can take the request, else the cheapest of the others."""
        if left:
            return self.named(left[0], f"of strong and weak only {left[0]!r} can take it")
        return self._cheapest(draft, "neither strong nor weak model can take it")

    def _by_threshold(self, score: float, threshold: float, source: str) -> Choice:
        """The strong model where score >= threshold, else the weak one."""
        kind, reason = compare(score, threshold)
        return self.named(getattr(self._config, kind), f"{reason}, {source}" if source else reason)

    def _by_band(self, draft: Draft, score: float) -> Choice:
        """The model of the band that the score falls into, else that of the next higher one.

        Where no higher band's model can take the request, the nearest lower one's does.
        """
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
        return Choice(bands[found].model, "band", said)

    def _by_loss(self, draft: Draft, score: float) -> Choice:
        """The cheapest model that loses at most `router.tolerance` against the best.

        Loss: see `Qualities.losses`. Models that the bundle does not know take no part.
        """
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
        return Choice(model, "pool", reason)

    def _by_priority(self, draft: Draft, wish: Priority) -> Choice:
        """cost: the weak model; quality: the strong one; speed: the fastest so far.

        Where that one cannot take the request: the cheapest, for quality the dearest that can.
        """
        if wish != "speed":
            return self._first(draft, "weak" if wish == "cost" else "strong", f"priority {wish}")
        timed = {name: self._fastest(name) if self._fastest else None for name in draft.allowed}
        known = {name: seconds for name, seconds in timed.items() if seconds is not None}
        if not known:
            return self._first(draft, "weak", "priority speed: nothing timed yet")
        name = min(known, key=lambda n: known[n])
        return self.named(name, f"priority speed: {known[name]:.3g} s of late")

    def _first(self, draft: Draft, kind: Literal["strong", "weak"], reason: str) -> Choice:
        """The strong model, else the dearest that can; or the weak one, else the cheapest."""
        wanted = getattr(self._config, kind)
        if wanted in draft.allowed:
            return self.named(wanted, reason)
        at, word = (-1, "dearest") if kind == "strong" else (0, "cheapest")
        name = self._by_price(draft)[at]
        return self.named(name, f"{reason}: the {word} that can, since {wanted!r} cannot take it")

    def _cheapest(self, draft: Draft, reason: str) -> Choice:
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
    return cost(models[name], request) < cost(models[held], request)


def stay(request: ChatRequest, allowed: Sequence[str], held: str, config: Config) -> Choice | None:
    """The model that the conversation is on, where it is to stay there; None where it need not.

    In the middle of tool calls it stays on any model but the weak one, and there too in a session:
    from the weak one the next step may well be a better model's.
    """
    if held not in allowed:
        return None
    if request.in_tool_calls and held != config.weak:
        return Choice(held, "session", f"tool calls stay on {held!r}")
    if config.sticky_s > 0 and request.options.session is not None:
        return Choice(held, "session", f"the session stays on {held!r}")
    return None

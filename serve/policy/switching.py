"""When the sessions of agents change their model: at natural points, where it pays.

An agent's session stays on its model inside a tool loop. At a new turn of its user, after a
compaction and after failed results in a row it is routed like any request, and what that would
change is weighed against what the model's prompt cache is worth (`router.switching`).
"""

import time
from collections.abc import Mapping
from dataclasses import replace

from ...providers.prompt_cache import CachePrice, CacheRules, cache_price
from ...router.switching import Pair, SessionState, decide
from ...router.threshold import STRONG_SHARE
from ..changed import changed
from ..config.settings import Config
from ..registry import Model
from ..request import ChatRequest
from ..spend.cost import Usage
from .course import Course, had_it_always, mark_of, step_of, went_on
from .plan import ChoiceKind, ChosenModel, Draft
from .qualities import Qualities
from .selection import weaker

_NONE = CacheRules(float("inf"), 0.0)


class Switching:
    """Over one config and pool. Safe to share between threads."""

    def __init__(self, config: Config, models: Mapping[str, Model], qualities: Qualities) -> None:
        self._config, self._models, self._qualities = config, models, qualities
        self._mode = config.router.switch
        found = [(n, cache_price(m.litellm_model, m.price)) for n, m in models.items()]
        self._prices: dict[str | None, dict[str, CachePrice]] = {
            "5m": dict(found),
            "1h": {n: replace(each, hour=True) for n, each in found},
            None: {n: replace(p, rules=_NONE) if p.rules.marked else p for n, p in found},
        }

    def applies(self, request: ChatRequest) -> bool:
        """Whether it decides for this request; else each is routed by itself, as is plain chat."""
        return self._mode != "free" and request.is_agents

    def between(self, draft: Draft) -> ChosenModel | None:
        """Who answers a step that is no natural point; None for one that is."""
        request, course, strong = draft.request, draft.held, self._config.strong
        assert course is not None
        held = course.model
        if self._mode == "never":
            return ChosenModel(held, "session", f"sessions stay: this one on {held!r}")
        step = step_of(request, course, time.time())
        if step.stuck and not course.escalated and strong in draft.allowed and held != strong:
            reason = "the loop is stuck: the strong model takes it over, once"
            return ChosenModel(strong, "strong", reason)
        if step.natural or step.stuck:
            return None
        return ChosenModel(held, "session", f"no natural point: the session stays on {held!r}")

    def weighed(self, draft: Draft) -> Draft:
        """The choice of a natural point, or the model that would cost less for the rest."""
        choice, course, request = draft.choice, draft.held, draft.request
        assert choice is not None
        wish = request.options.priority != "speed" and choice.kind in {
            "strong", "weak", "pool", "band",
        }  # fmt: skip
        others = [self._config.strong] if course is None else [course.model, self._config.strong]
        other = next((n for n in others if n != choice.model and n in draft.allowed), None)
        if self._mode != "priced" or not wish or other is None:
            return draft
        config, models = self._config, self._models
        wants_strong = weaker(other, choice.model, config, models, request)
        pair = (choice.model, other) if wants_strong else (other, choice.model)
        prices = self._prices[mark_of(request)]
        state = SessionState() if course is None else course.state(*pair)
        step = step_of(request, course, time.time())
        priced = Pair(prices[pair[0]], prices[pair[1]], self._strong_share(choice))
        lengths, chosen = request.lengths, choice.model
        if chosen in lengths.arms:
            tokens = lengths.tokens(chosen, step.prompt, choice.score)
            both = [tokens * lengths.ratio(name, chosen) for name in pair]
            priced = replace(priced, strong_output=both[0], weak_output=both[1])
        found = decide(state, step, priced, wants_strong)
        reason = f"{choice.reason}; {found.reason}"
        if pair[not found.strong] != choice.model:
            kind: ChoiceKind = (
                "session" if course is not None and other == course.model else "strong"
            )
            return changed(draft, choice=changed(choice, model=other, kind=kind, reason=reason))
        told = choice.reason if wants_strong else reason
        return changed(draft, choice=changed(choice, reason=told))

    def after(
        self, course: Course | None, request: ChatRequest, model: str, usage: Usage, now: float
    ) -> Course:
        """The course of a session when `model` has answered. now: seconds since the epoch."""
        prices = self._prices[mark_of(request)]
        return went_on(course, request, model, usage, now, prices, self._config.strong)

    def always_strong(
        self, course: Course | None, request: ChatRequest, model: str, usage: Usage, now: float
    ) -> Usage:
        """What the strong model would have been charged for, had it answered the session always: as
        was counted, unless the session has moved, or its model has no cache where the strong one
        has one."""
        prices, strong = self._prices[mark_of(request)], self._config.strong
        if course is None or not course.steps:
            return usage
        moved = course.moved or model != course.model
        caches = [prices[name].rules.min_tokens < float("inf") for name in (model, strong)]
        if not moved and caches[0] == caches[1]:
            return usage
        return had_it_always(course, usage, prices[strong], now)

    def _strong_share(self, choice: ChosenModel) -> float:
        """At how many natural points the router wants the strong model, of ordinary prompts."""
        if choice.threshold is not None:
            found = self._qualities.percentile(choice.threshold)
            if found is not None:
                return 1 - found[0]
        return STRONG_SHARE

"""From a request to a plan: which models are to answer it, in which order, and why.

    eligibility -> rules -> sensitivity -> session -> score, pool or band -> max cost

What a request says beats what the config says, and a rule beats both, since rules are where an
operator decides for all:

1. A rule's `block` and what `sensitivity` finds hold for every request, also for one that names its
   model, or is in the middle of tool calls.
2. A plain model of the pool is called itself, or refused: nothing else answers in its place.
3. Tool calls stay on their model; then a rule's model; then a session stays on its own.
4. A threshold makes it the pair's decision: a rule's, else the one in "router-<name>-<threshold>",
   else `threshold`, `strong_share` or `quality` of the request; then its `priority`; then the
   tier's threshold.
5. What is left goes by `router.strategy`, for the pair with the config's threshold.

In shadow mode the strong model takes the place of whatever was decided, where it can take the
request; a plain model of the pool is still called itself.

A plan is made of what the request says and of what is known before it is sent: what has been spent
is the ledger's, and `narrowed` follows from that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...errors import ConfigError, RoutingError, ThresholdError
from ...router.controller import PREFIX, parse_model_name
from ...router.routers import Router
from ...router.threshold import validate_threshold
from ..config.settings import Config, Rule, TierSettings
from ..errors import RefusedError
from ..registry import Model, short_names
from ..request import Asked
from .eligibility import Candidates, by_price, candidates, cost, is_weak, refusal
from .plan import Plan, Step
from .rules import Rules
from .scoring import Scoring
from .selection import Fastest, Picked, Selection
from .sensitivity import Sensitivity, Verdict
from .sticky import no_weaker, stay
from .thresholds import Thresholds

AUTO = "auto"


class Pool(Protocol):
    """What the pipeline needs of a registry."""

    @property
    def models(self) -> Mapping[str, Model]:
        """The pool by name, in the config's order."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's `model` means: a model of the pool, or the router with a threshold."""

    direct: str | None = None
    threshold: float | None = None


class Pipeline:
    """Plans requests over one config, pool and router. Safe to share between threads.

    fastest: model -> seconds that its answers take of late, or None; for `priority: speed`.

    Raises ConfigError where config, pool and router do not fit each other, MissingExtraError where
    a rule or the sensitivity's detector needs an extra.
    """

    def __init__(
        self, config: Config, registry: Pool, router: Router, *, fastest: Fastest | None = None
    ) -> None:
        self._config = config
        self._models = registry.models
        self._short = short_names(registry.models)
        _check(config, self._models)
        self._rules = Rules(config)
        self._sensitivity = Sensitivity(config.sensitivity)
        self._scoring = Scoring(config, self._models, router)
        self._selection = Selection(config, self._models, self._scoring, fastest)
        self._thresholds = Thresholds(config.router, self._scoring)

    @property
    def threshold(self) -> float | None:
        """The pair's threshold where neither request nor tier nor rule says one; None: there is
        none."""
        return self._thresholds.standing

    def hold(self, threshold: float, source: str) -> None:
        """From now on this is the pair's threshold instead of the config's; source: said in
        reasons."""
        self._thresholds.hold(threshold, source)

    def familiarity(self, asked: Asked) -> float | None:
        """How like the router's training the prompt is, in [0, 1]; None where the bundle does not
        tell. Takes milliseconds of CPU; never raises."""
        return self._scoring.familiarity(asked)

    def is_quick(self, asked: Asked) -> bool:
        """Whether `plan` takes a few microseconds: a model is named, and no text is looked at."""
        return asked.model in self._models and not len(self._rules) and not self._sensitivity.active

    def plan(self, asked: Asked, *, held: str | None = None) -> Plan:
        """The models to call for a request. Takes milliseconds of CPU; call it in a thread, but
        where it `is_quick`.

        held: the model that this session or these tool calls are on.

        Raises RefusedError (4xx) where no model may answer: unknown names, nothing eligible,
        blocked by a rule or for its data, dearer than `max_cost`.
        """
        steps: list[Step] = []
        target = self._target(asked.model)
        found = self._candidates(asked)
        steps.append(Step("eligibility", found.describe()))
        if target.direct is not None and target.direct not in found.names:
            raise refusal(found, only=target.direct)
        if not found.names:
            raise refusal(found)
        rule, outcome = self._rule(asked, found)
        if len(self._rules):
            steps.append(Step("rules", outcome))
        verdict = self._judge(asked, found.names, target)
        if self._sensitivity.active:
            steps.append(Step("sensitivity", verdict.outcome))
        picked, allowed = self._pick(asked, target, rule, verdict.allowed, held, steps)
        steps.append(Step("choice", f"{picked.model}: {picked.reason}"))
        plan = self._finish(asked, picked, allowed, steps, mask=verdict.mask)
        return self._shadowed(plan, asked, allowed) if self._config.shadow else plan

    def narrowed(self, plan: Plan, asked: Asked) -> Plan:
        """The plan with weak models alone (`eligibility.is_weak`), for a budget that runs out.

        Tool calls that stay on their model go on there: a soft limit does not break them. Raises
        RefusedError (429) where nothing is left, or the request names another model itself.
        """
        if plan.choice in {"session", "shadow"} and asked.in_tool_calls:
            step = Step("budget", "weak models only, but for these tool calls")
            return replace(plan, steps=(*plan.steps, step))
        weak, strong = self._models[self._config.weak], self._config.strong
        most = asked.options.max_cost
        outcome = f"only models no dearer than {weak.name!r}, and not {strong!r}"
        names = plan.models
        if plan.choice != "direct":
            # The plan may hold one model alone; what else would do is to be found again.
            found = self._candidates(asked)
            others = self._judge(asked, found.names, Target()).allowed
            names = (*plan.models, *self._in_order(asked, others, plan.models))
        left = [
            name
            for name in names
            if is_weak(self._models[name], asked, weak=weak, strong=strong)
            and (most is None or cost(self._models[name], asked) <= most)
        ]
        if not left:
            raise RefusedError(
                429,
                "weak_models_only",
                f"the budget allows {outcome} now, and this request can go to: {', '.join(names)}",
                param="model",
                headers={"x-should-retry": "false"},  # OpenAI's clients would, within seconds
            )
        if left[0] == plan.models[0]:
            picked = Picked(left[0], plan.choice, plan.reason)
        else:
            picked = self._selection.named(left[0], f"budget: {outcome}")
        models = tuple(left) if self._config.calls.fallbacks else (left[0],)
        return replace(
            plan,
            models=models,
            choice=picked.choice,
            reason=picked.reason,
            steps=(*plan.steps, Step("budget", outcome)),
        )

    def mask(self, text: str) -> str:
        """A text as records and logs may hold it where the plan says `mask`; of JSON, its parts."""
        return self._sensitivity.mask(text)

    def masked(self, messages: Sequence[Any]) -> list[Any]:
        """Messages, or any other JSON list, as records and logs may hold them; see `mask`."""
        found: list[Any] = self._sensitivity.masked(list(messages))
        return found

    def _target(self, model: str) -> Target:
        """Raises RefusedError: 404 for a name that means nothing here, 400 for a bad threshold."""
        if model == AUTO:
            return Target()
        if model in self._models:
            return Target(direct=model)
        name = self._scoring.name
        if model.startswith(PREFIX):
            try:
                _, threshold = parse_model_name(model, (name,))
                return Target(
                    threshold=None if threshold is None else validate_threshold(threshold)
                )
            except ThresholdError as error:
                raise RefusedError(400, "invalid_threshold", str(error), param="model") from None
            except RoutingError as error:
                raise RefusedError(404, "model_not_found", str(error), param="model") from None
        if model in self._short:
            return Target(direct=self._short[model])
        raise RefusedError(
            404,
            "model_not_found",
            f"there is no model {model!r}; ask for {AUTO!r}, 'router-{name}-<threshold>' or one of "
            + ", ".join(self._models),
            param="model",
        )

    def _tier(self, asked: Asked) -> TierSettings | None:
        return self._config.tiers.get(asked.principal.tier or "")

    def _candidates(self, asked: Asked) -> Candidates:
        weak, strong = self._config.weak, self._config.strong
        tier = self._tier(asked)
        return candidates(self._models, asked, weak=weak, strong=strong, tier=tier)

    def _rule(self, asked: Asked, found: Candidates) -> tuple[Rule | None, str]:
        """The first rule that holds and can be followed, and a line on it."""
        passed: list[str] = []
        for rule in self._rules.matching(asked):
            said = "; ".join((*passed, f"rule {rule.name!r} holds"))
            if rule.block is not None:
                raise RefusedError(403, "blocked_by_rule", rule.block)
            if rule.model is not None and rule.model not in found.names:
                passed.append(
                    f"rule {rule.name!r} holds, but {rule.model!r} {found.barred[rule.model].text}"
                )
                continue
            return rule, said
        return None, "; ".join(passed) or "none holds"

    def _judge(self, asked: Asked, names: Sequence[str], target: Target) -> Verdict:
        allowed = names if target.direct is None else (target.direct,)
        return self._sensitivity.judge(asked, allowed, self._models)

    def _pick(
        self,
        asked: Asked,
        target: Target,
        rule: Rule | None,
        allowed: Sequence[str],
        held: str | None,
        steps: list[Step],
    ) -> tuple[Picked, Sequence[str]]:
        """The model to answer, and those that may stand in for it."""
        if target.direct is not None:
            return Picked(target.direct, "direct", "the request names the model"), (target.direct,)
        kept = None
        if held is not None and held in self._models:
            kept = stay(asked, allowed, held, self._config)
            if asked.in_tool_calls:
                above = no_weaker(allowed, held, self._config, self._models, asked)
                if above:
                    allowed = above
                else:
                    steps.append(Step("session", f"{held!r} and better ones cannot go on with it"))
                if kept is not None:
                    return kept, allowed
        if rule is not None and rule.model is not None:
            if rule.model in allowed:
                return Picked(rule.model, "rule", f"rule {rule.name!r}"), allowed
            steps.append(Step("rules", f"{rule.model!r} may not take it after all"))
            rule = None
        if kept is not None:
            return kept, allowed
        return self._selected(asked, target, rule, allowed), allowed

    def _selected(
        self, asked: Asked, target: Target, rule: Rule | None, allowed: Sequence[str]
    ) -> Picked:
        wanted = self._thresholds.wanted(asked, target.threshold, rule)
        if wanted is not None:
            return self._selection.pair(asked, allowed, *wanted)
        if asked.options.priority is not None:
            return self._selection.priority(asked, allowed, asked.options.priority)
        tier = self._tier(asked)
        if tier is not None and tier.threshold is not None:
            source = f"of tier {asked.principal.tier!r}"
            return self._selection.pair(asked, allowed, tier.threshold, source)
        strategy = self._config.router.strategy
        if strategy == "pool":
            return self._selection.pool(asked, allowed)
        if strategy == "bands":
            return self._selection.bands(asked, allowed)
        return self._selection.pair(asked, allowed, *self._thresholds.default())

    def _finish(
        self,
        asked: Asked,
        picked: Picked,
        allowed: Sequence[str],
        steps: list[Step],
        *,
        mask: bool,
    ) -> Plan:
        model, choice, reason = picked.model, picked.choice, picked.reason
        most = asked.options.max_cost
        if most is not None:
            fits = [name for name in allowed if cost(self._models[name], asked) <= most]
            if model not in fits:
                model = self._within(asked, picked, fits, allowed, most)
                replaced = self._selection.named(
                    model, f"{picked.model!r} costs more than ${most:.6g}: the cheapest"
                )
                choice, reason = replaced.choice, replaced.reason
                steps.append(Step("max_cost", f"{model}: {reason}"))
            allowed = fits
        calls, strong = self._config.calls, self._config.strong
        others = self._in_order(asked, allowed, (model,)) if calls.fallbacks else []
        if calls.cascade.enabled and not others and model == self._config.weak:
            others = [strong] if strong in allowed and strong != model else []  # its second step
        if calls.cascade.enabled and most is not None and model == self._config.weak:
            # Both would be charged: where that is too much, weak answers alone.
            both = sum(cost(self._models[name], asked) for name in (model, strong))
            others = [name for name in others if name != strong or both <= most]
        return Plan(
            (model, *others),
            choice,
            reason,
            tuple(steps),
            score=picked.score,
            threshold=picked.threshold,
            router=picked.router,
            mask=mask,
        )

    def _shadowed(self, plan: Plan, asked: Asked, allowed: Sequence[str]) -> Plan:
        """The strong model in front of the plan, which says what would have been."""
        if plan.choice == "direct":
            return plan
        strong, most = self._config.strong, asked.options.max_cost
        routed = plan.models[0]
        if strong not in allowed or (most is not None and cost(self._models[strong], asked) > most):
            step = Step("shadow", f"{strong!r} cannot take it")
            return replace(plan, routed=routed, steps=(*plan.steps, step))
        others = [name for name in plan.models if name != strong]
        return replace(
            plan,
            models=(strong, *others) if self._config.calls.fallbacks else (strong,),
            choice="shadow",
            reason=f"shadow: {routed!r} would answer, {plan.reason}",
            steps=(*plan.steps, Step("shadow", f"{strong}: instead of {routed!r}")),
            routed=routed,
        )

    def _within(
        self,
        asked: Asked,
        picked: Picked,
        fits: Sequence[str],
        allowed: Sequence[str],
        most: float,
    ) -> str:
        """The cheapest model within the request's `max_cost`. Raises RefusedError (400)."""
        cheapest = by_price(allowed, self._models, asked)[0]
        if fits and self._config.max_cost_action == "cheapest" and picked.choice != "direct":
            return cheapest
        dear, least = (cost(self._models[name], asked) for name in (picked.model, cheapest))
        other = f"; the cheapest that can take it, {cheapest!r}, may cost ${least:.6g}"
        raise RefusedError(
            400,
            "max_cost",
            f"{picked.model!r} may cost ${dear:.6g} for {asked.prompt_tokens} tokens of prompt and "
            f"up to {asked.output_tokens * asked.choices} of answer, max_cost is ${most:.6g}"
            f"{other if cheapest != picked.model else ''}: raise max_cost or lower max_tokens",
            param="max_cost",
        )

    def _in_order(self, asked: Asked, allowed: Sequence[str], without: Sequence[str]) -> list[str]:
        """Stand-ins: the weak model, the strong one, the others by price."""
        pair = (self._config.weak, self._config.strong)
        others = [name for name in allowed if name not in pair]
        ordered = [name for name in pair if name in allowed]
        ordered += by_price(others, self._models, asked)
        return [name for name in dict.fromkeys(ordered) if name not in without]


def _check(config: Config, models: Mapping[str, Model]) -> None:
    """The names that the pipeline follows must be in the pool."""
    named = [("strong", config.strong), ("weak", config.weak)]
    named += [(f"rule {r.name!r}", r.model) for r in config.rules if r.model is not None]
    named += [(f"band {band.name!r}", band.model) for band in config.router.bands]
    for where, name in named:
        if name not in models:
            raise ConfigError(f"{where}: model {name!r} is not in the pool: {', '.join(models)}")
    if config.router.strategy == "bands" and not config.router.bands:
        raise ConfigError("router.strategy: 'bands' needs router.bands")

"""From a request to a plan: which models are to answer it, in which order, and why.

    eligible -> ruled -> screened -> chosen (direct, tool calls, rule, session, score) -> affordable

What a request says beats what the config says, and a rule beats both, since rules are where an
operator decides for all:

1. A rule's `block` and what `sensitivity` finds hold for every request, also for one that names its
   model, or is in the middle of tool calls.
2. A plain model of the pool is called itself, or refused: nothing else answers in its place.
3. Tool calls stay on their model; then a rule's model; then a session stays on its own. Sessions of
   agents may leave theirs at natural points, where that pays (`switching`).
4. A threshold makes it the pair's decision: a rule's, else the one in "router-<name>-<threshold>",
   else `threshold`, `strong_share` or `quality` of the request; then its `priority`; then the
   tier's threshold.
5. What is left goes by `router.strategy`, for the pair with the config's threshold,
   or that of its strong share.

In shadow mode the strong model takes the place of whatever was decided, where it can take the
request; a plain model of the pool is still called itself.

Each step is a function from a frozen `Draft` to the next one: it narrows the models that are left,
makes the choice, or raises a RefusedError. `narrowed` follows from what has been spent.
"""

from collections.abc import Mapping, Sequence

from ...errors import RoutingError, ThresholdError
from ...router.model_name import AUTO, PREFIX, parse_model_name
from ...router.routers import BundleRouter, Router
from ...router.threshold import validate_threshold
from ..changed import changed
from ..config.settings import Config
from ..errors import RefusedError
from ..registry import Model, short_names
from ..request import ChatRequest
from ..upstream.look_at import LookAt
from .course import Course, features_of
from .eligibility import by_price, candidates, cost, is_weak, refusal
from .plan import ChosenModel, Draft, RoutingPlan
from .rules import Rules
from .selection import Fastest, Selection, stay, weaker
from .sensitivity import Sensitivity
from .switching import Switching


class Pipeline:
    """Plans requests over one config, pool and router. Safe to share between threads.

    fastest: model -> seconds that its answers take of late, or None. look: at weak answers, by the
    router's bundle. Raises ConfigError where config and router do not fit each other,
    MissingExtraError where an extra is needed.
    """

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Model],
        router: Router,
        *,
        fastest: Fastest = lambda _: None,
        look: LookAt | None = None,
    ) -> None:
        self._seconds = () if look is None or look.second is None else (look.second,)
        self._config = config
        self._models = models
        self._short = short_names(models)
        self._rules = Rules(config)
        self.sensitivity = Sensitivity(config.sensitivity)
        policy = None if look is None else look.policy
        self._selection = Selection(config, models, router, fastest, policy)
        self.switching = Switching(config, models, self._selection.qualities)
        self.hold = self._selection.hold
        self.default = self._selection.default
        self._scores_quickly = isinstance(router, BundleRouter) and router.is_quick
        self.familiarity = self._selection.qualities.familiarity

    @property
    def threshold(self) -> float | None:
        """The pair's threshold where neither request nor tier nor rule says one; None: none."""
        found = self.default()
        return None if found is None else found[0]

    @property
    def strong_share(self) -> float | None:
        """The strong share that `threshold` stands for; None where it is given itself, or held."""
        return self._selection.strong_share

    def is_quick(self, request: ChatRequest) -> bool:
        """Whether `plan` takes a fraction of a millisecond for a short request: a model is named,
        or the router is quick, and no pattern looks at its text."""
        reads = len(self._rules) or self.sensitivity.active
        return not reads and (self._scores_quickly or request.model in self._models)

    def plan(self, request: ChatRequest, *, held: Course | None = None) -> RoutingPlan:
        """The models to call for a request. Takes milliseconds of CPU; call it in a thread, but
        where it `is_quick`. held: what is known of this session or these tool calls.

        Raises RefusedError (4xx) where no model may answer: unknown names, nothing eligible,
        blocked by a rule or for its data, dearer than `max_cost`.
        """
        direct, threshold = self._target(request.model)
        held = held if held is not None and held.model in self._models else None
        draft = Draft(request, direct, threshold, held, tuple(self._models))
        draft = self._held_or_ruled(self._screened(self._ruled(self._eligible(draft))))
        draft = self._selection.choose(draft) if draft.choice is None else draft
        if self.switching.applies(request):
            draft = self.switching.weighed(draft)
        choice = draft.choice
        assert choice is not None
        draft = self._affordable(draft.told("choice", f"{choice.model}: {choice.reason}"), choice)
        if request.is_agents:
            draft = _followed(draft)
        return self._shadowed(draft) if self._config.shadow else self._planned(draft)

    def narrowed(self, plan: RoutingPlan, request: ChatRequest) -> RoutingPlan:
        """The plan with weak models alone (`eligibility.is_weak`), for a budget that runs out.

        Tool calls that stay on their model go on there: a soft limit does not break them. Raises
        RefusedError (429) where nothing is left, or the request names another model itself.
        """
        if plan.choice in {"session", "shadow"} and request.in_tool_calls:
            return plan.told("budget", "weak models only, but for these tool calls")
        weak, strong = self._models[self._config.weak], self._config.strong
        most, names = request.options.max_cost, plan.models
        outcome = f"only models no dearer than {weak.name!r}, and not {strong!r}"
        if plan.choice != "direct":
            # The plan may hold one model alone; what else would do is to be found again.
            draft = Draft(request, None, None, None, tuple(self._models))
            others = self._screened(self._eligible(draft)).allowed
            names = (*names, *self._in_order(request, others, names))
        left = [name for name in names if self._within(name, request, most)
                and is_weak(self._models[name], request, weak=weak, strong=strong)]  # fmt: skip
        if not left:
            message = f"the budget allows {outcome} now, and this request can go to: "
            message += ", ".join(names)
            never = {"x-should-retry": "false"}  # OpenAI's clients would, within seconds
            raise RefusedError(429, "weak_models_only", message, param="model", headers=never)
        kind, reason = plan.choice, plan.reason
        if left[0] != plan.models[0]:
            reason = f"budget: {outcome}"
            kind = self._selection.named(left[0], reason).kind
        models = tuple(left if self._config.calls.fallbacks else left[:1])
        new = {"models": models, "choice": kind, "reason": reason, "looks": False}
        return plan.told("budget", outcome, **new)

    def _within(self, name: str, request: ChatRequest, most: float | None) -> bool:
        return most is None or cost(self._models[name], request) <= most

    def _target(self, model: str) -> tuple[str | None, float | None]:
        """What a request's `model` means: (a model of the pool, a threshold for the router).

        Raises RefusedError: 404 for a name that means nothing here, 400 for a bad threshold."""
        direct = model if model in self._models else self._short.get(model)
        if model == AUTO or direct is not None:
            return direct, None
        name = self._config.router.name
        if model.startswith(PREFIX):
            try:
                _, threshold = parse_model_name(model, (name,))
                return None, None if threshold is None else validate_threshold(threshold)
            except ThresholdError as error:
                raise RefusedError(400, "invalid_threshold", str(error), param="model") from None
            except RoutingError as error:
                raise RefusedError(404, "model_not_found", str(error), param="model") from None
        message = f"there is no model {model!r}; ask for {AUTO!r}, 'router-{name}-<threshold>' or "
        message += f"one of {', '.join(self._models)}"
        raise RefusedError(404, "model_not_found", message, param="model")

    def _eligible(self, draft: Draft) -> Draft:
        """The models that can take the request at all."""
        request, direct, config = draft.request, draft.direct, self._config
        tier = config.tiers.get(request.principal.tier or "")
        found = candidates(self._models, request, weak=config.weak, strong=config.strong, tier=tier)
        if not found.names or (direct is not None and direct not in found.names):
            raise refusal(found, only=direct)
        return draft.told("eligibility", found.describe(), allowed=found.names, barred=found.barred)

    def _ruled(self, draft: Draft) -> Draft:
        """The first rule that holds and can be followed."""
        if not len(self._rules):
            return draft
        passed: list[str] = []
        for rule in self._rules.matching(draft.request):
            if rule.block is not None:
                raise RefusedError(403, "blocked_by_rule", rule.block)
            obstacle = draft.barred.get(rule.model or "")
            if obstacle is None:
                said = "; ".join((*passed, f"rule {rule.name!r} holds"))
                return draft.told("rules", said, rule=rule)
            passed.append(f"rule {rule.name!r} holds, but {rule.model!r} {obstacle.text}")
        return draft.told("rules", "; ".join(passed) or "none holds")

    def _screened(self, draft: Draft) -> Draft:
        """The models that may see what the request holds."""
        allowed = draft.allowed if draft.direct is None else (draft.direct,)
        if not self.sensitivity.active:
            return draft if draft.direct is None else changed(draft, allowed=allowed)
        found = self.sensitivity.judge(draft.request, allowed, self._models)
        return draft.told("sensitivity", found.outcome, allowed=found.allowed, mask=found.mask)

    def _held_or_ruled(self, draft: Draft) -> Draft:
        """A model that the request names, its tool calls', a rule's, or its session's. Tool calls
        go on at their model, or at one that is no step down from it."""
        request, rule, config = draft.request, draft.rule, self._config
        held = None if draft.held is None else draft.held.model
        if draft.direct is not None:
            choice = ChosenModel(draft.direct, "direct", "the request names the model")
            return changed(draft, choice=choice)
        priced = self.switching.applies(request) and held in draft.allowed
        if priced:
            draft = changed(draft, choice=self.switching.between(draft))
        if held is not None and request.in_tool_calls and not (priced and draft.choice is None):
            models, allowed = self._models, draft.allowed
            above = tuple(n for n in allowed if not weaker(n, held, config, models, request))
            if not above:
                draft = draft.told("session", f"{held!r} and better ones cannot go on with it")
            else:
                stays = draft.choice or stay(request, allowed, held, config)
                draft = changed(draft, allowed=above, choice=stays)
                if draft.choice is not None:
                    return draft
        if rule is not None and rule.model is not None:
            if rule.model in draft.allowed:
                return changed(draft, choice=ChosenModel(rule.model, "rule", f"rule {rule.name!r}"))
            draft = draft.told("rules", f"{rule.model!r} may not take it after all", rule=None)
        stays = None if priced or held is None else stay(request, draft.allowed, held, config)
        return draft if stays is None else changed(draft, choice=stays)

    def _affordable(self, draft: Draft, choice: ChosenModel) -> Draft:
        """The models within the request's `max_cost`. Raises RefusedError (400)."""
        request, most = draft.request, draft.request.options.max_cost
        if most is None:
            return draft
        fits = tuple(name for name in draft.allowed if self._within(name, request, most))
        if choice.model in fits:
            return changed(draft, allowed=fits)
        cheapest = by_price(draft.allowed, self._models, request)[0]
        if fits and self._config.max_cost_action == "cheapest" and choice.kind != "direct":
            reason = f"{choice.model!r} costs more than ${most:.6g}: the cheapest"
            kind = self._selection.named(cheapest, reason).kind
            choice = changed(choice, model=cheapest, kind=kind, reason=reason)
            return draft.told("max_cost", f"{cheapest}: {reason}", allowed=fits, choice=choice)
        price, least = (cost(self._models[name], request) for name in (choice.model, cheapest))
        other = f"; the cheapest that can take it, {cheapest!r}, may cost ${least:.6g}"
        message = (
            f"{choice.model!r} may cost ${price:.6g} for {request.prompt_tokens} tokens of prompt "
            f"and up to {request.expected_tokens(choice.model):.0f} of answer, max_cost is "
            f"${most:.6g}{other if cheapest != choice.model else ''}: raise max_cost or lower "
            "max_tokens"
        )
        raise RefusedError(400, "max_cost", message, param="max_cost")

    def _planned(self, draft: Draft) -> RoutingPlan:
        """The choice, and those that stand in for it."""
        request, choice, allowed = draft.request, draft.choice, draft.allowed
        assert choice is not None
        calls, strong, most = self._config.calls, self._config.strong, request.options.max_cost
        model = choice.model
        others = self._in_order(request, allowed, (model,)) if calls.fallbacks else []
        cascades = calls.cascade.enabled and choice.kind != "direct"
        looks = (choice.look or cascades) and model == self._config.weak and model != strong
        # Who may not see the request, or cannot take it, gives no second answer either.
        asked = {strong, *self._seconds}
        looks = looks and asked <= set(allowed)
        if looks:
            others = others or [strong]  # its second step
            # All would be charged: where that is too much, weak answers alone.
            if most is not None and self.look_cost(request, choice.score) > most:
                others = [name for name in others if name != strong]
        scored = (choice.score, choice.threshold, choice.router, choice.percentile)
        models = (model, *others)
        said = (choice.kind, choice.reason, draft.steps, *scored, draft.mask)
        return RoutingPlan(models, *said, looks=looks and strong in others)

    def look_cost(self, request: ChatRequest, score: float | None) -> float:
        """What all calls of a request that is looked at may cost, in USD."""
        names = (self._config.weak, self._config.strong, *self._seconds)
        return sum(cost(self._models[name], request, score) for name in names)

    def _shadowed(self, draft: Draft) -> RoutingPlan:
        """The strong model in front of the plan, which says what would have been."""
        plan, strong = self._planned(draft), self._config.strong
        routed = plan.models[0]
        if plan.choice == "direct":
            return plan
        if strong not in draft.allowed:
            return plan.told("shadow", f"{strong!r} cannot take it", routed=routed)
        others = [name for name in plan.models if name != strong]
        models = (strong, *others) if self._config.calls.fallbacks else (strong,)
        reason = f"shadow: {routed!r} would answer, {plan.reason}"
        said = {"models": models, "choice": "shadow", "reason": reason, "routed": routed}
        return plan.told("shadow", f"{strong}: instead of {routed!r}", **said, looks=False)

    def _in_order(
        self, request: ChatRequest, allowed: Sequence[str], without: Sequence[str]
    ) -> list[str]:
        """Stand-ins: the weak model, the strong one, the others by price."""
        pair = (self._config.weak, self._config.strong)
        others = by_price([n for n in allowed if n not in pair], self._models, request)
        ordered = dict.fromkeys((*(name for name in pair if name in allowed), *others))
        return [name for name in ordered if name not in without]


def _followed(draft: Draft) -> Draft:
    """With a line on what becomes of an agent's session, and one on the step, for the record."""
    choice, held = draft.choice, draft.held
    assert choice is not None
    kind = "start"
    if held is not None:
        kind = "stay" if choice.model == held.model else "switch"
    numbers = ", ".join(f"{name} {n}" for name, n in features_of(draft.request).items())
    return draft.told("switch", f"{kind}: {choice.reason}").told("step", numbers)

"""Which models of the pool can take a request at all, and why the others cannot.

What nobody knows of a model (a window, the longest answer) keeps it from nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..config.settings import TierSettings
from ..errors import RefusedError
from ..registry import Model, short_names
from ..request import ChatRequest

_SHOWN = 8  # models that an error names


class Obstacle(NamedTuple):
    """Why one model cannot take a request."""

    kind: Literal["tier", "request", "tag", "capability", "length"]
    text: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """The models that can take a request, in the pool's order, and what bars each of the others."""

    names: tuple[str, ...]
    barred: Mapping[str, Obstacle]

    def describe(self) -> str:
        """In a line, for the record."""
        total = len(self.names) + len(self.barred)
        if not self.barred:
            return f"all {total} models can take it"
        return f"{len(self.names)} of {total} models can take it; not {_listed(self.barred)}"


def cost(model: Model, request: ChatRequest, score: float | None = None) -> float:
    """USD that the request costs on that model: all choices as long as they may be, or where the
    client sets no maximum, as is expected of it."""
    return model.estimate(request.prompt_tokens, request.expected_tokens(model.name, score))


def price(model: Model, request: ChatRequest) -> float:
    """USD for as many tokens on any model: which of them is the dearer one, whatever it writes."""
    return model.estimate(request.prompt_tokens, request.output_tokens * request.choices)


def by_price(names: Iterable[str], models: Mapping[str, Model], request: ChatRequest) -> list[str]:
    """`names`, the cheapest for this request first; equal ones stay in order."""
    return sorted(names, key=lambda name: cost(models[name], request))


def is_weak(model: Model, request: ChatRequest, *, weak: Model, strong: str) -> bool:
    """Whether `model` counts as weak for this request: the weak model itself, and each that costs
    no more, but never the strong one. Of a weak model that costs nothing: it alone."""
    if model.name in {weak.name, strong}:
        return model.name == weak.name
    least = price(weak, request)
    return least > 0 and price(model, request) <= least


def candidates(
    models: Mapping[str, Model],
    request: ChatRequest,
    *,
    weak: str,
    strong: str,
    tier: TierSettings | None,
) -> Candidates:
    """Sort the pool into those that can take the request and those that cannot.

    Raises RefusedError (400) where the request allows a model that the pool does not have.
    """
    named = request.options.models
    if named is not None:
        short = short_names(models)
        named = frozenset(short.get(name, name) for name in named)
        if unknown := sorted(named - set(models)):
            missing = ", ".join(map(repr, unknown))
            message = f"models: {missing} not in the pool, which has: {', '.join(models)}"
            raise RefusedError(400, "model_not_found", message, param="models")
    barred: dict[str, Obstacle] = {}
    for name, model in models.items():
        obstacle, own = None, f"tier {request.principal.tier!r}"
        weak_enough = is_weak(model, request, weak=models[weak], strong=strong)
        if tier is not None and tier.models is not None and name not in tier.models:
            obstacle = Obstacle("tier", f"not in {own}")
        elif tier is not None and tier.weak_only and not weak_enough:
            obstacle = Obstacle("tier", f"no weak model, and {own} has weak models only")
        if obstacle is None and named is not None and name not in named:
            obstacle = Obstacle("request", "not among the models that the request allows")
        if obstacle := obstacle or _unfit(model, request):
            barred[name] = obstacle
    return Candidates(tuple(name for name in models if name not in barred), barred)


def refusal(found: Candidates, *, only: str | None = None) -> RefusedError:
    """The error for a request that no model can take, or not the one that it names (`only`)."""
    barred = {only: found.barred[only]} if only is not None else found.barred
    kinds = {obstacle.kind for obstacle in barred.values()}
    who = "no model of the pool can" if only is None else f"the model {only!r} cannot"
    message = f"{who} take this request: {_listed(barred)}"
    if kinds == {"tier"}:
        return RefusedError(403, "model_not_allowed", message, param="model")
    if "length" in kinds and kinds <= {"length", "tier", "request"}:
        return RefusedError(400, "context_length_exceeded", message, param="messages")
    return RefusedError(400, "no_eligible_model", message, param="model")


def _unfit(model: Model, request: ChatRequest) -> Obstacle | None:
    """A capability, a tag or room that the model lacks."""
    if missing := request.needs - model.capabilities:
        return Obstacle("capability", f"has no {', '.join(sorted(missing))}")
    if missing := request.options.require - model.capabilities - model.tags:
        words = ", ".join(sorted(missing))
        return Obstacle("tag", f"is not {words}, which the request requires")
    prompt, output = request.prompt_tokens, request.output_tokens
    window, longest = model.context_window, model.max_output_tokens
    # Anthropic's clients have to set a maximum: it is cut to what the model can.
    native = request.body.get("native")
    if native is not None and longest is not None:
        output = min(output, longest)
    if native is not None and native["protocol"] == "embeddings":
        window = None  # it holds for each text alone
    if window is not None and prompt + output > window:
        problem = f"has a window of {window} tokens, and {prompt} of prompt and up to {output} of "
        return Obstacle("length", f"{problem}answer need {prompt + output}")
    # The expectation for a request that sets no maximum is no demand.
    if request.sets_maximum and longest is not None and output > longest:
        problem = f"answers with at most {longest} tokens, and the request allows {output}"
        return Obstacle("length", problem)
    return None


def _listed(barred: Mapping[str, Obstacle]) -> str:
    parts = [f"{name} ({obstacle.text})" for name, obstacle in barred.items()]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more

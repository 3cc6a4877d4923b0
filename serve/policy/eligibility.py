"""Which models of the pool can take a request at all, and why the others cannot.

A model is out where the user's tier or the request does not allow it, where it lacks a capability
or a tag that is asked for, where prompt and answer do not fit into its context window, and, in a
tier of weak models only, where `is_weak` does not hold for it. What nobody knows of a model (a
window, the longest answer) keeps it from nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..config.settings import TierSettings
from ..errors import RefusedError
from ..registry import Model, short_names
from ..request import Asked

Kind = Literal["tier", "request", "tag", "capability", "length"]
_SHOWN = 8  # models that an error names


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why one model cannot take a request."""

    kind: Kind
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


def cost(model: Model, asked: Asked) -> float:
    """USD that the request costs at most on that model: all choices as long as they may be."""
    return model.estimate(asked.prompt_tokens, asked.output_tokens * asked.choices)


def by_price(names: Iterable[str], models: Mapping[str, Model], asked: Asked) -> list[str]:
    """`names`, the cheapest for this request first; equal ones stay in order."""
    return sorted(names, key=lambda name: cost(models[name], asked))


def is_weak(model: Model, asked: Asked, *, weak: Model, strong: str) -> bool:
    """Whether `model` counts as weak for this request: the weak model itself, and each that costs
    no more, but never the strong one. Where the weak model costs nothing, prices tell nothing of
    the others: it is the only one then."""
    if model.name in {weak.name, strong}:
        return model.name == weak.name
    least = cost(weak, asked)
    return least > 0 and cost(model, asked) <= least


def candidates(
    models: Mapping[str, Model],
    asked: Asked,
    *,
    weak: str,
    strong: str,
    tier: TierSettings | None,
) -> Candidates:
    """Sort the pool into those that can take the request and those that cannot.

    Raises RefusedError (400) where the request allows a model that the pool does not have.
    """
    if asked.options.models is not None:
        short = short_names(models)
        named = frozenset(short.get(name, name) for name in asked.options.models)
        asked = replace(asked, options=replace(asked.options, models=named))
    unknown = sorted((asked.options.models or frozenset()) - set(models))
    if unknown:
        raise RefusedError(
            400,
            "model_not_found",
            f"models: {', '.join(map(repr, unknown))} not in the pool, which has: "
            + ", ".join(models),
            param="models",
        )
    barred: dict[str, Obstacle] = {}
    for name, model in models.items():
        obstacle = _obstacle(model, asked, models[weak], strong, tier)
        if obstacle is not None:
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


def _obstacle(
    model: Model, asked: Asked, weak: Model, strong: str, tier: TierSettings | None
) -> Obstacle | None:
    options = asked.options
    if tier is not None:
        named = f"tier {asked.principal.tier!r}"
        if tier.models is not None and model.name not in tier.models:
            return Obstacle("tier", f"not in {named}")
        if tier.weak_only and not is_weak(model, asked, weak=weak, strong=strong):
            return Obstacle("tier", f"no weak model, and {named} has weak models only")
    if options.models is not None and model.name not in options.models:
        return Obstacle("request", "not among the models that the request allows")
    missing = asked.needs - model.capabilities
    if missing:
        return Obstacle("capability", f"has no {_words(missing)}")
    missing = options.require - model.capabilities - model.tags
    if missing:
        return Obstacle("tag", f"is not {_words(missing)}, which the request requires")
    return _too_long(model, asked)


def _too_long(model: Model, asked: Asked) -> Obstacle | None:
    needed = asked.prompt_tokens + asked.output_tokens
    if model.context_window is not None and needed > model.context_window:
        return Obstacle(
            "length",
            f"has a window of {model.context_window} tokens, and {asked.prompt_tokens} of prompt "
            f"and up to {asked.output_tokens} of answer need {needed}",
        )
    # The expectation for a request that sets no maximum is no demand.
    demanded = any(
        asked.body.get(key) is not None for key in ("max_tokens", "max_completion_tokens")
    )
    if (
        demanded
        and model.max_output_tokens is not None
        and asked.output_tokens > model.max_output_tokens
    ):
        return Obstacle(
            "length",
            f"answers with at most {model.max_output_tokens} tokens, and the request allows "
            f"{asked.output_tokens}",
        )
    return None


def _listed(barred: Mapping[str, Obstacle]) -> str:
    parts: Sequence[str] = [f"{name} ({obstacle.text})" for name, obstacle in barred.items()]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


def _words(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))

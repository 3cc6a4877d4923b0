"""Conversations that stay on their model.

Two reasons: a session stays where `sticky_s` says so, and a conversation in the middle of tool
calls never goes from a model to a weaker one, since that one would have to make sense of calls that
it did not make. Of two models the weaker is the weak one of the pair, else the cheaper one.
"""

from collections.abc import Mapping, Sequence

from ..config.settings import Config
from ..registry import Model
from ..request import Asked
from .eligibility import cost
from .selection import Picked


def weaker(name: str, held: str, config: Config, models: Mapping[str, Model], asked: Asked) -> bool:
    """Whether `name` would be a step down from `held`, for this request."""
    if held in {name, config.weak} or name == config.strong:
        return False
    if name == config.weak or held == config.strong:
        return True
    return cost(models[name], asked) < cost(models[held], asked)


def no_weaker(
    allowed: Sequence[str], held: str, config: Config, models: Mapping[str, Model], asked: Asked
) -> list[str]:
    """Those of `allowed` that are no step down from `held`."""
    return [name for name in allowed if not weaker(name, held, config, models, asked)]


def stay(asked: Asked, allowed: Sequence[str], held: str, config: Config) -> Picked | None:
    """The model that the conversation is on, where it is to stay there; None where it need not.

    In the middle of tool calls it stays on any model but the weak one, and there too in a session:
    from the weak one the next step may well be a better model's.
    """
    if held not in allowed:
        return None
    if asked.in_tool_calls and held != config.weak:
        return Picked(held, "session", f"tool calls stay on {held!r}")
    if config.sticky_s > 0 and asked.options.session is not None:
        return Picked(held, "session", f"the session stays on {held!r}")
    return None

"""Names of models that mean a router: "router-mf-0.5", "router-mf", "auto"."""

import re
from collections.abc import Collection
from difflib import SequenceMatcher

from ..errors import RoutingError, ThresholdError, UnknownRouterError

AUTO = "auto"
PREFIX = "router-"
FORM = "expected 'router-<name>-<threshold>', for example 'router-mf-0.5'"
ALIKE = 0.85  # of `SequenceMatcher.ratio`: one letter off in "router-mf"


def parse_model_name(model: str, routers: Collection[str]) -> tuple[str, float | None]:
    """Router and threshold of "router-<name>-<threshold>"; None for "router-<name>" alone.

    A name may hold dashes, a threshold any form that `float` reads ("1e-05"): the longest of
    `routers` that leaves a number is meant. Raises ThresholdError where the name fits and the rest
    is no number, UnknownRouterError where only the form fits, else RoutingError.
    """
    rest = model.removeprefix(PREFIX)
    if rest in routers:
        return rest, None
    loaded = ", ".join(routers) or "none"
    cuts = [at for at, char in enumerate(rest) if char == "-"]
    splits = [(rest[:at], _number(rest[at + 1 :])) for at in cuts]
    fitting = [(name, number) for name, number in splits if name in routers]
    for name, number in reversed(fitting):
        if number is not None:
            return name, number
    if fitting:
        raise ThresholdError(
            f"model {model!r}: threshold {rest[len(fitting[-1][0]) + 1 :]!r} is no number; {FORM}; "
            f"routers: {loaded}"
        )
    # Of "x-1e-05" both "x-1e" and "x" leave a number: the shorter name is meant.
    for name, number in splits:
        if number is not None:
            raise UnknownRouterError(name, tuple(routers))
    raise RoutingError(f"model {model!r} names no router and threshold; {FORM}; routers: {loaded}")


def check_no_router_meant(model: str, routers: Collection[str]) -> None:
    """Raise RoutingError where a model's own name is nearly that of a router: "mf-0.5",
    "router_mf-0.5", "Router-mf", "routr-mf-0.5", "Auto". A name with a provider is none."""
    if "/" in model:
        return
    plain = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-")
    name = re.sub(r"-?[0-9.]+(e-?[0-9]+)?$", "", plain)
    meant = [AUTO] if plain == AUTO else [PREFIX + own for own in routers if name == own.lower()]
    if not meant and name not in routers:
        forms = [PREFIX + own for own in routers]
        meant = [f for f in forms if SequenceMatcher(None, name, f.lower()).ratio() >= ALIKE]
    if meant or re.match(r"router\b", plain):
        offer = f"did you mean {meant[0]!r}? " if meant else ""
        raise RoutingError(
            f"model {model!r} is nearly the name of a router: {offer}{FORM}, or 'auto'; to ask a "
            "model of this very name, put its provider before it, as in 'openai/NAME'"
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

"""Log-probabilities of an answer's tokens, as a completion tells them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def field_of(thing: Any, name: str) -> Any:
    """A field of LiteLLM's object or of the dict that it is as JSON; None where it has none."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def token_logprobs(choice: Any) -> list[tuple[str, float | None]]:
    """(token, natural logarithm of its probability) of a choice, None where that is not known;
    empty where none is told."""
    content = field_of(field_of(choice, "logprobs"), "content") or ()
    return [(str(field_of(t, "token") or ""), _known(field_of(t, "logprob"))) for t in content]


def mean_probability(values: Sequence[float | None]) -> float | None:
    """The geometric mean of the probabilities of tokens, from their logarithms; None where it is
    not known: all zeros is what servers say that do not know."""
    known = [v for v in values if v is not None]
    mean = sum(known) / len(known) if known else 0.0
    return math.exp(mean) if mean < 0 else None


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and -9999 < value <= 0 else None

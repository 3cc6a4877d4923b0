"""How long an answer a request allows, and how many answers, under all names that servers know.

What of these names is sent where is `calls.wire`'s; here the largest counts, so that no budget and
no `max_cost` is passed by saying one number to us and another to a server.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import RefusedError

MOST_TOKENS = 10_000_000
MOST_CHOICES = 128
UNLIMITED = -1  # as llama.cpp, Ollama and LM Studio have it
LENGTHS = ("max_completion_tokens", "max_tokens")  # OpenAI's own
# Letters of the names alone, in lower case: "maxOutputTokens" is "max_output_tokens".
# fmt: off
_FURTHER = frozenset({
    "maxcompletiontokens", "maxtokens", "maxoutputtokens", "maxnewtokens", "maxgenlen",
    "maxgentokens", "maxtokencount", "maxtokenstosample", "maxdecodetokens", "numpredict",
    "npredict", "mintokens", "minnewtokens", "tokenstogenerate",
})
_THINKING = frozenset({
    "budgettokens", "thinkingbudget", "thinkingbudgettokens", "thinkingtokenbudget",
    "maxthinkingtokens", "reasoningbudget", "reasoningtokens", "maxreasoningtokens",
})
_CHOICES = frozenset({
    "n", "bestof", "candidatecount", "numcandidates", "numgenerations", "numreturnsequences",
    "numcompletions", "numresults", "numsamples", "numbeams", "beamwidth",
})
# fmt: on
# Text and schemas: a number in them is what a model reads or writes.
_TEXT = frozenset({"messages", "tools", "functions", "response_format", "prediction", "metadata"})


def output_tokens(body: Mapping[str, Any], expected: int, *, unlimited: bool = False) -> int:
    """The longest answer that `body` allows, in tokens; `expected` where it says nothing.

    Other names than OpenAI's own make it longer, never shorter: not every server knows them. What a
    model may think first is part of the maximum, and comes on top where there is none. unlimited:
    whether `UNLIMITED` is a maximum too, that of no maximum. Raises RefusedError (400).
    """
    said = [
        _whole(body[name], name, MOST_TOKENS)
        for name in LENGTHS
        if body.get(name) is not None and not (unlimited and is_unlimited(body[name]))
    ]
    longest = max(said, default=expected)
    thinking = max(_numbers(body, _THINKING, MOST_TOKENS), default=0)
    longest = max(longest, thinking) if said else longest + thinking
    # llama.cpp follows an endless `n_predict` whatever `max_tokens` says.
    least = 0 if said else UNLIMITED
    return max(longest, *_numbers(body, _FURTHER, MOST_TOKENS, least), 0)


def choices(body: Mapping[str, Any]) -> int:
    """How many answers `body` asks for, at most. Raises RefusedError (400)."""
    n = 1 if body.get("n") is None else _whole(body["n"], "n", MOST_CHOICES)
    return max(n, *_numbers(body, _CHOICES, MOST_CHOICES), 1)


def is_unlimited(value: object) -> bool:
    """Whether a maximum is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value == UNLIMITED


def _numbers(
    body: Mapping[str, Any], names: frozenset[str], most: int, least: int = UNLIMITED
) -> Iterator[int]:
    """The numbers that stand under one of `names`, at any depth; text is left out."""
    left_out = _TEXT.union(LENGTHS)  # read by themselves
    level: list[Any] = [{name: value for name, value in body.items() if name not in left_out}]
    while level:
        each = level.pop()
        if isinstance(each, list):
            level += each
        elif isinstance(each, Mapping):
            for name, value in each.items():
                letters = name.replace("_", "").replace("-", "").lower()
                # `reasoning.max_tokens` is a maximum as any other.
                if letters in names and isinstance(value, int | float | str):
                    number = _number(value)
                    if not least <= number <= most:
                        raise _wrong(name, most)
                    yield int(number)
                level.append(value)


def _number(value: float | str) -> float:
    """A number as lenient servers read it, `UNLIMITED` for all below 0; 0 for what is none."""
    try:
        number = float(value)
    except ValueError:
        return 0.0
    except OverflowError:
        return math.inf
    return 0.0 if math.isnan(number) else max(number, float(UNLIMITED))


def _whole(value: object, name: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _wrong(name, most)
    return value


def _wrong(name: str, most: int) -> RefusedError:
    problem = f"{name[:50]}: expected a whole number from 1 to {most}"
    return RefusedError(400, "invalid_request", problem, param=name[:50])

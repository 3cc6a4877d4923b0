"""Two simulated models that work out sums, for docs/second-look.md: how they answer is made up.

The strong one is always right. The weak one is right two times in three, whatever the numbers; then
it is surer of its answer, and gives the same one again at a higher temperature.
"""

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .stub import Received, StubProvider
from .stub_faults import Fault

STRONG, WEAK = "strong-sim", "weak-sim"
_NUMBERS = re.compile(r"\d+")
_RIGHT = 0.65  # of the weak model's answers


class SumsProvider(StubProvider):
    """The stub provider that works out sums. Use as a context manager, or `start` and `close`."""

    def __init__(self) -> None:
        super().__init__((STRONG, WEAK))
        self._body: Mapping[str, Any] = {}

    def record(self, request: Received) -> None:
        """Called by the request handler. One request at a time is enough for an example."""
        self._body = request.body
        super().record(request)

    def fault(self, model: str) -> Fault:
        """Called by the request handler: no fault, but what this model says."""
        prompt = str(self._body["messages"][-1]["content"])
        text, probability = answer(model, prompt, again=(self._body.get("temperature") or 0) > 0)
        message = {"role": "assistant", "content": text}
        return Fault(message=message, logprob=math.log(probability))


def prompt_of(numbers: Sequence[int]) -> str:
    """The question about three numbers."""
    crates, apples, sold = numbers
    return f"{crates} crates hold {apples} apples each. {sold} apples are sold. How many are left?"


def answer(model: str, prompt: str, *, again: bool = False) -> tuple[str, float]:
    """What a model says, and the probability of each of its words; `again`: in a second sample."""
    crates, apples, sold = (int(number) for number in _NUMBERS.findall(prompt)[:3])
    left, chance = crates * apples - sold, _seeded(prompt)
    if model == STRONG or chance.random() < _RIGHT:
        said, probability, same = left, chance.uniform(0.75, 0.99), 0.9
    else:
        said, probability, same = left + chance.randint(1, 90), chance.uniform(0.55, 0.9), 0.3
    if again and model == WEAK and chance.random() > same:
        said += chance.randint(1, 90)
    return f"{crates} times {apples}, less {sold}. The answer is {said}.", probability


def is_right(prompt: str, text: str) -> bool:
    """Whether an answer ends in the right number."""
    crates, apples, sold = (int(number) for number in _NUMBERS.findall(prompt)[:3])
    return int(_NUMBERS.findall(text)[-1]) == crates * apples - sold


def _seeded(text: str) -> random.Random:
    # Not for secrets: a seeded generator is the point.
    return random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311

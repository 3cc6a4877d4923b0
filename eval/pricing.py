"""What a request costs, from prices and token counts."""

import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError
from .metrics import Floats

# Used, and said, where the length of answers is unknown. A budget in USD is only as good as this
# number: give your own.
ASSUMED_OUTPUT_TOKENS = 300


@dataclass(frozen=True, slots=True)
class Price:
    """USD per 1,000,000 input and output tokens."""

    input: float
    output: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(p) and p >= 0 for p in (self.input, self.output)):
            raise CalibrationError(f"prices must be finite and >= 0, got {self.input, self.output}")

    @classmethod
    def parse(cls, text: str) -> "Price":
        """From "IN,OUT". Raises CalibrationError for anything else."""
        try:
            first, second = (float(part) for part in text.split(","))
        except ValueError as error:
            raise CalibrationError(
                f"price {text!r} is not IN,OUT in USD per 1,000,000 tokens, such as 2.5,10"
            ) from error
        return cls(first, second)

    def costs(self, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> Floats:
        """USD a request, float64[n], from token counts, float64[n] or one number for all.

        Raises CalibrationError for counts that are negative or not finite.
        """
        tokens_in, tokens_out = np.broadcast_arrays(
            np.asarray(input_tokens, dtype=np.float64), np.asarray(output_tokens, dtype=np.float64)
        )
        for name, tokens in (("input", tokens_in), ("output", tokens_out)):
            if not np.all(np.isfinite(tokens) & (tokens >= 0)):
                raise CalibrationError(f"{name} token counts must be finite numbers >= 0")
        usd: Floats = (tokens_in * self.input + tokens_out * self.output) / 1e6
        return usd


@dataclass(frozen=True, slots=True)
class RequestCosts:
    """USD a request on either model, float64[n] each, and what had to be assumed to get there."""

    strong: Floats
    weak: Floats
    assumptions: tuple[str, ...]


def request_costs(
    prompts: Sequence[str],
    strong: Price,
    weak: Price,
    *,
    count_tokens: Callable[[str], int],
    input_tokens: npt.ArrayLike | None = None,
    strong_tokens: npt.ArrayLike | None = None,
    weak_tokens: npt.ArrayLike | None = None,
    output_tokens: int = ASSUMED_OUTPUT_TOKENS,
) -> RequestCosts:
    """What each of n prompts costs on either model.

    `input_tokens`, `strong_tokens`, `weak_tokens` (of the answers) are float64[n] from the data,
    NaN or None where unknown. Unknown inputs are counted with `count_tokens`, the router's own
    tokenizer, which is close to but not the model's; unknown answers get `output_tokens`. Both are
    reported in `assumptions`. Raises CalibrationError for counts of another length or below 0.
    """
    n = len(prompts)
    assumptions = []

    def known(name: str, values: npt.ArrayLike | None) -> Floats:
        array = np.full(n, np.nan) if values is None else np.array(values, dtype=np.float64)
        if array.shape != (n,):
            raise CalibrationError(f"{name} have shape {array.shape}, expected ({n},)")
        return array

    tokens_in = known("input tokens", input_tokens)
    missing = np.flatnonzero(np.isnan(tokens_in))
    if missing.size:
        tokens_in[missing] = [count_tokens(prompts[int(i)]) for i in missing]
        assumptions.append(
            f"input tokens of {missing.size:,} of {n:,} prompts counted with the router's tokenizer"
        )
    answers = []
    for side, values in (("strong", strong_tokens), ("weak", weak_tokens)):
        tokens = known(f"{side} model's output tokens", values)
        unknown = np.isnan(tokens)
        if unknown.any():
            tokens[unknown] = output_tokens
            assumptions.append(
                f"{output_tokens} output tokens assumed for {int(unknown.sum()):,} of {n:,} "
                f"answers of the {side} model"
            )
        answers.append(tokens)
    return RequestCosts(
        strong=strong.costs(tokens_in, answers[0]),
        weak=weak.costs(tokens_in, answers[1]),
        assumptions=tuple(assumptions),
    )


def litellm_price(model: str, *, option: str = "--strong-price") -> Price:
    """The price of `model` in the map that LiteLLM ships.

    Nothing is fetched: the copy inside the installed package is read. Raises CalibrationError,
    naming `option`, where the map has no token price for the model.
    """
    # LiteLLM would otherwise download its map while it is imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    prices: Mapping[str, Mapping[str, Any]] = litellm.model_cost
    # "openai/gpt-4o" is listed as "gpt-4o", "anyscale/mistralai/..." in full.
    names = [model, model.partition("/")[2]]
    for name in names:
        entry = prices.get(name, {})
        per_token = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
        if name and all(isinstance(p, int | float) for p in per_token):
            # A price such as 2.5e-06 a token, times a million, should read 2.5.
            return Price(*(round(float(p) * 1e6, 9) for p in per_token if p is not None))
    raise CalibrationError(
        f"LiteLLM's map has no price for {model!r}; give it as {option} IN,OUT in USD per "
        "1,000,000 tokens"
    )

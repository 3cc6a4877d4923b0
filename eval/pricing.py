"""What a request costs, from prices and token counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError
from ..providers.prices import Price
from .metrics import Floats

# Used, and said, where the length of answers is unknown. A budget in USD is only as good as this
# number: give your own.
ASSUMED_OUTPUT_TOKENS = 300


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

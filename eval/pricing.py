"""What a request costs on either model, from prices and token counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..providers.prices import Price, listed_price
from ..router.routers import BundleRouter, Router
from .benchmarks import Benchmark
from .metrics import Floats

# Used, and said, where the length of answers is unknown. A budget in USD is only as good as this
# number: give your own.
ASSUMED_OUTPUT_TOKENS = 300
SIDES = ("strong", "weak")


@dataclass(frozen=True)
class CostOptions:
    """How requests are priced: prices as "IN,OUT", or models to look up in LiteLLM's map."""

    strong_model: str | None = None
    weak_model: str | None = None
    strong_price: str | None = None
    weak_price: str | None = None
    output_tokens: int | None = None


def costs_of(
    router: Router,
    inputs: Sequence[Any],
    benchmark: Benchmark | None,
    options: CostOptions,
    needed: bool,
) -> tuple[tuple[Floats, Floats] | None, tuple[str, ...]]:
    """USD a request on strong and on weak, float64[n] each, and what was assumed for it.

    Given prices and LiteLLM's map come before the costs that the data records; none of them is an
    error only where costs are `needed`. Raises ConfigError and CalibrationError.
    """
    given = (options.strong_price, options.weak_price, options.strong_model, options.weak_model)
    if not any(given):
        if benchmark and benchmark.strong_cost is not None and benchmark.weak_cost is not None:
            return _compared(benchmark.strong_cost, benchmark.weak_cost, (), needed)
        if not needed:
            return None, ()
    prices = [_price(side, options) for side in SIDES]
    if not isinstance(router, BundleRouter):
        raise ConfigError("counting tokens needs a bundle's tokenizer: give a bundle as --router")
    length = ASSUMED_OUTPUT_TOKENS if options.output_tokens is None else options.output_tokens
    tokens, assumed = request_tokens(inputs, benchmark, router.scorer.count_tokens, length)
    costs = [
        price.costs(tokens["input"], tokens[s]) for s, price in zip(SIDES, prices, strict=True)
    ]
    return _compared(costs[0], costs[1], assumed, needed)


def _compared(
    strong: Floats, weak: Floats, assumed: tuple[str, ...], needed: bool
) -> tuple[tuple[Floats, Floats] | None, tuple[str, ...]]:
    """The costs; None, and a hint, where all are 0, so that nothing could be saved by them."""
    if strong.any() or weak.any():
        return (strong, weak), assumed
    hint = (
        "all prices are 0: for local models give prices relative to each other, such as GPU "
        "seconds: --strong-price 10,10 --weak-price 1,1"
    )
    if needed:
        raise ConfigError(hint)
    return None, (f"{hint}; strong calls are counted instead",)


def _price(side: str, options: CostOptions) -> Price:
    if price := getattr(options, f"{side}_price"):
        return Price.parse(price)
    if model := getattr(options, f"{side}_model"):
        return listed_price(model, option=f"--{side}-price")
    raise ConfigError(
        f"the {side} model's price is unknown: give --{side}-price IN,OUT in USD per "
        f"1,000,000 tokens, or --{side}-model NAME to take it from LiteLLM's map"
    )


def request_tokens(
    inputs: Sequence[Any],
    benchmark: Benchmark | None,
    count_tokens: Callable[[Any], int],
    output_tokens: int,
) -> tuple[dict[str, Floats], tuple[str, ...]]:
    """Tokens of n prompts ("input") and of the answers of "strong" and "weak", float64[n] each.

    Those that the data does not know are counted with the router's own tokenizer, which is close to
    but not the model's; answers get `output_tokens`. Both are said in what is returned second.
    """
    n = len(inputs)
    assumed = []

    def known(name: str) -> Floats:
        values: npt.ArrayLike | None = getattr(benchmark, f"{name}_tokens", None)
        return np.full(n, np.nan) if values is None else np.array(values, dtype=np.float64)

    tokens = {name: known(name) for name in ("input", *SIDES)}
    missing = np.flatnonzero(np.isnan(tokens["input"]))
    if missing.size:
        tokens["input"][missing] = [count_tokens(inputs[i]) for i in missing.tolist()]
        assumed.append(
            f"input tokens of {missing.size:,} of {n:,} prompts counted with the router's tokenizer"
        )
    for side in SIDES:
        unknown = np.isnan(tokens[side])
        if unknown.any():
            tokens[side][unknown] = output_tokens
            assumed.append(
                f"{output_tokens} output tokens assumed for {int(unknown.sum()):,} of {n:,} "
                f"answers of the {side} model"
            )
    return tokens, tuple(assumed)

"""What a request costs on either model, from prices and token counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..providers.prices import Price, listed_price
from ..router.output_tokens import DEFAULT_TOKENS, OutputTokens
from ..router.routers import BundleRouter, Router
from .benchmarks import Benchmark
from .metrics import Floats

SIDES = ("strong", "weak")


@dataclass(frozen=True)
class CostOptions:
    """How requests are priced: prices as "IN,OUT", or models to look up in LiteLLM's map.
    `output_tokens`: of an answer whose length the data does not say; None: as others tell."""

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
    count = router.scorer.count_tokens
    tokens, assumed = request_tokens(inputs, benchmark, count, options.output_tokens)
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
    output_tokens: int | None,
) -> tuple[dict[str, Floats], tuple[str, ...]]:
    """Tokens of n prompts ("input") and of the answers of "strong" and "weak", float64[n] each.

    Those that the data does not know are counted with the router's own tokenizer, which is close to
    but not the model's; answers get `output_tokens`, or where that is None, what the known answers
    of their side predict. Both are said in what is returned second.
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
            found, how = _lengths(tokens["input"], tokens[side], output_tokens)
            tokens[side][unknown] = found[unknown]
            assumed.append(f"{how} for {int(unknown.sum()):,} of {n:,} answers of the {side} model")
    return tokens, tuple(assumed)


def _lengths(prompt: Floats, answer: Floats, given: int | None) -> tuple[Floats, str]:
    """Expected tokens of n answers, float64[n], of which some, not NaN, are known; and in words."""
    rows = zip(prompt.tolist(), answer.tolist(), strict=True)
    known = [("", (size, told, None)) for size, told in rows if not np.isnan(told)]
    lengths = OutputTokens.fitted(known if given is None else (), given or DEFAULT_TOKENS)
    if given is not None or not lengths.arms:
        told = DEFAULT_TOKENS if given is None else given
        return np.full(len(prompt), float(told)), f"{told} output tokens assumed"
    arm = lengths.arms[""]
    how = f"output tokens predicted from {arm.n:,} known ones (mean {arm.mean:,.0f}"
    if arm.error is not None and arm.default_error is not None:
        how += f"; mean error {arm.error:.0%} of it, {arm.default_error:.0%} with {DEFAULT_TOKENS}"
    return np.array([arm.tokens(size) for size in prompt.tolist()]), f"{how})"

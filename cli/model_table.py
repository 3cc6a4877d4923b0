"""The pool of models as a terminal table and as JSON."""

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from ..providers.prices import PER
from ..serve.registry import Model, Registry
from ..terminal import new_console, visible


def show(registry: Registry) -> None:
    """Print the table to stdout."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "in", "out", "context", "can", "tags", "from"):
        right = column in {"in", "out", "context"}
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for model in registry.values():
        side = _side(registry, model.name)
        row = (
            f"{model.name} ({side})" if side else model.name,
            usd(model.input_price),
            usd(model.output_price),
            "?" if model.context_window is None else f"{model.context_window:,}",
            " ".join(sorted(model.capabilities)) or "-",
            " ".join(sorted(model.tags)) or "-",
            _origin(model),
        )
        table.add_row(*(escape(visible(cell)) for cell in row))
    console = new_console()
    console.print(table)
    console.print("Prices in USD per million tokens.", style="dim", highlight=False)


def as_dict(registry: Registry, model: Model) -> dict[str, Any]:
    """As JSON, prices in USD per million tokens; without `params`, which hold keys."""
    return {
        "name": model.name,
        "model": model.litellm_model,
        "side": _side(registry, model.name),
        "price": {
            "input": _per_million(model.input_price),
            "output": _per_million(model.output_price),
            "cached_input": _per_million(model.cached_input_price),
        },
        "context_window": model.context_window,
        "max_output_tokens": model.max_output_tokens,
        "capabilities": sorted(model.capabilities),
        "tags": sorted(model.tags),
        "bundle_model": model.bundle_model,
        "sources": dict(model.sources),
    }


def _side(registry: Registry, name: str) -> str | None:
    sides = [side for side in ("strong", "weak") if getattr(registry, side) == name]
    return " and ".join(sides) or None


def _origin(model: Model) -> str:
    """As "litellm", or where they differ "price: config, rest: litellm"."""
    price = model.sources["price"]
    rest = {source for name, source in model.sources.items() if name != "price"}
    if rest <= {price}:
        return price
    return f"price {price}, rest {' '.join(sorted(rest))}"


def _per_million(price: float) -> float:
    # Twelve digits: 0.15 came from 1.5e-07, and 1.5e-07 * 1e6 is 0.15 but for its last bit.
    return float(f"{price * PER:.12g}")


def usd(price: float) -> str:
    """A price per token as one per million."""
    return f"{_per_million(price):g}"

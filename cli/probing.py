"""`models --probe`: each model is asked once for log-probabilities."""

import asyncio
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from ..providers.completion import close_connections, quiet, warm_up
from ..providers.probe import PROBE, Probed, probe
from ..serve.config.settings import CallSettings
from ..serve.registry import Model, Registry
from ..serve.spend.cost import cost_of, usage_of
from ..serve.upstream.request import ModelCall
from ..terminal import new_console, visible

_WORDS = {
    "yes": "yes, probability {probability:.3f}",
    "missing": "accepted, but none came",
    "refused": "refused: {why}",
    "degenerate": "degenerate: all are 0 or -9999",
    "failed": "failed: {why}",
}


def probe_all(registry: Registry, calls: CallSettings) -> dict[str, dict[str, Any]]:
    """By model, for JSON: `log_probabilities` with `outcome` (`Outcome`), `probability`, `why`, and
    `cost` in USD. The calls are made as the server makes them."""
    warm_up()
    return asyncio.run(_probe_all(list(registry.values()), calls))


def show_probes(probes: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table to stdout."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "log-probabilities", "USD"):
        table.add_column(column, overflow="fold")
    for name, row in probes.items():
        found = row["log_probabilities"]
        cost = "?" if found["cost"] is None else f"{found['cost']:.6f}"
        told = _WORDS[found["outcome"]].format(**found)
        table.add_row(*(escape(visible(cell)) for cell in (name, told, cost)))
    new_console().print(table)


async def _probe_all(models: list[Model], calls: CallSettings) -> dict[str, dict[str, Any]]:
    with quiet():
        requests = [ModelCall.of(model, calls).keywords(PROBE, stream=False) for model in models]
    try:
        found = await asyncio.gather(*map(probe, requests))
    finally:
        await close_connections()
    rows = zip(models, found, strict=True)
    return {model.name: {"log_probabilities": _as_dict(model, probed)} for model, probed in rows}


def _as_dict(model: Model, probed: Probed) -> dict[str, Any]:
    """The cost is None where nothing came that tells it."""
    usage = usage_of(probed.answer)
    cost = None if usage is None else cost_of(model, usage)
    return {
        "outcome": probed.outcome,
        "probability": probed.probability,
        "why": probed.why,
        "cost": cost,
    }

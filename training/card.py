"""The card of a bundle: what it is, what it learned from, how good it is, what it cannot do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def render_card(summary: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The card as Markdown, from a training summary (see `write_bundle.write_trained`)."""
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    environment.filters |= {"cell": _cell, "counts": _counts, "number": _number}
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **summary, notes=notes
    )
    return text.rstrip("\n") + "\n"


def _cell(text: str) -> str:
    return (text or "(none)").replace("|", "\\|").replace("\n", " ")


def _counts(of: Mapping[str, int], least: int = 1) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in of.items() if count >= least)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"

"""Figures as text, tables on a terminal, and HTML pages from templates."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..terminal import new_console
from .metrics import Interval

if TYPE_CHECKING:
    from rich.console import Console


def json_safe(value: object) -> Any:
    """`value` with numpy numbers as Python's, tuples as lists, and NaN or infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        return json_safe(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_text(value: float) -> str:
    """Three decimals; "-" where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def interval_text(ends: Iterable[float], form: str = "{:.3f}") -> str:
    """Both ends in brackets; "-" where they are undefined."""
    low, high = ends
    return "-" if math.isnan(low) else f"[{form.format(low)}, {form.format(high)}]"


def percent(value: float, digits: int = 1) -> str:
    """A share as text; a dash where it is not defined."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "-"


def between(ends: Interval) -> str:
    """An interval of shares as text."""
    return " to ".join(map(percent, ends)) if all(map(math.isfinite, ends)) else "no interval"


def simulated_note(*models: str) -> str:
    """A warning where the outcomes are those of the samples (`data/samples`), else ""."""
    if all(name.endswith("-sim") for name in ", ".join(models).split(", ")):
        return "simulated data: no model answered these prompts; it says nothing of real models"
    return ""


def difference_text(value: float, ends: Iterable[float] | None = None) -> str:
    """A difference, beside its interval where it has one, all with their signs."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    text = "-" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"
    return text if ends is None else f"{text} {interval_text(ends, '{:+.3f}')}"


def line(out: "Console", text: str, style: str | None = None) -> None:
    """Print one line as it stands: no markup, no colours of its own."""
    from rich.markup import escape

    out.print(escape(text), style=style, highlight=False)


def plain(*lines: str) -> None:
    """Print lines on stdout as they stand, never wrapped."""
    new_console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def table(
    out: "Console",
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    styles: Iterable[str] | None = None,
) -> None:
    """Print rows of cells under their columns; all but the first are aligned right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        right = number > 0
        justify: Any = "right" if right else "left"
        found.add_column(escape(column), justify=justify, overflow="fold", no_wrap=right)
    look = iter(styles or ())
    for row in rows:
        found.add_row(*(escape(cell) for cell in row), style=next(look, None))
    out.print(found)


def render(
    template: Path,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """The template with its values, every one escaped; a name that is missing is an error. It may
    include what lies beside it or in this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(filters or {})
    pages.tests["finite"] = _finite
    return pages.get_template(template.name).render(values)


def _finite(value: float | Interval) -> bool:
    return all(map(math.isfinite, value if isinstance(value, tuple | list) else (value,)))

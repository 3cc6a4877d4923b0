"""What commands print."""

import json

import typer

from ..text import printable


def print_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON; raises ValueError where it holds NaN or an infinity."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))


def short(text: str, width: int = 80) -> str:
    """`text` as one line of at most `width` printable characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"

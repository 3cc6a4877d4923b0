"""What commands print."""

import json

import typer

from ..terminal import one_line, visible


def say(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print text, of whomever it is, so that it cannot steer the terminal (see `terminal`)."""
    typer.echo(visible(str(text)), err=err, nl=nl)


def print_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON; raises ValueError where it holds NaN or an infinity."""
    say(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))


def short(text: str, width: int = 80) -> str:
    """`text` as one line of at most `width` characters."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"

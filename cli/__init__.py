"""The command `thriftroute`. What is heavy is imported by the command that needs it."""

import contextlib
import logging
import sys
from typing import Annotated, NoReturn

import typer

from ..terminal import LogFormatter
from . import audit, connect, label, logs, measuring, replay, routing, serve, training, watch
from .exits import INTERRUPTED, Commands, fail
from .output import say

__all__ = ["app", "main"]

app = typer.Typer(
    name="thriftroute",
    cls=Commands,
    help="A trained router for LLM calls: strong model where it pays, weak model elsewhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> NoReturn:
    """Run the command; exit status 0, 1 (failed), 2 (wrong usage) or 130 (interrupted)."""
    with contextlib.suppress(AttributeError):
        # Text that the terminal cannot show, such as half of a surrogate pair, is no reason to die.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if logging.lastResort is not None:  # which prints the warnings of commands
        logging.lastResort.setFormatter(LogFormatter())
    try:
        app()
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from .._version import __version__

        say(f"thriftroute {__version__}")
        raise typer.Exit


# In the order in which --help lists them.
for group in (routing, training, measuring, audit, replay, watch, serve, connect, label, logs):
    group.add_commands(app)

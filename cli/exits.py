"""How a command ends: its exit status, and an error as a line on stderr."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import ConfigError, RoutingError, ThriftrouteError, TrainingInterruptedError
from .output import say
from .sections import Sections

USAGE = 2
INTERRUPTED = 130


class Commands(Sections):
    """Turns what a command raises on purpose into a line on stderr and an exit status.

    Here and not around `app()`, since typer has its own ideas about Ctrl-C and closed pipes. What
    nobody expected keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Exit status 0, 1 (failed), 2 (wrong usage) or 130 (interrupted)."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (RoutingError, ConfigError) as error:
            fail(error, USAGE)
        except ThriftrouteError as error:
            fail(error, INTERRUPTED if isinstance(error, TrainingInterruptedError) else 1)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except BrokenPipeError:
            # Whoever reads has enough, such as `head`.
            _drop_output()
            sys.exit(0)
        except OSError as error:
            _drop_output()
            where = "" if error.filename is None else f"{error.filename}: "
            fail(f"{where}{error.strerror or error}", 1)
        return result


def fail(error: object, status: int) -> NoReturn:
    """Say what was wrong, in one line whatever a library put into its own message, and exit."""
    say(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(status)


@contextlib.contextmanager
def error_lines() -> Iterator[None]:
    """Where a config is read: its errors are many, and each gets its own line on stderr."""
    try:
        yield
    except ConfigError as error:
        for line in str(error).splitlines():
            say(f"error: {line}", err=True)
        sys.exit(USAGE)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Where records are read: what the database says is wrong, in one line and without the SQL."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"the records cannot be read: {cause}") from None


def _drop_output() -> None:
    """Where stdout cannot be written: forget what is buffered, or the interpreter tries again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

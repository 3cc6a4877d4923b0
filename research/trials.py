"""What `error_rates` and `guarantee_trials` share: sizes to draw, and figures to print."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..eval.printing import json_safe
from ..terminal import new_console

if TYPE_CHECKING:
    from rich.table import Table


def sizes_of(text: str, draws: int, *, example: str) -> list[int]:
    """The numbers of labels in --sizes. Raises ConfigError, also for a --draws below 1."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or draws < 1:
        raise ConfigError(f"--sizes and --draws: expected whole numbers above 0, as {example}")
    return sizes


def write_json(rows: Sequence[object]) -> None:
    """Rows of figures on stdout; what is undefined is null."""
    sys.stdout.write(json.dumps(json_safe(rows), indent=2, allow_nan=False) + "\n")


def print_table(table: "Table", note: str, *, width: int) -> None:
    """The table, at least so wide: rows of figures that wrap cannot be read; and a note on it."""
    console = new_console()
    new_console(width=max(console.width, width)).print(table)
    console.print(note, highlight=False)

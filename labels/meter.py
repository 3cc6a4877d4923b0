"""Progress of a labelling run: rows, and money spent so far of the cap."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .answers import Work
from .money import Purse

_EVERY_S = 30.0  # between lines where there is no terminal


class Meter:
    """A bar on a terminal, a line now and then elsewhere. Use as a context manager."""

    def __init__(self, console: Console, total: int, purse: Purse) -> None:
        self._console = console
        self._total = total
        self._purse = purse
        self._told = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn())
            told = TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, told, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(self._money(), total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, work: Work) -> None:
        """Tell how far `work` is."""
        done = len(work.labels) + len(work.reasons)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self._money())
        elif time.monotonic() - self._told > _EVERY_S:
            self._told = time.monotonic()
            self._console.print(
                f"{done:,} of {self._total:,} rows, {self._money()}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _money(self) -> str:
        spent = f"${self._purse.spent:.4f} spent"
        return spent if self._purse.cap == float("inf") else f"{spent} of ${self._purse.cap:g}"

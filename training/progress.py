"""How a training run goes: its losses, and its progress on the terminal, silent without one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


@dataclass
class History:
    """What happened: validation loss by epoch (index 0 is before training)."""

    fingerprint: str = ""
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    done: bool = False


class Progress:
    """Notes and bars on a console; without one, nothing is shown."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """One line."""
        if self._console:
            self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; call what it yields with (done, total)."""
        with self._bars() as bars:
            task = bars.add_task(label, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    @contextmanager
    def training(self, label: str, epochs: int) -> Iterator[Callable[[str, int, int, float], None]]:
        """A bar over the steps of each epoch, and the validation loss beside it; see `loop.fit`."""
        losses: list[float] = []
        with self._bars() as bars:
            task = bars.add_task(f"{label}: epoch 1/{epochs}", total=None)

            def report(event: str, done: int, total: int, value: float) -> None:
                if event == "epoch":
                    losses.append(value)
                    return
                text = f"{label}: epoch {int(value) + 1}/{epochs}"
                if losses:
                    text += f", validation loss {losses[-1]:.4f} (best {min(losses):.4f})"
                bars.update(task, description=text, completed=done, total=total)

            yield report

    def _bars(self) -> Bars:
        return Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=self._console is None,
        )

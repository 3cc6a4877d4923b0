"""The training loop: seeded, early stopping, resumable, interruptible.

A run has a folder. Every `save_every_s` seconds, and at the end, the state (weights, optimizer,
random state, position) is written there as safetensors and JSON, in one rename. Running the same
command again goes on from there, batch for batch: the order of the batches depends on seed and
epoch alone. A run with other settings or data in the same folder is refused.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from ...errors import TrainingError, TrainingInterruptedError, require_extra
from ..progress import History

SAVE_EVERY_S = 60.0
STATE = "state.safetensors"
BEST = "best.safetensors"


class Task(Protocol):
    """What a trainer gives to the loop. seed: with the epoch, of all that is random."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    seed: int

    def batches(self, epoch: int) -> Sequence[Any]:
        """The epoch's batches, a function of the seed and the epoch alone."""

    def loss(self, batch: Any) -> torch.Tensor:
        """Mean loss of a batch, with its graph."""

    def validate(self) -> float:
        """Loss on the validation split."""

    def before_step(self, progress: float) -> None:
        """Called with the share of all steps that is done, in [0, 1): learning rates."""


Report = Callable[[str, int, int, float], None]


def fit(
    task: Task,
    *,
    epochs: int,
    patience: int,
    folder: Path,
    fingerprint: str,
    report: Report | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> History:
    """Train until `epochs` are done or the validation loss has not fallen for `patience` epochs.

    The model ends with the weights of its best epoch. report: called after each step with
    ("train", step, steps of the epoch, epoch) and after each epoch with ("epoch", epoch, epochs,
    validation loss). Raises TrainingInterruptedError, or TrainingError where the folder holds
    another run or the loss is not finite.
    """
    report = report or (lambda event, done, total, value: None)
    folder.mkdir(parents=True, exist_ok=True)
    history = _load(task, folder, fingerprint)
    if history is None:
        history = History(fingerprint)
        torch.manual_seed(task.seed)
        # The untrained model is no candidate: it would be kept where training only overfits, and
        # pass for a result.
        history.losses.append(task.validate())
    started, saved = time.monotonic() - history.seconds, time.monotonic()

    def keep(*, at_end: bool = False) -> None:
        """Save where it is time to, or the run ends; raise where it is interrupted before."""
        nonlocal saved
        history.seconds = time.monotonic() - started
        if at_end or stop.is_set() or time.monotonic() - saved > save_every_s:
            _save(task, history, folder)
            saved = time.monotonic()
        if stop.is_set() and not at_end:
            raise TrainingInterruptedError(
                f"interrupted in epoch {history.epoch + 1}; the state is in {folder}: run the same "
                "command again to go on"
            )

    with _interrupts() as stop:
        while not history.done:
            batches = task.batches(history.epoch)
            if history.step == 0:
                torch.manual_seed(task.seed * 100_003 + history.epoch)
            task.model.train()
            for batch in batches[history.step :]:
                progress = (history.epoch + history.step / len(batches)) / epochs
                _step(task, batch, progress, history.epoch)
                history.step += 1
                report("train", history.step, len(batches), history.epoch)
                keep()
            loss = task.validate()
            history.epoch, history.step = history.epoch + 1, 0
            _check_loss(loss, f"validation loss is {loss} after epoch {history.epoch}")
            history.losses.append(loss)
            if loss < history.best_loss:
                history.best_loss, history.best_epoch = loss, history.epoch
                _write_tensors(folder / BEST, _weights(task.model))
            stale = history.epoch - history.best_epoch
            history.done = history.epoch >= epochs or stale >= patience
            report("epoch", history.epoch, epochs, loss)
            keep(at_end=history.done)
    with _damage(folder / BEST):
        _read_weights(task.model, folder / BEST)
    return history


def _step(task: Task, batch: Any, progress: float, epoch: int) -> None:
    task.before_step(progress)
    task.optimizer.zero_grad(set_to_none=True)
    loss = task.loss(batch)
    _check_loss(loss.item(), f"loss is {loss.item()} in epoch {epoch + 1}")
    loss.backward()  # type: ignore[no-untyped-call]
    task.optimizer.step()


def _check_loss(loss: float, told: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"the {told}: try a lower learning rate")


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event, so that a step is never cut in half; a second is at once.

    Outside the main thread signals cannot be caught, and nothing changes.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # Frozen weights come back from the encoder; clones, since safetensors refuses shared memory.
    return {
        f"model.{name}": p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _read_weights(model: torch.nn.Module, path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = require_extra("safetensors.torch", "train").load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"model.{name}"])
    return tensors


def _save(task: Task, history: History, folder: Path) -> None:
    tensors = _weights(task.model)
    for index, slots in task.optimizer.state_dict()["state"].items():
        for key, value in slots.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).clone()
    tensors["random"] = torch.get_rng_state()
    # One file and one rename: weights and position can never be from two different moments.
    _write_tensors(folder / STATE, tensors, {"history": json.dumps(asdict(history))})


def _load(task: Task, folder: Path, fingerprint: str) -> History | None:
    path = folder / STATE
    if not path.is_file():
        return None
    safetensors = require_extra("safetensors", "train")
    with _damage(path), safetensors.safe_open(path, framework="pt") as stream:
        history = History(**json.loads(stream.metadata()["history"]))
    if history.fingerprint != fingerprint:
        raise TrainingError(
            f"{folder} holds a run with other data or settings; remove it, or give another --out"
        )
    with _damage(path):
        tensors = _read_weights(task.model, path)
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                slots.setdefault(int(index), {})[key] = tensor
        task.optimizer.load_state_dict({**task.optimizer.state_dict(), "state": slots})
        torch.set_rng_state(tensors["random"])
    return history


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes the libraries raise becomes a TrainingError."""
    try:
        yield
    except Exception as error:  # safetensors raises its own class, JSON and keys theirs
        raise TrainingError(
            f"{path} is missing or damaged ({error!r}); remove {path.parent} to start anew"
        ) from error


def _write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    save_file = require_extra("safetensors.torch", "train").save_file
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)

"""The training loop that mf and bert share: seeded, early stopping, resumable, interruptible.

A run has a folder. After every epoch, and within long ones every SAVE_EVERY_S seconds, the state
(weights, optimizer, random state, position) is written there as safetensors and JSON, in one
rename. Running the same command again goes on from there, batch for batch: the order of the
batches depends on seed and epoch alone. A run with other settings or data in the same folder is
refused.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from ...errors import TrainingError, require_extra

SAVE_EVERY_S = 60.0
STATE = "state.safetensors"
BEST = "best.safetensors"


class TrainingInterruptedError(TrainingError):
    """Ctrl-C or SIGTERM: the state is saved; the same command goes on from there."""


@dataclass
class History:
    """What happened: validation loss by epoch (index 0 is before training)."""

    fingerprint: str
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    done: bool = False


class Task(Protocol):
    """What a trainer gives to the loop."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

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
    seed: int,
    folder: Path,
    fingerprint: str,
    report: Report | None = None,
) -> History:
    """Train until `epochs` are done or the validation loss has not fallen for `patience` epochs.

    The model ends with the weights of its best epoch. report: called after each step with
    ("train", step, steps of the epoch, epoch) and after each epoch with ("epoch", epoch, epochs,
    validation loss). Raises TrainingInterruptedError, or TrainingError where the folder holds
    another run or the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = _load(task, folder, fingerprint)
    if history is None:
        history = History(fingerprint)
        torch.manual_seed(seed)
        history.losses.append(task.validate())
        # The untrained model is no candidate: it would be kept where training only overfits, and
        # pass for a result.
    started = time.monotonic() - history.seconds
    with _interrupts() as stop:
        while not history.done:
            _epoch(task, history, epochs, folder, stop, started, seed, report)
            loss = task.validate()
            if not loss < float("inf"):
                raise TrainingError(
                    f"the validation loss is {loss} after epoch {history.epoch + 1}: try a lower "
                    "learning rate"
                )
            history.epoch += 1
            history.step = 0
            history.losses.append(loss)
            history.seconds = time.monotonic() - started
            if loss < history.best_loss:
                history.best_loss, history.best_epoch = loss, history.epoch
                _write_tensors(folder / BEST, _weights(task.model))
            stale = history.epoch - history.best_epoch
            history.done = history.epoch >= epochs or stale >= patience
            if report:
                report("epoch", history.epoch, epochs, loss)
            if history.done or time.monotonic() - started > SAVE_EVERY_S:
                _save(task, history, folder)
            if stop.is_set() and not history.done:
                _interrupt(task, history, folder, started)
    with _damage(folder / BEST):
        _read_weights(task.model, folder / BEST)
    return history


def _epoch(
    task: Task,
    history: History,
    epochs: int,
    folder: Path,
    stop: threading.Event,
    started: float,
    seed: int,
    report: Report | None,
) -> None:
    batches = task.batches(history.epoch)
    if history.step == 0:
        torch.manual_seed(seed * 100_003 + history.epoch)
    task.model.train()
    saved = time.monotonic()
    for index in range(history.step, len(batches)):
        task.before_step((history.epoch + index / len(batches)) / epochs)
        task.optimizer.zero_grad(set_to_none=True)
        loss = task.loss(batches[index])
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {history.epoch + 1}: try a lower learning rate"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        task.optimizer.step()
        history.step = index + 1
        if report:
            report("train", history.step, len(batches), history.epoch)
        if stop.is_set():
            _interrupt(task, history, folder, started)
        if time.monotonic() - saved > SAVE_EVERY_S:
            history.seconds = time.monotonic() - started
            _save(task, history, folder)
            saved = time.monotonic()


def _interrupt(task: Task, history: History, folder: Path, started: float) -> None:
    history.seconds = time.monotonic() - started
    _save(task, history, folder)
    raise TrainingInterruptedError(
        f"interrupted in epoch {history.epoch + 1}; the state is in {folder}: run the same command "
        "again to go on"
    )


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
        state = task.optimizer.state_dict()
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                slots.setdefault(int(index), {})[key] = tensor
        task.optimizer.load_state_dict({**state, "state": slots})
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

"""The training loop: determinism, early stopping, interrupts and resuming to the same bit."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thriftroute.errors import TrainingError

torch = pytest.importorskip("torch")

from thriftroute.training.models.loop import BEST, STATE, History, TrainingInterruptedError, fit  # noqa: E402

STEPS = 4
pytestmark = pytest.mark.usefixtures("one_thread")


class Toy:
    """A regression with dropout: the random state matters, and so does the order of batches."""

    def __init__(self, validation: list[float] | None = None, loss_factor: float = 1.0) -> None:
        torch.manual_seed(7)
        self.model: Any = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        # A frozen weight, as of an encoder: it is no part of the state.
        self.model[0].bias.requires_grad_(False)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(32, 6, generator=generator)
        self.y = self.x[:, :1] * 2
        self.rates: list[float] = []
        self.seed = 0
        self._validation = validation
        self._factor = loss_factor
        self._validated = 0

    def batches(self, epoch: int) -> list[Any]:
        order = torch.randperm(32, generator=torch.Generator().manual_seed(epoch))
        return list(order.reshape(STEPS, -1))

    def loss(self, batch: Any) -> Any:
        return ((self.model(self.x[batch]) - self.y[batch]) ** 2).mean() * self._factor

    def validate(self) -> float:
        self.model.eval()
        if self._validation is not None:
            self._validated += 1
            return self._validation[self._validated - 1]
        with torch.no_grad():
            return float(((self.model(self.x) - self.y) ** 2).mean())

    def before_step(self, progress: float) -> None:
        self.rates.append(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.05 * (1 - progress)

    def weights(self) -> list[Any]:
        return [p.detach().clone() for p in self.model.parameters()]


def run(task: Toy, folder: Path, **changes: Any) -> History:
    options: dict[str, Any] = {"epochs": 3, "patience": 9, "fingerprint": "one"}
    task.seed = changes.pop("seed", 0)
    return fit(task, folder=folder, **{**options, **changes})


def same(a: list[Any], b: list[Any]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def interrupt_at(
    epoch: int, step: int, number: int = signal.SIGINT
) -> Callable[[str, int, int, float], None]:
    """A report that sends this process a real signal after one step."""

    def report(event: str, done: int, total: int, value: float) -> None:
        if event == "train" and (int(value), done) == (epoch, step):
            os.kill(os.getpid(), number)

    return report


def test_same_seed_same_weights(tmp_path: Path) -> None:
    tasks = [Toy(), Toy(), Toy()]
    for index, (task, seed) in enumerate(zip(tasks, (0, 0, 1), strict=True)):
        torch.rand(index)  # whatever was drawn before must not matter
        run(task, tmp_path / str(index), seed=seed)
    assert same(tasks[0].weights(), tasks[1].weights())
    assert not same(tasks[0].weights(), tasks[2].weights())


def test_it_learns_and_reports(tmp_path: Path) -> None:
    task, events = Toy(), []
    history = run(task, tmp_path, epochs=6, report=lambda *event: events.append(event))
    assert history.done
    assert history.epoch == 6
    assert len(history.losses) == 7
    assert history.best_loss == min(history.losses[1:]) < history.losses[0]
    steps = [event for event in events if event[0] == "train"]
    assert [(e[1], e[2], e[3]) for e in steps[: STEPS + 1]] == [
        *((i + 1, STEPS, 0) for i in range(STEPS)),
        (1, STEPS, 1),
    ]
    assert [e[1:3] for e in events if e[0] == "epoch"] == [(i + 1, 6) for i in range(6)]
    assert task.rates == [i / (6 * STEPS) for i in range(6 * STEPS)]


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    kept: dict[int, list[Any]] = {}
    task = Toy(validation=[9.0, 3.0, 2.0, 2.5, 2.0, 7.0])

    def report(event: str, done: int, total: int, value: float) -> None:
        if event == "epoch":
            kept[done] = task.weights()

    history = run(task, tmp_path, epochs=9, patience=3, report=report)
    assert (history.epoch, history.best_epoch, history.best_loss) == (5, 2, 2.0)
    assert same(task.weights(), kept[2])
    assert not same(kept[2], kept[5])


def test_the_untrained_model_is_no_candidate(tmp_path: Path) -> None:
    history = run(Toy(validation=[0.1, 3.0, 4.0, 5.0]), tmp_path)
    assert (history.best_epoch, history.best_loss) == (1, 3.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 2), (1, STEPS), (2, 1)])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, epoch: int, step: int, number: int
) -> None:
    whole = Toy()
    expected = run(whole, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterruptedError, match="run the same command again"):
        run(Toy(), tmp_path / "cut", report=interrupt_at(epoch, step, number))
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "cut" / STATE).is_file()
    torch.rand(11)
    task = Toy()
    history = run(task, tmp_path / "cut")
    assert same(task.weights(), whole.weights())
    assert history.losses == expected.losses
    assert history.best_epoch == expected.best_epoch
    # Nothing is done twice.
    assert len(task.rates) == 3 * STEPS - (epoch * STEPS + step)


def test_two_interrupts_and_resumes(tmp_path: Path) -> None:
    whole = Toy()
    run(whole, tmp_path / "whole")
    for at in ((0, 3), (2, 1)):
        with pytest.raises(TrainingInterruptedError):
            run(Toy(), tmp_path / "cut", report=interrupt_at(*at))
    task = Toy()
    run(task, tmp_path / "cut")
    assert same(task.weights(), whole.weights())


def test_saving_by_the_clock(tmp_path: Path) -> None:
    """A run that is killed outright goes on from its last save, mid-epoch, to the same bit."""
    whole = Toy()
    run(whole, tmp_path / "whole")

    def killed(event: str, done: int, total: int, value: float) -> None:
        if (event, done, value) == ("train", 3, 1):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(Toy(), tmp_path / "cut", report=killed, save_every_s=0.0)
    task = Toy()
    run(task, tmp_path / "cut")
    assert same(task.weights(), whole.weights())
    assert len(task.rates) == 2 * STEPS - 2


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = Toy()
    history = run(first, tmp_path)
    again = Toy()
    assert run(again, tmp_path).losses == history.losses
    assert again.rates == []
    assert same(again.weights(), first.weights())


def test_an_interrupt_in_the_last_step_finishes(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterruptedError):
        run(Toy(), tmp_path, report=interrupt_at(2, STEPS))
    task = Toy()
    assert run(task, tmp_path).done
    assert task.rates == []


def test_a_second_interrupt_is_at_once(tmp_path: Path) -> None:
    def report(event: str, done: int, total: int, value: float) -> None:
        if event == "train" and done == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(Toy(), tmp_path, report=report)
    assert not (tmp_path / STATE).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread(tmp_path: Path) -> None:
    """Signals can only be caught in the main thread; training works in any."""
    expected, task, found = Toy(), Toy(), []
    run(expected, tmp_path / "main")
    thread = threading.Thread(target=lambda: found.append(run(task, tmp_path / "thread")))
    thread.start()
    thread.join()
    assert found[0].done
    assert same(task.weights(), expected.weights())


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    run(Toy(), tmp_path)
    with pytest.raises(TrainingError, match="other data or settings; remove it") as caught:
        run(Toy(), tmp_path, fingerprint="two")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "no history", "no weights"])
def test_a_damaged_state_names_the_folder(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    run(Toy(), tmp_path)
    state = tmp_path / STATE
    whole = state.read_bytes()
    if damage == "no history":
        save_file({"x": torch.zeros(1)}, state)
    elif damage == "no weights":
        history = '{"fingerprint": "one"}'
        save_file({"x": torch.zeros(1)}, state, {"history": history})
    else:
        state.write_bytes({"empty": b"", "cut": whole[:-100], "text": b"not tensors"}[damage])
    with pytest.raises(TrainingError, match="missing or damaged") as caught:
        run(Toy(), tmp_path)
    assert f"remove {tmp_path}" in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_best_weights_name_the_folder(tmp_path: Path, damage: str) -> None:
    run(Toy(), tmp_path)
    best = tmp_path / BEST
    if damage == "missing":
        best.unlink()
    else:
        best.write_bytes(best.read_bytes()[:-40])
    with pytest.raises(TrainingError, match="missing or damaged") as caught:
        run(Toy(), tmp_path)
    assert f"remove {tmp_path}" in str(caught.value)


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1: try a lower learning rate"):
        run(Toy(loss_factor=float("nan")), tmp_path)
    with pytest.raises(TrainingError, match="validation loss is nan after epoch 2"):
        run(Toy(validation=[1.0, 1.0, float("nan")]), tmp_path)

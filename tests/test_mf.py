"""Matrix factorization: the formula, the loss on comparisons, and resuming with dropout on."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.schema import Comparison
from thriftroute.data.tables import ComparisonTable, comparison_table

torch = pytest.importorskip("torch")

from thriftroute.training.loop import TrainingInterruptedError, fit  # noqa: E402
from thriftroute.training.mf import MFModel, MFSettings, MFTask  # noqa: E402

DIM = 6
SMALL = MFSettings(hidden=8, epochs=12, batch=16, lr=1e-2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of tiny products only wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(n: int, seed: int = 0) -> tuple[ComparisonTable, npt.NDArray[np.float32]]:
    """Strong wins where the first coordinate is above 0; several comparisons a prompt."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(2.0, 0.3, (n, DIM)).astype(np.float32)
    rows = []
    for index, row in enumerate(embeddings):
        for k in range(1 + index % 3):
            win = float(row[0] > 2.0)
            pair = ("s1", "w1") if k % 2 else ("s2", "w1")
            rows.append(Comparison(f"prompt {index}", *pair, win, weight=1.0 + k))
    return comparison_table(rows, ("s1", "s2"), ("w1",)), embeddings


def task(seed: int = 0, settings: MFSettings = SMALL) -> MFTask:
    train, train_vectors = data(120)
    validation, vectors = data(40, seed=1)
    return MFTask(train, validation, (train_vectors, vectors), settings, seed)


def run(made: MFTask, folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"epochs": 12, "patience": 12, "seed": 0, "fingerprint": "mf"}
    return fit(made, folder=folder, **{**options, **changes})


def weights(made: MFTask) -> list[Any]:
    return [p.detach().clone() for p in made.model.parameters()]


def test_quality_is_the_formula() -> None:
    """delta_m = w2^T (v_m * (W1 e + b)), RouteLLM (arXiv 2406.18665), section 4.2."""
    torch.manual_seed(0)
    model = MFModel(DIM, 3, SMALL)
    _, e = data(5)
    model.standardize(e)
    model.eval()
    got = model(torch.from_numpy(e)).detach().numpy()
    w1, b = (p.detach().numpy() for p in (model.w1.weight, model.w1.bias))
    v, w2 = model.v.detach().numpy(), model.w2.detach().numpy()
    scaled = (e - e.mean(0)) * float(model.scale)
    for i in range(5):
        for m in range(3):
            assert got[i, m] == pytest.approx(w2 @ (v[m] * (w1 @ scaled[i] + b)), abs=1e-5)


def test_factors_work_on_raw_embeddings() -> None:
    made = task()
    _, e = data(7, seed=2)
    w1, b1, u = made.model.factors()
    assert (w1.shape, b1.shape, u.shape) == ((8, DIM), (8,), (3, 8))
    made.model.eval()
    with torch.no_grad():
        expected = made.model(torch.from_numpy(e)).numpy()
    assert np.abs((e @ w1.T + b1) @ u.T - expected).max() < 1e-5


def test_equal_embeddings_do_not_divide_by_zero() -> None:
    model = MFModel(DIM, 2, SMALL)
    model.standardize(np.ones((4, DIM), np.float32))
    assert torch.isfinite(model(torch.ones(1, DIM))).all()


def test_loss_is_the_weighted_log_loss_of_the_comparisons() -> None:
    made = task(settings=dataclasses.replace(SMALL, dropout=0.0))
    table, embeddings = data(120)
    batch = np.array([5, 0, 77])
    made.model.train()
    with torch.no_grad():
        got = float(made.loss(batch))
        quality = made.model(torch.from_numpy(embeddings)).numpy().astype(np.float64)
    total = mass = 0.0
    for j in range(table.m):
        i = table.prompt_index[j]
        if i in batch:
            p = 1 / (1 + np.exp(quality[i, table.b[j]] - quality[i, table.a[j]]))
            total -= table.weight[j] * np.log(p if table.win[j] else 1 - p)
            mass += table.weight[j]
    assert mass == 6.0 + 1.0 + 6.0
    assert got == pytest.approx(total / mass, rel=1e-5)


def test_batches_hold_every_prompt_once_and_depend_on_seed_and_epoch() -> None:
    made = task()
    for epoch in (0, 1):
        assert sorted(np.concatenate(made.batches(epoch))) == list(range(120))
    first = np.concatenate(made.batches(0))
    assert (first == np.concatenate(task().batches(0))).all()
    assert (first != np.concatenate(made.batches(1))).any()
    assert (first != np.concatenate(task(seed=1).batches(0))).any()


def test_learning_rate_falls_to_a_tenth() -> None:
    made = task()
    rates = []
    for progress in (0.0, 0.5, 1.0):
        made.before_step(progress)
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 0.55e-2, 1e-3])


def test_it_learns(tmp_path: Path) -> None:
    made = task()
    history = run(made, tmp_path)
    assert history.best_loss < 0.6 * history.losses[0]
    _, e = data(200, seed=3)
    w1, b1, u = made.model.factors()
    quality = (e @ w1.T + b1) @ u.T
    # Models in the order s1, s2, w1: either strong one is better than w1 exactly on hard prompts.
    for strong in (0, 1):
        right = (quality[:, strong] > quality[:, 2]) == (e[:, 0] > 2.0)
        assert right.mean() > 0.85


@pytest.mark.parametrize(("epoch", "step"), [(0, 3), (4, 8), (5, 1)])
def test_resuming_mid_epoch_gives_the_same_weights(tmp_path: Path, epoch: int, step: int) -> None:
    """Dropout is on: the random state comes back, too."""
    whole = task()
    run(whole, tmp_path / "whole")

    def report(event: str, done: int, total: int, value: float) -> None:
        if event == "train" and (int(value), done) == (epoch, step):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterruptedError):
        run(task(), tmp_path / "cut", report=report)
    resumed = task()
    run(resumed, tmp_path / "cut")
    pairs = zip(weights(whole), weights(resumed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_same_seed_same_weights(tmp_path: Path) -> None:
    made = [task(), task(), task(seed=1)]
    for index, one in enumerate(made):
        run(one, tmp_path / str(index), seed=one.seed, epochs=2)
    a, b, c = ([p.numpy().tobytes() for p in weights(one)] for one in made)
    assert a == b != c

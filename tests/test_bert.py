"""The BERT router: its parts, and resuming a fine-tuning with dropout on."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.data.schema import Comparison
from thriftroute.data.tables import PairTable, pair_table

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from thriftroute.training.encoder import load_encoder  # noqa: E402
from thriftroute.training.models.bert import BertModel, BertTask, freeze, pad  # noqa: E402
from thriftroute.training.models.loop import TrainingInterruptedError, fit  # noqa: E402
from thriftroute.training.settings import BertSettings  # noqa: E402

SETTINGS = BertSettings(epochs=2, batch=8, lr=1e-3, head_lr=1e-2)
pytestmark = pytest.mark.usefixtures("one_thread")


def table(n: int, seed: int) -> tuple[PairTable, list[list[int]]]:
    """Strong wins where token 9 is there; prompts of 4 to 20 tokens."""
    rng = np.random.default_rng(seed)
    ids, rows = [], []
    for index in range(n):
        hard = index % 2
        body = rng.integers(10, 60, rng.integers(2, 18)).tolist()
        ids.append([2, *([9, *body] if hard else body), 3])
        rows.append(Comparison(f"prompt {index}", "s", "w", float(hard), weight=1.0 + index % 3))
    return pair_table(rows, "s", "w"), ids


def task(encoder: Path, seed: int = 0, settings: BertSettings = SETTINGS) -> BertTask:
    loaded = load_encoder(str(encoder))
    torch.manual_seed(seed)
    model = BertModel(loaded.module, loaded.dim)
    train, validation = table(48, 0), table(16, 1)
    made = (train[1], validation[1]), (train[0], validation[0])
    return BertTask(model, *made, settings, seed)


def run(made: BertTask, folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"epochs": 2, "patience": 2, "fingerprint": "bert"}
    return fit(made, folder=folder, **{**options, **changes})


def test_pad() -> None:
    ids, mask = pad([[5], [6, 7, 8]])
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_padding_does_not_change_a_prompt(tiny_encoder: Path) -> None:
    model = task(tiny_encoder).model
    model.eval()
    with torch.no_grad():
        alone = model(*pad([[2, 20, 3]]))
        beside = model(*pad([[2, 20, 3], [2, *range(5, 40), 3]]))
    assert [tuple(output.shape) for output in beside] == [(2, 2), (2, 32)]
    for one, two in zip(alone, beside, strict=True):
        assert torch.allclose(one[0], two[0], atol=1e-5)


def test_the_head_gets_inputs_of_about_unit_variance(tiny_encoder: Path) -> None:
    loaded = load_encoder(str(tiny_encoder))
    for normalize in (False, True):
        loaded.module.normalize = normalize
        model = BertModel(loaded.module, loaded.dim)
        model.eval()
        seen: list[Any] = []
        model.head.register_forward_hook(lambda m, given, out, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            model(*pad([[2, *range(5, 30), 3], [2, 8, 3]]))
        assert 0.3 < float(seen[0].std()) < 3.0


def test_freeze(tiny_encoder: Path) -> None:
    def trainable(layers: int) -> set[str]:
        loaded = load_encoder(str(tiny_encoder))
        freeze(loaded.module, layers)
        return {n for n, p in loaded.module.named_parameters() if p.requires_grad}

    some, few = trainable(0), trainable(1)
    assert not any("word_embeddings" in name or "pooler" in name for name in some)
    assert any("LayerNorm" in name and "embeddings" in name for name in some)
    assert any("layer.0." in name for name in some)
    # Of one layer, all frozen: nothing of the encoder is left.
    assert few == set()


def test_batches_hold_every_prompt_once_and_little_padding(tiny_encoder: Path) -> None:
    made = task(tiny_encoder)
    batches = made.batches(0)
    assert sorted(np.concatenate(batches)) == list(range(48))
    lengths = np.array([len(row) for row in table(48, 0)[1]])
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.25 * lengths.sum() < lengths.max() * 48
    assert [b.tolist() for b in made.batches(0)] == [b.tolist() for b in batches]
    assert [b.tolist() for b in made.batches(1)] != [b.tolist() for b in batches]


def test_loss_is_the_weighted_log_loss(tiny_encoder: Path) -> None:
    made = task(tiny_encoder)
    pairs, ids = table(16, 1)
    made.model.eval()
    losses = []
    with torch.no_grad():
        for row, win in zip(ids, pairs.win, strict=True):
            quality = made.model(*pad([row]))[0][0].double()
            p = 1 / (1 + np.exp(float(quality[1] - quality[0])))
            losses.append(-np.log(p if win else 1 - p))
    # Where the processor has bfloat16, three digits are what is left.
    assert made.validate() == pytest.approx(np.average(losses, weights=pairs.weight), rel=2e-2)


def test_learning_rates_warm_up_and_fall(tiny_encoder: Path) -> None:
    made = task(tiny_encoder)
    seen = []
    for progress in (0.0, 0.03, 0.06, 0.53, 0.999):
        made.before_step(progress)
        seen.append([group["lr"] / group["base"] for group in made.optimizer.param_groups])
    assert [a for a, _ in seen] == [b for _, b in seen]
    assert [a for a, _ in seen] == pytest.approx([1e-3, 0.5, 1.0, 0.5, 0.00106], abs=1e-4)
    still = task(tiny_encoder, settings=dataclasses.replace(SETTINGS, warmup=0.0))
    still.before_step(0.0)
    assert still.optimizer.param_groups[0]["lr"] == SETTINGS.lr


def test_it_learns(tiny_encoder: Path, tmp_path: Path) -> None:
    made = task(tiny_encoder)
    history = run(made, tmp_path, epochs=24, patience=24)
    assert history.best_loss < 0.6 * history.losses[0]


@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 3)])
def test_resuming_mid_epoch_gives_the_same_weights(
    tiny_encoder: Path, tmp_path: Path, epoch: int, step: int
) -> None:
    whole = task(tiny_encoder)
    assert whole.model.encoder.transformer.config.hidden_dropout_prob > 0
    run(whole, tmp_path / "whole")

    def report(event: str, done: int, total: int, value: float) -> None:
        if event == "train" and (int(value), done) == (epoch, step):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterruptedError):
        run(task(tiny_encoder), tmp_path / "cut", report=report)
    resumed = task(tiny_encoder)
    run(resumed, tmp_path / "cut")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_seed_decides(tiny_encoder: Path, tmp_path: Path) -> None:
    made = [task(tiny_encoder, seed) for seed in (0, 0, 1)]
    for index, one in enumerate(made):
        run(one, tmp_path / str(index), epochs=1)
    a, b, c = (one.model.head.weight.detach().numpy().tobytes() for one in made)
    assert a == b != c

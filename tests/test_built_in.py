"""How the built-in bundles are made, on small data: many models, a tiny encoder, few steps."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data import sources
from thriftroute.data.sources import JUDGED_STRONG, JUDGED_WEAK
from thriftroute.errors import DataError, EvaluationError, TrainingError
from thriftroute.eval.metrics import apgr
from thriftroute.router.features import FEATURES
from thriftroute.router.scorer import Scorer
from thriftroute.router.threshold import ORDINARY, ThresholdTable

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("sklearn")
pytest.importorskip("sentence_transformers")

from thriftroute.research import built_in
from thriftroute.research.difficulty_head import GeneralSettings
from thriftroute.research.finetune_encoder import TuneSettings
from thriftroute.research.protocols import HELD_OUT, ProtocolSettings, read_source, run_protocol
from thriftroute.research.routellm_mf import fit_routellm
from thriftroute.tests.helpers.tables import comparison_table
from thriftroute.training.encoder import encoder_bundle
from thriftroute.training.export import read_head
from thriftroute.training.prepare import prepare, read_data, split_tables
from thriftroute.training.progress import Progress
from thriftroute.training.settings import KINDS, TrainSettings
from thriftroute.training.write_bundle import TrainResult

# What a model adds to the log odds of being right.
MODELS = {"s1": 3.0, "s2": 2.5, "s3": 2.0, "other": 1.2, "w1": 0.8, "w2": 0.4, "w3": 0.0}
STRONG, WEAK = ("s1", "s2", "s3"), ("w1", "w2", "w3")
# Tasks by the letters of their prompts; the more digits, the harder.
TASKS = {"alpha/one": "abcde", "alpha/two": "fghij", "planbench/three": "klmno"}
TUNE = TuneSettings(epochs=1, probe_steps=20, frozen_layers=0, batch=16, train_tokens=40)
Row = dict[str, Any]
Floats = npt.NDArray[np.float64]


def text(random: np.random.Generator, letters: str) -> str:
    digits = int(random.integers(0, 13))
    words = "".join(random.choice(list(letters), 20 - digits))
    return words + "".join(random.choice(list("0123456789"), digits))


def rows(n: int = 70, seed: int = 0) -> list[Row]:
    """Scores of all models on n prompts of each task, and on ten of a task that is too small."""
    random = np.random.default_rng(seed)
    found: list[Row] = []
    for task, letters in {**TASKS, "alpha/small": "pqrst"}.items():
        source, _, category = task.partition("/")
        for _ in range(10 if category == "small" else n):
            prompt = text(random, letters)
            hard = sum(map(str.isdigit, prompt)) / 3 - 2
            said = {"prompt": prompt, "source": source, "task": category}
            found += [
                {**said, "model": model,
                 "score": float(random.random() < 1 / (1 + np.exp(1.5 * hard - ability)))}
                for model, ability in MODELS.items()
            ]  # fmt: skip
    return found


def judged(n: int = 240, seed: int = 5) -> list[Row]:
    """Ordinary prompts with ratings: the more vowels, the harder; long or short alike."""
    random = np.random.default_rng(seed)
    found: list[Row] = []
    for number in range(n):
        vowels = int(random.integers(0, 13))
        letters = [*random.choice(list("xyzv"), 14 - vowels), *random.choice(list("uuw"), vowels)]
        prompt = "".join(letters) + "." * int(random.choice([1, 100, 320])) + f" {number}"
        weak = round(96 - 7 * vowels)
        rated = {"weak_ok": weak, "strong_ok": round(100 - (100 - weak) / 4)}
        found.append({"prompt": prompt, "kind": "test", "area": "test", **rated,
                      **{f"{name}_blind": value for name, value in rated.items()}})  # fmt: skip
    return found


def write(path: Path, found: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def small(folder: Path) -> Iterator[None]:
    """Few steps of tuning, one thread, a small corpus."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built_in, "TUNE", TUNE)
        patch.setattr(sources, "CORPUS", folder / "corpus.jsonl")
        write(folder / "corpus.jsonl", judged())
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built_in")


@pytest.fixture(scope="module")
def request_of(tiny_encoder: Path, folder: Path) -> Any:
    data = write(folder / "scores.jsonl", rows())

    def make(kind: str = "mf", **fields: Any) -> TrainSettings:
        defaults: dict[str, Any] = {
            "kind": kind, "data": [data, ORDINARY], "out": folder / kind,
            "strong": (*STRONG, JUDGED_STRONG), "weak": (*WEAK, JUDGED_WEAK),
            "encoder": str(tiny_encoder), "max_tokens": 48, "validation": 0.25,
            "command": f"make {kind}", "notes": ("of a test",),
        }  # fmt: skip
        return TrainSettings(**{**defaults, **fields})

    return make


@pytest.fixture(scope="module")
def made(request_of: Any) -> dict[str, TrainResult]:
    return {kind: built_in.train_general(request_of(kind), Progress()) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
class TestGeneral:
    def test_the_bundle_routes(self, kind: str, made: dict[str, TrainResult]) -> None:
        result = made[kind]
        scorer = Scorer.load(result.bundle.path)
        manifest = scorer.bundle.manifest
        assert (manifest.kind, manifest.strong, manifest.weak) == (kind, "strong", "weak")
        assert set(manifest.models) == {
            *STRONG, *WEAK, JUDGED_STRONG, JUDGED_WEAK, "strong", "weak",
        }  # fmt: skip
        fresh = [row["prompt"] for row in rows(40, seed=9)][:: len(MODELS)]
        digits = np.array([sum(map(str.isdigit, prompt)) for prompt in fresh])
        margins = scorer.margins(fresh)
        assert np.corrcoef(margins, digits)[0, 1] > 0.5
        asked = judged(80, seed=9)
        scores = scorer.scores([row["prompt"] for row in asked])
        assert np.corrcoef(scores, [row["weak_ok"] for row in asked])[0, 1] < -0.5
        assert list(manifest.thresholds) == [ORDINARY]
        table = ThresholdTable.from_dict(manifest.thresholds[ORDINARY])
        assert table.n == len(judged())

    def test_figures_are_those_of_prompts_that_were_held_out(
        self, kind: str, made: dict[str, TrainResult], request_of: Any
    ) -> None:
        asked = request_of(kind)
        encoder, _ = encoder_bundle(asked.encoder_name, max_tokens=48)
        prepared = prepare(asked, Scorer.load(encoder), Progress())
        _, every = split_tables(asked, prepared.pairs)
        held_out = every.subset(np.array([source == ORDINARY for source in every.source]))
        summary = made[kind].summary
        assert summary["prompts"]["validation"] == summary["validation"]["n"] == held_out.n
        margin = [Scorer.load(made[kind].bundle.path).margin(p) for p in held_out.prompts]
        expected = apgr(margin, held_out.strong, held_out.weak)
        assert summary["validation"]["apgr"] == pytest.approx(expected, abs=1e-3)
        assert expected > 0.55

    def test_what_the_card_and_the_manifest_say(
        self, kind: str, made: dict[str, TrainResult], tiny_encoder: Path
    ) -> None:
        result = made[kind]
        summary, manifest = result.summary, result.bundle.manifest
        name = str(tiny_encoder)
        assert manifest.encoder == (f"static vectors of {name}" if kind == "fast" else name)
        assert summary["encoder"] == name
        assert summary["tasks"] == 3
        assert set(summary["left_out"]) == {"alpha/small", f"{ORDINARY}/test"}
        assert summary["left_out"]["alpha/small"].startswith("10 prompts")
        assert summary["weights"] == {"alpha": 1.0, ORDINARY: 1.0, "planbench": 0.25}
        assert summary["general"]["mix"] == (1.0 if kind == "bert" else 0.5)
        if summary["validation"]["calibration"] != "none":
            assert summary["validation"]["calibrated_on"].endswith("other prompts")
        card = result.bundle.file("card.md").read_text()
        for told in (f"# {kind} router", "- of a test", f"    make {kind}", "| planbench |"):
            assert told in card

    def test_prompts_of_the_training_data_are_familiar(
        self, kind: str, made: dict[str, TrainResult]
    ) -> None:
        scorer = Scorer.load(made[kind].bundle.path)
        known = [row["prompt"] for row in rows()][:: len(MODELS)] + [r["prompt"] for r in judged()]
        random = np.random.default_rng(0)
        gibberish = ["".join(random.choice(list("!?;:()&%#@"), 30)) for _ in range(20)]
        familiar, strange = (
            np.array([scorer.familiarity(prompt) for prompt in prompts], dtype=np.float64)
            for prompts in (known, gibberish)
        )
        assert familiar.mean() > 0.8
        assert strange.mean() < 0.1

    def test_abilities_are_those_of_the_models(
        self, kind: str, made: dict[str, TrainResult]
    ) -> None:
        bundle = made[kind].bundle
        head = read_head(bundle.file("model.onnx").read_bytes(), bundle.manifest.models)
        ability = dict(zip(head.models, head.u[:, 0].tolist(), strict=True))
        assert (ability["strong"], ability["weak"]) == (0.5, -0.5)
        assert min(ability[m] for m in STRONG) > max(ability[m] for m in WEAK)
        mean = {
            model: np.mean([row["score"] for row in rows() if row["model"] == model])
            for model in (*STRONG, *WEAK)
        }
        by_score = sorted(mean, key=lambda model: float(mean[model]))
        assert np.corrcoef([ability[m] for m in by_score], [mean[m] for m in by_score])[0, 1] > 0.95
        # A better pair has the same margin, scaled by how far the two are apart.
        default, pair = (
            Scorer.load(bundle.path, **names)
            for names in ({}, {"strong": "s1", "weak": "w3"})  # type: ignore[arg-type]
        )
        prompt = rows()[0]["prompt"]
        expected = (ability["s1"] - ability["w3"]) * default.margin(prompt)
        assert pair.margin(prompt) == pytest.approx(expected, abs=1e-4)

    def test_nothing_is_left_behind(self, kind: str, made: dict[str, TrainResult]) -> None:
        out = made[kind].bundle.path
        assert not out.with_name(f"{out.name}.run").exists()


def test_mf_stands_on_the_encoder_that_it_names_and_bert_on_a_tuned_one(
    made: dict[str, TrainResult],
) -> None:
    from thriftroute.eval import benchmarks
    from thriftroute.eval.benchmarks import Benchmark

    random = np.random.default_rng(0)
    prompts = [row["prompt"] for row in rows()][:: len(MODELS)]
    weak = (random.random(len(prompts)) < 0.5) * 1.0
    bench = Benchmark("of-the-bundle", prompts, np.ones(len(prompts)), weak, "big", "small")
    benchmarks.register(bench.name)(lambda files: bench)
    try:
        path = str(made["mf"].bundle.path)
        settings = ProtocolSettings(benchmark_names=[bench.name])
        (report,) = run_protocol("int8", path, settings)
        assert report.to_dict()["difference"] == pytest.approx(0, abs=0.05)
        with pytest.raises(EvaluationError, match="tuned encoder"):
            run_protocol("int8", str(made["bert"].bundle.path), settings)
    finally:
        del benchmarks.BENCHMARKS[bench.name]


def test_mf_decides_by_half_of_its_encoder_and_bert_by_all_of_it(
    request_of: Any, encoder_maker: Any, folder: Path
) -> None:
    encoder = str(encoder_maker(4))
    files = {}
    for kind in ("mf", "bert"):
        asked = request_of(kind, encoder=encoder, out=folder / f"deep-{kind}")
        bundle = built_in.train_general(asked, Progress()).bundle
        assert Scorer.load(bundle).embeddings(["abc"]).shape == (1, 32)
        files[kind] = set(bundle.manifest.files)
        layers = {"mf": 2, "bert": 3}[kind]
        assert bundle.manifest.width == 32 * layers + len(FEATURES)
    assert files["mf"] - files["bert"] == {"embedding.onnx"}


def test_one_command_one_graph(request_of: Any, made: dict[str, TrainResult], folder: Path) -> None:
    again = built_in.train_general(request_of(out=folder / "again"), Progress())
    assert again.bundle.model_sha256 == made["mf"].bundle.model_sha256


def test_what_the_bundles_were_validated_on_can_be_read(
    request_of: Any, made: dict[str, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request_of()
    monkeypatch.setattr(built_in, "settings_of", lambda kind, out: asked)
    found = list(read_source(HELD_OUT))
    ordinary = {row.prompt for row in found if row.source == ORDINARY}
    assert len(ordinary) == made["mf"].summary["validation"]["n"]
    found = [row for row in found if row.source != ORDINARY]
    prompts = {row.prompt for row in found}
    # All models, not those of the tiers alone.
    assert {row.model for row in found} == set(MODELS)  # type: ignore[union-attr]
    assert len(found) == len(prompts) * len(MODELS)
    every = {row.prompt for row in read_data(asked, {})}
    assert prompts < every


class TestErrors:
    def test_a_request_is_checked_before_anything_is_read(self, request_of: Any) -> None:
        for run in (built_in.train_general, built_in.train_routellm):
            with pytest.raises(TrainingError, match="expected one of mf, bert, fast"):
                run(request_of("svm", data=["missing"]), Progress())

    def test_scores_of_few_models_have_no_difficulty(self, request_of: Any, folder: Path) -> None:
        few = [row for row in rows() if row["model"] in ("s1", "s2", "w1", "w2")]
        data = write(folder / "few.jsonl", few)
        asked = request_of(data=[data], strong=("s1", "s2"), weak=("w1", "w2"), out=folder / "none")
        with pytest.raises(DataError, match="scores of many models"):
            built_in.train_general(asked, Progress())
        assert not (folder / "none").exists()

    def test_without_the_data_it_says_so(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("THRIFTROUTE_DATA", raising=False)
        monkeypatch.setattr("sys.argv", ["built_in", "mf", "--out", str(tmp_path / "mf")])
        with pytest.raises(SystemExit, match=r"error: .*THRIFTROUTE_DATA"):
            built_in.main()
        assert not list(tmp_path.iterdir())


class TestRival:
    def expected(self, asked: TrainSettings, prompts: list[str]) -> Floats:
        """Margins of RouteLLM's recipe on the same prompts, by the sentence embeddings."""
        encoder, _ = encoder_bundle(asked.encoder_name, max_tokens=48)
        scorer = Scorer.load(encoder)
        prepared = prepare(asked, scorer, Progress())
        chosen = set(split_tables(asked, prepared.pairs)[0].prompts)
        table = comparison_table(
            (row for row in read_data(asked, {}) if row.prompt in chosen),
            asked.strong, asked.weak,
        )  # fmt: skip
        last = encoder.manifest.width - len(FEATURES)
        columns = slice(last - encoder.manifest.dim, last)
        tie = table.strong_score == table.weak_score
        known = scorer.representations(table.prompts)[:, columns]
        fitted = fit_routellm(known, table, seed=asked.seed, tie=tie)
        return fitted.margins(scorer.representations(prompts)[:, columns], asked.strong, asked.weak)

    def test_its_margin_is_that_of_the_recipe(self, request_of: Any, folder: Path) -> None:
        asked = request_of(out=folder / "routellm", seed=3)
        result = built_in.train_routellm(asked, Progress())
        prompts = [row["prompt"] for row in rows(5, seed=9)][:: len(MODELS)]
        scorer = Scorer.load(result.bundle.path)
        margins = np.array([scorer.margin(prompt) for prompt in prompts])
        np.testing.assert_allclose(margins, self.expected(asked, prompts), atol=1e-4)
        assert margins.std() > 1e-2
        manifest = scorer.bundle.manifest
        assert {*STRONG, *WEAK, "strong", "weak"} < set(manifest.models)
        assert result.summary["label"] == "strong wins, ties dropped (RouteLLM's recipe)"
        assert scorer.familiarity(prompts[0]) is None
        assert not (folder / "routellm.run").exists()

    def test_tiers_of_one_model(self, request_of: Any, folder: Path) -> None:
        asked = request_of(out=folder / "one", strong=("s1",), weak=("w3",))
        result = built_in.train_routellm(asked, Progress())
        assert result.bundle.manifest.models == ("s1", "w3")
        prompts = [row["prompt"] for row in rows(5, seed=9)][:: len(MODELS)]
        scorer = Scorer.load(result.bundle.path)
        margins = [scorer.margin(prompt) for prompt in prompts]
        np.testing.assert_allclose(margins, self.expected(asked, prompts), atol=1e-4)

    def test_scores_that_differ_by_rounding(self, request_of: Any, folder: Path) -> None:
        """0.1 + 0.2 is more than 0.3, by less than what single precision tells."""
        changed = rows()
        at = {row["model"]: row for row in changed[: len(MODELS)]}
        for model in MODELS:
            at[model]["score"] = 0.1 + 0.2 if model in STRONG else 0.3
        data = write(folder / "close.jsonl", changed)
        asked = request_of(out=folder / "close", data=[data, ORDINARY])
        result = built_in.train_routellm(asked, Progress())
        assert result.bundle.manifest.strong == "strong"


def test_the_settings_of_the_built_in_bundles() -> None:
    """bert's own head takes the ridge's place, at full weight."""
    assert built_in.GENERAL["bert"] == GeneralSettings(mix=1.0)
    assert built_in.GENERAL["mf"] == built_in.GENERAL["fast"] == GeneralSettings()
    assert not set(built_in.STRONG) & set(built_in.WEAK)

"""`evaluate --protocol` end to end: each protocol on a tiny bundle and data of our own making."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.errors import (
    ConfigError,
    DataError,
    EvaluationError,
    ExportError,
    TrainingError,
    UnknownRouterError,
)
from thriftroute.eval import benchmarks, metrics
from thriftroute.eval.benchmarks import Benchmark
from thriftroute.eval.own_logs import OwnLogsReport
from thriftroute.research.languages import LanguageReport
from thriftroute.research.new_model import NewModelReport
from thriftroute.research.other_pairs import PairsReport
from thriftroute.research.own_calibration import CalibrationReport, Int8Report
from thriftroute.research.protocol_report import ProtocolReport
from thriftroute.router.bundle import Bundle, write_bundle
from thriftroute.router.scorer import Scorer

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

from thriftroute.research.finetune_encoder import save_encoder
from thriftroute.research.protocols import PROTOCOLS, ProtocolSettings, read_source, run_protocol
from thriftroute.training.encoder import encoder_bundle, load_encoder
from thriftroute.training.export import graft_head, read_head, run_graph
from thriftroute.training.settings import TrainSettings
from thriftroute.training.train import train

Floats = npt.NDArray[np.float64]


def protocol(name: str, router: str, **settings: Any) -> list[ProtocolReport]:
    return run_protocol(name, router, ProtocolSettings(**settings))


def texts(n: int, seed: int = 0, letters: str = "bcdfg") -> tuple[list[str], Floats]:
    """Prompts, and their shares of digits: all that the tiny base looks at."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        digits = int(random.integers(0, 11))
        word = "".join(random.choice(list(letters), 16 - digits))
        found.append(word + "".join(random.choice(list("0123456789"), digits)))
    return found, np.array([sum(map(str.isdigit, text)) / 16 for text in found])


def rewards(hard: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """Strong is right nearly always, weak where it is not hard; hard in [0, 1]."""
    random = np.random.default_rng(seed + 100)
    return (
        (random.random(len(hard)) < 0.95).astype(np.float64),
        (random.random(len(hard)) > hard).astype(np.float64),
    )


def by_digits(n: int = 120, seed: int = 0) -> Benchmark:
    """What is hard has many digits, as the tiny base has it."""
    prompts, share = texts(n, seed)
    strong, weak = rewards(share / 0.625, seed)
    return Benchmark("digits", prompts, strong, weak, "big", "small")


def by_letters(n: int = 160) -> Benchmark:
    """What is hard has vowels; digits say nothing."""
    half, _ = texts(n // 2, 0, "aeiou")
    rest, _ = texts(n - n // 2, 1, "xzqkw")
    hard = np.array([0.95] * len(half) + [0.05] * len(rest))
    order = np.random.default_rng(2).permutation(n)
    strong, weak = rewards(hard[order])
    prompts = [(half + rest)[i] for i in order]
    return Benchmark("letters", prompts, strong, weak, "big", "small")


Register = Callable[[Benchmark], str]


@pytest.fixture
def registered() -> Iterator[Register]:
    """Makes a benchmark known by its name, for the length of a test."""
    names = []

    def add(benchmark: Benchmark) -> str:
        assert benchmark.name not in benchmarks.BENCHMARKS
        benchmarks.register(benchmark.name)(lambda files: benchmark)
        names.append(benchmark.name)
        return benchmark.name

    yield add
    for name in names:
        del benchmarks.BENCHMARKS[name]


def rebuilt(source: Path, out: Path, **changes: Any) -> Path:
    """A bundle with other fields in its manifest, or another graph ("model")."""
    bundle = Bundle.open(source)
    files: dict[str, bytes | Path] = {
        name: bundle.file(name) for name in ("tokenizer.json", "card.md")
    }
    files["model.onnx"] = changes.pop("model", bundle.file("model.onnx"))
    names = (
        "kind", "encoder", "dim", "models", "strong", "weak", "max_tokens", "prefix_ids",
        "suffix_ids", "features", "width", "calibration",
    )  # fmt: skip
    fields = {name: getattr(bundle.manifest, name) for name in names}
    return write_bundle(out, files=files, **{**fields, **changes}).path


def only(reports: list[ProtocolReport]) -> Any:
    assert len(reports) == 1
    json.dumps(reports[0].to_dict(), allow_nan=False)
    return reports[0]


class TestOwnLogs:
    def test_own_labels_find_what_the_bundle_does_not_know(
        self, tiny_base: Path, registered: Register
    ) -> None:
        benchmark = by_letters()
        name = registered(benchmark)
        found = protocol("own-logs", str(tiny_base), benchmark_names=[name], sizes=[40, 80],
                             draws=3, seed=1)  # fmt: skip
        report = only(found)
        assert isinstance(report, OwnLogsReport)
        assert {row.method for row in report.rows} == {
            "general", "own", "routellm-mf", "ridge", "knn", "prompt-length",
        }  # fmt: skip
        assert (report.benchmark, report.n, report.draws, report.seed) == ("letters", 160, 3, 1)
        own, general = (report.row(method, 80) for method in ("own", "general"))
        assert own.mean > 0.65
        assert 0.4 < general.mean < 0.6
        assert own.against["general"].worse == 0
        # With 40 labels, too few for it, it stays what it was.
        assert report.row("own", 40).apgr == report.row("general", 40).apgr

    def test_general_is_the_bundle_as_it_is(self, tiny_base: Path, registered: Register) -> None:
        benchmark = by_digits()
        name = registered(benchmark)
        found = protocol("own-logs", str(tiny_base), benchmark_names=[name], sizes=[60], draws=2)
        from thriftroute.eval.own_logs import draw_logs

        rest = draw_logs(benchmark, 60, 0).rest
        scores = Scorer.load(tiny_base).scores([benchmark.prompts[i] for i in rest])
        expected = metrics.apgr(scores, benchmark.strong[rest], benchmark.weak[rest])
        assert only(found).row("general", 60).apgr[0] == pytest.approx(expected, abs=1e-6)
        assert expected > 0.6

    def test_a_report_for_each_benchmark(self, tiny_base: Path, registered: Register) -> None:
        names = [registered(by_digits()), registered(by_letters())]
        found = protocol("own-logs", str(tiny_base), benchmark_names=names, sizes=[20], draws=2)
        assert [report.benchmark for report in found] == names  # type: ignore[union-attr]

    def test_a_bundle_without_a_representation(
        self, tiny_bundle: Path, registered: Register
    ) -> None:
        name = registered(by_digits())
        with pytest.raises(ConfigError, match="no representation"):
            protocol("own-logs", str(tiny_bundle), benchmark_names=[name], sizes=[20], draws=2)

    def test_sizes_are_checked(self, tiny_base: Path, registered: Register) -> None:
        name = registered(by_digits())
        with pytest.raises(EvaluationError, match="120 of the 120 items"):
            protocol("own-logs", str(tiny_base), benchmark_names=[name], sizes=[120], draws=2)


MODELS = {"a": 0.1, "b": 0.4, "c": 0.7, "d": 1.0}


def scores_file(path: Path, n: int = 120, *, turns: bool = False) -> Path:
    """Scores of four models: the weaker, the more digits hurt. turns: the prompt is a conversation
    of which the last turn alone has a say, after a first one with digits that mean nothing."""
    prompts, share = texts(n, 3)
    random, noise = (np.random.default_rng(seed) for seed in (4, 5))
    rows: list[dict[str, Any]] = []
    for text, hard in zip(prompts, share / 0.625, strict=True):
        said: dict[str, Any] = {"prompt": text}
        if turns:
            first = "x" * int(noise.integers(90)) + "1" * int(noise.integers(90))
            said = {
                "messages": [
                    {"role": "user", "content": f"? {first}"},
                    {"role": "assistant", "content": "yes"},
                    {"role": "user", "content": text},
                ]
            }
        rows += [
            {**said, "model": model, "score": float(random.random() > hard * weakness)}
            for model, weakness in MODELS.items()
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def votes_file(path: Path, n: int = 60) -> Path:
    """Votes on two models of other names: the more digits, the oftener big wins."""
    prompts, share = texts(n, 5)
    random = np.random.default_rng(6)
    rows = [
        {"prompt": text, "model_a": "big", "model_b": "small",
         "score_a": 1.0 if random.random() < 0.4 + hard else 0.0}
        for text, hard in zip(prompts, share, strict=True)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_turns_do_not_matter(
    name: str, router: Path, folder: Path, figure: Callable[[Any], float]
) -> None:
    """The same last turns, alone and in conversations whose first turns are noise."""
    found = []
    for turns in (False, True):
        file = str(scores_file(folder / f"{turns}.jsonl", turns=turns))
        found.append(
            figure(
                only(
                    protocol(
                        name, str(router), data=[file], sizes=[20], draws=2, pairs=2,
                        bootstraps=100,
                    )
                )
            )
        )  # fmt: skip
    assert found[0] > 0.6
    assert found[1] == pytest.approx(found[0])


class TestOtherPairs:
    def test_pairs_of_a_file_are_scored_by_the_bundle(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        file = str(scores_file(tmp_path / "scores.jsonl"))
        report = only(protocol("other-pairs", str(tiny_base), data=[file], pairs=3, bootstraps=100))
        assert isinstance(report, PairsReport)
        assert (report.data, report.models, report.prompts, report.bootstraps) == (
            file, len(named(report)), 120, 100,
        )  # fmt: skip
        assert len(report.pairs) == 3
        for pair in report.pairs:
            assert MODELS[pair.strong] < MODELS[pair.weak]
            assert pair.apgr["router"] > 0.55
        assert report.mean["prompt-length"] == pytest.approx(0.5)  # all are equally long
        assert report.sign["random"].wins == 3

    def test_scores_and_votes_together(self, tiny_base: Path, tmp_path: Path) -> None:
        files = [
            str(scores_file(tmp_path / "scores.jsonl")),
            str(votes_file(tmp_path / "votes.jsonl")),
        ]
        report = only(protocol("other-pairs", str(tiny_base), data=files, pairs=2, bootstraps=100))
        assert report.data == ", ".join(files)
        assert ("big", "small") in {(pair.strong, pair.weak) for pair in report.pairs}
        assert (len(report.pairs), report.prompts) == (3, 180)

    def test_conversations_are_scored_as_such(self, tiny_base: Path, tmp_path: Path) -> None:
        assert_turns_do_not_matter(
            "other-pairs", tiny_base, tmp_path, lambda report: report.mean["router"]
        )

    def test_a_bundle_without_a_head_scores_pairs_too(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        file = str(scores_file(tmp_path / "scores.jsonl"))
        report = only(
            protocol("other-pairs", str(tiny_bundle), data=[file], pairs=2, bootstraps=100)
        )
        assert len(report.pairs) == 2

    def test_more_pairs_than_there_are(self, tiny_base: Path, tmp_path: Path) -> None:
        file = str(scores_file(tmp_path / "scores.jsonl"))
        with pytest.raises(EvaluationError, match="fewer than 20"):
            protocol("other-pairs", str(tiny_base), data=[file])


def named(report: PairsReport) -> set[str]:
    return {name for pair in report.pairs for name in (pair.strong, pair.weak)}


class TestNewModel:
    def test_a_curve_from_few_comparisons_to_all(self, tiny_base: Path, tmp_path: Path) -> None:
        file = str(scores_file(tmp_path / "scores.jsonl", 160))
        report = only(
            protocol("new-model", str(tiny_base), data=[file], sizes=[20, 60], draws=2, pairs=2)
        )
        assert isinstance(report, NewModelReport)
        assert [point.size for point in report.points] == ["20", "60", "all"]
        assert (report.data, report.draws) == (file, 2)
        for pair in report.pairs:
            # Below the number of labels that are enough it is the base, whatever was drawn.
            assert len(set(pair.apgr["20"])) == 1
            assert pair.apgr["20"][0] > 0.55
            assert pair.apgr["all"][0] > 0.5

    def test_a_report_for_each_file(self, tiny_base: Path, tmp_path: Path) -> None:
        files = [str(scores_file(tmp_path / f"{name}.jsonl")) for name in "ab"]
        found = protocol("new-model", str(tiny_base), data=files, sizes=[10], draws=2, pairs=1)
        assert [report.data for report in found] == files  # type: ignore[union-attr]

    def test_conversations_are_scored_as_such(self, tiny_base: Path, tmp_path: Path) -> None:
        assert_turns_do_not_matter(
            "new-model", tiny_base, tmp_path, lambda report: report.points[0].mean
        )

    def test_votes_are_no_scores(self, tiny_base: Path, tmp_path: Path) -> None:
        file = str(votes_file(tmp_path / "votes.jsonl"))
        with pytest.raises(EvaluationError, match="compares two models"):
            protocol("new-model", str(tiny_base), data=[file], pairs=1)


class TestCalibration:
    def test_scores_before_are_the_bundles(self, tiny_base: Path, registered: Register) -> None:
        benchmark = by_digits(200)
        name = registered(benchmark)
        report = only(
            protocol(
                "calibration", str(tiny_base), benchmark_names=[name], sizes=[40, 100], draws=3
            )
        )
        assert isinstance(report, CalibrationReport)
        scores = Scorer.load(tiny_base).scores(benchmark.prompts)
        assert report.before == pytest.approx(metrics.ece(scores, benchmark.labels), abs=1e-6)
        assert [(row.labels, row.tested) for row in report.rows] == [(40, 160), (100, 100)]

    def test_a_wrong_calibration_is_mended(
        self, tiny_base: Path, tmp_path: Path, registered: Register
    ) -> None:
        calibration = {"method": "platt", "a": 1.0, "b": 4.0}
        off = rebuilt(tiny_base, tmp_path / "off", calibration=calibration)
        name = registered(by_digits(200))
        report = only(protocol("calibration", str(off), benchmark_names=[name], sizes=[100]))
        assert report.draws == 10
        assert report.before > 0.4
        assert report.rows[0].ece < 0.2

    def test_200_labels_where_none_is_said(self, tiny_base: Path, registered: Register) -> None:
        name = registered(by_digits(240))
        report = only(protocol("calibration", str(tiny_base), benchmark_names=[name], draws=2))
        assert [row.labels for row in report.rows] == [200]

    def test_a_bundle_without_a_head(self, tiny_bundle: Path, registered: Register) -> None:
        benchmark = by_digits(100)
        name = registered(benchmark)
        report = only(
            protocol("calibration", str(tiny_bundle), benchmark_names=[name], sizes=[40], draws=2)
        )
        scores = Scorer.load(tiny_bundle).scores(benchmark.prompts)
        assert report.before == pytest.approx(metrics.ece(scores, benchmark.labels))


class TestInt8:
    def test_int8_beside_fp32(
        self, tiny_base: Path, tiny_encoder: Path, tmp_path: Path, registered: Register
    ) -> None:
        at_hand = rebuilt(tiny_base, tmp_path / "known", encoder=str(tiny_encoder))
        benchmark = by_digits()
        report = only(protocol("int8", str(at_hand), benchmark_names=[registered(benchmark)]))
        assert isinstance(report, Int8Report)
        scores = Scorer.load(at_hand).scores(benchmark.prompts)
        expected = metrics.apgr(scores, benchmark.strong, benchmark.weak)
        assert (report.benchmark, report.n) == ("digits", 120)
        assert report.int8 == pytest.approx(expected, abs=1e-6)
        # Its head looks at a cheap feature alone, which no quantization touches.
        assert report.fp32 == pytest.approx(report.int8, abs=1e-6)

    def test_a_bundle_that_was_trained_from_a_base(
        self, tiny_base: Path, tiny_encoder: Path, tmp_path: Path, registered: Register
    ) -> None:
        """Its head stands on the layers too, and its graph was grafted twice."""
        base = rebuilt(tiny_base, tmp_path / "base", encoder=str(tiny_encoder))
        benchmark = by_letters()
        rows = [
            {"prompt": prompt, "model": model, "score": score}
            for model, column in (("big", benchmark.strong), ("small", benchmark.weak))
            for prompt, score in zip(benchmark.prompts, column.tolist(), strict=True)
        ]
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = train(
            TrainSettings(
                "mf", [str(tmp_path / "d.jsonl")], ("big",), ("small",), tmp_path / "out",
                base=str(base),
            )
        )  # fmt: skip
        name = registered(benchmark)
        report = only(protocol("int8", str(result.bundle.path), benchmark_names=[name]))
        assert report.int8 > 0.6
        assert report.fp32 == pytest.approx(report.int8, abs=0.05)
        # By hand: the head on what the encoder says before it is quantized.
        scorer = Scorer.load(result.bundle)
        head = read_head(result.bundle.file("model.onnx").read_bytes(), ["big", "small"])
        _, fp32 = encoder_bundle(str(tiny_encoder), max_tokens=48)
        feeds = [scorer.feeds(prompt) for prompt in benchmark.prompts]
        margin = head.margin(run_graph(fp32, feeds, ["representation"])[0], "big", "small")
        expected = metrics.apgr(margin, benchmark.strong, benchmark.weak)
        assert report.fp32 == pytest.approx(expected, abs=1e-3)

    def test_a_tuned_encoder_is_not_the_one_that_is_named(
        self, tiny_base: Path, tiny_encoder: Path, tmp_path: Path, registered: Register
    ) -> None:
        loaded = load_encoder(str(tiny_encoder))
        for parameter in loaded.module.parameters():
            parameter.data.mul_(1.01)
        save_encoder(loaded, tmp_path / "tuned")
        tuned, _ = encoder_bundle(str(tmp_path / "tuned"), max_tokens=48)
        head = read_head((tiny_base / "model.onnx").read_bytes(), ["base-strong", "base-weak"])
        model = graft_head(tuned.file("model.onnx").read_bytes(), head)
        encoder = str(tiny_encoder)
        bundle = rebuilt(tiny_base, tmp_path / "bundle", encoder=encoder, model=model)
        with pytest.raises(EvaluationError, match=r"a tuned encoder\?.*its card says"):
            protocol("int8", str(bundle), benchmark_names=[registered(by_digits())])

    def test_an_encoder_that_is_nowhere(self, tiny_base: Path, registered: Register) -> None:
        with pytest.raises(TrainingError, match="encoder 'tiny'"):
            protocol("int8", str(tiny_base), benchmark_names=[registered(by_digits())])

    def test_a_bundle_without_a_head(self, tiny_bundle: Path, registered: Register) -> None:
        with pytest.raises(ExportError, match="no mf head"):
            protocol("int8", str(tiny_bundle), benchmark_names=[registered(by_digits())])


def test_languages_need_neither_data_nor_benchmark(tiny_base: Path) -> None:
    report = only(protocol("languages", str(tiny_base), seed=3))
    assert isinstance(report, LanguageReport)
    assert report.seed == 3


class TestErrors:
    def test_an_unknown_protocol_lists_those_there_are(self) -> None:
        with pytest.raises(ConfigError, match=f"'nosuch'.*{', '.join(PROTOCOLS)}"):
            protocol("nosuch", "no-such-router")

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_only_a_bundle_can_be_measured(self, name: str) -> None:
        with pytest.raises(ConfigError, match="'random' is none"):
            protocol(name, "random")
        with pytest.raises(UnknownRouterError, match="nosuch"):
            protocol(name, "nosuch")

    @pytest.mark.parametrize("name", ["other-pairs", "new-model"])
    def test_data_is_missing(self, name: str, tiny_base: Path) -> None:
        with pytest.raises(ConfigError, match=f"--protocol {name} needs --data"):
            protocol(name, str(tiny_base), benchmark_names=["mmlu"])
        with pytest.raises(DataError, match=r"missing\.jsonl"):
            protocol(name, str(tiny_base), data=["missing.jsonl"])

    @pytest.mark.parametrize("name", ["own-logs", "calibration", "int8"])
    def test_a_benchmark_is_missing(self, name: str, tiny_base: Path) -> None:
        with pytest.raises(ConfigError, match=f"--protocol {name} needs --benchmark"):
            protocol(name, str(tiny_base), data=["data.jsonl"])
        with pytest.raises(EvaluationError, match="unknown benchmark 'nosuch'"):
            protocol(name, str(tiny_base), benchmark_names=["nosuch"])


def test_a_source_is_read_by_its_name_or_as_a_file(tmp_path: Path, data_dir: Path) -> None:
    file = scores_file(tmp_path / "scores.jsonl", 3)
    assert len(list(read_source(str(file)))) == 12
    first = next(iter(read_source("zeroeval_gsm8k")))
    assert first.prompt

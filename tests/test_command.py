"""From the options of evaluate, calibrate and train to their work (eval and training command)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import (
    CalibrationError,
    ConfigError,
    DataError,
    EvaluationError,
    TrainingError,
    UnknownRouterError,
)
from thriftroute.eval.command import Target, run_calibration, run_evaluation
from thriftroute.eval.guarantee.command import run_guarantee
from thriftroute.eval.guarantee.promises import Promise
from thriftroute.eval.pricing import CostOptions
from thriftroute.router import routers
from thriftroute.router.bundle import Bundle
from thriftroute.router.scorer import Scorer
from thriftroute.router.threshold import ThresholdTable

BIG, SMALL = ("big",), ("small",)
WORDS = ("prove", "hard", "integral", "theorem", "what", "easy", "hello")


def prompt(i: int) -> str:
    """Different numbers of words, so that no two prompts have one score."""
    return " ".join([WORDS[i % 7], *(["the"] * (i % 11)), *(["is"] * (i % 13)), str(i)])


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Scores of two models on 60 prompts, with tokens and costs."""
    rows = [
        {
            "prompt": prompt(i),
            "model": model,
            "score": float(model == "big" or i % 7 > 3),
            "input_tokens": 100,
            "output_tokens": 200 if model == "big" else 50,
            "cost_usd": 0.01 if model == "big" else 0.001,
        }
        for i in range(60)
        for model in ("big", "small")
    ]
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(prompt(i) for i in range(60)))
    return str(path)


@pytest.fixture
def bundle(tiny_bundle: Path) -> str:
    return str(tiny_bundle)


# Targets


def test_a_target_without_anything_lists_the_benchmarks() -> None:
    with pytest.raises(ConfigError, match=r"gsm8k, mmlu, mt-bench.*--data FILE"):
        Target().load()


@pytest.mark.parametrize(("strong", "weak"), [((), ()), (BIG, ()), ((), SMALL)])
def test_data_needs_both_models(data: str, strong: tuple[str, ...], weak: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--strong MODEL and --weak MODEL"):
        Target((), data, strong, weak).load()


def test_an_unknown_benchmark_lists_those_there_are() -> None:
    with pytest.raises(EvaluationError, match=r"'mmmlu'.*gsm8k, mmlu, mt-bench"):
        Target(["mmmlu"]).load()


def test_a_file_becomes_a_benchmark_of_its_name(data: str) -> None:
    (found,) = Target((), data, BIG, SMALL).load()
    assert (found.name, found.n) == ("scores", 60)
    assert found.strong.mean() == 1.0
    with pytest.raises(DataError, match="biggest"):
        Target((), data, ("biggest",), SMALL).load()


def test_a_benchmark_named_twice_is_loaded_once(data_dir: Path) -> None:
    assert [b.name for b in Target(["mt-bench", "mt-bench"]).load()] == ["mt-bench"]


# Evaluation


def test_evaluation_has_every_router_once_and_all_baselines(bundle: str, data: str) -> None:
    target = Target((), data, BIG, SMALL)
    report = run_evaluation([bundle, bundle], target, bootstraps=50)
    names = [row["router"] for row in report.results]
    assert names.count(bundle) == 1
    assert {"oracle", "prompt-length", "knn-in-domain", "random", "always-weak"} < set(names)
    scores = Scorer.load(bundle).scores([prompt(i) for i in range(60)])
    hard = np.array([i % 7 <= 3 for i in range(60)])
    own = next(row for row in report.results if row["router"] == bundle)
    wins = (scores[hard][:, None] > scores[~hard]).mean()
    ties = (scores[hard][:, None] == scores[~hard]).mean()
    assert own["auc"] == pytest.approx(wins + ties / 2)


def test_routers_can_be_reported_under_a_name_of_choice(bundle: str, data: str) -> None:
    report = run_evaluation({"mine": bundle}, Target((), data, BIG, SMALL), bootstraps=50)
    routers = [row["router"] for row in report.results if row["kind"] == "router"]
    assert routers == ["mine"]


def test_the_training_data_gives_a_knn_on_equal_data(bundle: str, data: str) -> None:
    target = Target((), data, BIG, SMALL)
    report = run_evaluation([bundle], target, train_data=[data], bootstraps=50)
    rows = {row["router"]: row for row in report.results}
    assert {"knn", "knn-in-domain"} < set(rows)
    without = run_evaluation([bundle], target, knn=False, bootstraps=50)
    assert not {"knn", "knn-in-domain"} & {row["router"] for row in without.results}


def test_the_training_data_needs_a_pair(bundle: str, data: str, data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="--train-data needs"):
        run_evaluation([bundle], Target(["mt-bench"]), train_data=[data])


def test_random_is_there_anyway(data: str) -> None:
    with pytest.raises(ConfigError, match="in every evaluation"):
        run_evaluation(["random"], Target((), data, BIG, SMALL))


def test_an_unknown_router_comes_before_the_work(data: str) -> None:
    with pytest.raises(UnknownRouterError, match="nosuch"):
        run_evaluation(["nosuch"], Target((), "no-such-file", BIG, SMALL))


# Calibration


def test_on_own_prompts_the_share_is_met(bundle: str, prompts: str) -> None:
    result = run_calibration(bundle, Target(), prompts=prompts, strong_pct=0.3)
    scores = Scorer.load(bundle).scores([prompt(i) for i in range(60)])
    assert np.mean(scores >= result.threshold) == pytest.approx(result.strong_pct)
    assert abs(result.strong_pct - 0.3) <= 0.05
    assert (result.n, result.usd_per_1k, result.quality) == (60, None, None)


def test_on_data_the_recorded_costs_and_rewards_are_shown(bundle: str, data: str) -> None:
    target = Target((), data, BIG, SMALL)
    result = run_calibration(bundle, target, strong_pct=0.3)
    expected = 1000 * (0.01 * result.strong_pct + 0.001 * (1 - result.strong_pct))
    assert result.usd_per_1k == pytest.approx(expected)
    assert result.quality is not None
    assert result.warning == ""
    budget = run_calibration(bundle, target, usd_per_1k=5.0)
    assert budget.usd_per_1k is not None and budget.usd_per_1k <= 5.0
    assert budget.strong_pct > result.strong_pct


def test_labels_of_simulated_models_are_said_to_be(bundle: str, data: str) -> None:
    rows = Path(data).read_text().replace('"big"', '"big-sim"').replace('"small"', '"small-sim"')
    Path(data).write_text(rows)
    target = Target((), data, ("big-sim",), ("small-sim",))
    assert run_calibration(bundle, target, strong_pct=0.3).warning.startswith("simulated data: ")
    promised = run_guarantee(bundle, target, Promise("min_quality", 0.5))
    assert promised.assumptions[0].startswith("simulated data: ")


def test_given_prices_come_before_recorded_costs(bundle: str, data: str) -> None:
    cost = CostOptions(strong_price="10,20", weak_price="1,2")
    target = Target((), data, BIG, SMALL)
    result = run_calibration(bundle, target, strong_pct=1.0, cost=cost)
    # 100 tokens in and 200 out are in the data: nothing has to be assumed.
    assert result.usd_per_1k == pytest.approx(1000 * (100 * 10 + 200 * 20) / 1e6)
    assert result.warning == ""
    weak = run_calibration(bundle, target, strong_pct=0.0, cost=cost)
    assert weak.usd_per_1k == pytest.approx(1000 * (100 * 1 + 50 * 2) / 1e6)


def test_what_is_assumed_of_own_prompts_is_said(bundle: str, prompts: str) -> None:
    cost = CostOptions(strong_price="10,20", weak_price="1,2", output_tokens=400)
    result = run_calibration(bundle, Target(), prompts=prompts, strong_pct=1.0, cost=cost)
    counts = [Scorer.load(bundle).count_tokens(prompt(i)) for i in range(60)]
    expected = 1000 * (np.mean(counts) * 10 + 400 * 20) / 1e6
    assert result.usd_per_1k == pytest.approx(expected)
    assert "router's tokenizer" in result.warning
    assert "400 output tokens assumed" in result.warning


def test_prices_come_from_the_map_of_litellm(bundle: str, prompts: str) -> None:
    cost = CostOptions(strong_model="gpt-4o", weak_model="gpt-4o-mini", output_tokens=100)
    result = run_calibration(bundle, Target(), prompts=prompts, usd_per_1k=0.7, cost=cost)
    assert result.usd_per_1k is not None and 0 < result.usd_per_1k <= 0.7
    unknown = CostOptions(strong_model="no-such-model", weak_model="gpt-4o-mini")
    with pytest.raises(CalibrationError, match=r"no-such-model.*--strong-price IN,OUT"):
        run_calibration(bundle, Target(), prompts=prompts, usd_per_1k=0.7, cost=unknown)


@pytest.mark.parametrize(
    ("cost", "missing"),
    [
        (CostOptions(), "strong"),
        (CostOptions(strong_price="1,2"), "weak"),
        (CostOptions(weak_price="1,2"), "strong"),
    ],
)
def test_half_a_price_is_an_error(
    bundle: str, prompts: str, cost: CostOptions, missing: str
) -> None:
    with pytest.raises(ConfigError, match=f"the {missing} model's price is unknown"):
        run_calibration(bundle, Target(), prompts=prompts, usd_per_1k=1.0, cost=cost)


def test_a_price_is_never_ignored(bundle: str, prompts: str) -> None:
    with pytest.raises(ConfigError, match="the strong model's price"):
        run_calibration(
            bundle, Target(), prompts=prompts, strong_pct=0.3, cost=CostOptions(weak_price="1,2")
        )


def test_costs_by_tokens_need_a_tokenizer(prompts: str) -> None:
    cost = CostOptions(strong_price="10,20", weak_price="1,2")
    with pytest.raises(ConfigError, match="tokenizer"):
        run_calibration("random", Target(), prompts=prompts, usd_per_1k=1.0, cost=cost)


def test_a_budget_below_the_cheapest_mix(bundle: str, data: str) -> None:
    with pytest.raises(CalibrationError, match="below the cheapest mix"):
        run_calibration(bundle, Target((), data, BIG, SMALL), usd_per_1k=0.5)


@pytest.mark.parametrize("wish", [{}, {"strong_pct": 0.3, "usd_per_1k": 1.0}])
def test_one_wish_at_a_time(bundle: str, prompts: str, wish: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="either --strong-pct"):
        run_calibration(bundle, Target(), prompts=prompts, **wish)


@pytest.mark.parametrize("share", [-0.1, 1.01, 101.0, float("nan"), float("inf")])
def test_a_share_is_a_number_from_0_to_1(bundle: str, prompts: str, share: float) -> None:
    with pytest.raises(ConfigError, match="a share from 0 to 1"):
        run_calibration(bundle, Target(), prompts=prompts, strong_pct=share)


def test_a_share_in_percent_gets_a_hint(bundle: str, prompts: str) -> None:
    with pytest.raises(ConfigError, match=r"for 30% give 0\.3"):
        run_calibration(bundle, Target(), prompts=prompts, strong_pct=30)


def test_one_set_of_prompts_at_a_time(bundle: str, data: str, prompts: str) -> None:
    target = Target((), data, BIG, SMALL)
    with pytest.raises(ConfigError, match="one of --prompts, --benchmark and --data"):
        run_calibration(bundle, target, prompts=prompts, strong_pct=0.3)
    with pytest.raises(ConfigError, match="nothing to work on"):
        run_calibration(bundle, Target(), strong_pct=0.3)


def test_two_benchmarks_are_not_one_set(bundle: str, data: str, data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="not on 2"):
        run_calibration(bundle, Target(["mt-bench"], data, BIG, SMALL), strong_pct=0.3)


def test_on_a_benchmark(bundle: str, data_dir: Path) -> None:
    result = run_calibration(bundle, Target(["mt-bench"]), strong_pct=0.5)
    assert result.n == 72


def test_a_file_without_prompts(bundle: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n\n")
    with pytest.raises((CalibrationError, DataError), match=r"empty\.txt"):
        run_calibration(bundle, Target(), prompts=str(path), strong_pct=0.3)


def test_the_table_is_written_into_the_bundle(bundle: str, data: str, prompts: str) -> None:
    run_calibration(bundle, Target(), prompts=prompts, strong_pct=0.3)
    assert not Bundle.open(bundle).manifest.thresholds
    result = run_calibration(bundle, Target(), prompts=prompts, strong_pct=0.3, write=True)
    run_calibration(bundle, Target((), data, BIG, SMALL), strong_pct=0.3, write=True)
    found = Bundle.open(bundle).manifest.thresholds  # verified again, too
    assert set(found) == {"mine.txt", "scores"}
    table = ThresholdTable.from_dict(found["mine.txt"])
    assert (table.name, table.n) == ("mine.txt", 60)
    scores = Scorer.load(bundle).scores([prompt(i) for i in range(60)])
    for share, threshold in table.rows:
        assert np.mean(scores >= threshold) == pytest.approx(share)
    share = next(share for share, limit in table.rows if limit == result.threshold)
    assert share == pytest.approx(result.strong_pct)
    # Written again under the same name, it is replaced.
    run_calibration(bundle, Target(), prompts=prompts, strong_pct=0.5, write=True)
    assert set(Bundle.open(bundle).manifest.thresholds) == {"mine.txt", "scores"}


def test_only_a_bundle_can_be_written_to(prompts: str) -> None:
    with pytest.raises(ConfigError, match="no bundle"):
        run_calibration("random", Target(), prompts=prompts, strong_pct=0.3, write=True)


# Training


def training(**changes: Any) -> Any:
    """A training with options that fit, and changes."""
    pytest.importorskip("torch")
    from thriftroute.training.settings import settings_from_options
    from thriftroute.training.train import train

    fields: dict[str, Any] = {
        "kind": "mf", "epochs": None, "against": [], "source_weights": [],
        "data": ["no-such-file.jsonl"], "strong": BIG, "weak": SMALL, "out": Path("no-such-out"),
    }  # fmt: skip
    return train(settings_from_options(**{**fields, **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "svm"}, "mf, bert or fast"),
        ({"epochs": 3}, "--epochs is for bert"),
        ({"kind": "bert", "min_evidence": 0.0}, "--min-evidence is for mf"),
        ({"base": "random"}, "--base 'random' is no bundle"),
        ({"strong": ()}, "--strong names no model"),
        ({"weak": ()}, "--weak names no model"),
        ({"source_weights": ["kor_bench"]}, "SOURCE=FACTOR"),
        ({"source_weights": ["kor_bench=much"]}, "SOURCE=FACTOR"),
        ({"source_weights": ["kor_bench=-1"]}, "SOURCE=FACTOR"),
        ({"source_weights": ["kor_bench=nan"]}, "SOURCE=FACTOR"),
        ({"source_weights": ["kor_bench=inf"]}, "SOURCE=FACTOR"),
    ],
)
def test_training_options_that_do_not_fit(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        training(**changes)


def test_the_options_reach_the_bundle(tiny_encoder: Path, data: str, tmp_path: Path) -> None:
    result = training(
        data=[data], out=tmp_path / "out", encoder=str(tiny_encoder), max_tokens=48,
        source_weights=["=0.5"], notes=("of the test",),
    )  # fmt: skip
    summary = result.summary
    assert summary["settings"] == {"folds": 5, "min_labels": 50, "min_evidence": None}
    assert (summary["base"], summary["fitted_on"]) == (str(tiny_encoder), "labels")
    assert summary["source_weights"] == {"": 0.5}
    assert summary["prompts"]["train"] == 60
    assert "of the test" in result.bundle.file("card.md").read_text()


def test_the_epochs_of_bert_reach_the_bundle(tiny_encoder: Path, data: str, tmp_path: Path) -> None:
    result = training(
        kind="bert", data=[data], out=tmp_path / "out", encoder=str(tiny_encoder), max_tokens=48,
        validation=0.3, epochs=1,
    )  # fmt: skip
    summary = result.summary
    assert (summary["settings"]["epochs"], summary["epochs"]) == (1, 1)
    assert sum(summary["prompts"].values()) == 60


def test_mf_starts_from_the_base_that_is_named(tiny_base: Path, data: str, tmp_path: Path) -> None:
    result = training(data=[data], out=tmp_path / "out", base=str(tiny_base))
    assert result.summary["base"] == str(tiny_base)
    base, manifest = Bundle.open(tiny_base).manifest, result.bundle.manifest
    assert (manifest.encoder, manifest.width) == (base.encoder, base.width)
    assert (manifest.strong, manifest.weak) == ("big", "small")
    assert f"started from: {tiny_base}" in result.bundle.file("card.md").read_text()


def test_without_a_base_mf_starts_from_the_built_in_one(
    tiny_base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of built-in bundles, by name: here a small one stands in it."""
    shutil.copytree(tiny_base, tmp_path / "built-in" / "mf")
    monkeypatch.setattr(routers, "CHECKPOINTS", tmp_path / "built-in")
    result = training(data=[data], out=tmp_path / "out")
    assert result.summary["base"] == "mf"
    assert result.bundle.manifest.width == Bundle.open(tiny_base).manifest.width


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base": "tiny", "encoder": "tiny"}, "not both"),
        (
            {"base": "tiny", "kind": "bert"},
            "mf and fast start from a bundle; bert starts from an --encoder",
        ),
    ],
)
def test_a_base_that_does_not_fit(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        training(**changes)


def test_a_base_without_a_representation(bundle: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no representation.*--encoder"):
        training(data=[data], out=tmp_path / "out", base=bundle)
    assert not (tmp_path / "out").exists()


def test_evaluation_prompts_are_found_by_name_or_file(tmp_path: Path, data_dir: Path) -> None:
    pytest.importorskip("torch")
    from thriftroute.training.settings import evaluation_prompts

    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n")
    assert evaluation_prompts(str(path)) == ["one", "two"]
    assert len(evaluation_prompts("mt-bench")) == 72
    assert set(evaluation_prompts("mt-bench")) <= set(evaluation_prompts("routellm_mtbench"))

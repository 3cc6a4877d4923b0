"""`thriftroute calibrate` with a promise: what it prints, and its exit status."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thriftroute
from thriftroute.cli import app
from thriftroute.errors import ConfigError
from thriftroute.eval.audit.labels import read_labels
from thriftroute.eval.command import Target
from thriftroute.eval.guarantee.command import promise_of
from thriftroute.eval.guarantee.promises import LabelledPrompts, Promise
from thriftroute.eval.guarantee.threshold import guaranteed
from thriftroute.router.bundle import Bundle
from thriftroute.router.routers import load_router
from typer.testing import CliRunner, Result

ROOT = Path(thriftroute.__file__).resolve().parent
PAIR = ("--strong", "big", "--weak", "small")
WORDS = ("prove", "theorem", "hard", "integral", "easy", "hello", "what", "is", "the", "a")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *(str(arg) for arg in args)])


def ok(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.stdout)


def fails(status: int, *args: object) -> str:
    result = run(*args)
    assert result.exit_code == status, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return str(lines[0])


def write(path: Path, n: int, *, costs: bool = True, weight: bool = False) -> Path:
    """Scores of both models on n prompts; weak fails where there are words of hard prompts."""
    rng = np.random.default_rng(n)
    lines = []
    for i in range(n):
        words = [str(word) for word in rng.choice(WORDS, size=6)]
        hard = sum(word in WORDS[:4] for word in words)
        for model, score in (("big", 1.0), ("small", float(rng.random() > hard / 6))):
            row: dict[str, Any] = {"prompt": " ".join([*words, str(i)]), "model": model}
            row |= {"score": score}
            if costs:
                row["cost_usd"] = 0.01 if model == "big" else 0.001
            if weight:
                row["weight"] = 1 + i % 2
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path, tiny_bundle: Path) -> tuple[object, ...]:
    """Options of 400 labelled prompts."""
    return ("--data", write(tmp_path / "rows.jsonl", 400), *PAIR, "--router", tiny_bundle)


def test_a_quality_with_confidence(base: tuple[object, ...]) -> None:
    args = (*base, "--min-quality", "0.85", "--confidence", "0.9")
    found = json.loads(ok(*args, "--json"))
    first = ["threshold", "strong_pct", "quality", "quality_bound", "confidence", "n"]
    assert list(found)[:6] == first
    assert found["n"] == 400 and found["confidence"] == 0.9 and found["feasible"] is True
    assert 0 < found["threshold"] < 1 and 0 < found["strong_pct"] < 1
    assert found["quality"] >= found["quality_bound"] == 0.85
    # A strong call costs .01, a weak one .001.
    assert found["usd_per_1k"] == pytest.approx(1 + 9 * found["strong_pct"])
    assert found["saving"] == pytest.approx(0.9 * (1 - found["strong_pct"]))
    text = ok(*args)
    assert "with 90% confidence quality is at least 85.0% of always strong's" in text
    assert f"{found['strong_pct']:.1%} strong calls on n = 400 labelled prompts" in text
    # 0.9 is what is meant where no confidence is given.
    assert json.loads(ok(*base, "--min-quality", "0.85", "--json")) == found


def test_the_threshold_is_one_that_scores_can_be_compared_with(
    base: tuple[object, ...], tmp_path: Path, tiny_bundle: Path
) -> None:
    found = json.loads(ok(*base, "--max-regret", "0.15", "--json"))
    args = ("score", "--router", str(tiny_bundle), "--data", str(tmp_path / "rows.jsonl"), "--json")
    lines = CliRunner().invoke(app, list(args)).stdout.splitlines()
    # Two rows a prompt.
    strong = [json.loads(line)["score"] >= found["threshold"] for line in lines]
    assert sum(strong) / len(strong) == pytest.approx(found["strong_pct"])


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--min-gap", 0.6, "60.0% of the gap between weak and strong"),
        ("--max-regret", 0.15, "at most 0.15 below always strong's"),
        ("--usd-per-1k", 8.0, "1,000 requests is at most 8 USD"),
    ],
)
def test_other_promises(base: tuple[object, ...], option: str, value: float, said: str) -> None:
    args = (*base, option, value, "--confidence", "0.9")
    found = json.loads(ok(*args, "--json"))
    assert found["promise"] == option[2:].replace("-", "_") and found["target"] == value
    bound = {
        "--min-gap": found["gap_bound"],
        "--max-regret": found["regret_bound"],
        "--usd-per-1k": found["usd_per_1k_bound"],
    }[option]
    assert bound == value and found["quality_bound"] is None
    assert 0 < found["strong_pct"] < 1
    assert said in ok(*args)


def test_a_budget_without_confidence_is_the_plain_one(base: tuple[object, ...]) -> None:
    plain = json.loads(ok(*base, "--usd-per-1k", 8, "--json"))
    assert "interval" in plain and "confidence" not in plain
    promised = json.loads(ok(*base, "--usd-per-1k", 8, "--confidence", "0.9", "--json"))
    assert promised["strong_pct"] < plain["strong_pct"]
    assert "twice the dearest" in promised["assumptions"][0]
    args = (*base, "--usd-per-1k", 8, "--confidence", "0.9", "--max-request-usd", "0.01")
    capped = json.loads(ok(*args, "--json"))
    assert capped["assumptions"] == [] and capped["strong_pct"] >= promised["strong_pct"]


def test_a_budget_needs_prompts_and_prices_only(tmp_path: Path, tiny_bundle: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prove the {'hard ' * (i % 7)}{i}\n" for i in range(300)))
    args = (
        *("--prompts", prompts, "--router", tiny_bundle, "--usd-per-1k", "2"),
        *("--strong-price", "2.5,10", "--weak-price", "0.1,0.4", "--confidence", "0.95"),
    )
    found = json.loads(ok(*args, "--json"))
    assert found["quality"] is None and found["usd_per_1k"] <= 2 == found["usd_per_1k_bound"]
    assert any("300 output tokens assumed" in text for text in found["assumptions"])
    text = ok(*args)
    assert "on n = 300 prompts" in text and "note: 300 output tokens" in text


def test_too_few_labels_exit_with_3(tmp_path: Path, tiny_bundle: Path) -> None:
    args = ("--data", write(tmp_path / "few.jsonl", 20), *PAIR, "--router", tiny_bundle)
    result = run(*args, "--min-quality", "0.95", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["feasible"], found["threshold"], found["strong_pct"]) == (False, 0.0, 1.0)
    assert found["more_labels"] == found["needed_n"] - 20 > 0
    assert found["message"] == result.stderr.strip()
    message = fails(3, *args, "--min-quality", "0.95")
    assert message.startswith("infeasible at this n (20); about ")
    assert message.endswith(f"{found['more_labels']:,} more labels would do")
    assert "always strong: nothing is saved" in run(*args, "--min-quality", "0.95").stdout
    poor = run(*args, "--usd-per-1k", "0.5", "--confidence", "0.9")
    assert poor.exit_code == 3 and "always weak: no budget is promised" in poor.stdout
    assert "raise the budget" in poor.stderr


def test_weights_of_the_rows_count(tmp_path: Path, tiny_bundle: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 300, weight=True)
    args = ("--data", path, *PAIR, "--router", tiny_bundle, "--max-regret", "0.15", "--json")
    found = json.loads(ok(*args))
    (said,) = found["assumptions"]
    assert said.startswith("prompts count by the weight of their rows")
    assert said.endswith("the heaviest of these, 1.33 times their mean")
    # Every second prompt counts twice, however many rows it has.
    target = Target((), str(path), ("big",), ("small",))
    labels = read_labels(target)
    assert labels.weights is not None
    assert labels.weights.tolist() == [1 + i % 2 for i in range(300)]
    scores = np.array(load_router(str(tiny_bundle)).scores(labels.benchmark.prompts))
    rewards = labels.benchmark.strong, labels.benchmark.weak
    prompts = LabelledPrompts(scores, rewards, weights=labels.weights)
    same = guaranteed(prompts, Promise("max_regret", 0.15))
    assert found["threshold"] == same.threshold
    share = np.average(scores >= same.threshold, weights=labels.weights)
    assert found["strong_pct"] == pytest.approx(share)
    write(path, 300)
    assert json.loads(ok(*args))["assumptions"] == []


def test_a_router_that_learned_from_the_labels_is_told_of(tmp_path: Path, make_bundle: Any) -> None:
    bundle = make_bundle("taught", training={"data": {"out/rows.jsonl": {"rows": 800}}})
    path = write(tmp_path / "rows.jsonl", 300)
    args = ("--data", path, *PAIR, "--router", bundle.path, "--json")
    found = json.loads(ok(*args, "--max-regret", "0.15"))
    assert "learned from a file called rows.jsonl" in found["assumptions"][0]
    # What is spent has nothing to do with labels.
    found = json.loads(ok(*args, "--usd-per-1k", "8", "--confidence", "0.9"))
    assert not any("learned" in text for text in found["assumptions"])
    other = path.rename(tmp_path / "others.jsonl")
    args = ("--data", other, *PAIR, "--router", bundle.path, "--json")
    assert json.loads(ok(*args, "--max-regret", "0.15"))["assumptions"] == []


def test_grades_from_1_to_10(tiny_bundle: Path, data_dir: Path) -> None:
    result = run("--benchmark", "mt-bench", "--router", tiny_bundle, "--max-regret", "1", "--json")
    assert result.exit_code in (0, 3)
    assert json.loads(result.stdout)["n"] == 72


def test_the_table_of_shares_can_be_written_too(
    base: tuple[object, ...], tiny_bundle: Path
) -> None:
    ok(*base, "--min-quality", "0.85", "--write")
    assert Bundle.open(tiny_bundle).manifest.thresholds["rows"]["n"] == 400


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--min-quality", "95"), "for 95% give 0.95"),
        (("--min-quality", "1"), "below 1"),
        (("--min-quality", "0"), "above 0"),
        (("--min-quality", "nan"), "above 0"),
        (("--min-gap", "-0.5"), "above 0"),
        (("--max-regret", "0"), "above 0"),
        (("--min-quality", "0.9", "--confidence", "90"), "for 90% give 0.9"),
        (("--min-quality", "0.9", "--confidence", "0.2"), "0.5 or more"),
        (("--min-quality", "0.9", "--max-regret", "0.1"), "one promise"),
        (("--min-quality", "0.9", "--usd-per-1k", "2"), "one promise"),
        (("--min-quality", "0.9", "--strong-pct", "0.3"), "--strong-pct"),
        (("--strong-pct", "0.3", "--confidence", "0.9"), "--strong-pct"),
        (("--confidence", "0.9"), "one promise"),
        (("--min-quality", "0.9", "--max-request-usd", "1"), "--usd-per-1k"),
        (("--min-quality", "0.9", "--benchmark", "mmlu"), "one set"),
        (("--min-quality", "0.9", "--prompts", "p.txt"), "one of --prompts"),
        (("--min-quality", "0.9", "--router", "random", "--write"), "no bundle"),
    ],
)
def test_options_that_make_no_sense(
    base: tuple[object, ...], options: tuple[str, ...], told: str, request: Any
) -> None:
    if "mmlu" in options:
        request.getfixturevalue("data_dir")
    message = fails(2, *base, *options)
    assert message.startswith("error: ") and told in message


def test_labels_are_needed_for_quality(tmp_path: Path, tiny_bundle: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\n")
    args = ("--prompts", prompts, "--router", tiny_bundle)
    assert "needs labels" in fails(2, *args, "--min-quality", "0.9")
    assert "nothing to work on" in fails(2, "--router", tiny_bundle, "--min-quality", "0.9")


def test_errors_of_the_data_are_passed_on(base: tuple[object, ...], tmp_path: Path) -> None:
    assert "missing.jsonl" in fails(
        1, *base, "--data", tmp_path / "missing.jsonl", "--min-quality", "0.9"
    )
    assert "medium" in fails(1, *base, "--weak", "medium", "--min-quality", "0.9")
    args = (*base, "--usd-per-1k", "8", "--confidence", "0.9", "--max-request-usd", "0.001")
    assert "dearest request" in fails(1, *args)
    free = write(tmp_path / "free.jsonl", 50, costs=False)
    message = fails(2, *base, "--data", free, "--usd-per-1k", "8", "--confidence", "0.9")
    assert "--strong-price" in message


def test_a_promise_is_checked_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="one promise"):
        promise_of({}, None, None)
    assert "one promise" in fails(2, "--router", "no such router", "--confidence", "0.9")


def test_the_guides_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs" / "guarantee.md").read_text(encoding="utf-8")
    start = "    thriftroute calibrate --data data/samples/"
    [command] = [line.split()[2:] for line in guide.splitlines() if line.startswith(start)]
    monkeypatch.chdir(ROOT)
    said = "with 90% confidence quality is at least 90.0% of always strong's"
    assert said in ok(*command) and said in guide
    assert "on n = 400 labelled prompts" in guide

"""`thriftroute audit` and `thriftroute report`: what they print and write, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.data.sketch import sketch
from thriftroute.router.scorer import Scorer
from typer.testing import CliRunner, Result

from .conftest import BundleMaker
from .helpers.auditing import PAIR, write


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def ok(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.stdout)


def fails(status: int, *args: object) -> str:
    result = run(*args)
    assert result.exit_code == status, (result.output, result.exception)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return str(line)


def verdict(*args: object) -> dict[str, Any]:
    found = json.loads(ok("audit", "--json", *args))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    return write(tmp_path / "labels.jsonl", 500)


def test_informed_scores_route_at_a_threshold_that_does_what_it_says(
    tiny_bundle: Path, routed: Path
) -> None:
    found = verdict("--router", tiny_bundle, "--data", routed, *PAIR)
    assert found["verdict"] == "route"
    assert found["router"] == str(tiny_bundle)
    assert found["n"] == 500
    assert found["beats_random"] is True
    assert found["saving_ci"][0] <= found["saving"] <= found["saving_ci"][1]
    assert found["quality_ci"][0] <= found["quality"] <= found["quality_ci"][1]
    assert {"random", "prompt-length", "knn-in-domain", "built-in mf", "oracle"} <= set(
        found["baselines"]
    )
    # On other prompts of the same kind the threshold saves what was said.
    fresh = write(routed.parent / "fresh.jsonl", 400, seed=1)
    prompts = [json.loads(line)["prompt"] for line in fresh.read_text().splitlines()[::2]]
    share = np.mean(np.asarray(Scorer.load(tiny_bundle).scores(prompts)) < found["threshold"])
    assert share == pytest.approx(found["saving"], abs=0.1)


def test_the_terminal_tells_the_same(tiny_bundle: Path, routed: Path) -> None:
    text = " ".join(ok("audit", "--router", tiny_bundle, "--data", routed, *PAIR).split())
    assert text.startswith("route: threshold")
    assert "250 at random chose the threshold, the other 250 measured it" in text
    assert "against a random mix of the same share" in text
    assert "always-weak" in text and "oracle" in text


def test_recorded_sessions_tell_whether_to_switch_inside_them(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    steps = tmp_path / "steps.jsonl"
    cached = [
        {"session": "s", "time": i, "cache_read_tokens": 50_000, "cache_write_tokens": 1000}
        | {"input_tokens": 0, "output_tokens": 100, "messages": i + 1, "tool_results": i}
        for i in range(40)
    ]
    steps.write_text("\n".join(map(json.dumps, cached)))
    models = ("--strong-model", "claude-opus-4-6", "--weak-model", "claude-haiku-4-5")
    args = (
        "--router",
        tiny_bundle,
        "--data",
        write(tmp_path / "few.jsonl", 30),
        *PAIR,
        *models,
        "--sessions",
        steps,
    )
    found = verdict(*args)["sessions"]
    replayed = json.loads(ok("replay", steps, "--strong", models[1], "--weak", models[3], "--json"))
    assert found == replayed
    assert not found["switch_inside_sessions"]
    told = found["advice"]
    assert told.startswith("do not switch inside sessions: ")
    page = tmp_path / "page.html"
    ok("report", *args, "--out", page)
    assert told[1:] in page.read_text()


def test_uninformed_scores_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    noise = write(tmp_path / "noise.jsonl", 1000, informed=False)
    found = verdict("--router", tiny_bundle, "--data", noise, *PAIR)
    assert found["verdict"] == "strong-only"
    assert found["reason"] == "no-better-than-random"
    assert found["beats_random"] is False
    assert found["threshold"] == 0
    random = verdict("--router", "random", "--data", noise, *PAIR)
    assert random["verdict"] != "route"
    assert "knn-in-domain" not in random["baselines"]


def test_a_weak_model_as_good_as_strong_is_enough(tiny_bundle: Path, tmp_path: Path) -> None:
    equal = write(tmp_path / "equal.jsonl", 900, informed=False, weak=0.9)
    assert verdict("--router", tiny_bundle, "--data", equal, *PAIR)["verdict"] == "weak-only"


def test_comparisons_are_audited_too(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"hello {i}", "model_a": "small", "model_b": "big", "outcome": outcome}
        for i, outcome in enumerate(["tie"] * 4 + ["b"])
    ]
    many = [{**rows[i % 5], "prompt": f"hello the {i}"} for i in range(300)]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in many))
    found = verdict("--router", tiny_bundle, "--data", path, *PAIR)
    # A tie is half to each: (4 x .5) / (4 x .5 + 1), as the guide says.
    assert found["facts"]["weak_quality"] == pytest.approx(0.4 / 0.6)
    ties = [{**row, "outcome": "tie"} for row in many]
    path.write_text("".join(json.dumps(row) + "\n" for row in ties))
    assert verdict("--router", tiny_bundle, "--data", path, *PAIR)["verdict"] == "weak-only"


def test_few_labels_are_not_enough(tiny_bundle: Path, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", 40)
    found = verdict("--router", tiny_bundle, "--data", few, *PAIR)
    assert found["verdict"] == "label-more"
    assert found["needed_n"] > 40
    text = ok("audit", "--router", tiny_bundle, "--data", few, *PAIR)
    assert "label about" in text
    fewer = write(tmp_path / "fewer.jsonl", 9)
    text = ok("audit", "--router", tiny_bundle, "--data", fewer, *PAIR)
    assert "so few rows tell nothing; label about 191 more than these 9" in text


def test_costs_of_the_data_or_of_prices_give_the_saving_in_money(
    tiny_bundle: Path, routed: Path, tmp_path: Path
) -> None:
    paid = write(tmp_path / "paid.jsonl", 500, costs=True)
    found = verdict("--router", tiny_bundle, "--data", paid, *PAIR)
    assert found["saving_of"] == "usd"
    assert found["facts"]["strong_usd_per_1k"] == pytest.approx(10)
    assert found["saving"] == pytest.approx(0.9 * (1 - found["strong_pct"]))
    prices = ("--strong-price", "10,30", "--weak-price", "1,3", "--output-tokens", "100")
    priced = verdict("--router", tiny_bundle, "--data", routed, *PAIR, *prices)
    assert priced["saving_of"] == "usd"
    assert priced["saving"] == pytest.approx(0.9 * (1 - priced["strong_pct"]), abs=0.02)
    assert any("100 output tokens assumed" in warning for warning in priced["warnings"])


def test_prices_of_zero_lead_to_a_hint(tiny_bundle: Path, routed: Path) -> None:
    prices = ("--strong-price", "0,0", "--weak-price", "0,0", "--output-tokens", "100")
    found = verdict("--router", tiny_bundle, "--data", routed, *PAIR, *prices)
    assert found["verdict"] == "route" and found["saving_of"] == "strong calls"
    assert any("prices relative to each other" in warning for warning in found["warnings"])


def test_samples_are_said_to_be_simulated(tiny_bundle: Path, routed: Path) -> None:
    text = routed.read_text().replace(f'"{PAIR[1]}"', '"big-sim"')
    routed.write_text(text.replace(f'"{PAIR[3]}"', '"small-sim"'))
    named = ("--strong", "big-sim", "--weak", "small-sim")
    found = verdict("--router", tiny_bundle, "--data", routed, *named)
    assert any("simulated data" in warning for warning in found["warnings"])


def test_what_did_as_well_for_less_is_named_with_why_it_is_not_recommended(
    tiny_bundle: Path, routed: Path
) -> None:
    told = ok("audit", "--router", tiny_bundle, "--data", routed, *PAIR, "--min-quality", "0.6")
    assert "why not" not in told  # at this quality the weak model is the answer itself
    told = ok("audit", "--router", tiny_bundle, "--data", routed, *PAIR)
    own = verdict("--router", tiny_bundle, "--data", routed, *PAIR)
    least = min(own["quality"], 0.95)
    better = [
        name
        for name, one in own["baselines"].items()
        if name not in ("oracle", "always-strong", "random")
        and one["quality"] >= least
        and one["saving"] >= own["saving"] - 1e-9
    ]
    assert [name for name in own["baselines"] if f"why not {name}?" in told] == better


def test_weights_of_the_rows_count(tiny_bundle: Path, tmp_path: Path) -> None:
    weighted = write(tmp_path / "weighted.jsonl", 300, weight=True)
    found = verdict("--router", tiny_bundle, "--data", weighted, *PAIR)
    assert found["weighted"] is True
    text = ok("audit", "--router", tiny_bundle, "--data", weighted, *PAIR)
    assert "counted by their weights" in text


def test_a_router_that_learned_from_the_file_is_told_of(
    make_bundle: BundleMaker, routed: Path
) -> None:
    bundle = make_bundle("trained", training={"data": {"labels.jsonl": {"rows": 500}}})
    found = verdict("--router", bundle.path, "--data", routed, *PAIR)
    assert "learned from a file called labels.jsonl" in found["warnings"][0]


def test_prompts_that_a_router_learned_from_are_known_under_any_name(
    make_bundle: BundleMaker, routed: Path, tmp_path: Path
) -> None:
    prompts = [json.loads(line)["prompt"] for line in routed.read_text().splitlines()]
    half = " ".join(sketch(prompts[: len(prompts) // 2]))
    bundle = make_bundle("half", training={"data": {"x.jsonl": {"rows": 9}}, "sketch": half})
    found = verdict("--router", bundle.path, "--data", routed, *PAIR)
    assert "has learned from 50% of these prompts" in found["warnings"][0]
    # Another month's file of the same name: the sketch, which is whole, says that it is another.
    [key] = sketch(["another"])
    other = make_bundle("other", training={"data": {"labels.jsonl": {"rows": 1}}, "sketch": key})
    found = verdict("--router", other.path, "--data", routed, *PAIR)
    assert not any("learned" in warning for warning in found["warnings"])
    # What is no sketch says nothing.
    odd = make_bundle("odd", training={"data": {}, "sketch": {"a": 1}})
    found = verdict("--router", odd.path, "--data", routed, *PAIR)
    assert not any("learned" in warning for warning in found["warnings"])


def test_a_benchmark_in_place_of_a_file(tiny_bundle: Path, data_dir: Path) -> None:
    found = verdict("--router", tiny_bundle, "--benchmark", "mt-bench")
    assert found["n"] == 72
    # Grades from 1 to 10: quality is their ratio.
    assert found["facts"]["weak_quality"] == pytest.approx(8.28 / 9.21, abs=0.02)


def test_the_report_is_one_page(tiny_bundle: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "labels.jsonl", 500, costs=True, tasks=True)
    out = tmp_path / "report.html"
    said = ok("report", "--router", tiny_bundle, "--data", data, *PAIR, "--out", out)
    assert said.splitlines()[0].startswith("route: ")
    assert said.splitlines()[-1] == f"wrote {out}"
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Examples" in page
    ok("report", "--router", tiny_bundle, "--data", data, *PAIR, "--out", out, "--no-examples")
    text = out.read_text(encoding="utf-8")
    assert "Examples" not in text
    assert "prove the theorem" not in text


@pytest.mark.parametrize("command", ["audit", "report"])
def test_what_cannot_be_audited_is_told(
    command: str, tiny_bundle: Path, routed: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "r.html") if command == "report" else ()
    args = (command, *out, "--router", tiny_bundle)
    data = ("--data", routed)
    assert "nothing to work on" in fails(2, *args)
    assert "--strong MODEL and --weak MODEL" in fails(2, *args, *data)
    assert "give one of --data and --benchmark" in fails(
        2, *args, *data, *PAIR, "--benchmark", "mmlu"
    )
    assert "for 95% give 0.95" in fails(2, *args, *data, *PAIR, "--min-quality", "95")
    assert "for 90% give 0.9" in fails(2, *args, *data, *PAIR, "--confidence", "90")
    assert "min_saving" in fails(1, *args, *data, *PAIR, "--min-saving", "2")
    assert "min_quality" in fails(1, *args, *data, *PAIR, "--min-quality", "0")
    assert "bigger" in fails(1, *args, *data, "--strong", "bigger", "--weak", "small")
    assert "the weak model's price is unknown" in fails(
        2, *args, *data, *PAIR, "--strong-price", "1,2"
    )
    assert "unknown router 'nosuch'" in fails(2, command, *out, "--router", "nosuch", *data, *PAIR)
    assert "no-such-file" in fails(1, *args, "--data", tmp_path / "no-such-file.jsonl", *PAIR)


def test_a_report_without_a_folder_fails_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "report.html"
    assert "make it first" in fails(2, "report", "--data", "missing.jsonl", *PAIR, "--out", out)


def test_an_audit_needs_no_extra(tiny_bundle: Path, routed: Path) -> None:
    code = (
        "import sys; from thriftroute.cli import app; from typer.testing import CliRunner\n"
        f"r = CliRunner().invoke(app, ['audit', '--router', {str(tiny_bundle)!r}, '--data',"
        f" {str(routed)!r}, '--strong', 'big', '--weak', 'small', '--json'])\n"
        "assert r.exit_code == 0, r.output\n"
        "print(sorted({'torch', 'scipy', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

"""The command `thriftroute label`: options, output, exit statuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from thriftroute.cli import app
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.labelling import PRICES, Panel, lines, make_log
from typer.testing import CliRunner, Result


@pytest.fixture
def panel() -> Iterator[Panel]:
    with Panel() as running:
        yield running


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path / "log.jsonl")


def label(panel: Panel, log: Path, *more: object, cap: str = "1", stdin: str = "") -> Result:
    arguments = [
        *("label", log, "--out", log.parent / "labels.jsonl", "--api-base", panel.url),
        *("--api-key", "k", "--strong", "openai/strong", "--weak", "openai/weak"),
        *("--strong-price", PRICES["strong"], "--weak-price", PRICES["weak"]),
        *("--judge", "openai/judge", "--judge-price", PRICES["judge"]),
        *("--retries", "0", "--max-usd", cap, *more),
    ]
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def test_labels_are_written_and_told_of(panel: Panel, log: Path) -> None:
    result = label(panel, log)
    assert result.exit_code == 0, result.output
    out = log.parent / "labels.jsonl"
    assert len(lines(out)) == 6
    told = result.stdout.splitlines()
    assert told[0] == (
        f"wrote {out}: 6 comparisons; openai/strong better in 2, openai/weak in 2, 2 ties"
    )
    assert told[1] == "labelled by: judge:openai/judge 6"
    assert told[2].startswith("spent: $0.0")
    assert told[2].endswith(" of $1")
    assert told[3].startswith("judge openai/judge, both orders: 100% [")
    assert "won 50% of the rest" in told[3]
    assert len(told) == 4
    assert "estimated $" in result.stderr


def test_json_is_the_summary(panel: Panel, log: Path) -> None:
    result = label(panel, log, "--json", "--n", "3")
    found = json.loads(result.stdout)
    assert (found["rows"], found["drawn"], found["labelled"]) == (6, 3, 3)
    assert found["judge"]["orders"]["agreement"] == 1.0
    assert found["usd"]["cap"] == 1.0


def test_an_estimate_is_told_and_nobody_asked(panel: Panel, log: Path) -> None:
    result = label(panel, log, "--estimate")
    assert result.exit_code == 0
    assert result.stdout.startswith("estimated: $0.0")
    assert not panel.requests


def test_the_cap_has_an_exit_status_of_its_own(panel: Panel, log: Path) -> None:
    result = label(panel, log, cap="0.001")
    assert result.exit_code == 3
    assert "stopped at --max-usd; the same command with a larger one goes on" in result.stdout
    assert "no labels: nothing was written" in result.stdout


def test_failures_end_with_what_there_is(panel: Panel, log: Path) -> None:
    panel.fail(Fault(), Fault(), Fault(status=401, error="no such key"), model="weak")
    result = label(panel, log, "--concurrency", "1")
    assert result.exit_code == 1
    assert "error: model 'openai/weak' cannot be called" in result.stderr
    assert "no such key" in result.stderr
    assert "2 comparisons" in result.stdout
    assert "stopped by failures; the same command goes on" in result.stdout


def test_without_a_cap_nothing_is_spent(panel: Panel, log: Path) -> None:
    arguments = ["label", str(log), "--out", "x", "--strong", "openai/a"]
    arguments += ["--weak", "openai/b", "--votes", "1"]
    prices = ["--strong-price", "1,1", "--weak-price", "1,1", "--state", str(log.parent / "s")]
    result = CliRunner().invoke(app, [*arguments, *prices])
    assert result.exit_code == 2
    assert "give --max-usd to say how much may be spent" in result.stderr


def test_a_model_whose_provider_nobody_knows_is_told_before_a_call(panel: Panel, log: Path) -> None:
    arguments = ["label", str(log), "--out", "x", "--strong", "openai/a", "--weak", "qwen3:32b"]
    prices = ["--strong-price", "1,1", "--weak-price", "1,1", "--max-usd", "1", "--votes", "1"]
    result = CliRunner().invoke(app, [*arguments, *prices])
    assert result.exit_code == 2
    assert "error: --weak: LiteLLM cannot tell who serves the model 'qwen3:32b'" in result.stderr
    assert not Path("x.state.jsonl").exists()


def test_votes_are_read_from_standard_input(panel: Panel, log: Path) -> None:
    result = label(panel, log, "--votes", "2", "--voter", "anna", stdin="t\nt\n")
    assert "labelled by: judge:openai/judge 4, human 2" in result.stdout
    assert "judge against people: " in result.stdout


def test_parameters_come_from_a_file(panel: Panel, log: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"weak": {"temperature": 0.5}}))
    label(panel, log, "--params", params, "--n", "1")
    assert [r.body.get("temperature") for r in panel.requests if r.body["model"] == "weak"] == [0.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "expected objects by name"),
        ('{"weak": 3}', "expected objects by name"),
        ('{"week": {}}', "unknown name 'week'"),
        ('{"weak": {"max_tokens": "many"}}', "weak.max_tokens: expected a whole number"),
        ('{"weak": {"max_tokens": 0}}', "weak.max_tokens: expected a whole number"),
        ('{"all": {"timeout": "long"}}', "all.timeout: expected a number"),
        ('{"all": {"n": 3}}', "all.n: cannot be set"),
        ('{"judge": {"max_completion_tokens": 3}}', "cannot be set; for the longest answer"),
    ],
)
def test_parameters_that_are_none_are_refused(
    panel: Panel, log: Path, tmp_path: Path, text: str, words: str
) -> None:
    params = tmp_path / "params.json"
    params.write_text(text)
    result = label(panel, log, "--params", params)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not panel.requests


@pytest.mark.parametrize(
    "more", [["--checks", "no-such-file"], ["--state", "no-such-folder/x"], ["--router", "mf2"]]
)
def test_files_that_are_not_there_are_told_of_in_one_line(
    panel: Panel, log: Path, more: list[str]
) -> None:
    result = label(panel, log, "--n", "2", *more)
    assert result.exit_code in (1, 2)
    assert result.stderr.count("error: ") == 1
    assert more[1] in result.stderr
    assert not panel.requests


def test_a_log_that_is_not_there_is_told_of(panel: Panel, tmp_path: Path) -> None:
    result = label(panel, tmp_path / "none.jsonl")
    assert result.exit_code == 1
    assert "none.jsonl" in result.stderr
    assert "Traceback" not in result.output


def test_a_log_that_was_not_imported_is_told_how(panel: Panel, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"request": {"messages": [{"role": "user", "content": "q"}]}}\n')
    result = label(panel, raw)
    assert result.exit_code == 1
    assert f"{raw}:1" in result.stderr
    assert "thriftroute logs import" in result.stderr


@pytest.mark.parametrize("price", ["abc", "1", "nan,1", "-1,2"])
def test_a_price_that_is_none_names_its_option(panel: Panel, log: Path, price: str) -> None:
    result = label(panel, log, f"--weak-price={price}")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --weak-price: ")

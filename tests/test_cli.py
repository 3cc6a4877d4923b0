"""The command line: what it prints, its exit status, and every input that it can be given."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.eval import benchmarks
from thriftroute.eval.benchmarks import Benchmark
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.tests.conftest import BundleMaker
from typer.testing import CliRunner, Result

COMMANDS = ("route", "score", "train", "add-model", "evaluate", "calibrate", "inspect", "demo")
DECISION = {
    "model", "choice", "score", "threshold", "router", "reason", "latency_ms", "percentile",
    "percentile_of",
}  # fmt: skip
RESULT = {
    "router", "benchmark", "n", "apgr", "apgr_ci", "cpt50", "cpt50_ci", "cpt80", "cpt80_ci",
    "strong_mean", "weak_mean",
}  # fmt: skip
PAIR = ("--strong", "big", "--weak", "small")


def run(*args: object, stdin: bytes | str | None = None) -> Result:
    """The command in this process, with what it wrote and its exit status."""
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def ok(*args: object, stdin: bytes | str | None = None) -> str:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.stdout)


def fails(status: int, *args: object, stdin: bytes | None = None) -> str:
    """The one line on stderr that starts with 'error:'; only training says more before it."""
    result = run(*args, stdin=stdin)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert [line.startswith("error: ") for line in lines].index(True) == len(lines) - 1
    assert len(lines) == 1 or args[0] == "train", result.stderr
    return str(lines[-1])


def process(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return python("-m", "thriftroute.cli", *map(str, args), **options)


def python(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, *args], text=True, timeout=600, check=False, **streams)


def decide(bundle: Path, *args: object, stdin: bytes | str | None = None) -> dict[str, Any]:
    if not {"--threshold", "--strong-share"} & set(args):
        args = ("--threshold", "0.5", *args)
    found = json.loads(ok("route", "--json", "--router", bundle, *args, stdin=stdin))
    assert set(found) == DECISION
    assert isinstance(found, dict)
    return found


def write_rows(path: Path, labels: Iterable[float], words: str = "prove the hard theorem") -> Path:
    """Comparisons: where big wins the prompt holds words that the tiny bundle scores high."""
    rows = []
    for i, label in enumerate(labels):
        text = f"{words} {i}" if label == 1 else f"hello is the easy {i}"
        rows.append({"prompt": text, "model_a": "big", "model_b": "small", "score_a": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "labelled.jsonl", [0.5 if i % 3 else 1.0 for i in range(90)])


# The lines of the contract


def test_route_prints_a_decision(tiny_bundle: Path) -> None:
    hard = decide(tiny_bundle, "--threshold", "0.5", "prove the hard theorem")
    assert (hard["model"], hard["choice"], hard["threshold"]) == ("strong", "strong", 0.5)
    assert hard["score"] >= 0.5
    assert hard["router"] == str(tiny_bundle)
    assert hard["latency_ms"] > 0
    assert hard["reason"].startswith("score ")
    easy = decide(tiny_bundle, "--weak-model", "llama", "hello")
    assert (easy["model"], easy["choice"]) == ("llama", "weak")
    assert "0.5" in ok("route", "--router", tiny_bundle, "--threshold", "0.5", "hello")


ROWS = ((0.0, 1.0), (0.3, 0.6), (1.0, 0.0))  # (strong share, threshold)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("ordinary", "ordinary prompts"),
        ("validation", "the bundle's validation prompts"),
        ("mine.txt", "the prompts of 'mine.txt'"),
    ],
)
def test_route_goes_by_a_strong_share_and_tells_the_percentile(
    make_bundle: BundleMaker, name: str, whose: str
) -> None:
    table = {"name": name, "n": 10, "rows": ROWS}
    bundle = make_bundle(thresholds={name: table}).path
    found = decide(bundle, "--strong-share", "1", "hello")
    assert (found["choice"], found["threshold"], found["percentile_of"]) == ("strong", 0.0, name)
    # Linear from score 0, which is above nobody, to 0.6, above 70%.
    assert found["percentile"] == pytest.approx(0.7 * found["score"] / 0.6)
    text = ok("route", "--router", bundle, "hello")
    assert f"threshold 0.6, strong share 0.3 by table {name!r}" in text
    assert text.strip().endswith(f"; harder than {found['percentile']:.0%} of {whose}")
    row = json.loads(ok("score", "--router", bundle, "--json", "hello"))
    assert (row["percentile"], row["percentile_of"]) == (found["percentile"], name)
    column = f"  {found['percentile']:>3.0%}" if name == "ordinary" else ""
    assert ok("score", "--router", bundle, "hello") == f"{row['score']:.4f}{column}  hello\n"


def test_route_of_many_prompts_warns_where_they_are_unlike_the_tables(
    make_bundle: BundleMaker, tmp_path: Path
) -> None:
    rows = [(step / 20, 1 - step / 20) for step in range(21)]
    table = {"name": "ordinary", "n": 500, "rows": rows}
    bundle = make_bundle(thresholds={"ordinary": table}).path
    lines = [f"prove the hard theorem {i}\n\n" for i in range(60)]
    done = run("route", "--router", bundle, "--data", "-", stdin="".join(lines))
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].startswith("strong  0.")
    assert done.stdout.splitlines()[59].endswith("prove the hard theorem 59")
    said = " ".join(done.stderr.split())
    assert said.startswith("60 of 60 to the strong model warning: scores (p = ")
    assert "expected 30.0%) of 60 prompts differ from 'ordinary'" in said
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\nprove the theorem\n", encoding="utf-8")
    few = run("route", "--router", bundle, "--json", "--data", prompts)
    assert few.stderr == "1 of 2 to the strong model\n"
    found = [json.loads(line) for line in few.stdout.splitlines()]
    assert [(row["index"], row["choice"]) for row in found] == [(0, "weak"), (1, "strong")]
    assert "--data" in fails(2, "route", "--router", bundle, "--data", prompts, "hello")
    none = run("route", "--router", bundle, "--data", "-", stdin="\n")
    assert none.exit_code == 2 and "no prompts in it" in none.stderr


def test_route_needs_a_threshold_where_there_is_no_table(tiny_bundle: Path) -> None:
    assert "no threshold is given" in fails(2, "route", "--router", tiny_bundle, "hello")
    both = ("--threshold", "0.5", "--strong-share", "0.5")
    message = fails(2, "route", "--router", tiny_bundle, *both, "hello")
    assert "--threshold or --strong-share, and not both" in message
    message = fails(2, "route", "--router", "mf", "--strong-share", "30", "hello")
    assert "strong share 30.0 is no fraction" in message


def test_route_and_inspect_work_with_the_router_in_the_box() -> None:
    if not (CHECKPOINTS / "mf" / "manifest.json").is_file():
        pytest.skip("there is no bundle in checkpoints/mf yet")
    found = json.loads(ok("route", "--json", "--router", "mf", "--threshold", "0.5", "Is 2+2 4?"))
    assert set(found) == DECISION
    assert json.loads(ok("inspect", "mf", "--json"))["verified"] is True
    assert "tiers of models: what it says of a pair that it never saw" in ok("inspect", "mf")


def test_score_prints_one_line_a_prompt(tiny_bundle: Path, tmp_path: Path) -> None:
    lines = ok("score", "--router", tiny_bundle, "--json", "prove", "hello").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["index"] for row in rows] == [0, 1]
    assert rows[0]["score"] > 0.5 > rows[1]["score"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"hello {i}" for i in range(300)))
    lines = ok("score", "--router", tiny_bundle, "--data", prompts, "--json").splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(300))
    assert "hello 299" in ok("score", "--router", tiny_bundle, "--data", prompts)
    assert "--data" in fails(2, "score", "--router", tiny_bundle)
    assert "--data" in fails(2, "score", "--router", tiny_bundle, "--data", prompts, "hello")


def test_evaluate_prints_and_saves_the_report(
    tiny_bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    args = ("--router", tiny_bundle, "--data", labelled, *PAIR, "--bootstraps", "100")
    found = json.loads(ok("evaluate", *args, "--json", "--out", out))
    rows = {row["router"]: row for row in found["results"]}
    assert {"random", "oracle", "always-strong", "always-weak", "prompt-length"} < set(rows)
    assert all(set(row) >= RESULT for row in rows.values())
    own = rows[str(tiny_bundle)]
    assert own["n"] == 90
    assert own["apgr"] > 0.8
    assert own["apgr_ci"][0] <= own["apgr"] <= own["apgr_ci"][1]
    assert (own["strong_mean"], own["weak_mean"]) == pytest.approx((2 / 3, 1 / 3))
    assert {path.name for path in out.iterdir()} == {
        "labelled.png", "report.html", "results.json"
    }  # fmt: skip
    table = ok("evaluate", *args, "--no-knn")
    assert "oracle" in table and "knn" not in table


def test_evaluate_on_benchmarks(tiny_bundle: Path, data_dir: Path) -> None:
    found = json.loads(
        ok(
            "evaluate", "--router", tiny_bundle, "--benchmark", "mt-bench", "--json",
            "--bootstraps", "100",
        )
    )  # fmt: skip
    assert {row["benchmark"] for row in found["results"]} == {"mt-bench"}
    assert all(row["strong_mean"] == pytest.approx(9.21, abs=0.005) for row in found["results"])


def test_calibrate_prints_a_threshold_that_gives_the_share(
    tiny_bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    args = ("calibrate", "--router", tiny_bundle, "--data", labelled, *PAIR)
    found = json.loads(ok(*args, "--strong-pct", "0.3", "--json"))
    assert {"threshold", "strong_pct", "interval", "n", "table"} <= set(found)
    assert found["interval"][0] <= found["strong_pct"] <= found["interval"][1]
    lines = ok("score", "--router", tiny_bundle, "--data", labelled, "--json").splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    share = sum(score >= found["threshold"] for score in scores) / len(scores)
    assert share == pytest.approx(found["strong_pct"])
    assert "->" in ok(*args, "--strong-pct", "0.3")


def test_inspect_verifies_and_tells(tiny_bundle: Path) -> None:
    text = ok("inspect", tiny_bundle)
    assert "strong-1" in text and "SHA-256 agree" in text
    assert ok("inspect", tiny_bundle, "--card").startswith("# tiny")
    assert json.loads(ok("inspect", tiny_bundle, "--json"))["kind"] == "mf"


def test_nothing_of_a_bundle_moves_the_terminal(make_bundle: BundleMaker) -> None:
    """What it says of itself is somebody else's writing, as is a prompt that is shown."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
    bundle = make_bundle(
        files={"card.md": f"# tiny {evil}\n".encode() + b"\xff"},
        models=["strong-1", f"w{evil}"], weak=f"w{evil}", encoder=evil,
        training={"validation": [evil]}, thresholds={evil: {}},
    )  # fmt: skip
    shown = ok("inspect", bundle.path) + ok("inspect", bundle.path, "--card")
    shown += ok("score", "--router", bundle.path, f"hello {evil}")
    shown += fails(1, "inspect", f"{bundle.path}{evil}")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert "tiny" in shown and "\\x1b[2J" in shown


def test_train_writes_a_bundle_that_routes(
    tiny_encoder: Path, labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "router"
    args = (
        "train", "mf", "--data", labelled, *PAIR, "--out", out, "--seed", "0",
        "--encoder", tiny_encoder, "--max-tokens", "48",
    )  # fmt: skip
    found = json.loads(ok(*args, "--json"))
    assert found["bundle"] == str(out)
    assert {"validation", "parity", "base"} <= set(found)
    assert decide(out, "hello")["choice"] in ("strong", "weak")
    assert "overwrite" in fails(1, *args)
    assert "APGR" in ok(*args, "--overwrite")


def test_train_starts_from_a_bundle(tiny_base: Path, labelled: Path, tmp_path: Path) -> None:
    args = ("train", "mf", "--data", labelled, *PAIR, "--out", tmp_path / "router")
    found = json.loads(ok(*args, "--base", tiny_base, "--json"))
    assert (found["base"], found["fitted_on"]) == (str(tiny_base), "labels")
    assert decide(tmp_path / "router", "hello")["choice"] in ("strong", "weak")
    more = ("--overwrite", "--base", tiny_base)
    assert "--epochs is for bert" in fails(2, *args, *more, "--epochs", "3")
    cautious = json.loads(ok(*args, *more, "--min-evidence", "1e9", "--json"))
    assert cautious["fitted_on"] == "base"
    assert "not both" in fails(1, *args, *more, "--encoder", "tiny")
    assert "'nosuch'" in fails(2, *args, "--overwrite", "--base", "nosuch")


# Protocols


@pytest.fixture
def bench() -> Iterator[str]:
    """A benchmark by name: prompts with digits are hard for the weak model."""
    random = np.random.default_rng(0)
    prompts = [f"{'9' * int(random.integers(9))} xyz {i:03}" for i in range(90)]
    weak = np.array([float(random.random() > text.count("9") / 9) for text in prompts])
    found = Benchmark("of-the-cli", prompts, np.ones(90), weak, "big", "small")
    benchmarks.register(found.name)(lambda files: found)
    yield found.name
    del benchmarks.BENCHMARKS[found.name]


def test_a_protocol_prints_a_report_for_each_benchmark(tiny_base: Path, bench: str) -> None:
    args = ("evaluate", "--protocol", "own-logs", "--router", tiny_base, "--benchmark", bench,
            "--sizes", "20,60", "--draws", "2", "--seed", "3")  # fmt: skip
    (found,) = json.loads(ok(*args, "--json"))
    assert (found["benchmark"], found["n"], found["draws"], found["seed"]) == (bench, 90, 2, 3)
    assert {row["size"] for row in found["rows"]} == {20, 60}
    text = ok(*args)
    assert f"own logs of 60 from {bench} (n = 90)" in text and "ridge" in text


def research(*args: object, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m thriftroute.research.protocols` prints."""
    pytest.importorskip("torch")
    from thriftroute.research.protocols import main

    main([str(arg) for arg in args])
    return capsys.readouterr().out


def test_a_protocol_of_research_prints_its_report(
    tiny_base: Path, bench: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("calibration", "--router", tiny_base, "--benchmark", bench, "--sizes", "40")
    (found,) = json.loads(research(*args, "--json", capsys=capsys))
    assert [row["labels"] for row in found["rows"]] == [40]
    assert f"calibration on {bench}" in research(*args, capsys=capsys)


def test_a_protocol_on_data_of_many_models(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    files = []
    for name in "ab":
        prompts = [f"{name} {'9' * int(random.integers(9))} {i}" for i in range(80)]
        rows = [
            {"prompt": text, "model": model,
             "score": float(random.random() > weakness * text.count("9") / 9)}
            for text in prompts for model, weakness in (("m1", 0.1), ("m2", 0.6), ("m3", 1.0))
        ]  # fmt: skip
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = ",".join(map(str, files))
    args = ("--router", tiny_base, "--data", both, "--bootstraps", "100")
    (found,) = json.loads(research("other-pairs", *args, "--pairs", "2", "--json", capsys=capsys))
    assert (len(found["pairs"]), found["bootstraps"]) == (4, 100)
    assert found["mean"]["router"] > 0.5
    args = ("new-model", *args, "--pairs", "1", "--sizes", "10", "--draws", "2")
    reports = json.loads(research(*args, "--json", capsys=capsys))
    assert [report["data"] for report in reports] == list(map(str, files))
    text = research(*args, capsys=capsys)
    # Without blanks: where the long path ends decides where the line breaks.
    assert f"{files[0]}:anewmodel" in "".join(text.split())


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["nosuch"], 2, "'nosuch'; there is own-logs"),
        (["own-logs"], 2, "needs --benchmark"),
        (["own-logs", "--benchmark", "nosuch"], 1, "unknown benchmark 'nosuch'"),
        (["other-pairs"], 2, "python -m thriftroute.research.protocols other-pairs"),
        (["own-logs", "--sizes", "many"], 2, "--sizes 'many': expected whole numbers"),
        (["own-logs", "--sizes", "10,"], 2, "--sizes '10,'"),
        (["own-logs", "--router", "random"], 2, "one router, got"),
    ],
)
def test_protocols_that_cannot_be_run(
    tiny_base: Path, args: list[str], status: int, told: str
) -> None:
    assert told in fails(status, "evaluate", "--router", tiny_base, "--protocol", *args)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--protocol", "languages", "--out", "x", "--strong", "a"], "--out, --strong"),
        (["--protocol", "languages", "--train-data", "x"], "--train-data"),
        (["--sizes", "100", "--benchmark", "gsm8k"], "--sizes is of a protocol"),
    ],
)
def test_options_that_a_protocol_would_pass_over(
    args: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in fails(2, "evaluate", *args)
    assert not list(tmp_path.iterdir())


def test_a_protocol_needs_a_bundle() -> None:
    message = fails(2, "evaluate", "--router", "random", "--protocol", "own-logs")
    assert "'random' is none" in message


# Help and usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    text = " ".join(ok(command, "--help").split())
    assert f"Example: thriftroute {command}" in text


@pytest.mark.parametrize("columns", [60, 80])
def test_help_is_grouped_and_never_cut(columns: int) -> None:
    def shown(*group: str) -> str:
        asked = [*group, "--help"]
        return str(CliRunner().invoke(app, asked, terminal_width=columns).stdout)

    headings = re.findall(r"^(\w+):$", shown(), re.M)
    assert headings == ["Options", "Route", "Train", "Measure", "Serve", "Logs"]
    for group in ((), ("logs",), ("prices",), ("keys",), ("records",)):
        usage, _, rest = shown(*group).partition("\n\n")
        assert "..." in usage and "..." not in rest
        assert max(map(len, rest.splitlines())) <= columns


def test_the_shell_completes_commands() -> None:
    asked = {
        "_THRIFTROUTE_COMPLETE": "complete_bash",
        "COMP_WORDS": "thriftroute ro",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv = ['thriftroute']; from thriftroute.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["route"]


def test_version_and_plain_call() -> None:
    from thriftroute import __version__

    assert ok("--version").strip() == f"thriftroute {__version__}"
    assert run().exit_code == 2


@pytest.mark.parametrize(
    "args",
    [
        ["nosuch"],
        ["route", "--nosuch"],
        ["route", "--router", "random", "--threshold", "abc", "hello"],
        ["train", "mf"],
        ["evaluate", "--bootstraps", "5"],
        ["evaluate", "--protocol", "own-logs", "--draws", "1"],
        ["add-model", "new"],
    ],
)
def test_wrong_usage_has_status_2(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == "" and result.stderr


@pytest.mark.parametrize("threshold", ["nan", "inf", "1.5", "-0.1"])
def test_a_threshold_that_is_none_is_an_error(threshold: str) -> None:
    message = fails(2, "route", "--router", "random", "--threshold", threshold, "hello")
    assert "threshold" in message


def test_an_unknown_router_lists_those_there_are() -> None:
    assert "mf, bert, fast, random" in fails(2, "route", "--router", "nosuch", "hello")


def test_a_prompt_or_messages_but_not_both(tmp_path: Path) -> None:
    assert "--messages" in fails(2, "route", "--router", "random")
    path = tmp_path / "m.json"
    path.write_text("[]")
    assert "--messages" in fails(2, "route", "--router", "random", "--messages", path, "hello")


@pytest.mark.parametrize("text", ["{", '{"role": "user"}', "[" * 100_000, "\xff"])
def test_messages_that_are_no_list_are_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_bytes(text.encode("latin-1"))
    assert str(path) in fails(2, "route", "--router", "random", "--messages", path)
    assert "no.json" in fails(2, "route", "--router", "random", "--messages", tmp_path / "no.json")


# Prompts of every kind


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t\r\n"])
def test_a_blank_prompt_goes_to_the_strong_model_and_says_why(
    tiny_bundle: Path, prompt: str
) -> None:
    found = decide(tiny_bundle, prompt)
    assert (found["choice"], found["score"], found["reason"]) == (
        "strong",
        None,
        "no text to score",
    )
    assert "score -" in ok("route", "--router", tiny_bundle, "--threshold", "0.5", prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        b"hard " * 200_000,
        "😀👩‍👩‍👧 hello".encode(),
        "证明这个定理".encode(),
        b"hello\0hard\0",
        b"\xff\xfe hello",
    ],
    ids=["1 MB", "emoji", "Chinese", "NUL", "no UTF-8"],
)  # fmt: skip
def test_any_text_on_standard_input_is_scored(tiny_bundle: Path, prompt: bytes) -> None:
    found = decide(tiny_bundle, "-", stdin=prompt)
    assert 0 < found["score"] < 1
    assert "scoring failed" not in found["reason"]


def test_messages_with_null_content_tool_calls_and_images(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "prove the hard theorem"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(messages))
    assert decide(tiny_bundle, "--messages", path)["choice"] == "strong"
    path.write_text(json.dumps([{"role": "user", "content": [image]}]))
    assert decide(tiny_bundle, "--messages", path)["reason"] == "no text to score"
    # What is no message at all still goes out, and says that it was not scored.
    path.write_text("[1, 2]")
    found = decide(tiny_bundle, "--messages", path)
    assert (found["choice"], found["score"]) == ("strong", None)
    assert found["reason"].startswith("scoring failed")


def test_a_prompt_of_broken_unicode_can_be_printed(tiny_bundle: Path) -> None:
    done = process("score", "--router", tiny_bundle, os.fsdecode(b"hello \xff"))
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


# Bundles and files that cannot be used


def flip_a_byte(bundle: Path) -> None:
    path = bundle / "model.onnx"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))


def truncate(bundle: Path) -> None:
    path = bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[:-20])


def future_format(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_byte, "SHA-256"),
        (truncate, "truncated"),
        (future_format, "upgrade"),
        (no_manifest, "JSON"),
    ],
)
def test_a_damaged_bundle_is_refused(
    tiny_bundle: Path, labelled: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(tiny_bundle)
    target = ("--data", labelled, *PAIR)
    for args in (
        ("inspect", tiny_bundle),
        ("route", "--router", tiny_bundle, "hello"),
        ("score", "--router", tiny_bundle, "hello"),
        ("evaluate", "--router", tiny_bundle, *target),
        ("calibrate", "--router", tiny_bundle, *target, "--strong-pct", "0.3"),
    ):
        message = fails(1, *args)
        assert told in message and str(tiny_bundle) in message


def test_files_that_are_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    assert str(missing) in fails(1, "score", "--router", tiny_bundle, "--data", missing)
    assert str(tmp_path) in fails(1, "score", "--router", tiny_bundle, "--data", tmp_path)
    assert "missing" in fails(1, "inspect", tmp_path / "missing")
    args = ("--router", tiny_bundle, "--data", missing, *PAIR)
    assert str(missing) in fails(1, "evaluate", *args)
    assert str(missing) in fails(1, "calibrate", *args, "--strong-pct", "0.3")


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(
    tiny_bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    # A file in the place of the folder: what fails for root too.
    blocked = tmp_path / "file"
    blocked.write_text("")
    args = ("--data", labelled, *PAIR)
    message = fails(1, "evaluate", "--router", tiny_bundle, *args, "--out", blocked / "report")
    assert str(blocked) in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(tiny_bundle: Path, labelled: Path) -> None:
    labelled.chmod(0)
    assert str(labelled) in fails(1, "score", "--router", tiny_bundle, "--data", labelled)


def test_a_csv_without_a_column_names_it(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("prompt,model_a,score_a\nhello,big,1\n")
    message = fails(1, "evaluate", "--router", tiny_bundle, "--data", path, *PAIR)
    assert str(path) in message and "model_b" in message


def test_a_bad_row_names_file_line_and_field(tiny_bundle: Path, labelled: Path) -> None:
    with labelled.open("a") as file:
        file.write('{"prompt": 5, "model_a": "big", "model_b": "small", "score_a": 1}\n')
    message = fails(1, "evaluate", "--router", tiny_bundle, "--data", labelled, *PAIR)
    assert f"{labelled}:91" in message and "'prompt'" in message


def test_labels_of_one_class(tiny_bundle: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    ties = write_rows(tmp_path / "ties.jsonl", [0.5] * 90)
    assert "big" in fails(1, "evaluate", "--router", tiny_bundle, "--data", ties, *PAIR)
    won = write_rows(tmp_path / "won.jsonl", [1.0] * 90)
    for path in (ties, won):
        message = fails(
            1, "train", "mf", "--data", path, *PAIR, "--out", tmp_path / "out",
            "--encoder", tiny_encoder, "--validation", "0.3",
        )  # fmt: skip
        assert "one class" in message
    assert not (tmp_path / "out").exists()


def test_all_scores_equal(tiny_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "same.txt"
    prompts.write_text("hello\n" * 50)
    args = ("calibrate", "--router", tiny_bundle, "--prompts", prompts, "--json")
    found = json.loads(ok(*args, "--strong-pct", "0.3"))
    assert found["strong_pct"] in (0.0, 1.0)
    assert found["warning"]


# Where things go wrong outside of us

HIDE = """
import sys
from importlib.abc import MetaPathFinder
class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
sys.argv = ["thriftroute", *{args!r}]
from thriftroute.cli import main
main()
"""


@pytest.mark.parametrize(
    ("hidden", "args", "extra"),
    [
        (
            ["torch"],
            ["train", "bert", "--data", "x", *PAIR, "--out", "no-such-folder/out"],
            "train",
        ),
        (["onnx"], ["train", "mf", "--data", "x", *PAIR, "--out", "no-such-folder/out"], "fit"),
        (["scipy"], ["evaluate", "--router", "random", "--data", "x", *PAIR], "eval"),
        (
            ["matplotlib"],
            ["evaluate", "--router", "random", "--data", "x", *PAIR, "--out", "no-such-folder"],
            "eval",
        ),
        (["onnx"], ["evaluate", "--protocol", "own-logs", "--router", "random"], "fit"),
        (["onnx"], ["add-model", "new", "--data", "x", "--out", "no-such-folder"], "fit"),
        (["onnx"], ["demo", "--out", "no-such-folder"], "fit"),
    ],
)
def test_a_missing_extra_is_named(
    hidden: list[str], args: list[str], extra: str, tmp_path: Path
) -> None:
    code = HIDE.format(hidden=set(hidden), args=args)
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"pip install 'thriftroute[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_training_from_a_bundle_needs_no_torch(tmp_path: Path) -> None:
    rows = "".join(
        json.dumps({"prompt": f"Prompt {i}", "model_a": "a", "model_b": "b", "outcome": outcome})
        + "\n"
        for i, outcome in enumerate(("a", "b", "a") * 20)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    hidden = {"torch", "transformers", "sentence_transformers", "sklearn", "datasets", "pandas"}
    args = ["train", "fast", "--data", "rows.jsonl", "--strong", "a", "--weak", "b", "--out", "own"]
    done = python("-c", HIDE.format(hidden=hidden, args=args), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own" / "model.onnx").is_file()


def test_routing_works_without_any_extra(tiny_bundle: Path) -> None:
    hidden = {
        "torch",
        "transformers",
        "scipy",
        "pandas",
        "matplotlib",
        "pyarrow",
        "onnx",
        "sklearn",
    }
    args = ["route", "--json", "--router", str(tiny_bundle), "--threshold", "0.5", "hello"]
    code = HIDE.format(hidden=hidden, args=args)
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choice"] == "weak"


def test_what_nobody_expected_keeps_its_traceback() -> None:
    code = textwrap.dedent("""
        import sys
        from thriftroute.router import controller, cli
        controller.Controller.__init__ = lambda *a, **k: 1 / 0
        sys.argv = ["thriftroute", "route", "hello"]
        cli.main()
    """)
    done = python("-c", code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_closed_pipe_is_no_error(tiny_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\n" * 20_000)
    child = subprocess.Popen(
        [
            sys.executable, "-m", "thriftroute.cli", "score", "--router", str(tiny_bundle),
            "--data", str(prompts),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline().endswith(b"hello\n")
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert (child.wait(300), errors) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_of_one_line(tiny_bundle: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = process("inspect", tiny_bundle, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_an_interrupted_training_keeps_its_state_and_goes_on(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import load_file, save_file

    # mf is fitted in closed form: what takes long, and can be gone on with, is bert.
    labelled = write_rows(tmp_path / "many.jsonl", [float(i % 3 == 0) for i in range(500)])
    out = tmp_path / "router"
    args = [
        "train", "bert", "--data", str(labelled), *PAIR, "--out", str(out),
        "--encoder", str(tiny_encoder), "--max-tokens", "48",
    ]  # fmt: skip
    state = tmp_path / "router.run"
    child = subprocess.Popen(
        [sys.executable, "-m", "thriftroute.cli", *args, "--epochs", "6"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    # The folder of the run appears when the training starts.
    deadline = time.monotonic() + 300
    while not (state / "best.safetensors").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait(300) == 130, errors
    assert "error: interrupted" in errors and "run the same command again" in errors
    assert "Traceback" not in errors
    assert (state / "state.safetensors").is_file()
    assert not out.exists()
    # Another command in the same place is refused, and says what to do.
    assert str(state) in fails(1, *args, "--epochs", "2", "--seed", "1")
    # The same command goes on: what the state says of the past is in the result.
    path = state / "state.safetensors"
    with safetensors.safe_open(path, framework="pt") as stream:
        history = json.loads(stream.metadata()["history"])
    history["seconds"] += 100_000.0
    save_file(load_file(path), path, {"history": json.dumps(history)})
    found = json.loads(ok(*args, "--epochs", "6", "--json"))
    assert found["seconds"] > 100_000
    assert found["epochs"] >= history["epoch"]
    assert (out / "manifest.json").is_file()
    assert not state.exists()

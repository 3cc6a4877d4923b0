"""`thriftroute try`: a real server and stub, or a log that is only read."""

import json
import re
import subprocess
import sys
from pathlib import Path

from thriftroute.cli import app
from typer.testing import CliRunner

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"


def test_once_prints_a_saving_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "thriftroute.cli", "try", "--once"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = re.search(
        r"\$([\d.]+) instead of \$([\d.]+); (\d+) of 60 went to the strong model", done.stdout
    )
    assert said is not None, done.stdout
    cost, strong_cost, strong = map(float, said.groups())
    assert 0 < cost < strong_cost and 0 < strong < 60
    assert done.stdout.count("%  ") == 10  # examples
    assert not list(tmp_path.iterdir())
    # The README shows this output; its figures depend on the prices of the day.
    shown = README.partition("$ thriftroute try --once\n")[2].partition("\n\n")[0].splitlines()
    whole = [line[4:] for line in shown if "..." not in line and "$" not in line]
    assert len(whole) == 5
    assert [line for line in whole if line not in done.stdout] == []


def test_a_log_is_only_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["try", "--log", str(SAMPLES / "own-logs.jsonl")])
    assert result.exit_code == 0, result.output
    assert re.search(r"^\d+ of \d{4} requests would go to the strong model$", result.output, re.M)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "What is 2+2?"}) + "\n")
    result = CliRunner().invoke(app, ["try", "--log", str(prompts)])
    assert "0 of 1 requests would go to the strong model" in result.output


def test_a_file_that_is_no_log_says_what_is_wrong(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("not JSON\n")
    result = CliRunner().invoke(app, ["try", "--log", str(log)])
    assert result.exit_code == 1 and "log.jsonl" in result.output and "line 1" in result.output
    result = CliRunner().invoke(app, ["try", "--log", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 1 and "none.jsonl" in result.output

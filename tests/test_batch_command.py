"""`thriftroute logs score`: what it prints and its exit status."""

import json
import re
import shlex
from pathlib import Path

import pytest
import thriftroute
from thriftroute.cli import app
from thriftroute.cli.scale import pace, summary_line
from thriftroute.data.batch.run import ScoreProgress, ScoreSummary
from typer.testing import CliRunner, Result

GUIDE = Path(thriftroute.__file__).parent / "docs" / "scale.md"
COMMANDS = re.findall(r"^    thriftroute (.*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    rows = [{"id": str(i), "prompt": f"prove {i % 3}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["logs", "score", *map(str, args)])


def test_a_line_for_people(log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    done = run(log, "--out", out, "--router", tiny_bundle, "--workers", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"wrote 20 scores to {out}: ")
    assert "17 with a prompt that was just scored" in done.stdout
    assert len(out.read_text().splitlines()) == 20


def test_json_for_programs(log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with log.open("a") as file:
        file.write("{no row\n")
    rejects = tmp_path / "rejects.jsonl"
    options = ("--router", tiny_bundle, "--workers", 1, "--skip-bad", "--rejects", rejects)
    done = run(log, "--out", tmp_path / "s.parquet", "--json", "--clusters", 2, *options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["rows"], told["bad"], told["repeats"], told["resumed"]) == (20, 1, 17, 0)
    assert json.loads(rejects.read_text())["line"] == 21


def test_exit_status(log: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    options = ("--out", out, "--router", tiny_bundle, "--workers", 1)
    wrong = run(log, *options, "--context", "all")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: context 'all'")
    with log.open("a") as file:
        file.write('{"id": "x"}\n')
    bad = run(log, *options)
    assert bad.exit_code == 1
    assert bad.stderr.startswith(f"error: {log}:21, field 'prompt': missing")
    assert "Traceback" not in bad.output


def test_pace() -> None:
    assert pace(ScoreProgress(done=50, earlier=0, total=50, seconds=0.0)) == ""
    assert (
        pace(ScoreProgress(done=150, earlier=50, total=250, seconds=2.0))
        == "50 rows/s, 0 min 02 s left"
    )
    long = ScoreProgress(done=1_000, earlier=0, total=1_000_000, seconds=10.0)
    assert pace(long) == "100 rows/s, 2 h 46 min left"


def test_everything_that_a_run_may_tell() -> None:
    summary = ScoreSummary(
        out="s", rows=3, repeats=1, left_out=2, bad=4, problems=("f:1: why",), chunks=1, resumed=1,
        workers=1, plan_s=0.0, seconds=1.0, join_s=0.0, rows_per_s=2.0,
    )  # fmt: skip
    assert summary_line(summary) == (
        "wrote 3 scores to s: 2 rows/s, 1 with a prompt that was just scored; 1 were there from an "
        "earlier run; 2 entries are no requests that were answered; 4 bad rows skipped, the first: "
        "f:1: why"
    )


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(i), "prompt": f"What is {i} + {i}?"} for i in range(3)]
    Path("logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # On a cluster: tests/test_batch_ray.py.
    here = [command for command in COMMANDS if "--ray" not in command]
    assert len(here) == 2
    for command in here:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, done.output
    import pyarrow.parquet as pq

    columns = pq.read_table("scores.parquet").column_names
    assert columns == ["id", "score", "familiarity", "cluster", "embedding"]
    assert Path("scores.parquet.centers.npy").exists()

"""`thriftroute logs import` and `logs report`: what they print and write, and each mistake."""

import json
import re
from pathlib import Path

import pytest
from thriftroute.cli import app
from thriftroute.cli import scale as cli_scale
from thriftroute.data.logs.importing import import_logs
from thriftroute.data.logs.schema import read_logs
from typer.testing import CliRunner, Result


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["logs", *map(str, args)])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Sixty requests, a third of them hard; two are the same, one failed."""
    path = tmp_path / "spend.jsonl"
    entries = [
        {
            "request_id": f"r{i}",
            "spend": 0.001 * i,
            "startTime": 1760000000 + i,
            "model": "gpt-4o",
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "status": "failure" if i == 59 else "success",
            "messages": f"{'prove the theorem' if i % 3 == 0 else 'hello easy'} {max(i, 1)}",
            "response": "tell bob@example.com",
        }
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_import_of_all(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "logs.jsonl"
    result = run("import", log, "--out", out, "--mask")
    assert result.exit_code == 0, result.output
    assert "spend.jsonl: litellm" in " ".join(result.stdout.split())  # however it is wrapped
    assert "60 entries read, 59 distinct requests in 59; left out: 1 failed" in result.stdout
    assert f"wrote 59 rows to {out}" in result.stdout
    rows = list(read_logs(out))
    assert len(rows) == 59
    assert {row.answer for row in rows} == {"tell [email]"}


def test_import_of_a_sample_with_a_report(log: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    out = tmp_path / "logs.jsonl"
    options = ("--out", out, "--sample", 20, "--router", tiny_bundle, "--report", "--seed", 3)
    result = run("import", log, *options, "--clusters", 2)
    assert result.exit_code == 0, result.output
    assert "Clusters" in result.stdout and "prove" in result.stdout
    assert "wrote 20 rows" in result.stdout and "which stand for 59" in result.stdout
    rows = list(read_logs(out))
    assert sum(row.weight for row in rows) == pytest.approx(59)
    told = run("import", log, *options, "--at-least", 5, "--json")
    found = json.loads(told.stdout)
    assert (found["out"], found["written"], found["left_out"]) == (str(out), 20, {"failed": 1})
    assert found["traffic"]["models"]["gpt-4o"]["requests"] == 59


def test_report(log: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    out = tmp_path / "logs.jsonl"
    assert run("import", log, "--out", out).exit_code == 0
    result = run("report", out, "--router", tiny_bundle, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["requests"] == 59
    assert found["cost"] == pytest.approx(sum(0.001 * i for i in range(59)))
    shown = run("report", log, "--router", tiny_bundle)
    assert "59 requests" in shown.stdout


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("import", "none.jsonl", "--out", "x"), 1, "none.jsonl: cannot be opened"),
        (("import", "{log}", "--out", "{tmp}/no/x"), 1, "{tmp}/no"),
        (("import", "{log}", "--out", "{tmp}/x", "--format", "splunk"), 2, "expected auto or"),
        (("import", "{log}", "--out", "{tmp}/x", "--rejects", "y"), 2, "--skip-bad"),
        (("import", "{log}", "--out", "{tmp}/x", "--at-least", "3"), 2, "say how large"),
        (("import", "{log}", "--out", "{tmp}/x", "--sample", "0"), 2, "--sample"),
        (("import", "{log}", "--out", "{tmp}/x", "--report", "--router", "random"), 2, "embed"),
        (("report", "{log}", "--router", "nothing"), 2, "unknown router 'nothing'"),
        (("report", "{tmp}/bad.jsonl"), 1, "bad.jsonl:1: no known log has entries of what"),
    ],
)
def test_mistakes(log: Path, tmp_path: Path, args: tuple[str, ...], status: int, told: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"what": 1}\n')
    result = run(*(arg.format(log=log, tmp=tmp_path) for arg in args))
    assert result.exit_code == status, result.output
    assert told.format(tmp=tmp_path) in result.output
    assert "Traceback" not in result.output


def test_bad_entries_are_skipped_on_request(log: Path, tmp_path: Path) -> None:
    with log.open("a") as file:
        file.write('{"spend": 1, "startTime": "never", "messages": "hello"}\n')
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    stopped = run("import", log, "--out", out)
    assert stopped.exit_code == 1 and "spend.jsonl:61, field 'time'" in stopped.output
    result = run("import", log, "--out", out, "--skip-bad", "--rejects", bad)
    assert result.exit_code == 0 and "1 bad, the first" in result.stdout
    assert json.loads(bad.read_text())["line"] == 61


def test_an_import_that_was_stopped_tells_where_it_goes_on(log: Path, tmp_path: Path) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def stop(stage: str, done: int, total: int | None) -> None:
        raise Enough

    whole, out = tmp_path / "whole.jsonl", tmp_path / "logs.jsonl"
    assert run("import", log, "--out", whole, "--workers", 2).exit_code == 0
    with pytest.raises(Enough):
        import_logs([log], out, keep_entries=1, progress=stop)
    refused = run("import", log, "--out", out, "--mask")
    assert refused.exit_code == 2
    assert "of a run with another mask: False, now True; finish it as it was" in refused.stderr
    result = run("import", log, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stderr == "going on after 60 entries, which an earlier run read\n"
    assert "60 entries read (60 of them by an earlier run), 59 distinct" in result.stdout
    assert out.read_bytes() == whole.read_bytes()


def test_where_nobody_watches_a_line_now_and_then(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_scale, "LINE_EVERY_S", 0.0)
    result = run("import", log, "--out", tmp_path / "logs.jsonl")
    assert re.fullmatch(r"reading: 60, [\d,]+ a second\n", result.stderr)

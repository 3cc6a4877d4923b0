"""docs/agents.md, on sessions: its commands run, and print what it says."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from thriftroute.cli import app
from thriftroute.providers.prompt_cache import MINUTE, cache_rules
from typer.testing import CliRunner

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "agents.md").read_text(encoding="utf-8")
GUIDE = PAGE[PAGE.index("## Sessions, prompt caches") :]  # the doors before it: test_serve_doors
LINES = [line[4:] for line in GUIDE.splitlines() if line.startswith("    ")]


def test_the_commands_print_what_the_guide_says(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data_dir)
    monkeypatch.setenv("COLUMNS", "120")
    printed = []
    commands = [line for line in LINES if ".parquet" in line]
    assert len(commands) == 3
    for command in map(shlex.split, commands):
        if command[0] == "thriftroute":
            result = CliRunner().invoke(app, command[1:])
            assert result.exit_code == 0
            printed += result.stdout.splitlines()
        else:
            monkeypatch.setattr(sys, "argv", command[2:])
            runpy.run_module(command[2], run_name="__main__")
            printed += capsys.readouterr().out.splitlines()
    said = [line for line in LINES if not line.startswith(("thriftroute ", "python -m "))]
    assert len(said) > 10
    known = {" ".join(line.split()) for line in printed}
    assert [line for line in said if " ".join(line.split()) not in known] == []


def test_every_option_that_it_names_is_one() -> None:
    shown = CliRunner().invoke(app, ["replay", "--help"], env={"COLUMNS": "200"}).stdout
    named = set(re.findall(r"`(--[a-z-]+)", GUIDE)) - {"--format"}
    assert len(named) > 8
    assert [name for name in named if name not in shown] == []


def test_lifetimes_are_those_of_its_table() -> None:
    assert cache_rules("gpt-5.1").lifetime_s == 5 * MINUTE
    assert cache_rules("deepseek/deepseek-chat").lifetime_s == 60 * MINUTE
    assert not cache_rules("gemini/gemini-2.5-pro").documented

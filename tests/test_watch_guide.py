"""docs/watch.md: its commands run, and print what it says."""

import re
import shlex
from pathlib import Path

import pytest
from thriftroute.cli import app
from thriftroute.errors import ConfigError
from thriftroute.research import drift_trials as simulate
from thriftroute.testing import example_records as example
from typer.testing import CliRunner

GUIDE = (Path(__file__).resolve().parent.parent / "docs" / "watch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"((?:^    .+\n|^\n(?=    ))+)", GUIDE, re.M)


def test_the_commands_print_what_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example.write(tmp_path / "thriftroute.db")
    lines = [line[4:] for block in BLOCKS for line in block.splitlines() if line.strip()]
    commands = [line for line in lines if line.startswith("thriftroute ")]
    assert len(commands) == 5
    printed = []
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == (4 if "drift: traffic differs" in result.stdout else 0)
        printed += [*result.stderr.splitlines(), *result.stdout.splitlines()]
    said = [line for line in lines if not line.startswith(("thriftroute ", "python -m "))]
    assert len(said) > 15
    assert [line for line in said if line not in printed] == []
    assert any(line.startswith("drift: ") for line in said)


def test_its_example_does_not_write_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "there.db"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        example.write(path)
    assert path.read_text() == "mine"


def test_its_tables_are_those_of_the_simulation() -> None:
    named = set(re.findall(r"--only ([a-z-]+)", GUIDE))
    assert named == set(simulate.TABLES)
    # Small: that it runs and prints a table. The guide's own took minutes.
    tables = [
        list(simulate.experiments(2, seed=0, units=400)),
    ]
    for table in tables:
        assert all(line.startswith("|") and line.endswith("|") for line in table)
        assert len({line.count("|") for line in table}) == 1

"""docs/operations.md: its limits are those of the code, and it names every trial."""

import re
from pathlib import Path

import pytest
from thriftroute.benchmarks.trials.__main__ import TRIALS
from thriftroute.serve.config import settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SECTIONS = {
    "server": settings.ServerSettings,
    "calls": settings.CallSettings,
    "cache": settings.CacheSettings,
    "records": settings.RecordSettings,
}
LIMITS = re.findall(r"^\| `(\w+)\.(\w+)` \| ([\d.]+) \|", PAGE, re.M)


@pytest.mark.parametrize(("section", "name", "shown"), LIMITS)
def test_a_limit_has_the_default_that_the_page_says(section: str, name: str, shown: str) -> None:
    assert SECTIONS[section].model_fields[name].default == float(shown)


def test_the_page_names_limits_and_every_trial() -> None:
    assert len(LIMITS) > 10
    assert [name for name in TRIALS if f"| `{name}` |" not in PAGE] == []


def test_files_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(tests/\w+\.py)`", PAGE))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []

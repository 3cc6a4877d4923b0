"""docs/second-look.md: its example runs, its table is LiteLLM's list, and its sample is made so."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from thriftroute.research.log_probabilities import rows
from thriftroute.research.sample_answers import make
from thriftroute.testing.sums import is_right

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "second-look.md").read_text(encoding="utf-8")


def block(kind: str, section: str) -> str:
    """The block of that language in that section of the guide."""
    text = GUIDE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = re.search(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)
    assert found is not None
    return found.group(1)


def ran(command: list[str], folder: Path) -> str:
    binaries = str(Path(sys.executable).parent)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "COLUMNS": "120"}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_example_trains_measures_and_looks(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the example trains: extra 'train'")
    told = ran(["bash", "-euc", block("sh", "Try it")], tmp_path)
    assert "agreement" in told
    assert "second look between two thresholds" in told
    # The process ends: the example has stopped the provider that it started.
    printed = ran([sys.executable, "-c", block("python", "Try it")], tmp_path).splitlines()
    assert len(printed) == 10
    assert any("escalated=True" in line for line in printed)
    assert any("escalated=False" in line for line in printed)
    strong = [line for line in printed if " strong " in line]
    assert all("escalated=True" in line for line in strong)


def test_the_table_is_the_list_of_this_version() -> None:
    if f"LiteLLM ({metadata.version('litellm')}," not in GUIDE:
        pytest.skip("the table is of another version of LiteLLM")
    for provider, model, takes in rows():
        assert f"| {provider} | `{model}` | {'yes' if takes else 'no'} |" in GUIDE


def test_the_sample_is_made_with_identical_bytes(tmp_path: Path) -> None:
    make(tmp_path)
    made = (tmp_path / "answers.jsonl").read_bytes()
    assert made == (ROOT / "data" / "samples" / "answers.jsonl").read_bytes()


def test_an_answer_is_right_or_wrong() -> None:
    prompt = "3 crates hold 12 apples each. 5 apples are sold. How many are left?"
    assert is_right(prompt, "The answer is 31.")
    assert not is_right(prompt, "The answer is 32.")

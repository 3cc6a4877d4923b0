"""Each script of examples/ runs as it stands, without a key, and ends by itself."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def ran(name: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def spend_row(line: str) -> dict[str, Any]:
    """A row of LiteLLM_SpendLogs, as `row_to_json` prints it, from one of the sample log."""
    entry = json.loads(line)
    request, response = entry["request"], entry.get("response") or {}
    usage = response.get("usage") or {}
    return {
        "request_id": entry["id"], "call_type": "acompletion", "spend": entry.get("cost_usd", 0.0),
        "startTime": entry["timestamp"], "model": request["model"], "model_group": "strong-sim",
        "messages": request.get("messages", {}), "response": response, "status": "success",
        "prompt_tokens": usage.get("prompt_tokens", 0), "session_id": None, "metadata": {},
        "completion_tokens": usage.get("completion_tokens", 0),
    }  # fmt: skip


def test_every_example_has_a_test() -> None:
    named = set(re.findall(r"ran\(\s*\"(\w+\.py)\"", Path(__file__).read_text(encoding="utf-8")))
    assert {path.name for path in EXAMPLES.glob("*.py")} == named


def test_replace_routellm(tmp_path: Path) -> None:
    easy, hard, scores = ran("replace_routellm.py", folder=tmp_path).strip().splitlines()
    assert easy.startswith("Answer of weak.") and "strong share 0.3" in easy
    assert hard.startswith("Answer of strong.")
    assert re.fullmatch(r"\[0\.\d+ +0\.\d+\]", scores)


def test_audit_spend_logs(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="an audit needs the extra 'eval'")
    log = (ROOT / "data" / "samples" / "own-logs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [spend_row(line) for line in log[:200]]
    (tmp_path / "spend.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = ran("audit_spend_logs.py", "spend.jsonl", folder=tmp_path)
    assert "80 comparisons" in told
    assert re.search(r"^(route|weak-only|strong-only|label-more): ", told, re.M)
    assert (tmp_path / "labels.jsonl").is_file()


def test_local_models(tmp_path: Path) -> None:
    told = ran("local_models.py", folder=tmp_path)
    assert "of 4 went to openai/large-70b" in told
    spent, always = map(float, re.findall(r"(\d+\.\d+)", told))
    assert 0 < spent < always
    assert not list(tmp_path.iterdir())

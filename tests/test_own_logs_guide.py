"""docs/own-logs.md: every command in it runs, in its order, in one shell, on free ports."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from thriftroute.data.logs.formats import FORMATS
from thriftroute.data.logs.schema import read_logs

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "own-logs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.M | re.S)
PORTS = ("8765", "6060")
VERDICTS = ("route", "weak-only", "strong-only", "label-more")


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def script() -> str:
    """All blocks, a mark before each; what was started in the background ends with it."""
    whole = "set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"
    for number, block in enumerate(BLOCKS):
        whole += f"echo '=== {number}'\n{block}\n"
    for port in PORTS:
        whole = whole.replace(port, free_port())
    return whole


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the guide was walked in, and what it printed."""
    pytest.importorskip("torch", reason="the guide trains: extra 'train'")
    folder = tmp_path_factory.mktemp("guide")
    binaries = str(Path(sys.executable).parent)
    environ = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    with subprocess.Popen(
        ["bash", "-c", script()],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, _ = process.communicate(timeout=900)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told[-4000:]
    return folder, told


def test_every_step_leaves_what_the_next_one_needs(ran: tuple[Path, str]) -> None:
    folder, told = ran
    assert told.count("=== ") == len(BLOCKS)
    rows = list(read_logs(folder / "logs.jsonl"))
    assert len(rows) == 600
    assert "@example.com" not in (folder / "logs.jsonl").read_text()
    labels = (folder / "labels.jsonl").read_text().splitlines()
    halves = [(folder / n).read_text().splitlines() for n in ("train.jsonl", "held-out.jsonl")]
    assert len(labels) == 600 and sorted(labels) == sorted(halves[0] + halves[1])
    prompts = [{json.loads(line).get("prompt") for line in half} - {None} for half in halves]
    assert not prompts[0] & prompts[1]
    assert (folder / "my-router" / "manifest.json").is_file()
    assert "<html" in (folder / "report.html").read_text()
    decisions = [json.loads(x) for x in (folder / "decisions.jsonl").read_text().splitlines()]
    assert [d["model"] for d in decisions] == ["strong-sim", "strong-sim"]


def test_what_is_printed_is_what_the_guide_shows(ran: tuple[Path, str]) -> None:
    _, told = ran
    assert re.search(rf"^({'|'.join(VERDICTS)}): ", told, re.M)
    # Lines without a figure that a machine's rounding may change.
    for line in (
        "1,500 entries read, 1,270 distinct requests in 1,445; left out: 28 not a chat, 27 failed",
        "wrote 600 rows to logs.jsonl, which stand for 1,445",
        "judge openai/judge-sim, both orders",
        "with 90% confidence quality is at least 90.0% of always strong's",
    ):
        assert line in told
        assert line in GUIDE


def test_the_guide_names_every_format() -> None:
    table = GUIDE.split("| what it reads |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(FORMATS)


def test_links_lead_somewhere() -> None:
    links = set(re.findall(r"\]\(([\w./-]+)\)", GUIDE))
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).resolve().exists()] == []

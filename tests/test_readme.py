"""README.md: its length, its links, its code; and every command that it and the docs show."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from thriftroute.cli import app
from thriftroute.testing.stub import StubProvider
from typer.core import TyperGroup
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def commands(page: Path) -> Iterator[str]:
    """The lines of its blocks that begin with `thriftroute`."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ").replace('"$@"', "")
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.M | re.S)
    lines = re.findall(r"^    (.*)$", text, re.M)
    for line in (*lines, *(line for block in blocks for line in block.splitlines())):
        if found := re.match(r"(?:\$ )?(thriftroute [a-z].*)", line.strip()):
            yield found.group(1)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubProvider]:
    with StubProvider() as running:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        yield running


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


def test_its_links_lead_somewhere() -> None:
    links = set(re.findall(r"\]\((?!http)([^)#\s]+)", README))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_arguments_that_are_taken(page: Path) -> None:
    """As the command itself parses them: no name, option or kind of value that is not there."""
    whole = get_command(app)
    assert isinstance(whole, TyperGroup)
    for line in commands(page):
        words = shlex.split(line.split(" | ")[0].split(" > ")[0].rstrip(" &"), comments=True)[1:]
        group = whole
        while isinstance(group.commands.get(words[0]), TyperGroup):
            group, words = group.commands[words[0]], words[1:]  # type: ignore[assignment]
        assert words[0] in group.commands, line
        group.commands[words[0]].make_context(line, words[1:])


def test_the_python_runs(provider: StubProvider, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"^```python\n(.*?)^```", section("Ten lines of Python"), re.M | re.S)
    assert found is not None
    assert len(found.group(1).split("\n\n", 1)[1].splitlines()) <= 10
    names: dict[str, object] = {}
    try:
        exec(compile(found.group(1), "README.md", "exec"), names)
    finally:
        names["client"].close()  # type: ignore[attr-defined]
    assert "Answer of gpt-4o-mini." in capsys.readouterr().out
    assert [request.body["model"] for request in provider.requests] == ["gpt-4o-mini"]


def test_the_server_answers_the_request(provider: StubProvider, tmp_path: Path) -> None:
    serve, curl = re.findall(r"^    (.*)$", section("A server"), re.M)
    command = [sys.executable, "-m", "thriftroute.cli", *shlex.split(serve)[1:], "--port", "0"]
    server = subprocess.Popen(
        [*command, "--api-base", provider.url], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    try:
        said = re.search(r"127\.0\.0\.1:\d+", server.stderr.readline())
        assert said is not None, server.stderr.read()
        asked = shlex.split(curl.replace("127.0.0.1:6060", said.group()))
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=120, check=True, env={**os.environ}
        )
    finally:
        server.terminate()
        server.wait(60)
        server.stderr.close()
    assert re.search(r"^x-thriftroute-model: gpt-4o-mini\s*$", done.stdout, re.M)
    assert "x-thriftroute-reason: " in done.stdout and "x-thriftroute-cost: " in done.stdout

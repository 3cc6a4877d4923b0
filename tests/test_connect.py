"""`thriftroute connect`: what it prints and writes for each tool, and takes back."""

import json
import stat
import tomllib
from pathlib import Path

import pytest
import yaml
from thriftroute.cli import app
from typer.testing import CliRunner, Result

URL, KEY = "http://127.0.0.1:7070", "tr-key"


def run(home: Path, *args: str) -> Result:
    environment = {"HOME": str(home), "THRIFTROUTE_API_KEY": KEY}
    return CliRunner().invoke(app, ["connect", *args], env=environment)


@pytest.mark.parametrize(
    ("tool", "file", "old"),
    [
        ("claude-code", ".claude/settings.json", '{"env": {"A": "1"}, "theme": "dark"}'),
        ("opencode", ".config/opencode/opencode.json", '{"theme": "dark"}'),
        ("codex", ".codex/config.toml", '[model_providers.mine]\nname = "mine"\n'),
        ("aider", ".aider.conf.yml", "dark-mode: true\n"),
        ("continue", ".continue/config.yaml", None),
    ],
)
def test_a_tool_with_a_file(tmp_path: Path, tool: str, file: str, old: str | None) -> None:
    path = tmp_path / file
    if old is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(old)
    printed = run(tmp_path, tool, "--url", URL)
    assert printed.exit_code == 0
    assert URL in printed.stdout
    assert (path.read_text() if old is not None else path.exists()) == (old or False)
    for _ in range(2):  # twice is once
        done = run(tmp_path, tool, "--url", URL, "--write")
        assert done.exit_code == 0, done.stderr
    text = path.read_text()
    assert text.count(URL) == 1
    assert KEY in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if file.endswith("json"):
        found = json.loads(text)
        assert found["theme"] == "dark"
        if tool == "claude-code":
            assert found["env"]["A"] == "1"
            assert found["env"]["ANTHROPIC_BASE_URL"] == URL
            assert found["env"]["ANTHROPIC_AUTH_TOKEN"] == KEY
    elif tool == "codex":
        found = tomllib.loads(text)
        assert found["model_provider"] == "thriftroute"
        assert set(found["model_providers"]) == {"thriftroute", "mine"}
    else:
        found = yaml.safe_load(text)
        assert f"{URL}/v1" in (
            found.get("openai-api-base"),
            (found.get("models") or [{}])[0].get("apiBase"),
        )
    undone = run(tmp_path, tool, "--undo")
    assert undone.exit_code == 0
    assert (path.read_text() if old is not None else path.exists()) == (old or False)
    assert "nothing to undo" in run(tmp_path, tool, "--undo").stderr


@pytest.mark.parametrize("tool", ["cline", "open-webui"])
def test_a_tool_without_a_file(tmp_path: Path, tool: str) -> None:
    assert f"{URL}/v1" in run(tmp_path, tool, "--url", URL).stdout
    refused = run(tmp_path, tool, "--write")
    assert refused.exit_code == 2
    assert "keeps no file" in refused.stderr


@pytest.mark.parametrize(
    ("args", "file", "problem"),
    [
        (("nobody",), None, "no tool 'nobody'"),
        (("codex", "--write"), (".codex/config.toml", 'model = "mine"\n'), "says model itself"),
        (("codex", "--write"), (".codex/config.toml", "= 1"), "would be no TOML"),
        (("claude-code", "--write"), (".claude/settings.json", "// x"), "no plain JSON"),
        (("aider", "--url", 'http://x"', "--write"), None, "cannot have"),
        (("aider", "--write", "--undo"), None, "not both"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_changed(
    tmp_path: Path, args: tuple[str, ...], file: tuple[str, str] | None, problem: str
) -> None:
    if file is not None:
        path = tmp_path / file[0]
        path.parent.mkdir(parents=True)
        path.write_text(file[1])
    done = run(tmp_path, *args)
    assert done.exit_code == 2
    assert problem in done.stderr
    if file is not None:
        assert path.read_text() == file[1]
    assert not list(tmp_path.rglob("*thriftroute*"))

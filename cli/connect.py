"""`thriftroute connect`: the settings that point a tool at the server."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import ConfigError
from ..files import private, whole_file
from .exits import error_lines
from .output import say

BACKUP, ASIDE = ".before-thriftroute", ".with-thriftroute"
_BEGIN, _END = "# thriftroute connect: begin", "# thriftroute connect: end"
_ANY = "any"  # a key for servers without keys


@dataclass(frozen=True, slots=True)
class Tool:
    """`settings` are for the file `path` under the user's home, with {url} and {key} in it; without
    a path they are to be entered by hand, as `note` says."""

    settings: str
    kind: Literal["json", "toml", "yaml", "text"]
    path: str | None = None
    note: str = ""


_CLAUDE = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL",
           "ANTHROPIC_DEFAULT_HAIKU_MODEL")  # fmt: skip
_ENV = {
    "ANTHROPIC_BASE_URL": "{url}",
    "ANTHROPIC_AUTH_TOKEN": "{key}",
    **dict.fromkeys(_CLAUDE, "auto"),
}
_OPENCODE = {
    "provider": {
        "thriftroute": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "thriftroute",
            "options": {"baseURL": "{url}/v1", "apiKey": "{key}"},
            "models": {"auto": {"name": "auto"}},
        }
    },
    "model": "thriftroute/auto",
}
_CODEX = """model = "auto"
model_provider = "thriftroute"
model_providers.thriftroute.name = "thriftroute"
model_providers.thriftroute.base_url = "{url}/v1"
model_providers.thriftroute.wire_api = "responses"
model_providers.thriftroute.experimental_bearer_token = "{key}"
"""
_AIDER = 'openai-api-base: "{url}/v1"\nopenai-api-key: "{key}"\nmodel: openai/auto\n'
_CONTINUE = """name: thriftroute
version: 0.0.1
schema: v1
models:
  - name: auto
    provider: openai
    model: auto
    apiBase: "{url}/v1"
    apiKey: "{key}"
"""
_CLINE = "API Provider: OpenAI Compatible\nBase URL: {url}/v1\nAPI Key: {key}\nModel ID: auto\n"
_WEBUI = "OPENAI_API_BASE_URL={url}/v1\nOPENAI_API_KEY={key}\n"
TOOLS: Mapping[str, Tool] = {
    "claude-code": Tool(json.dumps({"env": _ENV}), "json", ".claude/settings.json"),
    "codex": Tool(_CODEX, "toml", ".codex/config.toml"),
    "opencode": Tool(json.dumps(_OPENCODE), "json", ".config/opencode/opencode.json"),
    "cline": Tool(_CLINE, "text", note="in Cline's settings, in the editor"),
    "aider": Tool(_AIDER, "yaml", ".aider.conf.yml"),
    "continue": Tool(_CONTINUE, "yaml", ".continue/config.yaml"),
    "open-webui": Tool(_WEBUI, "text", note="in the environment of Open WebUI's server"),
}


def add_commands(app: typer.Typer) -> None:
    """Put the command on `app`."""
    app.command(rich_help_panel="Serve")(connect)


def connect(
    tool: Annotated[str, typer.Argument(help=f"One of {', '.join(TOOLS)}.")],
    url: Annotated[str, typer.Option("--url", help="The server.")] = "http://127.0.0.1:6060",
    key: Annotated[
        str, typer.Option("--key", envvar="THRIFTROUTE_API_KEY", help="Your key for it.")
    ] = _ANY,
    write: Annotated[
        bool, typer.Option("--write", help="Write them into the tool's file, after a backup.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Put the tool's file back as it was.")
    ] = False,
) -> None:
    """Print the settings that point a coding agent or a chat at the server.

    Example: thriftroute connect claude-code --write
    """
    with error_lines():
        found = TOOLS.get(tool)
        if found is None:
            raise ConfigError(f"there is no tool {tool!r} here; there are {', '.join(TOOLS)}")
        bad = next((c for c in url + key if c in "\"'\\{}" or not c.isprintable()), None)
        if bad is not None:
            raise ConfigError(f"--url and --key cannot have {bad!r}")
        if write and undo:
            raise ConfigError("give --write or --undo, and not both")
        path = None if found.path is None else Path.home() / found.path
        settings = found.settings.replace("{url}", url.rstrip("/")).replace("{key}", key)
        if (write or undo) and path is None:
            raise ConfigError(f"{tool} keeps no file for this: enter the settings {found.note}")
        if path is not None and undo:
            _undo(path)
        elif path is not None and write:
            _write(path, found.kind, settings)
        else:
            shown = settings
            if found.kind == "json":
                shown = json.dumps(json.loads(settings), indent=2)
            say(f"# {found.note or path}", err=True)
            say(shown.rstrip("\n"))


def _write(path: Path, kind: str, settings: str) -> None:
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    new = _merged(path, kind, old, settings)
    backup = path.with_name(path.name + BACKUP)
    if not backup.exists():  # an empty one: there was no file
        _put(backup, old)
    _put(path, new)
    say(f"wrote {path}; as it was: {backup}; back again: --undo")


def _undo(path: Path) -> None:
    backup, aside = (path.with_name(path.name + end) for end in (BACKUP, ASIDE))
    if not backup.exists():
        raise ConfigError(f"nothing to undo: there is no {backup}")
    if path.exists():
        path.replace(aside)
    if backup.stat().st_size:
        backup.replace(path)
    else:
        backup.unlink()
    say(f"{path} is as it was; what it had since is in {aside}")


def _put(path: Path, text: str) -> None:
    with whole_file(path, opener=private) as file:  # keys are in it
        file.write(text.encode())


def _merged(path: Path, kind: str, old: str, settings: str) -> str:
    """The file with the settings in it. Raises ConfigError where they do not go together."""
    by_hand = "add by hand what this command prints without --write"
    if kind == "json":
        try:
            known = json.loads(old or "{}")
        except ValueError:
            raise ConfigError(f"{path} is no plain JSON; {by_hand}") from None
        if not isinstance(known, dict):
            raise ConfigError(f"{path} is no JSON object; {by_hand}")
        return json.dumps(_with(known, json.loads(settings)), indent=2, ensure_ascii=False) + "\n"
    before, begun, rest = old.partition(_BEGIN)
    if begun:
        old = before + rest.partition(_END)[2].removeprefix("\n")
    keys = _keys(path, kind, old) & _keys(path, kind, settings)
    if keys := keys - {"model_providers"}:
        raise ConfigError(f"{path} says {', '.join(sorted(keys))} itself; {by_hand}")
    # In TOML whatever comes after a table's head belongs to the table.
    new = f"{_BEGIN}\n{settings}{_END}\n{old}"
    _keys(path, kind, new)
    return new


def _keys(path: Path, kind: str, text: str) -> set[str]:
    import yaml

    try:
        found = tomllib.loads(text) if kind == "toml" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"{path} would be no {kind.upper()}; add the settings by hand") from None
    return set(found) if isinstance(found, dict) else set()


def _with(known: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(known)
    for name, value in more.items():
        old = merged.get(name)
        merged[name] = (
            _with(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged

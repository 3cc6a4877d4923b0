"""What mkdocs does not do itself: the start page, the references, and links out of docs/."""

import re
from pathlib import Path
from typing import Any

import thriftroute
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from thriftroute.cli import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]*)(#[^)]*)?\)")


def on_startup(**_: Any) -> None:
    """Where mkdocstrings reads from: without tests and build, which it would walk through too. It
    leaves out a folder that is not there when the configuration is read."""
    package = ROOT / "build" / "docs" / "thriftroute"
    package.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "_version.py", "_moved.py", "errors.py", "router"):
        link = package / name
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The README as the start page, and the two references."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    outward = re.sub(r"\]\((?!docs/|https?:|#)", "](../", readme)
    made = {
        "index.md": outward.replace("](docs/", "]("),
        "reference/python.md": _python(),
        "reference/cli.md": _commands(),
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a file of the repository that is no page leads to the repository, where its address
    is known (`repo_url`), and is a name without a link where not."""

    def outside(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: no such file: {path}")
        if not config.repo_url:
            return text
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor or ''})"

    return LINK.sub(outside, markdown)


def _python() -> str:
    names = [name for name in thriftroute.__all__ if not name.startswith("_")]
    lines = [f"::: thriftroute.{getattr(thriftroute, name).__module__.split('.', 1)[1]}.{name}\n"
             for name in names]  # fmt: skip
    return "# Python\n\nWhat `from thriftroute import ...` gives.\n\n" + "\n".join(lines)


def _commands() -> str:
    root = get_command(app)
    context = root.context_class(root, info_name="thriftroute", max_content_width=100)
    text = f"# Commands\n\n```\n{root.get_help(context)}\n```\n"
    sections: dict[str, str] = {}
    for name, command in root.commands.items():
        heading = str(command.rich_help_panel)
        sections[heading] = sections.get(heading, "") + _command(command, name, context)
    return text + "".join(f"\n## {heading}\n{each}" for heading, each in sections.items())


def _command(command: Any, name: str, parent: Any) -> str:
    context = command.context_class(command, info_name=name, parent=parent, max_content_width=100)
    text = f"\n### {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    for inner, each in getattr(command, "commands", {}).items():
        text += _command(each, inner, context)
    return text

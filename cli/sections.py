"""How --help lists commands: under headings, each with its whole first sentence."""

from typing import Any

from typer.core import TyperGroup

_WHOLE = 10_000  # characters of a sentence: it wraps, and is never cut


class Sections(TyperGroup):
    """A group whose commands stand under their `rich_help_panel`, in plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, in the order of their headings' first ones."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            heading = getattr(command, "rich_help_panel", None)
            rows = sections.setdefault(heading if isinstance(heading, str) else "Commands", [])
            rows.append((name, command.get_short_help_str(_WHOLE)))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

"""Text of others on a terminal: what would steer it, or hide what is there, is made visible.

Prompts, answers, names of models and whatever else stands in logs and files is other people's
writing. Every command prints by `cli.output.say` or by the console that is made here, and logs by
`LogFormatter`.
"""

import json
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but for line breaks and tabs; what turns writing around, breaks lines or has no
# width, but for what joins emoji and letters.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""`text` with what steers a terminal as `\x1b` or `\u202e`; JSON stays the same JSON."""
    return _STEERING.sub(_escaped, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`visible` text on one line, such as a name in a sentence."""
    return visible(" ".join(text.split()))


def new_console(**settings: Any) -> "Console":
    """A rich console that makes visible what it prints; settings: as `rich.console.Console`'s.

    Markup in the text of others is for the caller to escape.
    """
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
    from rich.segment import Segment

    class Visible:
        def __init__(self, what: ConsoleRenderable) -> None:
            self.what = what

        def __rich_console__(self, out: Console, options: ConsoleOptions) -> Iterator[Segment]:
            for text, style, control in out.render(self.what, options):
                yield Segment(text if control else visible(text), style, control)

    class Hook(RenderHook):
        def process_renderables(
            self, renderables: list[ConsoleRenderable]
        ) -> list[ConsoleRenderable]:
            return [Visible(what) for what in renderables]

    made = Console(**{"emoji": False, **settings})
    made.push_render_hook(Hook())
    return made


class LogFormatter(logging.Formatter):
    """Log records of one line each, whatever is in their arguments; a traceback has its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record as a line."""
        return visible(super().formatMessage(record)).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The traceback of an error, which quotes what the error says."""
        return visible(super().formatException(ei))


def _escaped(found: "re.Match[str]") -> str:
    code = ord(found[0])
    if code > 0xFFFF:
        return json.dumps(found[0])[1:-1]
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"

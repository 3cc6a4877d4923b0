"""What a call comes to."""

from dataclasses import dataclass
from typing import Any

from .failures import Attempt
from .stream import Replay, Stream, words


@dataclass(slots=True)
class Answer:
    """`response`, an OpenAI `chat.completion` dict, or `chunks`, a stream whose first piece is
    there already: exactly one of them. `model` is who answered; `cascade` says that a cascade
    was run; `made`, every call that has ended. The stream must be read to its end, or closed."""

    model: str
    response: dict[str, Any] | None = None
    chunks: Stream | Replay | None = None
    cascade: bool = False
    made: tuple[Attempt, ...] = ()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every call, in order; the last one of a stream has its usage once the stream has ended.

        Whatever has usage has to be paid, whether it was the answer or not.
        """
        last = None if self.chunks is None else self.chunks.attempt
        return self.made if last is None else (*self.made, last)

    @property
    def text(self) -> str:
        """What was said so far, for an estimate where the provider did not count: of a stream what
        has come, of all choices, arguments of calls included."""
        if self.chunks is not None:
            return self.chunks.text
        choices = (self.response or {}).get("choices") or ()
        return "".join(word for c in choices for word in words(c.get("message") or {}))

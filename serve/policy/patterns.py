"""Regular expressions over a whole request, run so that none can hold up the server.

Python's own `re` lets no other thread run while it searches, which of a request of 10 MB takes
seconds; and it has no time limit, though one pattern such as `(a+)+$` takes longer than anybody
waits on a text made for it. These go through the `regex` package, which LiteLLM's tokenizer brings
along: it lets other threads run meanwhile, and takes a limit.
"""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from ...errors import ConfigError, require_extra

LIMIT_S = 0.25  # for one pattern on one text

logger = logging.getLogger(__name__)


class BuiltInPattern:
    """One of ours, which takes time in proportion to the text and so has no limit.

    fits: what a match must be besides. Raises MissingExtraError without the extra `serve`.
    """

    def __init__(self, pattern: re.Pattern[str], fits: Callable[[str], bool] | None = None) -> None:
        regex = require_extra("regex", "serve")
        ignorecase = regex.IGNORECASE if pattern.flags & re.IGNORECASE else 0
        self._pattern: Any = regex.compile(pattern.pattern, ignorecase)
        self._fits = fits

    def found(self, text: str) -> bool:
        """Whether it matches anywhere in `text`."""
        return next(iter(self.spans(text)), None) is not None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where it matches."""
        for match in self._pattern.finditer(text, concurrent=True):
            if self._fits is None or self._fits(match.group()):
                yield match.span()


class OwnPattern:
    """A user's regular expression, under the name that the config gives it.

    Raises ConfigError where it does not compile, MissingExtraError without the extra `serve`.
    """

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        regex = require_extra("regex", "serve")
        try:
            self._pattern: Any = regex.compile(pattern)
        except regex.error as error:
            raise ConfigError(f"{name}: {pattern!r} is no regular expression: {error}") from error

    def found(self, text: str) -> bool | None:
        """Whether it matches anywhere in `text`; None where it did not come to an end in time."""
        try:
            return self._pattern.search(text, timeout=LIMIT_S, concurrent=True) is not None
        except TimeoutError:
            self._late(text)
            return None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where it matches, empty matches left out; all of `text` where it takes too long."""
        try:
            places = [
                match.span()
                for match in self._pattern.finditer(text, timeout=LIMIT_S, concurrent=True)
            ]
        except TimeoutError:
            self._late(text)
            places = [(0, len(text))]
        yield from (place for place in places if place[0] < place[1])

    def _late(self, text: str) -> None:
        logger.warning(
            "%s: the pattern took more than %s s on %d characters; simplify it",
            self.name,
            LIMIT_S,
            len(text),
        )

"""Regular expressions of the config, run so that none can hold up a request.

Python's own `re` has no time limit, and one pattern such as `(a+)+$` takes longer than anybody
waits on a text made for it. These go through the `regex` package, which LiteLLM's tokenizer brings
along: it takes a limit, and lets other threads run meanwhile.
"""

import logging
from collections.abc import Iterator
from typing import Any

from ...router.errors import ConfigError, require_extra

LIMIT_S = 0.25  # for one pattern on one text

logger = logging.getLogger(__name__)


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

"""More kinds of sensitive data, by the pattern recognizers of Microsoft's Presidio (an extra).

The kinds are named as Presidio names them: IBAN_CODE, US_SSN, DE_TAX_ID, IP_ADDRESS, CRYPTO and
some eighty more. The built-in kinds stay with the built-in patterns. Only recognizers run that tell
their kind by pattern and checksum, without a language model, a download or any other network call:
PERSON or LOCATION need a spaCy model and are refused, as are e-mail addresses and URLs in
Presidio's way, which fetches a list of domains.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import ConfigError, require_extra
from ...providers.pii import Found
from ..config.settings import KINDS
from .sensitivity import RegexDetector

SURE = 0.4  # Presidio's own score; below it a pattern alone says too little
_PIECE, _OVERLAP = 20_000, 500  # characters; longer than any kind that Presidio tells by pattern
_FETCHING = frozenset({"EMAIL_ADDRESS", "URL"})


class PresidioDetector:
    """Finds `kinds` of three sorts: the built-in ones, own `patterns`, and Presidio's.

    Raises ConfigError for a kind that none of them tells, MissingExtraError without the extra
    `presidio`.
    """

    def __init__(self, kinds: Iterable[str], patterns: Mapping[str, str]) -> None:
        wanted = list(kinds)
        own = [kind for kind in wanted if kind in KINDS or kind in patterns]
        self._own = RegexDetector(own, patterns)
        self._recognizers: list[tuple[str, Any]] = []
        known = _recognizers()
        for kind in wanted:
            if kind in own:
                continue
            if kind not in known:
                raise ConfigError(
                    f"sensitivity.actions: Presidio tells no kind {kind!r} without a language "
                    f"model or a download; it tells: {', '.join(sorted(known))}",
                    loc=("sensitivity", "actions", kind),
                )
            self._recognizers += [(kind, recognizer) for recognizer in known[kind]]

    def find(self, text: str, /) -> Iterable[Found]:
        """All pieces of the wanted kinds that Presidio's score calls sure enough."""
        found = list(self._own.find(text))
        # In pieces: nobody else runs while Presidio looks at one.
        for start in range(0, max(len(text), 1), _PIECE):
            piece = text[max(0, start - _OVERLAP) : start + _PIECE]
            shift = max(0, start - _OVERLAP)
            for kind, recognizer in self._recognizers:
                for result in recognizer.analyze(piece, [kind], None):
                    if result.score >= SURE:
                        found.append(Found(kind, result.start + shift, result.end + shift))
        return found


def _recognizers() -> dict[str, list[Any]]:
    """Presidio's pattern recognizers by kind, those that can be sure by themselves."""
    presidio: Any = require_extra("presidio_analyzer", "presidio")
    base = presidio.PatternRecognizer
    found: dict[str, list[Any]] = {}
    classes: list[Any] = [
        made
        for made in vars(presidio.predefined_recognizers).values()
        if inspect.isclass(made) and issubclass(made, base) and made is not base
    ]
    for made in classes:
        recognizer = made()
        checks = made.validate_result is not base.validate_result
        if not checks and max(pattern.score for pattern in recognizer.patterns) < SURE:
            continue
        for kind in recognizer.supported_entities:
            if kind not in _FETCHING:
                found.setdefault(kind, []).append(recognizer)
    return found

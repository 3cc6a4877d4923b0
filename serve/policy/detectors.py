"""What finds sensitive data in a text: built-in patterns, a config's, and Presidio's (an extra).

Presidio's kinds are named as it names them: IBAN_CODE, US_SSN, DE_TAX_ID, IP_ADDRESS, CRYPTO and
some eighty more. The built-in kinds stay with the built-in patterns. Only recognizers run that tell
their kind by pattern and checksum, without a language model, a download or any other network call:
PERSON or LOCATION need a spaCy model and are refused, as are e-mail addresses and URLs in
Presidio's way, which fetches a list of domains.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ...errors import ConfigError, require_extra
from ...providers.pii import PATTERNS, Found, Span
from ..config.settings import SensitivitySettings
from .patterns import BuiltInPattern, OwnPattern

SURE = 0.4  # Presidio's own score; below it a pattern alone says too little
_PIECE, _OVERLAP = 20_000, 500  # characters; longer than any kind that Presidio tells by pattern
_FETCHING = frozenset({"EMAIL_ADDRESS", "URL"})


class Detector(Protocol):
    """What finds sensitive data in a text."""

    def find(self, text: str, /) -> Iterable[Found]:
        """All of it, in any order; pieces may overlap."""


def detector_of(settings: SensitivitySettings) -> Detector | None:
    """The detector of the kinds in `actions`; None without actions.

    Raises ConfigError for a kind or a pattern that cannot be used, MissingExtraError where the
    detector is Presidio and its extra is not installed.
    """
    if not settings.actions:
        return None
    if settings.detector == "presidio":
        return PresidioDetector(settings.actions, settings.patterns)
    return RegexDetector(settings.actions, settings.patterns)


class RegexDetector:
    """The built-in patterns and a config's own, those of the kinds that are wanted.

    Raises ConfigError for a kind that is neither, or an own pattern that does not compile.
    """

    def __init__(self, kinds: Iterable[str], patterns: Mapping[str, str]) -> None:
        self._find: dict[str, Callable[[str], Iterable[Span]]] = {}
        for kind in kinds:
            if kind in patterns:
                own = OwnPattern(f"sensitivity.patterns.{kind}", patterns[kind])
                self._find[kind] = own.spans
            elif kind in PATTERNS:
                self._find[kind] = BuiltInPattern(*PATTERNS[kind]).spans
            else:
                raise ConfigError(
                    f"sensitivity.actions: unknown kind {kind!r}; expected one of "
                    f"{', '.join((*PATTERNS, *patterns))}, or give it a pattern"
                )

    def find(self, text: str, /) -> list[Found]:
        """All pieces of the wanted kinds."""
        return [Found(kind, *at) for kind, find in self._find.items() for at in find(text)]


class PresidioDetector:
    """Finds `kinds` of three sorts: the built-in ones, own `patterns`, and Presidio's.

    Raises ConfigError for a kind that none of them tells, MissingExtraError without the extra
    `presidio`.
    """

    def __init__(self, kinds: Iterable[str], patterns: Mapping[str, str]) -> None:
        wanted = list(kinds)
        own = [kind for kind in wanted if kind in PATTERNS or kind in patterns]
        self._own = RegexDetector(own, patterns)
        known = _recognizers()
        unknown = [kind for kind in wanted if kind not in own and kind not in known]
        if unknown:
            raise ConfigError(
                f"sensitivity.actions: Presidio tells no kind {unknown[0]!r} without a language "
                f"model or a download; it tells: {', '.join(sorted(known))}",
                loc=("sensitivity", "actions", unknown[0]),
            )
        self._recognizers = [(k, each) for k in wanted if k not in own for each in known[k]]

    def find(self, text: str, /) -> list[Found]:
        """All pieces of the wanted kinds that Presidio's score calls sure enough."""
        found = self._own.find(text)
        # In pieces: nobody else runs while Presidio looks at one.
        for end in range(_PIECE, len(text) + _PIECE, _PIECE):
            start = max(0, end - _PIECE - _OVERLAP)
            for kind, recognizer in self._recognizers:
                for result in recognizer.analyze(text[start:end], [kind], None):
                    if result.score >= SURE:
                        found.append(Found(kind, result.start + start, result.end + start))
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
        if checks or max(pattern.score for pattern in recognizer.patterns) >= SURE:
            for kind in set(recognizer.supported_entities) - _FETCHING:
                found.setdefault(kind, []).append(recognizer)
    return found

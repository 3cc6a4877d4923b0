"""The language that a text is written in."""

from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError, require_extra

LANGUAGE_CHARS = 2000  # of a text's start, enough to tell its language
LANGUAGE_SURE = 0.3  # below this probability no language is named
# fmt: off
COMMON = (
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sk", "sv", "da", "no", "fi", "hu", "ro",
    "bg", "el", "ru", "uk", "tr", "ar", "he", "fa", "hi", "bn", "ta", "te", "ur", "th", "vi", "id",
    "ms", "ko", "ja", "zh",
)
# fmt: on


class Languages:
    """Tells the language of a text: one of `COMMON` or of `further`, as ISO 639-1 codes.

    Rare languages are candidates only where a rule names them: a short prompt in a common one
    would too often pass for theirs. Safe to share between threads.

    Raises ConfigError for a code that the library does not know, MissingExtraError without the
    extra `serve`.
    """

    def __init__(self, further: Iterable[str] = ()) -> None:
        langid: Any = require_extra("py3langid.langid", "serve")
        # Its model is an archive of plain arrays: nothing is unpickled.
        self._identifier = langid.LanguageIdentifier.from_model_file(
            langid.MODEL_FILE, norm_probs=True
        )
        known = self._identifier.labels
        wrong = sorted(set(further) - set(known))
        if wrong:
            raise ConfigError(
                f"languages: unknown {', '.join(map(repr, wrong))}; expected ISO 639-1 codes, such "
                f"as 'de': {', '.join(sorted(known))}"
            )
        self._identifier.set_languages(sorted({*COMMON, *further}))

    def of(self, text: str) -> str | None:
        """The language of `text`, judged by its start; None where that cannot be told."""
        code, probability = self._identifier.classify(text[:LANGUAGE_CHARS])
        return str(code) if probability >= LANGUAGE_SURE else None

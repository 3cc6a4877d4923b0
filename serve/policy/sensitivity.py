"""Personal and secret data in a request: what kinds it holds, and what is to follow from that.

All that a request sends is looked at: every message and what stands beside it, tools, schemas and
any other keyword, names too. What is in images, audio and files is not seen. `block` refuses the
request, `secure` leaves only the models with the config's tag, `mask` keeps the text out of records
and logs; whatever is found is masked there.

Presidio's kinds are named as it names them, such as IBAN_CODE. Only its recognizers run that tell
their kind by pattern and checksum: others need a spaCy model, or fetch a list of domains.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import require_extra
from ...providers.pii import PATTERNS, Found, cover, masked
from ..config.settings import SensitivitySettings
from ..errors import RefusedError, bad_setting
from ..registry import Model
from ..request import ChatRequest
from ..request_parts import texts
from .patterns import SafePattern

SURE = 0.4  # Presidio's own score; below it a pattern alone says too little
_PIECE, _OVERLAP = 20_000, 500  # characters; longer than any kind that Presidio tells by pattern
_FETCHING = frozenset({"EMAIL_ADDRESS", "URL"})


def _recognizers() -> dict[str, list[Any]]:
    """Presidio's pattern recognizers by kind, those that can be sure by themselves."""
    presidio: Any = require_extra("presidio_analyzer", "presidio")
    base: Any = presidio.PatternRecognizer
    found: dict[str, list[Any]] = {}
    kinds: list[Any] = [
        made
        for made in vars(presidio.predefined_recognizers).values()
        if inspect.isclass(made) and issubclass(made, base) and made is not base
    ]
    for made in kinds:
        recognizer = made()
        checks = made.validate_result is not base.validate_result
        if checks or max(pattern.score for pattern in recognizer.patterns) >= SURE:
            for kind in set(recognizer.supported_entities) - _FETCHING:
                found.setdefault(kind, []).append(recognizer)
    return found


@dataclass(frozen=True, slots=True)
class Screening:
    """`kinds` that were found; `allowed` models; `mask`: text must not be recorded as it is."""

    kinds: tuple[str, ...]
    allowed: tuple[str, ...]
    mask: bool
    outcome: str


class Sensitivity:
    """A config's actions. Safe to share between threads.

    Raises ConfigError for a kind that neither our patterns, nor the config's, nor Presidio tells,
    and MissingExtraError without the extra `presidio` where it is wanted.
    """

    def __init__(self, settings: SensitivitySettings) -> None:
        self._settings = settings
        self.active = bool(settings.actions)  # else nothing is looked for
        self._patterns: dict[str, SafePattern] = {}
        self._recognizers: list[tuple[str, Any]] = []
        presidio = self.active and settings.detector == "presidio"
        own, theirs = settings.patterns, _recognizers() if presidio else {}
        for kind in settings.actions:
            if kind in own:
                self._patterns[kind] = SafePattern(f"sensitivity.patterns.{kind}", own[kind])
            elif kind in PATTERNS:
                self._patterns[kind] = SafePattern.built_in(*PATTERNS[kind])
            elif kind in theirs:
                self._recognizers += [(kind, each) for each in theirs[kind]]
            else:
                known = ", ".join((*PATTERNS, *own, *sorted(theirs)))
                problem = f"there is no kind {kind!r} without a language model or a download; there"
                raise bad_setting("sensitivity.actions", f"{problem} are {known}")

    def find(self, text: str) -> list[Found]:
        """All pieces of the wanted kinds, of Presidio's those that its score calls sure enough."""
        found = [Found(k, *at) for k, each in self._patterns.items() for at in each.spans(text)]
        # In pieces: nobody else runs while Presidio looks at one.
        for end in range(_PIECE, len(text) + _PIECE, _PIECE) if self._recognizers else ():
            start = max(0, end - _PIECE - _OVERLAP)
            for kind, recognizer in self._recognizers:
                for result in recognizer.analyze(text[start:end], [kind], None):
                    if result.score >= SURE:
                        found.append(Found(kind, result.start + start, result.end + start))
        return found

    def judge(
        self, request: ChatRequest, allowed: Sequence[str], models: Mapping[str, Model]
    ) -> Screening:
        """What a request holds and which of the `allowed` models may see it.

        Raises RefusedError (400): `sensitive_data` where it is blocked, `no_secure_model` where no
        allowed model may see it.
        """
        if not self.active:
            return Screening((), tuple(allowed), False, "not looked at")
        text = "\n".join(texts({**request.body, "messages": request.messages}))
        hit = {found.kind for found in self.find(text)}
        actions = {kind: act for kind, act in self._settings.actions.items() if kind in hit}
        kinds, named = tuple(actions), ", ".join(actions)
        if not actions:
            return Screening((), tuple(allowed), False, "nothing found")
        blocked = ", ".join(kind for kind, action in actions.items() if action == "block")
        if blocked:
            message = f"the request holds data that must not be sent to a model: {blocked}; "
            message += "take it out of messages, tools and all other fields"
            raise RefusedError(400, "sensitive_data", message, param="messages")
        if "secure" not in actions.values():
            return Screening(kinds, tuple(allowed), True, f"{named}: masked in records")
        tag = self._settings.tag
        secure = tuple(name for name in allowed if tag in models[name].tags)
        if not secure:
            message = f"the request holds sensitive data ({named}), which only models tagged "
            message += f"{tag!r} may see, and none of these that can take it is: "
            message += ", ".join(allowed)
            raise RefusedError(400, "no_secure_model", message, param="messages")
        return Screening(kinds, secure, True, f"{named}: only models tagged {tag!r}")

    def masked(self, value: Any) -> Any:
        """JSON such as a list of messages, with all text in it masked, before it is written."""
        return masked(value, self.mask)

    def mask(self, text: str) -> str:
        """`text` with every piece of the configured kinds replaced by its kind, as "[email]"."""
        return cover(text, self.find(text)) if self.active else text

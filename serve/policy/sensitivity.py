"""Personal and secret data in a request: what kinds it holds, and what is to follow from that.

Four kinds are known: `email`, `phone`, `card` (a payment card's number that passes Luhn's check)
and `key` (API keys, tokens and private keys of the common forms); the config adds patterns of its
own. All that a request sends is looked at: every message and what stands beside it, tools,
schemas and any other keyword, names too. What is in images, audio and files is not seen.

An action follows from each kind: `block` refuses the request, `secure` leaves only the models with
the config's tag, `mask` keeps the text out of records and logs. Whatever is found is masked there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import ConfigError
from ...providers.pii import PATTERNS, Found, Span, cover, masked
from ..config.settings import SensitivitySettings
from ..errors import RefusedError
from ..registry import Model
from ..request import Asked
from ..texts import texts
from .patterns import BuiltInPattern, OwnPattern


class Detector(Protocol):
    """What finds sensitive data in a text."""

    def find(self, text: str, /) -> Iterable[Found]:
        """All of it, in any order; pieces may overlap."""


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

    def find(self, text: str, /) -> Iterable[Found]:
        """All pieces of the wanted kinds."""
        return [Found(kind, *at) for kind, find in self._find.items() for at in find(text)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kinds` that were found; `allowed` models; `mask`: text must not be recorded as it is."""

    kinds: tuple[str, ...]
    allowed: tuple[str, ...]
    mask: bool
    outcome: str


class Sensitivity:
    """A config's actions. Safe to share between threads.

    Raises ConfigError for a kind or a pattern that cannot be used, MissingExtraError where the
    detector is Presidio and its extra is not installed.
    """

    def __init__(self, settings: SensitivitySettings) -> None:
        self._settings = settings
        self._detector: Detector | None = None
        if not settings.actions:
            return
        if settings.detector == "presidio":
            from .presidio import PresidioDetector  # an extra

            self._detector = PresidioDetector(settings.actions, settings.patterns)
        else:
            self._detector = RegexDetector(settings.actions, settings.patterns)

    @property
    def active(self) -> bool:
        """False where the config has no actions: nothing is looked for."""
        return self._detector is not None

    def judge(self, asked: Asked, allowed: Sequence[str], models: Mapping[str, Model]) -> Verdict:
        """What a request holds and which of the `allowed` models may see it.

        Raises RefusedError (400): `sensitive_data` where it is blocked, `no_secure_model` where no
        allowed model may see it.
        """
        if self._detector is None:
            return Verdict((), tuple(allowed), False, "not looked at")
        text = "\n".join(texts({**asked.body, "messages": asked.messages}))
        hit = {found.kind for found in self._detector.find(text)}
        kinds = tuple(kind for kind in self._settings.actions if kind in hit)
        if not kinds:
            return Verdict((), tuple(allowed), False, "nothing found")
        actions = {self._settings.actions[kind] for kind in kinds}
        named = ", ".join(kinds)
        if "block" in actions:
            blocked = ", ".join(k for k in kinds if self._settings.actions[k] == "block")
            raise RefusedError(
                400,
                "sensitive_data",
                f"the request holds data that must not be sent to a model: {blocked}; take it out "
                "of messages, tools and all other fields",
                param="messages",
            )
        if "secure" not in actions:
            return Verdict(kinds, tuple(allowed), True, f"{named}: masked in records")
        tag = self._settings.tag
        secure = tuple(name for name in allowed if tag in models[name].tags)
        if not secure:
            raise RefusedError(
                400,
                "no_secure_model",
                f"the request holds sensitive data ({named}), which only models tagged {tag!r} may "
                f"see, and none of these that can take it is: {', '.join(allowed)}",
                param="messages",
            )
        return Verdict(kinds, secure, True, f"{named}: only models tagged {tag!r}")

    def masked(self, value: Any) -> Any:
        """JSON such as a list of messages, with all text in it masked.

        To be called before the JSON is written; see `router.personal.masked`.
        """
        return masked(value, self.mask)

    def mask(self, text: str) -> str:
        """`text` with every piece of the configured kinds replaced by its kind, as "[email]"."""
        return text if self._detector is None else cover(text, self._detector.find(text))

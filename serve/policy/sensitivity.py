"""Personal and secret data in a request: what kinds it holds, and what is to follow from that.

Four kinds are known: `email`, `phone`, `card` (a payment card's number that passes Luhn's check)
and `key` (API keys, tokens and private keys of the common forms); the config adds patterns of its
own. All messages are looked at, not only the last one, since all of them are sent. What is in
images is not seen.

An action follows from each kind: `block` refuses the request, `secure` leaves only the models with
the config's tag, `mask` keeps the text out of records and logs. Whatever is found is masked there.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...router.errors import ConfigError
from ...router.text import as_conversation
from ..errors import RefusedError
from ..registry import Model
from ..request import Asked
from ..settings import SensitivitySettings
from .patterns import OwnPattern

Span = tuple[int, int]
_DEEPEST = 50  # levels of JSON

# Each begins where no longer match can have begun and repeats within bounds, so that a text of any
# kind takes time in proportion to its length. In the arguments of tool calls, which are JSON in a
# string, a line's start is the letter of an escape: `_start` looks behind it.


def _start(before: str) -> str:
    """A match starts here: after none of the characters `before`, or after an escape."""
    return rf"(?:(?<![{before}])(?!(?<=\\)[nrt])|(?<=\\[nrt]))"


_EMAIL = re.compile(
    _start(r"\w.%+-") + r"[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
_PHONE = re.compile(
    _start(r"\w.+/-") + r"(?:"
    r"(?:\+|00)[1-9](?:[ ./()-]{0,2}\d){7,14}"  # +49 (30) 1234-567
    r"|(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"  # (212) 555-0123
    r"|(?:0[1-9]\d{0,4}|\(0[1-9]\d{0,4}\))[ /-](?:[ /-]?\d){4,12}"  # 030 1234567, 020 7946 0958
    r")(?!\w|[.-]\d)"
)
_DATE = re.compile(r"\d{1,2}[ ./-]\d{1,2}[ ./-]\d{4}(?!\d)")
# As issuers make them (13 to 19 digits by their first one), in one piece or in groups.
_CARD = re.compile(
    _start(r"\w.-") + r"(?:4\d{12}(?:\d{3}){0,2}|[25]\d{15}|3\d{13,15}|6\d{15,18}"
    r"|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -])\d{6}\2\d{4,5})(?![\w-])"
)
_KEY = re.compile(
    _start(r"\w-") + r"(?:"
    r"sk-[\w-]{20,}|[srp]k_(?:live|test)_\w{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?!\w)"
    r"|gh[pousr]_\w{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}"
    r"|AIza[\w-]{35}|hf_[A-Za-z]{30,}|npm_\w{30,}|gsk_\w{30,}|xai-\w{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"
    r"|-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----(?:[^-]|-(?!-)){0,20000}"
    r"(?:-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----)?"
    r")"
)


@dataclass(frozen=True, slots=True)
class Found:
    """One piece of sensitive data: its kind and where it stands in the text."""

    kind: str
    start: int
    end: int


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
            elif kind in _BUILT_IN:
                self._find[kind] = _BUILT_IN[kind]
            else:
                raise ConfigError(
                    f"sensitivity.actions: unknown kind {kind!r}; expected one of "
                    f"{', '.join((*_BUILT_IN, *patterns))}, or give it a pattern"
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
        whole = as_conversation(asked.messages)
        text = "\n".join((whole.system, whole.history, whole.last))
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
                "of the messages",
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

    def masked(self, value: Any, depth: int = 0) -> Any:
        """JSON such as a list of messages, with all text in it masked; names of keys stay.

        To be called before the JSON is written: in written JSON the escapes hide where things
        start. What is nested too deep to be text of a conversation is left out.
        """
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, Mapping | list | tuple):
            if depth == _DEEPEST:
                return None
            if isinstance(value, Mapping):
                return {key: self.masked(part, depth + 1) for key, part in value.items()}
            return [self.masked(part, depth + 1) for part in value]
        return value

    def mask(self, text: str) -> str:
        """`text` with every piece of the configured kinds replaced by its kind, as "[email]"."""
        if self._detector is None:
            return text
        parts: list[str] = []
        done = 0
        for found in sorted(self._detector.find(text), key=lambda f: (f.start, -f.end)):
            if found.end <= done:
                continue
            # Of two pieces that overlap, the first one's name stands for both.
            if found.start >= done:
                parts += [text[done : found.start], f"[{found.kind}]"]
            done = found.end
        return "".join((*parts, text[done:]))


def _spans(
    pattern: re.Pattern[str], fits: Callable[[str], bool] = lambda _: True
) -> Callable[[str], Iterable[Span]]:
    return lambda text: (m.span() for m in pattern.finditer(text) if fits(m.group()))


def _is_phone(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    return 8 <= digits <= 15 and not _DATE.match(text)


def passes_luhn(number: str) -> bool:
    """Whether the digits of `number` pass Luhn's check (ISO/IEC 7812-1, annex B)."""
    total = 0
    for at, digit in enumerate(int(c) for c in reversed(number) if c.isdigit()):
        doubled = digit * 2 if at % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


_BUILT_IN: Mapping[str, Callable[[str], Iterable[Span]]] = {
    "email": _spans(_EMAIL),
    "phone": _spans(_PHONE, _is_phone),
    "card": _spans(_CARD, passes_luhn),
    "key": _spans(_KEY),
}

"""Personal and secret data in a text: which kinds it holds, where, and the text without them.

Four kinds are known: `email`, `phone`, `card` (a payment card's number that passes Luhn's check)
and `key` (API keys, tokens and private keys of the common forms).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]
DEEPEST = 50  # levels of JSON
_SHORTEST_NUMBER = 10**7  # eight digits, as a phone number has at least

# Each begins where no longer match can have begun and repeats within bounds, so that a text of any
# kind takes time in proportion to its length. In the arguments of tool calls, which are JSON in a
# string, a line's start is the letter of an escape: `_start` looks behind it. A look at the first
# character alone, before that, makes them three times as fast.


def _start(before: str) -> str:
    """A match starts here: after none of the characters `before`, or after an escape."""
    return rf"(?:(?<![{before}])(?!(?<=\\)[nrt])|(?<=\\[nrt]))"


_EMAIL = re.compile(
    _start(r"\w.%+-") + r"[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
_PHONE = re.compile(
    r"(?=[+(\d])" + _start(r"\w.+/-") + r"(?:"
    r"(?:\+|00)[1-9](?:[ ./()-]{0,2}\d){7,14}"  # +49 (30) 1234-567
    r"|(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"  # (212) 555-0123
    r"|(?:0[1-9]\d{0,4}|\(0[1-9]\d{0,4}\))[ /-](?:[ /-]?\d){4,12}"  # 030 1234567, 020 7946 0958
    r")(?!\w|[.-]\d)"
)
_DATE = re.compile(r"\d{1,2}[ ./-]\d{1,2}[ ./-]\d{4}(?!\d)")
# As issuers make them (13 to 19 digits by their first one), in one piece or in groups.
_CARD = re.compile(
    r"(?=[2-6])" + _start(r"\w.-") + r"(?:4\d{12}(?:\d{3}){0,2}|[25]\d{15}|3\d{13,15}|6\d{15,18}"
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


def cover(text: str, pieces: Iterable[Found]) -> str:
    """`text` with every piece replaced by its kind, as "[email]"; pieces may overlap."""
    parts: list[str] = []
    done = 0
    for found in sorted(pieces, key=lambda f: (f.start, -f.end)):
        if found.end <= done:
            continue
        # Of two pieces that overlap, the first one's name stands for both.
        if found.start >= done:
            parts += [text[done : found.start], f"[{found.kind}]"]
        done = found.end
    return "".join((*parts, text[done:]))


def mask(text: str) -> str:
    """`text` with every piece of the four kinds replaced by its kind."""
    return cover(text, [Found(kind, *at) for kind in PATTERNS for at in spans(kind, text)])


def spans(kind: str, text: str) -> list[Span]:
    """Where `text` holds data of one of the four kinds."""
    pattern, fits = PATTERNS[kind]
    return [m.span() for m in pattern.finditer(text) if fits is None or fits(m.group())]


def masked(value: Any, mask: Callable[[str], str] = mask, depth: int = 0) -> Any:
    """JSON such as a list of messages, with all text in it through `mask`, names too, and what of
    numbers `mask` would change.

    To be called before the JSON is written: in written JSON the escapes hide where things start.
    What is nested too deep to be text of a conversation is left out.
    """
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, int) and abs(value) >= _SHORTEST_NUMBER:
        said = str(value)
        hidden = mask(said)
        return value if hidden == said else hidden
    if isinstance(value, Mapping | list | tuple):
        if depth == DEEPEST:
            return None
        if isinstance(value, Mapping):
            return {
                mask(key) if isinstance(key, str) else key: masked(part, mask, depth + 1)
                for key, part in value.items()
            }
        return [masked(part, mask, depth + 1) for part in value]
    return value


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


# Kind -> its pattern, and what a match of it must be besides; None: nothing.
PATTERNS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool] | None]] = {
    "email": (_EMAIL, None),
    "phone": (_PHONE, _is_phone),
    "card": (_CARD, passes_luhn),
    "key": (_KEY, None),
}

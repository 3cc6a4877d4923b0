"""Regular expressions over a request: signals in its text, and patterns that cannot hold it up.

Python's own `re` lets no other thread run while it searches, and has no time limit, though one
pattern such as `(a+)+$` takes longer than anybody waits on a text made for it.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ...errors import require_extra
from ...providers.pii import Span

LIMIT_S = 0.25  # for one pattern on one text
LOOKED_AT = 4000  # characters at either end: some 10 ms, in which no other thread runs

logger = logging.getLogger(__name__)

# English words, and notation that is the same everywhere. They err on the side of silence (a single
# brace is no code, a single number no maths) and take time in proportion to the text: nothing in
# them repeats without a bound and something fixed before.
Signal = Literal["code", "maths", "comparison"]
_PATTERNS: Mapping[Signal, re.Pattern[str]] = {
    "code": re.compile(
        r"```|\bdef \w{1,80}\(|\bclass \w{1,80}[:({]|\bfunction \w{0,80}\(|#include\s?[<\"]"
        r"|\bimport \w{1,80}(?:;|$)|\bfrom [\w.]{1,80} import\b|\bpublic (?:static|class|void)\b"
        r"|\bconsole\.log\(|\bprint\(|\bSELECT\b.{1,200}\bFROM\b|</(?:div|p|html|body|span)>"
        r"|Traceback \(most recent|(?<!\w)O\((?:1|n|log|m)|(?<!\w)(?:c\+\+|c#|html|css)(?![\w+#])"
        r"|\b(?:python|javascript|typescript|java|rust|golang|sql|bash|php|ruby)\b.{0,40}\b(?:code"
        r"|functions?|scripts?|quer(?:y|ies)|class(?:es)?|programs?|methods?|errors?|snippets?)\b"
        r"|\b(?:code|function|script|query|class|program|method|snippet)\b.{0,40}\b(?:in|with|using)"
        r" (?:python|javascript|typescript|java|rust|golang|go|c|sql|bash|php|ruby)\b"
        r"|\b(?:implement|write|code|develop|build|fix|optimi[sz]e)\b.{0,40}\b(?:function|algorithm"
        r"|(?:computer )?program|script that|source code|api|regular expression|regex|sql)\b"
        r"|\b(?:debug|refactor|compile|unit tests?|stack trace|source code|pull request"
        r"|data structures?|time complexity|space complexity)\b",
        re.IGNORECASE | re.MULTILINE,
    ),
    "maths": re.compile(
        r"\\(?:frac|sum|int|sqrt|lim|prod|begin\{(?:equation|align|matrix))|\$[^$\n]{1,200}[\\^_=]"
        r"|\d\s{0,3}[+*/^×÷=]\s{0,3}\d|\b[a-z]\s{0,3}[\^=]\s{0,3}[-+]?\d|\d\s{0,3}[a-z]\s{0,3}[-+=]"
        r"\s{0,3}\d|[∫∑√∂≤≥≠∞π]|\b(?:integrals?|derivatives?|differentiate|equations?|theorem|lemma"
        r"|polynomials?|inequalit(?:y|ies)|remainder when"
        r"|area of (?:a|the)|eigenvalues?|matri(?:x|ces)|logarithm|algebra|calculus|geometry|modulo"
        r"|probability (?:of|that)|prime numbers?|square root|standard deviation|solve for"
        r"|prove that|least common multiple|greatest common divisor)\b",
        re.IGNORECASE,
    ),
    "comparison": re.compile(
        r"\bcompar(?:e|es|ed|ing|isons?)\b|\bversus\b|\bvs\b|\bdifferences? between\b"
        r"|\bpros and cons\b|\badvantages and disadvantages\b|\bsimilarities\b|\btrade-?offs?\b"
        r"|\bcontrast(?:s|ing)?\b|\bbetter than\b"
        r"|\bwhich (?:one |of (?:them|these|the two) )?is (?:better|best|more)\b"
        r"|\bhow do(?:es)? .{1,80} differ\b",
        re.IGNORECASE,
    ),
}

SIGNALS: tuple[Signal, ...] = tuple(_PATTERNS)


def has_signal(signal: Signal, text: str) -> bool:
    """Whether the first or the last `LOOKED_AT` characters of the text show that signal."""
    if len(text) > 2 * LOOKED_AT:
        text = f"{text[:LOOKED_AT]}\n{text[-LOOKED_AT:]}"
    return _PATTERNS[signal].search(text) is not None


class SafePattern:
    """A pattern under the name that logs give it, which lets other threads run while it searches.

    fits: what a match must be besides. limit_s: for one text; None for ours, which take time in
    proportion to it. Raises MissingExtraError without the extra `serve`.
    """

    def __init__(
        self,
        name: str,
        pattern: str,
        *,
        ignore_case: bool = False,
        fits: Callable[[str], bool] | None = None,
        limit_s: float | None = LIMIT_S,
    ) -> None:
        regex = require_extra("regex", "serve")
        self._pattern: Any = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
        self._name = name
        self._fits = fits
        self._how: dict[str, Any] = {"timeout": limit_s, "concurrent": True}

    @classmethod
    def built_in(
        cls, pattern: re.Pattern[str], fits: Callable[[str], bool] | None = None
    ) -> "SafePattern":
        """One of ours, made for Python's own `re`."""
        ignore_case = bool(pattern.flags & re.IGNORECASE)
        return cls("", pattern.pattern, ignore_case=ignore_case, fits=fits, limit_s=None)

    def found(self, text: str) -> bool | None:
        """Whether it matches anywhere in `text`; None where it did not come to an end in time."""
        try:
            return self._pattern.search(text, **self._how) is not None
        except TimeoutError:
            self._warn(text)
            return None

    def spans(self, text: str) -> list[Span]:
        """Where it matches, empty matches left out; all of `text` where it takes too long."""
        try:
            matches = list(self._pattern.finditer(text, **self._how))
        except TimeoutError:
            self._warn(text)
            return [(0, len(text))] if text else []
        fits = self._fits or bool
        return [match.span() for match in matches if match.group() and fits(match.group())]

    def _warn(self, text: str) -> None:
        what = "%s: the pattern took more than %s s on %d characters; simplify it"
        logger.warning(what, self._name, self._how["timeout"], len(text))

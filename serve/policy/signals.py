"""What a prompt's text says about itself: code, maths, a comparison.

Patterns, for English words and for notation that is the same everywhere. They are meant for rules
and err on the side of silence: a single brace is no code, a single number no maths. Each runs in
time proportional to the text: nothing in them repeats without a bound and something fixed before.
Of a long text they look at its head and its tail.
"""

import re
from collections.abc import Mapping
from typing import Literal

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
LOOKED_AT = 4000  # characters at either end: some 10 ms, in which no other thread runs


def has_signal(signal: Signal, text: str) -> bool:
    """Whether the first or the last `LOOKED_AT` characters of the text show that signal."""
    if len(text) > 2 * LOOKED_AT:
        text = f"{text[:LOOKED_AT]}\n{text[-LOOKED_AT:]}"
    return _PATTERNS[signal].search(text) is not None

"""What a prompt asks, apart from how it is wrapped: its stem and its answer options.

Benchmarks reuse each other's questions with other options, other instructions and other examples
around them. Comparing stems finds these; comparing whole prompts does not.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[^\W_]+")

_LABEL = re.compile(r"^[ \t]*[(\[]?([A-Z])[).:\]](?=\s|$)", re.MULTILINE)
_INLINE_LABEL = re.compile(r"(?:\$\s*)?(?:\\\w+\{)?(?<!\w)\(([A-J])\)(?=[\s}~$\\])")

# "Answer: B" with an answer after it belongs to an example before the question that is asked.
_SOLVED = re.compile(r"^[ \t]*(?:the )?(?:correct )?answer(?: is)?[ \t]*:[ \t]*\S.*$", re.I | re.M)
_CUE_LINE = re.compile(
    r"^\W*(?:(?:the |your |final |correct )*(?:answer|solution|response|output)(?: is)?|a)\W*$",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^\s*(?:question|problem|prompt|q)\s*\d*\s*[:.)]\s+", re.IGNORECASE)
# Sentences that tell how to answer, not what; each runs to the end of its sentence or line.
_END = r"(?:[^\n.:]|\.(?=\S)|:(?=\S))*(?:[.:]+|(?=\n)|$)"
_WRAPPERS = tuple(
    re.compile(pattern + _END, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"^\s*the following (?:is a|are) (?:multiple[- ]choice )?questions?",
        r"^\s*(?:this|the following) questions? (?:refers?|is based|are based)",
        r"^\s*you are an? (?:expert|helpful|knowledgeable|intelligent|assistant|AI)\b",
        r"(?:after careful thought,? |please )*\b(?:put|box|write|give|provide|enclose|return)"
        r" you(?:r)?(?: final)? answer\b",
        r"(?:let'?s )?\b(?:please )?think(?:ing)? (?:about (?:it|this) )?step[- ]by[- ]step",
        r"^\s*(?:please )?answer (?:the|this|these) (?:following )?(?:multiple[- ]choice )?"
        r"questions?",
        r"^\s*(?:please )?(?:answer|respond|reply) (?:with|by|using) (?:only |just )?(?:the|a|one)"
        r" (?:letter|option|choice|single)",
        r"^\s*(?:please )?(?:choose|select|pick) (?:the|one) (?:most )?(?:correct|best|right|"
        r"appropriate|letter|answer|option)",
        r"^\s*(?:answer |possible )?(?:options|choices)\s*(?=:)",
    )
)

# Words that a question has whatever it is about.
_GENERIC_WORDS = (
    "a about above all among an and answer answers any are as at be been below best both "
    "but by called can case choose consider considered correct correctly could described "
    "describes description did do does each either example examples except fact false find "
    "following for from given has have here how if in incorrect information into is it its "
    "known least likely may means might more most must no none not of on one ones option "
    "options or other question refers regarding select should so some statement statements "
    "such that the their them then there these they this those to true two untrue used was "
    "were what when where which who whom whose why will with would wrong you your "
)
_GENERIC = frozenset(_GENERIC_WORDS.split())


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt taken apart: `text` is the question as written, `options` the answers offered.

    `stem` is `text` as lower-case words, one space between them; so are the options. `content`
    counts the distinct words of the stem that not every question has.
    """

    text: str
    stem: str
    options: tuple[str, ...]
    content: int

    @property
    def generic(self) -> bool:
        """Whether the stem alone does not identify the question."""
        return self.content < 3 or self.stem.count(" ") < 4

    @property
    def full_text(self) -> str:
        """Question and options as one text, for comparing what a stem alone cannot tell apart."""
        return " ".join((self.text, *self.options))


def normalise(prompt: str) -> str:
    """`prompt` in NFKC, case folded, white space collapsed: what counts as the same prompt."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", prompt).casefold()).strip()


def prompt_key(prompt: str) -> str:
    """SHA-1 of the normalised prompt, 40 hexadecimal digits."""
    data = normalise(prompt).encode("utf-8", "surrogatepass")
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def stem(prompt: str) -> str:
    """The question without options, answer cues, instructions and examples; letters and digits."""
    return parse(prompt).stem


def parse(prompt: str) -> Question:
    """Take `prompt` apart into question and options (see the module's docstring)."""
    text = unicodedata.normalize("NFKC", prompt).replace("\r\n", "\n").strip()
    # The last question: what stands after the last solved example that something stands after.
    ends = [match.end() for match in _SOLVED.finditer(text)]
    end = next((end for end in reversed(ends) if len(_words(text[end:])) >= 4), 0)
    text = _without_cues(text[end:].strip())
    text, options = _split_options(text)
    text = _without_cues(text)
    bare = text
    for wrapper in _WRAPPERS:
        bare = wrapper.sub(" ", bare)
    bare = _LEADING.sub("", bare.strip(), count=1)
    # A prompt that is nothing but an instruction is its own question.
    kept = bare if _WORD.search(bare) else text
    words = _words(kept)
    return Question(
        text=_SPACE.sub(" ", kept).strip(),
        stem=" ".join(words),
        options=tuple(o for o in (" ".join(_words(option)) for option in options) if o),
        content=len(set(filter(is_content, words))),
    )


def is_content(word: str) -> bool:
    """Whether a word of a stem says what the question is about."""
    return len(word) > 1 and word not in _GENERIC


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _without_cues(text: str) -> str:
    lines = text.rstrip().split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or _CUE_LINE.match(lines[-1])):
        lines.pop()
    return "\n".join(lines).strip()


def _split_options(text: str) -> tuple[str, list[str]]:
    """Text before the last run of labels A, B, ... (at the start of lines; else "(A) ... (B)
    ..." within one), and its options. Where nothing stands before them, the text after them."""
    for pattern, at_least in ((_LABEL, 2), (_INLINE_LABEL, 3)):
        run = _last_run(list(pattern.finditer(text)), at_least)
        if not run:
            continue
        ends = [match.start() for match in run[1:]]
        tail = text[run[-1].end() :]
        # The last option is a line; a paragraph after it is not part of it.
        last, _, after = tail.partition("\n\n")
        options = [text[m.end() : end].strip() for m, end in zip(run, ends, strict=False)]
        options.append(last.strip())
        before = text[: run[0].start()].strip()
        return (before, options) if _WORD.search(before) else (after.strip() or text, options)
    return text, []


def _last_run(labels: list[re.Match[str]], at_least: int) -> list[re.Match[str]]:
    best: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for match in labels:
        if match[1] == "A":
            run = [match]
            # A question with a single option ends in it.
            last = match is labels[-1] and match.start() and "\n" not in match.string[match.end() :]
            best = run if at_least == 2 and last else best
        elif run and ord(match[1]) == ord(run[-1][1]) + 1:
            run.append(match)
        best = run if len(run) >= at_least else best
    return best

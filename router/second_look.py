"""A second look: the probability that the weak model's answer falls short, from the answer itself.

    look = SecondLook.of(bundle)                    # None where the bundle has no second look
    look.probability(scorer, score, Answer("Paris", confidence=0.97))

Each signal is a number for one answer:

    prompt      log odds of the router's score
    confidence  log odds of the token probability of the answer, where the provider tells it
    agreement   1 where a second cheap answer says something else (`EXTRACTORS`), 0 where the same
    unknown     1 where the provider does not tell it, 0 where it does
    checks      how many cheap checks the answer fails: empty, a refusal, a call of no tool offered
                or with wrong arguments, no JSON of the schema that was asked for, code that does
                not parse, not what every answer is expected to be (`schema`)
    form        how rarely an answer ended like this one in training: one that breaks off or says
                why it says nothing ends as no other
    answer      a regression on the router's representation of the answer

A logistic regression of some of them gives the probability. A signal that is missing counts as its
mean. All of it lies in `second_look.json` beside the bundle's graphs, hashed as they are.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BundleFormatError, ThriftrouteError
from ..providers.log_probabilities import mean_probability
from .bundle import Bundle
from .extractors import (
    EXTRACTORS,
    broken_code,
    check_pattern,
    extracted,
    final_answer,
    limit_of,
    pattern_of,
    plain_name,
    tool_calls,
)
from .json_schema import asked_json, conforms
from .strict_json import is_finite, parse_json
from .threshold import apply_calibration

if TYPE_CHECKING:
    from .scorer import Scorer

SECOND_LOOK = "second_look.json"
VERSION = 1
SIGNALS = ("prompt", "confidence", "unknown", "agreement", "checks", "form", "answer")

ANSWER_TOKENS = 96  # of an answer that a transformer reads: 160 took 38 ms on a busy machine
_LONGEST_END = 1_000  # characters in which the last words of an answer lie
_LONGEST_REFUSAL = 600  # characters; a longer answer that begins so goes on to answer
_REFUSAL = re.compile(
    r"""^\W*(?:(?:i['’]?m|i\s+am)\s+(?:very\s+|so\s+)?(?:sorry|afraid)\b.{0,80}?\b
            (?:can['’]?t|cannot|can\s?not|won['’]?t|unable|not\s+able)
        |(?:sorry|unfortunately|apologies)\b.{0,80}?\bi\b.{0,20}?
            (?:can['’]?t|cannot|won['’]?t|['’]?m\s+unable|am\s+unable|am\s+not\s+able)
        |i\s+(?:can['’]?t|cannot|won['’]?t|am\s+unable\s+to|am\s+not\s+able\s+to)\s+
            (?:help|assist|comply|answer|provide|fulfil|do\s+that|support|participate|create|write)
        |as\s+an\s+ai(?:\s+language)?(?:\s+model)?\b.{0,80}?\bi\s+(?:can['’]?t|cannot|am\s+unable))""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_WORDS = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look is given: the weak model's answer as text, and what else is known of it.

    confidence: probability of the answer's tokens in (0, 1], or its natural logarithm, at or below
    0; None, 0 and -9999 mean unknown. tokens: instead, each with its natural logarithm, None where
    unknown: with a pattern only those of the final answer count. second: another cheap answer to
    the same prompt. functions, response_format: the tools that were offered and the JSON that was
    asked for, as OpenAI's.
    """

    text: str
    confidence: float | None = None
    second: str | None = None
    functions: Sequence[Mapping[str, Any]] = ()
    tokens: Sequence[tuple[str, float | None]] = ()
    response_format: Any = None


@dataclass(frozen=True, slots=True)
class LookPolicy:
    """When it is looked: below `low` weak without a look, from `high` on strong at once, between
    them strong where the probability of the look is `threshold` or more. Scores in [0, 1]; 2 is a
    threshold that nothing reaches."""

    low: float
    high: float
    threshold: float

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high <= 2 and 0 <= self.threshold <= 2):
            raise ValueError(f"thresholds {asdict(self)}: expected 0 <= low <= high <= 2")


@dataclass(frozen=True)
class SecondLook:
    """What a bundle knows of the weak model's answers; see the module.

    signals: those that count, with `center`, `scale` and `weights` of each, and `bias`.
    extractor: what is compared of two answers, one of EXTRACTORS, or PATTERN and a regular
    expression with one group: then `confidence` too is that of the final answer; or SIMILAR and
    the least cosine of two answers that agree. second: whose
    answers agree or not. answer_weights float64[width], answer_bias: of the signal `answer`; None
    without it. forms: rarity by `ending`, in nats, of those that occur twice or more, and "" for
    all others; None without the signal. schema: a JSON schema of the final answer, or of the whole
    one without a PATTERN, as text; a check of every answer. steps: an isotonic map of the log odds
    (`apply_calibration`), None where cross-validation prefers them as they are. gain: (intercept,
    slope) of the expected gain by the score's log odds and by the look. sample [n, 3]: log odds of
    the score, look and gain of the labelled prompts, each by a fit that has not seen it: policies
    for other prices are chosen on it. tells: the look was shown to say more than the score; else
    the score alone decides. facts: n, seed and the like.
    """

    strong: str
    weak: str
    signals: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    policy: LookPolicy
    sample: tuple[tuple[float, float, float], ...]
    gain: Mapping[str, tuple[float, float]]
    tells: bool
    second: str | None = None
    extractor: str | None = None
    answer_weights: tuple[float, ...] | None = None
    answer_bias: float = 0.0
    forms: Mapping[str, float] | None = None
    schema: str | None = None
    steps: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> "SecondLook | None":
        """The bundle's second look; None where it has none. Raises BundleFormatError."""
        if SECOND_LOOK not in bundle.manifest.files:
            return None
        try:
            look = cls.from_dict(parse_json(bundle.file(SECOND_LOOK).read_bytes()))
            width = bundle.manifest.width
            if look.answer_weights is not None and len(look.answer_weights) != width:
                raise ValueError(f"it weighs {len(look.answer_weights)} columns of {width}")
        except (ThriftrouteError, KeyError, TypeError, ValueError, OSError, RecursionError) as bad:
            problem = f"{SECOND_LOOK} is no second look of version {VERSION}: {bad}"
            raise BundleFormatError(problem, bundle.path) from bad
        return look

    @classmethod
    def from_dict(cls, raw: Any) -> "SecondLook":
        """Raises KeyError, TypeError or ValueError for anything that does not fit."""
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            raise ValueError("another version; upgrade thriftroute")
        if not is_finite(raw):
            raise ValueError("it holds a number that is not finite")
        given = {name: _tuples(value) for name, value in raw.items() if name != "version"}
        given["policy"] = LookPolicy(**raw["policy"])
        look = cls(**given)
        look._check()
        return look

    def _check(self) -> None:
        lengths = {len(self.signals), len(self.center), len(self.scale), len(self.weights)}
        columns = (self.center, self.scale, self.weights, self.answer_weights or (), *self.sample)
        lines = [self.gain["score"], self.gain["look"]]
        numbers = [v for values in (*columns, *lines) for v in values]
        numbers += [self.bias, self.answer_bias, *(self.forms or {}).values()]
        fits = (
            len(lengths) == 1
            and set(self.signals) <= set(SIGNALS)
            and bool(self.sample)
            and all(len(row) == 3 for row in self.sample)
            and all(len(line) == 2 for line in lines)
            and all(isinstance(v, int | float) for v in numbers)
            and all(scale > 0 for scale in self.scale)
            and ("answer" in self.signals) == (self.answer_weights is not None)
            and ("form" in self.signals) == ("" in (self.forms or {}))
        )
        if not fits:
            raise ValueError("its signals and their weights do not fit together")
        apply_calibration(0.0, self.steps)
        if not isinstance(json.loads(self.schema or "{}"), dict | bool):
            raise ValueError("its schema is no JSON schema")
        if pattern := pattern_of(self.extractor):
            check_pattern(pattern)
        elif limit_of(self.extractor) is not None:
            return
        elif "agreement" in self.signals and self.extractor not in EXTRACTORS:
            raise ValueError(f"extractor {self.extractor!r} is not known; upgrade thriftroute")

    def to_json(self) -> bytes:
        """What `of` reads."""
        return json.dumps({"version": VERSION, **asdict(self)}, allow_nan=False).encode()

    def probability(self, scorer: "Scorer", score: float, answer: Answer) -> float:
        """The probability, in (0, 1), that the weak model's answer falls short of the strong's."""
        return float(self.probabilities(scorer, [score], [answer])[0])

    def probabilities(
        self, scorer: "Scorer", scores: npt.ArrayLike, answers: Sequence[Answer]
    ) -> Floats:
        """`probability` of n answers to prompts of these scores: float64[n]."""
        return self.of_columns(self.columns(scorer, scores, answers))

    def columns(
        self, scorer: "Scorer", scores: npt.ArrayLike, answers: Sequence[Answer]
    ) -> dict[str, Floats]:
        """The signals of n answers, float64[n] each, NaN where one is not known."""
        scores = np.asarray(scores, dtype=np.float64)
        columns = signal_columns(scores, answers, self.extractor, self.schema)
        if "agreement" in self.signals and (limit := limit_of(self.extractor)) is not None:
            columns["agreement"] = dissimilar(similarities(scorer, answers), limit)
        if self.forms:
            rare = self.forms[""]
            columns["form"] = np.array([self.forms.get(ending(a.text), rare) for a in answers])
        if "answer" in self.signals and self.answer_weights is not None:
            x = answer_representations(scorer, answers)
            columns["answer"] = x @ np.array(self.answer_weights) + self.answer_bias
        return {name: columns[name] for name in self.signals}

    def of_columns(self, columns: Mapping[str, Floats]) -> Floats:
        """The probability for signals that are known already, float64[n] each."""
        logit = np.full(len(columns["prompt"]), self.bias)
        terms = zip(self.signals, self.center, self.scale, self.weights, strict=True)
        for name, center, scale, weight in terms:
            z = (columns[name] - center) / scale
            logit += weight * np.where(np.isfinite(z), z, 0.0)
        return apply_calibration(logit, self.steps)


def answer_representations(scorer: "Scorer", answers: Sequence[Answer]) -> Floats:
    """The router's representation of the answers' text: float64[n, width]. A transformer reads only
    their heads and tails, so that a look stays quick."""
    texts = [a.text or " " for a in answers]
    return _shortened(scorer).representations(texts).astype(np.float64)


def similarities(scorer: "Scorer", answers: Sequence[Answer]) -> Floats:
    """Cosine of both answers by the router's encoder: float64[n], NaN where there is no second."""
    texts = [text or " " for a in answers for text in (a.text, a.second)]
    embeddings = _shortened(scorer).embeddings(texts).astype(np.float64)
    cosines = (embeddings[::2] * embeddings[1::2]).sum(axis=1)
    return np.where([a.second is None for a in answers], np.nan, cosines)


def dissimilar(cosines: Floats, limit: float) -> Floats:
    """1 where two answers are less alike than `limit`, 0 where not, NaN where unknown."""
    return np.where(np.isnan(cosines), np.nan, cosines < limit)


def _shortened(scorer: "Scorer") -> "Scorer":
    is_quick = scorer.bundle.manifest.kind == "fast"
    return scorer if is_quick else scorer.shortened(ANSWER_TOKENS)


def signal_columns(
    scores: Floats,
    answers: Sequence[Answer],
    extractor: str | None,
    schema: str | None = None,
) -> dict[str, Floats]:
    """All signals but `answer`, float64[n] each, NaN where one is not known."""
    pattern, expected = pattern_of(extractor), None if schema is None else json.loads(schema)
    confidence = np.array([_confidence(_told(a, pattern)) for a in answers])
    columns = {
        "prompt": log_odds(scores),
        "confidence": confidence,
        "unknown": np.isnan(confidence).astype(np.float64),
        "checks": np.array([float(failed_checks(a, expected, pattern)) for a in answers]),
    }
    if extractor is not None and limit_of(extractor) is None:
        columns["agreement"] = np.array([_differs(a, extractor) for a in answers])
    return columns


def ending(text: str) -> str:
    """A hash of the form of an answer's end: its last three words and signs, where all numbers are
    one and all single capitals are."""
    last = _WORDS.findall(text[-_LONGEST_END:])[-3:]
    form = " ".join("0" if w.isdigit() else "A" if len(w) == 1 and w.isupper() else w for w in last)
    return hashlib.sha256(form.lower().encode()).hexdigest()[:12]


def log_odds(probability: npt.ArrayLike) -> Floats:
    """log(p / (1 - p)), p kept a millionth away from 0 and 1: float64, same shape."""
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p) - np.log1p(-p))


def refuses(text: str) -> bool:
    """Whether an answer is a refusal and nothing else."""
    return len(text) <= _LONGEST_REFUSAL and _REFUSAL.match(text) is not None


def failed_checks(answer: Answer, expected: Any = None, pattern: str | None = None) -> int:
    """How many cheap checks an answer fails. expected: a JSON schema of what `pattern` finds, or of
    the whole answer."""
    asks_json, schema = asked_json(answer.response_format)
    calls = tool_calls(answer.text) if answer.functions else []
    failed = int(not answer.text.strip()) + int(refuses(answer.text)) + broken_code(answer.text)
    failed += int(asks_json and not calls and not conforms(answer.text, schema))
    if expected is not None:
        span = (0, None) if pattern is None else final_answer(pattern, answer.text)
        final = "" if span is None else answer.text[slice(*span)].strip()
        failed += not (conforms(final, expected) or conforms(json.dumps(final), expected))
    if not answer.functions:
        return failed
    known = {plain_name(f.get("name")): f.get("parameters") or {} for f in answer.functions}
    return failed + (sum(_failed_call(known, *call) for call in calls) if calls else 1)


def _failed_call(known: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> int:
    if name not in known:
        return 1
    properties, required = known[name].get("properties") or {}, known[name].get("required")
    failed = len(set(required or ()) - set(given)) + len(set(given) - set(properties))
    return failed or int(not conforms(json.dumps(given, default=repr), known[name]))


def _told(answer: Answer, pattern: str | None) -> float | None:
    """The confidence of the answer, or of its final answer where its tokens are known."""
    if not answer.tokens:
        return answer.confidence
    whole = mean_probability([value for _, value in answer.tokens])
    if pattern is None or whole is None:
        return whole
    span = final_answer(pattern, "".join(token for token, _ in answer.tokens))
    inside, at = [], 0
    for token, value in answer.tokens:
        if span is not None and at < span[1] and at + len(token) > span[0] and value is not None:
            inside.append(value)
        at += len(token)
    return math.exp(sum(inside) / len(inside)) if inside else None


def _differs(answer: Answer, extractor: str) -> float:
    """1 where the two answers differ or nothing can be compared, 0 where they agree; NaN where
    there is no second answer."""
    if answer.second is None:
        return math.nan
    first, second = (extracted(extractor, text) for text in (answer.text, answer.second))
    return float(first is None or first != second)


def _confidence(value: float | None) -> float:
    """Log odds of a probability, or of the exponential of a logarithm; NaN where unknown."""
    if value is None or not math.isfinite(value) or value == 0 or value <= -9999 or value > 1:
        return math.nan
    return float(log_odds(math.exp(value) if value < 0 else value))


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value

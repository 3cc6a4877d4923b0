"""A second look: the probability that the weak model's answer falls short, from the answer itself.

    look = SecondLook.of(bundle)                    # None where the bundle has no second look
    look.probability(scorer, score, Answer("Paris", confidence=0.97))

Each signal is a number for one answer:

    prompt      log odds of the router's score
    confidence  log odds of the token probability of the answer, where the provider tells it
    agreement   1 where a second cheap answer says something else (`EXTRACTORS`), 0 where the same
    unknown     1 where the provider does not tell it, 0 where it does
    checks      how many cheap checks the answer fails: empty, refusal, a call of no tool offered
    answer      a regression on the router's representation of the answer

A logistic regression of some of them gives the probability. A signal that is missing counts as its
mean. All of it lies in `second_look.json` beside the bundle's graphs, hashed as they are.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BundleFormatError
from .bundle import Bundle
from .strict_json import is_finite, parse_json
from .threshold import sigmoid

if TYPE_CHECKING:
    from .scorer import Scorer

SECOND_LOOK = "second_look.json"
VERSION = 1
SIGNALS = ("prompt", "confidence", "unknown", "agreement", "checks", "answer")

_LONGEST_CALL = 20_000  # characters; longer text is parsed as no call
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
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_NAMED_LETTER = re.compile(r"answer\s*(?:is|:)?\s*\W{0,4}([A-J])\b", re.IGNORECASE)
_LETTER = re.compile(r"\b([A-J])\b")
_BRACES = re.compile(r"\{.*\}", re.DOTALL)

Floats = npt.NDArray[np.float64]
Call = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look is given: the weak model's answer as text, and what else is known of it.

    confidence: probability of the answer's tokens in (0, 1], or its natural logarithm, at or below
    0; None, 0 and -9999 mean unknown. second: another cheap answer to the same prompt. functions:
    the tools that were offered, as OpenAI's `functions`.
    """

    text: str
    confidence: float | None = None
    second: str | None = None
    functions: Sequence[Mapping[str, Any]] = ()


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
    extractor: what is compared of two answers, one of EXTRACTORS. answer_weights float64[width],
    answer_bias: of the signal `answer`; None without it. second: whose answers agree or not. gain:
    (intercept, slope) of the expected gain by the score's log odds and by the look. sample
    [n, 3]: log odds of the score, look and gain of the labelled prompts, each by a fit that has not
    seen it: policies for other prices are chosen on it. tells: the look was shown to say more than
    the score; else the score alone decides. facts: n, seed and the like.
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
        except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            problem = f"{SECOND_LOOK} is no second look of version {VERSION}: {error}"
            raise BundleFormatError(problem, bundle.path) from error
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
        numbers += [self.bias, self.answer_bias]
        fits = (
            len(lengths) == 1
            and set(self.signals) <= set(SIGNALS)
            and bool(self.sample)
            and all(len(row) == 3 for row in self.sample)
            and all(len(line) == 2 for line in lines)
            and all(isinstance(v, int | float) for v in numbers)
            and all(scale > 0 for scale in self.scale)
            and ("answer" in self.signals) == (self.answer_weights is not None)
        )
        if not fits:
            raise ValueError("its signals and their weights do not fit together")
        if "agreement" in self.signals and self.extractor not in EXTRACTORS:
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
        columns = signal_columns(np.asarray(scores, dtype=np.float64), answers, self.extractor)
        if "answer" in self.signals and self.answer_weights is not None:
            x = answer_representations(scorer, answers)
            columns["answer"] = x @ np.array(self.answer_weights) + self.answer_bias
        return self.of_columns(columns)

    def of_columns(self, columns: Mapping[str, Floats]) -> Floats:
        """The probability for signals that are known already, float64[n] each."""
        logit = np.full(len(columns["prompt"]), self.bias)
        terms = zip(self.signals, self.center, self.scale, self.weights, strict=True)
        for name, center, scale, weight in terms:
            z = (columns[name] - center) / scale
            logit += weight * np.where(np.isfinite(z), z, 0.0)
        return sigmoid(logit)


def answer_representations(scorer: "Scorer", answers: Sequence[Answer]) -> Floats:
    """The router's representation of the answers' text: float64[n, width]."""
    return scorer.representations([a.text or " " for a in answers]).astype(np.float64)


def signal_columns(
    scores: Floats, answers: Sequence[Answer], extractor: str | None
) -> dict[str, Floats]:
    """All signals but `answer`, float64[n] each, NaN where one is not known."""
    confidence = np.array([_confidence(a.confidence) for a in answers])
    columns = {
        "prompt": log_odds(scores),
        "confidence": confidence,
        "unknown": np.isnan(confidence).astype(np.float64),
        "checks": np.array([float(failed_checks(a)) for a in answers]),
    }
    if extractor is not None:
        columns["agreement"] = np.array([_differs(a, extractor) for a in answers])
    return columns


def log_odds(probability: npt.ArrayLike) -> Floats:
    """log(p / (1 - p)), p kept a millionth away from 0 and 1: float64, same shape."""
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p) - np.log1p(-p))


def refuses(text: str) -> bool:
    """Whether an answer is a refusal and nothing else."""
    return len(text) <= _LONGEST_REFUSAL and _REFUSAL.match(text) is not None


def failed_checks(answer: Answer) -> int:
    """How many cheap checks an answer fails."""
    failed = int(not answer.text.strip()) + int(refuses(answer.text))
    if not answer.functions:
        return failed
    calls = tool_calls(answer.text)
    if not calls:
        return failed + 1
    known = {_plain_name(f.get("name")): f.get("parameters") or {} for f in answer.functions}
    for name, given in calls:
        if name not in known:
            failed += 1
            continue
        properties, required = known[name].get("properties") or {}, known[name].get("required")
        failed += len(set(required or ()) - set(given)) + len(set(given) - set(properties))
    return failed


def tool_calls(text: str) -> list[Call]:
    """The calls that a text is, as (name, arguments): Python's f(a=1), also in a list, or JSON with
    names and arguments. Empty where it is none."""
    # Some models escape underscores as Markdown does.
    text = text.strip().removeprefix("```json").strip("`").strip().replace("\\_", "_")
    if len(text) > _LONGEST_CALL:
        return []
    try:
        return [_json_call(item) for item in _listed(json.loads(text))]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    try:
        tree = ast.parse(text, mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _json_call(item: Any) -> Call:
    item = item.get("function", item) if isinstance(item, dict) else item
    if isinstance(item, dict) and len(item) == 1:  # {"name": arguments}
        [(name, given)] = item.items()
    else:
        name, given = item["name"], item["arguments"]
    given = json.loads(given) if isinstance(given, str) else given
    if not isinstance(given, dict):
        raise TypeError("no call")
    return _plain_name(name), given


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise TypeError("no call")
    given = {k.arg or "**": ast.unparse(k.value) for k in node.keywords}
    return _plain_name(ast.unparse(node.func)), {n: _literal(v) for n, v in given.items()}


def _plain_name(name: object) -> str:
    """Providers that take no dots in a tool's name are given underscores."""
    return str(name).replace(".", "_")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return repr(float(found[-1].replace(",", ""))) if found else None


def _letter(text: str) -> str | None:
    found = _NAMED_LETTER.findall(text) or _LETTER.findall(text)
    return found[-1].upper() if found else None


def _json_value(text: str) -> str | None:
    found = _BRACES.search(text)
    try:
        value = json.loads(found.group()) if found else None
    except (ValueError, RecursionError):
        return None
    # Where an answer stands beside its reasoning, the reasoning may differ.
    value = value.get("answer", value) if isinstance(value, dict) else value
    return None if value is None else json.dumps(value, sort_keys=True)


def _call_value(text: str) -> str | None:
    calls = tool_calls(text)
    return json.dumps(sorted(calls, key=repr), sort_keys=True, default=repr) if calls else None


def _plain(text: str) -> str | None:
    return "".join(text.lower().split()) or None


# What of an answer is compared; each gives None where the text has no such thing.
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "number": _number,
    "letter": _letter,
    "json": _json_value,
    "call": _call_value,
    "text": _plain,
}


def _differs(answer: Answer, extractor: str) -> float:
    """1 where the two answers differ or nothing can be compared, 0 where they agree; NaN where
    there is no second answer."""
    if answer.second is None:
        return math.nan
    first, second = (EXTRACTORS[extractor](text) for text in (answer.text, answer.second))
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

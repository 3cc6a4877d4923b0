"""Splits, duplicates and contamination: which prompts may train, and which may judge.

Nothing here drops anything: each function returns masks or indices with counts, and a table's
`subset` does the rest.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .question_text import Question, is_content, parse, prompt_key

__all__ = ["Decontamination", "Dedupe", "decontaminate", "dedupe", "prompt_key", "split_by_hash"]

Embed = Callable[[list[str]], npt.NDArray[np.float32]]
Mask = npt.NDArray[np.bool_]

_GRAM = 5  # words in a word n-gram
_GRAM_CONTENT = 2  # of which these many must not be words that any question has
_MIN_GRAMS = 8  # below this many n-grams, sharing most of them says little
_CONTAINED = 0.7
_TELLING_OPTION = 6  # words: two questions that share so long an option are one
_BLOCK = 1024
_EXAMPLES = 5


def split_by_hash(
    prompts: Sequence[str],
    fractions: Sequence[float],
    seed: int = 0,
    key: Callable[[str], str] = prompt_key,
) -> npt.NDArray[np.int64]:
    """The part, 0 to len(fractions)-1, that each prompt falls into: int64[n].

    A prompt's part depends on its key and the seed alone: equal prompts never part, and adding
    rows moves none. Fractions are met in expectation. `key=stem` also keeps together the same
    question with other options. Raises DataError where the fractions do not sum to 1.
    """
    shares = np.asarray(fractions, np.float64)
    if shares.ndim != 1 or not len(shares) or not (shares >= 0).all():
        raise DataError(f"fractions are {list(fractions)}; expected numbers of 0 or more")
    if abs(float(shares.sum()) - 1.0) > 1e-9:
        raise DataError(f"fractions {list(fractions)} sum to {shares.sum():g}; expected 1")
    draws = np.empty(len(prompts))
    for i, prompt in enumerate(prompts):
        digest = hashlib.sha256(f"{seed}:{key(prompt)}".encode("utf-8", "surrogatepass")).digest()
        draws[i] = int.from_bytes(digest[:8], "big") / 2.0**64
    # The sum of the fractions may round to just below 1: the last part takes what is left.
    parts = np.searchsorted(np.cumsum(shares)[:-1], draws, side="right")
    return parts.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Dedupe:
    """`keep` bool[n] marks the first of each group of duplicates; `first` int64[n] its index.

    `dropped` counts what was dropped by rule: exact (same normalised prompt), stem (same question
    with other options), embedding (near-duplicate).
    """

    keep: Mask
    first: npt.NDArray[np.int64]
    dropped: Mapping[str, int]


def dedupe(
    prompts: Sequence[str],
    *,
    by_stem: bool = True,
    embeddings: npt.NDArray[np.float32] | None = None,
    threshold: float = 0.95,
) -> Dedupe:
    """Find prompts that repeat an earlier one: exactly, by stem, or by cosine >= `threshold`.

    `embeddings` float32[n, d] are of the prompts; without them there is no third rule. A generic
    stem matches only together with its options. Prompts made from one template embed close
    together though they ask different things: near-duplicates must also share their numbers, and
    for templates leave `embeddings` out.

    Tables have already merged prompts that are equal as strings, labels weighted; what is dropped
    here goes with its labels, since two wordings need not have one answer.
    """
    n = len(prompts)
    first = np.arange(n)
    dropped = dict.fromkeys(("exact", "stem", "embedding"), 0)
    questions = [parse(prompt) for prompt in prompts]
    seen: dict[str, int] = {}
    by_question: dict[str, list[int]] = {}
    for i, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        j = seen.setdefault(prompt_key(prompt), i)
        if j != i:
            first[i] = j
            dropped["exact"] += 1
            continue
        if not by_stem:
            continue
        same = by_question.setdefault(question.stem, [])
        first[i] = next((j for j in same if _same_question(question, questions[j])), i)
        if first[i] == i:
            same.append(i)
        else:
            dropped["stem"] += 1
    if embeddings is not None:
        unit = _unit(embeddings, n)
        numbers = [Counter(w for w in q.stem.split() if w.isdigit()) for q in questions]
        for start in range(0, n, _BLOCK):
            close = unit[start : start + _BLOCK] @ unit[: start + _BLOCK].T >= threshold
            for i in range(start, min(start + _BLOCK, n)):
                if first[i] != i:
                    continue
                near = (int(j) for j in np.flatnonzero(close[i - start, :i]) if first[j] == j)
                first[i] = next((j for j in near if numbers[j] == numbers[i]), i)
                dropped["embedding"] += int(first[i] != i)
    return Dedupe(keep=first == np.arange(n), first=first, dropped=dropped)


@dataclass(frozen=True, slots=True)
class Match:
    """A prompt that an evaluation set contains: its index, its source, and the item it matches."""

    index: int
    source: str
    against: str
    rule: str
    prompt: str
    matched: str


@dataclass(frozen=True, eq=False)
class Decontamination:
    """`keep` bool[n] marks prompts that no evaluation set contains.

    `counts[source, evaluation set, rule]` counts dropped prompts; a prompt counts under every
    evaluation set that contains it, by the first rule that finds it there. `totals` and
    `dropped` count prompts of each source, before and out. `examples` are the first few matches
    of each count, to be read by a person.
    """

    keep: Mask
    counts: Mapping[tuple[str, str, str], int]
    totals: Mapping[str, int]
    dropped: Mapping[str, int]
    examples: Sequence[Match] = field(default_factory=tuple)

    def report(self) -> str:
        """A line for each source, and one for each evaluation set and rule below it."""
        lines = []
        for source, total in self.totals.items():
            name = source or "(no source)"
            lines.append(f"{name}: {self.dropped[source]:,} of {total:,} dropped")
            for (of, against, rule), count in self.counts.items():
                lines += [f"  {against}, {rule}: {count:,}"] if of == source else []
        return "\n".join(lines)


def decontaminate(
    prompts: Sequence[str],
    sources: Sequence[str],
    against: Mapping[str, Sequence[str]],
    embed: Embed | None = None,
    threshold: float = 0.95,
) -> Decontamination:
    """Find the prompts that one of the evaluation sets `against` (name -> prompts) contains.

    Rules: `exact`, the same normalised prompt; `stem`, the same question with other options,
    instructions or examples (a generic stem only with half of the options or a long one shared);
    `containment`, at least 70% of the telling word 5-grams of one stem inside the other, for stems
    that have eight; `embedding`, cosine >= `threshold` between the questions' texts, as the
    RouteLLM paper drops its training data (arXiv 2406.18665), run on what the others leave. `embed`
    maps a list of k texts to float32[k, d]; without it the last rule is left out. Blocks of 1,024
    keep memory at the embeddings plus 1,024 x the largest evaluation set.

    `sources` has one name for each prompt. Raises DataError where lengths or shapes differ.
    """
    if len(prompts) != len(sources):
        raise DataError(f"{len(sources)} sources for {len(prompts)} prompts; expected one for each")
    questions = [parse(prompt) for prompt in prompts]
    keys = [prompt_key(prompt) for prompt in prompts]
    embedded = None if embed is None else _Embedded(questions, embed, threshold)
    keep = np.ones(len(prompts), np.bool_)
    counts: Counter[tuple[str, str, str]] = Counter()
    examples: list[Match] = []
    for name, evaluation in against.items():
        known = _EvaluationSet(evaluation)
        hits = ((i, known.find(keys[i], question)) for i, question in enumerate(questions))
        found = {i: hit for i, hit in hits if hit is not None}
        if embedded is not None:
            left = [i for i in range(len(prompts)) if i not in found]
            near = embedded.matches(left, known.questions)
            found |= {i: ("embedding", j) for i, j in near.items()}
        for i, (rule, j) in sorted(found.items()):
            keep[i] = False
            counts[sources[i], name, rule] += 1
            if counts[sources[i], name, rule] <= _EXAMPLES:
                examples.append(Match(i, sources[i], name, rule, prompts[i], evaluation[j]))
    totals = Counter(sources)
    out = Counter(source for source, kept in zip(sources, keep, strict=True) if not kept)
    return Decontamination(
        keep=keep,
        counts=dict(sorted(counts.items())),
        totals=dict(totals),
        dropped={source: out[source] for source in totals},
        examples=examples,
    )


class _EvaluationSet:
    def __init__(self, prompts: Sequence[str]) -> None:
        self.questions = [parse(prompt) for prompt in prompts]
        self._exact: dict[str, int] = {}
        self._stems: dict[str, list[int]] = {}
        self._vocabulary: dict[str, int] = {}
        grams: list[npt.NDArray[np.uint64]] = []
        for i, (prompt, question) in enumerate(zip(prompts, self.questions, strict=True)):
            self._exact.setdefault(prompt_key(prompt), i)
            self._stems.setdefault(question.stem, []).append(i)
            grams.append(self._grams(question))
        self._sizes = np.array([len(g) for g in grams], np.int64)
        owner = np.repeat(np.arange(len(grams)), self._sizes)
        every = np.concatenate(grams) if grams else np.empty(0, np.uint64)
        order = np.argsort(every, kind="stable")
        self._sorted, self._owner = every[order], owner[order]

    def find(self, key: str, question: Question) -> tuple[str, int] | None:
        """The first rule that finds the question here, and the index of what it matches."""
        if (i := self._exact.get(key)) is not None:
            return "exact", i
        for i in self._stems.get(question.stem, ()):
            if _same_question(question, self.questions[i]):
                return "stem", i
        grams = self._grams(question)
        if len(grams) < _MIN_GRAMS or not len(self._sorted):
            return None
        low = np.searchsorted(self._sorted, grams, "left")
        high = np.searchsorted(self._sorted, grams, "right")
        hits = np.flatnonzero(high > low)
        if not len(hits):
            return None
        owners = np.concatenate([self._owner[low[h] : high[h]] for h in hits])
        items, shared = np.unique(owners, return_counts=True)
        share = shared / np.minimum(self._sizes[items], len(grams))
        share[self._sizes[items] < _MIN_GRAMS] = 0.0
        best = int(np.argmax(share))
        return ("containment", int(items[best])) if share[best] >= _CONTAINED else None

    def _grams(self, question: Question) -> npt.NDArray[np.uint64]:
        """Hashes of the distinct word n-grams of a stem; a word has a number of its own.

        Only n-grams with enough content: "which of the following is an example of" is in many.
        """
        vocabulary = self._vocabulary
        words = question.stem.split()
        ids = np.fromiter(
            (vocabulary.setdefault(w, len(vocabulary) + 1) for w in words), np.uint64, len(words)
        )
        count = len(ids) - _GRAM + 1
        if count <= 0:
            return np.empty(0, np.uint64)
        telling = np.fromiter(map(is_content, words), np.int64, len(words))
        hashed, content = np.zeros(count, np.uint64), np.zeros(count, np.int64)
        for offset in range(_GRAM):
            # Multiplying by an odd constant wraps around modulo 2**64, which mixes well enough.
            hashed = (hashed + ids[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
            content += telling[offset : offset + count]
        return np.unique(hashed[content >= _GRAM_CONTENT])


class _Embedded:
    """Cosine matches between questions; each question is embedded once, when it is first needed."""

    def __init__(self, questions: list[Question], embed: Embed, threshold: float) -> None:
        self._questions, self._embed, self._threshold = questions, embed, threshold
        self._known: dict[int, npt.NDArray[np.float32]] = {}

    def matches(self, index: list[int], others: list[Question]) -> dict[int, int]:
        """The nearest of the others for each of these questions that is near enough."""
        if not index or not others:
            return {}
        matrix = self._unit(others)
        if new := [i for i in index if i not in self._known]:
            vectors = self._unit([self._questions[i] for i in new])
            self._known.update(zip(new, vectors, strict=True))
        found: dict[int, int] = {}
        for start in range(0, len(index), _BLOCK):
            block = index[start : start + _BLOCK]
            similar = np.stack([self._known[i] for i in block]) @ matrix.T
            best = similar.argmax(axis=1).tolist()
            near = similar.max(axis=1) >= self._threshold
            found |= {i: j for i, j, is_near in zip(block, best, near, strict=True) if is_near}
        return found

    def _unit(self, questions: list[Question]) -> npt.NDArray[np.float32]:
        # Generic questions all embed alike; with their options they do not.
        texts = [q.full_text if q.generic else q.text for q in questions]
        return _unit(self._embed(texts), len(texts))


def _same_question(a: Question, b: Question) -> bool:
    """Whether two questions of equal stems are one question."""
    if not a.stem:  # symbols only, of which the stem keeps nothing
        return False
    if not a.generic:
        return True
    if a.options and b.options:
        shared = set(a.options) & set(b.options)
        telling = any(option.count(" ") + 1 >= _TELLING_OPTION for option in shared)
        return telling or 2 * len(shared) >= min(len(set(a.options)), len(set(b.options)))
    # Without options on one side nothing is left to tell them apart but the words themselves.
    return bool(a.options) == bool(b.options) or a.content >= 2


def _unit(vectors: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim != 2 or len(matrix) != n:
        raise DataError(f"embeddings have shape {matrix.shape}; expected ({n}, dimensions)")
    norm = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = matrix / np.maximum(norm, 1e-12)
    return unit

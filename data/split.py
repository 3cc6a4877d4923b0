"""Splits, duplicates and contamination: which prompts may train, and which may judge.

Nothing here drops anything: each function returns masks or indices with counts.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


def split_by_hash(
    prompts: Sequence[str],
    fractions: Sequence[float],
    seed: int = 0,
    key: Callable[[str], str] = prompt_key,
) -> npt.NDArray[np.int64]:
    """The part, 0 to len(fractions)-1, that each prompt falls into: int64[n].

    It depends on the prompt's key and the seed alone: equal prompts never part, and adding rows
    moves none. `key=stem` also keeps together the same question with other options. Raises
    DataError.
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
    `dropped` counts by rule: exact, stem (same question, other options), embedding."""

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
    stem matches only together with its options. Prompts of one template embed close together though
    they ask different things: near-duplicates must share their numbers too. What is dropped goes
    with its labels, since two wordings need not have one answer.
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


@dataclass(frozen=True, eq=False)
class Decontamination:
    """`keep` bool[n] marks prompts that no evaluation set contains.

    `counts[source, evaluation set, rule]`: a prompt counts under every set that contains it, by the
    first rule that finds it there. `totals`, `dropped`: prompts of each source, before and out.
    """

    keep: Mask
    counts: Mapping[tuple[str, str, str], int]
    totals: Mapping[str, int]
    dropped: Mapping[str, int]


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
    that have eight; `embedding`, cosine >= `threshold` between the questions' texts (as in the
    RouteLLM paper, arXiv 2406.18665), run on what the others leave. `embed` maps k texts to
    float32[k, d]. `sources` has one name for each prompt. Raises DataError (lengths, shapes).
    """
    if len(prompts) != len(sources):
        raise DataError(f"{len(sources)} sources for {len(prompts)} prompts; expected one for each")
    questions = [parse(prompt) for prompt in prompts]
    asked = [(prompt_key(p), q, _grams(q)) for p, q in zip(prompts, questions, strict=True)]
    found: dict[str, dict[int, str]] = {}  # prompt -> the first rule that finds it, by set
    others: dict[str, list[Question]] = {}
    for name, evaluation in against.items():
        others[name] = [parse(prompt) for prompt in evaluation]
        rule_of = _rules(evaluation, others[name])
        rules = ((i, rule_of(*each)) for i, each in enumerate(asked))
        found[name] = {i: rule for i, rule in rules if rule is not None}
    if embed is not None:
        left = {name: [i for i in range(len(prompts)) if i not in found[name]] for name in found}
        needed = sorted({i for name in left if others[name] for i in left[name]})
        vectors = _vectors([questions[i] for i in needed], embed)
        row = {i: at for at, i in enumerate(needed)}
        for name in (name for name in found if others[name]):
            matrix = _vectors(others[name], embed)
            for start in range(0, len(left[name]), _BLOCK):
                block = np.array(left[name][start : start + _BLOCK])
                similar = vectors[[row[i] for i in block.tolist()]] @ matrix.T
                near = block[similar.max(axis=1) >= threshold]
                found[name] |= dict.fromkeys(near.tolist(), "embedding")
    keep = np.ones(len(prompts), np.bool_)
    counts: Counter[tuple[str, str, str]] = Counter()
    for name, rules_found in found.items():
        keep[list(rules_found)] = False
        counts.update((sources[i], name, rule) for i, rule in rules_found.items())
    totals = Counter(sources)
    out = Counter(source for source, kept in zip(sources, keep, strict=True) if not kept)
    return Decontamination(
        keep=keep,
        counts=dict(sorted(counts.items())),
        totals=dict(totals),
        dropped={source: out[source] for source in totals},
    )


def _rules(
    prompts: Sequence[str], questions: Sequence[Question]
) -> Callable[[str, Question, set[int]], str | None]:
    """The first rule that finds a key, question or n-grams among those of an evaluation set."""
    exact = {prompt_key(prompt) for prompt in prompts}
    stems: dict[str, list[Question]] = defaultdict(list)
    owners: dict[int, list[int]] = defaultdict(list)  # those that have an n-gram
    sizes = []
    for i, question in enumerate(questions):
        stems[question.stem].append(question)
        sizes.append(len(grams := _grams(question)))
        for gram in grams if len(grams) >= _MIN_GRAMS else ():
            owners[gram].append(i)

    def rule_of(key: str, question: Question, grams: set[int]) -> str | None:
        if key in exact:
            return "exact"
        if any(_same_question(question, other) for other in stems.get(question.stem, ())):
            return "stem"
        if len(grams) < _MIN_GRAMS:
            return None
        shared = Counter(i for gram in grams for i in owners.get(gram, ()))
        inside = (n / min(sizes[i], len(grams)) for i, n in shared.items())
        return "containment" if max(inside, default=0.0) >= _CONTAINED else None

    return rule_of


def _grams(question: Question) -> set[int]:
    """Hashes of the word n-grams of a stem that tell something: "which of the following is an
    example of" is in many."""
    words = question.stem.split()
    telling = [is_content(word) for word in words]
    starts = range(len(words) - _GRAM + 1)
    told = (i for i in starts if sum(telling[i : i + _GRAM]) >= _GRAM_CONTENT)
    return {hash(tuple(words[i : i + _GRAM])) for i in told}


def _vectors(questions: Sequence[Question], embed: Embed) -> npt.NDArray[np.float32]:
    # Generic questions all embed alike; with their options they do not.
    texts = [q.full_text if q.generic else q.text for q in questions]
    return _unit(embed(texts), len(texts)) if texts else np.empty((0, 0), np.float32)


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

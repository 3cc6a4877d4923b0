"""Pairs of a strong and a weak model, out of a table of many models on the same prompts.

matrix = model_matrix(read_rows("zeroeval_gsm8k.parquet"))
chosen = choose_pairs(matrix, 20)
chosen = vote_pairs(read_rows("mtbench_pairs.parquet"))
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..data.schema import Comparison, Message, Messages, Row
from ..errors import EvaluationError
from ..eval.bootstrap import EQUAL
from ..eval.metrics import Floats

Ints = npt.NDArray[np.int64]
Inputs = list[str | list[Message]]

MIN_GAP = 0.05
MIN_PROMPTS = 30
# Standard errors between a gap and 0. Below 3, resamples of the prompts would not agree on which of
# the two is the strong model, and APGR would divide by next to nothing.
MIN_Z = 3.0


@dataclass(frozen=True, eq=False)
class ModelMatrix:
    """Scores of M models on n distinct prompts: `scores` float64[n, M], NaN where there is none.
    `messages[i]` replaces prompt i where the whole conversation is scored, as in a Benchmark."""

    prompts: list[str]
    models: tuple[str, ...]
    scores: Floats
    messages: list[Messages | None] | None = None

    def column(self, model: str) -> Floats:
        """Scores of a model, float64[n], NaN where it has none. Raises EvaluationError."""
        if model not in self.models:
            raise EvaluationError(
                f"no score of the model {model!r}; there are: {', '.join(self.models)}"
            )
        return self.scores[:, self.models.index(model)]


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair on the k prompts that both answered: `index` int64[k] into the prompts; rewards
    `strong_score`, `weak_score` float64[k]. The strong model is the one with the higher mean."""

    strong: str
    weak: str
    index: Ints
    strong_score: Floats
    weak_score: Floats

    @property
    def gap(self) -> float:
        """Mean reward of strong minus that of weak."""
        return float(self.strong_score.mean() - self.weak_score.mean())

    @property
    def error(self) -> float:
        """Standard error of the gap over prompts; infinite for a single prompt."""
        if len(self.index) < 2:
            return math.inf
        spread = float(np.std(self.strong_score - self.weak_score, ddof=1))
        return spread / math.sqrt(len(self.index))


@dataclass(frozen=True, eq=False)
class PairSet:
    """Chosen pairs over `prompts`. `eligible` counts those that the choice was made from."""

    prompts: list[str]
    pairs: tuple[Pair, ...]
    eligible: int
    messages: list[Messages | None] | None = None

    def inputs(self, pair: Pair) -> Inputs:
        """What a router scores for a pair: prompts, or messages where there are any."""
        said = self.messages or [None] * len(self.prompts)
        return [self.prompts[i] if (m := said[i]) is None else list(m) for i in pair.index.tolist()]


def model_matrix(rows: Iterable[Row]) -> ModelMatrix:
    """Rows in the scores format to a matrix, prompts and models in the order they first occur.

    Several scores of a model on a prompt are averaged by their weight. Raises EvaluationError for
    comparisons (see `vote_pairs`), or without rows.
    """
    prompt_id: dict[str, int] = {}
    model_id: dict[str, int] = {}
    messages: dict[int, Messages] = {}
    sums: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if isinstance(row, Comparison):
            raise EvaluationError(
                "a row compares two models; a matrix of scores needs one score for each model: "
                "use vote_pairs for comparisons"
            )
        i = prompt_id.setdefault(row.prompt, len(prompt_id))
        if row.messages is not None:
            messages.setdefault(i, row.messages)
        at = sums.setdefault((i, model_id.setdefault(row.model, len(model_id))), [0.0, 0.0])
        at[0] += row.weight * row.score
        at[1] += row.weight
    if not sums:
        raise EvaluationError("no rows: nothing to make pairs of")
    scores = np.full((len(prompt_id), len(model_id)), np.nan)
    for (i, j), (total, weight) in sums.items():
        scores[i, j] = total / weight
    said = [messages.get(i) for i in range(len(prompt_id))] if messages else None
    return ModelMatrix(list(prompt_id), tuple(model_id), scores, said)


def choose_pairs(
    matrix: ModelMatrix,
    count: int = 20,
    min_gap: float = MIN_GAP,
    seed: int = 0,
    *,
    min_prompts: int = MIN_PROMPTS,
    min_z: float = MIN_Z,
) -> PairSet:
    """`count` pairs of a matrix whose strong model's mean is at least `min_gap` above the weak's.

    Means are over the prompts that both answered, at least `min_prompts`; the gap must also be
    `min_z` standard errors above 0. The choice is spread: eligible pairs are cut into bands of gap,
    each of these into bands of the strong model's ability (its mean), about as many, and one pair
    is drawn at random from every cell. The same arguments give the same pairs. Raises
    EvaluationError where fewer than `count` are eligible.
    """
    known = ~np.isnan(matrix.scores)
    found = []
    for a in range(len(matrix.models)):
        for b in range(a + 1, len(matrix.models)):
            index = np.flatnonzero(known[:, a] & known[:, b])
            if not len(index):
                continue
            first, second = matrix.scores[index, a], matrix.scores[index, b]
            strong, weak = (a, b) if first.mean() >= second.mean() else (b, a)
            found.append(
                Pair(
                    matrix.models[strong],
                    matrix.models[weak],
                    index,
                    matrix.scores[index, strong],
                    matrix.scores[index, weak],
                )
            )
    every = PairSet(matrix.prompts, tuple(found), len(found), matrix.messages)
    return _chosen(every, count, min_gap, seed, min_prompts=min_prompts, min_z=min_z)


def vote_pairs(
    rows: Iterable[Row],
    count: int | None = None,
    min_gap: float = MIN_GAP,
    seed: int = 0,
    *,
    min_prompts: int = MIN_PROMPTS,
    min_z: float = MIN_Z,
) -> PairSet:
    """Pairs of rows in the comparisons format, all that are eligible where `count` is None.

    The strong model of a pair is the one with more wins (votes by weight; the first by name of
    equals). Its reward on a prompt is its mean share of the votes there, the weak model's what is
    left, so that a gap of 0.05 means a share of 52.5%. Otherwise as `choose_pairs`; raises
    EvaluationError for rows of scores.
    """
    prompt_id: dict[str, int] = {}
    messages: dict[int, Messages] = {}
    wins: dict[tuple[str, str], float] = {}
    sums: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        if not isinstance(row, Comparison):
            raise EvaluationError(
                "a row scores one model; use model_matrix and choose_pairs for scores"
            )
        i = prompt_id.setdefault(row.prompt, len(prompt_id))
        if row.messages is not None:
            messages.setdefault(i, row.messages)
        turned = row.model_a > row.model_b
        key = (row.model_b, row.model_a) if turned else (row.model_a, row.model_b)
        score = 1.0 - row.score_a if turned else row.score_a
        wins[key] = wins.get(key, 0.0) + row.weight * ((score > 0.5) - (score < 0.5))
        at = sums.setdefault(key, {}).setdefault(i, [0.0, 0.0])
        at[0] += row.weight * score
        at[1] += row.weight
    found = []
    for (first, second), votes in sorted(sums.items()):
        index = np.array(sorted(votes), dtype=np.int64)
        share = np.array([votes[i][0] / votes[i][1] for i in index.tolist()])
        ahead = wins[first, second] >= 0
        strong, weak = (first, second) if ahead else (second, first)
        reward = share if ahead else 1.0 - share
        found.append(Pair(strong, weak, index, reward, 1.0 - reward))
    said = [messages.get(i) for i in range(len(prompt_id))] if messages else None
    every = PairSet(list(prompt_id), tuple(found), len(found), said)
    return _chosen(every, count, min_gap, seed, min_prompts=min_prompts, min_z=min_z)


def join_pairs(sets: Sequence[PairSet]) -> PairSet:
    """The pairs of several sets of prompts as one set, so that they are tested together.

    A prompt that is in several is one prompt; the first set's messages stand for it. Raises
    EvaluationError for no set.
    """
    if not sets:
        raise EvaluationError("no sets of pairs to join")
    prompt_id: dict[str, int] = {}
    messages: list[Messages | None] = []
    pairs = []
    for one in sets:
        said = one.messages or [None] * len(one.prompts)
        at = np.empty(len(one.prompts), np.int64)
        for i, prompt in enumerate(one.prompts):
            at[i] = prompt_id.setdefault(prompt, len(prompt_id))
            if at[i] == len(messages):
                messages.append(said[i])
        pairs += [replace(pair, index=at[pair.index]) for pair in one.pairs]
    known = messages if any(m is not None for m in messages) else None
    return PairSet(list(prompt_id), tuple(pairs), sum(one.eligible for one in sets), known)


def _chosen(
    every: PairSet,
    count: int | None,
    min_gap: float,
    seed: int,
    *,
    min_prompts: int,
    min_z: float,
) -> PairSet:
    if min_gap <= 0 or min_z < 0 or min_prompts < 2 or (count is not None and count < 1):
        raise EvaluationError(
            f"pairs: count {count}, min_gap {min_gap:g}, min_z {min_z:g}, min_prompts "
            f"{min_prompts}; they must be at least 1, above 0, at least 0 and at least 2: without "
            "a gap there is nothing to recover"
        )
    eligible = [
        pair
        for pair in every.pairs
        if len(pair.index) >= min_prompts
        # Adding up 0 and 1 in floating point must not decide about a gap that is just met.
        and pair.gap >= max(min_gap, min_z * pair.error) - EQUAL
    ]
    if len(eligible) < (count or 1):
        raise EvaluationError(
            f"pairs: {len(eligible)} of {len(every.pairs)} have {min_prompts} common prompts and a "
            f"gap of {min_gap:g} that is {min_z:g} standard errors from 0, fewer than "
            f"{count or 1}; give more data, a smaller count, or a smaller gap"
        )
    eligible.sort(key=lambda pair: (pair.gap, pair.strong, pair.weak))
    if count is None or count == len(eligible):
        return PairSet(every.prompts, tuple(eligible), len(eligible), every.messages)
    rng = np.random.default_rng(seed)
    bands = max(1, math.isqrt(count))
    picked = []
    # Larger parts come first in both, so that no band has fewer pairs than it must give.
    for band, wanted in zip(
        np.array_split(np.arange(len(eligible)), bands),
        (len(part) for part in np.array_split(np.arange(count), bands)),
        strict=True,
    ):
        by_ability = sorted(
            band.tolist(), key=lambda i: (float(eligible[i].strong_score.mean()), i)
        )
        picked += [int(rng.choice(cell)) for cell in np.array_split(by_ability, wanted)]
    pairs = tuple(eligible[i] for i in sorted(picked))
    return PairSet(every.prompts, pairs, len(eligible), every.messages)

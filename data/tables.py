"""Rows to columns: the tables that training and evaluation work on.

Rows are read once; held are numbers and one string a distinct prompt (benchmarks/memory.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .collect import STRONG, WEAK, Collected, Floats, Ints, Usage
from .schema import Message, Messages, Row

Keep = npt.NDArray[np.bool_] | npt.NDArray[np.integer[Any]]


class _Prompts:
    """What both tables do with their n prompts."""

    prompts: list[str]
    messages: list[Messages | None] | None

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def inputs(self) -> list[str | list[Message]]:
        """What a router scores, n entries: the prompt, or the messages where there are any."""
        if self.messages is None:
            return list(self.prompts)
        both = zip(self.prompts, self.messages, strict=True)
        return [prompt if found is None else list(found) for prompt, found in both]


@dataclass(frozen=True, eq=False)
class PairTable(_Prompts):
    """One ordered pair of models, or of tiers, as columns over n distinct prompts.

    `strong`, `weak` float64[n]: mean score of the tier on the prompt, never NaN.
    `win` float64[n]: share of (strong, weak) comparisons that strong wins strictly; ties count for
    weak. `weight` float64[n]: number of items (scores) or summed row weight (comparisons).
    `input_tokens`, `strong_tokens`, `weak_tokens`, `strong_cost`, `weak_cost` float64[n]: means per
    request, tokens and US dollars, NaN where unknown. `messages[i]` is None where the prompt is the
    whole request; `messages` is None where that holds for all.
    """

    prompts: list[str]
    strong: Floats
    weak: Floats
    win: Floats
    weight: Floats
    source: list[str]
    category: list[str]
    input_tokens: Floats
    strong_tokens: Floats
    weak_tokens: Floats
    strong_cost: Floats
    weak_cost: Floats
    strong_models: tuple[str, ...]
    weak_models: tuple[str, ...]
    messages: list[Messages | None] | None = None
    usage: Usage = field(default_factory=Usage)

    def __len__(self) -> int:
        return len(self.prompts)

    def subset(self, keep: Keep) -> "PairTable":
        """The prompts of a mask bool[n], or of indices in their order. `usage` stays as it was."""
        index = _indices(keep, self.n)
        names = {f.name for f in fields(self)} - {"strong_models", "weak_models", "usage"}
        return replace(self, **{name: _take(getattr(self, name), index) for name in names})


@dataclass(frozen=True, eq=False)
class ComparisonTable(_Prompts):
    """m comparisons of many models over n distinct prompts, the form that mf trains on.

    `prompt_index` int32[m] into `prompts`; `a`, `b` int32[m] into `models`, a of the strong tier
    and b of the weak; `win` float32[m]: 1 where a is strictly better, else 0 (a tie counts for b);
    `strong_score`, `weak_score` float32[m]: the scores of a and b (for a comparison, a's share of
    the votes and its complement); where they are equal, it is a tie.
    `weight` float32[m]. `source`, `category`, `messages` have n entries, as in PairTable.
    """

    prompts: list[str]
    models: tuple[str, ...]
    prompt_index: npt.NDArray[np.int32]
    a: npt.NDArray[np.int32]
    b: npt.NDArray[np.int32]
    win: npt.NDArray[np.float32]
    strong_score: npt.NDArray[np.float32]
    weak_score: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    source: list[str]
    category: list[str]
    messages: list[Messages | None] | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def m(self) -> int:
        """Number of comparisons."""
        return len(self.win)

    def subset(self, keep: Keep) -> "ComparisonTable":
        """The prompts of a mask bool[n], or of indices, with all of their comparisons."""
        index = _indices(keep, self.n)
        new = np.full(self.n, -1, np.int32)
        new[index] = np.arange(len(index), dtype=np.int32)
        rows = np.flatnonzero(new[self.prompt_index] >= 0)
        of_prompts = ("prompts", "source", "category", "messages")
        of_rows = ("a", "b", "win", "strong_score", "weak_score", "weight")
        taken = {name: _take(getattr(self, name), index) for name in of_prompts}
        taken |= {name: getattr(self, name)[rows] for name in of_rows}
        return replace(self, **taken, prompt_index=new[self.prompt_index[rows]])


def pair_table(
    rows: Iterable[Row], strong: Sequence[str] | str, weak: Sequence[str] | str
) -> PairTable:
    """The PairTable of a strong and a weak model, or tiers of them, from either kind of row.

    Scores: strong and weak are compared within an item (category and `item` of the rows); where no
    item of a prompt has both tiers, all scores of the prompt are. Comparisons: those between the
    tiers, in either order; `strong` is then the mean score of the strong side and `weak` its
    complement. Rows of the same prompt are merged: means weighted by the rows' `weight`.

    Raises DataError where a model does not occur (lists those that do, closest first), stands in
    both tiers, or where no prompt has both tiers.
    """
    return _pairs(Collected(rows, strong, weak))


def both_tables(
    rows: Iterable[Row], strong: Sequence[str] | str, weak: Sequence[str] | str
) -> tuple[PairTable, ComparisonTable]:
    """`pair_table`, and the ComparisonTable of all strong x weak comparisons: the same prompts.

    Within each item every strong row meets every weak row, weighing the mean of their weights.
    Nothing is merged: a prompt with ten votes has ten comparisons. Raises as `pair_table` does.
    """
    got = Collected(rows, strong, weak)
    return _pairs(got), _comparisons(got)


def _pairs(got: Collected) -> PairTable:
    n = len(got.prompts)
    s, group_prompt, usage = got.scores()
    v = got.votes()
    is_strong, is_weak = s.tier == STRONG, s.tier == WEAK
    g = len(group_prompt)

    # Rows of a group are sorted by score, strong before weak at equal scores: a running sum of the
    # weak weights gives, for each strong row, the weak weight strictly below it.
    strong_w, weak_w = np.where(is_strong, s.weight, 0.0), np.where(is_weak, s.weight, 0.0)
    total_s, total_w = np.bincount(s.group, strong_w, g), np.bincount(s.group, weak_w, g)
    below = np.cumsum(weak_w) - weak_w - (np.cumsum(total_w) - total_w)[s.group]
    won = np.bincount(s.group, strong_w * below, g) / (total_s * total_w)
    item_weight = (total_s + total_w) / np.bincount(s.group, minlength=g)

    where = np.concatenate((group_prompt, v.prompt))
    row_weight = np.concatenate((item_weight, v.weight))
    weight = np.bincount(where, row_weight, n).astype(np.float64)
    index = np.flatnonzero(weight > 0)
    if not len(index):
        raise DataError(
            f"no prompt has both tiers: none of {usage.rows:,} rows compares strong "
            f"{', '.join(got.strong)} with weak {', '.join(got.weak)}, and no prompt has a score "
            "of each; give data where both answered the same prompts"
        )

    def mean(scores: Floats, votes: Floats) -> Floats:
        total = np.bincount(where, row_weight * np.concatenate((scores, votes)), n)
        # Rounding in the sums must not push a share outside [0, 1].
        return np.clip(total[index] / weight[index], 0.0, 1.0)

    def amount(tier: npt.NDArray[np.bool_], scores: Floats, votes: Floats) -> Floats:
        """Mean of the known values at each prompt, NaN where none is known."""
        at = np.concatenate((s.prompt[tier], v.prompt))
        value = np.concatenate((scores[tier], votes))
        known = ~np.isnan(value)
        count, total = np.bincount(at[known], None, n), np.bincount(at[known], value[known], n)
        found: Floats = np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
        return found[index]

    return PairTable(
        prompts=_take(got.prompts, index),
        strong=mean(np.bincount(s.group, strong_w * s.score, g) / total_s, v.score),
        weak=mean(np.bincount(s.group, weak_w * s.score, g) / total_w, 1.0 - v.score),
        win=mean(won, (v.score > 0.5).astype(np.float64)),
        weight=weight[index],
        source=_take(got.source, index),
        category=_take(got.category, index),
        input_tokens=amount(is_strong | is_weak, s.input_tokens, np.full(len(v), np.nan)),
        strong_tokens=amount(is_strong, s.output_tokens, v.strong_tokens),
        weak_tokens=amount(is_weak, s.output_tokens, v.weak_tokens),
        strong_cost=amount(is_strong, s.cost, v.strong_cost),
        weak_cost=amount(is_weak, s.cost, v.weak_cost),
        strong_models=got.strong,
        weak_models=got.weak,
        messages=got.messages(index),
        usage=usage,
    )


def _comparisons(got: Collected) -> ComparisonTable:
    s, group_prompt, usage = got.scores()
    v = got.votes()
    weak_rows = np.flatnonzero(s.tier == WEAK)
    strong_rows = np.flatnonzero(s.tier == STRONG)
    # Each strong row meets the weak rows of its group, which lie together in `weak_rows`.
    per_group = np.bincount(s.group[weak_rows], minlength=len(group_prompt))
    start = np.cumsum(per_group) - per_group
    meets = per_group[s.group[strong_rows]]
    left = s[np.repeat(strong_rows, meets)]
    within = np.arange(len(left)) - np.repeat(np.cumsum(meets) - meets, meets)
    right = s[weak_rows[start[left.group] + within]]

    index, new = np.unique(np.concatenate((left.prompt, v.prompt)), return_inverse=True)
    columns: dict[str, npt.NDArray[Any]] = {
        "prompt_index": new,
        "a": np.concatenate((left.model, v.strong_model)),
        "b": np.concatenate((right.model, v.weak_model)),
        "win": np.concatenate((left.score > right.score, v.score > 0.5)),
        "strong_score": np.concatenate((left.score, v.score)),
        "weak_score": np.concatenate((right.score, 1.0 - v.score)),
        "weight": np.concatenate(((left.weight + right.weight) / 2, v.weight)),
    }
    kinds: dict[str, Any] = dict.fromkeys(("prompt_index", "a", "b"), np.int32)
    return ComparisonTable(
        prompts=_take(got.prompts, index),
        models=got.models,
        source=_take(got.source, index),
        category=_take(got.category, index),
        messages=got.messages(index),
        usage=usage,
        **{name: values.astype(kinds.get(name, np.float32)) for name, values in columns.items()},
    )


def _indices(keep: Keep, n: int) -> Ints:
    given = np.asarray(keep)
    if given.dtype != np.bool_:
        return given.astype(np.int64)
    if given.shape != (n,):
        raise DataError(f"a mask of shape {given.shape} for a table of {n} prompts")
    return np.flatnonzero(given)


def _take(values: Any, index: Ints) -> Any:
    """The values at these places, of an array, a list or None."""
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[index]
    return [values[i] for i in index.tolist()]

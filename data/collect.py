"""One pass over rows into flat columns, which both table builders share (see tables.py)."""

import difflib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from sys import intern
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .schema import Comparison, Messages, PromptScore, Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Columns = Any  # np.recarray of columns by name, one entry a row: ids are int64, all else float64
STRONG, WEAK = 0, 1
_IDS = 3  # of the columns below, those that count
_SCORES = (
    *("prompt", "item", "model"),
    *("score", "weight", "input_tokens", "output_tokens", "cost"),
)
_VOTES = (
    *("prompt", "strong_model", "weak_model"),
    *("weight", "score", "strong_tokens", "weak_tokens", "strong_cost", "weak_cost"),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What became of the rows given to a table builder; the counts add up to `rows`.

    `same_tier` compare two models of one tier; `unpaired` are scores on an item that the other tier
    was never scored on (`unpaired_prompts` are lost by it, outside the sum).
    """

    rows: int = 0
    used: int = 0
    other_model: int = 0
    same_tier: int = 0
    unpaired: int = 0
    unpaired_prompts: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows: {self.used:,} used, {self.other_model:,} of other models, "
            f"{self.same_tier:,} within one tier, {self.unpaired:,} unpaired "
            f"({self.unpaired_prompts:,} prompts lost)"
        )


class Collected:
    """The columns of all rows that name a model of a tier; `models` is strong + weak. Raises
    DataError where a tier is empty, shares a model, or names one that does not occur."""

    def __init__(
        self, rows: Iterable[Row], strong: Sequence[str] | str, weak: Sequence[str] | str
    ) -> None:
        self.strong, self.weak = _tier(strong, "strong"), _tier(weak, "weak")
        if both := sorted(set(self.strong) & set(self.weak)):
            raise DataError(f"{', '.join(both)} in both tiers; a model is strong or weak, not both")
        self.models = self.strong + self.weak
        self._model_id = {model: i for i, model in enumerate(self.models)}
        self.prompts: list[str] = []
        self.source: list[str] = []
        self.category: list[str] = []
        self._messages: dict[int, Messages] = {}
        self._prompt_id: dict[str, int] = {}
        self._item_id: dict[tuple[str, str], int] = {}
        # Row after row: 64 and 72 bytes each.
        self._scores, self._votes = array("d"), array("d")
        seen: dict[str, None] = {}
        self._rows = self._other = self._same_tier = 0
        for row in rows:
            self._rows += 1
            if isinstance(row, Comparison):
                seen[row.model_a] = seen[row.model_b] = None
                self._add_vote(row)
            else:
                seen[row.model] = None
                self._add_score(row)
        if not self._rows:
            raise DataError("no rows: nothing to build a table from")
        _check_models(self.models, tuple(seen))

    def _prompt(self, row: Row) -> int:
        i = self._prompt_id.get(row.prompt)
        if i is None:
            i = self._prompt_id[row.prompt] = len(self.prompts)
            self.prompts.append(row.prompt)
            self.source.append(intern(row.source))
            self.category.append(intern(row.category))
            if row.messages is not None:
                self._messages[i] = row.messages
        return i

    def _add_score(self, row: PromptScore) -> None:
        model = self._model_id.get(row.model)
        if model is None:
            self._other += 1
            return
        item = 0
        if row.item:
            item = self._item_id.setdefault((row.category, row.item), len(self._item_id) + 1)
        amounts = (row.input_tokens, row.output_tokens, row.cost_usd)
        self._scores.extend((self._prompt(row), item, model, row.score, row.weight))
        self._scores.extend(nan if amount is None else amount for amount in amounts)

    def _add_vote(self, row: Comparison) -> None:
        a, b = self._model_id.get(row.model_a), self._model_id.get(row.model_b)
        if a is None or b is None:
            self._other += 1
            return
        if (a < len(self.strong)) == (b < len(self.strong)):
            self._same_tier += 1
            return
        score = row.score_a
        amounts = (row.tokens_a, row.tokens_b, row.cost_a, row.cost_b)
        if a > b:  # turned so that the strong side is the first
            a, b, score = b, a, 1.0 - score
            amounts = (row.tokens_b, row.tokens_a, row.cost_b, row.cost_a)
        self._votes.extend((self._prompt(row), a, b, row.weight, score))
        self._votes.extend(nan if amount is None else amount for amount in amounts)

    def votes(self) -> Columns:
        """The comparisons between the tiers in their order; `score` is the strong side's."""
        return _columns(self._votes, _VOTES)

    def scores(self) -> tuple[Columns, Ints, Usage]:
        """The scores of every item that both tiers were scored on, sorted by group, score and tier;
        the prompt of each group; and what was not used.

        A `group` is one item of one prompt. Where no item of a prompt has both tiers (items that
        number rows, say), the whole prompt is one. `tier` is STRONG or WEAK.
        """
        s = _columns(self._scores, _SCORES)
        prompt = s.prompt
        tier = (s.model >= len(self.strong)).astype(np.int64)
        n = len(self.prompts)

        def paired(group: Ints, count: int) -> npt.NDArray[np.bool_]:
            has_weak = np.bincount(group, tier, count) > 0
            return has_weak & (np.bincount(group, 1 - tier, count) > 0)

        group_of, group = np.unique(
            prompt * (len(self._item_id) + 1) + s["item"], return_inverse=True
        )
        by_item = paired(group, len(group_of))[group]
        whole = ~(np.bincount(prompt, by_item, n) > 0)[prompt]
        group = np.where(whole, len(group_of) + prompt, group)
        keep = paired(group, len(group_of) + n)[group]

        order = np.flatnonzero(keep)
        # Strong (tier 0) before weak at equal scores: a tie is no win (see tables.pair_table).
        order = order[np.lexsort((tier[order], s.score[order], group[order]))]
        _, first, group = np.unique(group[order], return_index=True, return_inverse=True)
        prompt_kept = np.bincount(prompt, keep, n) > 0
        votes = self.votes().prompt
        usage = Usage(
            rows=self._rows,
            used=len(order) + len(votes),
            other_model=self._other,
            same_tier=self._same_tier,
            unpaired=len(prompt) - len(order),
            unpaired_prompts=len(np.setdiff1d(prompt[~prompt_kept[prompt]], votes)),
        )
        columns = [*(s[name][order] for name in _SCORES), tier[order], group]
        return _record((*_SCORES, "tier", "group"), columns), prompt[order][first], usage

    def messages(self, index: Ints) -> list[Messages | None] | None:
        """Messages of the prompts in `index`; None where every prompt is its whole request."""
        found = [self._messages.get(int(i)) for i in index]
        return found if any(m is not None for m in found) else None


def _columns(values: "array[float]", names: Sequence[str]) -> Columns:
    table = np.asarray(values).reshape(-1, len(names)).T
    return _record(names, [*table[:_IDS].astype(np.int64), *table[_IDS:]])


def _record(names: Sequence[str], columns: Sequence[npt.NDArray[Any]]) -> Columns:
    kinds = [(name, column.dtype) for name, column in zip(names, columns, strict=True)]
    return np.rec.fromarrays(columns, dtype=kinds)


def _tier(names: Sequence[str] | str, tier: str) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    if not given or not all(isinstance(name, str) and name.strip() for name in given):
        raise DataError(f"the {tier} tier is {names!r}; expected one or more model names")
    return given


def _check_models(wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raises DataError unless every wanted model is present; lists those present, closest first."""
    for model in wanted:
        if model in present:
            continue
        low = model.lower()

        def closeness(other: str, low: str = low) -> float:
            inside = low in other.lower() or other.lower() in low
            return difflib.SequenceMatcher(None, low, other.lower()).ratio() + inside

        listed = sorted(present, key=lambda other: (-closeness(other), other))
        more = f" and {len(listed) - 30} more" if len(listed) > 30 else ""
        raise DataError(
            f"no row names the model {model!r}; the data has (closest first): "
            f"{', '.join(listed[:30])}{more}",
            field="model",
        )

"""One pass over rows into flat columns, which both table builders share (see tables.py)."""

import difflib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import nan
from sys import intern

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .schema import Comparison, Messages, Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
STRONG, WEAK = 0, 1


@dataclass(frozen=True, slots=True)
class Usage:
    """What became of the rows given to a table builder; the counts add up to `rows`.

    `used` went into the table; `other_model` name a model of neither tier; `same_tier` compare two
    models of one tier; `unpaired` are scores on an item that the other tier was never scored on
    (`unpaired_prompts` counts the prompts that are lost by it, outside the sum).
    """

    rows: int = 0
    used: int = 0
    other_model: int = 0
    same_tier: int = 0
    unpaired: int = 0
    unpaired_prompts: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows: {self.used:,} used, {self.other_model:,} of other models, "
            f"{self.same_tier:,} within one tier, {self.unpaired:,} unpaired "
            f"({self.unpaired_prompts:,} prompts lost)"
        )


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """Scores of both tiers, sorted by (group, score, tier); every group holds both tiers.

    A group is one item of one prompt. `group` int64[r] counts from 0, `group_prompt` int64[g].
    """

    prompt: Ints
    model: Ints
    tier: Ints
    score: Floats
    weight: Floats
    input_tokens: Floats
    output_tokens: Floats
    cost: Floats
    group: Ints
    group_prompt: Ints


@dataclass(frozen=True, slots=True)
class VoteColumns:
    """Comparisons between the tiers, turned so that the strong side is the first; r entries each.

    `score` float64[r] is the strong side's score.
    """

    prompt: Ints
    strong_model: Ints
    weak_model: Ints
    score: Floats
    weight: Floats
    strong_tokens: Floats
    weak_tokens: Floats
    strong_cost: Floats
    weak_cost: Floats


class Collected:
    """The columns of all rows that name a model of a tier; `models` is strong + weak.

    Raises DataError where a tier is empty, shares a model with the other, or names a model that
    does not occur.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        strong: Sequence[str] | str,
        weak: Sequence[str] | str,
    ) -> None:
        self.strong, self.weak = tier_names(strong, "strong"), tier_names(weak, "weak")
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
        self._scores = [array("i"), array("q"), array("i")]
        self._score_values = [array("d") for _ in range(5)]
        self._votes = [array("i") for _ in range(3)]
        self._vote_values = [array("d") for _ in range(6)]
        seen: dict[str, None] = {}
        self._rows = self._other = self._same_tier = 0
        for row in rows:
            self._rows += 1
            if isinstance(row, Comparison):
                seen[row.model_a] = seen[row.model_b] = None
                self._add_vote(row)
                continue
            seen[row.model] = None
            model = self._model_id.get(row.model)
            if model is None:
                self._other += 1
                continue
            item = 0
            if row.item:
                item = self._item_id.setdefault((row.category, row.item), len(self._item_id) + 1)
            for column, number in zip(self._scores, (self._prompt(row), item, model), strict=True):
                column.append(number)
            for values, value in zip(
                self._score_values,
                (
                    row.score,
                    row.weight,
                    row.input_tokens,
                    row.output_tokens,
                    row.cost_usd,
                ),
                strict=True,
            ):
                values.append(nan if value is None else value)
        if not self._rows:
            raise DataError("no rows: nothing to build a table from")
        check_models(self.models, tuple(seen))

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

    def _add_vote(self, row: Comparison) -> None:
        a, b = self._model_id.get(row.model_a), self._model_id.get(row.model_b)
        if a is None or b is None:
            self._other += 1
            return
        n_strong = len(self.strong)
        if (a < n_strong) == (b < n_strong):
            self._same_tier += 1
            return
        values = [row.score_a, row.tokens_a, row.tokens_b, row.cost_a, row.cost_b]
        if b < n_strong:
            a, b = b, a
            values = [
                1.0 - row.score_a,
                row.tokens_b,
                row.tokens_a,
                row.cost_b,
                row.cost_a,
            ]
        for column, number in zip(self._votes, (self._prompt(row), a, b), strict=True):
            column.append(number)
        for column_of, value in zip(self._vote_values, (row.weight, *values), strict=True):
            column_of.append(nan if value is None else value)

    def votes(self) -> VoteColumns:
        """The comparisons between the tiers, in the order in which they came."""
        prompt, strong, weak = (np.asarray(column, np.int64) for column in self._votes)
        weight, score, *rest = (np.asarray(column, np.float64) for column in self._vote_values)
        return VoteColumns(prompt, strong, weak, score, weight, *rest)

    def scores(self) -> tuple[ScoreColumns, Usage]:
        """The scores of every item that both tiers were scored on, and what was not used.

        Where no item of a prompt has both tiers (items that number rows, say), the whole prompt is
        taken as one item.
        """
        prompt, item, model = (np.asarray(column, np.int64) for column in self._scores)
        values = [np.asarray(column, np.float64) for column in self._score_values]
        tier = (model >= len(self.strong)).astype(np.int64)
        n = len(self.prompts)

        def paired(group: Ints, count: int) -> npt.NDArray[np.bool_]:
            has_weak = np.bincount(group, tier, count) > 0
            return has_weak & (np.bincount(group, 1 - tier, count) > 0)

        group_of, group = np.unique(prompt * (len(self._item_id) + 1) + item, return_inverse=True)
        by_item = paired(group, len(group_of))[group]
        prompt_has_item = np.bincount(prompt, by_item, n) > 0
        whole = ~prompt_has_item[prompt]
        group = np.where(whole, len(group_of) + prompt, group)
        keep = paired(group, len(group_of) + n)[group]

        order = np.flatnonzero(keep)
        # Strong (tier 0) before weak at equal scores: a tie is no win (see tables.pair_table).
        order = order[np.lexsort((tier[order], values[0][order], group[order]))]
        _, first, group = np.unique(group[order], return_index=True, return_inverse=True)
        prompt_kept = np.bincount(prompt, keep, n) > 0
        lost = np.unique(prompt[~prompt_kept[prompt]])
        votes = len(self._votes[0])
        usage = Usage(
            rows=self._rows,
            used=len(order) + votes,
            other_model=self._other,
            same_tier=self._same_tier,
            unpaired=len(prompt) - len(order),
            unpaired_prompts=len(np.setdiff1d(lost, np.asarray(self._votes[0], np.int64))),
        )
        score, weight, input_tokens, output_tokens, cost = (value[order] for value in values)
        columns = ScoreColumns(
            prompt[order],
            model[order],
            tier[order],
            score,
            weight,
            input_tokens,
            output_tokens,
            cost,
            group,
            prompt[order][first],
        )
        return columns, usage

    def messages(self, index: Ints) -> list[Messages | None] | None:
        """Messages of the prompts in `index`; None where every prompt is its whole request."""
        found = [self._messages.get(int(i)) for i in index]
        return found if any(m is not None for m in found) else None


def tier_names(names: Sequence[str] | str, tier: str) -> tuple[str, ...]:
    """A tier as a tuple of distinct names. Raises DataError where it is empty."""
    given = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    if not given or not all(isinstance(name, str) and name.strip() for name in given):
        raise DataError(f"the {tier} tier is {names!r}; expected one or more model names")
    return given


def check_models(wanted: Sequence[str], present: Sequence[str]) -> None:
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

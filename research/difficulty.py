"""How hard prompts are, from the scores of many models.

One pair's result on a prompt is one toss of two coins; the mean over thirty models is a measurement
(Cronbach's alpha of .9 and more on most tasks of the public sources). It is also what carries over:
which of two models wins depends on the pair and on how hard the task is for both, while harder is
harder for all.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data.schema import Messages, PromptScore, Row
from ..data.tables import PairTable
from ..errors import DataError

Floats = npt.NDArray[np.float64]

# A model whose results hardly agree with those of the others on a task failed at the format, or was
# scored by another rule.
MIN_AGREEMENT = 0.15
MIN_MODELS = 5
MIN_PROMPTS = 50
BANDS = 4


@dataclass(frozen=True, eq=False)
class DifficultyTable:
    """n prompts with labels of difficulty.

    task[i]: what the prompt is compared within: its source and category, or its source alone.
    bands float64[n, BANDS]: mean score of the models of each quarter of ability, weakest first.
    difficulty float64[n]: one minus the mean score of all models that agree, in [0, 1].
    reliability float64[n]: Cronbach's alpha of the task, clipped to [0, 1].
    left_out: tasks without labels, and why.
    """

    prompts: list[str]
    messages: list[Messages | None]
    source: list[str]
    task: list[str]
    bands: Floats
    difficulty: Floats
    reliability: Floats
    left_out: dict[str, str]

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def subset(self, keep: npt.NDArray[np.bool_]) -> "DifficultyTable":
        """The prompts of a mask bool[n]."""
        index = np.flatnonzero(keep).tolist()
        return DifficultyTable(
            prompts=[self.prompts[i] for i in index],
            messages=[self.messages[i] for i in index],
            source=[self.source[i] for i in index],
            task=[self.task[i] for i in index],
            bands=self.bands[keep],
            difficulty=self.difficulty[keep],
            reliability=self.reliability[keep],
            left_out=self.left_out,
        )

    def within(self, values: Floats) -> Floats:
        """`values` float64[n] or [n, k] minus their mean within each task."""
        _, at = np.unique(self.task, return_inverse=True)
        columns = values.reshape(len(values), -1)
        counts = np.bincount(at).astype(np.float64)
        means = np.stack([np.bincount(at, column) / counts for column in columns.T], axis=1)
        return values - means[at].reshape(values.shape)


def difficulty_table(rows: Iterable[Row], *, pooled: Collection[str] = ()) -> DifficultyTable:
    """Labels of difficulty from rows of scores; comparisons are passed over.

    pooled: sources whose categories are subjects of one exam, compared across subjects too.
    A prompt's scores of a model are averaged; a prompt counts for the first task it occurs in.
    Raises DataError where no task has MIN_MODELS models that agree on MIN_PROMPTS prompts.
    """
    cells: dict[tuple[int, str], list[float]] = {}
    index: dict[str, int] = {}
    first: list[PromptScore] = []
    for row in rows:
        if not isinstance(row, PromptScore):
            continue
        at = index.setdefault(row.prompt, len(index))
        if at == len(first):
            first.append(row)
        cells.setdefault((at, row.model), []).append(row.score)
    task = [row.source if row.source in pooled else f"{row.source}/{row.category}" for row in first]
    n = len(first)
    bands, difficulty = np.full((n, BANDS), np.nan), np.full(n, np.nan)
    reliability = np.zeros(n)
    left_out: dict[str, str] = {}
    by_task: dict[str, list[tuple[int, str]]] = {}
    for key in cells:
        by_task.setdefault(task[key[0]], []).append(key)
    for name, keys in sorted(by_task.items()):
        members = np.array(sorted({at for at, _ in keys}))
        models = sorted({model for _, model in keys})
        scores = np.full((len(members), len(models)), np.nan)
        row_of = {int(at): i for i, at in enumerate(members)}
        column_of = {model: i for i, model in enumerate(models)}
        for key in keys:
            scores[row_of[key[0]], column_of[key[1]]] = np.mean(cells[key])
        kept = _agreeing(scores)
        if len(members) < MIN_PROMPTS or kept.shape[1] < MIN_MODELS:
            left_out[name] = f"{len(members)} prompts, {kept.shape[1]} models that agree"
            continue
        order = np.argsort(kept.mean(0), kind="stable")
        for band, columns in enumerate(np.array_split(order, BANDS)):
            bands[members, band] = kept[:, columns].mean(1)
        difficulty[members] = 1 - kept.mean(1)
        reliability[members] = cronbach_alpha(kept)
    known = np.isfinite(difficulty)
    if not known.any():
        raise DataError(
            f"no task has {MIN_MODELS} models that agree on {MIN_PROMPTS} prompts or more "
            f"({len(by_task)} tasks, {n:,} prompts): difficulty needs the scores of many models"
        )
    table = DifficultyTable(
        prompts=[row.prompt for row in first],
        messages=[row.messages for row in first],
        source=[row.source for row in first],
        task=task,
        bands=bands,
        difficulty=difficulty,
        reliability=reliability,
        left_out=left_out,
    )
    return table.subset(known)


def cronbach_alpha(scores: Floats) -> float:
    """Reliability of the mean over k models, from scores float64[n, k], clipped to [0, 1].

    Source: Cronbach 1951, Psychometrika 16, "Coefficient alpha and the internal structure of
    tests".
    """
    k = scores.shape[1]
    total = scores.sum(1).var(ddof=1)
    if k < 2 or total <= 0:
        return 0.0
    return float(np.clip(k / (k - 1) * (1 - scores.var(0, ddof=1).sum() / total), 0.0, 1.0))


def _agreeing(scores: Floats) -> Floats:
    """The columns that most prompts have and that agree with the others; gaps hold the mean."""
    scores = scores[:, np.isfinite(scores).mean(0) > 0.5]
    if not scores.shape[1]:
        return scores
    known = np.isfinite(scores)
    means = np.where(known, scores, 0).sum(0) / known.sum(0)
    filled = np.where(known, scores, means)
    total = filled.sum(1)
    agree = []
    for column in filled.T:
        rest = total - column
        spread = column.std() * rest.std()
        agree.append(
            spread > 1e-12
            and np.mean((column - column.mean()) * (rest - rest.mean())) / spread > MIN_AGREEMENT
        )
    return filled[:, np.array(agree)]


def pairs_in_order(scores: Floats, judged: PairTable) -> dict[str, float]:
    """Shares of pairs of a hard and an easy ordinary prompt in which the hard one scores higher:
    of all ("in order"), and of those with a short hard and a long easy one ("adverse").

    scores float64[n]: of the prompts of `judged`. Easy: the weak tier satisfies with 90% or more;
    hard: with less than 40%, and the strong tier with 30 points more. Short: below 80 characters;
    long: above 300.
    """
    gain = judged.strong - judged.weak
    length = np.array([len(prompt) for prompt in judged.prompts])
    hard = (judged.weak < 0.4 - 1e-9) & (gain >= 0.3 - 1e-9)
    easy = judged.weak >= 0.9 - 1e-9

    def share(upper: npt.NDArray[np.bool_], lower: npt.NDArray[np.bool_]) -> float:
        return float(np.mean(scores[upper][:, None] > scores[lower][None]))

    return {
        "in order": share(hard, easy),
        "adverse": share(hard & (length < 80), easy & (length > 300)),
    }

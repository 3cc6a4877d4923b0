"""Prompts in groups, for a page that people read: by task, or by clusters of their embeddings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...data.clusters import assign, fit, telling_words

# Groups on a page, the smaller ones together as the last; and the prompts that a cluster should
# have on average, so that its interval says something.
MOST_GROUPS, PROMPTS_A_CLUSTER = 10, 40
NAME_WORDS, NAME_CHARACTERS = 3, 60


@dataclass(frozen=True, eq=False)
class Groups:
    """`names` of g groups, largest first; `member` int64[n]: the group of each prompt."""

    names: list[str]
    member: npt.NDArray[np.int64]


def by_task(tasks: Sequence[str]) -> Groups:
    """Groups by name; past the ten largest, the rest are one."""
    names = [name for name, _ in sorted(Counter(tasks).items(), key=lambda one: (-one[1], one[0]))]
    kept = names if len(names) <= MOST_GROUPS else names[: MOST_GROUPS - 1]
    place = {name: i for i, name in enumerate(kept)}
    member = np.array([place.get(task, len(kept)) for task in tasks], dtype=np.int64)
    more = len(names) - len(kept)
    return Groups([*kept, f"{more} smaller tasks"] if more else kept, member)


def by_cluster(
    prompts: Sequence[str],
    embeddings: npt.NDArray[np.floating],
    *,
    by_prompts: bool = True,
    seed: int = 0,
) -> Groups:
    """Clusters of the embeddings, named by the prompt nearest to the middle, else by the words that
    set them apart; no group where there are too few prompts for two clusters."""
    k = min(MOST_GROUPS - 2, len(prompts) // PROMPTS_A_CLUSTER)
    if k < 2:
        return Groups([], np.zeros(len(prompts), np.int64))
    lengths = np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    unit = (embeddings / lengths).astype(np.float32)
    centers = fit(unit, k, seed=seed)
    member = assign(unit, centers)
    if by_prompts:
        middle = (unit @ centers.T).argmax(axis=0)
        return Groups([f"“{_cut(prompts[i])}”" for i in middle.tolist()], member)
    words = telling_words(prompts, member, len(centers), most=NAME_WORDS)
    return Groups([", ".join(one) or f"group {i + 1}" for i, one in enumerate(words)], member)


def _cut(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= NAME_CHARACTERS else line[: NAME_CHARACTERS - 1].rstrip() + "…"

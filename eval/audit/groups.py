"""Prompts in groups, for a page that people read: by task, or by clusters of their embeddings."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Groups on a page, the smaller ones together as the last; and the prompts that a cluster should
# have on average, so that its interval says something.
MOST_GROUPS, PROMPTS_A_CLUSTER = 10, 40
ROUNDS, RESTARTS = 25, 3
# Words of a name; four letters make a word worth naming.
NAME_WORDS = 3
WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, eq=False)
class Groups:
    """`names` of g groups, largest first; `member` int64[n]: the group of each prompt; `kind`:
    "task" or "cluster"."""

    names: list[str]
    member: Ints
    kind: str


def by_task(tasks: Sequence[str]) -> Groups:
    """Groups by name; past the ten largest, the rest are one."""
    count = Counter(tasks)
    ordered = [name for name, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))]
    kept = ordered if len(ordered) <= MOST_GROUPS else ordered[: MOST_GROUPS - 1]
    place = {name: i for i, name in enumerate(kept)}
    member = np.array([place.get(task, len(kept)) for task in tasks], dtype=np.int64)
    names = list(kept)
    if len(kept) < len(ordered):
        names.append(f"{len(ordered) - len(kept)} smaller tasks")
    return Groups(names, member, "task")


def by_cluster(
    prompts: Sequence[str], embeddings: npt.NDArray[np.floating], *, seed: int = 0
) -> Groups | None:
    """Clusters of the embeddings (k-means, Lloyd 1982), named by the words that set them apart.

    None where there are too few prompts for two clusters.
    """
    k = min(MOST_GROUPS - 2, len(prompts) // PROMPTS_A_CLUSTER)
    if k < 2:
        return None
    rows = np.asarray(embeddings, dtype=np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rng = np.random.default_rng(seed)
    runs = [_k_means(rows, k, rng) for _ in range(RESTARTS)]
    member = min(runs, key=lambda run: run[1])[0]
    sizes = np.bincount(member, minlength=k)
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    place = np.zeros(k, dtype=np.int64)
    place[order] = np.arange(len(order))
    member = place[member]
    return Groups(_names(prompts, member, len(order)), member, "cluster")


def _k_means(rows: npt.NDArray[np.float64], k: int, rng: np.random.Generator) -> tuple[Ints, float]:
    """(member int64[n], sum of squared distances), from k-means++ (Arthur, Vassilvitskii 2007)."""
    centres = rows[rng.integers(len(rows), size=1)]
    while len(centres) < k:
        distance = _distances(rows, centres).min(axis=1)
        total = distance.sum()
        if total <= 0:
            break
        drawn = int(rng.choice(len(rows), p=distance / total))
        centres = np.concatenate((centres, rows[drawn : drawn + 1]))
    member = np.zeros(len(rows), dtype=np.int64)
    for _ in range(ROUNDS):
        found = _distances(rows, centres).argmin(axis=1).astype(np.int64)
        if np.array_equal(found, member):
            break
        member = found
        for i in range(len(centres)):
            if np.any(member == i):
                centres[i] = rows[member == i].mean(axis=0)
    return member, float(_distances(rows, centres)[np.arange(len(rows)), member].sum())


def _distances(
    rows: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    squared = (rows**2).sum(axis=1)[:, None] - 2 * rows @ centres.T + (centres**2).sum(axis=1)
    distances: npt.NDArray[np.float64] = np.maximum(squared, 0.0)
    return distances


def _names(prompts: Sequence[str], member: Ints, groups: int) -> list[str]:
    """The words that are in more of a group's prompts than elsewhere, by log-odds with a prior."""
    found = [set(WORD.findall(prompt.lower())) for prompt in prompts]
    everywhere = Counter(word for words in found for word in words)
    names = []
    for group in range(groups):
        inside = [words for words, at in zip(found, member, strict=True) if at == group]
        count = Counter(word for words in inside for word in words)
        told = [
            (-_telling(here, everywhere[word], len(inside), len(found)), word)
            for word, here in count.items()
        ]
        best = [word for _, word in sorted(told)[:NAME_WORDS]]
        names.append(", ".join(best) or f"group {group + 1}")
    return names


def _telling(here: int, everywhere: int, n: int, total: int) -> float:
    """How much a word in `here` of a group's n prompts sets them apart from the others."""
    there, rest = everywhere - here, total - n
    inside = math.log((here + 0.5) / (n - here + 0.5))
    outside = math.log((there + 0.5) / (rest - there + 0.5))
    # A word of a few prompts is no name, however peculiar.
    return min(1.0, here / max(3.0, 0.1 * n)) * (inside - outside)

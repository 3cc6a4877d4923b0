"""The cluster centres of a run: fitted on a sample of the log, or an earlier run's."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ...router.scorer import Scorer
from ..clusters import fit
from .chunks import ChunkPlan, LogPrompt, prompts_of

Floats = npt.NDArray[np.float32]

_ROWS = 50  # of the sample for each cluster, on average
_LEAST = 1000
_CHUNKS = 200


def fit_centers(
    plan: ChunkPlan, scorer: Scorer, k: int, *, seed: int = 0, rows: int | None = None
) -> Floats:
    """Centres float32[k', dim], k' <= k, fitted on rows drawn at random from chunks drawn at random
    (in proportion to their rows), about `rows`. Raises ConfigError where the sample has no row."""
    rng = np.random.default_rng(seed)
    rows = rows or max(_LEAST, _ROWS * k)
    count = min(len(plan.chunks), _CHUNKS)
    share = np.array([chunk.lines for chunk in plan.chunks]) / plan.lines
    drawn = rng.choice(len(plan.chunks), count, replace=False, p=share)
    prompts: list[Any] = []
    for index in sorted(drawn.tolist()):
        chunk = plan.chunks[index]
        wanted = set(rng.choice(chunk.lines, min(chunk.lines, -(-rows // count)), replace=False))
        prompts += [
            row.prompt
            for i, row in enumerate(prompts_of(chunk))
            if i in wanted and isinstance(row, LogPrompt)
        ]
    return fit(scorer.embeddings(prompts, workers=1), k, seed=seed)


def read_centers(path: str | Path) -> Floats:
    """Centres that a run has written. Raises ConfigError where it is no such file."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: no readable .npy file of cluster centres ({error})") from error
    if found.ndim != 2 or found.dtype != np.float32 or not len(found):
        raise ConfigError(
            f"{path} holds {found.dtype}{list(found.shape)}; expected centres float32[k, dim]"
        )
    return np.ascontiguousarray(found)

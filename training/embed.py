"""Embeddings of many prompts, computed once: a cache on disk by the content of the prompt."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.vectors import VectorCache, content_key
from ..files import cache_folder
from ..router.scorer import Scorer
from ..router.text import Promptlike

BLOCK = 512


def embed(
    scorer: Scorer,
    prompts: Sequence[Promptlike],
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    representation: bool = False,
) -> npt.NDArray[np.float32]:
    """Embeddings float32[n, dim], or representations float32[n, width], by a bundle's graph.

    What is missing in the cache is computed in order of length, so that the time left can be told
    from the progress, and written block by block: an interrupted run loses one block. `progress` is
    called with (done, to do).
    """
    manifest = scorer.bundle.manifest
    # The context rule changes what is read of a conversation, and so the vector.
    namespace = f"{scorer.bundle.model_sha256[:32]}-{scorer.context}"
    width = manifest.dim
    compute = scorer.embeddings
    if representation:
        namespace, width, compute = f"{namespace}-rep", manifest.width, scorer.representations
    cache = VectorCache((folder or cache_folder()) / "embeddings", namespace, width)
    keys = [content_key(prompt) for prompt in prompts]
    missing = {key: i for i, key in enumerate(keys) if key not in cache}
    todo = sorted(missing.values(), key=lambda i: len(str(prompts[i])), reverse=True)
    for start in range(0, len(todo), BLOCK):
        block = todo[start : start + BLOCK]
        vectors = compute([prompts[i] for i in block])
        cache.add([keys[i] for i in block], vectors)
        if progress:
            progress(start + len(block), len(todo))
    return cache.get(keys)

"""Scores and embeddings of a bundle, computed once for each prompt and cached on disk.

The cache is keyed by the hash of the bundle's graph, never by its name (see `data.vectors`), and
holds no text. One run of the graph gives both.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.vectors import VectorCache, content_key
from ..files import cache_folder
from ..router.scorer import Scorer
from ..router.text import Promptlike
from .metrics import Floats


class CachedScorer:
    """`scores` and `embeddings` of a Scorer, as `run.evaluate` takes them."""

    def __init__(self, scorer: Scorer, folder: Path | None = None) -> None:
        manifest = scorer.bundle.manifest
        self.scorer = scorer
        self._models = list(manifest.models)
        namespace = f"{scorer.bundle.model_sha256[:32]}-{scorer.context}"
        root = (folder or cache_folder()) / "scores"
        self._cache = VectorCache(root, namespace, len(self._models) + manifest.dim)

    def scores(self, prompts: Sequence[Promptlike]) -> Floats:
        """Scores of n prompts, float64[n]."""
        quality = self._vectors(prompts)
        at = [self._models.index(model) for model in (self.scorer.strong, self.scorer.weak)]
        # In float64 as in `Scorer.margin`, so that both give the same score to the last bit.
        margin = (quality[:, at[0]] - quality[:, at[1]]).astype(np.float64)
        return np.asarray(self.scorer.calibrated(margin))

    def embeddings(self, prompts: Sequence[Promptlike]) -> npt.NDArray[np.float32]:
        """Embeddings of n prompts, float32[n, dim]."""
        return self._vectors(prompts)[:, len(self._models) :]

    def _vectors(self, prompts: Sequence[Promptlike]) -> npt.NDArray[np.float32]:
        keys = [content_key(prompt) for prompt in prompts]
        missing = {key: i for i, key in enumerate(keys) if key not in self._cache}
        if missing:
            found = self.scorer.encode_all([prompts[i] for i in missing.values()])
            rows = [np.concatenate((e.quality, e.embedding)) for e in found]
            self._cache.add(list(missing), np.stack(rows))
        return self._cache.get(keys)

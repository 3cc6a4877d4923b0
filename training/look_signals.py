"""The signals of a second look that are fitted: what compares answers, their form, their text."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..router.extractors import EXTRACTORS, SIMILAR
from ..router.scorer import Scorer
from ..router.second_look import (
    Answer,
    answer_representations,
    dissimilar,
    ending,
    signal_columns,
    similarities,
)
from .models.head import Floats
from .models.mf import representation_blocks
from .models.ridge import cross_validated, estimate_variances, fit_blocks
from .settings import TrainSettings

LIMITS = np.linspace(0.1, 0.9, 9)  # quantiles of the cosine of two answers, where a limit may lie


def choose_extractor(
    scorer: Scorer, answers: Sequence[Answer], label: Floats
) -> tuple[str | None, Floats | None]:
    """What tells most of the label when two answers are compared by it, and where they differ by
    it, float64[n]; similarity only where nothing else tells. (None, None) where nothing does."""
    found: dict[str, tuple[float, Floats]] = {}

    def consider(name: str, differs: Floats) -> None:
        known = np.isfinite(differs)
        if known.sum() >= 10 and np.ptp(differs[known]) > 0 and np.ptp(label[known]) > 0:
            found[name] = float(np.corrcoef(differs[known], label[known])[0, 1]), differs

    for name in EXTRACTORS:
        flat = np.full(len(answers), 0.5)
        consider(name, signal_columns(flat, answers, name)["agreement"])
    if max((tells for tells, _ in found.values()), default=0.0) < 2 / np.sqrt(len(answers)):
        cosines = similarities(scorer, answers)
        known = cosines[np.isfinite(cosines)]
        for limit in np.quantile(known, LIMITS).round(4).tolist() if known.size else ():
            consider(f"{SIMILAR}{limit}", dissimilar(cosines, limit))
    best = max(found, key=lambda name: found[name][0], default=None)
    return (None, None) if best is None else (best, found[best][1])


def form_signal(answers: Sequence[Answer]) -> tuple[Floats, dict[str, float]]:
    """How rare the end of each answer is among the others, in nats, float64[n]; and by ending."""
    endings = [ending(answer.text) for answer in answers]
    counts, n = Counter(endings), len(endings)

    def rarity(count: int) -> float:
        return round(float(np.log((n + 1) / (count + 0.5))), 6)

    known = {form: rarity(count) for form, count in counts.items() if count > 1}
    return np.array([rarity(counts[form] - 1) for form in endings]), {**known, "": rarity(0)}


def answer_signal(
    scorer: Scorer,
    answers: Sequence[Answer],
    label: Floats,
    fold: Any,
    settings: TrainSettings,
) -> tuple[Floats, tuple[float, ...], float]:
    """The regression on the answers' text: out of fold float64[n], weights and bias of all."""
    x = answer_representations(scorer, answers)
    blocks = representation_blocks(x.shape[1], len(scorer.bundle.manifest.features))
    variances = estimate_variances(x, label, blocks, seed=settings.seed)
    fitted = fit_blocks(x, label, blocks, variances=variances)
    out = cross_validated(x, label, blocks, fold, variances=variances)
    return out, tuple(fitted.weights.round(8).tolist()), fitted.intercept

"""`thriftroute add-model`: the vector of a model that a bundle has never seen, all else frozen.

A model's coordinates are its ability times the pair's own (`training.mf`), so that one number is
fitted: how much better or worse than known models it does on the same prompts, in log odds, on the
scale where the bundle's weak model has -1/2 and its strong one +1/2. A few dozen comparisons are
enough.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.collect import Floats
from ..data.schema import PromptScore, Row
from ..errors import TrainingError
from ..router.bundle import Bundle, write_bundle
from .export import graft_head, read_head
from .models.head import Head
from .models.mf import log_odds

MIN_COMPARISONS = 20
Z95 = 1.96


@dataclass(frozen=True)
class Added:
    """The written bundle, and the ability that was found, with its 95% interval."""

    bundle: Bundle
    name: str
    ability: float
    low: float
    high: float
    comparisons: int


def add_model(
    bundle: Bundle, rows: Iterable[Row], name: str, out: Path, *, overwrite: bool = False
) -> Added:
    """Fit `name` from comparisons with models that the bundle knows; write a bundle with it.

    rows: comparisons, or scores of `name` and of known models on the same prompts. Raises
    TrainingError, ExportError, BundleError.
    """
    models = list(bundle.manifest.models)
    if name in models:
        raise TrainingError(f"{bundle} knows {name!r} already; give the new model another name")
    head = read_head(bundle.graph(), models)
    known, ours, theirs = _comparisons(rows, name, models)
    if len(known) < MIN_COMPARISONS:
        raise TrainingError(
            f"{len(known)} comparisons of {name!r} with a model that {bundle} knows; at least "
            f"{MIN_COMPARISONS} are needed. It knows: {', '.join(models)}"
        )
    row, abilities = _abilities(head, bundle)
    unit = _unit(bundle)
    found, precision = [], []
    for other in sorted(set(known)):
        at = np.array([one == other for one in known])
        distance, variance = _distance(ours[at], theirs[at])
        found.append(abilities[other] + distance / unit)
        precision.append(unit**2 / variance)
    ability = float(np.average(found, weights=precision))
    # Known models share the new one's results, so that their errors do not average out.
    error = Z95 / math.sqrt(max(precision))
    u = np.concatenate((head.u, (ability * row)[None])).astype(np.float32)
    grown = dataclasses.replace(head, models=[*models, name], u=u)
    line = (
        f"\n## Added\n\n`{name}`, ability {ability:+.2f} [{ability - error:+.2f}, "
        f"{ability + error:+.2f}], from {len(known):,} comparisons with models above; the figures "
        "of this card are not about it.\n"
    )
    fields = dataclasses.asdict(bundle.manifest)
    for key in ("format", "written_by", "files", "models"):
        del fields[key]
    files: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.manifest.files}
    files["model.onnx"] = graft_head(bundle.graph(), grown)
    files["card.md"] = bundle.file("card.md").read_bytes() + line.encode()
    written = write_bundle(out, files=files, overwrite=overwrite, models=grown.models, **fields)
    return Added(written, name, ability, ability - error, ability + error, len(known))


def _distance(ours: Floats, theirs: Floats) -> tuple[float, float]:
    """Log odds of the new model's mean score minus those of the known one's, and their variance.

    Both are scored on the same rows (of a vote each is the other's complement), so that the
    variance is that of the difference row by row, to first order.
    """
    # Half a win and half a loss, so that a clean sweep stays finite.
    weight = np.append(np.ones(len(ours)), (0.5, 0.5))
    a, b = np.append(ours, (1.0, 0.0)), np.append(theirs, (0.0, 1.0))
    total = float(weight.sum())
    p, q = float(weight @ a) / total, float(weight @ b) / total
    influence = (a - p) / (p * (1 - p)) - (b - q) / (q * (1 - q))
    return float(log_odds(p) - log_odds(q)), float(weight @ influence**2) / total**2


def _unit(bundle: Bundle) -> float:
    """Log odds between the bundle's strong and weak model, on its own validation prompts."""
    validation = bundle.manifest.training.get("validation", {})
    # Where either is not told, the two are not apart.
    strong, weak = validation.get("strong_mean", 0.0), validation.get("weak_mean", 1.0)
    unit = float(log_odds(strong) - log_odds(weak))
    if unit <= 0:
        raise TrainingError(
            f"{bundle} does not tell how far its strong and weak model are apart: train it again"
        )
    return unit


def _abilities(head: Head, bundle: Bundle) -> tuple[Floats, dict[str, float]]:
    """The pair's own coordinates, and every known model's ability along them, weak at -1/2."""
    u = head.u.astype(np.float64)
    strong, weak = (
        u[head.models.index(name)] for name in (bundle.manifest.strong, bundle.manifest.weak)
    )
    row, middle = strong - weak, (strong + weak) / 2
    along = (u - middle) @ row / float(row @ row)
    return row, dict(zip(head.models, along.tolist(), strict=True))


def _comparisons(
    rows: Iterable[Row], name: str, models: Sequence[str]
) -> tuple[list[str], Floats, Floats]:
    """For each comparison the known model, the new one's score and the known one's."""
    found: list[tuple[str, float, float]] = []
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if isinstance(row, PromptScore):
            scores.setdefault((row.prompt, row.item), {})[row.model] = row.score
        elif name == row.model_a:
            found.append((row.model_b, row.score_a, 1 - row.score_a))
        elif name == row.model_b:
            found.append((row.model_a, 1 - row.score_a, row.score_a))
    for of_prompt in scores.values():
        if name in of_prompt:
            found += [(other, of_prompt[name], score) for other, score in of_prompt.items()]
    found = [row for row in found if row[0] in models]
    ours, theirs = (np.array([row[i] for row in found], dtype=np.float64) for i in (1, 2))
    return [row[0] for row in found], ours, theirs

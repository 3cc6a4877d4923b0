"""The trainer of mf: the routing margin of a pair in closed form, as a head (`models.head`).

Where RouteLLM fits all factors by gradient descent on wins, here the hidden directions are those
that routing needs (how much better the strong answer is expected to be), fitted with strengths that
the labels choose (`models.ridge`), and a model's coordinates on them go with its ability: it needs
few labels, no epochs, and gives the same result every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.split import prompt_key, split_by_hash
from ...data.tables import ComparisonTable
from ...errors import TrainingError
from ...router.bundle import EMBEDDING
from ...router.features import FEATURES
from ..embed import embed
from ..export import Check, Exported, graft_head
from ..prepare import Prepared, Start, check_labels
from ..progress import Progress
from ..settings import MFSettings, TrainSettings
from ..write_bundle import Trained
from .head import Base, Floats, Head
from .ridge import Block, BlockFit, cross_validated, estimate_variances, fit_blocks

# In log odds: tiers nearer to each other than this say nothing about who is better.
MIN_TIER_GAP = 0.2
# What a base score of standard deviation 1 says of the gain, as a share of the gain's own standard
# deviation: measured on the training sources, leaving each out in turn (docs/results.md).
BASE_SLOPE = 0.14
# Prompts whose graph is compared with what numpy says of the head.
CHECKED_PROMPTS = 16


def train_mf(settings: TrainSettings, start: Start, data: Prepared, say: Progress) -> Trained:
    """Fit on all prompts; what is reported of each is what the other folds say of it."""
    options = settings.options or MFSettings()
    assert isinstance(options, MFSettings)
    table = data.pairs
    check_labels(table)
    with say.bar("embedding prompts") as update:
        x = embed(start.scorer, table.inputs(), progress=update, representation=True)
    say.note("fitting")
    fold = split_by_hash(
        table.prompts,
        (1 / options.folds,) * options.folds,
        seed=settings.seed,
        # A key of its own: who held out a part by the same hash and seed would leave a fold empty.
        key=lambda prompt: f"fold {prompt_key(prompt)}",
    )
    # Strong minus weak, blended with "the weak answer falls short".
    share = settings.weak_fails
    found = fit_pair(
        x,
        (1 - share) * table.strong + share - table.weak,
        fold,
        weight=table.weight,
        known=None if start.base is None else start.base(x),
        features=len(start.scorer.bundle.manifest.features),
        settings=options,
        seed=settings.seed,
    )
    tiers = (settings.strong, settings.weak)
    abilities = tier_abilities(data.comparisons, tiers, settings.pair)
    head = pair_head(found, abilities, settings.pair, start.base)
    facts = {
        **data.facts,
        "encoder": start.scorer.bundle.manifest.encoder,
        "base": start.name,
        "prompts": {"train": table.n, "validation": table.n},
        "validated": f"{options.folds}-fold cross-validation",
        "fitted_on": found.used,
        "evidence": None if found.fit is None else round(found.fit.evidence, 2),
    }
    sample = table.inputs()[:CHECKED_PROMPTS]
    exported = export_head(start, head, settings.pair, x[:CHECKED_PROMPTS], sample)
    return Trained(exported, facts, options, table, margin=found.out_of_fold)


def export_head(
    start: Start,
    head: Head,
    pair: Sequence[str],
    x: npt.NDArray[np.float32],
    inputs: Sequence[Any],
) -> Exported:
    """The head on the start's graph, with what numpy says of a few prompts' representations x."""
    bundle = start.scorer.bundle
    whole = None
    checks = [Check([start.scorer.feeds(p) for p in inputs], head.quality(x), "int8")]
    if start.fp32 is not None:
        from ..encoder import torch_probe

        whole = graft_head(start.fp32.read_bytes(), head)
        probe = torch_probe(start.fp32)
        checks.append(Check(probe.feeds, head.quality(probe.representations), "fp32"))
    kept = ("encoder", "dim", "max_tokens", "prefix_ids", "suffix_ids", "features", "width")
    return Exported(
        model=graft_head(bundle.graph(), head),
        whole=whole,
        models=head.models,
        pair=pair,
        tokenizer=bundle.file("tokenizer.json").read_bytes(),
        fields={name: getattr(bundle.manifest, name) for name in kept},
        checks=checks,
        embedding=bundle.file(EMBEDDING) if EMBEDDING in bundle.manifest.files else None,
    )


@dataclass(frozen=True)
class PairFit:
    """The routing margin of one pair: slope * known + x @ weights + intercept.

    weights float64[width]. out_of_fold float64[n]: the margin of each prompt by a fit without its
    fold. used: "labels", or "base" where the labels are too few to say more than the base does.
    """

    weights: Floats
    intercept: float
    slope: float
    out_of_fold: Floats
    used: str
    fit: BlockFit | None

    def margin(self, x: npt.NDArray[np.floating], known: Floats | None = None) -> Floats:
        """float64[n] for x [n, width] and the margins that were known before, float64[n]."""
        value: Floats = np.asarray(x, dtype=np.float64) @ self.weights + self.intercept
        return value if known is None else value + self.slope * known


def representation_blocks(width: int, features: int = len(FEATURES)) -> tuple[Block, ...]:
    """The blocks of a representation: the encoder's layers, and its last columns, the features."""
    layers = width - features
    return Block(0, layers), Block(layers, width, own_units=True)


def fit_pair(
    x: npt.NDArray[np.floating],
    gain: Floats,
    fold: npt.NDArray[np.integer],
    *,
    weight: Floats | None = None,
    known: Floats | None = None,
    features: int = len(FEATURES),
    settings: MFSettings | None = None,
    seed: int = 0,
) -> PairFit:
    """Fit the gain (score of strong minus score of weak) of n prompts.

    x [n, width]: their representations, whose last `features` columns are cheap features. fold
    int[n]: folds of the cross-validation; copies of a prompt share one. known float64[n]: the
    margins by the bundle that is started from; with fewer labels than `settings.min_labels`, labels
    that are all the same, or no more evidence than `settings.min_evidence`, they stand as they are.
    Raises TrainingError where nothing can be learned and nothing is known.
    """
    settings = settings or MFSettings()
    center, unit, base = 0.0, 1.0, None
    if known is not None:
        as_known = PairFit(np.zeros(x.shape[1]), 0.0, 1.0, known, "base", None)
        if len(gain) < settings.min_labels or float(np.ptp(gain)) == 0.0:
            return as_known
        center, unit = float(known.mean()), max(float(known.std()), 1e-12)
        base = (known - center) / unit
    slope = BASE_SLOPE * float(gain.std())
    blocks = representation_blocks(x.shape[1], features)
    shared: dict[str, Any] = {"weight": weight, "base": base, "base_slope": slope}
    variances = estimate_variances(x, gain, blocks, **shared, seed=seed)
    least = settings.min_evidence
    if known is not None and least is not None and variances.evidence <= least:
        return as_known
    fitted = fit_blocks(x, gain, blocks, variances=variances, **shared)
    out = cross_validated(x, gain, blocks, fold, variances=variances, **shared)
    factor = fitted.slope / unit
    intercept = fitted.intercept - factor * center
    return PairFit(fitted.weights, intercept, factor, out, "labels", fitted)


def pair_head(
    found: PairFit, abilities: dict[str, float], pair: Sequence[str], base: Base | None = None
) -> Head:
    """A head whose margin of `pair` is the one that was fitted.

    abilities: by model; a model's coordinates are its ability times those of the pair's margin. The
    hidden directions of the base stay, gate and all; the fitted one comes beside them.
    """
    strong, weak = pair
    gap = abilities[strong] - abilities[weak]
    if gap <= 0:
        raise TrainingError(
            f"{strong} is not better than {weak} in this data: there is nothing to route; swap "
            "them, or choose others"
        )
    w1 = found.weights[None].astype(np.float32)
    b1 = np.array([found.intercept], dtype=np.float32)
    gated, margin, gate, memory = np.zeros(1, np.int8), np.ones(1), None, None
    if base is not None:
        known = base.head
        row = found.slope * known.difference(base.strong, base.weak)
        w1, b1 = np.concatenate((known.w1, w1)), np.concatenate((known.b1, b1))
        margin, gated = np.append(row, margin), np.append(known.gated, gated)
        gate, memory = known.gate, known.memory
    u = np.outer([ability / gap for ability in abilities.values()], margin)
    return Head(list(abilities), w1, b1, u.astype(np.float32), gated, gate, memory)


def tier_abilities(
    comparisons: ComparisonTable, tiers: tuple[Sequence[str], Sequence[str]], pair: Sequence[str]
) -> dict[str, float]:
    """Ability of every model of the comparisons and of the two tiers, weak -1/2 and strong +1/2.

    In each source the logit of a model's mean score, on the scale where the tiers' means are -1/2
    and +1/2; then the mean over sources, by prompts: sources are of different difficulty, and what
    compares models is how they do on the same prompts. Sources where the tiers hardly differ tell
    nothing. A tier of one model is that model. Raises TrainingError where strong is not better.
    """
    if all(len(tier) == 1 for tier in tiers):
        return {tiers[0][0]: 0.5, tiers[1][0]: -0.5}
    names = list(comparisons.models)
    k = len(names)
    of_prompt = np.array(comparisons.source)[comparisons.prompt_index]
    total, mass = np.zeros(k), np.zeros(k)
    for source in sorted(set(comparisons.source)):
        rows = of_prompt == source
        sums, counts = np.zeros(k), np.zeros(k)
        for side, score in (
            (comparisons.a, comparisons.strong_score), (comparisons.b, comparisons.weak_score),
        ):  # fmt: skip
            weight = comparisons.weight[rows]
            sums += np.bincount(side[rows], weight * score[rows], k)
            counts += np.bincount(side[rows], weight, k)
        seen = counts > 0
        logit = np.zeros(k)
        logit[seen] = log_odds(sums[seen] / counts[seen])
        means = [
            np.mean([logit[i] for i in range(k) if seen[i] and names[i] in tier]) for tier in tiers
        ]
        gap = float(means[0] - means[1])
        if not gap >= MIN_TIER_GAP:
            continue
        prompts = len(np.unique(comparisons.prompt_index[rows]))
        total[seen] += prompts * ((logit[seen] - means[1]) / gap - 0.5)
        mass[seen] += prompts
    if not mass.any():
        raise TrainingError(
            "the strong tier is not better than the weak one in any source of this data: there is "
            "nothing to route; swap them, or choose others"
        )
    # A model that only such sources know stands where its tier does.
    result = {
        name: float(total[i] / mass[i]) if mass[i] else 0.5 if name in tiers[0] else -0.5
        for i, name in enumerate(names)
    }
    return {**result, pair[0]: 0.5, pair[1]: -0.5}


def log_odds(share: npt.ArrayLike) -> Floats:
    """log(p / (1 - p)), with shares kept two hundredths away from 0 and 1."""
    p = np.clip(np.asarray(share, dtype=np.float64), 0.02, 0.98)
    return np.asarray(np.log(p / (1 - p)))

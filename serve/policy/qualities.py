"""What a bundle says beside its scores: thresholds for shares, and how good each model is."""

import logging
from collections.abc import Mapping

import numpy as np

from ...errors import ConfigError
from ...router.routers import BundleRouter, Router, tables_of
from ...router.score_or_fallback import conversation_for, place_of
from ...router.scorer import Scorer
from ...router.threshold import harder_than, percentile_table, share_table
from ..config.settings import Config
from ..errors import RefusedError, bad_setting
from ..registry import Model
from ..request import ChatRequest

# Of many kinds and from easy to hard: what models are told apart by.
_PROBES = (
    "Hi!",
    "What is the capital of France?",
    "Rewrite this sentence more politely: Send me the file.",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive?",
    "Write a function that merges two sorted lists, and explain its complexity.",
    "Which of these is a noble gas? A) oxygen B) argon C) nitrogen D) chlorine",
    "Summarize the causes of the First World War in three paragraphs.",
    "Prove that there are infinitely many prime numbers congruent to 3 modulo 4.",
)

logger = logging.getLogger(__name__)


class Qualities:
    """The loaded router of a config. Safe to share between threads. Raises ConfigError where the
    config asks for what the router does not have: a table of thresholds, predicted qualities."""

    def __init__(self, config: Config, models: Mapping[str, Model], router: Router) -> None:
        self.name = config.router.name
        self._context = config.router.context
        # Routers that are no bundle are asked for nothing but scores.
        self._scorer = router.scorer if isinstance(router, BundleRouter) else None
        tables = tables_of(router)
        self.table, self._percentiles = share_table(tables), percentile_table(tables)
        wish = config.router
        key = "hold" if wish.strong_share is None else "strong_share"
        if self.table is None and wish.threshold is None and getattr(wish, key) is not None:
            problem = f"router {self.name!r} has no table of thresholds; give router.threshold, or "
            problem += "write a table into it with `thriftroute calibrate --write`"
            raise bad_setting(f"router.{key}", problem)
        self.places: dict[str, float] = {}
        if config.router.strategy == "pool":
            if self._scorer is None:
                problem = "'pool' needs a bundle, whose qualities tell models apart; router "
                raise bad_setting("router.strategy", f"{problem}{self.name!r} is none")
            self.places = _places(config, models, self._scorer)

    def threshold_for(self, share: float) -> tuple[float, str]:
        """(threshold, where it is from) for a share of strong calls in [0, 1].

        Raises RefusedError (400) where the router has no table.
        """
        if self.table is None:
            message = f"router {self.name!r} has no table from strong shares to thresholds; ask "
            message += "for a threshold instead of a share or a quality"
            raise RefusedError(400, "no_threshold_table", message)
        return self.table.sourced(share)

    def percentile(self, score: float) -> tuple[float, str] | None:
        """The share of ordinary prompts that score below `score`, and that in words; None where the
        router has no table."""
        if self._percentiles is None:
            return None
        found = self._percentiles.percentile(score)
        return found, harder_than(found, self._percentiles.name)

    def familiarity(self, request: ChatRequest) -> float | None:
        """How like the bundle's training the prompt is, in [0, 1]; None where it does not tell."""
        if self._scorer is None:
            return None
        try:
            conversation = conversation_for(request.messages, self._context)
            return None if conversation.is_blank else self._scorer.familiarity(conversation)
        except Exception as error:  # noqa: BLE001 - it is for a report: no request hangs on it
            logger.warning("router %r: scoring failed: %s", self.name, place_of(error))
            return None

    def losses(self, score: float) -> dict[str, float]:
        """Model -> the probability that the strong model's answer to a prompt of that score is
        preferred to its own. Empty but for the strategy `pool`."""
        return {name: place * score for name, place in self.places.items()}


def _places(config: Config, models: Mapping[str, Model], scorer: Scorer) -> dict[str, float]:
    """Where each model stands from the bundle's strong one, 0, to its weak one, 1.

    With q the qualities, s and w the strong and the weak model, the place of m is the least squares
    solution of q_s - q_m = place * (q_s - q_w) over the probes: qualities differ from bundle to
    bundle by a constant, so that a gap alone says nothing of who wins.
    """
    columns = _columns(config, models, scorer)
    quality = scorer.qualities(_PROBES, workers=1).astype(float)
    known = scorer.bundle.manifest.models
    strong = quality[:, known.index(scorer.strong)]
    gap = strong - quality[:, known.index(scorer.weak)]
    size = float(gap @ gap)
    if not np.isfinite(size) or size < 1e-12:
        problem = f"the bundle of router {config.router.name!r} does not tell its own strong and "
        raise bad_setting("router.strategy", f"{problem}weak model apart; use strategy 'pair'")
    places = {n: float((strong - quality[:, at]) @ gap) / size for n, at in columns.items()}
    if places.get(config.strong, 0.0) >= places.get(config.weak, 1.0):
        what = "the bundle rates the weak model %r no worse than the strong one %r"
        logger.warning(f"router.strategy 'pool': {what}", config.weak, config.strong)
    return places


def _columns(config: Config, models: Mapping[str, Model], scorer: Scorer) -> dict[str, int]:
    """Pool model -> its column of the bundle's qualities: its `bundle_model`'s, else that of its
    own name, else, for the pair, that of the bundle's own. Models that it does not know are out."""
    known = list(scorer.bundle.manifest.models)
    pair = {config.strong: scorer.strong, config.weak: scorer.weak}
    columns: dict[str, int] = {}
    for name, model in models.items():
        if model.bundle_model is not None and model.bundle_model not in known:
            raise ConfigError(
                f"model {name!r}: bundle_model {model.bundle_model!r} is not in the bundle of "
                f"router {config.router.name!r}, which knows: {', '.join(known)}",
                loc=("models", [m.name for m in config.models].index(name), "bundle_model"),
            )
        column = model.bundle_model or (name if name in known else pair.get(name))
        if column is not None:
            columns[name] = known.index(column)
    if len(set(columns.values())) < 2:
        problem = "'pool' needs at least two models that the bundle knows; give the models their "
        raise bad_setting("router.strategy", f"{problem}bundle_model, one of: {', '.join(known)}")
    return columns

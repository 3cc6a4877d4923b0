"""A router as the pipeline asks it: scores, thresholds for shares, qualities of a whole pool.

Scoring never fails a request and never raises: what went wrong is said in a line, which never holds
text of the prompt.
"""

import logging
from collections.abc import Mapping

import numpy as np

from ...errors import ConfigError, RoutingError
from ...router.controller import place_of as place
from ...router.routers import BundleRouter, Router, checked_scores
from ...router.text import Conversation, as_conversation
from ...router.threshold import ThresholdTable
from ..config.settings import Config
from ..errors import RefusedError
from ..registry import Model
from ..request import Asked

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


class Scoring:
    """The loaded router of a config. Safe to share between threads.

    Raises ConfigError where the config asks for what the router does not have: a strong share
    without a table of thresholds, or the strategy `pool` without predicted qualities.
    """

    def __init__(self, config: Config, models: Mapping[str, Model], router: Router) -> None:
        self.name = config.router.name
        self._context = config.router.context
        self._router = router
        # Routers that are no bundle are asked for nothing but scores.
        self._scorer = router.scorer if isinstance(router, BundleRouter) else None
        self.table = self._table()
        if config.router.strong_share is not None and self.table is None:
            raise ConfigError(
                f"router.strong_share: router {self.name!r} has no table of thresholds; give "
                "router.threshold, or save a table into its bundle with `thriftroute calibrate`",
                loc=("router", "strong_share"),
            )
        pool = config.router.strategy == "pool"
        self.places = self._places(config, models) if pool else {}

    def threshold_for(self, share: float) -> tuple[float, str]:
        """(threshold, where it is from) for a share of strong calls in [0, 1].

        Raises RefusedError (400) where the router has no table.
        """
        if self.table is None:
            raise RefusedError(
                400,
                "no_threshold_table",
                f"router {self.name!r} has no table from strong shares to thresholds; ask for a "
                "threshold instead of a share or a quality",
            )
        threshold, nearest = self.table.threshold_for(share)
        return threshold, f"strong share {nearest:.3g} by table {self.table.name!r}"

    def score(self, asked: Asked) -> tuple[float | None, str]:
        """(score, "") or (None, what went wrong)."""
        try:
            conversation = self._conversation(asked)
            if conversation.is_blank:
                return None, "no text to score"
            values = self._router.scores([conversation])
        except Exception as error:  # noqa: BLE001 - whatever it is, the request goes out
            # Not the error's own message: it may quote the prompt.
            return None, self._failed(place(error))
        try:
            return float(checked_scores(values, 1)[0]), ""
        except RoutingError as error:
            return None, self._failed(str(error))

    def familiarity(self, asked: Asked) -> float | None:
        """How like the bundle's training the prompt is, in [0, 1]; None where it does not tell."""
        if self._scorer is None:
            return None
        try:
            conversation = self._conversation(asked)
            return None if conversation.is_blank else self._scorer.familiarity(conversation)
        except Exception as error:  # noqa: BLE001 - it is for a report: no request hangs on it
            self._failed(place(error))
            return None

    def losses(self, score: float) -> dict[str, float]:
        """What each model that the bundle knows is expected to lose against the strong one.

        As a probability: that the strong model's answer to a prompt of that score is preferred.
        For the bundle's own weak model that is the score; a model that stands halfway between weak
        and strong loses half of it, one that is better than the strong one less than nothing.
        Empty but for the strategy `pool`.
        """
        return {name: place * score for name, place in self.places.items()}

    def _conversation(self, asked: Asked) -> Conversation:
        """What of the messages the router gets to see, by `router.context`."""
        whole = as_conversation(asked.messages)
        return Conversation(
            whole.system if self._context == "full" else "",
            "" if self._context == "last" else whole.history,
            whole.last,
        )

    def _failed(self, what: str) -> str:
        logger.warning("router %r: scoring failed: %s", self.name, what)
        return f"scoring failed: {what}"

    def _table(self) -> ThresholdTable | None:
        """The last table of the bundle: one's own calibration stands after the one in the box."""
        tables = self._scorer.bundle.manifest.thresholds if self._scorer is not None else {}
        return ThresholdTable.from_dict(list(tables.values())[-1]) if tables else None

    def _places(self, config: Config, models: Mapping[str, Model]) -> dict[str, float]:
        """Where each model stands from the bundle's strong one, 0, to its weak one, 1.

        With q the qualities, s and w the strong and the weak model, the place of m is the least
        squares solution of q_s - q_m = place * (q_s - q_w) over the probes. Qualities say by how
        much models differ on a prompt, up to a constant that differs from bundle to bundle, so
        that a gap alone says nothing of who wins: the pair's score does. Models unknown to the
        bundle are left out.
        """
        if self._scorer is None:
            raise ConfigError(
                "router.strategy: 'pool' needs a bundle, whose qualities tell models apart; router "
                f"{self.name!r} is none",
                loc=("router", "strategy"),
            )
        columns = self._columns(config, models)
        quality = np.array([e.quality for e in self._scorer.encode_all(_PROBES, workers=1)], float)
        known = self._scorer.bundle.manifest.models
        strong = quality[:, known.index(self._scorer.strong)]
        gap = strong - quality[:, known.index(self._scorer.weak)]
        size = float(gap @ gap)
        if not np.isfinite(size) or size < 1e-12:
            raise ConfigError(
                f"router.strategy: the bundle of router {self.name!r} does not tell its own strong "
                "and weak model apart; use strategy 'pair'",
                loc=("router", "strategy"),
            )
        places = {n: float((strong - quality[:, at]) @ gap) / size for n, at in columns.items()}
        if places.get(config.strong, 0.0) >= places.get(config.weak, 1.0):
            logger.warning(
                "router.strategy 'pool': the bundle rates the weak model %r no worse than the "
                "strong one %r",
                config.weak,
                config.strong,
            )
        return places

    def _columns(self, config: Config, models: Mapping[str, Model]) -> dict[str, int]:
        """Pool model -> its column of the bundle's qualities; those unknown to it are left out.

        A model's column is its `bundle_model`'s, else that of its own name, else, for the strong
        and the weak model, that of the bundle's own pair.
        """
        assert self._scorer is not None
        known = list(self._scorer.bundle.manifest.models)
        pair = {config.strong: self._scorer.strong, config.weak: self._scorer.weak}
        columns: dict[str, int] = {}
        for name, model in models.items():
            if model.bundle_model is not None and model.bundle_model not in known:
                raise ConfigError(
                    f"model {name!r}: bundle_model {model.bundle_model!r} is not in the bundle of "
                    f"router {self.name!r}, which knows: {', '.join(known)}",
                    loc=("models", [m.name for m in config.models].index(name), "bundle_model"),
                )
            column = model.bundle_model or (name if name in known else pair.get(name))
            if column is not None:
                columns[name] = known.index(column)
        if len(set(columns.values())) < 2:
            raise ConfigError(
                "router.strategy: 'pool' needs at least two models that the bundle knows; give the "
                f"models their bundle_model, one of: {', '.join(known)}",
                loc=("router", "strategy"),
            )
        return columns

"""A router as the pipeline asks it: scores, thresholds for shares, qualities of a whole pool.

Scoring never fails a request and never raises: what went wrong is said in a line, which never holds
text of the prompt.
"""

import logging
from collections.abc import Mapping

import numpy as np

from ...router.controller import _place as place
from ...router.errors import ConfigError, RoutingError
from ...router.routers import BundleRouter, Router, checked_scores
from ...router.text import Conversation, as_conversation
from ...router.threshold import ThresholdTable
from ..errors import RefusedError
from ..registry import Model
from ..request import Asked
from ..settings import Config

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
                "router.threshold, or save a table into its bundle with `thriftroute calibrate`"
            )
        pool = config.router.strategy == "pool"
        self._columns = self._pool_columns(config, models) if pool else {}

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

    def qualities(self, asked: Asked) -> tuple[dict[str, float], str]:
        """(quality of each model that the bundle knows, in logits; "") or ({}, what went wrong).

        Only for the strategy `pool`. Qualities tell models apart for one prompt; their level means
        nothing: see `loss`.
        """
        if self._scorer is None:
            return {}, "the router tells no qualities"
        try:
            conversation = self._conversation(asked)
            if conversation.is_blank:
                return {}, "no text to score"
            (encoding,) = self._scorer.encode_all([conversation], workers=1)
        except Exception as error:  # noqa: BLE001 - as in `score`
            return {}, self._failed(place(error))
        found = {name: float(encoding.quality[at]) for name, at in self._columns.items()}
        if not np.all(np.isfinite(list(found.values()))):
            return {}, self._failed("the router returned a quality that is no finite number")
        return found, ""

    def loss(self, gap: float) -> float:
        """What is lost by a model whose quality lies `gap` logits below the best one's.

        As a probability: c(gap) - c(0), c being the bundle's calibration, which makes P(the better
        one's answer is preferred) of a gap. c(0) is how often that happens to an equal model.
        """
        if self._scorer is None:
            raise ConfigError(f"router {self.name!r} is no bundle, so it tells no losses")
        better, equal = (float(self._scorer.calibrated(x)) for x in (gap, 0.0))
        return max(better - equal, 0.0)

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

    def _pool_columns(self, config: Config, models: Mapping[str, Model]) -> dict[str, int]:
        """Pool model -> its column of the bundle's qualities; those unknown to it are left out.

        A model's column is its `bundle_model`'s, else that of its own name, else, for the strong
        and the weak model, that of the bundle's own pair.
        """
        if self._scorer is None:
            raise ConfigError(
                "router.strategy: 'pool' needs a bundle, whose qualities tell models apart; router "
                f"{self.name!r} is none"
            )
        known = list(self._scorer.bundle.manifest.models)
        pair = {config.strong: self._scorer.strong, config.weak: self._scorer.weak}
        columns: dict[str, int] = {}
        for name, model in models.items():
            if model.bundle_model is not None and model.bundle_model not in known:
                raise ConfigError(
                    f"model {name!r}: bundle_model {model.bundle_model!r} is not in the bundle of "
                    f"router {self.name!r}, which knows: {', '.join(known)}"
                )
            column = model.bundle_model or (name if name in known else pair.get(name))
            if column is not None:
                columns[name] = known.index(column)
        if len(set(columns.values())) < 2:
            raise ConfigError(
                "router.strategy: 'pool' needs at least two models that the bundle knows; give the "
                f"models their bundle_model, one of: {', '.join(known)}"
            )
        return columns

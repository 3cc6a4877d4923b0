"""Which router and threshold a request goes by: named in it, in the config, or the default's."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CalibrationError, ConfigError, RoutingError, ThresholdError, UnknownRouterError
from .decision import Decision
from .model_name import AUTO, FORM, PREFIX, check_no_router_meant, parse_model_name
from .routers import ROUTELLM_THRESHOLDS, Router, tables_of
from .text import check_messages
from .threshold import ThresholdTable, share_table, validate_threshold

logger = logging.getLogger(__name__)

Target = tuple[str, float, str]  # router, threshold, where the threshold is from
Wish = tuple[float | None, float | None]  # threshold, strong share: one of them is None


@dataclass(frozen=True)
class Targets:
    """The routers that are loaded, what each goes by where a request says nothing, and the names of
    models that may be asked themselves, whatever routers are called."""

    models: frozenset[str]
    routers: dict[str, Router] = field(default_factory=dict)
    wishes: dict[str, Wish] = field(default_factory=dict)
    _tables: dict[str, ThresholdTable | None] = field(default_factory=dict)

    def add(self, name: str, router: Router, wish: tuple[Any, Any], strong_share: float) -> None:
        """A router with its config's threshold and strong share; `strong_share`: where it has
        neither. Raises ConfigError."""
        self.routers[name] = router
        self.wishes[name] = (None, strong_share) if wish == (None, None) else wish
        if wish != (None, None):
            try:
                self.of(name, *wish)
            except RoutingError as error:
                raise ConfigError(f"config of router {name!r}: {error}") from error

    def wishing(self, threshold: float | None, strong_share: float | None) -> "Targets":
        """The same routers, which all go by this. Raises RoutingError."""
        for name in self.routers:
            self.of(name, threshold, strong_share)
        return replace(self, wishes=dict.fromkeys(self.routers, (threshold, strong_share)))

    def router(self, name: str) -> Router:
        """The one of that name. Raises UnknownRouterError."""
        if name not in self.routers:
            raise UnknownRouterError(name, tuple(self.routers))
        return self.routers[name]

    def of(
        self,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
    ) -> Target:
        """Router and threshold, filled in from what is loaded and configured."""
        loaded = ", ".join(self.routers)
        if router is None and len(self.routers) > 1:
            raise RoutingError(f"no router is named; {FORM}; loaded: {loaded}")
        name = next(iter(self.routers)) if router is None else router
        self.router(name)
        if threshold is None and strong_share is None:
            threshold, strong_share = self.wishes[name]
        if threshold is not None and strong_share is not None:
            raise RoutingError("give threshold or strong_share, and not both")
        if strong_share is None:
            return name, validate_threshold(threshold), ""
        try:
            if name not in self._tables:
                self._tables[name] = share_table(tables_of(self.routers[name]))
            table = self._tables[name]
            if table is not None:
                return (name, *table.sourced(strong_share))
        except CalibrationError as error:
            raise ThresholdError(f"router {name!r}: {error}") from error
        raise RoutingError(
            f"no threshold is given, nor set in the config of router {name!r}, which has no table "
            f"of thresholds for a strong share; {FORM}; loaded: {loaded}"
        )

    def named(
        self,
        request: Mapping[str, Any],
        router: str | None,
        threshold: float | None,
        strong_share: float | None,
    ) -> Decision | Target:
        """Router and threshold that a request names, or the decision where it names its model."""
        check_messages(request.get("messages"))
        model = request.get("model")
        if model is None or model == AUTO:
            return self.of(router, threshold, strong_share)
        if not isinstance(model, str) or not model.strip():
            raise RoutingError(
                f"model must be a name, got {model!r}; {FORM}, or a model's own name"
            )
        if model.startswith(PREFIX):
            name, limit = parse_model_name(model, self.routers)
            if limit is not None:
                if limit in ROUTELLM_THRESHOLDS:
                    logger.warning(ROUTELLM_THRESHOLDS[limit], model)
                return self.of(name, limit)
            return self.of(name, threshold, strong_share)
        if (router, threshold, strong_share) != (None, None, None):
            raise RoutingError(
                f"the request names the model {model!r} and a router or threshold too: leave out "
                f"one of them; {FORM}"
            )
        if model not in self.models:
            check_no_router_meant(model, self.routers)
        return Decision(model, "direct", None, None, None, "the caller named the model", 0.0)

    def described(self, name: str) -> str:
        """With its threshold."""
        try:
            _, threshold, source = self.of(name)
        except RoutingError:
            return f"{name} (no threshold)"
        return f"{name} (threshold {threshold:.6g}{source and f', {source}'})"

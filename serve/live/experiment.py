"""An experiment on live traffic: which arm a request is in, and the pipeline that plans it."""

import hashlib
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...eval.drift.arms import CONTROL, TREATMENT
from ...router.model_name import AUTO
from ...router.routers import Router, load_router
from ..config.settings import Config
from ..errors import bad_setting
from ..policy.pipeline import Pipeline
from ..policy.selection import Fastest
from ..registry import Model
from ..request import ChatRequest

_HOW = ("threshold", "strong_share", "quality", "priority")


class Experiment:
    """The treatment beside the config's own pipeline. Safe to share between threads.

    Raises ConfigError, UnknownRouterError and BundleError where the treatment cannot be made.
    """

    def __init__(
        self,
        config: Config,
        registry: Mapping[str, Model],
        router: Router,
        fastest: Fastest = lambda _: None,
    ) -> None:
        """router: the control's, used again where the experiment names no other."""
        assert config.experiment is not None
        self.settings = trial = config.experiment
        self._names = {AUTO, f"router-{config.router.name}"}
        own: dict[str, Any] = {"hold": None}
        if trial.threshold is not None or trial.strong_share is not None:
            own |= {"threshold": trial.threshold, "strong_share": trial.strong_share}
        if trial.router is not None:
            own |= {"name": trial.router, "checkpoint_path": None}
        changed = config.router.model_copy(update=own)
        treatment = config.model_copy(update={"router": changed})
        options: Any = {"threads": changed.threads, "context": changed.context}
        try:
            self.router = load_router(trial.router, {}, **options) if trial.router else router
            self.pipeline = Pipeline(treatment, registry, self.router, fastest=fastest)
            if self.pipeline.threshold is None:
                raise ConfigError(
                    f"router {changed.name!r} has no table of thresholds; give the experiment a "
                    "threshold"
                )
        except ConfigError as error:
            raise bad_setting("experiment", str(error)) from error

    def arm(self, asked: ChatRequest) -> str | None:
        """ "control" or "treatment", the same for a session (or a tenant) whichever worker answers;
        None where the request says itself how it is to be routed."""
        says_how = any(getattr(asked.options, name) is not None for name in _HOW)
        if says_how or asked.model not in self._names:
            return None
        who = asked.principal.tenant
        if self.settings.by == "session":
            who += f"\0{asked.session.name if asked.session and asked.session.told else asked.id}"
        text = f"{self.settings.name}\0{who}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64
        return TREATMENT if drawn < self.settings.share else CONTROL

    def recorded(self, arm: str | None) -> str | None:
        """The arm as decisions hold it."""
        return arm and f"{self.settings.name}/{arm}"

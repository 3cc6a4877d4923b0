"""Which threshold a request's pair has, and where it is from.

A rule's, else the one in the model's name, else the request's own (`threshold`, `strong_share`,
`quality`); without any of them the one that is held, else the config's.
"""

from ...router.threshold import validate_threshold
from ..config.settings import RouterSettings, Rule
from ..errors import RefusedError
from ..request import Asked
from .scoring import Scoring


class Thresholds:
    """Thresholds of one config and router, each as (threshold, where it is from)."""

    def __init__(self, settings: RouterSettings, scoring: Scoring) -> None:
        self._settings = settings
        self._scoring = scoring
        self._held: tuple[float, str] | None = None

    @property
    def standing(self) -> float | None:
        """That of a request that asks for none; None: there is none."""
        if self._held is not None:
            return self._held[0]
        settings = self._settings
        if settings.threshold is None and settings.strong_share is not None:
            return self._scoring.threshold_for(settings.strong_share)[0]
        return settings.threshold

    def hold(self, threshold: float, source: str) -> None:
        """From now on this instead of the config's; source: said in reasons."""
        self._held = (validate_threshold(threshold), source)

    def wanted(
        self, asked: Asked, named: float | None, rule: Rule | None
    ) -> tuple[float, str] | None:
        """What the rule or the request asks for; None: neither.

        named: the threshold in the model's name. Raises RefusedError (400) for a quality that is
        not set up, or a share where the router has no table of shares.
        """
        options = asked.options
        if rule is not None and rule.threshold is not None:
            return rule.threshold, f"of rule {rule.name!r}"
        if named is not None:
            return named, "of the model's name"
        if options.threshold is not None:
            return options.threshold, "of the request"
        if options.strong_share is not None:
            return self._scoring.threshold_for(options.strong_share)
        if options.quality is not None:
            share = self._settings.quality.get(options.quality)
            if share is None:
                raise RefusedError(
                    400,
                    "no_such_quality",
                    f"quality {options.quality!r} is not set up here; this server knows: "
                    + ", ".join(self._settings.quality),
                    param="quality",
                )
            threshold, source = self._scoring.threshold_for(share)
            return threshold, f"quality {options.quality}: {source}"
        return None

    def default(self) -> tuple[float, str]:
        """For a request that asks for none. Raises RefusedError (400) where none is configured."""
        settings = self._settings
        if self._held is not None:
            return self._held
        if settings.threshold is not None:
            return settings.threshold, ""
        if settings.strong_share is not None:
            return self._scoring.threshold_for(settings.strong_share)
        raise RefusedError(
            400,
            "no_threshold",
            f"no threshold is configured: ask for a model such as 'router-{settings.name}-0.5', or "
            "set router.threshold in the server's config",
            param="model",
        )

"""Which models fail at present, and how long each takes. One process's own view.

LiteLLM's Router (1.106) has cooldowns too, but counts failures by the minute instead of in a row,
none of a provider that cannot be reached, and refuses requests while all models cool down.
"""

import time
from collections.abc import Callable, Sequence

_WEIGHT = 0.2  # of the newest in the moving average


class Health:
    """Failures in a row and cooldowns. For one event loop; never blocks, never raises."""

    def __init__(
        self, failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failed: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def succeeded(self, model: str, seconds: float) -> None:
        """The model answered, after `seconds` of waiting for it."""
        self._failed.pop(model, None)
        self._until.pop(model, None)
        self._took(model, seconds)

    def failed(self, model: str, seconds: float | None = None) -> None:
        """It failed; `seconds` where it let one wait and this should count as its speed.

        After a cooldown the count goes on: a model that is still down cools again at once.
        """
        self._failed[model] = self._failed.get(model, 0) + 1
        if self._failed[model] >= self._limit and self._cooldown_s > 0:
            self._until[model] = self._clock() + self._cooldown_s
        if seconds is not None:
            self._took(model, seconds)

    def cooling(self) -> dict[str, float]:
        """Models that are left alone after failures, and for how many seconds more."""
        now = self._clock()
        return {name: until - now for name, until in self._until.items() if until > now}

    def order(self, models: Sequence[str]) -> list[str]:
        """`models`, those that cool down last: they are asked only where no other answers."""
        cooling = self.cooling()
        return sorted(models, key=lambda name: name in cooling)

    def latency(self, model: str) -> float | None:
        """Seconds that it takes to answer, as a moving average; None before the first answer."""
        return self._seconds.get(model)

    def _took(self, model: str, seconds: float) -> None:
        before = self._seconds.get(model, seconds)
        self._seconds[model] = before + _WEIGHT * (seconds - before)

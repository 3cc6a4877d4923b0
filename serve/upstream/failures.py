"""The calls that were made, which models fail, and what a client reads where none was answered."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...providers.error_meaning import NO_KEY, CallError, FailureKind
from ...providers.redaction import redact
from ..errors import RefusedError

# Where every model's last cause is this one: the answer's status and code. Else 502.
_ALL = {
    "timed out": (504, "upstream_timeout"),
    "HTTP 429": (429, "upstream_rate_limited"),
    "HTTP 503": (503, "upstream_unavailable"),
}
_WEIGHT = 0.2  # of the newest in the moving average


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of one model. `status` is HTTP's, None where no answer came; `error` a word for it;
    `seconds` the time spent waiting; `usage` what the provider counted, None if it did not say.
    `beside`: for the second look alone, no step on the way to an answer."""

    model: str
    status: int | None
    error: str | None
    seconds: float
    usage: Mapping[str, Any] | None = None
    beside: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the record."""
        told = {name: getattr(self, name) for name in ("model", "status", "error")}
        found = {**told, "seconds": round(self.seconds, 4), "usage": self.usage}
        return {**found, "beside": True} if self.beside else found

    @property
    def cause(self) -> str:
        """Why it failed, for the client."""
        if self.status not in {None, 200}:
            return f"HTTP {self.status} ({self.error})"
        said = {"Timeout": "timed out", NO_KEY: "the server has no API key for it"}
        return said.get(self.error or "", str(self.error))


class UpstreamError(RefusedError):
    """No model answered, or one says that the request is wrong (`final`: no other is to be asked).

    Its text names models and causes only and may be written down. `detail`, what the provider said
    of the client's own request, is for that client alone: it may quote the prompt.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        attempts: Sequence[Attempt] = (),
        detail: str | None = None,
        final: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.final = final
        self.attempts = tuple(attempts)
        self.detail = detail
        super().__init__(status, code, message, headers=headers)

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer, with what the provider said."""
        body = super().to_dict()
        if self.detail:
            body["error"]["message"] = f"{self}: {self.detail}"
        return body


def refused(
    attempts: Sequence[Attempt], failure: CallError, secrets: Iterable[str]
) -> UpstreamError:
    """The answer to a request that models called wrong: the last one's own words, without keys."""
    status = failure.status or 400
    return UpstreamError(
        status if 400 <= status < 500 else 400,
        failure.code,
        f"model {attempts[-1].model!r} {failure.what}",
        attempts=attempts,
        detail=redact(failure.detail, secrets) if failure.detail else None,
        final=failure.kind is FailureKind.STOP,
    )


def all_failed(attempts: Sequence[Attempt], wait_s: float | None) -> UpstreamError:
    """The answer where no model was left to ask: 504, 429, 503 or 502, with each one's cause."""
    causes: dict[str, list[str]] = {}
    for attempt in attempts:
        causes.setdefault(attempt.model, []).append(attempt.cause)
    told = "; ".join(f"{name}: {', '.join(dict.fromkeys(why))}" for name, why in causes.items())
    kinds = {why[-1].split(" (")[0] for why in causes.values()}
    status, code = _ALL.get(" ".join(kinds), (502, "upstream_failed"))
    headers = {"Retry-After": str(max(1, round(wait_s or 1)))} if status == 429 else {}
    message = f"no model could answer: {told}"
    return UpstreamError(status, code, message, attempts=attempts, headers=headers)


class Health:
    """Failures in a row and cooldowns, as one process sees them. Never blocks, never raises."""

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
        """It failed; `seconds` where it let one wait. After a cooldown the count goes on: a model
        that is still down cools again at once."""
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

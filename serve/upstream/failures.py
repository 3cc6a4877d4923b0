"""The calls that were made, and what a client gets to read where none was answered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of one model. `status` is HTTP's, None where no answer came; `error` a word for it.

    `usage` is what the provider counted, None where it did not say. `seconds` is the time spent
    waiting for the provider.
    """

    model: str
    status: int | None
    error: str | None
    seconds: float
    usage: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the record."""
        return {**asdict(self), "seconds": round(self.seconds, 4)}

    @property
    def cause(self) -> str:
        """Why it failed, for the client."""
        if self.status not in {None, 200}:
            return f"HTTP {self.status} ({self.error})"
        said = {"Timeout": "timed out", NO_KEY: "the server has no API key for it"}
        return said.get(self.error or "", str(self.error))


class UpstreamError(RefusedError):
    """No model answered, or one says that the request is wrong (`final`: no other was or should
    be asked). `attempts` as far as they went; what has usage has to be paid.

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

"""What to do after a failed call, and what a client gets to read about it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...router.completion import causes
from ..errors import RefusedError

_HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"key|token|secret|password|credential|authorization", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|AIza|AKIA)[-_A-Za-z0-9*]{12,}|(?<=Bearer )[^\s,;\"']+", re.IGNORECASE
)
_TRANSIENT = frozenset({408, 409, 425, 429})
_PROVIDER = frozenset({401, 402, 403, 404, 405})
# LiteLLM's and OpenAI's classes by name: they are imported at the first call, not here.
_LATE = ("TimeoutError", "Timeout", "APITimeoutError")
_UNANSWERED = ("APIConnectionError", "ConnectionError", "TransportError")
NO_KEY = "NoApiKey"
_PREFIX = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception)|Timeout)\s*(?::|-)\s*")


class Verdict(Enum):
    """What a failure means for the request."""

    RETRY = "the same model may answer at the next try"
    NEXT = "this model will not answer; another may"
    UNFIT = "this model cannot take this request, and is not to blame for it; another may"
    WINDOW = "the prompt is too long for this model; one with a larger window may answer"
    STOP = "the request itself is at fault"


class ShapeError(Exception):
    """A request that cannot be sent as it is: its client's doing, and no model's failure."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of one model. `status` is HTTP's, None where no answer came; `error` a class name.

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
        return {
            "model": self.model,
            "status": self.status,
            "error": self.error,
            "seconds": round(self.seconds, 4),
            "usage": None if self.usage is None else dict(self.usage),
        }


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


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the provider's answer; None where there was none, or none is known."""
    # LiteLLM gives a status to everything, also to a connection that was refused.
    if (
        _timed_out(error)
        or _lacks_key(error)
        or any(_is(cause, *_UNANSWERED) for cause in causes(error))
    ):
        return None
    try:
        return int(getattr(error, "status_code", ""))
    except (TypeError, ValueError):
        return None


def name_of(error: BaseException) -> str:
    """A word for the error, for records: a class name; "Timeout" for every way to be late."""
    if _timed_out(error):
        return "Timeout"
    if _lacks_key(error):
        return NO_KEY
    if _untranslatable(error):
        return "RequestShape"
    if status_of(error) is None and any(_is(cause, *_UNANSWERED) for cause in causes(error)):
        return "ConnectionError"
    inner = getattr(error, "original_exception", None)  # LiteLLM's name for a stream that broke
    return type(inner if isinstance(inner, Exception) else error).__name__


def verdict(error: BaseException) -> Verdict:
    """What `error`, raised by LiteLLM or by a timeout, means for the request."""
    # To wait as long again for the same model is no help, nor does a key come by itself.
    if _timed_out(error) or _lacks_key(error):
        return Verdict.NEXT
    if _is(error, "ContextWindowExceededError"):
        return Verdict.WINDOW
    if _is(error, "UnsupportedParamsError") or _untranslatable(error):
        return Verdict.UNFIT
    # Whatever has no status was no answer to the request: never the client's fault.
    status = 500 if _is_masked(error) else status_of(error) or 500
    if status in _TRANSIENT or status >= 500:
        return Verdict.RETRY
    if status in _PROVIDER:
        return Verdict.NEXT
    return Verdict.UNFIT if status == 413 else Verdict.STOP


def refused(
    attempts: Sequence[Attempt], error: BaseException, secrets: Iterable[str]
) -> UpstreamError:
    """The answer to a request that models called wrong: the last one's own words, without keys."""
    status = status_of(error) or 400
    if _is(error, "ContentPolicyViolationError"):
        code, what = "content_policy_violation", "refused the prompt for its content"
    elif _is(error, "ContextWindowExceededError"):
        code, what = "context_length_exceeded", "has too small a context window for this prompt"
    elif _is(error, "UnsupportedParamsError"):
        code, what = "unsupported_parameter", "does not support a parameter of the request"
    else:
        code, what = "upstream_rejected", "rejected the request"
    words: str | None = _own_words(error)
    if _untranslatable(error):
        code, what, words = "invalid_request", "cannot be sent a request of this shape", None
    return UpstreamError(
        status if 400 <= status < 500 else 400,
        code,
        f"model {attempts[-1].model!r} {what}",
        attempts=attempts,
        detail=None if words is None else redact(words, secrets),
        final=verdict(error) is Verdict.STOP,
    )


def all_failed(attempts: Sequence[Attempt], wait_s: float | None) -> UpstreamError:
    """The answer where no model was left to ask: 504, 429, 503 or 502, with each one's cause."""
    causes: dict[str, list[str]] = {}
    for attempt in attempts:
        causes.setdefault(attempt.model, []).append(_cause(attempt))
    told = "; ".join(f"{name}: {', '.join(dict.fromkeys(why))}" for name, why in causes.items())
    kinds = {why[-1].split(" (")[0] for why in causes.values()}
    headers = {}
    if kinds == {"timed out"}:
        status, code = 504, "upstream_timeout"
    elif kinds == {"HTTP 429"}:
        status, code = 429, "upstream_rate_limited"
        headers["Retry-After"] = str(max(1, round(wait_s or 1)))
    elif kinds == {"HTTP 503"}:
        status, code = 503, "upstream_unavailable"
    else:
        status, code = 502, "upstream_failed"
    return UpstreamError(
        status, code, f"no model could answer: {told}", attempts=attempts, headers=headers
    )


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`, or anything else that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return _SECRET_TEXT.sub(_HIDDEN, text)


def secrets_of(params: object, name: str = "") -> set[str]:
    """The values in a model's parameters that are keys, by their names, at any depth."""
    if isinstance(params, Mapping):
        return {s for key, value in params.items() for s in secrets_of(value, str(key))}
    if isinstance(params, str) and _SECRET_NAME.search(name) and len(params) >= 4:
        return {params}
    return set()


def _cause(attempt: Attempt) -> str:
    if attempt.status == 200:
        return str(attempt.error)
    if attempt.status is not None:
        return f"HTTP {attempt.status} ({attempt.error})"
    said = {"Timeout": "timed out", NO_KEY: "the server has no API key for it"}
    return said.get(attempt.error or "", str(attempt.error))


def _own_words(error: BaseException) -> str:
    """What the provider said, without the names that LiteLLM puts before it."""
    text = str(getattr(error, "message", None) or error)
    for end in ("Traceback (most recent call last)", " To drop these, set"):  # LiteLLM's own
        text = text.split(end, maxsplit=1)[0].strip()
    while (shorter := _PREFIX.sub("", text)) != text:
        text = shorter
    return text[:2000]


def _untranslatable(error: BaseException) -> bool:
    """Where LiteLLM itself stumbled over the request, as it does over messages that are no objects:
    the provider was never asked. Over an answer it stumbles inside the provider's own error."""
    if isinstance(error, ShapeError):
        return True
    if not _is(error, "APIConnectionError"):
        return False
    cause = error.__cause__ or error.__context__
    return type(cause) in {AttributeError, TypeError, KeyError, IndexError}


def _is_masked(error: BaseException) -> bool:
    """An error in an answer of status 200: LiteLLM makes a 422 of it where it names no code."""
    return any(type(cause) is Exception for cause in causes(error))


def _lacks_key(error: BaseException) -> bool:
    """OpenAI's client was not even made: what a provider answers is of a class beneath this one."""
    return any(
        type(cause).__name__ == "OpenAIError" and type(cause).__module__.startswith("openai")
        for cause in causes(error)
    )


def _timed_out(error: BaseException) -> bool:
    return _is(error, *_LATE)


def _is(error: BaseException, *names: str) -> bool:
    return any(cls.__name__ in names for cls in type(error).__mro__)

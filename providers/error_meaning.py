"""What a failed call means: for the request, and for the model's health.

What the provider sent decides, as it came over HTTP (`http_answer`): its status, then the code and
the words of its error. Where it was sent nothing, the request or the server's own set-up is at
fault, and the model's health is untouched: else any client could make a model cool down for all.
LiteLLM's own classes are asked only for what never came to HTTP.
"""

import json
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import aiohttp
import httpx

from .http_answer import HttpAnswer

_TRANSIENT = frozenset({408, 409, 425, 429})
UNUSABLE = frozenset({401, 402, 403, 404, 405})  # no request to this model will be answered
_NAMES = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError",
    404: "NotFoundError", 408: "Timeout", 409: "ConflictError", 413: "RequestTooLargeError",
    422: "UnprocessableEntityError", 429: "RateLimitError", 500: "InternalServerError",
    503: "ServiceUnavailableError",
}  # fmt: skip
NO_KEY = "NoApiKey"
_WINDOW = re.compile(
    r"context[_ ](?:length|window|limit)|context_size|prompt is too long|input is too long"
    r"|maximum (?:context|prompt|input)|exceeds? the maximum number of (?:input )?tokens"
    r"|input tokens exceed|too many input tokens",
    re.IGNORECASE,
)
_CONTENT = re.compile(
    r"content[_ ]policy|content[_ ]filter|content management policy|safety system"
    r"|responsibleaipolicyviolation|moderation_blocked|invalid_prompt",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception)|Timeout)\s*(?::|-)\s*")
# A connection that failed.
_TRANSPORT = (httpx.TransportError, ConnectionError, aiohttp.ClientError)


class FailureKind(Enum):
    """What a failure means for the request."""

    RETRY = "the same model may answer at the next try"
    NEXT = "this model will not answer; another may"
    UNFIT = "this model cannot take this request, and is not to blame for it; another may"
    WINDOW = "the prompt is too long for this model; one with a larger window may answer"
    STOP = "the request itself is at fault"


class ShapeError(Exception):
    """A request that cannot be sent as it is: its client's doing, and no model's failure. Its text
    says what is wrong and where, without quoting the request."""


class CutError(Exception):
    """A stream that ended without saying that it is complete."""


@dataclass(slots=True)
class CallError(Exception):
    """A call that gave no answer. `name`: a word for records; `status`: HTTP's, None where no
    answer came. `counts`: whether it is a failure of the model; what a client can bring about is
    none. `code`, `what` and `detail` are for the client where no model answers: `what` continues
    "model 'x' ...", `detail` is what the provider said, which may quote the prompt.
    `retry_after_s`: what the provider asks to wait. `may_cost`: the request went out and nobody
    refused it."""

    kind: FailureKind
    name: str
    status: int | None = None
    counts: bool = False
    code: str = "upstream_rejected"
    what: str = "rejected the request"
    detail: str | None = None
    retry_after_s: float | None = None
    may_cost: bool = False


def meaning_of(error: Exception, http: HttpAnswer) -> CallError:
    """What `error` means, raised by LiteLLM, by a timeout or by ourselves while `http` was watched.

    That what a request refers to cannot be found, or not in time, is not the provider's failure;
    nor is an answer of any size where the request asked for more than one plain answer.
    """
    status = http.status or _status_elsewhere(error, http)
    if http.too_large:
        # It would be as large again.
        found = CallError(FailureKind.NEXT, "AnswerTooLargeError", counts=not http.large)
    elif status is not None:
        found = _answered(error, status, http)
    elif http.sent or (not http.refers and _is(error, *_TRANSPORT)):
        found = _broken_off(error, "ConnectionError")
    else:
        found = _unsent(error, http)
    found.counts = found.counts and not http.refers
    found.retry_after_s = _retry_after(http)
    found.may_cost = http.is_success or (
        http.sent and status is None and not _is_unconnected(error)
    )
    return found


def _answered(error: Exception, status: int, http: HttpAnswer) -> CallError:
    """The provider has answered, with this status."""
    codes, said = _told(http)
    said = said or own_words(error)
    words = f"{codes} {said}"
    if _litellms(error, "ContextWindowExceededError") or _WINDOW.search(words):
        return _window(status, said)
    if 200 <= status < 300:  # who says so has taken the request
        name = "ConnectionError" if _is(error, *_TRANSPORT) else "BadAnswerError"
        return _broken_off(error, "CutError" if isinstance(error, CutError) else name)
    name = _NAMES.get(status, "APIError")
    if status in _TRANSIENT or status >= 500 or status < 400:
        return CallError(FailureKind.RETRY, name, status, counts=True)
    if _litellms(error, "ContentPolicyViolationError") or _CONTENT.search(words):
        code, what = "content_policy_violation", "refused the prompt for its content"
        name = "ContentPolicyViolationError"
        return CallError(FailureKind.STOP, name, status, code=code, what=what, detail=said)
    if status in UNUSABLE:
        return CallError(FailureKind.NEXT, name, status, counts=True)
    kind = FailureKind.UNFIT if status == 413 else FailureKind.STOP
    return CallError(kind, name, status, detail=said)


def _broken_off(error: Exception, name: str) -> CallError:
    """No answer, or not all of it."""
    if _is_late(error):  # to wait as long again for the same model is no help
        return CallError(FailureKind.NEXT, "Timeout", counts=True)
    return CallError(FailureKind.RETRY, name, counts=True)


def _unsent(error: Exception, http: HttpAnswer) -> CallError:
    """The provider was sent nothing. What LiteLLM raises then says why, as far as it is known."""
    # Of this very class where OpenAI's client was not even made; an answer's is one beneath it.
    openais = getattr(sys.modules.get("openai"), "OpenAIError", None)
    lacks_key = any(type(cause) is openais for cause in causes(error))
    if lacks_key or _litellms(error, "AuthenticationError"):
        return CallError(FailureKind.NEXT, NO_KEY, counts=True)  # it does not come by itself
    if _litellms(error, "ContextWindowExceededError"):
        return _window(None, own_words(error))
    code, what, name, status = "invalid_request", "", "RequestShape", None
    if _litellms(error, "UnsupportedParamsError"):
        code, name, status = "unsupported_parameter", "UnsupportedParamsError", 400
        what = "does not support a parameter of the request"
    elif missing := next((c for c in causes(error) if isinstance(c, ImportError)), None):
        return CallError(FailureKind.NEXT, type(missing).__name__)  # a package that it needs
    elif http.refers and (_is_late(error) or _is(error, *_TRANSPORT)):
        what = "cannot be sent what an address in the request names: it could not be got"
    elif _is_late(error):
        return CallError(FailureKind.NEXT, "Timeout")
    else:
        told = str(error) if isinstance(error, ShapeError) else ""
        what = f"cannot be sent {told or 'a request of this shape'}"
    detail = own_words(error) if _litellms(error, "BadRequestError") else None
    return CallError(FailureKind.UNFIT, name, status, code=code, what=what, detail=detail)


def _window(status: int | None, said: str) -> CallError:
    code, what = "context_length_exceeded", "has too small a context window for this prompt"
    name = "ContextWindowExceededError"
    return CallError(FailureKind.WINDOW, name, status, code=code, what=what, detail=said)


def _told(http: HttpAnswer) -> tuple[str, str]:
    """(codes and types, message) of the error that the provider sent; "" where it is no JSON."""
    try:
        level = json.loads(b"".join(http.parts))
    except (ValueError, RecursionError):
        return "", ""
    level = level[0] if isinstance(level, list) and level else level  # as Gemini has it
    codes: list[str] = []
    message = ""
    for inner in ("error", "innererror", ""):  # as it is wrapped, the innermost last
        if not isinstance(level, Mapping):
            break
        codes += [str(level[name]) for name in ("code", "type", "status") if level.get(name)]
        for name in ("message", "detail", "error"):
            message = message or (level[name] if isinstance(level.get(name), str) else "")
        level = level.get(inner)
    return " ".join(codes), message[:2000]


def _status_elsewhere(error: Exception, http: HttpAnswer) -> int | None:
    """The status from a provider that LiteLLM does not call through httpx's asynchronous client,
    where only an answer leads to the error's class; not where a client's address may answer."""
    said = _litellms(error, "RateLimitError", "ServiceUnavailableError", "NotFoundError")
    return int(error.status_code) if said and not http.refers else None  # type: ignore[attr-defined]


def _retry_after(http: HttpAnswer) -> float | None:
    """Seconds that the provider asks to wait; None where it does not say, or names a date."""
    with suppress(AttributeError, KeyError, ValueError):  # no answer, or not in it
        return max(0.0, float(http.response.headers["retry-after"]))  # type: ignore[union-attr]
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error of a call, and what it was raised from or while handling."""
    cause: BaseException | None = error
    for _ in range(12):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def own_words(error: BaseException) -> str:
    """What LiteLLM says, without the names that it puts before it and its advice to programmers."""
    text = str(getattr(error, "message", None) or error)
    for end in ("Traceback (most recent call last)", " To drop these, set", " To drop it, set"):
        text = text.split(end, maxsplit=1)[0].strip()
    while (shorter := _PREFIX.sub("", text)) != text:
        text = shorter
    return text[:2000]


def _is(error: BaseException, *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes(error))


def _is_late(error: BaseException) -> bool:
    late = _is(error, TimeoutError, httpx.TimeoutException)
    return late or any(_litellms(cause, "Timeout") for cause in causes(error))


def _litellms(error: BaseException, *names: str) -> bool:
    """Whether it is of one of these classes of LiteLLM's, which need not be loaded."""
    known = getattr(sys.modules.get("litellm"), "exceptions", None)
    return any(isinstance(error, getattr(known, name, ())) for name in names)


def _is_unconnected(error: BaseException) -> bool:
    """Whether no connection was made. LiteLLM calls it a ConnectError too where one that stood
    was reset."""
    refused = (aiohttp.ClientConnectorError, httpx.ConnectTimeout, ConnectionRefusedError)
    if _is(error, *refused, socket.gaierror):
        return True
    was_reset = _is(error, aiohttp.ClientOSError, ConnectionResetError, BrokenPipeError)
    return _is(error, httpx.ConnectError) and not was_reset

"""Answers to a request that end it, as OpenAI shapes them."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, ThriftrouteError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_ANTHROPICS = {
    **_TYPES,
    402: "billing_error",
    413: "request_too_large",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES = "/messages"


class RefusedError(ThriftrouteError):
    """A request that gets no model's answer. `status` is HTTP's, `code` a word for programs.

    Neither message nor headers hold text of the prompt, or a key.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        super().__init__(message)

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer, as OpenAI's clients read it."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": _TYPES.get(self.status, other)}
        return {"error": {**error, "param": self.param, "code": self.code}}

    def told_at(self, path: str) -> dict[str, Any]:
        """The body of the answer, as the clients of the door at this path read it."""
        return as_anthropics(self.to_dict(), self.status) if _MESSAGES in path else self.to_dict()


def as_anthropics(told: Mapping[str, Any], status: int | None = None) -> dict[str, Any]:
    """An error of OpenAI's shape in that of Anthropic's Messages; status None: within a stream."""
    error = told["error"]
    kind = _ANTHROPICS.get(status or 500, "invalid_request_error")
    kind = "api_error" if (status or 500) >= 500 and status not in _ANTHROPICS else kind
    said = {"type": kind, "message": error["message"], "code": error["code"]}
    return {"type": "error", "error": said}


def wrong(param: str, problem: str) -> RefusedError:
    """A part of a request that is not what it should be: 400."""
    return RefusedError(400, "invalid_request", f"{param}: {problem}", param=param)


def bad_setting(key: str, problem: str) -> ConfigError:
    """A setting of the config that cannot be used; key: as "records.url"."""
    return ConfigError(f"{key}: {problem}", loc=tuple(key.split(".")))

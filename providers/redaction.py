"""Keys out of what is told: those that are known, and what looks like one."""

import os
import re
from collections.abc import Iterable, Mapping

_HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"key|token|secret|password|credential|authorization", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|AIza|AKIA)[-_A-Za-z0-9*]{12,}|(?<=Bearer )[^\s,;\"']+", re.IGNORECASE
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


def environment_secrets() -> set[str]:
    """The keys that providers find in this process's environment."""
    ends = ("_API_KEY", "_TOKEN", "_SECRET")
    return {v for name, v in os.environ.items() if name.endswith(ends) and len(v) >= 8}

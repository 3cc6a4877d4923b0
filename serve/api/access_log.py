"""One line of the log a request, where `server.access_log` is on: names and numbers, no text of a
prompt or an answer and no API key."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from ..records.record import Record

logger = logging.getLogger("thriftroute.access")
logger.setLevel(logging.INFO)  # others are for warnings

_SIMPLE = re.compile(r"[\w./:@+-]{1,100}")


def log_request(record: Record, body: Mapping[str, Any]) -> None:
    """A request that was recorded. body: the request's, of whose door only the name is told."""
    protocol = body["native"]["protocol"] if "native" in body else "chat/completions"
    tokens = f"{record.prompt_tokens}+{record.completion_tokens}"
    score, threshold = (
        None if number is None else f"{number:.4g}" for number in (record.score, record.threshold)
    )
    _log(
        {
            **{"key": record.key, "tenant": record.tenant, "door": f"/v1/{protocol}"},
            **{"asked": record.requested, "model": record.model},
            **{"score": score, "threshold": threshold},
            **{"status": record.status, "ms": round(record.latency_s * 1000)},
            **{"tokens": tokens, "cost": f"{record.cost:.6f}"},
        }
    )


def log_refusal(status: int, path: str) -> None:
    """A request that was refused before it was known what it asks for: no record is made of it."""
    _log({"door": path, "status": status})


def _log(values: Mapping[str, Any]) -> None:
    logger.info("%s", " ".join(f"{name}={_told(value)}" for name, value in values.items()))


def _told(value: object) -> str:
    """Names are clients' own: what could pass for another field is quoted."""
    text = "-" if value is None else str(value)
    return text if _SIMPLE.fullmatch(text) else json.dumps(text[:100])

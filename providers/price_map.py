"""A newer map of models and prices than the one that is installed with LiteLLM.

`refresh` downloads LiteLLM's public map, only when it is called; from then on every start uses the
copy in the user's cache folder, until a newer LiteLLM, which brings its own, is installed.
"""

import functools
import importlib.util
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError, DataError
from ..files import cache_folder, private, whole_file
from .completion import is_loaded, load_litellm

FORMAT = 1
MOST_BYTES = 64 * 1024 * 1024
_FEWEST = 0.5  # of the installed map's models: with fewer it is not whole
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_EXAMPLE = "sample_spec"  # an entry that explains the others
_PRICES = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh did. `changed`, `added`, `removed`: models, against the installed map."""

    path: str
    url: str
    fetched_at: str
    litellm: str
    models: int
    changed: int
    added: int
    removed: int


# What the copy says of itself, and its entries.
Copy = tuple[Refreshed | None, Mapping[str, Mapping[str, Any]]]


def map_path() -> Path:
    """Where the copy lies; it need not be there."""
    return cache_folder() / "prices.json"


def refresh(
    url: str | None = None, *, timeout_s: float = 30.0, most_bytes: int = MOST_BYTES
) -> Refreshed:
    """Download the map, check it, and keep it for the next start.

    url: LiteLLM's own where it is not given. Raises ConfigError (an address that is not https) and
    DataError (it cannot be had, or is no such map; what was there stays).
    """
    litellm = load_litellm()
    address = url or str(litellm.model_cost_map_url)
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigError(f"--url {address!r}: expected https://")
    # Names that start with ours were registered by a registry in this process.
    installed = {k: v for k, v in litellm.model_cost.items() if not k.startswith("thriftroute/")}
    installed.pop(_EXAMPLE, None)
    body = _download(address, timeout_s, most_bytes)
    models = _checked(body, address, math.ceil(_FEWEST * len(installed)))
    path = map_path()
    result = Refreshed(
        path=str(path),
        url=address,
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        litellm=metadata.version("litellm"),
        models=len(models),
        changed=sum(k in installed and rates(installed[k]) != rates(v) for k, v in models.items()),
        added=sum(key not in installed for key in models),
        removed=sum(key not in models for key in installed),
    )
    head = {k: v for k, v in asdict(result).items() if k != "path"}
    whole = {"format": FORMAT, **head, "entries": models}
    with whole_file(path, opener=private) as file:
        file.write(json.dumps(whole, ensure_ascii=False).encode())
    return result


def installed() -> Mapping[str, Mapping[str, Any]]:
    """LiteLLM's map as it is installed, and with what was registered where LiteLLM is loaded."""
    is_local = os.environ.get("LITELLM_LOCAL_MODEL_COST_MAP", "True").lower() == "true"
    if not is_loaded() and is_local and (found := installed_file()) is not None:
        return found
    loaded: Mapping[str, Mapping[str, Any]] = load_litellm().model_cost
    return loaded


@functools.cache
def installed_file() -> Mapping[str, Mapping[str, Any]] | None:
    """The map, read without LiteLLM, whose import takes seconds and 200 MB; None where its file has
    another name by now: then LiteLLM is loaded after all."""
    found = importlib.util.find_spec("litellm")
    with suppress(OSError, ValueError):
        folder = Path(found.origin if found and found.origin else "").parent
        file = folder / "model_prices_and_context_window_backup.json"
        entries: dict[str, dict[str, Any]] = json.loads(file.read_bytes())
        for entry in list(entries.values()):
            for alias in entry.get("aliases") or ():
                entries.setdefault(alias, entry)
        return entries
    return None


def rates(entry: Mapping[str, Any]) -> dict[str, Any]:
    """All that an entry of a map says about prices."""
    return {name: rate for name, rate in entry.items() if "cost" in name or "pricing" in name}


def reset() -> bool:
    """Delete the copy; whether there was one."""
    found = map_path().exists()
    map_path().unlink(missing_ok=True)
    return found


def read() -> Copy:
    """The copy; (None, {}) where there is none, or where LiteLLM is newer than it.

    One that cannot be read is passed over with a warning: the installed map is there.
    """
    with suppress(OSError):
        stamp, installed = map_path().stat(), metadata.version("litellm")
        return _read_once(map_path(), stamp.st_mtime_ns, stamp.st_size, installed)
    return None, {}


@functools.lru_cache(maxsize=1)
def _read_once(path: Path, modified: int, size: int, installed: str) -> Copy:
    """Once for each version of the copy, since every price asks."""
    try:
        whole = json.loads(path.read_bytes())
        if whole.pop("format") != FORMAT:
            raise ValueError("another format")
        entries = {k: v for k, v in whole.pop("entries").items() if isinstance(v, dict)}
        head = Refreshed(path=str(path), **whole)
        is_older = _version(head.litellm) < _version(installed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning(
            "prices: %s cannot be used (%s); LiteLLM's installed map is. "
            "Run `thriftroute prices refresh`",
            path,
            type(error).__name__,
        )
        return None, {}
    if is_older:
        logger.info("prices: LiteLLM is newer than %s; run `thriftroute prices refresh`", path)
        return None, {}
    return head, entries


def _download(url: str, timeout_s: float, most_bytes: int) -> bytes:
    import httpx  # late: most who ask for a price download nothing

    body = bytearray()
    try:
        with (
            httpx.Client(timeout=timeout_s, follow_redirects=True) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > most_bytes:
                    raise DataError(f"larger than {most_bytes:,} bytes", path=url)
    except httpx.HTTPStatusError as error:
        raise DataError(f"HTTP {error.response.status_code}", path=url) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataError(f"{type(error).__name__}: {error}", path=url) from error
    return bytes(body)


def _checked(body: bytes, url: str, fewest: int) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=url) from error
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, got {type(found).__name__}", path=url)
    if len(found) < fewest:
        raise DataError(f"not the whole map: it has only {len(found):,} entries", path=url)
    entries: dict[str, dict[str, Any]] = {}
    for key, entry in found.items():
        if not isinstance(entry, dict) or key == _EXAMPLE:
            continue
        for name in _PRICES:
            price = 0 if entry.get(name) is None else entry[name]
            if type(price) not in (int, float) or not 0 <= price < math.inf:
                raise DataError(
                    f"{key}: expected a price >= 0, got {price!r}", path=url, field=name
                )
        aliases = entry.pop("aliases", None)
        entries[key] = entry
        for alias in aliases if isinstance(aliases, list) else ():
            if isinstance(alias, str) and alias not in found:
                entries[alias] = entry
    return entries


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers: 1.106.2rc1 counts as 1.106.2."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()

"""Settings of routers and models, as given in code or in a YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def read_config(
    config: Mapping[str, Mapping[str, Any]] | str | Path | None,
) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """(settings by router, folder that their paths are relative to)."""
    if config is None or isinstance(config, Mapping):
        return as_settings(config, "config"), None
    import yaml

    path = Path(config)
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML makes errors of many kinds of numbers, dates, tags and depth
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    return as_settings(read, f"config {path}"), path.parent


def as_settings(value: object, where: str) -> dict[str, dict[str, Any]]:
    """A mapping of names to mappings, copied; an empty entry counts as one without settings."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping of names, got {type(value).__name__}")
    for name, settings in value.items():
        if not isinstance(name, str) or not isinstance(settings, Mapping | None):
            raise ConfigError(f"{where}: expected settings under {name!r}, as a mapping")
    return {name: dict(settings or {}) for name, settings in value.items()}

"""Settings of routers and models, as given in code or in a YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CalibrationError, ConfigError
from .model_name import PREFIX
from .threshold import check_share


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


def check_arguments(
    routers: object, strong_model: object, weak_model: object, on_error: object, strong_share: float
) -> None:
    """Of a Controller. Raises ConfigError."""
    for key, model in (("strong_model", strong_model), ("weak_model", weak_model)):
        if not isinstance(model, str) or not model.strip() or model.startswith(PREFIX):
            raise ConfigError(f"{key} must be the name of a model, got {model!r}")
    if on_error not in ("strong", "weak"):
        raise ConfigError(f"on_error must be 'strong' or 'weak', got {on_error!r}")
    if isinstance(routers, str) or not routers:
        raise ConfigError(f"routers must be a list of names such as ['mf'], got {routers!r}")
    try:
        check_share(strong_share)
    except CalibrationError as error:
        raise ConfigError(str(error)) from error

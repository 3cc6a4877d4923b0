"""The config that `thriftroute init` writes."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from thriftroute.errors import ConfigError
from thriftroute.serve.config.loader import load_config
from thriftroute.serve.config.settings import CAPABILITIES, KINDS, Config, Settings
from thriftroute.serve.config.template import TEMPLATE, write_template
from thriftroute.serve.registry import Registry


def everything_on() -> str:
    """With every setting that is turned off turned on."""
    return re.sub(r"^(\s*)#(?! |$)", r"\1", TEMPLATE, flags=re.M)


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "thriftroute.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, {})


def all_keys(kind: type[BaseModel]) -> Iterator[str]:
    yield from kind.model_fields
    for other in Settings.__subclasses__():
        if other is not kind and kind is Config:
            yield from all_keys(other)


def test_it_works_as_it_stands_without_a_key_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path))
    config = load(tmp_path, TEMPLATE)
    registry = Registry.build(config)
    assert set(registry) == {config.strong, config.weak}
    assert all("api_key" not in model.params for model in registry.values())
    assert config.records.url == "sqlite:///thriftroute.db"
    assert config.redis_url is None
    # A variable of another program's, such as DATABASE_URL, must not lead to its database.
    assert set(re.findall(r"\$\{(\w+):", TEMPLATE)) == {"NAME", "OPENAI_API_KEY"}


def test_with_everything_on_it_is_a_config_too(tmp_path: Path) -> None:
    config = load(tmp_path, everything_on())
    assert len(config.models) == 3
    assert len(config.rules) == 3
    assert set(config.tiers) == {"free", "pro", "enterprise"}


def test_it_names_every_setting_capability_and_kind() -> None:
    words = set(re.findall(r"\w+", TEMPLATE))
    missing = {*all_keys(Config), *CAPABILITIES, *KINDS} - words
    assert not missing


def test_the_values_that_it_shows_are_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, everything_on())
    # What shows an example instead: nobody has these by default.
    examples = {
        ("router", "strong_share"), ("router", "checkpoint_path"), ("records", "keep_days"),
        ("alerts", "webhook"), ("server", "admin_sha256"), ("calls", "cascade", "timeout_s"),
        ("calls", "second_look", "timeout_s"),
        ("router", "hold"), ("watch", "baseline"), ("server", "cors_origins"),
    }  # fmt: skip
    plain = Config(models=config.models, strong=config.strong, weak=config.weak)
    differ = {
        path
        for name in ("router", "calls", "cache", "records", "alerts", "server", "watch")
        for path in differences(getattr(config, name), getattr(plain, name), (name,))
    }
    assert differ == examples
    for name in ("sticky_s", "max_cost_action", "shadow"):
        assert getattr(config, name) == getattr(plain, name)


def differences(one: Any, other: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(one, BaseModel) and other is not None:
        for name in type(one).model_fields:
            yield from differences(getattr(one, name), getattr(other, name), (*path, name))
    elif one != other:
        yield path


def test_writing_it(tmp_path: Path) -> None:
    path = tmp_path / "thriftroute.yaml"
    write_template(path)
    assert path.read_text(encoding="utf-8") == TEMPLATE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already; --force replaces it"):
        write_template(path)
    assert path.read_text(encoding="utf-8") == "mine"
    write_template(path, force=True)
    assert path.read_text(encoding="utf-8") == TEMPLATE
    with pytest.raises(FileNotFoundError):
        write_template(tmp_path / "no" / "folder.yaml")

"""The folder where a long run keeps what is done, beside its output, so that it can go on."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import locked, private, tighten, whole_file


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """`<out>.work`, new or as an earlier run left it; the caller deletes it when all is done.

    Raises ConfigError where another run works in it.
    """
    path = out.with_name(f"{out.name}.work")
    path.mkdir(mode=0o700, exist_ok=True)
    tighten(path)
    with locked(path / "lock", busy=f"another run works in {path}; wait for it, or stop it"):
        yield path


def check_same_run(folder: Path, was: object, now: Mapping[str, Any]) -> None:
    """Raises ConfigError unless a run was begun with these settings: all that its output depends
    on, as JSON; `files`, where it is there, are the SHA-256 of each input, by path."""
    way_out = f"finish it as it was begun, or delete {folder} to begin anew"
    if not isinstance(was, dict) or not isinstance(was.get("files", {}), dict):
        raise ConfigError(f"{folder} is not what a run writes; {way_out}")
    now = json.loads(json.dumps(now))
    for key in sorted((now.keys() | was.keys()) - {"files"}):
        if was.get(key) != now.get(key):
            raise ConfigError(
                f"{folder} is of a run with another {key}: {was.get(key)!r}, now "
                f"{now.get(key)!r}; {way_out}"
            )
    for path, sha256 in now.get("files", {}).items():
        if was.get("files", {}).get(path) != sha256:
            raise ConfigError(f"{path} has changed since the run in {folder} began; {way_out}")


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down in `manifest.json` what a new run is, or check that one goes on as it began."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        with whole_file(manifest, opener=private) as file:
            file.write(json.dumps(settings, indent=2).encode() + b"\n")
        return
    try:
        was = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        was = None
    check_same_run(folder, was, settings)

"""The folder where a long run keeps what is done, beside its output, so that it can go on.

`manifest.json` in it says what the run is: its settings, and the hashes of its inputs.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import locked, private, whole_file

MANIFEST = "manifest.json"


@contextlib.contextmanager
def work_folder(
    out: Path, settings: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """`<out>.work`, new or as an earlier run of the same kind left it; the caller deletes it.

    settings: all that the output depends on, as JSON. files: SHA-256 of each input, by path.
    Raises ConfigError where another run works in it, or it belongs to a run with other settings or
    inputs.
    """
    path = out.with_name(f"{out.name}.work")
    made = not path.exists()
    path.mkdir(mode=0o700, exist_ok=True)
    try:
        busy = f"another run works in {path}; wait for it, or stop it"
        with locked(path / "lock", busy=busy):
            wanted = {"inputs": list(files or {}), **settings, "files": dict(files or {})}
            _begin(path / MANIFEST, json.loads(json.dumps(wanted)))
            yield path
    finally:
        # Where nothing could begin, nothing is left behind.
        if made and not (path / MANIFEST).exists():
            shutil.rmtree(path, ignore_errors=True)


def _begin(manifest: Path, wanted: dict[str, Any]) -> None:
    """Write the manifest of a new run, or compare it with that of the run that was begun."""
    if not manifest.exists():
        with whole_file(manifest, opener=private) as file:
            file.write(json.dumps(wanted, indent=2).encode() + b"\n")
        return
    way_out = f"finish it as it was begun, or delete {manifest.parent} to begin anew"
    try:
        was = dict(json.loads(manifest.read_bytes()))
        files = dict(was.pop("files"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{manifest} is not what a run writes ({error!r}); {way_out}") from error
    now = wanted.pop("files")
    for key in sorted(wanted.keys() | was.keys()):
        if was.get(key) != wanted.get(key):
            raise ConfigError(
                f"{manifest.parent} is of a run with another {key}: {was.get(key)!r}, now "
                f"{wanted.get(key)!r}; {way_out}"
            )
    for path, sha256 in now.items():
        if files.get(path) != sha256:
            raise ConfigError(
                f"{path} has changed since the run in {manifest.parent} began; {way_out}"
            )

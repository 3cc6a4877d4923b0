"""The work folder of a run beside its output: files that are whole or not there, one run at a time.

`scale.folder` scores with them, `resume` imports.
"""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError
from ...files import private

MANIFEST = "manifest.json"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name complete and on the disk, or not at all; its owner's
    alone, as it is made of prompts."""
    # The process in the name: two of a cluster may do the same chunk at once after a failure.
    work = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        with open(work, "wb", opener=private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def lock(handle: int, path: Path) -> None:
    """Take the folder `path`, of which `handle` is an open file, for this process.

    Raises ConfigError where another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: one run at a time is the user's to see to
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another run works in {path}; wait for it, or stop it") from None


def way_out(folder: Path) -> str:
    """What to do about a folder of another run."""
    return f"finish it as it was begun, or delete {folder} to begin anew"


def read_manifest(path: Path) -> dict[str, Any]:
    """What a run is that was begun. Raises ConfigError where the file is none of a run's."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not what a run writes ({error}); {way_out(path.parent)}"
        ) from error


def write_manifest(path: Path, values: Mapping[str, Any]) -> None:
    """Write down what a run is."""
    with whole_file(path) as file:
        file.write(json.dumps(values, indent=2).encode() + b"\n")


def check_same(folder: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError, which says what differs and what to do, unless the settings are those of
    the run that was begun. Both are JSON."""
    for key in sorted(now.keys() | was.keys()):
        if was.get(key) != now.get(key):
            raise ConfigError(
                f"{folder} is of a run with another {key}: {was.get(key)!r}, now "
                f"{now.get(key)!r}; {way_out(folder)}"
            )

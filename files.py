"""Files: whole or not there, their owner's alone, one writer at a time; the cache folder."""

import contextlib
import os
import platform
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .errors import ConfigError


def cache_folder() -> Path:
    """`$THRIFTROUTE_CACHE`, or the user's cache folder of this system. Not created here."""
    if folder := os.environ.get("THRIFTROUTE_CACHE"):
        return Path(folder)
    import platformdirs

    return platformdirs.user_cache_path("thriftroute", appauthor=False)


@contextlib.contextmanager
def whole_file(
    path: Path, *, opener: Callable[[str, int], int] | None = None
) -> Iterator[IO[bytes]]:
    """A file that appears under its name complete and on the disk, or not at all.

    Folders above it are made. opener: as of `open`; `private` for what holds prompts or keys.
    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer in the name: two of a cluster, or two threads, may write the same file at once.
    # Not tempfile: its files are for their owner alone, and a report is there to be read.
    writer = f"{platform.node()}-{os.getpid()}-{threading.get_ident()}"
    part = path.with_name(f"{path.name}.{writer}.part")
    try:
        with open(part, "wb", opener=opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, busy: str = "", wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`; where the file system has no locks, nothing is held.

    wait_s: how long to wait for another holder, negative: for ever. Raises ConfigError with the
    text `busy` where somebody else has it still.
    """
    import filelock

    lock = filelock.FileLock(path, timeout=wait_s, mode=0o600)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(busy or f"{path} is held by another process; wait for it") from None
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def private(path: str, flags: int) -> int:
    """For `open(..., opener=private)`: the file is its owner's alone from its first moment; one
    that is there already is made so (see `tighten`) where it is opened to write."""
    handle = os.open(path, flags, 0o600)
    if flags & (os.O_WRONLY | os.O_RDWR):
        tighten(handle)
    return handle


def tighten(file: Path | int) -> bool:
    """Take all rights of others from a file or folder that is there; True where they had any.

    Devices and pipes are left alone, and what belongs to another user (False then)."""
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116 - of a handle too
        if not mode & 0o077 or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return False
        os.chmod(file, stat.S_IMODE(mode) & ~0o077)  # noqa: PTH101
    except OSError:
        return False
    return True

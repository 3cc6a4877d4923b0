"""Files that are their owner's alone: prompts, answers, labels, decisions, keys."""

import os
import stat
from pathlib import Path


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

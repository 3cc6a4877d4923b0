"""The config that `thriftroute init` writes: it works as it stands, and names every setting.

In template.yaml a setting that is turned off has its `#` right before it, prose has a space
between: without those `#` the file is a config too, which a test loads.
"""

import os
from pathlib import Path

from ...errors import ConfigError

TEMPLATE = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")


def write_template(path: Path, *, force: bool = False) -> None:
    """Write it; raises ConfigError where a file is there and `force` is not given, and OSError."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        # For its owner alone: sooner or later a key is written into it.
        handle = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; --force replaces it") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(TEMPLATE)

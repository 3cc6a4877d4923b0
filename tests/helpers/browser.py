"""A real browser, headless: what it makes of a page, and what the page looks like."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE_S = 90


def drawn(
    url: str, folder: Path, *, width: int = 1280, dark: bool = False, picture: Path | None = None
) -> str:
    """The page as the browser has drawn it, as HTML. folder: where the browser keeps its own files.

    picture: a PNG of the page is written there instead, and "" is returned. Skips the test where no
    browser is installed, or where it does not draw the page in time.
    """
    if BROWSER is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={folder}", f"--window-size={width},1600"),
        *("--virtual-time-budget=4000", f"--blink-settings=preferredColorScheme={int(not dark)}"),
        *(("--dump-dom",) if picture is None else (f"--screenshot={picture}", "--hide-scrollbars")),
        url,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its helpers end with it
    )
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"Chromium did not draw the page within {PATIENCE_S} s on this machine")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, err[-500:]
    return out if picture is None else ""

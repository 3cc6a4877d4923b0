"""The server as it is run, in a process of its own: `thriftroute serve --config`.

with StubProvider() as provider, started(folder, pool(provider.url)) as running:
    running.ask("Hi")
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

COMMAND = [sys.executable, "-c", "from thriftroute.cli import main; main()", "serve"]
PATIENCE_S = 300.0


class Running:
    """The server's process; `url` is where it said that it serves; `said` are its log's lines."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: list[str]) -> None:
        self.process, self.url, self.said = process, url, said

    def ask(self, prompt: str, **more: Any) -> httpx.Response:
        body = {"model": "router-mf-1.0", "messages": [{"role": "user", "content": prompt}], **more}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=300)

    def kill(self) -> None:
        """End it at once, workers too, as a crash does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def started(
    folder: Path, settings: dict[str, Any], environ: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Serves until the block ends; killed where it does not end itself."""
    config = folder / "thriftroute.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = subprocess.Popen(
        [*COMMAND, "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **(environ or {})},
        start_new_session=True,  # a group of its own, so that its workers can be ended with it
    )
    assert process.stderr is not None
    said: list[str] = []
    first = process.stderr.readline()
    # Read on, or a full pipe would stop the server.
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    reader.start()
    running = Running(process, "", said)
    try:
        found = re.search(r"(http://\S+)/v1", first)
        assert found, first + "".join(said)
        running.url = found.group(1)
        _wait_until_ready(running)
        yield running
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    finally:
        running.kill()
        reader.join(10)
        process.stderr.close()


def _wait_until_ready(running: Running) -> None:
    """Whoever asks after it said that it serves waits, perhaps, and is not turned away."""
    for _ in range(3000):
        try:
            if httpx.get(f"{running.url}/ready", timeout=PATIENCE_S).status_code == 200:
                return
        except httpx.TransportError as error:
            raise AssertionError(f"{error}: {''.join(running.said)}") from error
        time.sleep(0.1)

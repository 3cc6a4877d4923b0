"""A running thriftroute server for tests, on a free port of this process.

from thriftroute.tests.helpers.serving import pool, serving

with StubProvider() as provider, serving(pool(provider.url)) as server:
    openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from thriftroute.router.bundle import Bundle
from thriftroute.router.routers import CHECKPOINTS
from thriftroute.router.scorer import Scorer
from thriftroute.serve.api.app import create_app
from thriftroute.serve.api.limits import BoundedProtocol
from thriftroute.serve.config.settings import Config
from thriftroute.serve.state import ServerState


class Serving:
    """`url` without a path; `state` holds the server's own parts, `app` its routes."""

    def __init__(self, url: str, app: Starlette) -> None:
        self.url = url
        self.app = app
        self.state: ServerState = app.state.thriftroute

    def wait_for_rows(self, count: int) -> None:
        """Until so many decisions are in the database: an answer goes out before its own is."""
        while self.state.recorder.written < count:
            time.sleep(0.01)


def pool(api_base: str, **more: Any) -> dict[str, Any]:
    """A configuration with a strong and a weak model of the stub; no records, a free port."""
    models = [
        {
            "name": name,
            "model": f"openai/{name}",
            "api_base": api_base,
            "api_key": "provider-key",
            "price": {"input": price, "output": 2 * price},
            "capabilities": ["tools", "json_schema", "vision"],
        }
        for name, price in (("strong", 10.0), ("weak", 1.0))
    ]
    base: dict[str, Any] = {
        "models": models,
        "strong": "strong",
        "weak": "weak",
        "router": {"name": "mf", "threshold": 0.5},
        "records": {"url": None},
        "calls": {"retries": 0},
        "server": {"port": 0},
    }
    return {**base, **more}


_real_load = Scorer.load
_loaded: dict[tuple[Any, ...], Scorer] = {}


def _load_once(bundle: Bundle, **settings: Any) -> Scorer:
    """`Scorer.load`, but a built-in bundle once a process: it takes a third of a second."""
    if bundle.path.parent != CHECKPOINTS:
        return _real_load(bundle, **settings)
    key = (bundle.path, *sorted(settings.items()))
    if key not in _loaded:
        _loaded[key] = _real_load(bundle, **settings)
    return _loaded[key]


@contextlib.contextmanager
def serving(settings: dict[str, Any] | Config) -> Iterator[Serving]:
    """Serves until the block ends; then everything is flushed and closed."""
    config = settings if isinstance(settings, Config) else Config.model_validate(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "load", _load_once)
        app = create_app(config)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        options = uvicorn.Config(
            app, http=BoundedProtocol, log_level="warning", access_log=False, lifespan="on"
        )
        server = uvicorn.Server(options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="serving")
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server ended before it had started"
                thread.join(0.02)
            yield Serving(f"http://127.0.0.1:{bound.getsockname()[1]}", app)
        finally:
            server.should_exit = True
            thread.join()

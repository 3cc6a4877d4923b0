"""An ASGI application behind real HTTP: uvicorn in a thread, on a free port of 127.0.0.1."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def live(app: Any, **settings: Any) -> Iterator[str]:
    """The URL of `app`, served until the block ends. `settings` are uvicorn's."""
    config = uvicorn.Config(
        app,
        **{
            "host": "127.0.0.1",
            "port": 0,
            "log_level": "error",
            "loop": "asyncio",
            "ws": "none",
            "timeout_graceful_shutdown": 5,
            **settings,
        },
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()

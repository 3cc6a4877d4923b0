"""What `thriftroute serve` does: check everything, say where it listens, serve until a signal."""

import base64
import contextlib
import gc
import inspect
import logging
import os
import socket
import sys
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from ..errors import ConfigError
from ..router.score_or_fallback import place_of
from ..terminal import LogFormatter, new_console
from .api.app import create_app
from .api.limits import BoundedProtocol
from .config.loader import lines_told
from .config.settings import Config
from .live.drift_monitor import LEAST
from .records.database import shown
from .records.metrics import forget_worker
from .registry import missing_key
from .state import ServerState

# How a worker process learns its configuration: it is started with nothing but a module's name.
# By the environment, since keys are in it: a file would outlive a parent that is killed.
FOLDER_VARIABLE = "THRIFTROUTE_SERVE_FOLDER"
CONFIG_VARIABLE = "THRIFTROUTE_SERVE_CONFIG"
BACKLOG = 2048  # as uvicorn's own
# Python's own is 5 ms: so long may the event loop hold up a thread that comes back from scoring,
# and a thread the loop, each time that it wants to go on; a request waits so several times.
SWITCH_S = 0.0005
GARBAGE = 20_000  # new objects before the collector looks for cycles, of which a request makes few
IDLE_S = 75  # how long a connection without a request is kept


def run_serve(config: Config, source: Path | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests get `server.shutdown_s` to end.

    source: the file that the config is of, for the lines of errors.

    Raises ConfigError (also for an address that is taken), UnknownRouterError, BundleError.
    """
    _set_up_logs()
    if not config.calls.fetch_urls:
        # LiteLLM's own switch, beside the checks of requests: it reads it as it is imported.
        os.environ.setdefault("MAX_IMAGE_URL_DOWNLOAD_SIZE_MB", "0")
    server = config.server
    common: dict[str, Any] = {
        "http": BoundedProtocol,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        # uvicorn's own 5 s are also those after which httpx, and so OpenAI's client, gives up an
        # idle connection: where the server is first by a hair, a request is lost.
        "timeout_keep_alive": IDLE_S,
        "timeout_graceful_shutdown": max(1, round(server.shutdown_s)),
        # uvicorn's own 5 s are too few for a worker to import and begin on a busy machine: it would
        # be killed and begun again for ever, later with its requests in it.
        "timeout_worker_healthcheck": 60,
    }
    with contextlib.ExitStack() as kept:
        bound = kept.enter_context(contextlib.closing(_bind(server.host, server.port)))
        with lines_told(source):
            # Also where each worker makes its own: what is wrong is said once, before any answers.
            app = create_app(config)
            state: ServerState = app.state.thriftroute
            state.recorder.check()
            state.drift_monitor.adopt()
            if (engine := state.recorder.engine) is not None:
                engine.dispose()  # workers need their own
        _settle()
        _announce(state, source, bound)
        if server.workers > 1:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="thriftroute-"))
            packed = zlib.compress(config.model_dump_json().encode())
            os.environ[FOLDER_VARIABLE] = folder  # of the metrics
            os.environ[CONFIG_VARIABLE] = base64.b64encode(packed).decode()
            kept.callback(os.environ.pop, CONFIG_VARIABLE, None)
            _run_workers(server.workers, bound, common)
            return
        running = uvicorn.Server(uvicorn.Config(app, **common))
        try:
            running.run(sockets=[bound])
        except KeyboardInterrupt:
            if not running.started:
                raise
            return  # Ctrl-C is how it is ended; all that ran has ended in good order
        if not running.started:
            raise ConfigError("the server could not start; its log says why")


def _run_workers(number: int, bound: socket.socket, common: Mapping[str, Any]) -> None:
    """As `uvicorn.run`, but on a socket that listens already."""
    made = f"{__package__}.command:worker"
    settings = uvicorn.Config(made, factory=True, workers=number, **common)
    options: dict[str, Any] = {"sockets": [bound]}
    if "target" in inspect.signature(Multiprocess).parameters:  # of older versions
        options["target"] = uvicorn.Server(settings).run
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is ended
        Multiprocess(settings, **options).run()


def worker() -> object:
    """The application of one worker process."""
    metrics = Path(os.environ[FOLDER_VARIABLE], "metrics")
    # Taken out of the environment, for no further process to inherit.
    packed = base64.b64decode(os.environ.pop(CONFIG_VARIABLE))
    config = Config.model_validate_json(zlib.decompress(packed))
    # A worker is started anew where one has died, whose gauges must not be counted on.
    for path in metrics.glob("gauge_live*_*.db"):
        pid = path.stem.rsplit("_", 1)[1]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            forget_worker(int(pid))
    _set_up_logs()
    app = create_app(config, metrics_folder=metrics)
    _settle()
    return app


def _set_up_logs() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # At INFO it prints every address that is called, a webhook's secret path among them.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # They quote what is in an answer where it is of another type than it should be.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)

    def without_text(record: logging.LogRecord) -> bool:
        """uvicorn writes down what an application raises, text and all: it may quote a prompt."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception):
            record.msg, record.args = f"unexpected: {place_of(error)}", ()
            record.exc_info = record.exc_text = None
        return True

    logging.getLogger("uvicorn.error").addFilter(without_text)


def _settle() -> None:
    """Set this process to answering. What is loaded by now, LiteLLM's millions of objects mostly,
    the garbage collector would else walk through every few seconds, a tenth of a second each."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 20)


def _bind(host: str, port: int) -> socket.socket:
    """Bound here, so that a port in use is an error of the command's and port 0 has a number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)  # who comes before all is loaded waits, and is not sent away
    except (OSError, OverflowError) as error:
        bound.close()
        problem = f"cannot listen on {host}:{port}: {error}; choose another --host or --port"
        raise ConfigError(problem) from error
    bound.set_inheritable(True)
    return bound


def _announce(state: ServerState, source: Path | None, bound: socket.socket) -> None:
    config, pool = state.config, state.registry
    host, port = bound.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    address = f"http://{where}:{port}"
    pair = f"strong {config.strong}, weak {config.weak}, router {config.router.name}"
    lines = [f"thriftroute serves {address}/v1  ({pair})"]
    facts = {"page": f"{address}/", **_facts(state, source)}
    lines += [f"  {name + ':':<9}{told}" for name, told in facts.items()]
    if not config.keys and host not in {"127.0.0.1", "::1"}:
        lines.append(
            "warning: no API keys are configured and this address can be reached from outside: "
            "anyone may spend your money; `thriftroute keys new` makes one"
        )
    weak, strong = pool[config.weak], pool[config.strong]
    dearer = weak.input_price >= strong.input_price and weak.output_price > strong.output_price
    if dearer and min(weak.input_price, weak.output_price) > 0:
        lines.append(
            f"warning: the weak model {weak.name} costs more than the strong one, {strong.name}: "
            "no routing saves anything; are they the wrong way round?"
        )
    for model in pool.values():
        if missing := missing_key(model):
            how = f"set {missing}, or its api_key in the config"
            lines.append(f"warning: model {model.name} has no API key: {how}")
    console = new_console(stderr=True)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    sys.stderr.flush()


def _facts(state: ServerState, source: Path | None) -> dict[str, str]:
    """What is served by, for whoever has just started it."""
    config, found, engine = state.config, state.pipeline.default(), state.recorder.engine
    router = config.router.name
    if config.router.strategy != "pair":
        router += f", strategy {config.router.strategy}"
    elif found is not None:
        router += f", threshold {found[0]:.4g}, {found[1] or 'as configured'}"
        own = state.drift_monitor.own_share
        if own is not None and not own.is_done:
            router += f", until {LEAST} requests are scored"
    texts = "with the texts of prompts" if config.records.text else "without any text"
    always = f"on: {config.strong} answers all, and records say what would have been"
    return {
        "config": "the command's own options" if source is None else str(source),
        "router": router,
        "shadow": always if config.shadow else "off",
        "records": "none are kept" if engine is None else f"{shown(engine)}, {texts}",
    }

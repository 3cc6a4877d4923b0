"""What a server holds while it runs: the parts, made from the configuration, started and closed."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..eval.drift.arms import TREATMENT
from ..providers.completion import count_tokens
from ..router.routers import BundleRouter, Router, load_router
from ..router.text import Conversation
from .api.chat_request import CHARACTERS_A_TOKEN, LARGE_BYTES
from .cache.key import model_id
from .cache.semantic import SemanticIndex, bundle_embedder
from .cache.sessions import Sessions
from .cache.store import Store, cache_store, session_stores
from .config.settings import Config
from .live.drift_monitor import DriftMonitor
from .live.experiment import Experiment
from .policy.pipeline import Pipeline
from .records.metrics import Metrics
from .records.tracing import Tracing
from .records.writer import Recorder
from .registry import Registry
from .request_parts import texts
from .spend.ledger import BudgetLedger, make_ledger
from .upstream.caller import Caller

T = TypeVar("T")

# Past this many characters a prompt is counted by its length: exact counting takes milliseconds
# a thousand tokens, and no decision hangs on the last per cent of a very long prompt.
COUNTED_CHARACTERS = 100_000
FLUSH_S = 10.0  # for the last records, where the database is away
IMAGE_TOKENS = 250  # as LiteLLM's default


class ServerState:
    """Made without touching the network, so that a bad configuration stops before the port opens.

    `start` opens what needs a running loop and the databases, `close` ends it all and flushes.
    """

    def __init__(self, config: Config, *, metrics_folder: Path | None = None) -> None:
        """metrics_folder: see `metrics.Metrics`, for several workers.

        Raises ConfigError, UnknownRouterError and BundleError."""
        self.config = config
        self.started_at = time.time()
        self.registry = Registry.build(config)
        settings = config.router
        own: dict[str, Any] = {}
        if settings.checkpoint_path is not None:
            own["checkpoint_path"] = settings.checkpoint_path
        try:
            self.router: Router = load_router(
                settings.name, own, threads=settings.threads, context=settings.context
            )
        except ConfigError as error:
            key = "checkpoint_path" if own else "name"
            raise ConfigError(str(error), loc=("router", key)) from error
        self.metrics = Metrics(tuple(self.registry.models), folder=metrics_folder)
        self.caller = Caller(config, self.registry.models)
        self.pipeline = Pipeline(config, self.registry, self.router, fastest=self.caller.latency)
        self.experiment = (
            Experiment(config, self.registry, self.router, self.caller.latency)
            if config.experiment is not None
            else None
        )
        weak = self.registry.models[config.weak]
        self.drift_monitor = DriftMonitor(config, self.pipeline, self.router, weak, self.metrics)
        self._watcher: asyncio.Task[None] | None = None
        self.recorder = Recorder(config.records)
        self.metrics.watch(self.recorder)
        self.ledger: BudgetLedger = make_ledger(config, self.recorder.stats)
        self.cache: Store | None = cache_store(config)
        self.sessions = Sessions(session_stores(config), config)
        self.semantic = self._semantic()
        self.tracing = Tracing(config.otel_endpoint)
        pool = sorted(self.registry.models.items())
        self.model_set = tuple(model_id(model) for _, model in pool)
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="thriftroute")
        # One at a time, beside the others: text of megabytes takes patterns seconds.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="thriftroute-large")
        # Reports wait for a database, which may hang: no decision is to wait behind them.
        self._reports = ThreadPoolExecutor(4, thread_name_prefix="thriftroute-reports")
        self.ready = False

    async def start(self) -> None:
        """Raises ConfigError where a database cannot be used at all."""
        await self.in_reports(self.recorder.start)
        # The first count and the first score load files; no client is to wait for them.
        await self.in_thread(lambda: self.count_tokens([{"role": "user", "content": "hi"}], None))
        await self.in_thread(lambda: self.router.scores([Conversation("", "", "hi")]))
        if self.experiment is not None:
            other = self.experiment.router
            await self.in_thread(lambda: other.scores([Conversation("", "", "hi")]))
        if self.drift_monitor.on:
            self._watcher = asyncio.create_task(
                self.drift_monitor.run(self.in_reports, self.recorder), name="drift-monitor"
            )
        self.ready = True

    async def close(self) -> None:
        """Flush and close, each part even where another fails."""
        self.ready = False
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        parts: list[Callable[[], Any]] = [
            self.caller.close,
            self.ledger.close,
            self.sessions.close,
        ]
        if self.cache is not None:
            parts.append(self.cache.close)
        await asyncio.gather(*(part() for part in parts), return_exceptions=True)
        patience = min(FLUSH_S, self.config.server.shutdown_s)
        await self.in_reports(lambda: self.recorder.close(patience))
        await self.in_reports(self.tracing.close)
        self._pool.shutdown()
        self._large.shutdown()
        self._reports.shutdown()
        getattr(self.router, "close", lambda: None)()

    def pipeline_of(self, arm: str | None) -> Pipeline:
        """The pipeline that plans the requests of an experiment's arm; None: of none."""
        if self.experiment is not None and arm == TREATMENT:
            return self.experiment.pipeline
        return self.pipeline

    async def in_thread(self, work: Callable[[], T], *, size: int = 0) -> T:
        """`work()` beside the event loop. size: bytes of the request that it looks at; work on
        large ones waits for each other, and nobody else for it."""
        pool = self._large if size >= LARGE_BYTES else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def in_reports(self, work: Callable[[], T]) -> T:
        """`work()` that asks the database, beside the event loop and beside the decisions."""
        return await asyncio.get_running_loop().run_in_executor(self._reports, work)

    def count_tokens(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None
    ) -> int:
        """About how many tokens a prompt has, by LiteLLM's general tokenizer; never raises."""
        size = max(
            sum(_characters(message.get("content")) for message in messages),
            sum(map(len, texts([messages, tools]))),
        )
        if size > COUNTED_CHARACTERS:
            return size // CHARACTERS_A_TOKEN
        return count_tokens(messages, tools, otherwise=size // CHARACTERS_A_TOKEN)

    def _semantic(self) -> SemanticIndex | None:
        settings = self.config.cache
        if self.cache is None or not settings.semantic.enabled:
            return None
        router = self.router
        if not isinstance(router, BundleRouter):
            raise ConfigError(
                "cache.semantic: needs a router with an encoder (a bundle); "
                f"{self.config.router.name!r} has none",
                loc=("cache", "semantic"),
            )

        embed = bundle_embedder(router.scorer)
        return SemanticIndex(embed, settings.semantic.similarity, settings.max_entries)


def _characters(content: object) -> int:
    """Of a message's text; an image or a file, which is longer by far, counts as its usual tokens:
    models do not read its base64."""
    if isinstance(content, str):
        return len(content)
    total = 0
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, Mapping) else part
        total += len(text) if isinstance(text, str) else IMAGE_TOKENS * CHARACTERS_A_TOKEN
    return total

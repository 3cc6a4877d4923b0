"""What a server holds while it runs: the parts, made from the configuration, started and closed."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..eval.drift.arms import TREATMENT
from ..providers.completion import count_tokens
from ..router.output_tokens import DEFAULT_TOKENS, OutputTokens
from ..router.routers import BundleRouter, Router, load_router
from ..router.score_or_fallback import place_of
from ..router.text import Conversation
from .api.chat_request import CHARACTERS_A_TOKEN, LARGE_BYTES
from .cache.key import model_id
from .cache.semantic import SemanticIndex, bundle_embedder
from .cache.sessions import Sessions
from .cache.store import Store, cache_store, session_stores
from .config.loader import check
from .config.settings import Config
from .errors import RefusedError, bad_setting
from .live.drift_monitor import DriftMonitor
from .live.experiment import Experiment
from .policy.pipeline import Pipeline
from .records.metrics import Metrics
from .records.tracing import Tracing
from .records.writer import Recorder
from .registry import Registry
from .request import Options
from .request_parts import output_tokens, parts_of, text_size
from .spend.ledger import BudgetLedger, make_ledger
from .upstream.caller import Caller
from .upstream.look_at import LookAt

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Past this many characters a prompt is counted by its length: exact counting takes milliseconds
# a thousand tokens, and no decision hangs on the last per cent of a very long prompt.
COUNTED_CHARACTERS = 100_000
REFIT_S = 600.0  # between two looks at how long answers are
FLUSH_S = 10.0  # for the last records, where the database is away
MESSAGE_TOKENS = 16  # at most, around what a message says
IMAGE_TOKENS = 250  # as LiteLLM's default


class ServerState:
    """Made without touching the network, so that a bad configuration stops before the port opens.

    `start` opens what needs a running loop and the databases, `close` ends it all and flushes.
    metrics_folder: see `metrics.Metrics`. Raises ConfigError, UnknownRouterError and BundleError.
    """

    def __init__(self, config: Config, *, metrics_folder: Path | None = None) -> None:
        check(config)
        self.config = config
        self.started_at = time.time()
        self.registry = Registry.build(config)
        settings, path = config.router, config.router.checkpoint_path
        own = {} if path is None else {"checkpoint_path": path}
        try:
            self.router: Router = load_router(
                settings.name, own, threads=settings.threads, context=settings.context
            )
        except ConfigError as error:
            key = "checkpoint_path" if own else "name"
            raise ConfigError(str(error), loc=("router", key)) from error
        budgeted = any(tier.budgets for tier in config.tiers.values())
        self._counts = budgeted or bool(config.rules)  # always by the tokenizer
        windows = [m.context_window for m in self.registry.values() if m.context_window]
        self._window = min(windows, default=2 * COUNTED_CHARACTERS)
        self.metrics = Metrics(tuple(self.registry), folder=metrics_folder)
        self.look = LookAt.of(config, self.registry, self.router)
        self.caller = Caller(config, self.registry, self.look)
        self.pipeline = Pipeline(
            config, self.registry, self.router, fastest=self.caller.latency, look=self.look
        )
        self.experiment: Experiment | None = None
        if config.experiment is not None:
            fastest = self.caller.latency
            self.experiment = Experiment(config, self.registry, self.router, fastest)
        self.recorder = Recorder(config.records)
        weak = self.registry[config.weak]
        self.drift_monitor = DriftMonitor(
            config, self.pipeline, self.router, weak, self.metrics, self.recorder
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.lengths = OutputTokens(config.expected_output_tokens or DEFAULT_TOKENS)
        self.metrics.watch(self.recorder)
        self.ledger: BudgetLedger = make_ledger(config, self.recorder.stats)
        self.cache: Store | None = cache_store(config)
        self.sessions = Sessions(session_stores(config), config)
        self.semantic = self._semantic()
        self.tracing = Tracing(config.otel_endpoint)
        self.model_set = tuple(model_id(model) for _, model in sorted(self.registry.items()))
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="thriftroute")
        # One at a time, beside the others: text of megabytes takes patterns seconds.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="thriftroute-large")
        # Reports wait for a database, which may hang: no decision is to wait behind them.
        self._reports = ThreadPoolExecutor(4, thread_name_prefix="thriftroute-reports")
        self.ready = False

    async def start(self) -> None:
        """Raises ConfigError where a database cannot be used at all."""
        await self.in_reports(self.recorder.start)
        await self.in_reports(self.drift_monitor.adopt)
        # The first count and the first score load files; no client is to wait for them.
        if self._counts:
            hello = [{"role": "user", "content": "hi"}]
            await self.in_thread(lambda: self.count_tokens(hello, None))
        for part in (self, self.experiment):
            if part is not None:
                await self.in_thread(partial(part.router.scores, [Conversation("", "", "hi")]))
        if self.drift_monitor.on:
            watching = self.drift_monitor.run(self.in_reports)
            self._tasks.append(asyncio.create_task(watching, name="drift-monitor"))
        if self.recorder.engine is not None and self.config.expected_output_tokens is None:
            self._tasks.append(asyncio.create_task(self._refit(), name="output-tokens"))
        self.ready = True

    async def close(self) -> None:
        """Flush and close, each part even where another fails."""
        self.ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        parts = (self.caller, self.ledger, self.sessions, self.cache)
        closing = [part.close() for part in parts if part is not None]
        await asyncio.gather(*closing, return_exceptions=True)
        patience = min(FLUSH_S, self.config.server.shutdown_s)
        await self.in_reports(lambda: self.recorder.close(patience))
        await self.in_reports(self.tracing.close)
        for pool in (self._pool, self._large, self._reports):
            pool.shutdown()
        getattr(self.router, "close", lambda: None)()

    def pipeline_of(self, arm: str | None) -> Pipeline:
        """The pipeline that plans the requests of an experiment's arm; None: of none."""
        if self.experiment is not None and arm == TREATMENT:
            return self.experiment.pipeline
        return self.pipeline

    async def in_thread(self, work: Callable[[], T], *, size: int = 0) -> T:
        """`work()` beside the event loop. size: bytes of the request that it looks at."""
        pool = self._large if size >= LARGE_BYTES else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def in_reports(self, work: Callable[[], T]) -> T:
        """`work()` that asks the database, beside the event loop and beside the decisions."""
        return await asyncio.get_running_loop().run_in_executor(self._reports, work)

    def count_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        *,
        room: int = 0,
    ) -> int:
        """About how many tokens a prompt has, by LiteLLM's general tokenizer; never raises.

        room: by its length alone where it has less than so many tokens whatever they are; see
        `room_for`. A tenth of a millisecond sooner, and without LiteLLM.
        """
        parts = [part for m in messages for part in parts_of(m) if isinstance(part, dict | Mapping)]
        # Images and files, which are longer by far: models do not read their base64.
        media = sum(not isinstance(part.get("text"), str) for part in parts)
        size = text_size([messages, tools]) + media * IMAGE_TOKENS * CHARACTERS_A_TOKEN
        most = 4 * size + MESSAGE_TOKENS * len(messages)  # a token is a byte at least
        if size > COUNTED_CHARACTERS or most < room:
            return size // CHARACTERS_A_TOKEN
        return count_tokens(messages, tools, otherwise=size // CHARACTERS_A_TOKEN)

    def room_for(self, body: Mapping[str, Any], options: Options) -> int:
        """Tokens of prompt below which no decision hangs on their number: the smallest window of
        the pool without the answer. 0 where a budget, a rule or a `max_cost` needs it exact."""
        if self._counts or options.max_cost is not None:
            return 0
        return self._window - output_tokens(body, int(self.lengths.default), unlimited=True)

    async def _refit(self) -> None:
        """Learn from the record how long each model's answers are, now and then."""
        while True:
            try:
                self.lengths = await self.in_reports(self.recorder.output_tokens)
            except RefusedError:  # the database is away, which the log says
                pass
            except Exception as error:  # noqa: BLE001 - the task must live
                logger.error("the lengths of answers could not be learned: %s", place_of(error))
            await asyncio.sleep(REFIT_S)

    def _semantic(self) -> SemanticIndex | None:
        settings = self.config.cache
        if self.cache is None or not settings.semantic.enabled:
            return None
        if not isinstance(self.router, BundleRouter):
            problem = "needs a router with an encoder (a bundle); "
            raise bad_setting("cache.semantic", f"{problem}{self.config.router.name!r} has none")
        embed = bundle_embedder(self.router.scorer)
        return SemanticIndex(embed, settings.semantic.similarity, settings.max_entries)

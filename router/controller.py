"""Controller: the client that asks a router which of two models answers, then asks that model.

The contract is RouteLLM's, whose examples run with only the import changed, and OpenAI's beneath
it. A routing decision never fails a request: where scoring fails, the model named by `on_error`
answers, and the decision's reason says so.
"""

import copy
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import (
    RoutingError,
)
from ..providers.completion import acomplete, check_key, complete
from ..terminal import new_console
from .chat import Chat
from .decision import Choice, Decision, attach
from .looking import LOOK_KEYWORDS, judge, look_keywords, looks_of, without_logprobs
from .model_name import AUTO, PREFIX
from .routers import (
    BundleRouter,
    Floats,
    Router,
    available_routers,
    checked_scores,
    load_router,
    tables_of,
)
from .score_or_fallback import compare, conversation_for, place_of, score_or_problem
from .settings import as_settings, check_arguments, read_config
from .targets import Targets
from .text import Promptlike, validate_context
from .threshold import (
    STRONG_SHARE,
    ThresholdTable,
    percentile_table,
)

BATCH = 256

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Controller:
    """Routes chat completions between a strong and a weak model. Safe to share between threads.

        client = Controller(routers=["mf"], strong_model="gpt-4o", weak_model="ollama_chat/llama3")
        client.chat.completions.create(model="auto", messages=[...])

    "auto" is the one router that is loaded, at its own threshold; "router-mf-0.5" names both.
    Use it in `with` or `async with`, or call `close`.

    routers: names, see `routers.load_router`; a bundle's folder is a name too.
    strong_model, weak_model: as LiteLLM names them. Other plain names can be asked directly.
    config: router name -> its settings, as a dict or as the path of a YAML file (paths in it are
        relative to it). Besides a router's own settings each takes `threshold` or `strong_share`,
        its default.
    api_base, api_key: for both models, as far as `models` and the request do not say otherwise.
    progress_bar: show one while routers load and batches are scored.
    models: model name -> any LiteLLM parameters for calls to it: api_base, api_key, timeout, or
        `model`, where the provider's own name is another one.
    on_error: the model that answers where a request cannot be scored, "strong" or "weak".
    context: what of a conversation is scored, "conversation", "last" or "full"; see `router.text`.
    threads: of one scoring run; more than one is slower under load.
    strong_share: of prompts that go to the strong model where neither the request nor `config` says
        it; through the table of a bundle, so that other routers need a threshold.
    second_look: look at the weak model's answer before it is returned, by the bundles of `train
        second-look`, at their own thresholds: where a completion names neither threshold nor
        share, and is no stream. Two calls, or three, are then made for one.

    Raises ConfigError, UnknownRouterError and BundleError.
    """

    def __init__(  # noqa: PLR0913 - RouteLLM's own signature, and five keywords of ours
        self,
        routers: Sequence[str],
        strong_model: str,
        weak_model: str,
        config: Mapping[str, Mapping[str, Any]] | str | Path | None = None,
        api_base: str | None = None,
        api_key: str | None = None,
        progress_bar: bool = False,
        *,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        on_error: Literal["strong", "weak"] = "strong",
        context: str = "conversation",
        threads: int = 1,
        strong_share: float = STRONG_SHARE,
        second_look: bool = False,
    ) -> None:
        check_arguments(routers, strong_model, weak_model, on_error, strong_share)
        self.strong_model = strong_model
        self.weak_model = weak_model
        self.on_error = on_error
        self.context = validate_context(context)
        self._progress_bar = progress_bar
        defaults = {"api_base": api_base, "api_key": api_key}
        self._defaults = {key: value for key, value in defaults.items() if value is not None}
        self._models = as_settings(models, "models")
        settings, base = read_config(config)
        for name in settings:
            if name not in routers and name not in available_routers():
                logger.warning("config: there is no router %r; its settings are ignored", name)
        self._targets = Targets(frozenset({*self._models, strong_model, weak_model}))
        self.routers: dict[str, Router] = self._targets.routers
        self._percentile_tables: dict[str, ThresholdTable | None] = {}
        for name in self._track(list(routers), "loading routers"):
            own = dict(settings.get(name, {}))
            wish = own.pop("threshold", None), own.pop("strong_share", None)
            router = load_router(name, own, threads=threads, context=self.context, base=base)
            self._targets.add(name, router, wish, strong_share)
            self._percentile_tables[name] = percentile_table(tables_of(router))
        self._looks = looks_of(self.routers) if second_look else {}
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in self.routers}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="thriftroute")
        self._options: dict[str, Any] = {}
        self._shared = False  # a copy of `with_options`, which leaves open what it did not open
        self.chat = Chat(self)

    def decide(
        self,
        prompt: Promptlike,
        router: str | None = None,
        threshold: float | None = None,
        *,
        strong_share: float | None = None,
    ) -> Decision:
        """Which model is to answer a prompt or a list of OpenAI messages, and why. Calls no model.

        `router` may be left out where one is loaded. Give `threshold` or `strong_share`, or neither
        for that of the router's config, else of the Controller. Raises RoutingError; a prompt that
        cannot be scored raises nothing, see `on_error`.
        """
        return self._decide(prompt, *self._targets.of(router, threshold, strong_share))

    async def adecide(
        self,
        prompt: Promptlike,
        router: str | None = None,
        threshold: float | None = None,
        *,
        strong_share: float | None = None,
    ) -> Decision:
        """`decide`, with the scoring in a thread: the event loop goes on meanwhile."""
        return await self._adecide(prompt, *self._targets.of(router, threshold, strong_share))

    def route(
        self,
        prompt: Promptlike,
        router: str | None = None,
        threshold: float | None = None,
        *,
        strong_share: float | None = None,
    ) -> str:
        """The name of the model that `decide` chooses."""
        return self.decide(prompt, router, threshold, strong_share=strong_share).model

    def threshold_of(self, router: str | None = None, threshold: float | None = None) -> float:
        """The threshold that `decide` goes by. Raises RoutingError where there is none."""
        return self._targets.of(router, threshold)[1]

    def completion(
        self,
        *,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        **request: Any,
    ) -> Any:
        """A chat completion of the model that the router chooses; also `chat.completions.create`.

        `model="router-<name>-<threshold>"`, or "auto" or no model and `router` and `threshold` or
        `strong_share`, as for `decide`; the model string wins. Any other `model` is called itself.
        All other keywords go to LiteLLM as they are, before `models` and the defaults.
        `decision_of(answer)` tells what was decided.

        Raises RoutingError as `decide` does, ConfigError where a key is missing, and what LiteLLM
        raises.
        """
        request = {**self._options, **request}
        decision = self._targets.named(request, router, threshold, strong_share)
        if not isinstance(decision, Decision):
            decision = self._decide(request["messages"], *decision)
        steps = self._steps(decision, request, (threshold, strong_share) == (None, None))
        spare = () if request.get("logprobs") else LOOK_KEYWORDS
        answer: Any = None
        while True:
            try:
                asked, backup = steps.send(answer)
            except StopIteration as done:
                return done.value
            try:
                answer = complete(asked, optional=spare)
            except Exception as error:
                if backup is None:
                    check_key(asked, error)
                    raise
                logger.warning("%s; the weak answer stands", place_of(error))
                answer = None

    async def acompletion(
        self,
        *,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        **request: Any,
    ) -> Any:
        """`completion` for asyncio; also `chat.completions.acreate`. Scoring stays off the loop."""
        request = {**self._options, **request}
        decision = self._targets.named(request, router, threshold, strong_share)
        if not isinstance(decision, Decision):
            decision = await self._adecide(request["messages"], *decision)
        steps = self._steps(decision, request, (threshold, strong_share) == (None, None))
        spare = () if request.get("logprobs") else LOOK_KEYWORDS
        answer: Any = None
        while True:
            try:
                asked, backup = steps.send(answer)
            except StopIteration as done:
                return done.value
            try:
                answer = await acomplete(asked, optional=spare)
            except Exception as error:
                if backup is None:
                    check_key(asked, error)
                    raise
                logger.warning("%s; the weak answer stands", place_of(error))
                answer = None

    def batch_calculate_win_rate(self, prompts: Iterable[Promptlike], router: str) -> Any:
        """Scores of n prompts: a pandas Series with the same index for a Series, else float64[n].

        Unlike `decide` it raises what the router raises, since a figure must not hide a failure:
        RoutingError for a prompt that is neither text nor messages, or a score outside [0, 1].
        """
        scorer = self._targets.router(router)
        if isinstance(prompts, str):
            raise RoutingError("prompts must be a sequence of prompts, got one string")
        conversations = [conversation_for(prompt, self.context) for prompt in prompts]
        scores: Floats = np.empty(len(conversations))
        for start in self._track(range(0, len(conversations), BATCH), f"scoring with {router}"):
            block = conversations[start : start + BATCH]
            scores[start : start + BATCH] = checked_scores(scorer.scores(block), len(block))
        pandas = sys.modules.get("pandas")  # who has not imported it has no Series either
        if pandas is not None and isinstance(prompts, pandas.Series):
            return pandas.Series(scores, index=prompts.index, name=prompts.name)
        return scores

    @property
    def model_counts(self) -> dict[str, Counter[str]]:
        """Completions so far: router -> model -> count. A copy; direct calls are not in it."""
        with self._lock:
            return {name: counts.copy() for name, counts in self._counts.items()}

    def with_options(
        self,
        *,
        threshold: float | None = None,
        strong_share: float | None = None,
        **options: Any,
    ) -> "Controller":
        """A client with the same routers, threads and counts, whose requests have these keywords
        where they say nothing else: `timeout`, `api_key`, ... as LiteLLM takes them. `threshold` or
        `strong_share`: of all its routers. Closing it leaves this one open. Raises RoutingError."""
        made = copy.copy(self)
        if (threshold, strong_share) != (None, None):
            made._targets = self._targets.wishing(threshold, strong_share)
            made._looks = {}
        made._options = {**self._options, **options}
        made._shared = True
        made.chat = Chat(made)
        return made

    def close(self) -> None:
        """Wait for the scoring threads to end, and close the routers that can be closed."""
        if self._shared:
            return
        self._pool.shutdown()
        for router in self.routers.values():
            getattr(router, "close", lambda: None)()

    def __enter__(self) -> "Controller":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "Controller":
        return self

    async def __aexit__(self, *_: object) -> None:
        import asyncio  # 6 MB, with ssl, for who has no loop

        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        models = f"strong_model={self.strong_model!r}, weak_model={self.weak_model!r}"
        routers = ", ".join(map(self._targets.described, self.routers))
        return f"<Controller {models}, routers: {routers}>"

    async def _adecide(self, prompt: Promptlike, *target: Any) -> Decision:
        import asyncio

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._decide, prompt, *target)

    def _decide(self, prompt: Promptlike, router: str, threshold: float, source: str) -> Decision:
        """Never raises, and the reason never holds text of the prompt."""
        start = time.perf_counter()
        choice: Choice = self.on_error
        score, reason = score_or_problem(self.routers[router], prompt, self.context)
        if score is not None:
            choice, reason = compare(score, threshold, source)
        elif reason.startswith("scoring failed"):
            logger.warning(
                "router %r: %s; the request goes to the %s model", router, reason, choice
            )
        model = self.strong_model if choice == "strong" else self.weak_model
        table = None if score is None else self._percentile_tables[router]
        percentile = None if table is None or score is None else table.percentile(score)
        of = None if table is None else table.name
        latency_ms = (time.perf_counter() - start) * 1000
        return Decision(model, choice, score, threshold, router, reason, latency_ms, percentile, of)

    def _steps(
        self, decision: Decision, request: Mapping[str, Any], own_thresholds: bool
    ) -> Generator[tuple[dict[str, Any], Any], Any, Any]:
        """The calls of one completion, one after the other: yields keywords for LiteLLM and what
        stands in where that call fails (None: nothing), is sent the answer, returns the last."""
        named = str(request.get("model") or "")
        own_thresholds &= named in ("", AUTO, f"{PREFIX}{decision.router}")
        look = self._looks.get(decision.router or "") if own_thresholds else None
        if look is None or request.get("stream") or decision.score is None:
            answer = yield self._request(decision, request), None
            return attach(answer, decision)
        policy, score = look.policy, decision.score
        choice: Choice = "strong" if score >= policy.high else "weak"
        model = self.strong_model if choice == "strong" else self.weak_model
        reason = f"score {score:.6g}, looked at from {policy.low:.6g} to {policy.high:.6g}"
        decision = replace(
            decision, model=model, choice=choice, threshold=policy.high, reason=reason
        )
        if choice == "strong" or score < policy.low:
            answer = yield self._request(decision, request), None
            return attach(answer, decision)
        weak = yield self._request(decision, {**request, **look_keywords(look, request)}), None
        second = None
        if "agreement" in look.signals:
            other = replace(decision, model=look.second or self.weak_model)
            # The same model says the same again unless it is asked to vary.
            again = {"temperature": 1.0} if other.model == self.weak_model else {}
            second = yield self._request(other, {**request, **again}), weak
        router = self.routers[decision.router or ""]
        assert isinstance(router, BundleRouter)
        try:
            found = judge(look, router.scorer, score, weak, second, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is an answer
            logger.warning("router %r: the look failed: %s", decision.router, place_of(error))
            return attach(without_logprobs(weak, request), decision)
        weak = without_logprobs(weak, request)
        decision = replace(decision, look=found)
        if not found.escalated:
            return attach(weak, decision)
        strong = replace(decision, model=self.strong_model, choice="strong")
        answer = yield self._request(strong, request), weak
        return attach(weak, decision) if answer is None else attach(answer, strong)

    def _request(self, decision: Decision, request: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords for LiteLLM: the request's before the model's before the defaults. Counts it."""
        if decision.router is not None:
            with self._lock:
                self._counts[decision.router][decision.model] += 1
        own = {key: value for key, value in request.items() if key != "model"}
        model = {"model": decision.model, **self._models.get(decision.model, {})}
        return {**self._defaults, **model, **own}

    def _track(self, items: Sequence[T], label: str) -> Iterable[T]:
        if not self._progress_bar:
            return items
        from rich.progress import track

        return track(items, label, console=new_console(stderr=True))

"""Controller: the client that asks a router which of two models answers, then asks that model.

The contract is RouteLLM's, whose examples run with only the import changed, and OpenAI's beneath
it. A routing decision never fails a request: where scoring fails, the model named by `on_error`
answers, and the decision's reason says so.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import ConfigError, RoutingError, ThresholdError, UnknownRouterError
from ..providers.completion import acomplete, complete
from ..terminal import new_console
from .decision import Choice, Decision, attach
from .routers import Floats, Router, available_routers, checked_scores, load_router
from .score_or_fallback import compare, conversation_for, score_or_problem
from .text import Promptlike, validate_context
from .threshold import validate_threshold

PREFIX = "router-"
FORM = "expected 'router-<name>-<threshold>', for example 'router-mf-0.5'"
BATCH = 256

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Controller:
    """Routes chat completions between a strong and a weak model. Safe to share between threads.

        client = Controller(routers=["mf"], strong_model="gpt-4o", weak_model="ollama_chat/llama3")
        client.chat.completions.create(model="router-mf-0.5", messages=[...])

    routers: names, see `routers.load_router`; a bundle's folder is a name too.
    strong_model, weak_model: as LiteLLM names them. Other plain names can be asked directly.
    config: router name -> its settings, as a dict or as the path of a YAML file (paths in it are
        relative to it). Besides a router's own settings each takes `threshold`, its default.
    api_base, api_key: for both models, as far as `models` and the request do not say otherwise.
    progress_bar: show one while routers load and batches are scored.
    models: model name -> any LiteLLM parameters for calls to it: api_base, api_key, timeout, or
        `model`, where the provider's own name is another one.
    on_error: the model that answers where a request cannot be scored, "strong" or "weak".
    context: what of a conversation is scored, "conversation", "last" or "full"; see `router.text`.
    threads: of one scoring run; more than one is slower under load.

    Raises ConfigError, UnknownRouterError and BundleError.
    """

    def __init__(  # noqa: PLR0913 - RouteLLM's own signature, and four keywords of ours
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
    ) -> None:
        for key, model in (("strong_model", strong_model), ("weak_model", weak_model)):
            if not isinstance(model, str) or not model.strip() or model.startswith(PREFIX):
                raise ConfigError(f"{key} must be the name of a model, got {model!r}")
        if on_error not in ("strong", "weak"):
            raise ConfigError(f"on_error must be 'strong' or 'weak', got {on_error!r}")
        if isinstance(routers, str) or not routers:
            raise ConfigError(f"routers must be a list of names such as ['mf'], got {routers!r}")
        self.strong_model = strong_model
        self.weak_model = weak_model
        self.on_error = on_error
        self.context = validate_context(context)
        self._progress_bar = progress_bar
        defaults = {"api_base": api_base, "api_key": api_key}
        self._defaults = {key: value for key, value in defaults.items() if value is not None}
        self._models = _settings(models, "models")
        settings, base = _read_config(config)
        for name in settings:
            if name not in routers and name not in available_routers():
                logger.warning("config: there is no router %r; its settings are ignored", name)
        self.routers: dict[str, Router] = {}
        self._thresholds: dict[str, float] = {}
        for name in self._track(list(routers), "loading routers"):
            own = dict(settings.get(name, {}))
            threshold = own.pop("threshold", None)
            if threshold is not None:
                try:
                    self._thresholds[name] = validate_threshold(threshold)
                except ThresholdError as error:
                    raise ConfigError(f"config of router {name!r}: {error}") from error
            self.routers[name] = load_router(
                name, own, threads=threads, context=self.context, base=base
            )
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in self.routers}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="thriftroute")
        completions = SimpleNamespace(create=self.completion, acreate=self.acompletion)
        self.chat = SimpleNamespace(completions=completions)

    def decide(
        self, prompt: Promptlike, router: str | None = None, threshold: float | None = None
    ) -> Decision:
        """Which model is to answer a prompt or a list of OpenAI messages, and why. Calls no model.

        `router` may be left out where one is loaded, `threshold` where the router's config has it.
        Raises RoutingError; a prompt that cannot be scored raises nothing, see `on_error`.
        """
        return self._decide(prompt, *self._target(router, threshold))

    async def adecide(
        self, prompt: Promptlike, router: str | None = None, threshold: float | None = None
    ) -> Decision:
        """`decide`, with the scoring in a thread: the event loop goes on meanwhile."""
        target = self._target(router, threshold)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._decide, prompt, *target)

    def route(
        self, prompt: Promptlike, router: str | None = None, threshold: float | None = None
    ) -> str:
        """The name of the model that `decide` chooses."""
        return self.decide(prompt, router, threshold).model

    def completion(
        self, *, router: str | None = None, threshold: float | None = None, **request: Any
    ) -> Any:
        """A chat completion of the model that the router chooses; also `chat.completions.create`.

        `model="router-<name>-<threshold>"`, or `router` and `threshold`, as for `decide`; the model
        string wins. Any other `model` is called itself. All other keywords go to LiteLLM as they
        are, before `models` and the defaults. `decision_of(answer)` tells what was decided.

        Raises RoutingError as `decide` does, and what LiteLLM raises.
        """
        decision = self._named(request, router, threshold)
        if not isinstance(decision, Decision):
            decision = self.decide(request["messages"], *decision)
        answer = complete(self._request(decision, request))
        attach(answer, decision)
        return answer

    async def acompletion(
        self, *, router: str | None = None, threshold: float | None = None, **request: Any
    ) -> Any:
        """`completion` for asyncio; also `chat.completions.acreate`. Scoring stays off the loop."""
        decision = self._named(request, router, threshold)
        if not isinstance(decision, Decision):
            decision = await self.adecide(request["messages"], *decision)
        answer = await acomplete(self._request(decision, request))
        attach(answer, decision)
        return answer

    def batch_calculate_win_rate(self, prompts: Iterable[Promptlike], router: str) -> Any:
        """Scores of n prompts: a pandas Series with the same index for a Series, else float64[n].

        Unlike `decide` it raises what the router raises, since a figure must not hide a failure:
        RoutingError for a prompt that is neither text nor messages, or a score outside [0, 1].
        """
        scorer = self._router(router)
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

    def close(self) -> None:
        """Wait for the scoring threads to end, and close the routers that can be closed."""
        self._pool.shutdown()
        for router in self.routers.values():
            getattr(router, "close", lambda: None)()

    def __enter__(self) -> "Controller":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _named(
        self, request: Mapping[str, Any], router: str | None, threshold: float | None
    ) -> Decision | tuple[str, float]:
        """Router and threshold that a request names, or the decision where it names its model."""
        if request.get("messages") is None:
            raise RoutingError("the request has no messages; give messages=[{'role': ...}, ...]")
        model = request.get("model")
        if model is None:
            return self._target(router, threshold)
        if not isinstance(model, str) or not model.strip():
            raise RoutingError(
                f"model must be a name, got {model!r}; {FORM}, or a model's own name"
            )
        if model.startswith(PREFIX):
            name, limit = parse_model_name(model, self.routers)
            return self._target(name, limit)
        if router is not None or threshold is not None:
            raise RoutingError(
                f"the request names the model {model!r} and a router or threshold too: leave out "
                f"one of them; {FORM}"
            )
        return Decision(model, "direct", None, None, None, "the caller named the model", 0.0)

    def _target(self, router: str | None, threshold: float | None) -> tuple[str, float]:
        """Router and threshold, filled in from what is loaded and configured."""
        loaded = ", ".join(self.routers)
        if router is None and len(self.routers) > 1:
            raise RoutingError(f"no router is named; {FORM}; loaded: {loaded}")
        name = next(iter(self.routers)) if router is None else router
        self._router(name)
        limit = self._thresholds.get(name) if threshold is None else threshold
        if limit is None:
            raise RoutingError(
                f"no threshold is given, nor set in the config of router {name!r}; {FORM}; "
                f"loaded: {loaded}"
            )
        return name, validate_threshold(limit)

    def _router(self, name: str) -> Router:
        if name not in self.routers:
            raise UnknownRouterError(name, tuple(self.routers))
        return self.routers[name]

    def _decide(self, prompt: Promptlike, router: str, threshold: float) -> Decision:
        start = time.perf_counter()
        score, choice, reason = self._scored(prompt, self.routers[router], threshold)
        if reason.startswith("scoring failed"):
            logger.warning(
                "router %r: %s; the request goes to the %s model", router, reason, choice
            )
        model = self.strong_model if choice == "strong" else self.weak_model
        latency_ms = (time.perf_counter() - start) * 1000
        return Decision(model, choice, score, threshold, router, reason, latency_ms)

    def _scored(
        self, prompt: Promptlike, router: Router, threshold: float
    ) -> tuple[float | None, Choice, str]:
        """(score, choice, reason). Never raises, and the reason never holds text of the prompt."""
        score, problem = score_or_problem(router, prompt, self.context)
        if score is None:
            return None, self.on_error, problem
        choice, reason = compare(score, threshold)
        return score, choice, reason

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


def parse_model_name(model: str, routers: Collection[str]) -> tuple[str, float | None]:
    """Router and threshold of "router-<name>-<threshold>"; None for "router-<name>" alone.

    A name may hold dashes, a threshold any form that `float` reads ("1e-05"): the longest of
    `routers` that leaves a number is meant. Raises ThresholdError where the name fits and the rest
    is no number, UnknownRouterError where only the form fits, else RoutingError.
    """
    rest = model.removeprefix(PREFIX)
    loaded = ", ".join(routers) or "none"
    if rest in routers:
        return rest, None
    fitting = sorted((n for n in routers if rest.startswith(f"{n}-")), key=len, reverse=True)
    for name in fitting:
        number = _number(rest[len(name) + 1 :])
        if number is not None:
            return name, number
    if fitting:
        raise ThresholdError(
            f"model {model!r}: threshold {rest[len(fitting[0]) + 1 :]!r} is no number; {FORM}; "
            f"routers: {loaded}"
        )
    # "x-1e-05" splits into ("x-1e", "05") at the last dash and into ("x", "1e-05") at the first
    # that leaves a number: the second is meant.
    parts = rest.split("-")
    for at in range(1, len(parts)):
        if _number("-".join(parts[at:])) is not None:
            raise UnknownRouterError("-".join(parts[:at]), tuple(routers))
    raise RoutingError(f"model {model!r} names no router and threshold; {FORM}; routers: {loaded}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_config(
    config: Mapping[str, Mapping[str, Any]] | str | Path | None,
) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """(settings by router, folder that their paths are relative to)."""
    if config is None or isinstance(config, Mapping):
        return _settings(config, "config"), None
    import yaml

    path = Path(config)
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML makes errors of many kinds of numbers, dates, tags and depth
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    return _settings(read, f"config {path}"), path.parent


def _settings(value: object, where: str) -> dict[str, dict[str, Any]]:
    """A mapping of names to mappings, copied; an empty entry counts as one without settings."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping of names, got {type(value).__name__}")
    result: dict[str, dict[str, Any]] = {}
    for name, settings in value.items():
        if not isinstance(name, str) or not isinstance(settings, Mapping | None):
            raise ConfigError(f"{where}: expected settings under {name!r}, as a mapping")
        result[name] = dict(settings or {})
    return result

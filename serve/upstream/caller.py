"""Calls the models of a plan, in its order, until one answers.

LiteLLM does the call. Which model is next, how often and after what wait is decided here: its
Router knows neither a plan's order nor streams that fail before their first token, and the SDK's
own retries hide what they cost. See `health` for cooldowns, `failures` for what an error means.
"""

import asyncio
import importlib
import logging
import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...providers.completion import (
    OPENAI_API,
    load_litellm,
    local_key,
    prepare,
    provider_of,
    retry_after,
)
from ...providers.http_answer import HttpAnswer, install, watched
from ...providers.quiet import Quiet
from ...providers.verdict import BadAnswerError, CallError, ShapeError, Verdict, judge
from .. import parts
from ..config.settings import CallSettings, Config
from ..errors import RefusedError
from ..registry import Model
from . import wire
from .answer import Answer
from .cascade import cascade as run_cascade
from .failures import Attempt, all_failed, refused, secrets_of
from .health import Health
from .stream import Stream

__all__ = ["Answer", "Caller"]

logger = logging.getLogger(__name__)

CANCELLED = "CancelledError"  # the error of an attempt that was cut short by its client
_BACKOFF_S = 0.2  # before the first retry; doubled for each further one
_LONGEST_WAIT_S = 2.0  # who asks for more is left alone, and the next model is asked


class Caller:
    """For one event loop. Loads LiteLLM, which takes seconds, when it is made; no network."""

    def __init__(self, config: Config, models: Mapping[str, Model]) -> None:
        self._config = config
        self._settings: CallSettings = config.calls
        self._models = models
        self._health = Health(self._settings.failures_to_cool, self._settings.cooldown_s)
        self._litellm = load_litellm()
        install()
        if "LITELLM_LOG" not in os.environ:  # else its user wants to see what it logs: prompts too
            for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        self._warm()
        self._quiet = Quiet(self._litellm)
        self._alike = wire.ALIKE.union(self._litellm.openai_compatible_providers)
        self._with_tools = prepare({"tools": [{}]})[1]
        self._left_out: dict[str, frozenset[str]] = {}
        self._beside: dict[str, frozenset[str]] = {}
        with warnings.catch_warnings():
            # LiteLLM loads what it has for a provider, and warns about types of its own.
            warnings.simplefilter("ignore", UserWarning)
            self._providers = {
                name: provider_of(model.litellm_model, model.params)
                for name, model in models.items()
            }
            for name, model in models.items():
                self._beside[name], self._left_out[name] = self._unsupported(model)
        self._params = {name: self._own(model) for name, model in models.items()}
        self._secrets = {s for model in models.values() for s in secrets_of(model.params)}

    def cooling(self) -> dict[str, float]:
        """Models that are left alone after failures, and for how many seconds more."""
        return self._health.cooling()

    def latency(self, model: str) -> float | None:
        """Seconds that a model takes to answer, as a moving average; None before it has."""
        return self._health.latency(model)

    async def call(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        cascade: bool = True,
    ) -> Answer:
        """The answer of the first of `models` that gives one to the client's `body`.

        A cascade is run where the settings say so, the first of `models` is the weak one and the
        strong one is among the others; not with `cascade` False, for a client that names its model.
        Where it is cancelled, the CancelledError has the `attempts`, the last of them cut short.
        Raises UpstreamError, a RefusedError, where none answers or the request is wrong.
        """
        settings, strong, models = self._settings.cascade, self._config.strong, tuple(models)
        fits = models[:1] == (self._config.weak,) and strong in models[1:]
        if cascade and settings.enabled and fits and models[0] not in self._health.cooling():
            return await run_cascade(self._ordered, settings, models, strong, body, stream=stream)
        return await self._ordered(models, body, stream=stream)

    async def close(self) -> None:
        """Close the connections that LiteLLM keeps, of all of this process, and forget them: it
        finds them again by the address of the event loop, which the next loop may have."""
        await self._litellm.close_litellm_async_clients()
        self._litellm.in_memory_llm_clients_cache.flush_cache()

    async def _ordered(
        self,
        models: Sequence[str],
        body: Mapping[str, Any],
        *,
        stream: bool,
        attempts: Sequence[Attempt] = (),
        within_s: float | None = None,
    ) -> Answer:
        """One model after the other. `within_s` bounds it all; to pass it is no model's failure."""
        made = list(attempts)
        clock = asyncio.get_running_loop().time
        deadline = None if within_s is None else clock() + within_s
        window: int | None = None
        waits: list[float] = []
        failure: CallError | None = None
        tried = False  # whether any model had a fair chance
        for name in self._health.order(models):
            if window is not None and not self._larger(name, window):
                continue
            for turn in range(self._settings.retries + 1):
                left = None if deadline is None else deadline - clock()
                if left is not None and left <= 0:
                    raise all_failed(made, None) from None
                start = time.perf_counter()
                try:
                    answer = await self._once(name, body, stream=stream, within_s=left)
                except asyncio.CancelledError as cancelled:
                    # The client has left; the providers will want their money all the same.
                    seconds = time.perf_counter() - start
                    cut = Attempt(name, None, CANCELLED, seconds)
                    cancelled.attempts = (*made, cut)  # type: ignore[attr-defined]
                    raise
                except CallError as caught:
                    failure = caught  # to be told if none answers
                else:
                    answer.made = (*made, *answer.made)
                    return answer
                seconds = time.perf_counter() - start
                made.append(Attempt(name, failure.status, failure.name, seconds))
                if deadline is not None and clock() >= deadline:
                    continue
                self._note(name, failure, seconds)
                if failure.verdict is Verdict.STOP:
                    raise refused(made, failure, self._secrets) from None
                if failure.verdict is Verdict.WINDOW:
                    window = self._models[name].context_window or 0
                tried = tried or failure.verdict in {Verdict.RETRY, Verdict.NEXT}
                wait = retry_after(failure)
                if wait is not None:
                    waits.append(wait)
                if failure.verdict is not Verdict.RETRY or turn == self._settings.retries:
                    break
                pause = _BACKOFF_S * 2**turn * random.uniform(0.5, 1) if wait is None else wait  # noqa: S311
                if pause > _LONGEST_WAIT_S:
                    break
                await asyncio.sleep(pause)
        if failure is None:
            raise RefusedError(500, "no_model", "the plan names no model")
        if not tried:
            raise refused(made, failure, self._secrets) from None
        raise all_failed(made, min(waits, default=None)) from None

    async def _once(
        self, name: str, body: Mapping[str, Any], *, stream: bool, within_s: float | None
    ) -> Answer:
        """One call of one model. Raises CallError."""
        refers = parts.refers(body)
        large = (body.get("n") or 1) != 1 or bool(body.get("logprobs") or body.get("audio"))
        with watched(self._settings.max_answer_bytes) as http:

            def judged(error: Exception) -> CallError:
                return judge(error, http, refers=refers, large=large)

            try:
                return await self._answer(name, body, http, judged, stream, within_s)
            except Exception as error:
                raise judged(error) from error

    async def _answer(
        self,
        name: str,
        body: Mapping[str, Any],
        http: HttpAnswer,
        judged: Callable[[Exception], CallError],
        stream: bool,
        within_s: float | None,
    ) -> Answer:
        """Raises what LiteLLM raises, TimeoutError, or what is wrong."""
        params = self._params[name]
        self._check_addresses(name, body)
        request = wire.keywords(
            body,
            self._models[name].litellm_model,
            params,
            stream=stream,
            openai_api=self._providers[name] in OPENAI_API,
            beside=self._beside[name],
            left_out=self._left_out[name],
        )
        if body.get("tools"):
            request.update(self._with_tools)
        start = time.perf_counter()
        total = float(params["timeout"])
        limit = min(total, self._settings.first_token_timeout_s) if stream else total
        async with asyncio.timeout(limit if within_s is None else min(limit, within_s)):
            try:
                source = await self._sent(request)
                if stream:
                    # Where the provider counts nothing LiteLLM does, at the end, of these.
                    source.messages = parts.countable(request["messages"])
                    tell = wire.wants_usage(body)
                    chunks = Stream(
                        source,
                        name,
                        self._health,
                        http,
                        judge=judged,
                        tell_usage=tell,
                        limit_s=total,
                    )
                    chunks.waited_s = time.perf_counter() - start
                    return Answer(name, chunks=await _opened(chunks))
                response = wire.completion(source)
            except Exception:
                # LiteLLM may miss in a whole answer what it need not have.
                read = None if stream else wire.read(http)
                if read is None:
                    raise
                response = read
        if not response["choices"]:
            raise BadAnswerError("no choices")
        seconds = time.perf_counter() - start
        self._health.succeeded(name, seconds)
        # Where the provider counts nothing, LiteLLM says that it was nothing.
        usage = response["usage"] if any(response["usage"].values()) else None
        made = Attempt(name, 200, None, seconds, usage)
        return Answer(name, response=response, made=(made,))

    async def _sent(self, request: dict[str, Any]) -> Any:
        """LiteLLM's answer, or stream."""
        request.update(self._quiet.keywords(request))
        try:
            return await self._litellm.acompletion(**request)
        except self._litellm.exceptions.UnsupportedParamsError:
            # It says that it takes some of them where it does not (1.110: prompt_cache_key).
            fewer = {key: value for key, value in request.items() if key not in wire.HINTS}
            if len(fewer) == len(request):
                raise
            return await self._litellm.acompletion(**fewer)

    def _check_addresses(self, name: str, body: Mapping[str, Any]) -> None:
        """Raises ShapeError where LiteLLM would itself get what an address in the request names."""
        if self._settings.fetch_urls:
            return
        provider = self._providers[name]
        for where, kind, url in parts.addresses(body["messages"]):
            # Files have ids; LiteLLM takes an address in their place, and gets it for any provider.
            taken = kind != "file" if provider in self._alike else False
            if provider == "anthropic":
                taken = kind == "image_url" and url.startswith("https://")
            if not taken:
                raise ShapeError(
                    f"{where}: its provider takes no address (URL) there; send the data itself, "
                    "as data:<media type>;base64,..."
                )

    def _warm(self) -> None:
        """Load what LiteLLM otherwise loads at its first call, a second in which no loop turns."""
        importlib.import_module("openai.resources.chat.completions")
        prompt = [{"role": "user", "content": "hi"}]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a type of LiteLLM's own, once
            for _ in self._litellm.completion(
                model="openai/gpt-4o", messages=prompt, mock_response="hi", stream=True
            ):
                pass

    def _note(self, name: str, failure: CallError, seconds: float) -> None:
        if failure.counts:
            late = failure.name == "Timeout" and failure.status is None
            self._health.failed(name, seconds if late else None)
        if failure.verdict in {Verdict.RETRY, Verdict.NEXT}:
            logger.warning("model %r failed: %s, status %s", name, failure.name, failure.status)

    def _larger(self, name: str, window: int) -> bool:
        own = self._models[name].context_window
        return own is None or own > window

    def _own(self, model: Model) -> dict[str, Any]:
        """The keywords that every call of a model gets: constant, for LiteLLM keeps a client and
        its connections for each combination of key, address and timeout."""
        params = dict(model.params)
        params.setdefault("timeout", self._settings.timeout_s)
        return params | local_key(model.litellm_model, params)

    def _unsupported(self, model: Model) -> tuple[frozenset[str], frozenset[str]]:
        """(what is sent past LiteLLM, what is left out): parameters that it would refuse.

        A server that speaks OpenAI's API gets all that changes no answer, and where LiteLLM does
        not know its model, all else too. Other providers are not sent what changes no answer.
        """
        provider = self._providers[model.name]
        listed = self._litellm.get_supported_openai_params(model.litellm_model, provider) or ()
        supported = {"messages", *listed}
        if provider not in OPENAI_API:
            return frozenset(), wire.HINTS - supported
        past = wire.HINTS if self._is_known(model) else wire.PARAMETERS
        return past - supported, frozenset()

    def _is_known(self, model: Model) -> bool:
        name = model.litellm_model
        return (
            name in self._litellm.model_cost or name.split("/", 1)[-1] in self._litellm.model_cost
        )


async def _opened(chunks: Stream) -> Stream:
    try:
        await chunks.open()
    except BaseException:
        await chunks.aclose()
        raise
    return chunks

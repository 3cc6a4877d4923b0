"""One call of one model, without LiteLLM where it need not translate (`providers.direct`)."""

import asyncio
import gc
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ...providers.completion import acomplete, close_connections, quiet, warm_up
from ...providers.direct import CHAT, DirectModel
from ...providers.http_answer import BadAnswerError, HttpAnswer
from ...providers.http_client import DirectClient
from .. import request_parts as parts
from . import native, wire
from .request import ModelCall


class Transport:
    """Connections to providers, of one event loop. Loads LiteLLM, which takes seconds, where it is
    made for models whose chats it has to translate, else at the first request that it must."""

    def __init__(self, targets: Iterable[ModelCall]) -> None:
        self._client = DirectClient()
        self._loaded: set[str] = set()  # the names of models for which LiteLLM is
        for target in targets:
            if CHAT not in target.own.urls:
                self._load(target)

    async def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        await self._client.close()
        await close_connections()

    async def send(
        self,
        target: ModelCall,
        body: Mapping[str, Any],
        http: HttpAnswer,
        *,
        stream: bool,
        optional: Collection[str],
    ) -> Any:
        """A stream as `wire.pieces` takes it, or a whole completion. Raises whatever LiteLLM or the
        model's server raises, and BadAnswerError."""
        own = target.own
        how: dict[str, Any] = {"stream": stream, "optional": optional}
        if (asked := native.asked(body, own, target.model.max_output_tokens)) is not None:
            return await (native.stream if stream else native.whole)(self._client, own, asked, http)
        if (plain := target.direct(body, stream=stream)) is not None:
            response = await self._posted(own, plain, http, **how)
            found = response if stream else wire.read(http)
        else:
            found = await self._by_litellm(target, body, http, **how)
        if not stream and not (found and found["choices"]):
            raise BadAnswerError("no completion")
        return found

    async def _posted(
        self,
        own: DirectModel,
        body: Mapping[str, Any],
        http: HttpAnswer,
        *,
        stream: bool,
        optional: Collection[str],
    ) -> Any:
        """A chat, and where the server refuses log-probabilities, the same without, as `acomplete`
        does."""
        try:
            return await self._client.post(own, CHAT, body, http, stream=stream)
        except BadAnswerError:
            fewer = {name: value for name, value in body.items() if name not in optional}
            refused = "logprobs" in optional and b"logprob" in b"".join(http.parts).lower()
            if http.status != 400 or not refused or len(fewer) == len(body):
                raise
            return await self._client.post(own, CHAT, fewer, http, stream=stream)

    async def _by_litellm(
        self,
        target: ModelCall,
        body: Mapping[str, Any],
        http: HttpAnswer,
        *,
        stream: bool,
        optional: Collection[str],
    ) -> Any:
        if target.model.name not in self._loaded:
            await asyncio.to_thread(self._load, target)
            gc.freeze()  # else the collector walks through all that LiteLLM brought
        request = target.translated(body, stream=stream)
        try:
            source = await acomplete(request, optional=optional)
            if not stream:
                return wire.completion(wire.dumped(source))
        except Exception:
            # LiteLLM may miss in a whole answer what it need not have.
            read = None if stream else wire.read(http)
            if read is None:
                raise
            return read
        # Where the provider counts nothing LiteLLM does, at the end, of these.
        source.messages = parts.countable(request["messages"])
        return source

    def _load(self, target: ModelCall) -> None:
        """What LiteLLM has for a model, so that no import stops the event loop."""
        with quiet():
            warm_up()
            target.takes  # noqa: B018 - it is kept
        self._loaded.add(target.model.name)

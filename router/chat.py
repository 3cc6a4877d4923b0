"""`client.chat.completions`, typed: what an editor and a type checker see of an answer.

The answers are LiteLLM's objects, which have the fields of OpenAI's types; those are named here
because LiteLLM's own leave a message's content untyped.
"""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from .controller import Controller


class Completions:
    """`create` and `acreate`: `Controller.completion` and `acompletion`, whose keywords these are;
    any other keyword goes to LiteLLM."""

    def __init__(self, client: "Controller") -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<chat.completions of {self._client!r}>"

    @overload
    def create(
        self,
        *,
        messages: list[Any],
        model: str | None = None,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        stream: Literal[False] | None = None,
        **request: Any,
    ) -> "ChatCompletion": ...

    @overload
    def create(
        self,
        *,
        messages: list[Any],
        stream: Literal[True],
        model: str | None = None,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        **request: Any,
    ) -> "Iterator[ChatCompletionChunk]": ...

    @overload
    def create(
        self,
        *,
        messages: list[Any],
        stream: bool,
        model: str | None = None,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        **request: Any,
    ) -> "ChatCompletion | Iterator[ChatCompletionChunk]": ...

    def create(self, **request: Any) -> Any:
        """See `Controller.completion`."""
        return self._client.completion(**request)

    @overload
    async def acreate(
        self,
        *,
        messages: list[Any],
        model: str | None = None,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        stream: Literal[False] | None = None,
        **request: Any,
    ) -> "ChatCompletion": ...

    @overload
    async def acreate(
        self,
        *,
        messages: list[Any],
        stream: Literal[True],
        model: str | None = None,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        **request: Any,
    ) -> "AsyncIterator[ChatCompletionChunk]": ...

    @overload
    async def acreate(
        self,
        *,
        messages: list[Any],
        stream: bool,
        model: str | None = None,
        router: str | None = None,
        threshold: float | None = None,
        strong_share: float | None = None,
        **request: Any,
    ) -> "ChatCompletion | AsyncIterator[ChatCompletionChunk]": ...

    async def acreate(self, **request: Any) -> Any:
        """See `Controller.acompletion`."""
        return await self._client.acompletion(**request)


class Chat:
    """`client.chat`, which has `completions` alone."""

    def __init__(self, client: "Controller") -> None:
        self.completions = Completions(client)

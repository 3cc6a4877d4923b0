"""The doors beside chat completions: Messages, Responses, embeddings, legacy completions.

Each only translates, at the edge: its body becomes a chat completion's, which takes the same way as
any other, and the answer becomes its protocol's. Beside the translation goes the request as it came
(`native`), of the fields alone that its protocol has, for models that speak the protocol.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...router.model_name import PREFIX
from .. import thoughts
from ..dialects import (
    messages_answer,
    messages_request,
    plain,
    responses_answer,
    responses_request,
)
from ..errors import as_anthropics, wrong
from .auth import principal
from .flow import RequestFlow
from .openai_chat import Json, Translate, parse
from .sending import Client, Dialect

_BETA = re.compile(r"(?!oauth)[a-z0-9.-]{1,64}")
_PLAIN = {
    "embeddings": ("input", "encoding_format", "dimensions", "user"),
    "completions": (
        "prompt", "suffix", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options",
        "logprobs", "echo", "stop", "presence_penalty", "frequency_penalty", "best_of",
        "logit_bias", "user", "seed",
    ),
}  # fmt: skip


class Translated(Dialect):
    """A protocol that some providers speak: their events pass, chunks of others are translated."""

    named = True

    def __init__(
        self,
        events: messages_answer.Events | responses_answer.Events,
        whole: Callable[[Json], Json],
        error: Callable[[Json], Json],
    ) -> None:
        self._events, self._whole, self._error = events, whole, error
        self._is_native = False

    def body(self, completion: Json) -> Json:
        """The provider's own answer, or one made of a chat completion."""
        return _native(completion) or self._whole(completion)

    def events(self, chunk: Json) -> Iterable[Json]:
        """The provider's own event, or those made of a chunk."""
        if (event := _native(chunk)) is not None:
            self._is_native = True
            return (event,)
        return () if self._is_native else self._events.of(chunk)

    def end(self) -> Iterable[Json]:
        """What a provider says itself at its end."""
        return () if self._is_native else self._events.end()

    def error(self, told: Json) -> Json:
        """As the protocol has errors."""
        return self._error(told)


class Plain(Dialect):
    """What is passed on as it is."""

    def body(self, completion: Json) -> Json:
        """The provider's own answer."""
        found: Json = completion["native"]
        return found

    def events(self, chunk: Json) -> Iterable[Json]:
        """The provider's own event, or that of a kept answer."""
        return (chunk["native"],) if "native" in chunk else plain.pieces_of(chunk)


async def messages(flow: RequestFlow, client: Client) -> None:
    """POST /v1/messages."""
    events = messages_answer.Events()
    client.dialect = Translated(events, messages_answer.message_of, as_anthropics)
    await _answer(flow, client, _messages)


async def count_tokens(flow: RequestFlow, client: Client) -> None:
    """POST /v1/messages/count_tokens: as this server counts, which is about right for any model."""
    principal(client.headers, flow.state.config)
    if (raw := await client.body()) is not None:
        parsed = await parse(flow.state, raw, client.headers, _messages, exact=True)
        await client.json({"input_tokens": parsed.request.prompt_tokens})


async def responses(flow: RequestFlow, client: Client) -> None:
    """POST /v1/responses."""

    def translate(body: Mapping[str, Any], _: Mapping[str, str]) -> tuple[Json, Json]:
        custom = responses_request.custom_tools(body)

        def whole(completion: Json) -> Json:
            return responses_answer.response_of(completion, body, custom)

        events = responses_answer.Events(body, custom)
        client.dialect = Translated(events, whole, responses_answer.error_of)
        chat, native = responses_request.chat_of(body), responses_request.native_of(body)
        effort = responses_request.effort_of(body)
        return chat, {"protocol": "responses", "body": native, "headers": {}, "effort": effort}

    await _answer(flow, client, translate)


async def embeddings(flow: RequestFlow, client: Client) -> None:
    """POST /v1/embeddings."""
    client.dialect = Plain()
    await _answer(flow, client, _embeddings)


async def completions(flow: RequestFlow, client: Client) -> None:
    """POST /v1/completions."""
    client.dialect = Plain()
    await _answer(flow, client, _completions)


DOORS = {
    "/messages": messages,
    "/messages/count_tokens": count_tokens,
    "/responses": responses,
    "/embeddings": embeddings,
    "/completions": completions,
}


async def _answer(flow: RequestFlow, client: Client, translate: Translate) -> None:
    principal(client.headers, flow.state.config)
    if (raw := await client.body()) is not None:
        parsed = await parse(flow.state, raw, client.headers, translate)
        await client.reply(flow.answer(parsed))


def _messages(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Json, Json]:
    chat = messages_request.chat_of(body)
    native = {name: body[name] for name in messages_request.FIELDS if body.get(name) is not None}
    if "metadata" in native:  # the router's options are none of the provider's business
        user = {k: v for k, v in body["metadata"].items() if k == "user_id"}
        native["metadata"] = user
    betas = [b.strip() for b in headers.get("anthropic-beta", "").split(",")]
    betas = [beta for beta in betas if _BETA.fullmatch(beta)]
    sent = {"anthropic-beta": ",".join(betas)} if betas else {}
    if version := headers.get("anthropic-version"):
        sent["anthropic-version"] = version
    effort = messages_request.effort_of(body)
    return chat, {"protocol": "messages", "body": native, "headers": sent, "effort": effort}


def _embeddings(body: Mapping[str, Any], _: Mapping[str, str]) -> tuple[Json, Json]:
    return _plain("embeddings", body, _texts(body, "input")), _native_plain("embeddings", body)


def _completions(body: Mapping[str, Any], _: Mapping[str, str]) -> tuple[Json, Json]:
    return _plain("completions", body, _texts(body, "prompt")), _native_plain("completions", body)


def _plain(protocol: str, body: Mapping[str, Any], text: str) -> Json:
    """A chat completion that stands for it where it is counted and looked at."""
    model = body.get("model")
    if not isinstance(model, str) or model == "auto" or model.startswith(PREFIX):
        raise wrong("model", f"{protocol} need a model of the pool by its name")
    same = ("model", "max_tokens", "n", "best_of", "user", "metadata")
    chat = {name: body[name] for name in same if body.get(name) is not None}
    if protocol == "completions" and body.get("stream"):
        chat["stream"] = True
    if protocol == "embeddings":
        chat["max_tokens"] = 1  # nothing is written
    return chat | {"messages": [{"role": "user", "content": text}]}


def _native_plain(protocol: str, body: Mapping[str, Any]) -> Json:
    native = {name: body[name] for name in _PLAIN[protocol] if body.get(name) is not None}
    return {"protocol": protocol, "body": native, "headers": {}}


def _texts(body: Mapping[str, Any], name: str) -> str:
    """The text that is asked about; of tokens by number, as many words."""
    given = body.get(name)
    items = given if isinstance(given, list) else [given]
    if not items or not all(isinstance(item, str | int | list) for item in items):
        raise wrong(name, "expected text, or a list of texts")
    words = [item if isinstance(item, str) else str(item) for item in items]
    return "\n".join(words) or " "


def _native(answer: Json) -> Json | None:
    """The provider's own answer or event, its signatures marked; None where it is translated."""
    if "native" not in answer:
        return None
    found: Json = thoughts.marked(answer["native"], answer["maker"])
    return found

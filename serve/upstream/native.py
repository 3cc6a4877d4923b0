"""Calls of a model in its client's own protocol, heard as chat completions too.

`body["native"]` is what a door but the chat's puts beside its translation: `protocol`, `body` and
`headers`. What is answered has the provider's own answer under `native`, and its `maker`.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from ...providers import json_bytes
from ...providers.direct import DirectModel
from ...providers.http_answer import BadAnswerError, HttpAnswer
from ...providers.http_client import DirectClient, events
from .. import thoughts
from ..dialects import messages_answer, plain, responses_answer

Json = dict[str, Any]

_WHOLE = {
    "messages": messages_answer.completion_of,
    "responses": responses_answer.completion_of,
    "embeddings": plain.completion_of_embeddings,
    "completions": plain.completion_of_text,
}
_STREAMS: dict[str, Any] = {
    "messages": messages_answer.Chunks,
    "responses": responses_answer.Chunks,
    "completions": plain.Chunks,
}
_LENGTHS = ("max_tokens", "max_output_tokens")
_WISHES = frozenset({"thinking", "verbosity"})
# Tokens of thought for an effort, where a model of Anthropic's has none; 1,024 is the least.
_LEAST_BUDGET = 1024
_BUDGETS = {
    "minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 24_576, "max": 32_768,
}  # fmt: skip
_LISTS = {"messages": "messages", "responses": "input"}  # where a body has what was signed


def asked(
    body: Mapping[str, Any], model: DirectModel, most: int | None
) -> Mapping[str, Any] | None:
    """The client's request as this model hears it itself; None where it has to be translated.
    most: the longest answer that the model gives."""
    native = body.get("native")
    if native is None or native["protocol"] not in model.urls:
        return None
    request: Mapping[str, Any] = native
    name = _LISTS.get(native["protocol"])
    if most is not None:
        cut = {n: min(v, most) for n, v in native["body"].items() if n in _LENGTHS and v}
        request = native = {**native, "body": {**native["body"], **cut}}
    if name is not None and isinstance(given := native["body"].get(name), list):
        own = {name: thoughts.for_maker(given, model.maker)}
        request = {**native, "body": {**native["body"], **own}}
    if model.effort is not None and name is not None:
        request = {**request, "body": _at_effort(request["body"], native["protocol"], model)}
    return request


def _at_effort(body: Mapping[str, Any], protocol: str, model: DirectModel) -> Mapping[str, Any]:
    """With the effort of the model's name, in place of the client's own: agents always send one,
    and the name is what was routed to."""
    effort = model.effort
    if protocol == "responses":
        return {**body, "reasoning": {**_mapping(body.get("reasoning")), "effort": effort}}
    if effort == "none":
        return {name: value for name, value in body.items() if name != "thinking"}
    if model.has_effort:
        word = {"minimal": "low"}.get(str(effort), effort)
        return {**body, "output_config": {**_mapping(body.get("output_config")), "effort": word}}
    # Thinking is never turned on here: with it, earlier turns have to have their thoughts.
    thinking, most = _mapping(body.get("thinking")), body.get("max_tokens")
    if (budget := _BUDGETS.get(str(effort))) is None:
        return body
    if thinking.get("type") != "enabled" or not isinstance(most, int) or most <= _LEAST_BUDGET:
        return body
    return {**body, "thinking": {**thinking, "budget_tokens": min(budget, most - 1)}}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def wishes(body: Mapping[str, Any]) -> bool:
    """Whether a body of another protocol asks the model to think, as some can."""
    return "native" in body and bool(body["native"].get("effort") or _WISHES & body.keys())


def translated(
    body: Mapping[str, Any], model: DirectModel, takes: frozenset[str]
) -> Mapping[str, Any]:
    """A chat completion's body for a model that does not speak the client's protocol. takes: the
    parameters that it has; agents ask every model to think, and those that cannot just answer."""
    if "native" not in body:
        return body
    body = {name: v for name, v in body.items() if name not in _WISHES or name in takes}
    effort = None if model.effort is not None else body["native"].get("effort")
    if model.effort is not None:
        body.pop("thinking", None)
    if effort and "reasoning_effort" in takes and "thinking" not in body:
        body["reasoning_effort"] = effort
    messages = [
        thoughts.for_chat(message, model.maker) if "thinking_blocks" in message else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


class NativeStream:
    """Chunks of a stream in its client's protocol, each with the `native` event that it is of."""

    def __init__(self, protocol: str, maker: str, http: HttpAnswer) -> None:
        self._read, self._maker, self._http = _STREAMS[protocol](), maker, http

    async def __aiter__(self) -> AsyncIterator[Json]:
        try:
            async for event in events(self._http):
                chunk = self._read.of(event)
                if any(choice.get("finish_reason") for choice in chunk["choices"]):
                    self._http.ended = True
                yield {**chunk, "maker": self._maker, "native": event}
        except (TypeError, KeyError, AttributeError) as error:
            raise BadAnswerError("an event of another protocol") from error


async def whole(
    client: DirectClient,
    model: DirectModel,
    request: Mapping[str, Any],
    http: HttpAnswer,
) -> Json:
    """The answer. Raises as `DirectClient.post`."""
    await _post(client, model, request, http, stream=False)
    try:
        raw = json_bytes.read(b"".join(http.parts))
        found = _WHOLE[request["protocol"]](raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadAnswerError("an answer of another protocol") from error
    return {**found, "maker": model.maker, "native": raw}


async def stream(
    client: DirectClient,
    model: DirectModel,
    request: Mapping[str, Any],
    http: HttpAnswer,
) -> NativeStream:
    """Its chunks. Raises as `whole`."""
    await _post(client, model, request, http, stream=True)
    return NativeStream(request["protocol"], model.maker, http)


async def _post(
    client: DirectClient,
    model: DirectModel,
    request: Mapping[str, Any],
    http: HttpAnswer,
    *,
    stream: bool,
) -> None:
    how: dict[str, Any] = {"headers": request["headers"], "stream": stream}
    await client.post(model, request["protocol"], request["body"], http, **how)

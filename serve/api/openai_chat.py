"""POST /v1/chat/completions: who asks, what is asked, the answer."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ...providers.completion import is_loaded
from ..changed import changed
from ..request import ChatRequest, Options, Principal
from ..session_key import session_of
from ..state import ServerState
from .auth import principal
from .chat_request import read_body, read_options, read_request
from .flow import RequestFlow
from .request_state import Pending
from .sending import Client
from .settlement import SHORT_BYTES

Json = dict[str, Any]
# A door's body and its headers -> (the chat completion's, what `upstream.native` sends as it is)
Translate = Callable[[Mapping[str, Any], Mapping[str, str]], tuple[Json, Json]]


async def chat_completions(flow: RequestFlow, client: Client) -> None:
    """The door. Raises RefusedError."""
    # Before the body is read: who has no key makes the server hold nothing.
    principal(client.headers, flow.state.config)
    raw = await client.body()
    if raw is not None:
        parsed = await parse(flow.state, raw, client.headers)
        await client.reply(flow.answer(parsed))


async def parse(
    state: ServerState,
    raw: bytes,
    headers: Mapping[str, str],
    translate: Translate | None = None,
    *,
    exact: bool = False,
) -> Pending:
    """`headers` have lower-case names. translate: from another protocol. exact: its tokens are
    counted one by one. Raises RefusedError."""
    started, size = time.perf_counter(), len(raw)
    # A short body is read, and a short prompt counted, sooner than a thread is woken.
    short = size < SHORT_BYTES
    body = read_body(raw) if short else await state.in_thread(lambda: read_body(raw), size=size)
    options = read_options(body.get("metadata"), headers)
    who = principal(headers, state.config, tenant=options.tenant)

    def read() -> ChatRequest:
        chat, native = (body, None) if translate is None else translate(body, headers)
        how: dict[str, Any] = {"headers": headers, "exact": exact}
        request = request_of(state, chat, options, who, id=os.urandom(16).hex(), **how)
        sent = request.body if native is None else {**request.body, "native": native}
        return changed(request, body=sent, size=size)

    # What has to be counted exactly loads LiteLLM, the first time: never on the event loop.
    short = short and (is_loaded() or (not exact and 4 * size < state.room_for(body, options)))
    request = read() if short else await state.in_thread(read, size=size)
    arm = None if state.experiment is None else state.experiment.arm(request)
    return Pending(request, headers, size, started, arm)


def request_of(
    state: ServerState,
    body: Mapping[str, Any],
    options: Options,
    who: Principal,
    *,
    id: str,
    headers: Mapping[str, str] = MappingProxyType({}),
    exact: bool = False,
) -> ChatRequest:
    """The request of a body, as this server counts it. Raises RefusedError (400)."""

    def count(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> int:
        room = 0 if exact else state.room_for(body, options)
        return state.count_tokens(messages, tools, room=room)

    request = read_request(
        body,
        options,
        who,
        id=id,
        lengths=state.lengths,
        count=count,
        unlimited=state.registry.is_local(body.get("model")),
    )
    metadata, messages = body.get("metadata"), request.messages
    session = session_of(options.session, headers, request.body, metadata, messages)
    return changed(request, session=session, model=state.registry.meant(request.model))

"""POST /v1/chat/completions: who asks, what is asked, the answer."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from ..request import ChatRequest, Options, Principal
from ..state import ServerState
from .auth import principal
from .chat_request import read_body, read_options, read_request
from .flow import RequestFlow
from .request_state import Pending
from .sending import Client
from .settlement import SHORT_BYTES


async def chat_completions(flow: RequestFlow, client: Client) -> None:
    """The door. Raises RefusedError."""
    # Before the body is read: who has no key makes the server hold nothing.
    principal(client.headers, flow.state.config)
    raw = await client.body()
    if raw is not None:
        parsed = await parse(flow.state, raw, client.headers)
        await client.reply(flow.answer(parsed))


async def parse(state: ServerState, raw: bytes, headers: Mapping[str, str]) -> Pending:
    """`headers` have lower-case names. Raises RefusedError."""
    started, size = time.perf_counter(), len(raw)
    # A short body is read, and a short prompt counted, sooner than a thread is woken.
    short = size < SHORT_BYTES
    body = read_body(raw) if short else await state.in_thread(lambda: read_body(raw), size=size)
    options = read_options(body.get("metadata"), headers)
    who = principal(headers, state.config, tenant=options.tenant)

    def read() -> ChatRequest:
        return request_of(state, body, options, who, id=uuid.uuid4().hex)

    request = read() if short else await state.in_thread(read, size=size)
    arm = None if state.experiment is None else state.experiment.arm(request)
    return Pending(request, headers, size, started, arm)


def request_of(
    state: ServerState, body: Mapping[str, Any], options: Options, who: Principal, *, id: str
) -> ChatRequest:
    """The request of a body, as this server counts it. Raises RefusedError (400)."""
    return read_request(
        body,
        options,
        who,
        id=id,
        expected_output=state.config.expected_output_tokens,
        count=state.count_tokens,
        unlimited=state.registry.is_local(body.get("model")),
    )

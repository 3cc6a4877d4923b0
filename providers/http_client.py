"""The HTTP client of calls without LiteLLM: JSON out, bytes in, one pool for each event loop.

What comes is watched and bounded as LiteLLM's calls are, by an `HttpAnswer`. A call takes aiohttp
(3.14) 0.4 ms of CPU, httpx (0.28) 2.2. No redirect is followed: it would take the key along.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import certifi
import httpx

from . import json_bytes
from .direct import CHAT, DirectModel
from .http_answer import BadAnswerError, HttpAnswer, bounded, lines

_DRAIN_S = 0.1  # for the end of an answer after [DONE], with which its connection can be used again
_VERSION = "2023-06-01"  # Anthropic's, where a client names none


class DirectClient:
    """The connections of one event loop, opened at its first call. As with LiteLLM, `SSL_VERIFY`
    and `SSL_CERT_FILE` say which certificates are trusted."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        to: DirectModel,
        protocol: str,
        body: Mapping[str, Any],
        http: HttpAnswer,
        *,
        headers: Mapping[str, str] | None = None,
        stream: bool,
    ) -> "Response":
        """Send `body`, of a `protocol` that `to` hears; the answer is in `http.parts`, whole, or to
        be read from its `events`. Raises what aiohttp raises, BadAnswerError for a status that is
        no success, and what reading an answer raises past `http`'s bounds."""
        session = self._session = self._session or _new_session()
        body = {**body, **to.extra, "model": to.model} | ({"stream": True} if stream else {})
        usual = {"anthropic-version": _VERSION} if protocol == "messages" else {}
        http.sent, http.status, http.is_openais = True, None, protocol == CHAT
        given = await session.post(
            to.urls[protocol],
            data=json_bytes.write(body),
            headers={**usual, **(headers or {}), **to.headers},
            proxy=to.proxy,
            allow_redirects=False,
        )
        response = Response(given, http)
        if not (http.is_success and stream):
            try:
                async for _ in response.aiter_bytes():
                    pass
            except BaseException:
                await response.aclose()
                raise
        if not http.is_success:
            raise BadAnswerError(f"status {given.status}")
        return response

    async def close(self) -> None:
        """Close them; the next call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Response:
    """An answer as `HttpAnswer` keeps it: read once, within its bounds."""

    def __init__(self, inner: aiohttp.ClientResponse, http: HttpAnswer) -> None:
        self._inner = inner
        self.headers = inner.headers
        http.begin(self, inner.status, inner.headers.get("content-type", ""))
        encoding = inner.headers.get("content-encoding", "identity").lower()
        self._pieces = bounded(inner.content.iter_any(), encoding, http)

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Its bytes, unpacked."""
        return self._pieces

    async def aclose(self) -> None:
        """Close its connection, unless it was read to its end."""
        self._inner.close()


async def events(http: HttpAnswer) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event of a stream that nobody else has begun to read, up to `[DONE]`.

    Raises what reading it raises, ValueError, and BadAnswerError for an error in the stream.
    """
    assert http.response is not None
    pieces = http.response.aiter_bytes()
    data: list[bytes] = []
    async for line in lines(pieces):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        if line or not data:
            continue
        said, data = b"\n".join(data), []
        if said.startswith(b"[DONE]"):
            with contextlib.suppress(TimeoutError, httpx.HTTPError, aiohttp.ClientError):
                async with asyncio.timeout(_DRAIN_S):
                    async for _ in pieces:
                        pass
            return
        event = json_bytes.read(said)
        if not isinstance(event, dict) or event.get("error"):
            raise BadAnswerError("an error in the stream")
        yield event


def _new_session() -> aiohttp.ClientSession:
    verify = os.environ.get("SSL_VERIFY", "True")
    files = (verify, os.environ.get("SSL_CERT_FILE", ""))
    trusted: ssl.SSLContext | bool = verify.strip().lower() != "false"
    if trusted:
        found = next((p for p in files if Path(p).is_file()), certifi.where())
        trusted = ssl.create_default_context(cafile=found)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # whoever calls has a clock
        auto_decompress=False,  # its size is bounded as it is unpacked
    )

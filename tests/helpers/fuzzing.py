"""Mutated requests for every route, by seed, and what is asked of the answers.

No answer may be a 500, none may fail to come, and no canary (a prompt, a client's or a provider's
key) may be in an error, a log, a metric, a trace or a record.
"""

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PROMPT = "the walrus 7f3ac1 sings"
CLIENT_KEY = "sk-canary-client-0123456789abcdef"
PROVIDER_KEY = "sk-canary-provider-0123456789abcdef"
ADMIN_KEY = "sk-canary-admin-0123456789abcdef"
CANARIES = ("walrus", "7f3ac1", "canary-client", "canary-provider", "canary-admin")

_CHAT: dict[str, Any] = {
    "model": "weak",
    "messages": [
        {"role": "system", "content": PROMPT},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": PROMPT},
        {"role": "user", "content": PROMPT},
    ],
    "max_tokens": 10,
    "n": 1,
    "stream": False,
    "stream_options": None,
    "temperature": 0.5,
    "stop": ["a"],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "text"},
    "metadata": {"task": "t", "session": "s", "max_cost": "1"},
}  # fmt: skip
_BODIES: dict[str, dict[str, Any]] = {
    "/route": {"messages": _CHAT["messages"], "tier": "all", "metadata": {"quality": "low"}},
    "/feedback": {"id": "0" * 32, "value": "good", "comment": PROMPT},
}
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1e308, -1e308, 10**400, "", " ", "\0", "\ud800", "é" * 300),
    *([], {}, [[]], [None], {"": None}, {"role": "user"}, {"type": "image_url"}, "a" * 5000),
    *({"$ref": "#"}, [{"type": "text", "text": 7}], "NaN", "../../etc/passwd", "%s%n", "${HOME}"),
)
_HEADERS = (
    "x-thriftroute-threshold: nan",
    "x-thriftroute-max-cost: -1",
    "x-thriftroute-session: " + "s" * 3000,
    "x-thriftroute-tenant: \x01\x02",
    "x-thriftroute-models: ,,,",
    "x-thriftroute-nothing: 1",
    "content-type: text/plain; charset=\xff",
    "content-encoding: gzip",
    "accept: */*;q=nan",
    "accept-encoding: \xfe",
    "origin: null",
    "host: evil.example",
    "forwarded: for=1.2.3.4",
    "traceparent: 00-zz-zz-zz",
    "x-request-id: ${jndi:ldap://x}",
    "cookie: " + "a=b; " * 500,
    "expect: 100-continue",
    "range: bytes=9999-0",
    "if-none-match: *",
    "content-length: 7",
    "transfer-encoding: chunked",
    "connection: upgrade\r\nupgrade: websocket",
)
_QUERIES = (
    *("limit=0", "limit=-1", "limit=9e9", "since=now", "since=1e999", "by=model", "by=';--"),
    *("until=%00", "status=abc", "errors=1&errors=2", "tenant=%ff", "x=" + "y" * 3000, "%", "&&=="),
    *("since=-99999999999", "since=24h&until=1h", "model=%F0%9F%92%A9", "limit=1&by=day"),
)


@dataclass(frozen=True)
class Case:
    """One request as bytes, and the route that it is meant for."""

    route: str
    raw: bytes


def routes_of(app: Any) -> list[tuple[str, str]]:
    """(method, path) of every route of the server's application, with parameters filled in."""
    found = []
    for route in app.routes:
        path = route.path.replace("{name:path}", "weak").replace("{id}", "0" * 32)
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            found.append((method, path))
    return found


def cases(routes: list[tuple[str, str]], n: int, seed: int = 0) -> Iterator[Case]:
    """n mutated requests for each route, the routes in turn."""
    draw = random.Random(seed)
    for _ in range(n):
        for method, path in routes:
            yield Case(f"{method} {path}", _request(draw, method, path))


async def ask(host: str, port: int, case: Case, limit_s: float) -> tuple[str, str]:
    """(status, answer); the status is "hang" where nothing ends within the limit, "closed" where
    the connection ends without an answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(limit_s):
            writer.write(case.raw)
            answer = await reader.read()
    except TimeoutError:
        return "hang", ""
    except ConnectionError:
        return "closed", ""
    finally:
        writer.close()
    if not answer:
        return "closed", ""
    text = answer.decode("latin-1").removeprefix("HTTP/1.1 100 Continue\r\n\r\n")
    return text.split(" ", 2)[1], text


async def storm(
    url: str, todo: Iterator[Case], *, at_once: int = 8, limit_s: float = 60.0
) -> tuple[Counter[str], list[str], str]:
    """Send them all: (how often each status, what went wrong, the text of all errors)."""
    host, _, port = url.removeprefix("http://").partition(":")
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    errors: list[str] = []

    async def client() -> None:
        for case in todo:
            status, text = await ask(host, int(port), case, limit_s)
            statuses[status] += 1
            if status in {"500", "hang"}:
                wrong.append(f"{status} for {case.route}: {case.raw[-400:]!r}")
            if not status.startswith("2"):
                errors.append(text)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return statuses, wrong, "".join(errors)


def _request(draw: random.Random, method: str, path: str) -> bytes:
    key = CLIENT_KEY if path.endswith(("completions", "models", "/weak")) else ADMIN_KEY
    lines = [f"authorization: Bearer {key}", "connection: close"]
    body = b""
    if method == "POST":
        body = _body(draw, _BODIES.get(path, _CHAT))
        lines.append("content-type: application/json")
    elif draw.random() < 0.7:
        path += "?" + draw.choice(_QUERIES)
    odd = [draw.choice(_HEADERS) for _ in range(draw.choice((0, 0, 1, 1, 3)))]
    if draw.random() < 0.05:
        lines[0] = (
            f"authorization: {draw.choice(('Basic x', 'Bearer', key, 'Bearer ' + key[::-1]))}"
        )
    if draw.random() < 0.03:
        method = draw.choice(("PUT", "DELETE", "OPTIONS", "TRACE", "FOO", "HEAD"))
    if draw.random() < 0.03:
        path = draw.choice(
            (path + "/", path + "/..%2f", "//" + path, path.upper(), "*", path + "\t")
        )
    lines = ["host: 127.0.0.1", *lines, *odd]
    # A length or an encoding that lies leaves the server waiting for more: that is its own test.
    lies = any(line.startswith(("content-length", "transfer-", "expect", "connection: u"))
               for line in odd)  # fmt: skip
    if not lies:
        lines.append(f"content-length: {len(body)}")
    elif any(line.startswith("transfer-") for line in odd):
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif any(line.startswith("content-length") for line in odd):
        body = body[:7].ljust(7)
    else:
        lines.append(f"content-length: {len(body)}")
    head = f"{method} {path} HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1", "replace") + body


def _body(draw: random.Random, base: dict[str, Any]) -> bytes:
    body = copy.deepcopy(base)
    for _ in range(draw.choice((1, 1, 2, 4))):
        _mutate(draw, body)
    raw = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = draw.random()
    if kind < 0.1:  # bytes changed
        changed = bytearray(raw)
        for _ in range(draw.randint(1, 5)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if kind < 0.15:  # cut
        return raw[: draw.randrange(len(raw))]
    if kind < 0.18:  # nested
        depth = draw.choice((50, 5000))
        return raw[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}"
    if kind < 0.2:
        return draw.choice((b"", b"null", b"[]", b'"x"', b"NaN", b"\xef\xbb\xbf{}", b"{}" * 2))
    return raw


def _mutate(draw: random.Random, body: dict[str, Any]) -> None:
    """One change at a random place: a value of another kind, a key gone, twice, or new."""
    at: Any = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and draw.random() < 0.7:
            at = at[key]
            continue
        break
    act = draw.random()
    odd = copy.deepcopy(draw.choice(_ODD))
    if act < 0.6:
        at[key] = odd
    elif act < 0.75:
        del at[key]
    elif isinstance(at, list):
        at.append(copy.deepcopy(at[key]))
    else:
        at[draw.choice(("api_base", "callbacks", "mock_response", "timeout", "x", "role"))] = odd

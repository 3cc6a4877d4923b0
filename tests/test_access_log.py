"""The access log: a line a request, with names and numbers alone."""

import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from thriftroute.serve.api.auth import digest
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

KEY = "tr-very-secret"
LINE = (
    r"key=alice tenant=acme door=/v1/chat/completions asked={} model={} score={} threshold={} "
    r"status={} ms=\d+ tokens={} cost=0\.\d{{6}}"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    keys = [{"name": "alice", "sha256": digest(KEY), "tenant": "acme"}]
    own = {"keys": keys, "server": {"port": 0, "access_log": True, "max_body_bytes": 10_000}}
    with StubProvider() as provider, serving(pool(provider.url, **own)) as running:
        yield running


def lines(server: Serving, caplog: pytest.LogCaptureFixture, *sent: httpx.Request) -> list[str]:
    """What is logged of requests; waits until they are settled."""
    caplog.set_level(logging.INFO, "thriftroute.access")
    with httpx.Client() as client:
        for request in sent:
            client.send(request)
    for _ in range(3000):
        found = [r.message for r in caplog.records if r.name == "thriftroute.access"]
        if len(found) >= len(sent):
            return found
        httpx.get(f"{server.url}/health")
    raise AssertionError(found)


def post(server: Serving, path: str, body: object, key: str = KEY) -> httpx.Request:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Request("POST", f"{server.url}{path}", json=body, headers=headers)


def chat(model: str, text: str = "the walrus") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def test_a_line_a_request(server: Serving, caplog: pytest.LogCaptureFixture) -> None:
    found = lines(
        server,
        caplog,
        post(server, "/v1/chat/completions", chat("router-mf-1.0")),
        post(server, "/v1/chat/completions", chat("strong")),
        post(server, "/v1/chat/completions", chat("a b\nstatus=200")),
        post(server, "/v1/embeddings", {"model": "weak", "input": "the walrus"}),
    )
    scored, named, unknown, embedded = sorted(found, key=lambda line: "embeddings" in line)
    some = r"\d+\+\d+"
    assert re.fullmatch(LINE.format("router-mf-1.0", "weak", r"0\.\d+", "1", 200, some), scored)
    assert re.fullmatch(LINE.format("strong", "strong", "-", "-", 200, some), named)
    told = LINE.format(re.escape(r'"a b\nstatus=200"'), "-", "-", "-", 404, r"0\+0")
    assert re.fullmatch(told, unknown)
    assert "door=/v1/embeddings asked=weak " in embedded
    assert not [line for line in found if "walrus" in line or KEY in line]


def test_what_is_refused_before_is_told_by_its_door(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    found = lines(
        server,
        caplog,
        post(server, "/v1/messages", chat("auto"), key="tr-wrong"),
        post(server, "/v1/chat/completions", chat("auto", "walrus " * 2000)),
    )
    assert found == ["door=/v1/messages status=401", "door=/v1/chat/completions status=413"]


def test_without_it_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "thriftroute.access")
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        for body in (chat("weak"), {}):
            request = post(server, "/v1/chat/completions", body)
            httpx.post(request.url, content=request.content, headers=request.headers)
    assert [r for r in caplog.records if r.name == "thriftroute.access"] == []

"""Clients other than OpenAI's on a backend: pages in a browser, packed bodies, short names."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from thriftroute.errors import ConfigError
from thriftroute.serve.config.loader import load_config
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving

SITE = "https://app.example.com"
BODY = {"model": "openai/weak", "messages": [{"role": "user", "content": "Hi"}]}
LIMIT = 100_000


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


@pytest.fixture(scope="module")
def server(provider: StubProvider) -> Iterator[Serving]:
    """Without keys, on this machine; models named with their provider."""
    settings = pool(provider.url)
    for model in settings["models"]:
        model["name"] = model["model"]
    settings |= {"strong": "openai/strong", "weak": "openai/weak"}
    settings["server"] = {"cors_origins": [SITE], "max_body_bytes": LIMIT}
    with serving(settings) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def post(client: httpx.Client, content: bytes, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/chat/completions", content=content, headers=sent)


def test_a_page_of_an_allowed_site_may_ask_and_read_what_was_decided(client: httpx.Client) -> None:
    asked = {
        "origin": SITE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-api-key,x-stainless-os",
    }
    preflight = client.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == SITE
    allowed = preflight.headers["access-control-allow-headers"].replace(" ", "").split(",")
    assert {"authorization", "x-api-key", "x-stainless-os"} <= set(allowed)

    answer = post(client, json.dumps(BODY).encode(), origin=SITE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == SITE
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    told = {name for name in answer.headers if name.startswith("x-thriftroute-")}
    assert told
    assert told <= set(exposed)


def test_refusals_can_be_read_by_the_page_too(client: httpx.Client) -> None:
    for content, status in ((b"{", 400), (b"x" * (LIMIT + 1), 413)):
        answer = post(client, content, origin=SITE)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == SITE


def test_a_page_of_another_site_may_not(client: httpx.Client) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = client.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    answer = post(client, json.dumps(BODY).encode(), origin="https://evil.example")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")


def test_an_allowed_site_is_no_admin(client: httpx.Client) -> None:
    assert client.get("/stats").status_code == 200
    assert client.get("/stats", headers={"origin": SITE}).status_code == 403


def test_without_the_setting_no_page_may_ask(provider: StubProvider) -> None:
    with serving(pool(provider.url)) as server, httpx.Client(base_url=server.url) as client:
        asked = {"origin": SITE, "access-control-request-method": "POST"}
        assert client.options("/v1/chat/completions", headers=asked).status_code == 405
        answer = post(client, json.dumps(BODY).encode(), origin=SITE)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "app.example.com", f"{SITE}/", "https://App.example.com"])
def test_what_is_no_site_is_told(tmp_path: Path, origin: str) -> None:
    path = tmp_path / "thriftroute.yaml"
    models = {"models": [{"name": "a"}], "strong": "a", "weak": "a"}
    path.write_text(json.dumps({**models, "server": {"cors_origins": [origin]}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"server\.cors_origins\[0\]: "):
        load_config(path)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_a_gzip_body_is_unpacked(client: httpx.Client, encoding: str) -> None:
    packed = gzip.compress(json.dumps(BODY).encode())
    assert post(client, packed, content_encoding=encoding).status_code == 200
    packed, headers = gzip.compress(b'{"prompt": "Hi"}'), {"content-encoding": encoding}
    assert client.post("/route", content=packed, headers=headers).status_code == 200


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_other_encodings_are_415(client: httpx.Client, encoding: str) -> None:
    answer = post(client, zlib.compress(json.dumps(BODY).encode()), content_encoding=encoding)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert answer.headers["accept-encoding"] == "gzip"


def test_what_unpacks_to_more_than_the_limit_is_413(client: httpx.Client) -> None:
    for size in (LIMIT + 1, 50_000_000):
        answer = post(client, gzip.compress(b" " * size), content_encoding="gzip")
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    whole = json.dumps(BODY).encode()
    padded = whole + b" " * (LIMIT - len(whole))
    assert post(client, gzip.compress(padded), content_encoding="gzip").status_code == 200


@pytest.mark.parametrize("what", ["plain", "short", "more"])
def test_what_is_no_whole_gzip_is_400(client: httpx.Client, what: str) -> None:
    plain = json.dumps(BODY).encode()
    whole = gzip.compress(plain)
    sent = {"plain": plain, "short": whole[:-4], "more": whole + b"more"}[what]
    answer = post(client, sent, content_encoding="gzip")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_gzip")


def test_a_models_provider_may_be_left_out(server: Serving) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="strong", messages=[{"role": "user", "content": "Hi"}]
        )
        assert raw.headers["x-thriftroute-model"] == "openai/strong"
        for asked, id in (("strong", "openai/strong"), ("openai/weak",) * 2, ("auto", "auto")):
            assert client.models.retrieve(asked).id == id

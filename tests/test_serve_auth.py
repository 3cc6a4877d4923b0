from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from thriftroute.serve.api.auth import admin, client_of, digest, open_to_this_machine, principal
from thriftroute.serve.config.settings import Config, KeySettings, ModelSettings, ServerSettings
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.request import Principal
from thriftroute.tests.helpers.live import live

ALICE = KeySettings(name="alice", sha256=digest("sk-alice"), tenant="acme", tier="pro")
ROAMER = KeySettings(name="roamer", sha256=digest("sk-roamer"))
BOSS = KeySettings(name="boss", sha256=digest("sk-boss"), admin=True)
LOCAL = {"host": "127.0.0.1:6060"}


def config(*keys: KeySettings, tier: str | None = None, **server: Any) -> Config:
    models = (ModelSettings(name="strong"), ModelSettings(name="weak"))
    return Config(
        models=models,
        strong="strong",
        weak="weak",
        keys=keys,
        default_tier=tier,
        server=ServerSettings(**server),
    )


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **headers}


def refused(call: Any, *args: Any, **kwargs: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_without_keys_everybody_is_anonymous_whatever_key_they_send() -> None:
    expected = Principal("anonymous", "default", "free")
    assert principal({}, config(tier="free")) == expected
    assert principal(bearer("sk-anything"), config(tier="free")) == expected


def test_a_key_brings_its_name_tenant_and_tier() -> None:
    some = config(ROAMER, ALICE, BOSS, tier="free")
    assert principal(bearer("sk-alice"), some) == Principal("alice", "acme", "pro")
    assert principal(bearer("sk-roamer"), some) == Principal("roamer", "default", "free")
    assert principal(bearer("sk-boss"), some).admin
    assert not principal(bearer("sk-alice"), some).admin


def test_header_names_and_the_scheme_are_read_in_any_case() -> None:
    headers = Headers({"AUTHORIZATION": "bearer  sk-alice "})
    assert principal(headers, config(ALICE)).key == "alice"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic c2stYWxpY2U="}, "missing_api_key"),
        ({"authorization": "sk-alice"}, "missing_api_key"),
        (bearer("sk-mallory"), "invalid_api_key"),
        (bearer(digest("sk-alice")), "invalid_api_key"),
        (bearer("sk-alicë"), "invalid_api_key"),
    ],
)
def test_anything_but_a_known_key_is_401_and_the_key_is_not_repeated(
    headers: dict[str, str], code: str
) -> None:
    error = refused(principal, headers, config(ALICE))
    assert (error.status, error.code) == (401, code)
    assert error.headers["www-authenticate"].startswith("Bearer")
    assert "sk-" not in str(error)


def test_a_key_of_bytes_that_are_no_latin_letters_is_hashed_as_it_was_sent() -> None:
    import hashlib

    key = KeySettings(name="old", sha256=hashlib.sha256("ключ".encode()).hexdigest())
    as_received = "ключ".encode().decode("latin-1")
    assert principal(bearer(as_received), config(key)).key == "old"


def test_a_key_without_a_tenant_takes_the_requests() -> None:
    header = {"x-thriftroute-tenant": "globex"}
    for some, sent in ((config(ROAMER), bearer("sk-roamer")), (config(), {})):
        assert principal({**sent, **header}, some).tenant == "globex"
        assert principal(sent, some, tenant="initech").tenant == "initech"
        assert principal({**sent, **header}, some, tenant="initech").tenant == "globex"


def test_a_key_with_a_tenant_keeps_it() -> None:
    some = config(ALICE)
    assert principal(bearer("sk-alice"), some, tenant="acme").tenant == "acme"
    error = refused(principal, bearer("sk-alice"), some, tenant="globex")
    assert (error.status, error.code) == (403, "wrong_tenant")
    assert "acme" not in str(error)


def test_a_tenant_that_a_key_names_is_open_to_no_other_key() -> None:
    shared = KeySettings(name="ann", sha256=digest("sk-ann"), tenant="acme")
    some = config(ALICE, shared, ROAMER, BOSS, admin_sha256=digest("sk-admin"))
    for sent, named in (
        (bearer("sk-roamer", **{"x-thriftroute-tenant": "acme"}), None),
        (bearer("sk-roamer"), "acme"),
        (bearer("sk-roamer"), " acme "),
    ):
        error = refused(principal, sent, some, tenant=named)
        assert (error.status, error.code) == (403, "wrong_tenant")
        assert "alice" not in str(error)
    for key in ("sk-alice", "sk-ann", "sk-boss", "sk-admin"):
        assert principal(bearer(key), some, tenant="acme").tenant == "acme"
    assert principal(bearer("sk-roamer"), some, tenant="globex").tenant == "globex"
    assert principal(bearer("sk-roamer"), some).tenant == "default"


def test_a_key_without_a_tenant_does_not_fall_into_one_that_is_taken() -> None:
    owner = KeySettings(name="owner", sha256=digest("sk-owner"), tenant="default")
    some = config(owner, ROAMER)
    assert refused(principal, bearer("sk-roamer"), some).status == 403
    assert principal(bearer("sk-roamer"), some, tenant="globex").tenant == "globex"


@pytest.mark.parametrize("tenant", ["", "  ", "a" * 201, "a\nb"])
def test_a_tenant_that_is_no_name_is_400(tenant: str) -> None:
    error = refused(principal, {}, config(), tenant=tenant)
    assert (error.status, error.param) == (400, "metadata.tenant")


def test_admin_routes_open_for_an_admin_key_of_either_kind() -> None:
    apart = config(ALICE, admin_sha256=digest("sk-root"))
    assert admin(bearer("sk-root"), apart) == Principal("admin", "default", None, admin=True)
    assert admin(bearer("sk-boss"), config(BOSS)).key == "boss"
    assert admin(bearer("sk-root"), config(admin_sha256=digest("sk-root"))).key == "admin"


@pytest.mark.parametrize(
    ("some", "headers", "status", "code"),
    [
        (config(ALICE, BOSS), bearer("sk-alice"), 403, "not_admin"),
        (config(ALICE, BOSS), {}, 401, "missing_api_key"),
        (config(ALICE, BOSS), bearer("sk-x"), 401, "invalid_api_key"),
        (config(admin_sha256=digest("sk-root")), {}, 401, "missing_api_key"),
        (config(admin_sha256=digest("sk-root")), LOCAL, 401, "missing_api_key"),
        (config(admin_sha256=digest("sk-root")), bearer("sk-x", **LOCAL), 401, "invalid_api_key"),
        (config(ALICE), bearer("sk-alice", **LOCAL), 403, "no_admin_key"),
        (config(ALICE), LOCAL, 403, "no_admin_key"),
        (config(host="0.0.0.0"), LOCAL, 403, "no_admin_key"),
    ],
)
def test_admin_routes_are_closed_to_all_others(
    some: Config, headers: dict[str, str], status: int, code: str
) -> None:
    error = refused(admin, headers, some)
    assert (error.status, error.code) == (status, code)


def test_admin_routes_without_any_key_are_for_whoever_sits_here() -> None:
    assert admin(LOCAL, config()).admin
    for host in ("localhost", "127.0.0.1", "::1"):
        assert open_to_this_machine(LOCAL, config(host=host))
    for host in ("localhost:6060", "LOCALHOST", "[::1]:6060", "[::1]"):
        assert open_to_this_machine({"host": host}, config())


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ({"host": "router.example.com"}, "127.0.0.1"),
        ({"host": "127.0.0.1.example.com"}, "127.0.0.1"),
        ({}, "127.0.0.1"),
        ({**LOCAL, "origin": "https://example.com"}, "127.0.0.1"),
        ({**LOCAL, "origin": "http://127.0.0.1:8080"}, "127.0.0.1"),
        ({**LOCAL, "origin": "null"}, "127.0.0.1"),
        ({**LOCAL, "x-forwarded-for": "127.0.0.1"}, "127.0.0.1"),
        ({**LOCAL, "forwarded": "for=127.0.0.1"}, "127.0.0.1"),
        (LOCAL, "192.0.2.1"),
        (LOCAL, "no address"),
        (LOCAL, None),
    ],
)
def test_a_proxy_another_machine_or_another_sites_page_is_not_here(
    headers: dict[str, str], client: str | None
) -> None:
    assert not open_to_this_machine(headers, config(), client)
    assert refused(admin, headers, config(), client=client).code == "no_admin_key"


def test_over_http_the_answer_is_shaped_as_openais_clients_read_it() -> None:
    some = config(ALICE)

    async def who(request: Request) -> JSONResponse:
        return JSONResponse({"key": principal(request.headers, some).key})

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return JSONResponse(error.to_dict(), error.status, headers=error.headers)

    app = Starlette(routes=[Route("/who", who)], exception_handlers={RefusedError: refuse})
    with live(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/who", headers=bearer("sk-alice")).json() == {"key": "alice"}
        answer = client.get("/who", headers=bearer("sk-mallory"))
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_request_counts_for_its_key_or_else_for_its_address() -> None:
    pool = config(ALICE, ROAMER)
    assert client_of(bearer("sk-alice"), pool, "1.2.3.4") == ALICE.sha256
    for headers in ({}, bearer("sk-other"), {"authorization": "sk-alice"}):
        assert client_of(headers, pool, "1.2.3.4") == "1.2.3.4"


def test_an_allowed_site_passes_without_keys_and_is_no_admin() -> None:
    pool = config(cors_origins=("https://app.example.com",))
    headers = {**LOCAL, "origin": "https://app.example.com"}
    assert principal(headers, pool).key == "anonymous"
    assert refused(admin, headers, pool).status == 403
    assert refused(principal, {**LOCAL, "origin": "https://evil.example"}, pool).status == 403

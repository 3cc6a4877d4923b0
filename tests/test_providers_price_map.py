"""A newer map of prices: downloaded by command from a server in this process, checked, used."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from thriftroute.errors import ConfigError, DataError
from thriftroute.providers import price_map as prices
from thriftroute.providers.completion import load_litellm
from thriftroute.serve.config.loader import pool_of
from thriftroute.serve.registry import Registry

Serve = Callable[[object], str]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("THRIFTROUTE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a body (bytes, or something as JSON) with a status; returns the address."""
    answer: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer[-1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Not on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def put(body: object, status: int = 200) -> str:
        answer.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))
        return f"http://127.0.0.1:{server.server_address[1]}/map.json"

    yield put
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def installed() -> dict[str, dict[str, Any]]:
    own = load_litellm().model_cost
    return {k: copy.deepcopy(v) for k, v in own.items() if not k.startswith("thriftroute/")}


@pytest.fixture
def newer(installed: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The installed map with gpt-4o at ten times its price, one model more and one gone."""
    found = copy.deepcopy(installed)
    found["gpt-4o"]["input_cost_per_token"] *= 10
    found["brand-new"] = {
        "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 3e-6,
        "output_cost_per_token": 6e-6, "max_input_tokens": 5000, "supports_vision": True,
        "aliases": ["brand-new-2026"],
    }  # fmt: skip
    del found["gpt-4o-mini"]
    return found


def model(name: str) -> Any:
    return Registry.build(pool_of([name]), called=False)[name]


def cost(name: str) -> float:
    found = model(name)
    both = load_litellm().cost_per_token(
        model=found.cost_key, prompt_tokens=1000, completion_tokens=0
    )
    return float(sum(both))


def test_a_refreshed_map_is_used_from_then_on(
    serve: Serve, newer: dict[str, Any], installed: dict[str, Any]
) -> None:
    before = cost("gpt-4o")
    done = prices.refresh(serve(newer))
    assert (done.changed, done.added, done.removed) == (1, 2, 1)
    assert done.models == len(newer) + 1 - ("sample_spec" in newer)
    assert Path(done.path) == prices.map_path()
    assert prices.map_path().stat().st_mode & 0o777 == 0o600
    assert prices.read()[0] == done
    assert model("gpt-4o").sources["price"] == "refreshed"
    assert cost("gpt-4o") == pytest.approx(10 * before)
    for name in ("brand-new", "openai/brand-new-2026"):
        assert cost(name) == pytest.approx(3e-3)
        assert (model(name).context_window, model(name).capabilities) == (5000, {"vision"})
    # What the new map does not know is still known to the installed one, which stays as it was.
    assert model("gpt-4o-mini").sources["price"] == "litellm"
    assert load_litellm().model_cost["gpt-4o"] == installed["gpt-4o"]


def test_without_the_copy_the_installed_map_is_used(serve: Serve, newer: dict[str, Any]) -> None:
    before = cost("gpt-4o")
    prices.refresh(serve(newer))
    assert prices.reset()
    assert not prices.reset()
    assert prices.read()[0] is None
    assert prices.read()[1] == {}
    assert cost("gpt-4o") == before


def test_a_copy_older_than_litellm_is_not_used(serve: Serve, newer: dict[str, Any]) -> None:
    prices.refresh(serve(newer))
    path = prices.map_path()
    own = metadata.version("litellm")
    for made_for, used in ((own, True), ("99.0", True), ("1.0.9rc1", False), ("", False)):
        whole = json.loads(path.read_text(encoding="utf-8"))
        whole["litellm"] = made_for
        path.write_text(json.dumps(whole), encoding="utf-8")
        assert (prices.read()[0] is not None, bool(prices.read()[1])) == (used, used), made_for


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"", "HTTP 404"),
        (500, b"", "HTTP 500"),
        (200, b"<html>", "not JSON"),
        (200, b"[1]", "expected a JSON object, got list"),
        (200, b"{}", "not the whole map: it has only 0 entries"),
        (200, b'{"a": {"input_cost_per_token": 1}}', "not the whole map: it has only 1 entries"),
    ],
)
def test_answers_that_are_no_map_change_nothing(
    serve: Serve, newer: dict[str, Any], status: int, body: bytes, expected: str
) -> None:
    done = prices.refresh(serve(newer))
    address = serve(body, status)  # type: ignore[call-arg]
    with pytest.raises(DataError, match=expected) as caught:
        prices.refresh(address)
    assert address in str(caught.value)
    assert prices.read()[0] == done
    assert sorted(path.name for path in prices.map_path().parent.iterdir()) == ["prices.json"]


@pytest.mark.parametrize("price", [-1e-6, "free", True, 1e999])
def test_a_price_that_is_none_refuses_the_whole_map(
    serve: Serve, newer: dict[str, Any], price: object
) -> None:
    newer["gpt-4o"]["output_cost_per_token"] = price
    with pytest.raises(DataError, match="field 'output_cost_per_token': gpt-4o: expected a price"):
        prices.refresh(serve(newer))
    assert prices.read()[0] is None


def test_a_map_that_is_too_large(serve: Serve, newer: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="larger than 1,000 bytes"):
        prices.refresh(serve(newer), most_bytes=1000)


def test_the_copy_lies_in_the_one_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path / "own"))
    assert prices.map_path() == tmp_path / "own" / "prices.json"


def test_an_address_that_answers_nothing(serve: Serve) -> None:
    with pytest.raises(DataError, match="ConnectError"):
        prices.refresh("http://127.0.0.1:1/map.json")


@pytest.mark.parametrize("url", ["http://example.com/x", "file:///etc/passwd", "map.json"])
def test_prices_come_over_a_protected_line(url: str) -> None:
    with pytest.raises(ConfigError, match="expected https://"):
        prices.refresh(url)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 9}', '{"format": 1, "entries": 3}', '{"format": 1, "entries": {}}',
     "\x00", "[" * 5000],
)  # fmt: skip
def test_a_copy_that_cannot_be_read_is_passed_over_with_a_warning(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = prices.map_path()
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert prices.read()[1] == {}
    assert "cannot be used" in caplog.text
    assert "prices refresh" in caplog.text

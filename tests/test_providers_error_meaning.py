"""Whose failure it is: no client makes a model cool down, and none has the server fetch a URL."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from thriftroute.providers.completion import OPENAI_API, load_litellm
from thriftroute.serve.registry import Model
from thriftroute.serve.upstream.answer import Answer
from thriftroute.serve.upstream.caller import Caller
from thriftroute.serve.upstream.failures import UpstreamError
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
from thriftroute.tests.helpers.callers import (
    HELLO,
    KEY,
    make_caller,
    make_model,
    make_pool,
    run,
    tried,
)
from thriftroute.tests.helpers.raw_provider import DONE, STREAM, RawProvider, event, whole
from thriftroute.tests.helpers.serving import pool, serving

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    # Of LiteLLM's own types (1.110), at the first call of a provider.
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
]
BEDROCK = {
    "aws_access_key_id": "a",
    "aws_secret_access_key": "b",
    "aws_region_name": "us-east-1",
}
MODELS = {
    "openai": ("openai/weak", "/v1", {}),
    "mistral": ("mistral/weak", "/v1", {}),
    "hosted_vllm": ("hosted_vllm/weak", "/v1", {}),
    "anthropic": ("anthropic/claude-sonnet-4-5", "", {}),
    "gemini": ("gemini/gemini-2.5-flash", "", {}),
    "bedrock": ("bedrock/amazon.nova-pro-v1:0", "", BEDROCK),
    "ollama": ("ollama/llava", "", {}),
}
OWN_WIRE = ["anthropic", "gemini", "bedrock", "ollama"]  # those that have no OpenAI API
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


def model_of(provider: str, url: str, timeout_s: float = 30.0) -> Model:
    name, path, more = MODELS[provider]
    base = url.removesuffix("/v1") + path
    params = {"api_base": base, "api_key": KEY, "timeout": timeout_s, **more}
    return make_model("weak", url, litellm_model=name, params=params)


def one(provider: str, url: str, timeout_s: float = 30.0, **calls: Any) -> Caller:
    """A caller of one model, which cools down after its first failure."""
    return make_caller({"weak": model_of(provider, url, timeout_s)}, failures_to_cool=1, **calls)


def call(caller: Caller, **body: Any) -> Answer:
    request = {"messages": HELLO, **body}
    return run(caller, caller.call(("weak",), request, stream=False))


def refused(caller: Caller, **body: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        call(caller, **body)
    return caught.value


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}]


class Trap:
    """Whoever asks it for anything is remembered; `hangs` keeps them waiting until it is closed."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.asked: list[str] = []
        self.closing = threading.Event()
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                trap.asked.append(self.path)
                if hangs:
                    trap.closing.wait(60)
                with contextlib.suppress(ConnectionError):
                    self.send_error(404)

            do_HEAD = do_GET  # noqa: N815 - as the handler calls it

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/picture"

    def __enter__(self) -> "Trap":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    """On loopback, where LiteLLM by itself would go only without its own check of addresses."""
    monkeypatch.setattr(load_litellm(), "user_url_validation", False)
    with Trap() as running:
        yield running


@pytest.mark.parametrize("provider", MODELS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": user({"type": "foo"})},
        {"messages": user({"type": "tool_use", "id": "a", "name": "f", "input": {}})},
        {"messages": user({"type": "tool_result", "tool_use_id": "a", "content": "x"})},
        {"messages": user({"type": "thinking", "thinking": "x"})},
        {"messages": user({"type": "input_text", "text": "x"})},
        {"messages": ["hello"]},
        {"response_format": [1]},
    ],
)
def test_what_cannot_be_sent_is_the_clients_and_no_models_failure(
    provider: str, wrong: dict[str, Any]
) -> None:
    with RawProvider(whole({"role": "assistant", "content": "Hi"})) as upstream:
        caller = one(provider, upstream.url)
        error = refused(caller, **wrong)
        assert upstream.requests == []
    assert error.status == 400
    assert error.code in {"invalid_request", "unsupported_parameter"}
    assert error.attempts[-1].status in {None, 400}
    assert not caller.cooling()


def test_a_tools_result_without_its_call_is_the_clients_failure() -> None:
    orphan = [*HELLO, {"role": "tool", "tool_call_id": "zz", "content": "12 C"}]
    with RawProvider(whole({"role": "assistant", "content": "Hi"})) as upstream:
        caller = one("gemini", upstream.url)
        error = refused(caller, messages=orphan)
        assert upstream.requests == []
    assert (error.status, error.code) == (400, "invalid_request")
    assert not caller.cooling()


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        ({"type": "foo"}, "known are audio_url"),
        ({"type": "tool_use", "id": "a", "name": "f", "input": {}}, "tool_calls"),
        ({"type": "tool_result", "tool_use_id": "a", "content": "x"}, "'tool'"),
        ({"type": "thinking", "thinking": "x"}, "known are"),
        ({"type": "input_text", "text": "x"}, "'text'"),
        ({"type": ["text"]}, "with a type"),
        ("hello", "with a type"),
    ],
)
def test_a_part_that_there_is_not_is_refused_at_the_door(part: Any, advice: str) -> None:
    calls = {"retries": 0, "failures_to_cool": 1}
    with StubProvider() as provider, serving(pool(provider.url, calls=calls)) as server:
        for name in ("weak", "auto"):
            body = {"model": name, "messages": user(part)}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60.0)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "invalid_request")
            assert error["param"] == "messages[0].content[1]"
            assert advice in error["message"]
            assert "foo" not in error["message"]
        assert provider.requests == []
        assert not server.state.caller.cooling()


def test_what_an_assistant_said_may_have_parts_of_its_own() -> None:
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    body = {"model": "weak", "messages": [*HELLO, said, *HELLO]}
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60.0)
        assert answer.status_code == 200
        assert provider.requests[0].body["messages"] == body["messages"]


def placed(where: str, url: str) -> list[dict[str, Any]]:
    """Messages with `url` in one of the places in which LiteLLM looks for one."""
    image = {"type": "image_url", "image_url": {"url": url}}
    places: dict[str, list[dict[str, Any]]] = {
        "image": user(image),
        "image with its type": user({**image, "image_url": {"url": url, "format": "image/png"}}),
        "image as text": user({"type": "image_url", "image_url": url}),
        "after a space": user({"type": "image_url", "image_url": {"url": f" {url}"}}),
        "file": user({"type": "file", "file": {"file_id": url}}),
        "file's data": user({"type": "file", "file": {"file_data": url}}),
        "document": user({"type": "document", "source": {"type": "url", "url": url}}),
        "tool": [*HELLO, CALLED, {"role": "tool", "tool_call_id": "c1", "content": [image]}],
        "system": [{"role": "system", "content": [image]}, *HELLO],
        "answer": [*HELLO, {"role": "assistant", "content": "x", "images": [image]}, *HELLO],
    }
    return places[where]


PLACES = ["image", "image with its type", "image as text", "after a space", "file"]
PLACES += ["file's data", "document", "tool", "system", "answer"]


@pytest.mark.parametrize("provider", OWN_WIRE)
@pytest.mark.parametrize("where", PLACES)
def test_no_client_has_the_server_fetch_what_it_names(
    provider: str, where: str, trap: Trap
) -> None:
    with RawProvider(whole({"role": "assistant", "content": "Hi"})) as upstream:
        caller = one(provider, upstream.url)
        for url in (trap.url, trap.url.upper(), "gs://bucket/a.png", "file:///etc/passwd"):
            error = refused(caller, messages=placed(where, url))
            assert (error.status, error.code) == (400, "invalid_request")
            assert "messages[" in str(error)
            assert "takes no address" in str(error)
            assert "bucket" not in json.dumps(error.to_dict())
        assert upstream.requests == []
    assert trap.asked == []
    assert not caller.cooling()


@pytest.mark.parametrize("provider", ["openai", "mistral", "hosted_vllm"])
def test_a_file_by_its_address_is_fetched_for_no_provider(provider: str, trap: Trap) -> None:
    with RawProvider(whole({"role": "assistant", "content": "Hi"})) as upstream:
        caller = one(provider, upstream.url)
        for where in ("file", "file's data"):
            assert refused(caller, messages=placed(where, trap.url)).code == "invalid_request"
        assert upstream.requests == []
    assert trap.asked == []


@pytest.mark.parametrize(
    ("provider", "url"),
    [
        ("openai", "http://127.0.0.1:1/a.png"),
        ("mistral", "https://127.0.0.1:1/a"),
        ("hosted_vllm", "http://127.0.0.1:1/a"),
        ("anthropic", "https://127.0.0.1:1/a.png"),
    ],
)
def test_a_provider_that_takes_addresses_gets_them(provider: str, url: str) -> None:
    with RawProvider(b"{}", status=400) as upstream:
        refused(one(provider, upstream.url), messages=placed("image", url))
        assert url in json.dumps(upstream.requests[0])


def test_an_image_in_the_request_itself_goes_to_every_provider() -> None:
    data = "data:image/png;base64,iVBORw0KGgo="
    for provider in MODELS:
        with RawProvider(b"{}", status=400) as upstream:
            refused(one(provider, upstream.url), messages=placed("image", data))
            assert "iVBORw0KGgo=" in json.dumps(upstream.requests[0])


def test_a_text_that_is_an_address_is_a_text(trap: Trap) -> None:
    texts = [{"role": "user", "content": trap.url}, *user({"type": "text", "text": trap.url})]
    result = {"role": "tool", "tool_call_id": "c1", "content": trap.url}
    for provider in OWN_WIRE:
        with RawProvider(b"{}", status=400) as upstream:
            refused(one(provider, upstream.url), messages=[*texts, CALLED, result])
            assert trap.url in json.dumps(upstream.requests[0])
    assert trap.asked == []


@pytest.mark.parametrize("earlier", [[], [*HELLO, CALLED]])
def test_no_image_is_fetched_to_count_its_tokens(trap: Trap, earlier: list[dict[str, Any]]) -> None:
    """LiteLLM counts the tokens of a stream whose provider did not."""
    image = {"type": "image_url", "image_url": {"url": trap.url, "detail": "high"}}
    result = [{"role": "tool", "tool_call_id": "c1", "content": "12 C"}] if earlier else []
    request = {"messages": [*earlier, *result, *user(image)]}
    body = [event({"role": "assistant", "content": "Hi"}), event({}, "stop"), DONE]

    async def read(caller: Caller) -> list[Any]:
        answer = await caller.call(("weak",), request, stream=True)
        assert answer.chunks is not None
        return [chunk async for chunk in answer.chunks]

    with RawProvider((STREAM, body)) as upstream:
        caller = one("mistral", upstream.url)
        run(caller, read(caller))
        assert upstream.requests[0]["messages"][-1] == request["messages"][-1]
    assert trap.asked == []
    assert not caller.cooling()


@pytest.mark.parametrize("hangs", [False, True])
def test_where_the_operator_allows_it_a_bad_address_is_still_the_clients_failure(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(load_litellm(), "user_url_validation", False)
    with (
        RawProvider(whole({"role": "assistant", "content": "Hi"})) as upstream,
        Trap(hangs=hangs) as trap,
    ):
        timeout_s = 3.0 if hangs else 30.0
        caller = one("anthropic", upstream.url, timeout_s, fetch_urls=True)
        error = refused(caller, messages=placed("image", trap.url))
        trap.closing.set()
        assert trap.asked
        assert upstream.requests == []
    assert (error.status, error.code) == (400, "invalid_request")
    assert not caller.cooling()


def test_a_timeout_is_the_models_but_not_over_an_address_of_the_clients() -> None:
    for messages, cools in ((placed("image", "http://127.0.0.1:1/a"), False), (HELLO, True)):
        with StubProvider() as provider:
            provider.always(Fault(hang_s=60))
            caller = one("openai", provider.url, 1.0)
            assert refused(caller, messages=messages).code == "upstream_timeout"
            assert bool(caller.cooling()) is cools


@pytest.mark.parametrize(
    "chosen",
    [
        {"messages": placed("image", "https://127.0.0.1:1/a")},
        {"messages": user({"type": "file", "file": {"file_id": "file-of-nobody"}})},
        {"messages": [*HELLO, {"role": "assistant", "audio": {"id": "audio-gone"}}, *HELLO]},
        {"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:1"}]},
    ],
)
@pytest.mark.parametrize("status", [404, 424, 500])
def test_what_a_provider_cannot_find_for_a_client_cools_no_model(
    chosen: dict[str, Any], status: int
) -> None:
    with RawProvider(b'{"error": {"message": "no such thing"}}', status=status) as upstream:
        caller = one("openai", upstream.url)
        refused(caller, **chosen)
        assert upstream.requests
        assert not caller.cooling()
        refused(caller)  # the same answer without such a choice
        assert bool(caller.cooling()) is (status != 424)


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": True}])
def test_an_answer_that_was_asked_to_be_large_cools_no_model(more: dict[str, Any]) -> None:
    with RawProvider(whole({"role": "assistant", "content": "x" * 5000})) as upstream:
        caller = one("openai", upstream.url, max_answer_bytes=1000)
        assert refused(caller, **more).code == "upstream_failed"
    assert bool(caller.cooling()) is not bool(more)


@pytest.mark.parametrize("falls_silent", [False, True])
def test_a_stream_that_takes_too_long_fails_only_where_it_falls_silent(falls_silent: bool) -> None:
    text = " ".join(["word"] * 2000)
    fault = Fault(message={"role": "assistant", "content": text}, pause_s=0.02)
    if falls_silent:
        fault = Fault(pause_s=60)

    async def read(caller: Caller) -> Any:
        answer = await caller.call(("weak",), {"messages": HELLO}, stream=True)
        assert answer.chunks is not None
        chunks = [chunk async for chunk in answer.chunks]
        return answer.chunks.error, chunks

    with StubProvider() as provider:
        caller = one("openai", provider.url, 4.0)
        provider.always(fault)
        if falls_silent:
            with pytest.raises(UpstreamError):
                run(caller, read(caller))
        else:
            assert run(caller, read(caller))[0] == "Timeout"
    assert bool(caller.cooling()) is falls_silent


@pytest.mark.parametrize("provider", ["openai", "mistral", "anthropic", "gemini", "ollama"])
def test_an_error_is_named_by_what_the_provider_sent(provider: str) -> None:
    names = {
        400: "BadRequestError",
        401: "AuthenticationError",
        403: "PermissionDeniedError",
        404: "NotFoundError",
        408: "Timeout",
        413: "RequestTooLargeError",
        422: "UnprocessableEntityError",
        429: "RateLimitError",
        500: "InternalServerError",
        503: "ServiceUnavailableError",
        529: "APIError",
    }
    for status, name in names.items():
        with RawProvider(b'{"error": {"message": "busy"}}', status=status) as upstream:
            error = refused(one(provider, upstream.url))
        assert tried(error) == [("weak", status, name)]


@pytest.mark.parametrize(
    ("provider", "status", "body", "code"),
    [
        ("openai", 400, {"error": {"code": "context_length_exceeded"}}, "context_length_exceeded"),
        (
            "anthropic",
            400,
            {"type": "error", "error": {"message": "prompt is too long: 9 tokens > 8 maximum"}},
            "context_length_exceeded",
        ),
        (
            "gemini",
            400,
            [{"error": {"message": "9 exceeds the maximum number of tokens allowed (8)."}}],
            "context_length_exceeded",
        ),
        (
            "hosted_vllm",
            400,
            {"message": "This model's maximum context length is 8 tokens.", "code": 400},
            "context_length_exceeded",
        ),
        (
            "openai",
            400,
            {"error": {"code": "content_policy_violation"}},
            "content_policy_violation",
        ),
        (
            "openai",
            400,
            {"error": {"innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            "content_policy_violation",
        ),
        ("mistral", 422, {"detail": "temperature: too high"}, "upstream_rejected"),
    ],
)
def test_a_refusal_is_known_by_its_code_or_words(
    provider: str, status: int, body: Any, code: str
) -> None:
    with RawProvider(json.dumps(body).encode(), status=status) as upstream:
        caller = one(provider, upstream.url)
        error = refused(caller)
    assert (error.status, error.code) == (status, code)
    assert not caller.cooling()


def test_a_rejections_words_are_the_providers() -> None:
    body = b'{"error": {"message": "temperature is too high"}}'
    for provider in ("openai", "mistral", "anthropic", "gemini", "ollama"):
        with RawProvider(body, status=400) as upstream:
            told = refused(one(provider, upstream.url)).to_dict()["error"]["message"]
        assert told == "model 'weak' rejected the request: temperature is too high"


@pytest.mark.parametrize("provider", ["mistral", "anthropic"])
def test_every_provider_says_when_to_come_back(provider: str) -> None:
    with RawProvider(b"{}", status=429, headers={"Retry-After": "7"}) as upstream:
        assert refused(one(provider, upstream.url)).headers == {"Retry-After": "7"}


@pytest.mark.parametrize("provider", MODELS)
def test_further_names_go_only_where_they_stand_beside_the_rest(provider: str) -> None:
    further = {
        "top_k": 3,
        "odd": {"a": 1},
        "contents": [{"role": "user", "parts": [{"text": "other"}]}],
        "prompt": "other",
        "extra_body": {"x": 1},
    }
    with RawProvider(b"{}", status=400) as upstream:
        refused(one(provider, upstream.url), **further)
        sent = upstream.requests[0]
    # What would stand for the messages, or carry further names past us, goes to nobody.
    assert "extra_body" not in sent
    assert "other" not in json.dumps(sent)
    assert "hello there" in json.dumps(sent)
    if provider in OPENAI_API:
        assert {name: sent[name] for name in ("top_k", "odd")} == {"top_k": 3, "odd": {"a": 1}}
    else:
        assert "odd" not in sent


def test_a_models_own_further_names_go_to_any_provider() -> None:
    with RawProvider(b"{}", status=400) as upstream:
        model = model_of("gemini", upstream.url)
        params = {**model.params, "extra_body": {"labels": {"a": "b"}}}
        own = make_model("weak", upstream.url, litellm_model=model.litellm_model, params=params)
        refused(make_caller({"weak": own}), odd=1)
        assert upstream.requests[0]["labels"] == {"a": "b"}
        assert "odd" not in upstream.requests[0]


def test_another_model_that_takes_addresses_answers() -> None:
    with StubProvider() as provider:
        models = {**make_pool(provider.url), "weak": model_of("ollama", provider.url)}
        caller = make_caller(models, failures_to_cool=1)
        request = {"messages": placed("image", "https://127.0.0.1:1/a")}
        answer = run(caller, caller.call(("weak", "strong"), request, stream=False))
    assert tried(answer) == [("weak", None, "RequestShape"), ("strong", 200, None)]
    assert not caller.cooling()

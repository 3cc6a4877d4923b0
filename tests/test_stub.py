"""The local provider: OpenAI's answers over real HTTP, faults on demand, a clean shutdown."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
HELLO = [{"role": "user", "content": "hello there"}]
PATH = "/v1/chat/completions"


@pytest.fixture
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


def ask(provider: StubProvider, path: str, body: object = None) -> tuple[int, str, str]:
    """(status, content type, text); a GET where there is no body."""
    connection = http.client.HTTPConnection(urlsplit(provider.url).netloc, timeout=300)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": "Bearer key-1", "Content-Type": "application/json"}
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def complete(provider: StubProvider, **body: Any) -> dict[str, Any]:
    status, _, text = ask(
        provider, "/v1/chat/completions", {"model": "m", "messages": HELLO, **body}
    )
    assert status == 200
    answer: dict[str, Any] = json.loads(text)
    return answer


def test_the_answer_names_the_model_and_counts_usage(provider: StubProvider) -> None:
    answer = complete(provider, model="weak")
    assert answer["model"] == "weak"
    assert answer["choices"][0]["message"]["content"] == "Answer of weak."
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


def test_it_records_what_arrived(provider: StubProvider) -> None:
    complete(provider, temperature=0.25, odd={"a": [1]})
    (received,) = provider.requests
    assert received.body == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0.25,
        "odd": {"a": [1]},
    }
    assert received.path == "/v1/chat/completions"
    assert received.api_key == "key-1"
    assert "key-1" not in repr(received)


def test_tools_are_called_until_their_result_is_there(provider: StubProvider) -> None:
    first = complete(provider, tools=TOOLS)["choices"][0]
    assert first["finish_reason"] == "tool_calls"
    assert first["message"]["content"] is None
    assert first["message"]["tool_calls"][0]["function"]["name"] == "weather"
    result = {"role": "tool", "tool_call_id": "call_stub", "content": "rain"}
    then = complete(provider, tools=TOOLS, messages=[*HELLO, first["message"], result])
    assert then["choices"][0]["message"]["content"] == "Answer of m."
    never = complete(provider, tools=TOOLS, tool_choice="none")
    assert never["choices"][0]["finish_reason"] == "stop"


def test_response_format_gives_json(provider: StubProvider) -> None:
    answer = complete(provider, response_format={"type": "json_object"})
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"model": "m"}


def events(provider: StubProvider, **body: Any) -> list[Any]:
    request = {"model": "m", "messages": HELLO, "stream": True, **body}
    status, kind, text = ask(provider, "/v1/chat/completions", request)
    assert (status, kind) == (200, "text/event-stream")
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_streams_the_same_answer_in_pieces(provider: StubProvider) -> None:
    chunks = events(provider)
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(pieces) == "Answer of m."
    assert sum(bool(piece) for piece in pieces) == 3
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks)


def test_streams_usage_where_it_is_asked_for(provider: StubProvider) -> None:
    last = events(provider, stream_options={"include_usage": True})[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0


def test_streams_tool_calls(provider: StubProvider) -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in events(provider, tools=TOOLS)]
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["index"] == 0
    assert calls[0]["function"]["name"] == "weather"


def test_lists_its_models(provider: StubProvider) -> None:
    status, _, text = ask(provider, "/v1/models")
    assert status == 200
    assert [row["id"] for row in json.loads(text)["data"]] == ["strong", "weak"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/nothing", None, 404),
        ("/v1/nothing", {}, 404),
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", [], 400),
        ("/v1/chat/completions", {"model": "m"}, 400),
    ],
)
def test_a_bad_request_is_an_error_as_openai_words_it(
    provider: StubProvider, path: str, body: object, status: int
) -> None:
    got, _, text = ask(provider, path, body)
    assert got == status
    assert json.loads(text)["error"]["message"]
    assert provider.requests == []


def test_fails_with_the_status_it_is_told(provider: StubProvider) -> None:
    provider.status = 503
    status, _, text = ask(provider, "/v1/chat/completions", {"model": "m", "messages": HELLO})
    assert status == 503
    assert json.loads(text)["error"]["type"] == "server_error"
    provider.status = 200
    assert complete(provider)["model"] == "m"


def test_close_does_not_wait_for_a_delayed_answer_and_may_be_called_twice() -> None:
    provider = StubProvider(delay_s=3600).start()
    answers: list[dict[str, Any]] = []
    client = threading.Thread(target=lambda: answers.append(complete(provider)))
    client.start()
    while not provider.requests:
        time.sleep(0.001)
    provider.close()
    client.join(timeout=300)
    assert answers[0]["model"] == "m"
    provider.close()
    with pytest.raises(RuntimeError, match="not running"):
        _ = provider.url


def test_can_be_started_again_on_a_chosen_port() -> None:
    with StubProvider() as first:
        port = urlsplit(first.url).port
    assert port is not None
    with StubProvider(port=port) as second:
        assert urlsplit(second.url).port == port
        assert complete(second)["model"] == "m"


def test_faults_are_used_up_in_order_a_models_own_first(provider: StubProvider) -> None:
    provider.fail(Fault(status=500), Fault(status=429, error="slow down"))
    provider.fail(Fault(status=418), model="b")
    provider.always(Fault(status=503), model="b")

    def status(model: str) -> int:
        return ask(provider, PATH, {"model": model, "messages": HELLO})[0]

    assert [status(model) for model in ("b", "a", "b", "b", "a")] == [418, 500, 429, 503, 200]
    provider.always(None, model="b")
    assert status("b") == 200
    provider.always(Fault(status=502))
    assert status("a") == 502


def test_an_error_has_the_message_and_headers_that_it_is_told(provider: StubProvider) -> None:
    provider.fail(Fault(status=429, error="slow down", headers={"Retry-After": "3"}))
    connection = http.client.HTTPConnection(urlsplit(provider.url).netloc, timeout=300)
    try:
        connection.request("POST", PATH, json.dumps({"model": "m", "messages": HELLO}))
        answer = connection.getresponse()
        assert answer.headers["Retry-After"] == "3"
        assert json.loads(answer.read())["error"] == {
            "message": "slow down",
            "type": "rate_limit_error",
            "param": None,
            "code": None,
        }
    finally:
        connection.close()


def test_an_answer_can_be_told_word_for_word(provider: StubProvider) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    provider.fail(
        Fault(
            message=message,
            finish="content_filter",
            usage={"prompt_tokens_details": {"cached_tokens": 2}, "total_tokens": None},
            extra={"system_fingerprint": "fp"},
        )
    )
    answer = complete(provider)
    assert answer["choices"][0]["message"] == message
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert "total_tokens" not in answer["usage"]
    assert answer["system_fingerprint"] == "fp"


def test_n_choices(provider: StubProvider) -> None:
    answer = complete(provider, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    one = complete(provider)["usage"]["completion_tokens"]
    assert answer["usage"]["completion_tokens"] == 2 * one
    chunks = events(provider, n=2)
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert ends == [0, 1]
    assert ask(provider, PATH, {"model": "m", "messages": HELLO, "n": "two"})[0] == 400


def test_log_probabilities_of_each_word_where_they_are_asked_for(provider: StubProvider) -> None:
    assert complete(provider)["choices"][0]["logprobs"] is None
    asked = {"logprobs": True, "top_logprobs": 1}
    told = complete(provider, **asked)["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in told] == ["Answer", " of", " m."]
    assert all(-0.7 < token["logprob"] < 0 for token in told)
    assert told[2]["bytes"] == list(b" m.")
    assert told[2]["top_logprobs"][0]["logprob"] == told[2]["logprob"]
    streamed = [chunk["choices"][0] for chunk in events(provider, **asked)]
    assert [t for c in streamed for t in (c["logprobs"] or {}).get("content", ())] == told
    assert "logprobs" not in events(provider)[1]["choices"][0]
    assert complete(provider, tools=TOOLS, **asked)["choices"][0]["logprobs"] is None


def test_log_probabilities_are_missing_or_degenerate_where_it_is_told(
    provider: StubProvider,
) -> None:
    provider.fail(Fault(logprobs=False), Fault(logprob=-9999.0))
    assert complete(provider, logprobs=True)["choices"][0]["logprobs"] is None
    told = complete(provider, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert {token["logprob"] for token in told} == {-9999.0}


def test_samples_differ_above_a_temperature_of_zero(provider: StubProvider) -> None:
    def texts(**body: Any) -> list[str]:
        return [c["message"]["content"] for c in complete(provider, **body)["choices"]]

    assert texts(temperature=0) == ["Answer of m."]
    first, second = texts(temperature=1, n=2)
    assert len({first, second, *texts(temperature=1, seed=1), "Answer of m."}) == 4
    assert texts(temperature=0.5) == [first]
    chunks = [chunk["choices"][0] for chunk in events(provider, temperature=1, n=2)]
    streamed = [c["delta"].get("content") or "" for c in chunks if c["index"] == 1]
    assert "".join(streamed) == second


def test_a_broken_body_comes_as_it_is_told(provider: StubProvider) -> None:
    provider.fail(Fault(raw="{broken"))
    status, kind, text = ask(provider, PATH, {"model": "m", "messages": HELLO})
    assert (status, kind, text) == (200, "application/json", "{broken")


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(cut=0)])
def test_a_connection_is_reset_before_or_in_an_answer(provider: StubProvider, fault: Fault) -> None:
    provider.fail(fault)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        complete(provider)
    assert provider.disconnects == []  # that was the stub's own doing


def test_a_stream_is_cut_loudly_or_quietly_or_ends_in_an_event(provider: StubProvider) -> None:
    request = {"model": "m", "messages": HELLO, "stream": True}
    provider.fail(Fault(cut=2))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(provider, PATH, request)
    provider.fail(Fault(cut=2, quiet=True), Fault(cut=2, event="oops"), Fault(cut=99))
    quiet = ask(provider, PATH, request)[2]
    assert quiet.count("data: ") == 2
    told = ask(provider, PATH, request)[2]
    assert told.count("data: ") == 3
    assert told.endswith("data: oops\n\n")
    assert ask(provider, PATH, request)[2].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("fault", [Fault(hang_s=3600), Fault(pause_s=3600)])
def test_it_notices_that_a_client_hangs_up(provider: StubProvider, fault: Fault) -> None:
    provider.fail(fault)
    connection = http.client.HTTPConnection(urlsplit(provider.url).netloc, timeout=300)
    body = json.dumps({"model": "m", "messages": HELLO, "stream": True})
    connection.request("POST", PATH, body)
    while not provider.requests:
        time.sleep(0.001)
    assert provider.disconnects == []
    connection.close()
    while not provider.disconnects:
        time.sleep(0.001)
    assert provider.disconnects == ["m"]


def test_a_script_that_does_not_close_it_ends_where_its_code_ends() -> None:
    script = """
import http.client, socket
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault
provider = StubProvider().start()
provider.always(Fault(pause_s=600.0))
host = provider.url.split("/")[2]
idle = socket.create_connection(host.split(":"))
asked = http.client.HTTPConnection(host)
body = '{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
asked.request("POST", "/v1/chat/completions", body)
print(asked.getresponse().status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    assert (done.stdout, done.stderr) == ("200\n", "")

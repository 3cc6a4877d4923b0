"""Bodies of any size: what is read, and what is refused before it holds anybody up."""

import json
from typing import Any

import httpx
import pytest
from thriftroute.serve.api.chat_request import LARGE_BYTES, MOST_VALUES, read_body
from thriftroute.serve.errors import RefusedError
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import pool, serving

FILLER = "x" * LARGE_BYTES  # makes a body a large one


def refused(raw: bytes) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read_body(raw)
    return caught.value


@pytest.mark.parametrize("filler", ["", FILLER])
def test_a_body_is_read_alike_whatever_its_size(filler: str) -> None:
    body: dict[str, Any] = {"a": [1, -2.5, True, None, 'é🙂\n"\\'], "b": {"c": []}, "x": filler}
    assert read_body(json.dumps(body).encode()) == body
    assert read_body(json.dumps(body, ensure_ascii=False).encode()) == body


@pytest.mark.parametrize("filler", ["", FILLER])
@pytest.mark.parametrize(
    "wrong", ["NaN", "Infinity", "-Infinity", "1e999", "[1e999]", "-1e999", "{", "[" * 900, "1,"]
)
def test_what_is_no_json_is_refused_whatever_its_size(wrong: str, filler: str) -> None:
    error = refused(f'{{"x": "{filler}", "y": {wrong}}}'.encode())
    assert (error.status, error.code) == (400, "invalid_json")
    assert refused(f'["{filler}"]'.encode()).code == "invalid_json"


@pytest.mark.parametrize("entry", ["1", "[]", '"a"', '{"a":1}', '"\\""', '"\\\\"', "1.5"])
def test_json_of_very_many_entries_is_refused_before_it_is_read(entry: str) -> None:
    many = ",".join([entry] * (MOST_VALUES + 1))
    error = refused(f'{{"messages": [{many}]}}'.encode())
    assert (error.status, error.code) == (400, "invalid_request")
    assert "more than 100000 entries" in str(error)


@pytest.mark.parametrize("text", [",", "[{,", '",', "\\,", '\\",\\'])
def test_commas_and_brackets_in_text_are_no_entries(text: str) -> None:
    body = {"x": text * (MOST_VALUES + 1)}
    assert read_body(json.dumps(body).encode()) == body


def test_a_large_request_is_answered_and_judged() -> None:
    settings = {
        "sensitivity": {"actions": {"email": "block"}},
        "rules": [{"name": "r", "when": {"keywords": ["needle"]}, "block": "No needles."}],
        "cache": {"backend": "memory"},
    }
    with StubProvider() as provider, serving(pool(provider.url, **settings)) as server:

        def ask(inside: str) -> httpx.Response:
            # Below the MiB from which aiohttp warns whoever debugs it.
            content = f"{'word ' * 100_500}{inside} {'word ' * 100_500}"
            body = {"model": "weak", "messages": [{"role": "user", "content": content}]}
            return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60.0)

        assert ask("fine").status_code == 200
        assert ask("fine").headers["x-thriftroute-cache"] == "hit"
        assert ask("bob@example.com").json()["error"]["code"] == "sensitive_data"
        assert ask("needle").json()["error"]["code"] == "blocked_by_rule"
        assert len(provider.requests) == 1

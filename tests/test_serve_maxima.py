"""What a request may cost is counted by the largest maximum that any server would follow."""

from typing import Any

import httpx
import pytest
from thriftroute.serve import request_parts
from thriftroute.serve.errors import RefusedError
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.serving import Serving, pool, serving


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 512),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 1, "max_tokens": 8000}, 8000),
        ({"max_completion_tokens": 8000, "max_tokens": 1}, 8000),
        ({"max_tokens": 1, "generationConfig": {"maxOutputTokens": 8000}}, 8000),
        ({"max_tokens": 1, "generation_config": {"max_output_tokens": 8000}}, 8000),
        ({"max_tokens": 1, "options": {"num_predict": 8000}}, 8000),
        ({"max_tokens": 1, "n_predict": 8000}, 8000),
        ({"max_tokens": 1, "max_new_tokens": "8000"}, 8000),
        ({"max_tokens": 1, "min_tokens": 8000.0}, 8000),
        ({"max_tokens": 1, "extra": [{"parameters": {"max-new-tokens": 8000}}]}, 8000),
        ({"max_new_tokens": 1}, 512),  # not every server knows it
        ({"max_tokens": 1, "thinking": {"type": "enabled", "budget_tokens": 8000}}, 8000),
        ({"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8000}}, 9000),
        ({"thinking": {"type": "enabled", "budget_tokens": 8000}}, 8512),
        ({"max_tokens": 1, "thinkingConfig": {"thinkingBudget": 8000}}, 8000),
        ({"max_tokens": 1, "reasoning": {"max_tokens": 8000}}, 8000),
        ({"max_tokens": 1, "guided_json": {"properties": {"max_tokens": {"type": "number"}}}}, 1),
        ({"max_tokens": 1, "tools": [{"max_tokens": 8000}]}, 1),  # a schema, and no maximum
    ],
)
def test_the_largest_maximum_counts(body: dict[str, Any], tokens: int) -> None:
    assert request_parts.output_tokens(body, 512) == tokens


@pytest.mark.parametrize(
    "more",
    [{"n": 3}, {"best_of": 3}, {"n": 1, "candidateCount": 3}, {"options": {"num_beams": 3}}],
)
def test_the_largest_number_of_answers_counts(more: dict[str, Any]) -> None:
    assert request_parts.choices(more) == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"max_completion_tokens": 5, "max_tokens": "9"}, "max_tokens"),
        ({"options": {"num_predict": 10**400}}, "num_predict"),
        ({"options": {"num_predict": 10**8}}, "num_predict"),
        ({"max_tokens": 5, "n_predict": -1}, "n_predict"),  # would be endless
        ({"max_tokens": 5, "n_predict": "-inf"}, "n_predict"),
        ({"n": 129}, "n"),
        ({"best_of": 129}, "best_of"),
    ],
)
def test_a_maximum_that_cannot_be_counted_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError, match="expected a whole number from 1 to") as caught:
        request_parts.output_tokens(body, 512)
        request_parts.choices(body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_maximum_of_minus_one_is_none_where_a_local_server_answers() -> None:
    assert request_parts.output_tokens({"max_tokens": -1}, 512, unlimited=True) == 512
    both = {"max_tokens": -1, "max_completion_tokens": 9}
    assert request_parts.output_tokens(both, 512, unlimited=True) == 9
    for other in (0, -2, -1.0, True):
        with pytest.raises(RefusedError):
            request_parts.output_tokens({"max_tokens": other}, 512, unlimited=True)


def ask(server: Serving, **more: Any) -> httpx.Response:
    body = {"model": "weak", "messages": [{"role": "user", "content": "Hi there"}], **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30.0)


EXPENSIVE: list[dict[str, Any]] = [
    {"max_completion_tokens": 1, "max_tokens": 8000},
    {"max_tokens": 1, "n": 100, "max_completion_tokens": 100},
    {"max_tokens": 1, "best_of": 128, "max_new_tokens": 1000},
    {"max_tokens": 1, "options": {"num_predict": 8000}},
    {"max_tokens": 1, "reasoning": {"max_tokens": 8000}},
    {"max_tokens": 1, "response_format": {"type": "text", "x": "y" * 40_000}},
    {"max_tokens": 1, "prediction": {"type": "content", "content": "y" * 40_000}},
]


@pytest.mark.parametrize("more", EXPENSIVE)
def test_no_keyword_passes_a_budget_or_max_cost(more: dict[str, Any]) -> None:
    tiers = {"small": {"budgets": [{"usd": 0.01, "per": "day", "scope": "key", "soft": None}]}}
    with StubProvider() as provider:
        with serving(pool(provider.url, tiers=tiers, default_tier="small")) as server:
            assert ask(server, max_tokens=1000).status_code == 200
            beyond = ask(server, **more)
            dear = ask(server, **more, metadata={"max_cost": 0.005})
        assert (beyond.status_code, beyond.json()["error"]["code"]) == (429, "budget_exceeded")
        assert (dear.status_code, dear.json()["error"]["code"]) == (400, "max_cost")
        assert len(provider.requests) == 1


def test_minus_one_is_left_out_for_a_local_server_and_refused_for_any_other() -> None:
    with StubProvider() as provider, serving(pool(provider.url)) as server:
        for model in ("weak", "auto", " weak "):
            assert ask(server, model=model, max_tokens=-1).status_code == 200
        assert not any("max_tokens" in request.body for request in provider.requests)
        assert ask(server, model=["weak"], max_tokens=-1).status_code == 400
    models = pool("http://127.0.0.1:9")["models"]
    models[0] |= {"model": "openai/gpt-4o", "api_base": None}
    with serving({**pool("http://127.0.0.1:9"), "models": models}) as server:
        for model in ("strong", "auto"):
            answer = ask(server, model=model, max_tokens=-1)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")

"""What a call used and what it cost."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pydantic")

from thriftroute.providers.completion import load_litellm, quiet
from thriftroute.providers.prices import call_cost, register
from thriftroute.serve.registry import Model
from thriftroute.serve.spend.cost import Usage, cost_of, usage_of

USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "total_tokens": 1100,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 30},
}


def model(cost_key: str, prices: tuple[float, float, float] = (1e-6, 2e-6, 5e-7)) -> Model:
    return Model(
        name=cost_key,
        litellm_model=cost_key,
        cost_key=cost_key,
        input_price=prices[0],
        output_price=prices[1],
        cached_input_price=prices[2],
        context_window=None,
        max_output_tokens=None,
        capabilities=frozenset(),
        tags=frozenset(),
        bundle_model=None,
        params={},
    )


def registered(name: str, **prices: float) -> str:
    entry = {"litellm_provider": "openai", "mode": "chat", **prices}
    load_litellm().register_model({name: entry})
    return name


def test_usage_is_read_from_an_answer_and_from_itself() -> None:
    litellm = load_litellm()
    with quiet():
        response = litellm.ModelResponse(usage=litellm.Usage(**USAGE)).model_dump()
    answer = {"object": "chat.completion", "choices": [], "usage": USAGE, "service_tier": "flex"}
    for given in (USAGE, {"usage": USAGE}, answer, litellm.Usage(**USAGE).model_dump(), response):
        usage = usage_of(given)
        assert usage is not None
        tokens = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        assert tokens == (1000, 100, 1100)
        assert (usage.cached_tokens, usage.reasoning_tokens) == (400, 30)
        assert usage.estimated is False
    read = usage_of(answer)
    assert read is not None
    assert read.service_tier == "flex"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        {},
        {"choices": []},
        {"usage": None},
        {"usage": "many"},
        {"usage": {"prompt_tokens": 0, "completion_tokens": 0}},
        {"usage": {"prompt_tokens": "12", "completion_tokens": 3}},
        {"usage": {"prompt_tokens": -1, "completion_tokens": 3}},
        {"usage": {"prompt_tokens": True, "completion_tokens": 3}},
        {"usage": {"prompt_tokens": float("nan"), "completion_tokens": 3}},
        SimpleNamespace(usage=None),
    ],
)
def test_what_is_no_usage_is_none(answer: Any) -> None:
    assert usage_of(answer) is None


def test_odd_details_do_not_make_a_usage_unreadable() -> None:
    usage = usage_of(
        {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 99},
            "completion_tokens_details": {"reasoning_tokens": "x"},
        }
    )
    assert usage == Usage(10, 2, cached_tokens=10)


def test_cached_tokens_cost_their_own_price() -> None:
    key = registered(
        "thriftroute-test/cached",
        input_cost_per_token=1e-6,
        output_cost_per_token=2e-6,
        cache_read_input_token_cost=1e-7,
    )
    expected = 600 * 1e-6 + 400 * 1e-7 + 100 * 2e-6
    usage = usage_of(USAGE)
    assert usage is not None
    assert cost_of(model(key, (9, 9, 9)), usage) == pytest.approx(expected)
    # The same from the fields alone, where a usage was estimated here.
    counted = Usage(1000, 100, cached_tokens=400, reasoning_tokens=30, estimated=True)
    assert cost_of(model(key, (9, 9, 9)), counted) == pytest.approx(expected)


def test_reasoning_tokens_cost_their_own_price_where_they_have_one() -> None:
    key = registered(
        "thriftroute-test/reasoning",
        input_cost_per_token=1e-6,
        output_cost_per_token=2e-6,
        output_cost_per_reasoning_token=5e-6,
    )
    usage = Usage(1000, 100, reasoning_tokens=30)
    expected = 1000 * 1e-6 + 70 * 2e-6 + 30 * 5e-6
    assert cost_of(model(key, (9, 9, 9)), usage) == pytest.approx(expected)


def test_cache_writes_are_priced_from_what_the_provider_said() -> None:
    litellm = load_litellm()
    key = "claude-sonnet-4-5"
    price = litellm.model_cost[key]
    usage = usage_of(
        litellm.Usage(
            prompt_tokens=1000,
            completion_tokens=10,
            total_tokens=1010,
            cache_creation_input_tokens=500,
            cache_read_input_tokens=200,
        ).model_dump()
    )
    assert usage is not None
    expected = (
        300 * price["input_cost_per_token"]
        + 500 * price["cache_creation_input_token_cost"]
        + 200 * price["cache_read_input_token_cost"]
        + 10 * price["output_cost_per_token"]
    )
    assert cost_of(model(key, (9, 9, 9)), usage) == pytest.approx(expected)


def test_a_service_tier_has_its_price() -> None:
    key = registered(
        "thriftroute-test/tiers",
        input_cost_per_token=1e-6,
        output_cost_per_token=2e-6,
        input_cost_per_token_flex=5e-7,
        output_cost_per_token_flex=1e-6,
    )
    whole, flex = Usage(100, 10), Usage(100, 10, service_tier="flex")
    assert cost_of(model(key), flex) == pytest.approx(cost_of(model(key), whole) / 2)
    assert cost_of(model(key), Usage(100, 10, service_tier="default")) == cost_of(model(key), whole)


def test_without_a_price_in_litellm_the_pools_own_applies_never_zero(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unknown = model("thriftroute-test/nobody-knows")
    unpriced = model(registered("thriftroute-test/unpriced"))
    with caplog.at_level(logging.WARNING):
        for each in (unknown, unpriced, unknown):
            usage = Usage(1000, 100, cached_tokens=400)
            assert cost_of(each, usage) == pytest.approx(600 * 1e-6 + 400 * 5e-7 + 100 * 2e-6)
    assert len(caplog.records) == 2, "once a model"
    assert "thriftroute-test/nobody-knows" in caplog.text


def test_a_free_model_is_free() -> None:
    key = registered("thriftroute-test/free", input_cost_per_token=0.0, output_cost_per_token=0.0)
    assert cost_of(model(key, (0, 0, 0)), Usage(1000, 100)) == 0.0


def test_plain_prices_come_to_what_litellm_charges() -> None:
    """A sum of our own is applied where nothing but three prices can count."""
    litellm = load_litellm()
    prices = {"input_cost_per_token": 3e-6, "output_cost_per_token": 15e-6}
    usage = {
        "prompt_tokens": 1200,
        "completion_tokens": 300,
        "total_tokens": 1500,
        "prompt_tokens_details": {"cached_tokens": 200},
        "completion_tokens_details": {"reasoning_tokens": 100},
    }
    for cached in (None, 3e-7):
        more = {} if cached is None else {"cache_read_input_token_cost": cached}
        key = register("plain", {**prices, **more})
        charged = litellm.cost_per_token(
            model=key, custom_llm_provider="openai", usage_object=litellm.Usage(**usage)
        )
        assert call_cost(key, usage, None) == pytest.approx(sum(charged))
    with_audio = {**usage, "prompt_tokens_details": {"audio_tokens": 100}}
    charged = litellm.cost_per_token(
        model=key, custom_llm_provider="openai", usage_object=litellm.Usage(**with_audio)
    )
    assert call_cost(key, with_audio, None) == pytest.approx(sum(charged))

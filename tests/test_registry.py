"""The pool: where prices, windows and capabilities come from, and what LiteLLM charges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from litellm.types.utils import (
    CompletionTokensDetailsWrapper,
    PromptTokensDetailsWrapper,
    Usage,
)
from thriftroute.errors import ConfigError
from thriftroute.providers.completion import load_litellm
from thriftroute.providers.prices import PER, lookup
from thriftroute.serve.config.settings import Config
from thriftroute.serve.registry import Model, Registry, missing_key


@pytest.fixture(autouse=True)
def no_refreshed_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path))


def build(*models: Mapping[str, Any]) -> Registry:
    names = [model["name"] for model in models]
    data = {"models": list(models), "strong": names[0], "weak": names[-1]}
    return Registry.build(Config.model_validate(data))


def one(**settings: Any) -> Model:
    return build({"name": "it", **settings})["it"]


def cost(model: Model, prompt: int, output: int, *, cached: int = 0, reasoning: int = 0) -> float:
    """What LiteLLM's own cost functions say."""
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=PromptTokensDetailsWrapper(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetailsWrapper(reasoning_tokens=reasoning),
    )
    return float(sum(load_litellm().cost_per_token(model=model.cost_key, usage_object=usage)))


def test_a_known_model_needs_nothing_but_its_name() -> None:
    entry = load_litellm().model_cost["gpt-4o"]
    model = build({"name": "gpt-4o"})["gpt-4o"]
    assert model.litellm_model == "gpt-4o"
    assert model.input_price == entry["input_cost_per_token"] > 0
    assert model.output_price == entry["output_cost_per_token"] > model.input_price
    assert model.cached_input_price == entry["cache_read_input_token_cost"] < model.input_price
    assert model.context_window == entry["max_input_tokens"]
    assert model.max_output_tokens == entry["max_output_tokens"]
    assert model.capabilities == {"vision", "tools", "json_schema"}
    assert set(model.sources.values()) == {"litellm"}
    expected = 600 * model.input_price + 400 * model.cached_input_price + 50 * model.output_price
    assert cost(model, 1000, 50, cached=400, reasoning=20) == pytest.approx(expected, rel=1e-9)


def test_a_model_may_be_named_with_its_provider_and_by_another_name() -> None:
    model = one(model="openai/gpt-4o-mini")
    entry = load_litellm().model_cost["gpt-4o-mini"]
    assert (model.name, model.litellm_model) == ("it", "openai/gpt-4o-mini")
    assert model.input_price == entry["input_cost_per_token"]


def test_one_model_at_two_efforts_is_two_models_at_one_price() -> None:
    pool = build({"name": "gpt-5@high"}, {"name": "quick", "model": "openai/gpt-5@low"})
    plain = one(model="gpt-5")
    for name, effort in (("gpt-5@high", "high"), ("quick", "low")):
        model = pool[name]
        assert model.litellm_model.removeprefix("openai/") == "gpt-5"
        assert model.params["reasoning_effort"] == effort
        assert model.price == plain.price
        assert model.context_window == plain.context_window
    own = one(model="gpt-5@low", params={"reasoning_effort": "none"})
    assert own.params["reasoning_effort"] == "none"


def test_a_price_of_the_config_is_what_litellm_charges() -> None:
    model = one(model="openai/own", price={"input": 1.5, "output": 6, "cached_input": 0.5})
    prices = (model.input_price, model.output_price, model.cached_input_price)
    assert prices == pytest.approx((1.5 / PER, 6 / PER, 0.5 / PER))
    assert cost(model, 1000, 100) == pytest.approx(1000 * 1.5e-6 + 100 * 6e-6)
    assert cost(model, 1000, 100, cached=400) == pytest.approx(600e-6 * 1.5 + 400e-6 * 0.5 + 6e-4)
    assert cost(model, 1000, 100, reasoning=40) == pytest.approx(1.5e-3 + 6e-4)


def test_cached_input_costs_what_input_does_where_nobody_says() -> None:
    model = one(model="openai/own", price={"input": 2, "output": 4})
    assert model.cached_input_price == model.input_price
    assert cost(model, 1000, 0, cached=1000) == pytest.approx(2e-3)


def test_a_price_of_the_config_goes_before_that_of_the_map() -> None:
    model = build({"name": "gpt-4o", "price": {"input": 1, "output": 2}})["gpt-4o"]
    assert cost(model, 1000, 1000) == pytest.approx(3e-3)
    assert model.sources == {
        "price": "config",
        "context_window": "litellm",
        "max_output_tokens": "litellm",
        "capabilities": "litellm",
    }
    # The map itself, and a pool without that price, keep theirs.
    assert build({"name": "gpt-4o"})["gpt-4o"].input_price > 1 / PER


def test_two_pools_in_one_process_keep_their_own_prices() -> None:
    first = one(model="openai/own", price={"input": 1, "output": 1})
    second = one(model="openai/own", price={"input": 5, "output": 5})
    assert [cost(m, 1000, 0) for m in (first, second)] == pytest.approx([1e-3, 5e-3])


def test_all_of_it_can_be_said_in_the_config() -> None:
    model = one(
        model="openai/own", api_base="http://127.0.0.1:1/v1", api_key="k", timeout_s=3,
        params={"temperature": 0.1, "timeout": 9}, price={"input": 1, "output": 1},
        context_window=1000, max_output_tokens=100, capabilities=["tools"], tags=["eu"],
        bundle_model="gpt-4",
    )  # fmt: skip
    assert (model.context_window, model.max_output_tokens) == (1000, 100)
    assert (model.capabilities, model.tags, model.bundle_model) == ({"tools"}, {"eu"}, "gpt-4")
    assert model.params == {
        "api_base": "http://127.0.0.1:1/v1", "api_key": "k", "timeout": 3, "temperature": 0.1,
    }  # fmt: skip
    assert set(model.sources.values()) == {"config"}


def test_what_nobody_says_refuses_nothing() -> None:
    model = one(model="openai/own", price={"input": 1, "output": 1})
    assert (model.context_window, model.max_output_tokens) == (None, None)
    assert model.capabilities == {"vision", "tools", "json_schema", "reasoning"}
    assert model.sources == {"price": "config", "capabilities": "assumed"}


def test_no_key_is_printed() -> None:
    assert "hunter2" not in repr(one(model="openai/gpt-4o", api_key="hunter2"))


def test_models_without_a_price_are_errors_all_of_them_told() -> None:
    with pytest.raises(ConfigError) as caught:
        build(
            {"name": "gpt-4o"},
            {"name": "own", "model": "openai/own"},
            {"name": "local", "model": "ollama/own"},
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["models[1] (own)", "models[2] (local)"]
    told = "LiteLLM's map does not know 'openai/own'; give `price: {input: ..., output: ...}`"
    assert told in lines[0]


@pytest.mark.parametrize(
    ("model", "offered"),
    [
        ("qwen3:32b", "openai/qwen3:32b or ollama_chat/qwen3:32b"),
        ("mistralai/Mistral-7B", "openai/mistralai/Mistral-7B"),
        ("deepseek-chat", "deepseek/deepseek-chat"),  # the map knows whose it is
    ],
)
def test_a_model_of_nobody_knows_whom_is_an_error(model: str, offered: str) -> None:
    price = {"input": 1, "output": 1}
    with pytest.raises(ConfigError) as caught:
        one(model=model, price=price, api_base="http://127.0.0.1:9/v1")
    told = f"models[0] (it): LiteLLM cannot tell who serves the model '{model}'"
    assert told in str(caught.value)
    assert offered in str(caught.value)
    assert one(model=model, price=price, params={"custom_llm_provider": "openai"}).input_price > 0


def test_a_price_of_nothing_in_the_map_is_no_price() -> None:
    litellm = load_litellm()
    free = next(
        name
        for name, entry in litellm.model_cost.items()
        if entry.get("mode") == "chat"
        and entry.get("input_cost_per_token") == 0 == entry.get("output_cost_per_token")
    )
    with pytest.raises(ConfigError, match="LiteLLM's map has no price in tokens for"):
        one(model=free)
    model = one(model=free, price={"input": 0, "output": 0})
    assert (model.input_price, cost(model, 1000, 1000)) == (0, 0)


def test_models_that_litellm_cannot_price_by_their_name_are_priced() -> None:
    # 125 entries of the map have names that LiteLLM's cost functions do not take.
    litellm = load_litellm()
    entry = litellm.model_cost["jamba-1.5"]
    with pytest.raises(Exception, match="isn't mapped"):
        litellm.cost_per_token(model="jamba-1.5", prompt_tokens=1, completion_tokens=1)
    model = one(model="jamba-1.5")
    expected = 1000 * (entry["input_cost_per_token"] + entry["output_cost_per_token"])
    assert cost(model, 1000, 1000) == pytest.approx(expected)


def test_models_priced_in_tiers() -> None:
    model = one(model="dashscope/qwen-flash")
    tiers = load_litellm().model_cost["dashscope/qwen-flash"]["tiered_pricing"]
    assert model.input_price == tiers[0]["input_cost_per_token"]
    assert cost(model, 1000, 100) == pytest.approx(model.estimate(1000, 100))
    far = int(tiers[1]["range"][0]) + 1000
    assert cost(model, far, 0) == pytest.approx(far * tiers[1]["input_cost_per_token"])


def test_a_provider_that_asks_for_a_log_in_is_not_asked() -> None:
    # LiteLLM's own look-up of these opens a device log-in; a price from the config needs none.
    model = one(model="github_copilot/gpt-4o", price={"input": 1, "output": 1})
    assert cost(model, 1000, 0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("a", "a"),
        ("p/a", "a"),
        ("p/b", "p/b"),
        ("q/a", None),
        ("bedrock/x", "x"),
        ("bed/x", None),
        ("c", None),
        ("p/", None),
    ],
)
def test_lookup(model: str, key: str | None) -> None:
    entries = {
        "a": {"litellm_provider": "p"},
        "p/b": {"litellm_provider": "p"},
        "x": {"litellm_provider": "bedrock_converse"},
    }
    found = lookup(entries, model)
    assert (None if found is None else found[0]) == key


def test_the_registry_is_a_mapping_in_the_order_of_the_config() -> None:
    registry = build(
        {"name": "c", "model": "openai/c", "price": {"input": 3, "output": 1}},
        {"name": "a", "model": "openai/a", "price": {"input": 1, "output": 9}},
        {"name": "b", "model": "openai/b", "price": {"input": 1, "output": 9}},
    )
    assert list(registry) == ["c", "a", "b"]
    assert (registry.strong, registry.weak, len(registry)) == ("c", "b", 3)
    assert registry.get("nope") is None
    assert "a" in registry
    assert registry["c"].estimate(1000, 500) == pytest.approx(3.5e-3)


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"model": "gpt-4o"}, "OPENAI_API_KEY"),
        ({"model": "anthropic/claude-sonnet-4-5"}, "ANTHROPIC_API_KEY"),
        ({"model": "gpt-4o", "api_key": "k"}, None),
        ({"model": "openai/own", "api_base": "http://127.0.0.1:8000/v1"}, None),
        ({"model": "ollama_chat/llama3"}, None),
        ({"model": "bedrock/anthropic.claude-v2"}, None),  # there are roles beside keys
    ],
)
def test_a_key_that_is_not_there_is_known_before_the_first_call(
    settings: dict[str, Any], variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    model = one(price={"input": 1, "output": 2}, **settings)
    assert missing_key(model) == variable
    if variable is not None:
        monkeypatch.setenv(variable, "k")
        assert missing_key(model) is None

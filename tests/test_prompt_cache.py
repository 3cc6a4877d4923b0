"""What prompt caches hold and cost, by each provider's rules and the map's prices."""

import numpy as np
import pytest
from thriftroute.errors import CalibrationError
from thriftroute.providers.prices import Price, listed_price
from thriftroute.providers.prompt_cache import (
    HOUR,
    MINUTE,
    Cached,
    CachePrice,
    CacheRules,
    Usage,
    cache_price,
    cache_rules,
)

OPUS = Price(5, 25, 0.5, 6.25, 10)
RULES = CacheRules(1000, 300)


def test_prices_of_caches_come_from_the_map() -> None:
    assert listed_price("claude-opus-4-6", option="--price") == OPUS
    # What a provider does not charge for apart costs what input does.
    plain = listed_price("gpt-4o", option="--price")
    assert plain.cache_read is not None and plain.cache_read < plain.input
    assert plain.cache_write == plain.cache_write_1h == plain.input


def test_a_write_price_of_nothing_is_the_price_of_input() -> None:
    price = listed_price("deepseek/deepseek-chat", option="--price")
    assert price.cache_write == price.input > 0


def test_prices_of_caches_may_follow_the_others() -> None:
    assert Price.parse("3,15,0.3,3.75") == Price(3, 15, 0.3, 3.75)
    with pytest.raises(CalibrationError, match=r"0\.3,3\.75"):
        Price.parse("3,15,0.3")


@pytest.mark.parametrize(
    ("model", "least", "seconds"),
    [
        ("claude-opus-4-6", 4096, 5 * MINUTE),
        ("claude-sonnet-4-5", 1024, 5 * MINUTE),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", 4096, 5 * MINUTE),
        ("gpt-5.1", 1024, 5 * MINUTE),
        ("gemini/gemini-2.5-pro", 2048, 5 * MINUTE),
        ("deepseek/deepseek-chat", 64, HOUR),
    ],
)
def test_rules_are_those_of_the_provider(model: str, least: float, seconds: float) -> None:
    rules = cache_rules(model)
    assert (rules.min_tokens, rules.lifetime_s) == (least, seconds)


def test_a_model_that_nobody_knows_has_the_cache_that_its_price_says() -> None:
    assert np.isinf(cache_price("my/model", Price(1, 2)).rules.min_tokens)
    rules = cache_price("my/model", Price(1, 2, 0.1, 1)).rules
    assert rules.min_tokens == 1024 and not rules.documented


def test_a_step_reads_what_is_cached_and_writes_the_rest() -> None:
    price = CachePrice(OPUS, RULES)
    assert price.step(10_000, 9_000, 100) == pytest.approx(
        (9_000 * 0.5 + 1_000 * 6.25 + 100 * 25) / 1e6
    )
    # A prompt that is too short is plain input, whatever is thought to be there.
    assert price.step(500, 400, 0) == pytest.approx(500 * 5 / 1e6)


def test_what_was_recorded_is_priced_as_it_was_counted() -> None:
    usage = Usage(np.array([3.0]), np.array([100.0]), np.array([50.0]), np.array([20.0]), 10.0)
    wanted = (3 * 5 + 100 * 0.5 + 30 * 6.25 + 20 * 10 + 10 * 25) / 1e6
    np.testing.assert_allclose(CachePrice(OPUS, RULES).recorded(usage), [wanted])
    np.testing.assert_allclose(usage.prompt, [153.0])


def test_a_cache_is_kept_from_its_last_use() -> None:
    price = CachePrice(OPUS, RULES)
    held = price.after(10_000, 50.0)
    assert held.readable(12_000, 350.0) == 10_000
    assert held.readable(12_000, 350.1) == 0
    assert held.readable(4_000, 60.0) == 4_000  # a shorter prompt
    assert price.after(500, 0.0).readable(600, 1.0) == 0
    assert Cached().readable(600, 0.0) == 0


def test_an_hour_costs_more_to_write() -> None:
    hour = CachePrice(OPUS, RULES, hour=True)
    assert (hour.write, hour.lifetime_s) == (10, HOUR)
    # A provider with one lifetime keeps it.
    one = CachePrice(Price(1, 2, 0.1, 1), RULES, hour=True)
    assert (one.write, one.lifetime_s) == (1, 300)

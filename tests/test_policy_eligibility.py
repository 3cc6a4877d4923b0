from dataclasses import replace

import pytest
from thriftroute.router.output_tokens import ArmTokens, OutputTokens
from thriftroute.serve.config.settings import TierSettings
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.policy.eligibility import (
    Candidates,
    by_price,
    candidates,
    cost,
    is_weak,
    refusal,
)
from thriftroute.serve.registry import Model
from thriftroute.serve.request import ChatRequest
from thriftroute.tests.helpers.asking import asked, model

BIG = model("big", 10.0, window=100_000, longest=4000, can=["vision", "tools"], tags=["eu"])
MID = model("mid", 3.0, window=32_000, can=["tools"], tags=["secure", "eu"])
SMALL = model("small", 1.0, window=8000, longest=2000)


def found(
    request: ChatRequest, *, tier: TierSettings | None = None, pool: tuple[Model, ...] = ()
) -> Candidates:
    models = {m.name: m for m in pool or (BIG, MID, SMALL)}
    return candidates(models, request, weak="small", strong="big", tier=tier)


def test_all_that_can_take_it_in_the_pools_order() -> None:
    result = found(asked())
    assert result.names == ("big", "mid", "small")
    assert result.describe() == "all 3 models can take it"


@pytest.mark.parametrize(
    ("request_", "names", "reason"),
    [
        (asked(needs=["vision"]), ("big",), "has no vision"),
        (asked(require=["secure"]), ("mid",), "is not secure, which the request requires"),
        (asked(require=["tools", "eu"]), ("big", "mid"), "is not eu, tools"),
        (asked(models=["mid", "small"]), ("mid", "small"), "not among the models"),
        (asked(prompt_tokens=7800), ("big", "mid"), "8300"),
    ],
)
def test_what_a_request_needs(request_: ChatRequest, names: tuple[str, ...], reason: str) -> None:
    result = found(request_)
    assert result.names == names
    assert reason in result.describe()


def test_a_window_holds_prompt_and_answer_to_the_last_token() -> None:
    assert "small" in found(asked(prompt_tokens=7500, output_tokens=500)).names
    assert "small" not in found(asked(prompt_tokens=7501, output_tokens=500)).names


def test_an_unknown_window_refuses_nothing() -> None:
    assert found(asked(prompt_tokens=10**7), pool=(model("small", window=None),)).names == (
        "small",
    )


def test_the_longest_answer_counts_only_where_the_request_sets_a_maximum() -> None:
    assert "small" in found(asked(output_tokens=3000)).names
    limited = asked(output_tokens=3000, body={"max_tokens": 3000})
    assert found(limited).names == ("big", "mid")
    assert found(asked(output_tokens=3000, body={"max_completion_tokens": 3000})).names == (
        "big",
        "mid",
    )


def test_a_tier_allows_models_and_may_be_of_weak_ones_only() -> None:
    assert found(asked(tier="pro"), tier=TierSettings(models=frozenset({"mid"}))).names == ("mid",)
    result = found(asked(tier="free"), tier=TierSettings(weak_only=True))
    assert result.names == ("small",)
    assert "no weak model, and tier 'free' has weak models only" in result.describe()


def test_weak_only_lets_models_through_that_cost_no_more_than_the_weak_one() -> None:
    local = model("local", 0.0)
    result = found(asked(tier="free"), tier=TierSettings(weak_only=True), pool=(BIG, local, SMALL))
    assert result.names == ("local", "small")


@pytest.mark.parametrize("price", [0.0, 0.5, 1.0])
def test_weak_only_keeps_the_strong_model_out_whatever_it_costs(price: float) -> None:
    pool = (model("big", price), SMALL)
    assert found(asked(tier="free"), tier=TierSettings(weak_only=True), pool=pool).names == (
        "small",
    )


def test_where_all_models_cost_nothing_weak_only_leaves_the_weak_one() -> None:
    pool = tuple(model(name, 0.0) for name in ("big", "mid", "small"))
    tier = TierSettings(weak_only=True)
    assert found(asked(tier="free"), tier=tier, pool=pool).names == ("small",)


def test_a_model_that_the_pool_does_not_have_is_an_error() -> None:
    with pytest.raises(
        RefusedError, match="'nano' not in the pool, which has: big, mid, small"
    ) as e:
        found(asked(models=["mid", "nano"]))
    assert (e.value.status, e.value.code, e.value.param) == (400, "model_not_found", "models")


@pytest.mark.parametrize(
    ("request_", "tier", "status", "code"),
    [
        (asked(needs=["json_schema"]), None, 400, "no_eligible_model"),
        (asked(prompt_tokens=200_000), None, 400, "context_length_exceeded"),
        (asked(prompt_tokens=50_000, models=["small"]), None, 400, "context_length_exceeded"),
        (asked(tier="t"), TierSettings(models=frozenset()), 403, "model_not_allowed"),
    ],
)
def test_the_error_where_no_model_is_left(
    request_: ChatRequest, tier: TierSettings | None, status: int, code: str
) -> None:
    error = refusal(found(request_, tier=tier))
    assert (error.status, error.code) == (status, code)
    assert "no model of the pool can take this request: big (" in str(error)


def test_the_error_for_a_model_that_the_request_names() -> None:
    error = refusal(found(asked(needs=["vision"])), only="mid")
    assert str(error) == "the model 'mid' cannot take this request: mid (has no vision)"


def test_an_error_names_eight_models_at_most() -> None:
    pool = (*(model(f"m{i}") for i in range(11)), SMALL)
    message = str(refusal(found(asked(needs=["vision"]), pool=pool)))
    assert "m7 (" in message
    assert "m8" not in message
    assert message.endswith("and 4 more")


def test_cost_counts_every_choice_and_orders_by_price() -> None:
    request = asked(prompt_tokens=100, output_tokens=50, choices=3)
    assert cost(SMALL, request) == pytest.approx(250e-6)
    models = {m.name: m for m in (BIG, SMALL, MID)}
    assert by_price(models, models, request) == ["small", "mid", "big"]


def test_without_a_maximum_each_models_own_answers_are_what_is_expected() -> None:
    known = {"small": ArmTokens(50, 9000.0), "mid": ArmTokens(50, 80.0)}
    request = replace(asked(output_tokens=300, choices=2), lengths=OutputTokens(300, known))
    assert cost(SMALL, request) == pytest.approx(SMALL.estimate(100, 18_000))
    assert cost(BIG, request) == pytest.approx(BIG.estimate(100, 600))
    models = {m.name: m for m in (BIG, SMALL, MID)}
    assert by_price(models, models, request) == ["mid", "big", "small"]
    # Who is weak is a matter of prices alone.
    assert is_weak(SMALL, request, weak=MID, strong="big")
    limited = replace(request, body={"max_tokens": 300})
    assert cost(SMALL, limited) == pytest.approx(SMALL.estimate(100, 600))

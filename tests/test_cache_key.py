import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thriftroute.router.text import as_conversation
from thriftroute.serve.cache.key import cache_key, model_id, semantic_bucket
from thriftroute.serve.policy.plan import RoutingPlan
from thriftroute.serve.registry import Model
from thriftroute.serve.request import ChatRequest, Options, Principal

POOL = ["strong", "weak"]


def plan(*models: str, **fields: Any) -> RoutingPlan:
    return RoutingPlan(models or ("weak", "strong"), "weak", "", (), **fields)


def asked(
    messages: Sequence[Mapping[str, Any]] | None = None,
    *,
    tenant: str = "acme",
    options: Options | None = None,
    **body: Any,
) -> ChatRequest:
    messages = [{"role": "user", "content": "hi"}] if messages is None else messages
    return ChatRequest(
        id="1",
        model=body.get("model", "auto"),
        body={"model": "auto", "messages": messages, **body},
        messages=messages,
        text=as_conversation(messages).last,
        stream=bool(body.get("stream")),
        needs=frozenset(),
        prompt_tokens=1,
        output_tokens=1,
        choices=1,
        principal=Principal(tenant=tenant),
        options=options or Options(),
    )


BASE = cache_key(asked(), POOL, plan())


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 0.2},
        {"top_p": 0.5},
        {"max_tokens": 5},
        {"max_completion_tokens": 5},
        {"n": 2},
        {"seed": 7},
        {"stop": ["\n"]},
        {"logprobs": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "high"},
        {"a_keyword_of_next_year": 1},
        {"messages_": []},
    ],
)
def test_whatever_changes_the_answer_changes_the_key(body: dict[str, Any]) -> None:
    assert cache_key(asked(**body), POOL, plan()) != BASE


@pytest.mark.parametrize(
    "body",
    [
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "u1"},
        {"safety_identifier": "s"},
        {"metadata": {"a": "b"}},
        {"prompt_cache_key": "k"},
        {"model": "router-mf-0.4"},
        {"temperature": None},
    ],
)
def test_what_does_not_change_the_answer_does_not_change_the_key(body: dict[str, Any]) -> None:
    assert cache_key(asked(**body), POOL, plan()) == BASE


def test_tenants_pools_models_and_their_order_are_apart() -> None:
    keys = {
        BASE,
        cache_key(asked(tenant="other"), POOL, plan()),
        cache_key(asked(), POOL, plan("strong", "weak")),
        cache_key(asked(), POOL, plan(looks=True)),
        cache_key(asked(), POOL, plan("weak")),
        cache_key(asked(), POOL, plan("weak,strong")),
        cache_key(asked(), [*POOL, "other"], plan()),
        cache_key(asked([{"role": "system", "content": "hi"}]), POOL, plan()),
        cache_key(asked([{"role": "user", "content": "hi "}]), POOL, plan()),
        cache_key(asked([{"role": "user", "content": "hi"}] * 2), POOL, plan()),
    }
    assert len(keys) == 10


def test_options_act_through_the_models_alone() -> None:
    other = plan(score=0.5, threshold=0.9, router="mf")
    assert cache_key(asked(options=Options(threshold=0.9, task="code")), POOL, other) == BASE


def test_equal_numbers_are_equal_and_a_bool_is_no_number() -> None:
    assert cache_key(asked(temperature=1.0), POOL, plan()) == cache_key(
        asked(temperature=1), POOL, plan()
    )
    assert cache_key(asked(x=True), POOL, plan()) != cache_key(asked(x=1), POOL, plan())
    assert cache_key(asked(x="1"), POOL, plan()) != cache_key(asked(x=1), POOL, plan())


def test_the_order_of_a_schemas_properties_counts_that_of_a_messages_fields_does_not() -> None:
    def schema(*names: str) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"properties": {n: {} for n in names}}}

    first = cache_key(asked(response_format=schema("reasoning", "answer")), POOL, plan())
    assert first != cache_key(asked(response_format=schema("answer", "reasoning")), POOL, plan())
    assert cache_key(asked([{"content": "hi", "role": "user"}]), POOL, plan()) == BASE


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, other=json_values)
def test_one_key_a_meaning(value: Any, other: Any) -> None:
    key = cache_key(asked(extra={"k": value}), POOL, plan())
    again = json.loads(json.dumps({"k": value}))
    assert key == cache_key(asked(extra=again), POOL, plan())
    assert len(key) == 64
    same = json.dumps(value) == json.dumps(other)
    assert (key == cache_key(asked(extra={"k": other}), POOL, plan())) == same


@given(a=st.text(), b=st.text(), c=st.text(), d=st.text())
def test_no_text_can_stand_for_a_border(a: str, b: str, c: str, d: str) -> None:
    def key(tenant: str, content: str) -> str:
        return cache_key(asked([{"role": "user", "content": content}], tenant=tenant), POOL, plan())

    assert (key(a, b) == key(c, d)) == ((a, b) == (c, d))


@given(names=st.permutations(["temperature", "n", "seed", "tools", "user"]))
def test_the_order_of_keywords_does_not_count(names: list[str]) -> None:
    values = {"temperature": 0.5, "n": 2, "seed": 3, "tools": [], "user": "u"}
    shuffled = {name: values[name] for name in names}
    assert cache_key(asked(**shuffled), POOL, plan()) == cache_key(asked(**values), POOL, plan())


def test_a_bucket_holds_what_differs_only_in_the_last_text() -> None:
    def near(text: str, **more: Any) -> str | None:
        before = [{"role": "system", "content": more.pop("system", "be kind")}]
        return semantic_bucket(
            asked([*before, {"role": "user", "content": text}], **more), POOL, plan()
        )

    one, other = near("What is a cat?"), near("what's a cat")
    assert one is not None
    assert one == other
    for apart in (
        near("What is a cat?", system="be rude"),
        near("What is a cat?", temperature=0.2),
        near("What is a cat?", tenant="other"),
    ):
        assert apart not in {None, one}
    assert one != cache_key(asked([{"role": "user", "content": ""}]), POOL, plan())


def test_an_image_stays_in_the_bucket() -> None:
    def near(url: str, text: str) -> str | None:
        parts = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "please"},
        ]
        return semantic_bucket(asked([{"role": "user", "content": parts}]), POOL, plan())

    one = near("data:a", "what is it")
    assert one is not None
    assert one == near("data:a", "what's it")
    assert one != near("data:b", "what is it")


def test_no_bucket_where_the_text_stands_elsewhere() -> None:
    request = asked([{"role": "user", "content": "hi"}])
    assert semantic_bucket(request, POOL, plan()) is not None
    assert semantic_bucket(dataclasses.replace(request, text="ho"), POOL, plan()) is None


def test_what_is_nested_too_deep_for_json_is_found_by_nobody() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert cache_key(asked(x=deep), POOL, plan()) != cache_key(asked(x=deep), POOL, plan())


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "hi"}],
        [{"role": "tool", "tool_call_id": "1", "content": "hi"}],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": None}],
    ],
)
def test_no_bucket_where_nobody_asks_in_text(messages: list[dict[str, Any]]) -> None:
    assert semantic_bucket(asked(messages), POOL, plan()) is None


def model(**changes: Any) -> Model:
    params = {"api_base": "http://a", "api_key": "k", **changes.pop("params", {})}
    fields = {"name": "m", "litellm_model": "openai/m", **changes}
    return Model(
        cost_key="m",
        input_price=0.0,
        output_price=0.0,
        cached_input_price=0.0,
        context_window=None,
        max_output_tokens=None,
        capabilities=frozenset(),
        tags=frozenset(),
        bundle_model=None,
        params=params,
        **fields,
    )


def test_a_name_that_comes_to_mean_another_model_has_another_id() -> None:
    same = model_id(model())
    assert same.startswith("m:")
    assert same == model_id(model(params={"api_key": "another"}))
    assert same != model_id(model(litellm_model="openai/other"))
    assert same != model_id(model(params={"api_base": "http://b"}))

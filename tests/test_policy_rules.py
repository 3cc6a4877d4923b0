from typing import Any

import pytest
from thriftroute.serve.policy.rules import Rules
from thriftroute.serve.request import ChatRequest
from thriftroute.tests.helpers.asking import STRONG, WEAK, asked, config


def rules(*whens: dict[str, Any]) -> Rules:
    """Rules r0, r1, ... with these conditions."""
    made = [{"name": f"r{i}", "when": w, "model": "strong"} for i, w in enumerate(whens)]
    return Rules(config([STRONG, WEAK], rules=made))


def holds(when: dict[str, Any], request: ChatRequest) -> bool:
    return bool(list(rules(when).matching(request)))


@pytest.mark.parametrize(
    ("when", "request_", "expected"),
    [
        ({}, asked(), True),
        ({"task": ["code", "sql"]}, asked(task="sql"), True),
        ({"task": ["code"]}, asked(task="chat"), False),
        ({"task": ["code"]}, asked(), False),
        ({"keywords": ["refund"]}, asked("I want a REFUND!"), True),
        ({"keywords": ["rag"]}, asked("a fragment"), False),
        ({"keywords": ["legal advice"]}, asked("some legal\n  advice please"), True),
        ({"keywords": ["c++", "c#"]}, asked("in C++, please"), True),
        ({"keywords": ["a.b"]}, asked("axb"), False),
        ({"regex": r"ACME-\d+"}, asked("order ACME-12"), True),
        ({"regex": r"ACME-\d+"}, asked("order acme-12"), False),
        ({"min_tokens": 100}, asked(prompt_tokens=100), True),
        ({"min_tokens": 100}, asked(prompt_tokens=99), False),
        ({"max_tokens": 100}, asked(prompt_tokens=100), True),
        ({"max_tokens": 100}, asked(prompt_tokens=101), False),
        ({"signals": ["maths", "code"]}, asked("def f(x): return x"), True),
        ({"signals": ["maths"]}, asked("hello"), False),
        ({"tiers": ["pro"]}, asked(tier="pro"), True),
        ({"tiers": ["pro"]}, asked(), False),
        ({"tenants": ["acme"]}, asked(tenant="acme"), True),
        ({"tenants": ["acme"]}, asked(tenant="globex"), False),
        ({"metadata": {"team": "web", "env": "prod"}}, asked(metadata={"team": "web"}), False),
        ({"metadata": {"team": "web"}}, asked(metadata={"team": "web", "x": "y"}), True),
        ({"task": ["code"], "min_tokens": 1000}, asked(task="code"), False),
    ],
)
def test_a_condition(when: dict[str, Any], request_: ChatRequest, expected: bool) -> None:
    assert holds(when, request_) is expected


def test_languages_are_told_only_where_a_rule_names_one() -> None:
    one = rules({"languages": ["de", "fr"]})
    assert list(one.matching(asked("Wie wird das Wetter morgen in Hamburg?")))
    assert not list(one.matching(asked("What will the weather be like tomorrow in Hamburg?")))


def test_rules_hold_in_their_order() -> None:
    found = rules({"task": ["x"]}, {"min_tokens": 5}, {}).matching(asked(prompt_tokens=10))
    assert [rule.name for rule in found] == ["r1", "r2"]


def test_rules_after_the_first_that_holds_are_not_tried() -> None:
    found = rules({}, {"regex": "(x+x+)+y"}).matching(asked("x" * 50))
    assert next(found).name == "r0"


def test_a_pattern_that_takes_too_long_does_not_hold() -> None:
    assert not holds({"regex": "(x+x+)+y"}, asked("x" * 100_000))


def test_a_pattern_that_does_not_compile_is_named() -> None:
    with pytest.raises(ValueError, match=r"rules\.0\.when\.regex\n.*not a regular expression"):
        rules({"regex": "("})


def test_a_rule_does_one_thing() -> None:
    with pytest.raises(ValueError, match="exactly one of model, threshold, block"):
        config([STRONG, WEAK], rules=[{"name": "r", "model": "weak", "threshold": 0.1}])

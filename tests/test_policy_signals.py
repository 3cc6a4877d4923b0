import sys

import pytest
from thriftroute.errors import ConfigError, MissingExtraError
from thriftroute.research.languages import load_multilingual
from thriftroute.router.languages import Languages
from thriftroute.serve.policy.patterns import SIGNALS, has_signal


@pytest.mark.parametrize(
    ("text", "signals"),
    [
        ("What is the capital of France?", set()),
        ("Tell me a story about a class of children who import apples.", set()),
        ("We have 3 cats; write a poem {about them}.", set()),
        ("Write a Python function that reverses a list.", {"code"}),
        ("```\nx\n```", {"code"}),
        ("def main(): pass", {"code"}),
        ("Why do I get `Traceback (most recent call last)` here?", {"code"}),
        ("SELECT name FROM users", {"code"}),
        ("Write a C++ program to find the nth number.", {"code"}),
        ("Solve for x: 3x + 5 = 20", {"maths"}),
        (r"Evaluate $\int_0^1 x^2 dx$", {"maths"}),
        ("What is 17 * 23?", {"maths"}),
        ("Prove that the derivative is continuous", {"maths"}),
        ("Compare the two phones", {"comparison"}),
        ("Postgres vs. MySQL", {"comparison"}),
        ("What is the difference between a crow and a raven?", {"comparison"}),
        (
            "Compare quicksort with mergesort in Python code: 2 ^ 10 items",
            {"code", "maths", "comparison"},
        ),
    ],
)
def test_signals(text: str, signals: set[str]) -> None:
    assert {signal for signal in SIGNALS if has_signal(signal, text)} == signals


@pytest.mark.parametrize(
    "piece", ["a", "1", "1 ", "$a", "code in ", "how do ", "SELECT ", "(0", "a-"]
)
def test_long_texts_of_any_kind_come_to_an_end(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    for signal in SIGNALS:
        assert has_signal(signal, text + " ```") in {True, False}


def test_of_a_long_text_the_head_and_the_tail_are_looked_at() -> None:
    filler = "nothing here. " * 1000
    assert has_signal("code", "Fix this: ```x```. " + filler)
    assert has_signal("code", filler + "Fix this: ```x```.")
    assert not has_signal("code", filler + "Fix this: ```x```. " + filler)


@pytest.fixture(scope="module")
def languages() -> Languages:
    return Languages()


def test_languages_of_translated_prompts(languages: Languages) -> None:
    prompts = load_multilingual()
    right = sum(languages.of(prompt.prompt) == prompt.language for prompt in prompts)
    assert right >= 0.98 * len(prompts)


@pytest.mark.parametrize("text", ["", "hi", "2+2", "12345"])
def test_no_language_is_named_without_evidence(languages: Languages, text: str) -> None:
    assert languages.of(text) is None


def test_a_rare_language_only_where_it_is_named(languages: Languages) -> None:
    text = "Hoc est exemplum linguae Latinae, quam discipuli in schola legunt."
    assert Languages(["la"]).of(text) == "la"
    assert languages.of(text) != "la"


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown 'qq'; expected ISO 639-1 codes.* de,"):
        Languages(["de", "qq"])


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'thriftroute\[serve\]'"):
        Languages()

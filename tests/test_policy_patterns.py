import logging

import pytest
from thriftroute.errors import ConfigError
from thriftroute.serve.policy.patterns import OwnPattern

SLOW = "(x+x+)+y"  # doubles the work with every letter
TEXT = "x" * 100_000


def test_finds_and_places() -> None:
    pattern = OwnPattern("p", r"ACME-\d{4}")
    text = "orders ACME-1234 and ACME-9999"
    assert pattern.found(text) is True
    assert pattern.found("nothing") is False
    assert [text[a:b] for a, b in pattern.spans(text)] == ["ACME-1234", "ACME-9999"]


def test_empty_matches_have_no_place() -> None:
    assert list(OwnPattern("p", "x*").spans("abc")) == []


def test_a_pattern_that_takes_too_long_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    pattern = OwnPattern("rule 'slow': regex", SLOW)
    with caplog.at_level(logging.WARNING):
        assert pattern.found(TEXT) is None
    assert "rule 'slow': regex: the pattern took more than" in caplog.text
    assert "xxx" not in caplog.text


def test_where_it_takes_too_long_all_of_the_text_counts_as_found() -> None:
    assert list(OwnPattern("p", SLOW).spans(TEXT)) == [(0, len(TEXT))]


def test_what_does_not_compile_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rule 'x': regex: '\(' is no regular expression"):
        OwnPattern("rule 'x': regex", "(")

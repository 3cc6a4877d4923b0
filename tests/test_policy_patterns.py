import logging

import pytest
from thriftroute.serve.policy.patterns import SafePattern

SLOW = "(x+x+)+y"  # doubles the work with every letter
TEXT = "x" * 100_000


def test_finds_and_places() -> None:
    pattern = SafePattern("p", r"ACME-\d{4}")
    text = "orders ACME-1234 and ACME-9999"
    assert pattern.found(text) is True
    assert pattern.found("nothing") is False
    assert [text[a:b] for a, b in pattern.spans(text)] == ["ACME-1234", "ACME-9999"]


def test_empty_matches_have_no_place() -> None:
    assert list(SafePattern("p", "x*").spans("abc")) == []


def test_a_pattern_that_takes_too_long_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    pattern = SafePattern("rule 'slow': regex", SLOW)
    with caplog.at_level(logging.WARNING):
        assert pattern.found(TEXT) is None
    assert "rule 'slow': regex: the pattern took more than" in caplog.text
    assert "xxx" not in caplog.text


def test_where_it_takes_too_long_all_of_the_text_counts_as_found() -> None:
    assert list(SafePattern("p", SLOW).spans(TEXT)) == [(0, len(TEXT))]

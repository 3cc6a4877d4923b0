"""Copies of frozen dataclasses."""

from dataclasses import dataclass, field, replace

import pytest
from thriftroute.serve.changed import changed


@dataclass(frozen=True)
class Base:
    first: int
    second: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Child(Base):
    third: str = "x"


def test_a_copy_is_what_replace_makes() -> None:
    value = Child(1, [2], "y")
    copy = changed(value, third="z")
    assert copy == replace(value, third="z") == Child(1, [2], "z")
    assert copy.second is value.second
    assert changed(value) == value
    assert value == Child(1, [2], "y")


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError, match="Base has no third"):
        changed(Base(1), third="z")

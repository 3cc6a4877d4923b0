from typing import Any

import pytest
from thriftroute.serve.policy.selection import stay, weaker
from thriftroute.tests.helpers.asking import asked, config, in_tool_calls, model

POOL = (model("strong", 10.0), model("dear", 20.0), model("mid", 3.0), model("weak", 1.0))
MODELS = {m.name: m for m in POOL}
NAMES = tuple(MODELS)


@pytest.mark.parametrize(
    ("held", "left"),
    [
        ("strong", ["strong"]),
        ("dear", ["strong", "dear"]),
        ("mid", ["strong", "dear", "mid"]),
        ("weak", ["strong", "dear", "mid", "weak"]),
    ],
)
def test_no_model_that_is_a_step_down(held: str, left: list[str]) -> None:
    made = config(POOL)
    assert [n for n in NAMES if not weaker(n, held, made, MODELS, asked())] == left


def test_the_weak_model_is_a_step_down_even_where_it_is_dearer() -> None:
    pool = (model("strong", 1.0), model("mid", 2.0), model("weak", 5.0))
    models = {m.name: m for m in pool}
    assert weaker("weak", "mid", config(pool), models, asked())
    assert not weaker("mid", "weak", config(pool), models, asked())


@pytest.mark.parametrize(
    ("request_", "held", "sticky_s", "reason"),
    [
        (in_tool_calls(), "strong", 0.0, "tool calls stay on 'strong'"),
        (in_tool_calls(), "mid", 0.0, "tool calls stay on 'mid'"),
        (in_tool_calls(), "weak", 0.0, None),
        (in_tool_calls(session="s"), "weak", 60.0, "the session stays on 'weak'"),
        (asked(session="s"), "weak", 60.0, "the session stays on 'weak'"),
        (asked(session="s"), "strong", 0.0, None),
        (asked(), "strong", 60.0, None),
    ],
)
def test_who_stays(request_: Any, held: str, sticky_s: float, reason: str | None) -> None:
    picked = stay(request_, NAMES, held, config(POOL, sticky_s=sticky_s))
    assert (picked and picked.reason) == reason
    if picked:
        assert (picked.model, picked.kind) == (held, "session")


def test_nobody_stays_on_a_model_that_cannot_take_the_request() -> None:
    assert stay(in_tool_calls(), ["weak"], "strong", config(POOL)) is None

"""Whether a session should stay with its model."""

from dataclasses import replace

import numpy as np
import pytest
from thriftroute.providers.prices import Price
from thriftroute.providers.prompt_cache import CachePrice, CacheRules
from thriftroute.router.switching import (
    HORIZON,
    Pair,
    SessionState,
    Step,
    choose,
    decide,
    expected,
    further_steps,
)

RULES = CacheRules(1024, 300)
PAIR = Pair(CachePrice(Price(5, 25, 0.5, 6.25), RULES), CachePrice(Price(1, 5, 0.1, 1.25), RULES))
# Two models of which neither is cheaper once the other holds the cache.
NEAR = Pair(PAIR.strong, CachePrice(Price(4.8, 24, 0.48, 6), RULES))


def session(steps: int, prompt: float, *, strong: bool = True, pair: Pair = PAIR) -> SessionState:
    """A session of so many steps that one model has answered, the last at second 0."""
    state = SessionState()
    for number in range(steps):
        tokens = prompt - 500 * (steps - number - 1)
        step = Step(tokens, number - steps + 1.0, natural=number == 0)
        state = state.after(step, pair, strong, 200.0)
    return state


def test_the_longer_a_session_the_longer_it_goes_on() -> None:
    found = further_steps(np.array([0, 1, 10, 100, 1000]))
    assert np.all(np.diff(found) > 0)
    assert found[0] > 1 and found[-1] < HORIZON


def test_at_the_start_the_cheaper_model_is_chosen() -> None:
    found = decide(SessionState(), Step(20_000, 0.0), PAIR)
    assert not found.strong and not found.switched
    assert found.expected.weak < found.expected.strong
    assert "cost less" in found.reason


def test_between_natural_points_a_session_stays() -> None:
    state = session(5, 50_000)
    assert decide(state, Step(51_000, 1.0), PAIR).strong
    assert "no natural point" in decide(state, Step(51_000, 1.0), PAIR).reason
    assert not decide(state, Step(51_000, 1.0, natural=True), PAIR).strong


def test_a_switch_that_does_not_pay_is_not_made() -> None:
    state = session(2, 150_000, pair=NEAR)
    step = Step(151_000, 1.0, natural=True)
    found = decide(state, step, NEAR)
    assert found.strong and not found.switched
    assert found.expected.strong < found.expected.weak
    # An hour later the cache is gone, and it does.
    late = decide(state, replace(step, now=3600.0), NEAR)
    assert not late.strong and late.switched


def test_the_router_s_wish_for_strong_is_followed_at_a_natural_point() -> None:
    state = session(5, 50_000, strong=False)
    step = Step(51_000, 1.0, natural=True)
    assert decide(state, step, PAIR, wants_strong=True).switched
    assert not decide(state, replace(step, natural=False), PAIR, wants_strong=True).strong
    assert not decide(state, step, PAIR, wants_strong=False).strong


def test_leaving_strong_for_a_moment_costs_the_way_back() -> None:
    state, step = session(2, 100_000), Step(101_000, 1.0, natural=True)
    free, often = (
        expected(state, step, replace(PAIR, strong_share=share)) for share in (0.0, 0.95)
    )
    assert often.steps < free.steps
    assert free.weak < free.strong
    assert often.weak / often.strong > free.weak / free.strong


def test_a_stuck_loop_is_escalated_once_and_comes_back_where_it_pays() -> None:
    state = session(5, 30_000, strong=False)
    stuck = Step(31_000, 1.0, failed=3)
    found = decide(state, stuck, PAIR, wants_strong=False)
    assert found.switched and "stuck" in found.reason
    state = state.after(stuck, PAIR, found.strong, 200.0)
    again = Step(32_000, 2.0, repeated=3)
    assert not decide(state, again, PAIR, wants_strong=False).strong
    # Without a router nobody asks for quality.
    assert not decide(session(5, 30_000, strong=False), stuck, PAIR).strong


def test_what_was_compacted_away_is_cached_nowhere() -> None:
    state = session(3, 60_000, strong=False)
    state = state.after(Step(61_000, 1.0), PAIR, True, 100.0, kept=5_000.0)
    assert state.weak.tokens == 5_000
    assert state.strong.tokens == 61_000


def test_a_model_that_writes_more_is_the_dearer_one() -> None:
    step = Step(2000.0, 1.0, natural=True)
    terse, wordy = (replace(NEAR, strong_output=200.0, weak_output=n) for n in (200.0, 400.0))
    assert not decide(SessionState(), step, terse).strong
    assert decide(SessionState(), step, wordy).strong
    # As its own answers were, so are the other's, times what is expected of both.
    state = session(40, 60_000, strong=False)
    found = expected(state, Step(60_000.0, 1.0), wordy)
    same = expected(state, Step(60_000.0, 1.0), terse)
    assert found.weak == pytest.approx(same.weak, rel=0.01)
    assert found.strong < same.strong


def test_arrays_decide_as_numbers_do() -> None:
    states = [session(n, 10_000.0 * n, strong=n % 2 == 0) for n in (1, 2, 5, 9)]
    one = [np.array([getattr(s, n) for s in states]) for n in ("steps", "points", "prompt")]
    sums = [np.array([getattr(s, n) for s in states]) for n in ("added", "output")]
    caches = [
        type(states[0].strong)(
            np.array([float(getattr(s, n).tokens) for s in states]),
            np.array([float(getattr(s, n).until) for s in states]),
        )
        for n in ("strong", "weak")
    ]
    both = SessionState(*one, *sums, np.array([s.on_strong for s in states]), *caches)
    prompt = np.array([11_000.0 * n for n in (1, 2, 5, 9)])
    step = Step(prompt, np.ones(4), np.array([True, True, False, True]))
    chosen, found = choose(both, step, PAIR)
    for i, state in enumerate(states):
        mine = decide(state, Step(prompt[i], 1.0, step.natural[i]), PAIR)
        assert mine.strong == chosen[i]
        assert mine.expected.strong == pytest.approx(found.strong[i])
        assert mine.expected.weak == pytest.approx(found.weak[i])

"""Failures in a row, cooldowns and speeds, on a clock that the test turns."""

from thriftroute.serve.upstream.failures import Health


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_model_cools_after_so_many_failures_in_a_row() -> None:
    clock = Clock()
    health = Health(3, 30.0, clock)
    health.failed("a")
    health.failed("a")
    health.succeeded("a", 1.0)
    health.failed("a")
    health.failed("a")
    assert health.cooling() == {}
    health.failed("a")
    assert health.cooling() == {"a": 30.0}
    clock.now += 10
    assert health.cooling() == {"a": 20.0}
    clock.now += 20
    assert health.cooling() == {}


def test_a_model_that_is_still_down_cools_again_at_once() -> None:
    clock = Clock()
    health = Health(3, 30.0, clock)
    for _ in range(3):
        health.failed("a")
    clock.now += 31
    assert health.cooling() == {}
    health.failed("a")
    assert health.cooling() == {"a": 30.0}


def test_an_answer_ends_a_cooldown() -> None:
    health = Health(1, 30.0, Clock())
    health.failed("a")
    health.succeeded("a", 1.0)
    assert health.cooling() == {}


def test_those_that_cool_come_last_and_none_is_left_out() -> None:
    health = Health(1, 30.0, Clock())
    assert health.order(["a", "b", "c"]) == ["a", "b", "c"]
    health.failed("a")
    assert health.order(["a", "b", "c"]) == ["b", "c", "a"]
    health.failed("b")
    assert health.order(["a", "b", "c"]) == ["c", "a", "b"]


def test_without_a_cooldown_nothing_cools() -> None:
    health = Health(1, 0.0, Clock())
    health.failed("a")
    assert health.cooling() == {}


def test_speed_is_a_moving_average() -> None:
    health = Health(1, 30.0, Clock())
    assert health.latency("a") is None
    health.succeeded("a", 1.0)
    assert health.latency("a") == 1.0
    health.succeeded("a", 2.0)
    assert health.latency("a") == 1.2
    health.failed("a")
    assert health.latency("a") == 1.2
    health.failed("a", 6.2)
    assert health.latency("a") == 2.2

"""When an agent's session changes its model, and what its account counts."""

from dataclasses import replace
from typing import Any

import pytest
from thriftroute.providers.prompt_cache import Cached
from thriftroute.serve.policy.course import Course, step_of
from thriftroute.serve.policy.plan import RoutingPlan, switch_of
from thriftroute.serve.request import ChatRequest, Session
from thriftroute.serve.spend.cost import Usage
from thriftroute.tests.helpers.asking import Scores, asked, in_tool_calls, model, pipeline

NOW = 1_000_000.0
FAR = 1e12  # of a cache that does not end within these tests
USER = {"role": "user", "content": "Mend it."}
# With a prompt cache at a tenth of the price, as their configured prices say.
STRONG, WEAK = (
    replace(model(name, price, window=None), cached_input_price=price * 1e-7)
    for name, price in (("strong", 10.0), ("weak", 9.5))
)
HARD = Scores(0.0, {"Prove": 0.9})


def course(name: str, prompt: int = 100_000, **more: Any) -> Course:
    """A long session on that model, which has all of its prompt in its cache."""
    cached = {name: Cached(prompt, FAR)}
    numbers: dict[str, Any] = {"steps": 40, "points": 2, "prompt": prompt, "size": 4 * prompt}
    return Course(name, **{**numbers, "added": 100.0, "output": 8000.0, "caches": cached, **more})


def turn(text: str = "Go on.", prompt: int = 100_000) -> ChatRequest:
    """The user says something in a session that its tool names."""
    made = asked(text, prompt_tokens=prompt)
    return replace(made, session=Session("s", told=True), size=4 * prompt)


def loop(*results: str, arguments: str = "{}", prompt: int = 100_000) -> ChatRequest:
    """A tool loop that ends with these results, one a round."""
    messages: list[Any] = [USER]
    for number, text in enumerate(results):
        function = {"name": "run", "arguments": arguments.replace("N", str(number))}
        call = {"id": f"c{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": text})
    made = asked("Mend it.", messages=messages, prompt_tokens=prompt)
    return replace(made, size=4 * prompt)


def planned(request: ChatRequest, held: Course | None, **more: Any) -> RoutingPlan:
    return pipeline((STRONG, WEAK), HARD, **more).plan(request, held=held)


def test_a_warm_cache_is_not_thrown_away_for_a_little() -> None:
    plan = planned(turn(), course("strong"))
    assert (plan.models[0], plan.choice, switch_of(plan.steps)) == ("strong", "session", "stay")
    assert "staying is expected to cost less" in plan.reason
    assert plan.score == 0.0  # the router was asked


def test_a_short_session_and_a_cold_one_may_leave() -> None:
    planner = pipeline((STRONG, replace(WEAK, input_price=4e-6, cached_input_price=4e-7)), HARD)
    for held in (course("strong", 500), course("strong", caches={})):
        plan = planner.plan(turn(prompt=int(held.prompt)), held=held)
        assert (plan.models[0], switch_of(plan.steps)) == ("weak", "switch")


def test_what_the_router_wants_strong_is_strong_at_the_next_natural_point() -> None:
    held = course("weak")
    assert planned(loop("done"), held).models[0] == "weak"
    plan = planned(turn("Prove it."), held)
    assert (plan.models[0], switch_of(plan.steps)) == ("strong", "switch")


def test_between_natural_points_nothing_is_scored() -> None:
    scores = Scores(0.9)
    planner = pipeline((STRONG, WEAK), scores)
    plan = planner.plan(loop("done"), held=course("weak"))
    assert (plan.models[0], plan.choice, switch_of(plan.steps)) == ("weak", "session", "stay")
    assert scores.seen == []
    note = {"role": "user", "content": [{"type": "text", "text": "<system-reminder>x"}]}
    request = loop("done")
    request = replace(request, messages=[*request.messages, note])
    assert planner.plan(request, held=course("weak")).choice == "session"
    # After a compaction it is.
    planner.plan(loop("done", prompt=20_000), held=course("weak"))
    assert len(scores.seen) == 1


@pytest.mark.parametrize("arguments", ["{}", '{"n": N}'])
def test_a_stuck_loop_goes_to_the_strong_model_once(arguments: str) -> None:
    failing = loop(*["Error: no such file"] * 3, arguments=arguments)
    plan = planned(failing, course("weak"))
    assert (plan.models[0], switch_of(plan.steps)) == ("strong", "switch")
    assert "stuck" in plan.reason
    assert planned(failing, course("weak", escalated=True)).models[0] == "weak"
    # It comes back at a price alone.
    assert planned(turn(), course("strong", escalated=True)).models[0] == "strong"
    fine = loop("Error: x", "Error: x", "exited with code 0", "Error: x")
    assert planned(fine, course("weak")).models[0] == "weak"


def test_failures_in_a_row_and_the_same_call_again() -> None:
    same = loop(
        "fine", '{"output": "", "metadata": {"exit_code": 2}}', "Exit code: 1", "Exit code: 1"
    )
    step = step_of(same, None, NOW)
    assert (step.failed, step.repeated, bool(step.stuck)) == (3, 2, True)
    spoken = replace(same, messages=[*same.messages, {"role": "user", "content": "Stop."}])
    assert step_of(spoken, None, NOW).failed == 0


def test_a_model_that_cannot_read_it_is_left_and_none_such_is_taken() -> None:
    blind = replace(WEAK, capabilities=frozenset({"tools"}))
    seeing = replace(STRONG, capabilities=frozenset({"tools", "vision"}))
    planner = pipeline((seeing, blind), HARD)
    request = asked("Look.", needs=["vision"], prompt_tokens=1000)
    request = replace(request, session=Session("s", told=True))
    plan = planner.plan(request, held=course("weak", 1000))
    assert (plan.models, switch_of(plan.steps)) == (("strong",), "switch")
    assert planner.plan(request, held=course("strong", 1000)).models == ("strong",)


def test_it_can_be_turned_off() -> None:
    free, never = {"switch": "free"}, {"switch": "never"}
    assert planned(turn(), course("strong"), router=free).models[0] == "weak"
    plan = planned(turn("Prove it."), course("weak"), router=never)
    assert (plan.models[0], plan.choice) == ("weak", "session")
    failing = loop(*["Error: no such file"] * 3)
    assert planned(failing, course("weak"), router=never).models[0] == "weak"


def test_plain_chat_and_named_models_are_left_alone() -> None:
    assert planned(asked("Go on.", session="s"), course("strong")).models[0] == "weak"
    plan = planned(replace(turn(), model="weak"), course("strong"))
    assert (plan.models, plan.choice, switch_of(plan.steps)) == (("weak",), "direct", "switch")


def test_what_the_provider_counted_becomes_the_course() -> None:
    switching = pipeline((STRONG, WEAK), HARD).switching
    raw = {"prompt_tokens": 3000, "completion_tokens": 50}
    usage = Usage(3000, 50, cached_tokens=1000, raw=raw)
    one = switching.after(None, turn(prompt=4000), "weak", usage, NOW)
    assert (one.model, one.steps, one.prompt, one.size) == ("weak", 1, 3000.0, 16_000)
    assert one.caches["weak"].tokens == 3000
    # A prompt to come has as many tokens a byte.
    assert step_of(loop("x", prompt=8000), one, NOW).prompt == 6000
    two = switching.after(one, loop("x", prompt=8000), "strong", Usage(6000, 50), NOW + 10)
    assert (two.steps, two.moved, two.added) == (2, True, 3000.0)
    assert set(two.caches) == {"weak", "strong"}
    assert Course.read(two.written()) == two
    late = switching.after(two, turn(prompt=9000), "strong", Usage(7000, 50), NOW + 4000)
    assert set(late.caches) == {"strong"}


def test_always_strong_reads_what_it_would_have_kept() -> None:
    switching = pipeline((STRONG, WEAK), HARD).switching
    usage = Usage(100_000, 50)  # a switch has found nothing in its cache
    held = course("strong", always=Cached(90_000, FAR))
    assert switching.always_strong(held, turn(), "strong", usage, NOW) is usage
    assert switching.always_strong(None, turn(), "weak", usage, NOW) is usage
    would = switching.always_strong(held, turn(), "weak", usage, NOW)
    assert (would.prompt_tokens, would.cached_tokens, would.completion_tokens) == (
        100_000,
        90_000,
        50,
    )


def test_where_only_marks_are_cached_a_request_without_them_keeps_nothing() -> None:
    settings = {"sources": {"price": "litellm"}, "litellm_model": "anthropic/claude-sonnet-4-5"}
    claude = replace(model("claude", 3.0, window=None), **settings)
    switching = pipeline((claude, WEAK), HARD).switching
    unmarked = switching.after(None, turn(), "claude", Usage(5000, 50), NOW)
    assert unmarked.caches["claude"].tokens == 0
    mark = {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    request = replace(turn(), messages=[{"role": "user", "content": [mark]}])
    counted = {"cache_creation_input_tokens": 3000}
    usage = Usage(5000, 50, cached_tokens=1500, raw=counted)
    cached = switching.after(None, request, "claude", usage, NOW).caches["claude"]
    assert (cached.tokens, cached.until) == (4500, NOW + 3600)


def test_a_tool_loop_is_an_agents_and_a_chat_is_not() -> None:
    assert in_tool_calls().is_agents
    assert turn().is_agents
    assert not asked("hi", session="s").is_agents
    assert not asked("hi").is_agents

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
from thriftroute.errors import ConfigError
from thriftroute.router.routers import BundleRouter
from thriftroute.router.threshold import ThresholdTable
from thriftroute.serve.config.loader import check
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.policy.course import Course
from thriftroute.serve.policy.pipeline import Pipeline
from thriftroute.tests.conftest import BundleMaker
from thriftroute.tests.helpers.asking import (
    STRONG,
    WEAK,
    Failing,
    Scores,
    asked,
    config,
    in_tool_calls,
    model,
    pipeline,
)

DEAR, MID, TINY = model("dear", 20.0), model("mid", 3.0), model("tiny", 0.5)
FIVE = (STRONG, DEAR, MID, TINY, WEAK)
HALF = Scores(0.5)
ON_STRONG, ON_WEAK, ON_MID = Course("strong"), Course("weak"), Course("mid")


def refused(planner: Pipeline, request: Any, **more: Any) -> RefusedError:
    with pytest.raises(RefusedError) as e:
        planner.plan(request, **more)
    return e.value


@pytest.mark.parametrize(("name", "chosen"), [("auto", "strong"), ("router-mf-0.51", "weak")])
def test_the_pair_by_default_or_by_name(name: str, chosen: str) -> None:
    plan = pipeline(by=HALF).plan(asked(model=name))
    assert (plan.models[0], plan.choice, plan.score) == (chosen, chosen, 0.5)
    assert plan.router == "mf"


def test_every_step_is_told_in_order() -> None:
    planner = pipeline(
        FIVE,
        HALF,
        rules=[{"name": "never", "when": {"task": ["x"]}, "model": "mid"}],
        sensitivity={"actions": {"email": "mask"}},
    )
    plan = planner.plan(asked("write to bob@example.com", max_cost=1.0))
    assert [step.name for step in plan.steps] == ["eligibility", "rules", "sensitivity", "choice"]
    assert [step.outcome for step in plan.steps] == [
        "all 5 models can take it",
        "none holds",
        "email: masked in records",
        "strong: score 0.5 >= threshold 0.5",
    ]
    assert plan.mask
    assert planner.sensitivity.mask("write to bob@example.com") == "write to [email]"
    assert planner.sensitivity.masked([{"content": "to bob@example.com"}]) == [
        {"content": "to [email]"}
    ]
    assert "bob" not in json.dumps(plan.to_dict())


def test_only_what_looks_at_no_text_is_planned_at_once() -> None:
    rules = [{"name": "never", "when": {"task": ["x"]}, "model": "mid"}]
    look = {"actions": {"email": "mask"}}
    assert pipeline(FIVE, HALF).is_quick(asked(model="mid"))
    assert not pipeline(FIVE, HALF, rules=rules).is_quick(asked(model="mid"))
    assert not pipeline(FIVE, HALF, sensitivity=look).is_quick(asked(model="mid"))
    for name in ("auto", "router-mf-0.5", "unknown"):
        assert not pipeline(FIVE, HALF).is_quick(asked(model=name))


def test_stand_ins_are_weak_then_strong_then_the_others_by_price() -> None:
    plan = pipeline(FIVE, HALF).plan(asked(threshold=0.9))
    assert plan.models == ("weak", "strong", "tiny", "mid", "dear")
    plan = pipeline(FIVE, HALF).plan(asked(threshold=0.1, models=["strong", "weak", "dear", "mid"]))
    assert plan.models == ("strong", "weak", "mid", "dear")


def test_without_fallbacks_there_are_no_stand_ins() -> None:
    assert pipeline(FIVE, HALF, calls={"fallbacks": False}).plan(asked()).models == ("strong",)


def test_only_models_that_can_take_it_stand_in() -> None:
    small = model("weak", 1.0, window=50)
    assert pipeline((STRONG, small), HALF).plan(asked(threshold=1.0)).models == ("strong",)


@pytest.mark.parametrize(
    ("options", "source"),
    [
        (
            {"model": "router-mf-0.4", "threshold": 0.6, "strong_share": 0.8},
            "0.4, of the model's name",
        ),
        ({"threshold": 0.6, "strong_share": 0.8, "quality": "low"}, "0.6, of the request"),
        ({"strong_share": 0.8, "quality": "low"}, "0.2, strong share 0.8 by table 'own'"),
        ({"quality": "low", "priority": "quality"}, "0.8, quality low: strong share 0.2 by table"),
        ({"tier": "pro"}, "0.7, of tier 'pro'"),
        ({"tier": "free"}, "threshold 0.5"),
        ({"task": "law", "model": "router-mf-0.4", "threshold": 0.6}, "0.05, of rule 'law'"),
    ],
)
def test_which_threshold_holds(
    make_bundle: BundleMaker, options: dict[str, Any], source: str
) -> None:
    rows = ((0.0, 1.0), (0.2, 0.8), (0.5, 0.45), (0.8, 0.2), (1.0, 0.0))
    table = asdict(ThresholdTable("own", 100, rows))
    planner = pipeline(
        by=BundleRouter(make_bundle(thresholds={"own": table})),
        tiers={"pro": {"threshold": 0.7}, "free": {}},
        rules=[{"name": "law", "when": {"task": ["law"]}, "threshold": 0.05}],
    )
    reason = planner.plan(asked(**options)).reason
    assert source in reason
    assert reason.startswith("score ")


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        ({"threshold": 0.3}, 0.3),
        ({"threshold": None, "strong_share": 0.8}, 0.2),
        ({"threshold": None}, 0.4),  # a strong share of 0.3
        ({"threshold": None, "strategy": "pool"}, None),
    ],
)
def test_the_default_threshold_can_be_read(
    make_bundle: BundleMaker, settings: dict[str, Any], threshold: float | None
) -> None:
    table = asdict(ThresholdTable("own", 100, ((0.0, 1.0), (0.3, 0.4), (0.8, 0.2), (1.0, 0.0))))
    router = BundleRouter(make_bundle(thresholds={"own": table}))
    planner = pipeline(by=router, router=settings)
    assert planner.threshold == threshold
    assert planner.strong_share == {0.2: 0.8, 0.4: 0.3}.get(threshold or 0.0)
    if threshold is not None:
        planner.hold(0.1, "held")
        assert (planner.threshold, planner.strong_share) == (0.1, None)


def test_a_plan_tells_the_percentile(make_bundle: BundleMaker) -> None:
    rows = ((0.0, 1.0), (0.8, 0.2), (1.0, 0.0))
    tables = {name: asdict(ThresholdTable(name, 100, rows)) for name in ("ordinary", "own")}
    planner = pipeline(by=BundleRouter(make_bundle(thresholds=tables)))
    plan = planner.plan(asked())
    assert plan.score is not None and 0.2 < plan.score < 1
    # Linear from score 0.2, above 20% of the prompts, to 1, above all.
    assert plan.percentile == pytest.approx(0.2 + plan.score - 0.2)
    said = f"harder than {plan.percentile:.0%} of ordinary prompts"
    assert plan.to_dict()["percentile"] == plan.percentile
    assert ["percentile", said] in plan.to_dict()["steps"]
    for other in (planner.plan(asked(model="strong")), pipeline(by=HALF).plan(asked())):
        assert other.percentile is None
        assert "percentile" not in [step.name for step in other.steps]


def test_no_threshold_at_all_is_refused() -> None:
    planner = pipeline(by=HALF, router={"threshold": None})
    error = refused(planner, asked())
    assert (error.status, error.code) == (400, "no_threshold")
    assert "router-mf-0.5" in str(error)
    assert planner.plan(asked(threshold=0.6)).models[0] == "weak"


@pytest.mark.parametrize(
    ("name", "status", "code", "said"),
    [
        ("gpt-9", 404, "model_not_found", "there is no model 'gpt-9'; ask for 'auto'"),
        ("router-bert-0.5", 404, "model_not_found", "unknown router 'bert'; available: mf"),
        ("router-mf-high", 400, "invalid_threshold", "'high' is no number"),
        ("router-mf-1.5", 400, "invalid_threshold", "out of range"),
        ("router-mf-nan", 400, "invalid_threshold", "out of range"),
        ("router-x", 404, "model_not_found", "names no router and threshold"),
    ],
)
def test_names_that_mean_nothing(name: str, status: int, code: str, said: str) -> None:
    error = refused(pipeline(), asked(model=name))
    assert (error.status, error.code, error.param) == (status, code, "model")
    assert said in str(error)


def test_a_name_without_its_provider_is_understood_where_one_model_can_be_meant() -> None:
    names = ("openai/a", "azure/both", "openai/both", "openai/auto", "openai/own", "own")
    planner = pipeline([model(name) for name in names], strong="openai/a", weak="own")
    assert planner.plan(asked(model="a")).models == ("openai/a",)
    assert planner.plan(asked(model="own")).models == ("own",)
    assert planner.plan(asked(model="auto")).choice != "direct"
    assert set(planner.plan(asked(models=["a"])).models) == {"openai/a"}
    assert refused(planner, asked(model="both")).code == "model_not_found"
    assert refused(planner, asked(models=["both"])).code == "model_not_found"


def test_a_routers_name_without_a_threshold_takes_the_default() -> None:
    assert pipeline(by=HALF).plan(asked(model="router-mf")).threshold == 0.5


def test_a_model_of_the_pool_is_called_itself() -> None:
    router = Scores()
    plan = pipeline(FIVE, router).plan(asked(model="mid", threshold=0.1, priority="cost"))
    assert (plan.models, plan.choice, plan.score) == (("mid",), "direct", None)
    assert router.seen == []


def test_a_model_that_cannot_take_it_is_refused_when_named() -> None:
    error = refused(pipeline(FIVE), asked(model="mid", needs=["vision"]))
    assert (error.status, error.code) == (400, "no_eligible_model")
    tiers = {"free": {"weak_only": True}}
    error = refused(pipeline(FIVE, tiers=tiers), asked(model="mid", tier="free"))
    assert (error.status, error.code) == (403, "model_not_allowed")


def test_nothing_eligible_is_refused() -> None:
    assert refused(pipeline(), asked(prompt_tokens=10**6)).code == "context_length_exceeded"


RULES = [
    {"name": "bombs", "when": {"keywords": ["bomb"]}, "block": "Not here."},
    {"name": "pictures", "when": {"keywords": ["draw"]}, "model": "mid"},
    {"name": "drawing", "when": {"keywords": ["draw"]}, "model": "dear"},
]


def test_a_rules_model() -> None:
    plan = pipeline(FIVE, HALF, rules=RULES).plan(asked("draw a cat", threshold=0.9))
    assert (plan.models[0], plan.choice, plan.reason) == ("mid", "rule", "rule 'pictures'")
    assert plan.models[1:] == ("weak", "strong", "tiny", "dear")


def test_a_rule_whose_model_cannot_take_it_gives_to_the_next_one() -> None:
    plan = pipeline(FIVE, HALF, rules=RULES).plan(asked("draw a cat", models=["dear", "weak"]))
    assert plan.models == ("dear", "weak")
    assert plan.steps[1].outcome == (
        "rule 'pictures' holds, but 'mid' not among the models that the request allows; "
        "rule 'drawing' holds"
    )


@pytest.mark.parametrize(
    "request_", [asked("a bomb"), asked("a bomb", model="mid"), in_tool_calls("a bomb")]
)
def test_a_rule_blocks_every_request(request_: Any) -> None:
    error = refused(pipeline(FIVE, rules=RULES), request_, held=ON_STRONG)
    assert (error.status, error.code, str(error)) == (403, "blocked_by_rule", "Not here.")


SECURE = {"actions": {"email": "secure"}}
SAFE = model("safe", 4.0, tags=["secure"])


def test_sensitive_data_goes_to_a_secure_model_whatever_the_score() -> None:
    plan = pipeline((STRONG, SAFE, WEAK), HALF, sensitivity=SECURE).plan(asked("bob@example.com"))
    assert (plan.models, plan.choice, plan.mask) == (("safe",), "pool", True)


def test_a_secure_model_of_the_pair_needs_no_score() -> None:
    strong = model("strong", 10.0, tags=["secure"])
    plan = pipeline((strong, SAFE, WEAK), sensitivity=SECURE).plan(asked("bob@example.com"))
    assert plan.models == ("strong", "safe")
    assert plan.choice == "strong"


def test_sensitive_data_goes_to_no_model_that_may_not_see_it() -> None:
    planner = pipeline(
        (STRONG, SAFE, WEAK),
        sensitivity=SECURE,
        rules=[*RULES[:1], {"name": "mails", "when": {"keywords": ["mail"]}, "model": "strong"}],
    )
    plan = planner.plan(asked("mail bob@example.com"))
    assert plan.models == ("safe",)
    assert ("rules", "'strong' may not take it after all") in [
        (step.name, step.outcome) for step in plan.steps
    ]
    error = refused(planner, asked("bob@example.com", model="strong"))
    assert (error.status, error.code) == (400, "no_secure_model")
    assert planner.plan(asked("bob@example.com", model="safe")).models == ("safe",)


def test_a_held_model_that_may_not_see_the_data_is_left() -> None:
    planner = pipeline((STRONG, SAFE, WEAK), sensitivity=SECURE)
    plan = planner.plan(in_tool_calls("bob@example.com"), held=ON_STRONG)
    assert plan.models == ("safe",)
    assert ("session", "'strong' and better ones cannot go on with it") in [
        (step.name, step.outcome) for step in plan.steps
    ]


def test_blocked_data_reaches_no_model() -> None:
    planner = pipeline(sensitivity={"actions": {"card": "block"}})
    for name in ("auto", "strong"):
        error = refused(planner, asked("4111 1111 1111 1111", model=name))
        assert (error.status, error.code) == (400, "sensitive_data")


def test_tool_calls_stay_and_nothing_weaker_stands_in() -> None:
    planner = pipeline(FIVE, Scores(0.0), rules=[{"name": "all", "model": "tiny"}])
    plan = planner.plan(in_tool_calls(), held=ON_STRONG)
    assert (plan.models, plan.choice) == (("strong",), "session")
    plan = planner.plan(in_tool_calls(), held=ON_MID)
    assert plan.models == ("mid", "strong", "dear")


def test_tool_calls_of_the_weak_model_may_go_up_where_switches_are_free() -> None:
    planner = pipeline(FIVE, Scores(0.9), router={"switch": "free"})
    plan = planner.plan(in_tool_calls(), held=ON_WEAK)
    assert (plan.models[0], plan.choice) == ("strong", "strong")


def test_tool_calls_whose_model_cannot_go_on_go_to_no_weaker_one() -> None:
    strong = model("strong", 10.0, window=50)
    plan = pipeline((strong, DEAR, MID, WEAK), Scores(0.0)).plan(in_tool_calls(), held=ON_STRONG)
    assert plan.models[0] == "weak"
    better = model("dear", 20.0)
    held = model("mid", 3.0, window=50)
    plan = pipeline((STRONG, better, held, WEAK), Scores(0.0)).plan(in_tool_calls(), held=ON_MID)
    assert plan.models == ("strong", "dear")


def test_a_session_stays_but_for_rules_and_named_models() -> None:
    planner = pipeline(FIVE, Scores(0.0), sticky_s=60.0, rules=RULES)
    plan = planner.plan(asked(session="s"), held=ON_STRONG)
    assert (plan.models[0], plan.choice) == ("strong", "session")
    assert planner.plan(asked("draw", session="s"), held=ON_STRONG).models[0] == "mid"
    assert planner.plan(asked(model="tiny", session="s"), held=ON_STRONG).models == ("tiny",)
    assert planner.plan(asked(), held=ON_STRONG).models[0] == "weak"


def test_a_held_model_that_the_pool_has_no_more_is_forgotten() -> None:
    plan = pipeline(sticky_s=60.0).plan(in_tool_calls(session="s"), held=Course("gone"))
    assert plan.choice == "weak"


def test_priorities_go_before_the_strategy() -> None:
    planner = pipeline(FIVE, HALF, fastest={"mid": 0.1}.get)
    assert planner.plan(asked(priority="cost")).models[0] == "weak"
    assert planner.plan(asked(priority="quality")).models[0] == "strong"
    assert planner.plan(asked(priority="speed")).models[0] == "mid"


def test_a_pool_and_bands_answer_unless_a_threshold_is_asked_for(tiny_bundle: Any) -> None:
    bands = [{"name": "low", "model": "tiny", "below": 0.5}, {"name": "high", "model": "mid"}]
    banded_by = {"strategy": "bands", "bands": bands}
    banded = pipeline(FIVE, Scores(0.4), router=banded_by)
    assert banded.plan(asked()).choice == "band"
    assert banded.plan(asked(model="router-mf-0.3")).choice == "strong"
    pooled = pipeline(FIVE, BundleRouter(tiny_bundle), router={"strategy": "pool"})
    assert pooled.plan(asked("hello is easy")).choice == "pool"
    assert pooled.plan(asked("hello is easy", threshold=0.9)).choice == "weak"
    tiered = pipeline(FIVE, Scores(0.4), router=banded_by, tiers={"pro": {"threshold": 0.3}})
    assert tiered.plan(asked(tier="pro")).choice == "strong"
    assert pooled.plan(asked("hello is easy", priority="quality")).choice == "strong"


def test_a_scoring_failure_fails_no_request() -> None:
    plan = pipeline(by=Failing()).plan(asked("my secret"))
    assert plan.models == ("strong", "weak")
    assert plan.score is None
    assert "secret" not in json.dumps(plan.to_dict())


def test_max_cost_rejects_with_the_cheapest_estimate() -> None:
    planner = pipeline(FIVE, HALF)  # 600 tokens at most: strong $0.006, tiny $0.0003
    assert planner.plan(asked(max_cost=0.006)).models == ("strong", "weak", "tiny", "mid")
    error = refused(planner, asked(max_cost=0.005))
    assert (error.status, error.code, error.param) == (400, "max_cost", "max_cost")
    assert "'strong' may cost $0.006" in str(error)
    assert "'tiny', may cost $0.0003" in str(error)


def test_max_cost_or_the_cheapest_that_fits() -> None:
    planner = pipeline(FIVE, HALF, max_cost_action="cheapest")
    plan = planner.plan(asked(max_cost=0.001))
    assert (plan.models, plan.choice) == (("tiny", "weak"), "pool")
    assert plan.reason == "'strong' costs more than $0.001: the cheapest"
    assert plan.steps[-1].name == "max_cost"
    assert plan.score == 0.5
    assert refused(planner, asked(max_cost=0.0001)).code == "max_cost"


def test_max_cost_replaces_neither_a_named_model_nor_one_in_tool_calls() -> None:
    planner = pipeline(FIVE, HALF, max_cost_action="cheapest")
    error = refused(planner, asked(model="strong", max_cost=0.001))
    assert error.code == "max_cost"
    assert "cheapest" not in str(error)
    assert refused(planner, in_tool_calls(max_cost=0.001), held=ON_STRONG).code == "max_cost"


def test_max_cost_counts_every_choice() -> None:
    assert refused(pipeline(by=HALF), asked(max_cost=0.006, choices=2)).code == "max_cost"


def test_narrowed_leaves_models_no_dearer_than_the_weak_one() -> None:
    planner = pipeline(FIVE, HALF)
    plan = planner.plan(asked())
    narrow = planner.narrowed(plan, asked())
    assert (narrow.models, narrow.choice) == (("weak", "tiny"), "weak")
    assert narrow.reason == "budget: only models no dearer than 'weak', and not 'strong'"
    assert narrow.score == 0.5
    assert narrow.steps[:-1] == plan.steps
    assert narrow.steps[-1].name == "budget"


def test_narrowed_keeps_a_choice_that_is_cheap_enough() -> None:
    planner = pipeline(FIVE, Scores(0.0))
    narrow = planner.narrowed(planner.plan(asked()), asked())
    assert (narrow.models, narrow.choice) == (("weak", "tiny"), "weak")
    assert narrow.reason.startswith("score 0 <")


def test_narrowed_finds_the_weak_model_without_fallbacks_too() -> None:
    planner = pipeline(FIVE, HALF, calls={"fallbacks": False})
    assert planner.narrowed(planner.plan(asked()), asked()).models == ("weak",)


def test_narrowed_keeps_to_max_cost_and_to_sensitivity() -> None:
    planner = pipeline(FIVE, HALF, max_cost_action="cheapest")
    cheap = asked(max_cost=0.0004)
    assert planner.narrowed(planner.plan(cheap), cheap).models == ("tiny",)
    safe = model("safe", 0.9, tags=["secure"])
    planner = pipeline((STRONG, safe, WEAK), HALF, sensitivity=SECURE)
    mail = asked("bob@example.com")
    assert planner.narrowed(planner.plan(mail), mail).models == ("safe",)


def test_narrowed_to_nothing_is_refused() -> None:
    planner = pipeline(FIVE, HALF)
    for request in (asked(model="strong"), asked(models=["strong", "mid"])):
        plan = planner.plan(request)
        with pytest.raises(RefusedError, match="only models no dearer than 'weak', and not") as e:
            planner.narrowed(plan, request)
        assert (e.value.status, e.value.code) == (429, "weak_models_only")
        assert e.value.headers == {"x-should-retry": "false"}


def test_narrowed_leaves_the_strong_model_out_where_prices_are_alike() -> None:
    local = (model("strong", 0.0), model("weak", 0.0))
    planner = pipeline(local, HALF)
    assert planner.plan(asked()).models == ("strong", "weak")
    assert planner.narrowed(planner.plan(asked()), asked()).models == ("weak",)


def test_narrowed_leaves_tool_calls_on_their_model() -> None:
    planner = pipeline(FIVE)
    plan = planner.plan(in_tool_calls(), held=ON_STRONG)
    assert planner.narrowed(plan, in_tool_calls()).models == ("strong",)


def test_many_threads_plan_alike(tiny_bundle: Any) -> None:
    planner = pipeline(FIVE, BundleRouter(tiny_bundle), sensitivity=SECURE | {"tag": "none"})
    texts = ["prove the hard theorem", "hello is easy"] * 20
    with ThreadPoolExecutor(8) as threads:
        plans = list(threads.map(lambda text: planner.plan(asked(text)), texts))
    assert {plan.models[0] for plan in plans[::2]} == {"strong"}
    assert {plan.models[0] for plan in plans[1::2]} == {"weak"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"strong": "gone"}, "strong: no model is named 'gone'; there are strong, weak"),
        (
            {"rules": [{"name": "r", "model": "gone"}]},
            r"rules\[0\].model: no model is named 'gone'",
        ),
        (
            {"router": {"strategy": "bands", "bands": [{"name": "b", "model": "gone"}]}},
            r"bands\[0\].model: no model is named 'gone'",
        ),
        ({"router": {"strategy": "bands"}}, "bands needs router.bands"),
    ],
)
def test_a_config_that_does_not_fit_the_pool(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(config((STRONG, WEAK), **more))


def test_optional_libraries_are_loaded_only_where_the_config_needs_them() -> None:
    code = (
        "import sys, thriftroute.serve.policy.pipeline\n"
        "print(sorted({'py3langid', 'presidio_analyzer', 'litellm'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

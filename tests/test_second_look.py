"""The second look: signals, policies, training, evaluation, and the Controller that looks."""

import asyncio
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import thriftroute
from thriftroute.cli import app
from thriftroute.data.answers import read_answers
from thriftroute.errors import BundleError, BundleFormatError, ConfigError, DataError, TrainingError
from thriftroute.eval.look_command import LookOptions, run_look
from thriftroute.eval.second_look import (
    NOTHING,
    Prices,
    area,
    outcomes,
    policies,
    prices_of,
    search,
)
from thriftroute.router.bundle import Bundle
from thriftroute.router.controller import Controller
from thriftroute.router.decision import decision_of
from thriftroute.router.extractors import (
    EXTRACTORS,
    PATTERN,
    SIMILAR,
    check_pattern,
    final_answer,
    tool_calls,
)
from thriftroute.router.json_schema import check_schema
from thriftroute.router.looking import judge
from thriftroute.router.routers import BundleRouter, load_router
from thriftroute.router.scorer import Scorer
from thriftroute.router.second_look import (
    Answer,
    LookPolicy,
    SecondLook,
    failed_checks,
    signal_columns,
)
from thriftroute.router.threshold import sigmoid
from thriftroute.training.second_look import LookSettings, train_second_look
from thriftroute.training.settings import TrainSettings
from thriftroute.training.train import train
from typer.testing import CliRunner, Result

from .helpers.looking import SECOND, STRONG, WEAK, completion, fit, with_policy, write_rows
from .helpers.raw_provider import RawProvider

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]

CITY = {"city": {"type": "string"}}
WEATHER = {"name": "weather", "parameters": {"properties": CITY, "required": ["city"]}}
A_NUMBER = {"properties": {"a": {"type": "number"}}}
JSON_OF_A = {"type": "json_schema", "json_schema": {"name": "a", "schema": A_NUMBER}}
THE_ANSWER = r"answer is (\d+)"


@pytest.mark.parametrize(
    ("extractor", "text", "value"),
    [
        ("number", "so 3 and 1,200.50 in all", "1200.5"),
        ("number", "none", None),
        ("letter", "B looks right, but the answer is (C).", "C"),
        ("letter", "nothing", None),
        ("json", 'well: {"reasoning": "long", "answer": 4}', "4"),
        ("json", "{broken", None),
        ("call", "[weather(city='Rome')]", '[["weather", {"city": "Rome"}]]'),
        ("call", '[{"weather": "{\\"city\\": \\"Rome\\"}"}]', '[["weather", {"city": "Rome"}]]'),
        ("call", "I would call weather", None),
        ("text", " Yes\n it is", "yesitis"),
    ],
)
def test_what_is_compared_of_two_answers(extractor: str, text: str, value: str | None) -> None:
    assert EXTRACTORS[extractor](text) == value


def test_names_of_tools_are_compared_as_providers_write_them() -> None:
    assert tool_calls(r"[sports.team\_of(name='x')]") == tool_calls(
        '{"sports_team_of": {"name": "x"}}'
    )


def test_text_is_no_call_and_makes_no_warning() -> None:
    for text in ("1and 2", "3if", "0x5for", "'\\d'", "the answer is 12in"):
        assert tool_calls(text) == []  # warnings are errors here


def test_a_long_or_deep_text_is_no_call() -> None:
    assert tool_calls("f(a=" + "(" * 5_000 + ")" * 5_000 + ")") == []
    assert tool_calls("[" * 100_000) == []
    assert tool_calls("[" * 9_000) == []
    tool_calls("f(a=" + "1+" * 9_000 + "1)")  # raises nothing


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (Answer("Paris"), 0),
        (Answer("  "), 1),
        (Answer("I'm sorry, but I can't help with that."), 1),
        (Answer("weather(city='Rome')", functions=(WEATHER,)), 0),
        (Answer("It rains.", functions=(WEATHER,)), 1),
        (Answer("climate(city='Rome')", functions=(WEATHER,)), 1),
        (Answer("weather(town='Rome')", functions=(WEATHER,)), 2),
        (Answer("weather(city=5)", functions=(WEATHER,)), 1),
        (Answer('{"a": 1}', response_format=JSON_OF_A), 0),
        (Answer('{"a": "one"}', response_format=JSON_OF_A), 1),
        (Answer("a is 1", response_format=JSON_OF_A), 1),
        (Answer("[1]", response_format={"type": "json_object"}), 1),
        (Answer("weather(city='Rome')", functions=(WEATHER,), response_format=JSON_OF_A), 0),
        (Answer("Plain", response_format={"type": "text"}), 0),
        (Answer("So:\n```python\nx = '\\d'\n```\nand\n```json\n[1]\n```"), 0),
        (Answer("So:\n```python\ndef f(:\n```\nand\n```json\n{1}\n```"), 2),
        (Answer("```python\n" + "(" * 20_000 + "\n```"), 0),
    ],
)
def test_cheap_checks(answer: Answer, failed: int) -> None:
    assert failed_checks(answer) == failed


@pytest.mark.parametrize(
    ("text", "schema", "pattern", "failed"),
    [
        ("42", {"type": "number"}, None, 0),
        ("The answer is 42.", {"type": "number"}, None, 1),
        ("The answer is 42. I think.", {"type": "number"}, THE_ANSWER, 0),
        ("It is 42.", {"type": "number"}, THE_ANSWER, 1),
        ("short", {"type": "string", "maxLength": 5}, None, 0),
        ("longer", {"type": "string", "maxLength": 5}, None, 1),
    ],
)
def test_what_every_answer_is_expected_to_be(
    text: str, schema: dict[str, Any], pattern: str | None, failed: int
) -> None:
    assert failed_checks(Answer(text), schema, pattern) == failed


def test_a_confidence_is_a_probability_or_its_logarithm() -> None:
    given = [0.5, float(np.log(0.5)), 0.9, None, 0.0, -9999.0, float("nan"), 1.5]
    found = signal_columns(np.full(8, 0.5), [Answer("x", c) for c in given], None)
    assert found["confidence"][:3] == pytest.approx([0, 0, np.log(9)])
    assert np.isnan(found["confidence"][3:]).all()
    assert found["unknown"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_two_answers_agree_differ_or_there_is_one() -> None:
    answers = [Answer("it is 4", second="4.0"), Answer("4", second="5"), Answer("4")]
    found = signal_columns(np.full(3, 0.5), [*answers, Answer("?", second="?")], "number")
    assert found["agreement"][[0, 1, 3]].tolist() == [0, 1, 1]
    assert np.isnan(found["agreement"][2])


def test_a_pattern_finds_what_is_compared() -> None:
    answers = [
        Answer("By adding. The answer is 42.", second="The answer is 7, no: the answer is 42!"),
        Answer("The answer is 42.", second="The answer is 41."),
        Answer("It is 42.", second="It is 42."),
    ]
    found = signal_columns(np.full(3, 0.5), answers, f"{PATTERN}{THE_ANSWER}")
    assert found["agreement"].tolist() == [0, 1, 1]


def test_the_confidence_is_that_of_the_final_answer() -> None:
    said = [("So", -3.0), (" the answer", -2.0), (" is 4", -0.2), ("2", -0.4), (".", -5.0)]
    sure = [*said[:2], (" is ", -1.0), ("42", 0.0), (".", None)]
    zeros = [(token, 0.0) for token, _ in said]
    given = [said, sure, zeros, said[:2], []]
    answers = [Answer("x", 0.5 if not tokens else None, tokens=tokens) for tokens in given]
    found = signal_columns(np.full(5, 0.5), answers, f"{PATTERN}{THE_ANSWER}")["confidence"]
    assert found[0] == pytest.approx(np.log(np.exp(-0.3) / (1 - np.exp(-0.3))))
    assert found[1] == pytest.approx(np.log(1e6), rel=1e-3)
    assert np.isnan(found[2:4]).all()  # nobody knows; no final answer
    assert found[4] == pytest.approx(0)  # only the number of the data is known
    whole = signal_columns(np.full(1, 0.5), answers[:1], None)["confidence"]
    assert whole == pytest.approx(np.log(np.exp(-2.12) / (1 - np.exp(-2.12))))


def test_a_pattern_holds_nothing_up() -> None:
    slow = r"(?:a|b|ab)*?((?:a|b|ab)*)c"
    check_pattern(slow)
    assert final_answer(slow, "ab" * 5_000) is None
    assert final_answer(THE_ANSWER, "answer is 1 " + "x" * 50_000) is None


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("x", "0 groups"), ("(x)(y)", "2 groups"), ("(x", "missing"), ("x" * 501, "at most 500")],
)
def test_a_wrong_pattern_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_pattern(pattern)


def test_search_finds_what_trying_all_thresholds_finds() -> None:
    rng = np.random.default_rng(0)
    scores, looks = rng.random((2, 30))
    by_score, by_look = scores - 0.4, looks - 0.3
    prices = Prices(5, second=1)

    def worth(policy: LookPolicy, value: float) -> float:
        strong = scores >= policy.high
        looked = (scores >= policy.low) & ~strong
        escalated = looked & (looks >= policy.threshold)
        cost = np.where(strong, prices.ratio - 1, looked) + escalated * prices.ratio
        gain = np.where(strong, by_score, escalated * by_look)
        return float(gain.sum() - value / prices.ratio * cost.sum())

    found = search(scores, looks, by_score, by_look, prices)
    ends = np.quantile(scores, np.linspace(0, 1, 21)).tolist()
    ends[0], ends[-1] = 0.0, NOTHING
    pairs = list(itertools.combinations_with_replacement(ends, 2))
    for value in (0.002, 0.1, 0.4):
        every = [
            worth(LookPolicy(low, high, limit), value)
            for low, high in pairs
            for limit in (NOTHING, *looks.tolist())
        ]
        near = [worth(policy, value) for policy in found]
        # A policy of the nearest searched value is as good, but for the step between two values.
        assert max(near) == pytest.approx(max(every), abs=0.12)
    assert max(worth(p, 0.002) for p in found) == pytest.approx(
        max(worth(LookPolicy(a, b, t), 0.002) for a, b in pairs for t in (NOTHING, *looks.tolist()))
    )


def test_a_random_mix_has_half_and_all_calls_are_counted() -> None:
    gain = np.full(100, 0.5)
    scores = np.linspace(0.01, 0.99, 100)
    mixes = [LookPolicy(t, t, NOTHING) for t in np.linspace(0, 1, 21).tolist()]
    cost, earned = outcomes(mixes, scores, scores, gain, Prices(20))
    assert area(cost.mean(0), earned.mean(0), 0.5) == pytest.approx(0.5, abs=0.01)
    # A look of all that escalates all: both looked-at calls and the strong one are paid.
    cost, earned = outcomes([LookPolicy(0, NOTHING, 0)], scores, scores, gain, Prices(5, second=1))
    assert cost[0, 0] == pytest.approx((1 + 5) / (5 - 1))
    assert earned.mean() == pytest.approx(0.5)


def run(*args: str) -> Result:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 200, tells=True)


@pytest.fixture(scope="module")
def looking(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a look by confidence."""
    out = tmp_path_factory.mktemp("look") / "bundle"
    fit(data, out)
    return out


def test_commands_train_and_measure(data: str, tmp_path: Path) -> None:
    out, scores = tmp_path / "looks", tmp_path / "scores.parquet"
    pair = ["--strong", STRONG, "--weak", WEAK, "--second", SECOND, "--data"]
    run("train", "second-look", *pair, data, "--router", "fast", "--out", str(out))
    other = write_rows(tmp_path / "other.jsonl", 150, tells=True, start=500)
    told = run(
        "evaluate", "--second-look", str(out), *pair, other, "--price-ratio", "20", "--json",
        "--scores", str(scores), "--bootstraps", "100",
    )  # fmt: skip
    report = json.loads(told.stdout)
    rows = {row["policy"]: row for row in report["results"]}
    assert list(rows) == ["prompt", "second-look", "always-look"]
    assert report["used"] is True and report["n"] == 150
    assert rows["second-look"]["apgr_cost"] > rows["prompt"]["apgr_cost"] + 0.15
    assert rows["second-look"]["difference_ci"][0] > 0
    assert report["warning"] == ""
    assert rows["second-look"]["cost_at_90"] < rows["prompt"]["cost_at_90"]
    table = pq.read_table(scores).to_pydict()
    assert table["prompt_id"] == [f"p{i}" for i in range(500, 650)]
    assert all(0 < p < 1 for p in table["score"] + table["look_probability"])


def test_scores_of_the_weak_model_alone_will_do(data: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(json.dumps(r) + "\n" for r in rows if r["model"] == WEAK))
    result = fit(str(alone), tmp_path / "looks")
    told = result.summary["second_look"]
    assert told["assume_strong"] is True and told["n"] == 200 and told["strong_mean"] == 1
    assert told["tells"] is True and told["auc"] > 0.8
    # A name that does not occur among others is a mistake, and no such data.
    settings = TrainSettings("mf", [data], ("openai/strang",), (WEAK,), tmp_path / "x", base="fast")
    with pytest.raises(DataError, match="openai/strang"):
        train_second_look(settings, LookSettings())


def test_where_answers_tell_nothing_the_prompt_alone_decides(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "noise.jsonl", 200, tells=False)
    result = fit(data, tmp_path / "noise")
    assert result.summary["second_look"]["tells"] is False
    look = SecondLook.of(result.bundle)
    assert look is not None
    chosen, used = policies(look, prices_of(look, 20))
    assert not used
    assert all(policy.low == policy.high for policy in chosen)
    other = write_rows(tmp_path / "other.jsonl", 100, tells=False, start=500)
    options = LookOptions(str(tmp_path / "noise"), other, (STRONG,), (WEAK,))
    prompt, looked, _ = run_look(options, bootstraps=100).results
    assert looked.apgr_cost == prompt.apgr_cost
    assert (looked.difference, looked.difference_ci) == (0.0, (0.0, 0.0))


def test_a_look_is_used_only_at_prices_at_which_it_pays(data: str, tmp_path: Path) -> None:
    look = SecondLook.of(fit(data, tmp_path / "second", second=SECOND).bundle)
    assert look is not None and look.tells
    dear = Prices(1.5, second=1.0)  # a look costs as much as two thirds of the strong call
    chosen, used = policies(look, dear)
    assert not used and all(policy.low == policy.high for policy in chosen)
    assert policies(look, Prices(50, second=1.0))[1]


def test_an_answer_that_ends_as_no_other_falls_short(tmp_path: Path) -> None:
    rows, rng = [], np.random.default_rng(1)
    for i in range(200):
        words = " ".join(rng.choice(["so", "then", "thus", "hence", "next", "now"], 12).tolist())
        right = i % 4 > 0
        value, other = rng.integers(10, 99, 2).tolist()
        broken = rng.choice(["we need more", "cannot say", "is not given here"])
        weak = (
            f"{words} the answer is ({'ABCD'[i % 3]}): {value}." if right else f"{words} {broken}"
        )
        for model, answer, score in ((STRONG, f"{other}", 1.0), (WEAK, weak, float(right))):
            row = {"prompt": f"Question {i} of the list?", "model": model}
            rows.append(row | {"answer": answer, "score": score})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = fit(str(data), tmp_path / "form").bundle
    look, scorer = SecondLook.of(bundle), Scorer.load(bundle)
    assert look is not None and "form" in look.signals
    whole, cut = Answer("now we add the answer is (D): 7."), Answer("now we add the answer depends")
    ok, short = look.probabilities(scorer, [0.5, 0.5], [whole, cut])
    assert ok < 0.3 < 0.6 < short
    assert look.forms is not None and all(len(form) in (0, 12) for form in look.forms)  # hashes


def test_a_confidence_that_tells_in_steps_is_calibrated_in_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(600):
        odds = float(rng.uniform(-12, 12))
        right = float(rng.random() < (0.9 if odds > 0 else 0.1))
        told = {"confidence": 1 / (1 + np.exp(-odds))}
        prompt = f"Question {i} of the list?"
        rows.append({"prompt": prompt, "model": STRONG, "answer": "yes", "score": 1.0})
        rows.append({"prompt": prompt, "model": WEAK, "answer": "yes", "score": right} | told)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = fit(str(data), tmp_path / "steps").bundle
    look, scorer = SecondLook.of(bundle), Scorer.load(bundle)
    assert look is not None and look.steps is not None
    odds = np.linspace(-10, 10, 41)
    answers = [Answer("yes", p) for p in (1 / (1 + np.exp(-odds))).tolist()]
    truth, scores = np.where(odds > 0, 0.1, 0.9), np.full(41, sigmoid(look.center[0]))
    curve = dataclasses.replace(look, steps=None).probabilities(scorer, scores, answers)
    stepped = look.probabilities(scorer, scores, answers)
    assert np.abs(stepped - truth).mean() < 0.7 * np.abs(curve - truth).mean()
    assert (np.diff(stepped) < 0).all()


def test_every_answer_may_have_a_schema(tmp_path: Path) -> None:
    rows = []
    for i in range(80):
        prompt, right = f"Question {i} of the list?", i % 4 > 0
        weak = f"It is {i}. So: {i}" if right else f"It is {i}. So: it"
        rows.append({"prompt": prompt, "model": STRONG, "answer": "5", "score": 1.0})
        rows.append({"prompt": prompt, "model": WEAK, "answer": weak, "score": float(right)})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = ["--strong", STRONG, "--weak", WEAK, "--data", str(data), "--router", "fast"]
    only = ["--pattern", "So: (.+)", "--schema", '{"type": "number"}']
    run("train", "second-look", *pair, *only, "--out", str(tmp_path / "looks"))
    bundle = Bundle.open(tmp_path / "looks")
    look, scorer = SecondLook.of(bundle), Scorer.load(bundle)
    assert look is not None and "checks" in look.signals
    columns = look.columns(scorer, [0.5, 0.5], [Answer("So: 3"), Answer("So: three")])
    assert columns["checks"].tolist() == [0, 1]
    for wrong in ("{", '{"type": "nmber"}'):
        with pytest.raises(ConfigError, match="--schema"):
            check_schema(wrong)


def test_a_router_that_knows_these_prompts_does_not_flatter_itself(
    data: str, looking: Path, tmp_path: Path
) -> None:
    settings = TrainSettings("fast", [data], (STRONG,), (WEAK,), tmp_path / "own", base="fast")
    own = train(settings)
    result = fit(data, tmp_path / "both", router=str(own.bundle.path))
    before, after = (SecondLook.of(b) for b in (Bundle.open(looking), result.bundle))
    assert before is not None and after is not None
    assert np.array(after.sample)[:, 0] == pytest.approx(np.array(before.sample)[:, 0], abs=1e-3)


def test_a_bundle_with_a_look_is_hashed_and_versioned(looking: Path, tmp_path: Path) -> None:
    import shutil

    look = SecondLook.of(Bundle.open(looking))
    assert look is not None and "confidence" in look.signals
    assert SecondLook.from_dict(json.loads(look.to_json())) == look
    copy = tmp_path / "copy"
    shutil.copytree(looking, copy)
    file = copy / "second_look.json"
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(BundleError, match=r"second_look\.json is not the file that was written"):
        Bundle.open(copy)
    newer = Bundle(copy, Bundle.open(looking).manifest)
    with pytest.raises(BundleFormatError, match="upgrade thriftroute"):
        SecondLook.of(newer)
    assert load_router(str(looking)) is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": [1.0]}, "do not fit together"),
        ({"bias": "1"}, "do not fit together"),
        ({"sample": [[0, 1]]}, "do not fit together"),
        ({"version": 9}, "upgrade thriftroute"),
        ({"bias": float("inf")}, "not finite"),
        ({"policy": {"low": 0.9, "high": 0.1, "threshold": 0.5}}, "low <= high"),
        ({"schema": "[1]"}, "no JSON schema"),
    ],
)
def test_a_wrong_look_is_refused(looking: Path, change: dict[str, Any], says: str) -> None:
    look = SecondLook.of(Bundle.open(looking))
    assert look is not None
    with pytest.raises(ValueError, match=says):
        SecondLook.from_dict({**json.loads(look.to_json()), **change})


def test_bad_rows_say_what_and_where(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "model": WEAK, "answer": "x", "score": 1}
    path.write_text(
        json.dumps(good) + "\n" + json.dumps({**good, "prompt": "b", "confidence": "high"}) + "\n"
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:2, field 'confidence'"):
        read_answers(str(path), WEAK)
    path.write_text(json.dumps({**good, "functions": "{"}) + "\n")
    with pytest.raises(DataError, match="functions"):
        read_answers(str(path), WEAK)
    path.write_text(json.dumps({**good, "answer": [{"name": "f", "arguments": {}}]}) + "\n")
    assert tool_calls(read_answers(str(path), WEAK)["a"].text) == [("f", {})]
    with pytest.raises(DataError, match="no answer of 'openai/second'"):
        read_answers(str(path), WEAK, SECOND)
    with pytest.raises(TrainingError, match="one strong and one weak"):
        fit_many = TrainSettings("mf", [str(path)], ("a", "b"), (WEAK,), tmp_path / "x")
        train_second_look(fit_many, LookSettings())
    with pytest.raises(ConfigError, match="no second look"):
        run_look(LookOptions("fast", str(path), (STRONG,), (WEAK,)))


def controller(looking: Path, url: str) -> Controller:
    return Controller(
        [str(looking)], STRONG, WEAK, api_base=url, api_key="k", second_look=True
    )  # fmt: skip


def ask(client: Controller, is_async: bool = False, **more: Any) -> Any:
    request = {"messages": [{"role": "user", "content": "What is number 7 of the list?"}], **more}
    if is_async:
        return asyncio.run(client.acompletion(**request))
    return client.completion(**request)


@pytest.fixture
def always_looks(looking: Path, tmp_path: Path) -> Path:
    """The same bundle, whose thresholds look at everything."""
    return with_policy(looking, LookPolicy(0.0, NOTHING, 0.5), tmp_path / "looks")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_sure_answer_stays_and_an_unsure_one_escalates(
    always_looks: Path, is_async: bool
) -> None:
    with (
        RawProvider(completion("7", 0.99)) as provider,
        controller(always_looks, provider.url) as client,
    ):
        answer = ask(client, is_async)
        decision = decision_of(answer)
        assert decision is not None and decision.look is not None
        assert (decision.model, decision.look.escalated) == (WEAK, False)
        assert [r["model"] for r in provider.requests] == ["weak"]
        assert provider.requests[0]["logprobs"] is True
        assert getattr(answer.choices[0], "logprobs", None) is None
    with (
        RawProvider(completion("8", 0.3), completion("7")) as provider,
        controller(always_looks, provider.url) as client,
    ):
        answer = ask(client, is_async)
        decision = decision_of(answer)
        assert decision is not None and decision.look is not None
        assert (decision.model, decision.choice, decision.look.escalated) == (
            STRONG,
            "strong",
            True,
        )
        assert answer.choices[0].message.content == "7"
        assert [r["model"] for r in provider.requests] == ["weak", "strong"]
        assert "logprobs" not in provider.requests[1]


def test_where_strong_fails_the_weak_answer_is_given(always_looks: Path) -> None:
    failing = b'{"error": {"message": "no", "type": "invalid_request_error"}}'
    with (
        RawProvider(completion("8", 0.3), failing) as provider,
        controller(always_looks, provider.url) as client,
    ):
        answer = ask(client, num_retries=0, max_retries=0)
        assert answer.choices[0].message.content == "8"
        decision = decision_of(answer)
        assert decision is not None and decision.model == WEAK


def test_nothing_is_looked_at_where_the_caller_says_how(always_looks: Path) -> None:
    with (
        RawProvider(completion("8", 0.3)) as provider,
        controller(always_looks, provider.url) as client,
    ):
        for more in ({"threshold": 1.0}, {"model": f"router-{always_looks}-1"}, {"model": WEAK}):
            provider.requests.clear()
            decision = decision_of(ask(client, **more))
            assert decision is not None and decision.look is None
            assert len(provider.requests) == 1 and "logprobs" not in provider.requests[0]
        kept = ask(client, logprobs=True)
        assert kept.choices[0].logprobs is not None


def test_a_provider_without_log_probabilities_is_asked_without_them(always_looks: Path) -> None:
    weak = "anthropic/claude-3-haiku-20240307"
    said = b'{"id": "m", "type": "message", "role": "assistant", "model": "c", "content": '
    said += b'[{"type": "text", "text": "7"}], "stop_reason": "end_turn", "stop_sequence": null, '
    said += b'"usage": {"input_tokens": 1, "output_tokens": 1}}'
    with (
        RawProvider(said) as provider,
        RawProvider(completion("9")) as other,
        Controller(
            [str(always_looks)], STRONG, weak, api_key="k", second_look=True,
            models={weak: {"api_base": provider.url}, STRONG: {"api_base": other.url}},
        ) as client,
    ):  # fmt: skip
        decision = decision_of(ask(client))
        assert decision is not None and decision.look is not None
        assert "logprobs" not in provider.requests[0]


def test_measuring_on_what_was_learned_from_says_so(data: str, looking: Path) -> None:
    found = run_look(LookOptions(str(looking), data, (STRONG,), (WEAK,)), bootstraps=100)
    assert "learned from 100% of these prompts" in found.warning


def test_a_router_without_a_look_is_refused() -> None:
    with pytest.raises(ConfigError, match="train second-look"):
        Controller(["fast"], STRONG, WEAK, second_look=True)


def test_rows_may_hold_the_tokens(tmp_path: Path) -> None:
    tokens = [{"token": "4", "logprob": -0.5}, {"token": ".", "logprob": -9999}]
    row = {"prompt": "2+2?", "model": WEAK, "answer": "4.", "score": 1}
    file = tmp_path / "rows.jsonl"
    for given in (tokens, {"content": tokens}, json.dumps(tokens)):
        file.write_text(json.dumps({**row, "logprobs": given}))
        [found] = read_answers(str(file), WEAK).values()
        assert list(found.tokens) == [("4", -0.5), (".", None)]
    file.write_text(json.dumps({**row, "logprobs": "no"}))
    with pytest.raises(DataError, match="no JSON"):
        read_answers(str(file), WEAK)
    file.write_text(json.dumps({**row, "logprobs": {"content": 4}}))
    with pytest.raises(DataError, match="expected a list of `token`"):
        read_answers(str(file), WEAK)


@pytest.fixture(scope="module")
def patterned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A look on the sums of the samples, which compares final answers."""
    sample = Path(thriftroute.__file__).parent / "data" / "samples" / "answers.jsonl"
    folder = tmp_path_factory.mktemp("patterned")
    file = folder / "own.jsonl"
    file.write_text("".join(sample.read_text().splitlines(keepends=True)[:360]))
    settings = ["--strong", "openai/strong-sim", "--weak", "openai/weak-sim", "--router", "fast"]
    settings += ["--second", "openai/weak-sim", "--pattern", THE_ANSWER]
    result = CliRunner().invoke(
        app, ["train", "second-look", "--data", str(file), "--out", str(folder / "b"), *settings]
    )
    assert result.exit_code == 0, (result.output, result.exception)
    return folder / "b"


def test_the_card_says_what_the_look_is(patterned: Path) -> None:
    card = (patterned / "card.md").read_text()
    section = card.partition("## Second look\n")[2].partition("\n## ")[0]
    assert "Pair: openai/strong-sim and openai/weak-sim." in section
    assert "Fitted on 120 labelled answers, seed 0." in section
    assert "- signals: prompt, confidence, agreement" in section
    assert "- second answers: of openai/weak-sim\n" in section
    assert f"compared by: `{PATTERN}{THE_ANSWER}`" in section
    assert re.search(r'falls short": 0\.[89]\d\d; by the score alone 0\.\d{3}\n', section)
    assert re.search(r"alone: 0\.\d{4}, standard error 0\.\d{4} nats", section)
    assert (
        "says more than the score and is used; its thresholds are for a price ratio of 20"
        in section
    )


def test_a_look_by_a_pattern_reads_the_final_answer_of_a_completion(patterned: Path) -> None:
    look = SecondLook.of(Bundle.open(patterned))
    assert look is not None
    assert look.extractor == f"{PATTERN}{THE_ANSWER}"
    assert {"agreement", "confidence"} <= set(look.signals)
    router = load_router(str(patterned))
    assert isinstance(router, BundleRouter)

    def said(logprob: float) -> dict[str, Any]:
        tokens = [("By", -3.0), (" parts, the answer is", -3.0), (" 42", logprob), (".", -3.0)]
        content = [{"token": token, "logprob": value} for token, value in tokens]
        text = "".join(token for token, _ in tokens)
        return {"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]}

    def probability(logprob: float, second: str) -> float:
        other = {"choices": [{"message": {"content": second}}]}
        return judge(look, router.scorer, 0.5, said(logprob), other, {}).probability

    sure = probability(-0.01, "The answer is 42!")
    assert sure < probability(-0.5, "The answer is 42!")
    assert sure < probability(-0.01, "The answer is 43!")


def test_free_text_is_compared_by_similarity(tmp_path: Path) -> None:
    topics = ["the river and its boats", "how bread is baked", "a song about winter", "old maps",
              "the theory of colour"]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for i in range(60):
            topic, right = topics[i % 5], i % 2 == 0
            again = topic if right else topics[(i + 2) % 5]
            row = {"prompt": f"Tell me something, number {i}, about {topic}."}
            for model, text, score in (
                (STRONG, "whatever", 1.0),
                (WEAK, f"This is what is known of {topic}, in version {i}.", float(right)),
                (SECOND, f"Here are a few words on {again}, take {i + 100}.", 1.0),
            ):
                out.write(json.dumps({**row, "model": model, "answer": text, "score": score}))
                out.write("\n")
    settings = TrainSettings("mf", [str(file)], (STRONG,), (WEAK,), tmp_path / "b", base="fast")
    train_second_look(settings, LookSettings(SECOND))
    look, router = SecondLook.of(Bundle.open(tmp_path / "b")), load_router(str(tmp_path / "b"))
    assert look is not None and isinstance(router, BundleRouter)
    assert str(look.extractor).startswith(SIMILAR)
    answers = [
        Answer("This is what is known of old maps.", second="A few words on old maps."),
        Answer("This is what is known of old maps.", second="A few words on how bread is baked."),
        Answer("This is what is known of old maps."),
    ]
    found = look.columns(router.scorer, [0.5] * 3, answers)["agreement"]
    assert found[:2].tolist() == [0, 1]
    assert np.isnan(found[2])

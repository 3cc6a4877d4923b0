"""The second look: signals, policies, training, evaluation, and the Controller that looks."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
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
from thriftroute.router.routers import load_router
from thriftroute.router.second_look import (
    EXTRACTORS,
    Answer,
    LookPolicy,
    SecondLook,
    failed_checks,
    signal_columns,
    tool_calls,
)
from thriftroute.training.second_look import LookSettings, train_second_look
from thriftroute.training.settings import TrainSettings
from thriftroute.training.train import train
from typer.testing import CliRunner, Result

from .helpers.raw_provider import RawProvider

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*ReadOnly.*qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]

STRONG, WEAK, SECOND = "openai/strong", "openai/weak", "openai/second"
WEATHER = {"name": "weather", "parameters": {"properties": {"city": {}}, "required": ["city"]}}


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
    ],
)
def test_cheap_checks(answer: Answer, failed: int) -> None:
    assert failed_checks(answer) == failed


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


def write_rows(path: Path, n: int, *, tells: bool, start: int = 0) -> str:
    """n prompts with answers of all three models; `tells`: whether confidence says anything of the
    weak one."""
    rng = np.random.default_rng(start)
    with path.open("w") as file:
        for i in range(start, start + n):
            right = bool(rng.random() < 0.6)
            truth, wrong, third = map(str, rng.choice(np.arange(1000, 10_000), 3, replace=False))
            known = right if tells else bool(rng.random() < 0.6)
            sure = float(rng.uniform(0.7, 0.99) if known else rng.uniform(0.3, 0.75))
            answers = {
                STRONG: (truth, 1.0 if rng.random() < 0.95 else 0.0, None),
                WEAK: (f"It is {truth if right else wrong}.", float(right), sure),
                SECOND: (truth if known else third, float(known), None),
            }
            for model, (answer, score, confidence) in answers.items():
                row = {"prompt_id": f"p{i}", "prompt": f"What is number {i} of the list?"}
                row |= {"model": model, "answer": answer, "score": score}
                row |= {} if confidence is None else {"confidence": confidence}
                file.write(json.dumps(row) + "\n")
    return str(path)


def fit(data: str, out: Path, router: str = "fast", second: str | None = None) -> Any:
    settings = TrainSettings("mf", [data], (STRONG,), (WEAK,), out, base=router, overwrite=True)
    return train_second_look(settings, LookSettings(second))


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
    assert looked.apgr_cost == pytest.approx(prompt.apgr_cost, abs=0.03)


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


def completion(text: str, probability: float | None = None) -> bytes:
    """A provider's answer, with the log-probability of its tokens where one is given."""
    told: Any = None
    if probability is not None:
        token = {"token": text, "logprob": float(np.log(probability)), "bytes": None}
        told = {"content": [{**token, "top_logprobs": []}]}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": told}
    choice |= {"message": {"role": "assistant", "content": text}}
    whole = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({**whole, "choices": [choice], "usage": usage}).encode()


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
    import dataclasses

    from thriftroute.router.bundle import write_bundle
    from thriftroute.router.second_look import SECOND_LOOK

    bundle = Bundle.open(looking)
    look = SecondLook.of(bundle)
    assert look is not None
    look = dataclasses.replace(look, policy=LookPolicy(0.0, NOTHING, 0.5))
    files: dict[str, Any] = {name: bundle.file(name) for name in bundle.manifest.files}
    fields = dataclasses.asdict(bundle.manifest)
    fields = {n: v for n, v in fields.items() if n not in ("files", "format", "written_by")}
    out = tmp_path / "looks"
    write_bundle(out, files={**files, SECOND_LOOK: look.to_json()}, **fields)
    return out


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

"""`calibrate --second-look`: the policy it writes, what it promises, and how often it holds."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.eval.guarantee.look import ALWAYS_STRONG, guaranteed_look, sequence_of
from thriftroute.eval.guarantee.promises import LabelledPrompts, Promise
from thriftroute.eval.second_look import NOTHING, Prices, outcomes
from thriftroute.research import look_trials
from thriftroute.router.bundle import Bundle
from thriftroute.router.second_look import LookPolicy, SecondLook, log_odds
from thriftroute.router.threshold import sigmoid
from typer.testing import CliRunner, Result

from .helpers.looking import STRONG, WEAK, fit, write_rows

PAIR = ("--strong", STRONG, "--weak", WEAK)
PROMISE = ("--min-quality", "0.9", "--confidence", "0.9")
QUALITY = Promise("min_quality", 0.9)


def calibrate(*args: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, args)])


def made(n: int, seed: int, says: float = 1.0) -> tuple[LabelledPrompts, Any]:
    """Prompts whose score says little and whose look says much of whether weak falls short."""
    rng = np.random.default_rng(seed)
    short = rng.random(n) < 0.4
    scores = sigmoid(rng.normal(0.3 * short - 0.1, 0.5))
    looks = sigmoid(rng.normal(says * (3.0 * short - 1.5), 1.0))
    strong = (rng.random(n) < 0.95).astype(float)
    return LabelledPrompts(scores, (strong, 1.0 - short)), looks


def look_on(n: int, seed: int, *, says: float = 1.0, tells: bool = True) -> SecondLook:
    prompts, looks = made(n, seed, says)
    assert prompts.rewards is not None
    gain = prompts.rewards[0] - prompts.rewards[1]
    sample = np.stack((log_odds(prompts.scores), looks, gain), axis=1)
    return SecondLook(
        STRONG, WEAK, ("prompt", "confidence"), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0), 0.0,
        LookPolicy(0.0, NOTHING, 0.5), tuple(map(tuple, sample.tolist())),
        {"score": (0.35, 0.1), "look": (-0.1, 1.0)}, tells,
    )  # fmt: skip


def test_the_sequence_is_of_the_looks_own_labels_from_always_strong_on() -> None:
    look, prices = look_on(300, 0), Prices(20)
    family, note = sequence_of(look, prices, 0.8)
    assert family[0] == ALWAYS_STRONG and note == ""
    sample = np.array(look.sample)
    _, earned = outcomes(family, sigmoid(sample[:, 0]), sample[:, 1], sample[:, 2], prices)
    reached = earned.mean(0) / sample[:, 2].mean()
    # Small steps from all of the gap to nothing: none of them is the first that has to be shown.
    assert len(family) > 20 and reached[0] == pytest.approx(1) and reached[-1] < 0.05
    assert np.abs(np.diff(reached)).max() < 0.2
    assert any(policy.low < policy.high for policy in family)


@pytest.mark.parametrize(
    ("look", "prices", "gap", "said"),
    [
        (look_on(300, 0, tells=False), Prices(20), 0.8, "not show that looking helps"),
        # A second answer costs more than strong itself, nearly.
        (look_on(300, 0, says=0.1), Prices(1.1, 1.0), 0.8, "not show that looking helps"),
        # What always weak keeps needs no look.
        (look_on(300, 0), Prices(20), 0.0, "as cheap"),
    ],
)
def test_where_looking_earns_nothing_the_prompt_alone_decides(
    look: SecondLook, prices: Prices, gap: float, said: str
) -> None:
    family, note = sequence_of(look, prices, gap)
    assert said in note
    assert all(policy.low == policy.high for policy in family)
    prompts, looks = made(400, 1)
    promise = Promise("min_gap", gap or 0.001)
    found = guaranteed_look(look, prompts, looks, promise, prices)
    assert found.looked == 0 and found.note == note


def test_all_calls_are_counted_and_the_bound_holds_on_the_labels() -> None:
    prompts, looks = made(600, 3)
    found = guaranteed_look(look_on(300, 0), prompts, looks, QUALITY, Prices(20, 1.0))
    told = found.guarantee
    assert told.feasible and told.quality is not None and told.quality >= 0.9
    assert found.looked > 0 and told.strong_pct == pytest.approx(found.escalated, abs=0.5)
    policy = found.policy
    at_once = float(np.mean(prompts.scores >= policy.high))
    cost = 20 * at_once + (1 - at_once) + found.looked + 20 * found.escalated
    assert told.cost == pytest.approx(cost)
    assert told.saving == pytest.approx(1 - cost / 20)
    alone = guaranteed_look(look_on(300, 0, tells=False), prompts, looks, QUALITY, Prices(20, 1.0))
    assert alone.guarantee.saving is not None
    assert told.saving is not None and told.saving > alone.guarantee.saving + 0.1


def test_of_what_is_shown_the_cheapest_is_taken() -> None:
    prompts, looks = made(600, 3)
    # A look costs nearly what strong costs: it is shown to keep the promise, and not taken.
    found = guaranteed_look(look_on(300, 0), prompts, looks, QUALITY, Prices(20, 18.9))
    assert found.guarantee.feasible and found.guarantee.cost is not None
    assert found.guarantee.cost <= 20
    strict = Promise("min_quality", 0.999)
    none = guaranteed_look(look_on(300, 0), prompts, looks, strict, Prices(20))
    assert not none.guarantee.feasible and none.policy == ALWAYS_STRONG


def test_weights_of_the_labels_count() -> None:
    prompts, looks = made(600, 3)
    twice = np.where(looks > 0.5, 2.0, 1.0)
    assert prompts.rewards is not None
    weighted = LabelledPrompts(prompts.scores, prompts.rewards, weights=twice)
    found = guaranteed_look(look_on(300, 0), weighted, looks, QUALITY, Prices(20))
    strong, weak = (float(np.average(r, weights=twice)) for r in prompts.rewards)
    assert found.guarantee.quality is not None and weak / strong < 0.9 <= found.guarantee.quality


def test_a_promise_of_the_policy_is_broken_as_often_as_stated_at_most() -> None:
    prompts, looks = made(3000, 7)
    traffic = look_trials.LookTraffic(look_on(300, 0), prompts, looks)
    found = {o.method: o for o in look_trials.simulate(traffic, QUALITY, 200, 20.0, 300, 0)}
    look, alone = found[look_trials.LOOK], found[look_trials.PROMPT]
    for one in (look, alone):
        # Four standard errors above what is stated.
        assert one.broken <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 300)
    # Labels that choose and test at once break it: the trial would show that.
    assert found[look_trials.PLUG_IN].broken > 0.3
    assert look.feasible > 0.9 and look.best <= look.cost < alone.cost


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look")
    fit(write_rows(folder / "rows.jsonl", 200, tells=True), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def copied(looking: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(looking, tmp_path / "copy"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other prompts, with what calls cost and take."""
    path = Path(
        write_rows(tmp_path_factory.mktemp("labels") / "l.jsonl", 400, tells=True, start=700)
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        dear = row["model"] == STRONG
        row |= {"cost_usd": 0.01 if dear else 0.0005, "latency_ms": 900 if dear else 200}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_policy_and_its_promise_are_written_into_the_bundle(copied: Path, labels: str) -> None:
    before = SecondLook.of(Bundle.open(copied))
    told = calibrate("--second-look", copied, "--data", labels, *PAIR, *PROMISE, "--json")
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    after = SecondLook.of(Bundle.open(copied))
    assert before is not None and after is not None
    assert after.policy == LookPolicy(report["low"], report["high"], report["threshold"])
    assert after.policy != before.policy and after.weights == before.weights
    promise = after.facts["promise"]
    assert (promise["promise"], promise["target"], promise["confidence"]) == (
        "min_quality", 0.9, 0.9
    )  # fmt: skip
    assert promise["n"] == report["n"] == 400
    assert report["quality"] >= report["quality_bound"] == 0.9
    assert report["price_ratio"] == pytest.approx(20)
    share = report["strong_pct"]
    assert report["usd_per_1k"] == pytest.approx(
        10 * share + 0.5 * (1 - share + report["escalated"])
    )
    times = report["latency_ms"]
    assert (times["strong"], times["weak"]) == pytest.approx((900, 200))
    assert times["policy"] == pytest.approx(900 * share + 200 * (1 - share + report["escalated"]))
    text = calibrate("--second-look", copied, "--data", labels, *PAIR, *PROMISE).stdout
    assert "with 90% confidence quality is at least 90.0% of always strong's" in text
    assert "looked at" in text and "mean latency" in text


def test_where_nothing_can_be_promised_nothing_is_written(copied: Path, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", 12, tells=True, start=3000)
    before = (copied / "second_look.json").read_bytes()
    told = calibrate("--second-look", copied, "--data", few, *PAIR, "--min-quality", "0.99")
    assert told.exit_code == 3
    assert "infeasible at this n (12)" in told.stderr
    assert (copied / "second_look.json").read_bytes() == before
    Bundle.open(copied)


def test_labels_that_the_look_knows_are_told_of(copied: Path, tmp_path: Path) -> None:
    same = write_rows(tmp_path / "rows.jsonl", 200, tells=True)
    told = calibrate("--second-look", copied, "--data", same, *PAIR, *PROMISE)
    assert "holds for labels that it has not learned from" in told.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--usd-per-1k", "3"), "--usd-per-1k: --second-look has no use for it"),
        (("--benchmark", "gsm8k"), "--benchmark: --second-look has no use for it"),
        (("--price-ratio", "20", "--strong-price", "1,2", "--weak-price", "1,2"), "leave one out"),
        (("--price-ratio", "0.5"), "price ratio 0.5"),
        (("--max-regret", "0.1"), "one promise at a time"),
        (("--second-look", "fast"), "no second look"),
    ],
)
def test_what_does_not_fit_is_told(
    copied: Path, labels: str, more: tuple[str, ...], said: str
) -> None:
    told = calibrate("--second-look", copied, "--data", labels, *PAIR, *PROMISE, *more)
    assert told.exit_code in (1, 2) and said in told.stderr, told.output


def test_options_of_the_second_look_need_it(labels: str) -> None:
    told = calibrate("--data", labels, *PAIR, *PROMISE, "--price-ratio", "20")
    assert told.exit_code == 2 and "only with --second-look" in told.stderr

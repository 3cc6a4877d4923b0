"""How often promises are broken: what holds is found to hold, and what does not is caught."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from thriftroute.errors import CalibrationError, EvaluationError
from thriftroute.eval import benchmarks
from thriftroute.eval.guarantee import means
from thriftroute.eval.guarantee.promises import LabelledPrompts, Name, Promise
from thriftroute.eval.guarantee.threshold import guaranteed
from thriftroute.research import guarantee_trials as simulate
from thriftroute.research.guarantee_trials import Outcome
from thriftroute.router.threshold import Floats

BETTING = {"betting": means.betting}
QUALITY = Promise("min_quality", 0.9)


def made(n: int = 4000, seed: int = 0) -> LabelledPrompts:
    """Traffic where weak fails more often the higher the score; strong costs nine times more."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    strong = (rng.random(n) < 0.85).astype(float)
    weak = (rng.random(n) < 0.9 - 0.5 * scores).astype(float)
    paid = 0.001 * (0.5 + rng.random(n))
    return LabelledPrompts(scores, (strong, weak), (9 * paid, paid))


def above_zero(values: Floats, low: float, high: float, level: float) -> means.Bools:
    """A bound that is broken on purpose: whatever looks good is taken for shown."""
    shown: means.Bools = values.mean(axis=0) >= 0
    return shown


def by_method(found: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.method: outcome for outcome in found}


@pytest.mark.parametrize(
    ("name", "target"),
    [("min_quality", 0.9), ("min_gap", 0.7), ("max_regret", 0.05), ("max_cost", 0.005)],
)
def test_promises_are_kept_as_often_as_stated(name: Name, target: float) -> None:
    found = by_method(simulate.simulate(made(), Promise(name, target), 200, draws=300))
    for method in simulate.METHODS:
        assert found[method].kept and found[method].stated == pytest.approx(0.1)
        # Four standard errors above what is stated.
        assert found[method].broken <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 300)
    plug_in = found[simulate.PLUG_IN]
    assert plug_in.broken > 0.3 and not plug_in.kept and math.isnan(plug_in.stated)
    assert found["betting"].feasible > 0.5


def test_a_broken_bound_is_caught() -> None:
    tests = {**BETTING, "above zero": above_zero}
    found = by_method(simulate.simulate(made(), QUALITY, 200, draws=300, tests=tests))
    assert found["betting"].kept
    assert not found["above zero"].kept and found["above zero"].broken_ci[0] > 0.15


def test_the_confidence_that_is_asked_for_is_the_one_that_is_checked() -> None:
    # At a level of one half the promise is broken more often than at one tenth, and both keep.
    loose = simulate.simulate(
        made(), Promise("max_regret", 0.05, 0.5), 200, draws=300, tests=BETTING
    )[0]
    strict = simulate.simulate(made(), Promise("max_regret", 0.05), 200, draws=300, tests=BETTING)[
        0
    ]
    assert loose.kept and loose.stated == 0.5 and loose.broken > strict.broken
    assert loose.broken_ci[0] > 0.1
    assert loose.strong_pct < strict.strong_pct


def test_more_labels_come_nearer_to_the_best() -> None:
    shares = [
        simulate.simulate(made(), QUALITY, n, draws=60, tests=BETTING)[0].strong_pct
        for n in (60, 200, 800)
    ]
    best = simulate.simulate(made(), QUALITY, 60, draws=1, tests=BETTING)[0].best
    assert 1 >= shares[0] > shares[1] > shares[2] > best > 0


@pytest.mark.parametrize("name", ["min_quality", "max_cost"])
def test_a_draw_gets_the_threshold_that_a_user_would_get(name: Name) -> None:
    # The simulation takes draws as they come, a user's are shuffled: undo the shuffle.
    traffic, n = made(), 150
    target = {"min_quality": 0.9, "max_cost": 0.005}[name]
    drawn = np.random.default_rng(5).integers(4000, size=(1, n))[0]
    index = np.empty(n, dtype=np.intp)
    index[np.random.default_rng(0).permutation(n)] = drawn
    assert traffic.rewards is not None and traffic.costs is not None
    strong, weak, dear, cheap = (side[index] for side in (*traffic.rewards, *traffic.costs))
    prompts = LabelledPrompts(traffic.scores[index], (strong, weak), (dear, cheap))
    found = guaranteed(prompts, Promise(name, target, cost_cap=2 * traffic.dearest))
    once = simulate.simulate(traffic, Promise(name, target), n, draws=1, seed=5, tests=BETTING)[0]
    assert 0 < found.strong_pct < 1 and once.feasible == float(found.feasible)
    assert once.strong_pct == pytest.approx((traffic.scores >= found.threshold).mean())


def test_what_is_true_is_looked_up_on_all_prompts() -> None:
    traffic = made()
    best = simulate.simulate(traffic, QUALITY, 50, draws=1, tests=BETTING)[0].best
    edges = np.append(np.sort(traffic.scores), 2.0)
    assert traffic.rewards is not None
    quality = np.array([np.where(traffic.scores >= t, *traffic.rewards).mean() for t in edges])
    keeps = np.flatnonzero(quality >= 0.9 * traffic.rewards[0].mean())
    assert best == pytest.approx((traffic.scores >= edges[keeps[-1]]).mean())


def test_on_real_results(data_dir: Path) -> None:
    # By the prompt's length, so that no router has to be run.
    for benchmark in (benchmarks.load("gsm8k"), benchmarks.load("mmlu")):
        lengths = np.array([len(prompt) for prompt in benchmark.prompts], dtype=np.float64)
        rewards = (benchmark.strong, benchmark.weak)
        traffic = LabelledPrompts(lengths / (lengths + 100), rewards)
        for promise in (Promise("min_quality", 0.95), Promise("max_regret", 0.05)):
            found = by_method(simulate.simulate(traffic, promise, 150, draws=200))
            assert found["betting"].kept
            assert found["betting"].broken <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 200)
            assert found[simulate.PLUG_IN].broken > 0.3
            # Tighter than the other, which is why it is the default.
            assert found["betting"].strong_pct < found["hoeffding-bentkus"].strong_pct


def test_traffic_that_does_not_fit_is_refused() -> None:
    traffic = made(50)
    assert traffic.rewards is not None
    strong, weak = traffic.rewards
    with pytest.raises(CalibrationError, match=r"\[0, 1\]"):
        LabelledPrompts(traffic.scores + 1, (strong, weak))
    with pytest.raises(EvaluationError, match="differ"):
        LabelledPrompts(traffic.scores, (strong[1:], weak))
    without = LabelledPrompts(traffic.scores, (strong, weak))
    with pytest.raises(CalibrationError, match="needs the cost"):
        simulate.simulate(without, Promise("max_cost", 0.01), 20, draws=2)


# The command

Write = tuple[str, ...]


@pytest.fixture
def target(tmp_path: Path, tiny_bundle: Path) -> Write:
    """Options of 40 prompts: the hard third is lost by weak, the rest is not."""
    rows = []
    for i in range(40):
        hard = i % 3 == 0
        prompt = f"prove the hard theorem {i}" if hard else f"hello is the easy {i}"
        rows.append({"prompt": prompt, "model": "big", "score": 1.0, "cost_usd": 0.01})
        weak = {"prompt": prompt, "model": "small", "score": 0.0 if hard else 1.0}
        rows.append({**weak, "cost_usd": 0.001})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pair = ("--strong", "big", "--weak", "small", "--router", str(tiny_bundle))
    return ("--data", str(path), *pair, "--sizes", "100", "--draws", "40")


def test_the_command_prints_every_promise(
    target: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("--min-quality", "0.9", "--max-regret", "0.1", "--usd-per-1k", "6")
    assert simulate.main([*target, *wanted, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 9 and {row["traffic"] for row in rows} == {"rows"}
    assert {row["promise"] for row in rows} == {"min_quality", "max_regret", "max_cost"}
    assert all(row["stated"] is None for row in rows if row["method"] == "plug-in")
    assert all(row["draws"] == 40 and row["n"] == 100 for row in rows)
    assert simulate.main([*target, *wanted]) == 0
    text = capsys.readouterr().out
    assert "max_cost 6" in text and "hoeffding-bentkus" in text and "40 draws" in text


def test_the_command_fails_where_a_promise_is_broken_too_often(
    target: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another method beside the two, with a bound that is wrong.
    monkeypatch.setitem(simulate.METHODS, "above zero", above_zero)
    assert simulate.main([*target, "--max-regret", "0.34"]) == 1
    told = capsys.readouterr().err
    assert "above zero broke max_regret 0.34 at n = 100" in told and "betting" not in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "nothing to promise"),
        (("--min-quality", "0.9", "--sizes", "many"), "--sizes"),
        (("--min-quality", "0.9", "--sizes", "0"), "--sizes"),
        (("--min-quality", "0.9", "--draws", "0"), "--draws"),
        (("--min-quality", "0.9", "--data", "missing.jsonl"), "missing.jsonl"),
        (("--min-quality", "0.9", "--benchmark", "nothing"), "unknown benchmark"),
        (("--min-quality", "0.9", "--strong", ""), "--strong"),
        (("--min-quality", "1.5"), "below 1"),
        (("--min-quality", "0.9", "--confidence", "3"), "confidence"),
    ],
)
def test_the_command_says_what_is_wrong(
    target: Write, options: Write, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate.main([*target, *options]) == 2
    assert told in capsys.readouterr().err

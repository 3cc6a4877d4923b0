"""The own-logs protocol: what is drawn, what a method may see, and what is reported."""

import json
from typing import Any

import numpy as np
import pytest
from thriftroute.errors import EvaluationError
from thriftroute.eval import metrics
from thriftroute.eval.benchmarks import Benchmark
from thriftroute.eval.own_logs import (
    Method,
    OwnLogs,
    OwnLogsReport,
    draw_logs,
    embedding_methods,
    own_logs,
)


def benchmark_of(n: int = 200, seed: int = 0, **more: Any) -> Benchmark:
    """Strong is always right; weak where a number, which is the prompt, is small."""
    need = np.random.default_rng(seed).random(n)
    noise = np.random.default_rng(seed + 1000).random(n)
    return Benchmark(
        name="bench",
        prompts=[f"{value:.9f} {'x' * (i % 7)}" for i, value in enumerate(need)],
        strong=np.ones(n),
        weak=(noise > need).astype(float),
        strong_model="strong/model",
        weak_model="weak/model",
        **more,
    )


def needs(benchmark: Benchmark) -> metrics.Floats:
    return np.array([float(prompt.split()[0]) for prompt in benchmark.prompts])


def perfect(benchmark: Benchmark) -> Method:
    return lambda logs: (benchmark.strong - benchmark.weak)[logs.rest]


def constant(logs: OwnLogs) -> metrics.Floats:
    return np.full(len(logs.rest), 0.3)


def noise(logs: OwnLogs) -> metrics.Floats:
    return np.random.default_rng(logs.seed).random(len(logs.rest))


def test_a_perfect_method_is_the_oracle_and_a_constant_is_random() -> None:
    benchmark = benchmark_of()
    methods = {"perfect": perfect(benchmark), "constant": constant, "noise": noise}
    report = own_logs(benchmark, methods, (20, 60), draws=4)
    for size in (20, 60):
        for draw, value in enumerate(report.row("perfect", size).apgr):
            rest = draw_logs(benchmark, size, draw).rest
            strong, weak = benchmark.strong[rest], benchmark.weak[rest]
            assert value == metrics.apgr(strong - weak, strong, weak) > 0.7
        row = report.row("constant", size)
        assert row.apgr == pytest.approx([0.5] * 4, abs=1e-12)
        assert row.sd == pytest.approx(0, abs=1e-12)
        assert row.prompts_ci == pytest.approx((0.5, 0.5), abs=1e-9)
        assert 0.3 < report.row("noise", size).mean < 0.7
        assert report.tested[size] == 200 - size


def test_the_rows_are_what_the_draws_say() -> None:
    benchmark = benchmark_of()
    need = needs(benchmark)
    methods = {"general": noise, "good": lambda logs: need[logs.rest]}
    report = own_logs(benchmark, methods, [40], draws=5, seed=2)
    assert [row.method for row in report.rows] == ["general", "good", "prompt-length"]
    good, general = report.row("good", 40), report.row("general", 40)
    values = np.array(good.apgr)
    assert (good.mean, good.sd) == pytest.approx((values.mean(), np.std(values, ddof=1)))
    assert (good.low, good.high) == (values.min(), values.max())
    assert good.prompts_ci[0] < good.ci[0] < good.mean < good.ci[1] < good.prompts_ci[1]
    assert set(good.against) == {"general", "prompt-length"}
    assert set(general.against) == {"prompt-length"}
    paired = values - np.array(general.apgr)
    assert good.against["general"].mean == pytest.approx(paired.mean())
    assert good.against["general"].worse == int((paired < 0).sum()) == 0
    back = own_logs(benchmark, methods, [40], draws=5, seed=2, against=["good"])
    turned = back.row("general", 40).against["good"]
    assert turned.worse == 5 and turned.mean == pytest.approx(-paired.mean())
    low, high = good.against["general"].prompts_ci
    assert turned.prompts_ci == pytest.approx((-high, -low))


def test_prompt_length_is_that_of_the_rest() -> None:
    benchmark = benchmark_of()
    report = own_logs(benchmark, {"constant": constant}, [50], draws=2)
    rest = draw_logs(benchmark, 50, 1).rest
    lengths = [len(benchmark.prompts[i]) for i in rest]
    expected = metrics.apgr(lengths, benchmark.strong[rest], benchmark.weak[rest])
    assert report.row("prompt-length", 50).apgr[1] == expected


def test_a_method_sees_the_labels_of_its_own_items_alone() -> None:
    benchmark = benchmark_of()
    seen: list[OwnLogs] = []

    def spy(logs: OwnLogs) -> metrics.Floats:
        seen.append(logs)
        return constant(logs)

    own_logs(benchmark, {"spy": spy}, (20, 50), draws=3)
    assert [len(logs.labelled) for logs in seen] == [20, 20, 20, 50, 50, 50]
    for logs in seen:
        both = np.concatenate((logs.labelled, logs.rest))
        assert sorted(both) == list(range(200))
        np.testing.assert_array_equal(logs.strong, benchmark.strong[logs.labelled])
        np.testing.assert_array_equal(logs.weak, benchmark.weak[logs.labelled])
    assert len({tuple(sorted(logs.labelled)) for logs in seen}) == 6
    assert len({logs.seed for logs in seen}) == 6


def test_draws_depend_on_seed_size_and_number_alone() -> None:
    benchmark = benchmark_of()
    methods = {"noise": noise}
    first, again = (own_logs(benchmark, methods, (20, 50), draws=3).to_dict() for _ in range(2))
    assert first == again
    alone = own_logs(benchmark, methods, [50], draws=3)
    assert alone.row("noise", 50).apgr == tuple(
        next(r for r in first["rows"] if (r["method"], r["size"]) == ("noise", 50))["apgr"]
    )
    other = own_logs(benchmark, methods, [50], draws=3, seed=1)
    assert other.row("noise", 50).apgr != alone.row("noise", 50).apgr


def test_copies_of_a_prompt_stay_on_one_side() -> None:
    plain = benchmark_of(120)
    prompts = list(plain.prompts)
    # Rows 1 and 2 share a prompt, but for its case and spaces.
    prompts[1], prompts[2] = "What is  it?", "what is it?"
    benchmark = Benchmark("b", prompts, plain.strong, plain.weak, "s", "w")
    for draw in range(20):
        logs = draw_logs(benchmark, 31, draw)
        assert len(logs.labelled) == 31
        assert not set(logs.labelled) & set(logs.rest)
        assert len({i in logs.labelled for i in (1, 2)}) == 1
    assert any(1 in draw_logs(benchmark, 31, draw).labelled for draw in range(20))


def test_copies_too_many_for_the_size_say_so() -> None:
    prompts = [f"prompt {i // 30}" for i in range(90)]
    benchmark = Benchmark("b", prompts, np.ones(90), np.arange(90) % 2 / 1, "s", "w")
    with pytest.raises(EvaluationError, match=r"come to 0 with all copies.*\(one has 30\)"):
        own_logs(benchmark, {"c": constant}, [25], draws=2)
    assert own_logs(benchmark, {"c": constant}, [35], draws=2).tested == {35: 60}


def test_every_item_is_drawn_equally_often() -> None:
    benchmark = benchmark_of(60)
    drawn = np.concatenate([draw_logs(benchmark, 20, draw).labelled for draw in range(300)])
    counts = np.bincount(drawn, minlength=60)
    # Binomial(300, 1/3): mean 100, standard deviation 8.2; five of them either way.
    assert counts.min() > 59 and counts.max() < 141


def test_knn_and_ridge_learn_from_the_labelled_items() -> None:
    benchmark = benchmark_of(400)
    need = needs(benchmark)
    embeddings = np.column_stack((np.cos(need), np.sin(need))).astype(np.float32)
    report = own_logs(benchmark, embedding_methods(embeddings), [200], draws=3)
    assert report.row("knn", 200).mean > 0.55
    assert report.row("ridge", 200).mean > 0.55
    # One draw, by hand: nothing of the rest but its embeddings is used.
    logs = draw_logs(benchmark, 200, 0)
    hidden = OwnLogs(logs.labelled, logs.rest[:1], logs.strong, logs.weak, logs.seed)
    for method in embedding_methods(embeddings).values():
        whole = np.asarray(method(logs))
        np.testing.assert_allclose(method(hidden), whole[:1], rtol=1e-5)


def test_labels_of_one_class_do_not_stop_the_protocol() -> None:
    n = 60
    benchmark = Benchmark("one", [str(i) for i in range(n)], np.ones(n), np.zeros(n), "s", "w")
    embeddings = np.random.default_rng(0).normal(size=(n, 3))
    report = own_logs(benchmark, embedding_methods(embeddings), [20], draws=3)
    # Strong wins every time: there is nothing to rank, and every order gains alike.
    assert [row.mean for row in report.rows] == pytest.approx([0.5] * 3)


def test_the_wide_interval_is_as_wide_as_benchmarks_differ() -> None:
    """One method on 80 benchmarks of one kind: its figures spread as the interval says."""
    means, halves = [], []
    for seed in range(80):
        benchmark = benchmark_of(240, seed=seed)
        need = needs(benchmark)
        method = {"m": lambda logs, need=need: need[logs.rest]}
        row = own_logs(benchmark, method, [20], draws=2, bootstraps=100).row("m", 20)
        means.append(row.mean)
        halves.append((row.prompts_ci[1] - row.prompts_ci[0]) / 2 / metrics.Z95)
    # The spread of 80 figures is known to about 8%; shared prompts do not all count twice.
    assert np.mean(halves) == pytest.approx(np.std(means, ddof=1), rel=0.25)


def test_progress_counts_the_fits() -> None:
    calls: list[tuple[int, int]] = []
    own_logs(
        benchmark_of(),
        {"c": constant},
        (20, 30),
        draws=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i, 8) for i in range(1, 9)]


def report_of(**more: Any) -> OwnLogsReport:
    return own_logs(benchmark_of(60), {"general": noise}, [20], draws=2, bootstraps=20, **more)


def test_json_is_strict() -> None:
    report = report_of()
    text = json.dumps(report.to_dict(), allow_nan=False)
    value = json.loads(text)
    assert value["tested"] == {"20": 40} and value["against"] == ["general", "prompt-length"]
    row = value["rows"][0]
    assert (row["method"], row["size"], len(row["apgr"])) == ("general", 20, 2)
    assert list(row["against"]["prompt-length"]) == ["mean", "ci", "prompts_ci", "worse"]


def no_scores(logs: OwnLogs) -> metrics.Floats:
    return np.full(len(logs.rest), np.nan)


def too_few(logs: OwnLogs) -> metrics.Floats:
    return np.zeros(1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": [19]}, "19 labelled items are too few; give at least 20"),
        ({"sizes": [60]}, "60 of the 60 items of bench leave none"),
        ({"sizes": [20, 600]}, "600 of the 60"),
        ({"sizes": []}, "at least one size"),
        ({"draws": 1}, "at least 2 draws"),
        ({"methods": {}}, "at least one"),
        ({"methods": {"prompt-length": noise}}, "always there"),
        ({"bootstraps": 1}, "at least 2"),
        ({"methods": {"bad": no_scores}}, "own logs of 20 from bench, draw 0: bad.*40 of them"),
        ({"methods": {"bad": too_few}}, "draw 0: bad.*each of 40 prompts"),
    ],
)
def test_what_cannot_be_measured_says_why(changes: dict[str, Any], says: str) -> None:
    options: dict[str, Any] = {"methods": {"noise": noise}, "sizes": [20], "draws": 2}
    with pytest.raises(EvaluationError, match=says):
        own_logs(benchmark_of(60), **{**options, **changes})


def test_a_benchmark_or_a_rest_without_a_gap_says_so() -> None:
    prompts = [str(i) for i in range(40)]
    worse = Benchmark("worse", prompts, np.zeros(40), np.ones(40), "big", "small")
    with pytest.raises(EvaluationError, match=r"worse \(big against small\).*swap"):
        own_logs(worse, {"c": constant}, [20], draws=2)
    # The one prompt that makes the gap is sometimes among the labelled.
    strong = np.zeros(40)
    strong[7] = 1.0
    rare = Benchmark("rare", prompts, strong, np.zeros(40), "big", "small")
    with pytest.raises(EvaluationError, match=r"own logs of 20 from rare, draw \d: the 20 prompts"):
        own_logs(rare, {"c": constant}, [20], draws=20)

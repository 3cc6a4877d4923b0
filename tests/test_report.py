"""From scores to the report: the results, the terminal, the JSON, the PNG and the HTML."""

import html.parser
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from thriftroute.errors import EvaluationError
from thriftroute.eval import metrics, printing, report, run
from thriftroute.eval.benchmarks import Benchmark

ODD_NAME = "<b>my & 'router'</b> $x_1$"


def benchmark_of(n: int = 80, name: str = "bench", seed: int = 0, **more: Any) -> Benchmark:
    rng = np.random.default_rng(seed)
    need = rng.random(n)
    return Benchmark(
        name=name,
        prompts=[f"{value:.6f}" for value in need],
        strong=np.ones(n),
        weak=(rng.random(n) > need).astype(float),
        strong_model="strong/model",
        weak_model="weak/model",
        **more,
    )


def good(prompts: list[str]) -> list[float]:
    return [float(prompt) for prompt in prompts]


def flat(prompts: list[str]) -> metrics.Floats:
    return np.full(len(prompts), 0.5)


def embed(prompts: list[str]) -> metrics.Floats:
    return np.array([[1.0, float(prompt)] for prompt in prompts])


@pytest.fixture(scope="module")
def measured() -> run.EvaluationReport:
    costs = {"strong_cost": np.full(80, 0.01), "weak_cost": np.full(80, 0.001)}
    benchmarks = [benchmark_of(**costs), benchmark_of(40, "../other set", 1, dropped={"bad": 3})]
    train = np.array([[1.0, 0.1], [1.0, 0.9]]), [0.0, 1.0]
    return run.evaluate(
        {ODD_NAME: good, "flat": flat}, benchmarks, embed=embed, train=train, seed=3, bootstraps=60
    )


def rows_of(measured: run.EvaluationReport, benchmark: str = "bench") -> dict[str, dict[str, Any]]:
    return {row["router"]: row for row in measured.results if row["benchmark"] == benchmark}


def test_every_router_and_every_baseline_is_there(measured: run.EvaluationReport) -> None:
    expected = {ODD_NAME, "flat", *run.NOTES}
    assert set(rows_of(measured)) == set(rows_of(measured, "../other set")) == expected
    kinds = {name: row["kind"] for name, row in rows_of(measured).items()}
    assert {name for name, kind in kinds.items() if kind == "router"} == {ODD_NAME, "flat"}
    promised = {"router", "benchmark", "n", "apgr", "apgr_ci", "cpt50", "cpt50_ci", "cpt80"}
    promised |= {"cpt80_ci", "strong_mean", "weak_mean", "auc", "ece", "seed", "vs_random"}
    for row in measured.results:
        assert promised <= set(row)
        assert (row["seed"], row["bootstraps"]) == (3, 60)


def test_the_figures_are_those_of_the_metrics(measured: run.EvaluationReport) -> None:
    benchmark = benchmark_of()
    row = rows_of(measured)[ODD_NAME]
    scores = good(benchmark.prompts)
    assert row["apgr"] == metrics.apgr(scores, benchmark.strong, benchmark.weak)
    assert row["cpt80"] == metrics.cpt(scores, benchmark.strong, benchmark.weak, 0.8)
    assert row["ece"] == metrics.ece(scores, benchmark.labels)
    assert row["apgr_ci"][0] < row["apgr"] < row["apgr_ci"][1]
    flat_row = rows_of(measured)["flat"]
    assert flat_row["apgr"] == pytest.approx(0.5)
    assert flat_row["apgr_ci"] == pytest.approx([0.5, 0.5])
    assert rows_of(measured)["random"]["apgr"] == 0.5
    others = [r["apgr"] for r in rows_of(measured).values() if not math.isnan(r["apgr"])]
    assert rows_of(measured)["oracle"]["apgr"] == max(others)
    # 1,000 requests at CPT(80%): the weak model's USD and 9 more for each share of strong calls.
    assert row["usd_per_1k"]["cpt80"] == pytest.approx(1 + 9 * row["cpt80"])
    assert rows_of(measured)["always-strong"]["usd_per_1k"] == {"always": pytest.approx(10.0)}
    assert rows_of(measured)["always-weak"]["reward"] == benchmark.weak.mean()


def test_comparisons_are_paired_and_signed(measured: run.EvaluationReport) -> None:
    pairs = {(c["benchmark"], c["a"], c["b"]): c for c in measured.comparisons}
    pair = pairs["bench", ODD_NAME, "flat"]
    rows = rows_of(measured)
    assert pair["apgr_difference"] == rows[ODD_NAME]["apgr"] - rows["flat"]["apgr"]
    # A flat router has 0.5 in every resample: the paired interval is the router's, shifted.
    shifted = [end - 0.5 for end in rows[ODD_NAME]["apgr_ci"]]
    assert pair["ci"] == pytest.approx(shifted)


def test_one_seed_gives_one_report() -> None:
    first, again = (
        run.evaluate({"good": good}, [benchmark_of()], seed=5, bootstraps=20).to_dict()
        for _ in range(2)
    )
    assert first == again
    other = run.evaluate({"good": good}, [benchmark_of()], seed=6, bootstraps=20).to_dict()
    assert first != other


def test_json_is_strict_and_nan_is_null(measured: run.EvaluationReport) -> None:
    value = json.loads(report.to_json(measured), parse_constant=pytest.fail)
    rows = {(row["router"], row["benchmark"]): row for row in value["results"]}
    assert rows["always-strong", "bench"]["apgr"] is None
    assert rows["always-strong", "bench"]["apgr_ci"] == [None, None]
    assert rows["prompt-length", "bench"]["ece"] is None
    assert rows[ODD_NAME, "bench"]["n"] == 80
    assert printing.json_safe({1: (np.int64(2), np.bool_(True), np.inf)}) == {"1": [2, True, None]}


@pytest.mark.parametrize(("width", "auc"), [(80, False), (140, True)])
def test_the_table_fits_the_terminal_and_shows_names_as_they_are(
    measured: run.EvaluationReport, width: int, auc: bool
) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    report.print_report(measured, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert ("AUC" in text) is auc
    assert "knn-in-domain: has seen labels of this very benchmark" in text
    assert "n = 80" in text and "left out: 3 bad" in text and "seed 3" in text
    if auc:
        assert ODD_NAME in text


class Page(html.parser.HTMLParser):
    """Collects tags, addresses, and text; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_folder_holds_figures_json_and_a_page_that_needs_nothing_else(
    measured: run.EvaluationReport, tmp_path: Path
) -> None:
    paths = report.save(measured, tmp_path / "new" / "folder")
    assert set(paths) == {"bench.png", "other_set.png", "report.html", "results.json"}
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(paths)
    for name in ("bench.png", "other_set.png"):
        body = paths[name].read_bytes()
        assert body.startswith(b"\x89PNG\r\n") and len(body) > 20_000
    page = Page(paths["report.html"].read_text(encoding="utf-8"))
    assert page.tags.count("img") == 2 and not {"script", "link", "b"} & set(page.tags)
    assert len(page.links) == 2 and all(link.startswith("data:image/png;") for link in page.links)
    assert ODD_NAME in page.text and "n = 80" in page.text and "seed 3" in page.text
    saved = json.loads(paths["results.json"].read_text(encoding="utf-8"))
    assert saved["results"] == json.loads(report.to_json(measured))["results"]
    assert len(saved["curves"]["bench"][ODD_NAME]["share"]) == 101


def test_without_matplotlib_the_page_says_why_it_has_no_figure(
    measured: run.EvaluationReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    paths = report.save(measured, tmp_path)
    assert set(paths) == {"report.html", "results.json"}
    page = Page(paths["report.html"].read_text(encoding="utf-8"))
    assert "img" not in page.tags and "pip install 'thriftroute[eval]'" in page.text


def test_curves_begin_and_end_at_the_two_models(measured: run.EvaluationReport) -> None:
    for curve in measured.curves["bench"].values():
        weak, strong = rows_of(measured)["flat"]["weak_mean"], 1.0
        for line in ("reward", "low", "high"):
            assert (curve[line][0], curve[line][-1]) == pytest.approx((weak, strong))


def test_copies_of_one_prompt_leave_the_in_domain_baseline_out() -> None:
    copies = Benchmark("copies", ["0.5"] * 20, np.ones(20), np.arange(20) % 2 / 1, "s", "w")
    measured = run.evaluate({"good": good}, [copies], embed=embed, bootstraps=5)
    assert "knn-in-domain" not in rows_of(measured, "copies")
    assert rows_of(measured, "copies")["good"]["apgr"] == pytest.approx(0.5)


def test_figures_can_be_drawn_without_any_router() -> None:
    only_baselines = run.evaluate({}, [benchmark_of()], bootstraps=5)
    assert {row["kind"] for row in only_baselines.results} == {"baseline"}
    page = report.to_html(only_baselines, {"bench": b""})
    assert "Paired differences" not in page


def test_names_of_benchmarks_never_leave_the_folder() -> None:
    names: dict[str, bytes] = {}
    for name in ("../a", "a", "a", "///", "..", "x" * 300):
        names[report.file_name(name, names)] = b""
    assert list(names)[:5] == ["a.png", "a-2.png", "a-3.png", "benchmark.png", "benchmark-2.png"]
    assert len(list(names)[5]) < 100


def broken(prompts: list[str]) -> metrics.Floats:
    return np.full(len(prompts), np.nan)


def short(prompts: list[str]) -> list[float]:
    return [0.5]


@pytest.mark.parametrize(
    ("routers", "benchmarks", "says"),
    [
        ({"r": broken}, [benchmark_of()], "bench: r.*not finite"),
        ({"r": short}, [benchmark_of()], "one entry for each"),
        ({"oracle": good}, [benchmark_of()], "rename"),
        ({"r": good}, [], "at least one"),
        ({"r": good}, [benchmark_of(), benchmark_of()], "own name"),
        (
            {"r": good},
            [Benchmark("x", ["a"], np.zeros(1), np.ones(1), "big", "small")],
            "big against small.*swap",
        ),
    ],
)
def test_what_cannot_be_evaluated_says_why(
    routers: dict[str, run.Score], benchmarks: list[Benchmark], says: str
) -> None:
    with pytest.raises(EvaluationError, match=says):
        run.evaluate(routers, benchmarks, bootstraps=5)


def test_progress_goes_to_stderr_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = run.evaluate({"good": good}, [benchmark_of()], bootstraps=5, progress=False)
    loud = run.evaluate({"good": good}, [benchmark_of()], bootstraps=5, progress=True)
    assert quiet.to_dict() == loud.to_dict()
    assert capsys.readouterr().out == ""

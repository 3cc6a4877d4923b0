"""The report: one page, well formed, with what was measured, and nothing from the data as HTML."""

import dataclasses
import html
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.eval.audit import groups, page
from thriftroute.eval.audit.command import Audited, run_audit
from thriftroute.eval.audit.verdict import AuditSettings
from thriftroute.eval.command import Target
from typer.testing import CliRunner

from .helpers.auditing import write
from .helpers.browser import drawn

VOID = {"meta", "link", "br", "line", "circle", "polyline", "polygon"}
BIG, SMALL = ("big",), ("small",)
CSS = (page.TEMPLATE.parents[1] / "page.css").read_text(encoding="utf-8")


class Checked(HTMLParser):
    """Raises where tags do not match; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def audited(bundle: Path, data: Path, **wish: Any) -> Audited:
    return run_audit(str(bundle), Target((), str(data), BIG, SMALL), AuditSettings(**wish))


@pytest.fixture
def routed(tiny_bundle: Path, tmp_path: Path) -> Audited:
    data = write(tmp_path / "labels.jsonl", 400, costs=True, tasks=True)
    return audited(tiny_bundle, data)


# The page


def test_the_page_tells_what_the_verdict_says(routed: Audited) -> None:
    found = Checked(page.to_html(routed))
    verdict = routed.verdict
    assert verdict.verdict == "route"
    for said in (
        "Route",
        f"{100 * verdict.saving:.1f}%",
        f"{100 * verdict.quality:.1f}%",
        f"{100 * verdict.quality_ci[0]:.1f}% to {100 * verdict.quality_ci[1]:.1f}%",
        "Money, for 1,000 requests",
        "$10.00",
        "By task",
        "<proofs>",
        "greetings",
        "Examples",
        "prove the theorem",
        "What to do next",
        "200 chose, 200 measured",
        "seed 0",
    ):
        assert said in found.text, said


def test_the_page_needs_nothing_from_outside_and_runs_nothing(routed: Audited) -> None:
    found = Checked(page.to_html(routed))
    assert {tag for tag, _ in found.seen}.isdisjoint({"script", "img", "iframe", "object", "form"})
    for _, attributes in found.seen:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "data:,") == "data:,"
        assert "src" not in attributes
    assert "http" not in CSS and "url(" not in CSS and "@import" not in CSS
    policy = next(a["content"] for _, a in found.seen if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_light_and_dark_name_the_same_colours() -> None:
    light, dark = (
        set(re.findall(r"(--[a-z-]+):", part)) for part in CSS.split("prefers-color-scheme: dark")
    )
    assert dark <= light
    assert light - dark == set()
    used = set(re.findall(r"var\((--[a-z-]+)\)", CSS))
    assert used <= light


def test_classes_of_the_figures_are_in_the_style(routed: Audited) -> None:
    found = Checked(page.to_html(routed))
    used = {name for _, a in found.seen for name in a.get("class", "").split()}
    plain = {"chosen", "band", "grid", "whisker", "wanted", "random", "router", "whiskers"}
    assert plain <= used
    unstyled = {name for name in used if f".{name}" not in CSS}
    assert unstyled <= {"label-more"}


def test_every_figure_has_words_for_who_does_not_see_it(routed: Audited) -> None:
    figures = [a for tag, a in Checked(page.to_html(routed)).seen if tag == "svg"]
    assert figures
    for attributes in figures:
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_text_of_the_data_is_never_html(routed: Audited) -> None:
    evil = '</p><script>alert("x")</script><b onclick=1>&amp;'
    n = routed.benchmark.n
    benchmark = dataclasses.replace(
        routed.benchmark, prompts=[evil] * n, strong_model=evil, weak_model=evil, name=evil
    )
    bad = dataclasses.replace(routed, benchmark=benchmark, tasks=[evil, "b"] * (n // 2))
    found = Checked(page.to_html(bad))
    assert {"script", "b"} & {tag for tag, _ in found.seen} <= {"b"}
    assert all("onclick" not in attributes for _, attributes in found.seen)
    assert evil in found.text


def test_no_script_of_the_data_runs_in_a_browser(routed: Audited, tmp_path: Path) -> None:
    evil = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    n = routed.benchmark.n
    benchmark = dataclasses.replace(
        routed.benchmark, prompts=[evil] * n, strong_model=evil, weak_model=evil, name=evil
    )
    bad = dataclasses.replace(routed, benchmark=benchmark, tasks=[evil, "b"] * (n // 2))
    path = tmp_path / "report.html"
    path.write_text(page.to_html(bad), encoding="utf-8")
    shown = drawn(path.as_uri(), tmp_path / "browser")
    title = re.search(r"<title>(.*?)</title>", shown, re.S)
    assert title is not None
    assert title.group(1).strip() != "ran"
    assert "<script" not in shown
    assert "<img" not in shown
    assert "document.title" in shown  # it was drawn, as text


def test_examples_are_of_the_measured_half_and_can_be_left_out(routed: Audited) -> None:
    assert "prove the theorem" not in page.to_html(routed, examples=False)
    shown = re.findall(r"<li><p>(.*?)</p>", page.to_html(routed))
    assert 4 <= len(shown) <= 12
    from thriftroute.eval.audit.measure import halves

    held = {routed.benchmark.prompts[i] for i in halves(400, 0)[1]}
    assert set(shown) <= held


def test_long_prompts_are_cut(routed: Audited) -> None:
    n = routed.benchmark.n
    long = dataclasses.replace(routed.benchmark, prompts=["word " * 500] * n)
    shown = re.findall(
        r"<li><p>(.*?)</p>", page.to_html(dataclasses.replace(routed, benchmark=long))
    )
    assert all(len(text) <= page.EXAMPLE_CHARACTERS and text.endswith("…") for text in shown)


@pytest.mark.parametrize(
    ("n", "options", "answer"),
    [
        (700, {"informed": False, "weak": 0.89}, "weak-only"),
        (1000, {"informed": False}, "strong-only"),
        (40, {}, "label-more"),
        (8, {}, "label-more"),
    ],
)
def test_every_verdict_has_its_page(
    n: int, options: dict[str, Any], answer: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    one = audited(tiny_bundle, write(tmp_path / "labels.jsonl", n, **options))
    assert one.verdict.verdict == answer
    found = Checked(page.to_html(one))
    assert page.HEADS[answer] in found.text
    assert "Money" not in found.text
    assert "nan" not in found.text.lower()
    assert "What to do next" in found.text


def test_a_warning_stands_at_the_top(routed: Audited) -> None:
    verdict = dataclasses.replace(routed.verdict, warnings=("mind <this>",))
    text = Checked(page.to_html(dataclasses.replace(routed, verdict=verdict))).text
    assert text.index("mind <this>.") < text.index("Saving")


# What to do next


def test_commands_of_the_steps_are_real(routed: Audited) -> None:
    """Every option that a step names is one of its command."""
    verdicts = [
        routed.verdict,
        dataclasses.replace(routed.verdict, warnings=("knn keeps more quality than the router",)),
        dataclasses.replace(routed.verdict, verdict="weak-only"),
        dataclasses.replace(routed.verdict, verdict="label-more", needed_n=900),
        *(
            dataclasses.replace(routed.verdict, verdict="strong-only", reason=reason)
            for reason in ("no-better-than-random", "too-much-quality-lost", "weak-not-cheaper")
        ),
    ]
    commands: set[str] = set()
    for verdict in verdicts:
        told = page.to_html(dataclasses.replace(routed, verdict=verdict))
        assert re.search(r"<ol>\s*<li>", told)
        commands |= set(map(html.unescape, re.findall(r"<pre><code>(.*?)</code></pre>", told)))
    assert {command.split()[1] for command in commands} >= {"serve", "calibrate", "train", "label"}
    for command in commands:
        _, name, *words = shlex.split(command)
        told = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        for word in words:
            if word.startswith("--"):
                assert word in told, (command, word)


# Groups


def test_small_tasks_are_one_group() -> None:
    tasks = [f"t{i}" for i in range(15) for _ in range(20 - i)]
    found = groups.by_task(tasks)
    assert found.names[0] == "t0"
    assert found.names[-1] == "6 smaller tasks"
    assert len(found.names) == groups.MOST_GROUPS
    assert np.bincount(found.member).sum() == len(tasks)
    assert groups.by_task(["b", "a", "a"]).names == ["a", "b"]


def test_clusters_find_what_lies_apart_and_name_it() -> None:
    rng = np.random.default_rng(0)
    prompts, rows = [], []
    for i in range(90):
        kind = i % 3 == 0
        prompts.append(("solve this integral" if kind else "translate this sentence") + f" {i}")
        rows.append(rng.normal(5.0 if kind else -5.0, 0.1, 4) * (1, 1, -1, 1))
    found = groups.by_cluster(prompts, np.array(rows))
    assert len(found.names) == 2
    assert "translate" in found.names[0] and "integral" in found.names[1]
    assert found.member.tolist() == [1 if i % 3 == 0 else 0 for i in range(90)]
    assert all(name.strip("“”") in prompts for name in found.names)
    words = groups.by_cluster(prompts, np.array(rows), by_prompts=False).names
    assert "translate" in words[0] and not set(words) & set(prompts)
    assert not groups.by_cluster(prompts[:40], np.array(rows[:40])).names
    same = groups.by_cluster(["one"] * 200, np.ones((200, 3)))
    assert len(same.names) == 1


def test_clusters_stand_in_for_tasks_on_the_page(tiny_bundle: Path, tmp_path: Path) -> None:
    one = audited(tiny_bundle, write(tmp_path / "labels.jsonl", 300))
    assert one.tasks is None
    text = Checked(page.to_html(one)).text
    assert "By kind of prompt" in text
    assert "theorem" in text


# Figures


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.761, 1.004), (0.98, 1.0), (0, 120)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = page.ticks(low, high, 6)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert page.ticks(1.0, 1.0, 6) == [1.0]


def test_a_scale_maps_its_ends_and_keeps_within_them() -> None:
    scale = page.Scale(0.5, 1.0, 100, 0)
    assert (scale(0.5), scale(1.0), scale(0.75)) == (100, 0, 50)
    assert (scale(-1), scale(2)) == (100, 0)


def test_the_weak_model_has_one_figure(routed: Audited) -> None:
    weak = routed.verdict.baselines["always-weak"].quality
    assert abs(float(routed.verdict.drawn.quality[0]) - weak) < 1e-9
    found = Checked(page.to_html(routed)).text
    assert f"Quality of the weak model alone {weak:.1%}" in found
    assert f"Weak model alone {weak:.1%}" in found


def test_a_curve_without_intervals_is_drawn(routed: Audited) -> None:
    nan = np.full(routed.verdict.curve.low.shape, np.nan)
    bare = dataclasses.replace(routed.verdict.drawn, low=nan, high=nan)
    verdict = dataclasses.replace(routed.verdict, drawn=bare)
    found = page.to_html(dataclasses.replace(routed, verdict=verdict))
    Checked(found)
    assert '<polyline class="router"' in found
    assert "nan" not in found and '<polygon class="band"' not in found


def test_bars_are_as_wide_as_their_part_of_the_longest(routed: Audited) -> None:
    usd = {"always-strong": 2.0, "always-weak": float("nan")}
    baselines = {
        name: dataclasses.replace(option, usd_per_1k=usd.get(name, option.usd_per_1k))
        for name, option in routed.verdict.baselines.items()
    }
    assert routed.verdict.candidate is not None
    candidate = dataclasses.replace(routed.verdict.candidate, usd_per_1k=0.5)
    verdict = dataclasses.replace(routed.verdict, baselines=baselines, candidate=candidate)
    found = page.to_html(dataclasses.replace(routed, verdict=verdict))
    assert re.findall(r"width:([\d.]+)%", found) == ["100.0", "25.0"]


def test_of_so_few_labels_nothing_is_said_that_was_not_done(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    found = page.to_html(audited(tiny_bundle, write(tmp_path / "labels.jsonl", 8)))
    assert "no threshold was chosen" in found
    assert "looked best there" not in found
    # The command is one that can be run, once the words in capitals are filled in.
    assert "--judge JUDGE --max-usd USD" in found


def test_where_the_strong_model_earns_nothing_there_is_no_curve(routed: Audited) -> None:
    none = np.full(routed.verdict.curve.quality.shape, np.nan)
    verdict = dataclasses.replace(
        routed.verdict, drawn=dataclasses.replace(routed.verdict.drawn, quality=none)
    )
    found = page.to_html(dataclasses.replace(routed, verdict=verdict))
    assert "Quality against the share of strong calls" not in found

"""Whether a second look pays: what `audit` and `report` say of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.eval.look_gain import RATIOS, look_gain
from thriftroute.router.bundle import Bundle
from thriftroute.router.second_look import SecondLook
from typer.testing import CliRunner

from .helpers.looking import STRONG, WEAK, fit, write_rows

PAIR = ("--strong", STRONG, "--weak", WEAK)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look")
    fit(write_rows(folder / "rows.jsonl", 200, tells=True), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("labels")
    return write_rows(folder / "labels.jsonl", 250, tells=True, start=700)


def run(*args: object) -> str:
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.stdout.split())


def test_the_audit_says_that_a_look_pays_and_from_which_price_on(
    looking: Path, labels: str
) -> None:
    args = ("audit", "--router", looking, "--data", labels, *PAIR)
    found = json.loads(run(*args, "--json"))["second_look"]
    assert found["pays"] is True and found["n"] == 250 and found["ratio"] == 20
    assert found["difference"] > 0.15 and found["difference_ci"][0] > 0
    low, high = found["starts_ci"]
    assert low <= found["starts"] <= high <= 20 and {low, high, found["starts"]} <= set(RATIOS)
    assert "second look: it pays at a price ratio of 20" in run(*args)


def test_the_report_shows_both_curves(looking: Path, labels: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    run("report", "--router", looking, "--data", labels, *PAIR, "--out", out)
    page = out.read_text(encoding="utf-8")
    assert "A second look: quality against cost" in page
    assert page.count('<polyline class="router alone"') == 2  # wide and narrow
    assert "It pays at a price ratio of 20" in page


def test_a_router_without_a_look_is_told_what_the_answers_are_good_for(labels: str) -> None:
    found = json.loads(run("audit", "--router", "fast", "--data", labels, *PAIR, "--json"))
    assert found["second_look"] is None
    assert any("`train second-look`" in warning for warning in found["warnings"])


def test_rows_without_answers_say_nothing_of_a_look(
    looking: Path, labels: str, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in Path(labels).read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k != "answer"} for row in rows]
    bare.write_text("".join(json.dumps(row) + "\n" for row in kept))
    args = ("--data", bare, *PAIR, "--json")
    warnings = json.loads(run("audit", "--router", "fast", *args))["warnings"]
    assert not any("second look" in warning for warning in warnings)
    found = json.loads(run("audit", "--router", looking, *args))
    assert found["second_look"] is None
    assert any("second look was not measured" in w for w in found["warnings"])


def test_where_the_look_tells_nothing_there_is_nothing_to_gain(tmp_path: Path) -> None:
    fit(write_rows(tmp_path / "noise.jsonl", 200, tells=False), tmp_path / "noise")
    look = SecondLook.of(Bundle.open(tmp_path / "noise"))
    assert look is not None
    rng = np.random.default_rng(0)
    scores, looks, weak = rng.random(300), rng.random(300), (rng.random(300) < 0.6).astype(float)
    found = look_gain(look, scores, looks, (np.ones(300), weak), 20.0)
    assert found is not None and not found.pays and "nothing to gain" in found.why
    assert found.to_dict()["starts"] is None
    assert found.prompt[0] == pytest.approx((0.05, weak.mean()))
    assert found.look[-1] == pytest.approx((1.0, 1.0))
    assert look_gain(look, scores, looks, (weak, np.ones(300)), 20.0) is None
    assert look_gain(look, scores, looks, (np.ones(300), weak), 0.9) is None

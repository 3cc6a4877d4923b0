"""What the state of an agent's loop adds to its prompt's score: trained, kept, and used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.errors import BundleFormatError, TrainingError
from thriftroute.router.bundle import Bundle, write_bundle
from thriftroute.router.routers import BundleRouter, load_router
from thriftroute.router.step_head import FEATURES, STEP, StepHead
from thriftroute.serve.policy.course import features_of
from thriftroute.tests.helpers.asking import asked, in_tool_calls, pipeline
from thriftroute.training.step_head import train_step_head
from typer.testing import CliRunner

FINE = dict.fromkeys(FEATURES, 1.0) | {"failed": 0.0, "repeated": 0.0}


def rows(n: int, seed: int = 0, *, tells: bool = True) -> list[dict[str, Any]]:
    """Rated steps, as `records export` has them: those after failures fall short, if it `tells`."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        failed = int(draw.integers(0, 3))
        short = draw.random() < (0.1 + 0.4 * failed if tells else 0.5)
        step = f"messages {draw.integers(2, 60)}, tool_results 5, failed {failed}, repeated 0, "
        steps = [["choice", "weak: x"], ["step", f"{step}last_result {draw.integers(0, 9000)}"]]
        score = float(draw.uniform(0.1, 0.9))
        told = {"model": "weak", "feedback": float(not short)}
        found.append({**told, "score": score, "steps": steps})
    return found


def written(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base() -> Bundle:
    router = load_router("mf")
    assert isinstance(router, BundleRouter)
    return router.scorer.bundle


def test_failures_raise_the_score_where_rated_steps_say_so(base: Bundle, tmp_path: Path) -> None:
    others = [{**row, "model": "strong"} for row in rows(20)]
    unrated = [{**row, "feedback": None} for row in rows(20)]
    plain = [{**row, "steps": [["choice", "weak"]]} for row in rows(20)]
    data = written(tmp_path / "rated.jsonl", [*rows(400), *others, *unrated, *plain])
    trained = train_step_head([data], "weak", base, tmp_path / "out", overwrite=False)
    assert trained.tells
    assert trained.facts["n"] == 400
    bundle = Bundle.open(tmp_path / "out")
    head = StepHead.of(bundle)
    assert head == trained
    assert head.moved(0.5, {**FINE, "failed": 3.0}) > head.moved(0.5, FINE) + 0.1
    assert StepHead.of(base) is None
    # The server moves the score of an agent's step, and no other.
    router = load_router(str(tmp_path / "out"))
    request = in_tool_calls()
    planner = pipeline(by=router, router={"switch": "free"})
    alone = pipeline(by=load_router("mf"), router={"switch": "free"})
    told = planner.plan(request)
    raw = alone.plan(request).score
    assert raw is not None
    assert told.score == pytest.approx(head.moved(raw, features_of(request)))
    assert ("prompt score", f"{raw:.6g}") in told.steps
    assert planner.plan(asked()).score == alone.plan(asked()).score


def test_where_the_steps_say_nothing_the_score_stays(base: Bundle, tmp_path: Path) -> None:
    data = written(tmp_path / "rated.jsonl", rows(200, tells=False))
    head = train_step_head([data], "weak", base, tmp_path / "out", overwrite=False)
    assert not head.tells
    assert head.moved(0.3, {**FINE, "failed": 9.0}) == 0.3


def test_too_few_are_an_error_and_so_are_other_files(base: Bundle, tmp_path: Path) -> None:
    data = written(tmp_path / "rated.jsonl", rows(10))
    with pytest.raises(TrainingError, match="10 rated steps of 'weak'"):
        train_step_head([data], "weak", base, tmp_path / "out", overwrite=False)
    fields = {
        name: getattr(base.manifest, name)
        for name in base.manifest.__slots__
        if name not in ("files", "format", "written_by")
    }
    files: dict[str, Any] = {name: base.file(name) for name in base.manifest.files}
    good = {"version": 1, **{n: [1.0] * 5 for n in ("center", "scale", "weights")}, "tells": True}
    for bad in ({}, {"version": 2}, {**good, "scale": [0.0] * 5}, {**good, "center": [1.0]}):
        content = {**files, STEP: json.dumps(bad).encode()}
        bundle = write_bundle(tmp_path / "bad", files=content, overwrite=True, **fields)
        with pytest.raises(BundleFormatError, match=r"step\.json is no step head"):
            StepHead.of(bundle)


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    data, out = written(tmp_path / "rated.jsonl", rows(200)), tmp_path / "steps"
    names = ["--strong", "strong", "--weak", "weak", "--router", "mf", "--out", str(out)]
    result = CliRunner().invoke(app, ["train", "step", "--data", data, *names])
    assert result.exit_code == 0
    assert "of 200 rated steps" in " ".join(result.output.split())
    assert STEP in Bundle.open(out).manifest.files
    refused = CliRunner().invoke(app, ["train", "step", "--data", data, *names, "--pattern", "(x)"])
    assert refused.exit_code == 2 and "--pattern: only for train second-look" in refused.output

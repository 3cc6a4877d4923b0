"""A sketch of prompts: what it knows of others that are held against it."""

import json
from pathlib import Path

import pytest
from thriftroute.data.sketch import DIGITS, KEPT, seen, sketch


def numbered(start: int, stop: int) -> list[str]:
    return [f"Question {i}" for i in range(start, stop)]


def test_of_a_small_set_every_prompt_is_known() -> None:
    kept = sketch(numbered(0, 300))
    assert len(kept) == 300
    assert kept == sorted(kept)
    assert {len(key) for key in kept} == {DIGITS}
    found = seen(kept, numbered(200, 400))
    assert (found.known, found.looked_at, found.whole) == (100, 200, True)
    assert found.share == 0.5


def test_case_and_white_space_make_no_other_prompt() -> None:
    assert seen(sketch(["What is it?", "what  is IT?"]), [" WHAT is it?\n"]).share == 1.0


def test_of_a_large_set_the_share_is_estimated() -> None:
    kept = sketch(numbered(0, 5000))
    assert len(kept) == KEPT
    half = seen(kept, numbered(3000, 7000))
    assert not half.whole
    assert 0.4 < half.share < 0.6
    assert 300 < half.looked_at < 500
    assert seen(kept, numbered(5000, 9000)).known == 0


def test_nothing_is_known_of_nothing() -> None:
    assert sketch([]) == []
    assert seen([], ["q"]).share == 0.0
    assert seen(sketch(["q"]), []).share == 0.0


def test_what_is_trained_on_is_sketched(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from thriftroute.router.scorer import Scorer
    from thriftroute.training.prepare import prepare
    from thriftroute.training.progress import Progress
    from thriftroute.training.settings import TrainSettings

    path = tmp_path / "rows.jsonl"
    pair = {"model_a": "big", "model_b": "small", "outcome": "a"}
    path.write_text("".join(json.dumps({"prompt": p, **pair}) + "\n" for p in numbered(0, 30)))
    request = TrainSettings("mf", [str(path)], ("big",), ("small",), tmp_path / "out")
    facts = prepare(request, Scorer.load(tiny_bundle), Progress()).facts
    assert facts["sketch"].split() == sketch(numbered(0, 30))

"""Scores that are cached on disk: the same bits as without a cache, and never another model's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thriftroute.eval.scored import CachedScorer
from thriftroute.router.bundle import Bundle, update_manifest
from thriftroute.router.scorer import Scorer

PROMPTS: list[Any] = [
    "prove the hard theorem",
    "hello",
    "what is 2 + 2",
    "",
    "证明 😀",
    [{"role": "system", "content": "easy"}, {"role": "user", "content": "prove"}],
    "hello",
]

BundleMaker = Callable[..., Bundle]


def vectors(folder: Path) -> list[Path]:
    return sorted((folder / "scores").glob("*.vec"))


def test_the_same_scores_to_the_last_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(tiny_bundle)
    plain = scorer.scores(PROMPTS)
    for _ in range(2):  # computed, then from the disk
        cached = CachedScorer(scorer, tmp_path / "cache").scores(PROMPTS)
        assert cached.dtype == np.float64
        np.testing.assert_array_equal(cached, plain)


def test_the_same_embeddings_to_the_last_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(tiny_bundle)
    plain = scorer.embeddings(PROMPTS)
    for _ in range(2):
        cached = CachedScorer(scorer, tmp_path / "cache").embeddings(PROMPTS)
        assert cached.dtype == np.float32
        np.testing.assert_array_equal(cached, plain)


def test_scores_and_embeddings_share_one_run_and_repeats_none(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    cached = CachedScorer(Scorer.load(tiny_bundle), tmp_path)
    cached.scores(PROMPTS)
    size = vectors(tmp_path)[0].stat().st_size
    assert size == 6 * (16 + 4 * (3 + 4))  # a key and 3 qualities and 4 dimensions a prompt
    cached.embeddings(PROMPTS)
    CachedScorer(Scorer.load(tiny_bundle), tmp_path).scores(PROMPTS)
    assert [path.stat().st_size for path in vectors(tmp_path)] == [size]


def test_no_text_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    CachedScorer(Scorer.load(tiny_bundle), tmp_path).scores(PROMPTS)
    body = vectors(tmp_path)[0].read_bytes()
    assert b"theorem" not in body and b"hello" not in body


def test_no_prompts_give_no_scores(tiny_bundle: Path, tmp_path: Path) -> None:
    cached = CachedScorer(Scorer.load(tiny_bundle), tmp_path)
    assert cached.scores([]).shape == (0,)
    assert cached.embeddings([]).shape == (0, 4)


def test_a_new_bundle_under_an_old_name_never_finds_old_scores(
    make_bundle: BundleMaker, tmp_path: Path
) -> None:
    old = make_bundle("router")
    cache = tmp_path / "cache"
    before = CachedScorer(Scorer.load(old), cache).scores(PROMPTS)
    folder = old.path
    folder.rename(tmp_path / "away")
    new = make_bundle("router", models=["strong-1", "weak-1"], max_tokens=24)
    assert new.path == folder
    scorer = Scorer.load(new)
    np.testing.assert_array_equal(
        CachedScorer(scorer, cache).scores(PROMPTS), scorer.scores(PROMPTS)
    )
    assert len(vectors(cache)) == 2
    # The old one, found under another name, still has its own.
    again = CachedScorer(Scorer.load(tmp_path / "away"), cache)
    np.testing.assert_array_equal(again.scores(PROMPTS), before)
    assert len(vectors(cache)) == 2


def test_a_new_calibration_or_pair_uses_the_same_qualities(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    scorer = Scorer.load(tiny_bundle)
    CachedScorer(scorer, tmp_path).scores(PROMPTS)
    update_manifest(scorer.bundle, calibration={"method": "platt", "a": 0.5, "b": 0.3})
    moved = Scorer.load(tiny_bundle)
    found = CachedScorer(moved, tmp_path).scores(PROMPTS)
    np.testing.assert_array_equal(found, moved.scores(PROMPTS))
    assert not np.array_equal(found, scorer.scores(PROMPTS))
    turned = Scorer.load(tiny_bundle, strong="weak-1", weak="strong-1")
    np.testing.assert_array_equal(
        CachedScorer(turned, tmp_path).scores(PROMPTS), turned.scores(PROMPTS)
    )
    assert len(vectors(tmp_path)) == 1


def test_another_context_rule_has_scores_of_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    found = []
    for context in ("last", "full"):
        scorer = Scorer.load(tiny_bundle, context=context)
        found.append(CachedScorer(scorer, tmp_path).scores(PROMPTS))
        np.testing.assert_array_equal(found[-1], scorer.scores(PROMPTS))
    assert found[0][5] != found[1][5]


def test_a_torn_cache_is_mended(tiny_bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(tiny_bundle)
    CachedScorer(scorer, tmp_path).scores(PROMPTS)
    path = vectors(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-7])
    np.testing.assert_array_equal(
        CachedScorer(scorer, tmp_path).scores(PROMPTS), scorer.scores(PROMPTS)
    )


def test_the_cache_is_where_the_environment_says(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path / "elsewhere"))
    CachedScorer(Scorer.load(tiny_bundle)).scores(["hello"])
    assert len(vectors(tmp_path / "elsewhere")) == 1

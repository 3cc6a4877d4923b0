"""The cache of vectors on disk: content keys, torn ends, several writers."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thriftroute.data.vectors import KEY_BYTES, VectorCache, content_key
from thriftroute.files import cache_folder

DIM = 3
RECORD = KEY_BYTES + 4 * DIM


def keys(*names: str) -> list[bytes]:
    return [content_key(name) for name in names]


def vectors(*firsts: float) -> npt.NDArray[np.float32]:
    return np.array([[first, first + 0.25, -first] for first in firsts], dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path, "model", DIM)


def reopen(cache: VectorCache) -> VectorCache:
    return VectorCache(cache.path.parent, "model", DIM)


class TestContentKey:
    def test_pinned(self) -> None:
        # A changed key would orphan every vector that users have.
        assert content_key("hello") == hashlib.sha256(b"shello").digest()[:16]
        expected = hashlib.sha256(b'm[{"content": "hello", "role": "user"}]').digest()[:16]
        assert content_key([{"role": "user", "content": "hello"}]) == expected

    def test_text_and_messages_do_not_collide(self) -> None:
        messages = [{"role": "user", "content": "hello"}]
        text = '[{"content": "hello", "role": "user"}]'
        similar: list[Any] = ["hello", messages, text, "m" + text, "s" + text, "", []]
        assert len({content_key(item) for item in similar}) == len(similar)

    def test_order_of_fields_does_not_count(self) -> None:
        one = [{"role": "user", "content": "x"}]
        assert content_key(one) == content_key([{"content": "x", "role": "user"}])

    def test_order_and_number_of_messages_count(self) -> None:
        a, b = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
        made = {content_key(m) for m in ([a], [b], [a, b], [b, a], [a, a, b])}
        assert len(made) == 5

    @pytest.mark.parametrize("text", ["", "\x00", "\ud83d", "请", "x" * 1_000_000])
    def test_any_text_has_a_key(self, text: str) -> None:
        assert len(content_key(text)) == KEY_BYTES
        assert content_key(text) != content_key(text + " ")
        assert len(content_key([{"role": "user", "content": text}])) == KEY_BYTES


class TestFolder:
    def test_environment_decides(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("THRIFTROUTE_CACHE", str(tmp_path / "own"))
        assert cache_folder() == tmp_path / "own"
        monkeypatch.delenv("THRIFTROUTE_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "thriftroute"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == Path.home() / ".cache" / "thriftroute"

    def test_nothing_is_written_before_the_first_vector(self, tmp_path: Path) -> None:
        cache = VectorCache(tmp_path / "deep" / "cache", "model", DIM)
        cache.add([], np.empty((0, DIM), np.float32))
        assert list(tmp_path.iterdir()) == []
        cache.add(keys("a"), vectors(1))
        assert cache.path == tmp_path / "deep" / "cache" / "model.vec"
        assert cache.path.stat().st_size == RECORD

    @pytest.mark.skipif(os.name == "nt", reason="file modes are those of POSIX")
    def test_others_cannot_read_it(self, cache: VectorCache) -> None:
        cache.add(keys("a"), vectors(1))
        assert cache.path.stat().st_mode & 0o077 == 0


class TestCache:
    def test_round_trip(self, cache: VectorCache) -> None:
        cache.add(keys("a", "b"), vectors(1, 2))
        cache.add(keys("c"), vectors(3))
        for seen in (cache, reopen(cache)):
            assert len(seen) == 3
            assert keys("b")[0] in seen
            assert keys("x")[0] not in seen
            got = seen.get(keys("c", "a", "c"))
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, vectors(3, 1, 3))

    def test_empty_request(self, cache: VectorCache) -> None:
        assert cache.get([]).shape == (0, DIM)

    def test_unknown_key(self, cache: VectorCache) -> None:
        cache.add(keys("a"), vectors(1))
        with pytest.raises(KeyError):
            cache.get(keys("a", "b"))

    def test_same_key_again_counts_once_and_the_last_one_wins(self, cache: VectorCache) -> None:
        cache.add(keys("a", "b"), vectors(1, 2))
        cache.add(keys("a"), vectors(9))
        for seen in (cache, reopen(cache)):
            assert len(seen) == 2
            np.testing.assert_array_equal(seen.get(keys("a", "b")), vectors(9, 2))

    def test_other_float_types_are_stored_as_float32(self, cache: VectorCache) -> None:
        cache.add(keys("a"), vectors(1).astype(np.float64))
        for seen in (cache, reopen(cache)):
            assert seen.get(keys("a")).dtype == np.float32
            np.testing.assert_array_equal(seen.get(keys("a")), vectors(1))

    def test_key_bytes_that_end_in_zeros_are_kept(self, cache: VectorCache) -> None:
        key = b"k" + bytes(KEY_BYTES - 1)
        cache.add([key], vectors(1))
        assert key in reopen(cache)

    def test_namespaces_are_apart(self, tmp_path: Path, cache: VectorCache) -> None:
        cache.add(keys("a"), vectors(1))
        assert len(VectorCache(tmp_path, "other", DIM)) == 0

    @pytest.mark.parametrize("shape", [(2, DIM + 1), (1, DIM), (3, DIM), (2,)])
    def test_wrong_shape_is_refused_and_leaves_no_trace(
        self, cache: VectorCache, shape: tuple[int, ...]
    ) -> None:
        cache.add(keys("z"), vectors(1))
        with pytest.raises(ValueError, match="shape"):
            cache.add(keys("a", "b"), np.zeros(shape, np.float32))
        assert len(cache) == len(reopen(cache)) == 1


class TestTorn:
    @pytest.mark.parametrize("left", [1, KEY_BYTES, RECORD - 1])
    def test_torn_record_is_cut_off(self, cache: VectorCache, left: int) -> None:
        cache.add(keys("a", "b"), vectors(1, 2))
        os.truncate(cache.path, RECORD + left)
        mended = reopen(cache)
        assert len(mended) == 1
        assert mended.path.stat().st_size == RECORD
        mended.add(keys("c"), vectors(3))
        again = reopen(cache)
        np.testing.assert_array_equal(again.get(keys("a", "c")), vectors(1, 3))
        assert len(again) == 2

    def test_only_a_torn_record(self, cache: VectorCache) -> None:
        cache.path.write_bytes(b"x" * (RECORD - 1))
        assert len(reopen(cache)) == 0
        assert cache.path.stat().st_size == 0

    def test_append_after_another_writers_torn_record_gives_no_wrong_vector(
        self, cache: VectorCache
    ) -> None:
        cache.add(keys("a"), vectors(1))
        with cache.path.open("ab") as other:
            other.write(b"t" * 5)
        cache.add(keys("b"), vectors(2))
        after = reopen(cache)
        np.testing.assert_array_equal(after.get(keys("a")), vectors(1))
        if keys("b")[0] in after:
            np.testing.assert_array_equal(after.get(keys("b")), vectors(2))


class TestWriters:
    def test_two_objects_take_turns(self, cache: VectorCache) -> None:
        other = reopen(cache)
        cache.add(keys("a"), vectors(1))
        other.add(keys("b"), vectors(2))
        cache.add(keys("c"), vectors(3))
        # Each knows its own until it opens again; the file has all.
        assert len(cache) == 2
        assert len(other) == 1
        np.testing.assert_array_equal(cache.get(keys("c")), vectors(3))
        np.testing.assert_array_equal(reopen(cache).get(keys("a", "b", "c")), vectors(1, 2, 3))

    def test_processes_at_once(self, tmp_path: Path) -> None:
        script = """
import sys
from pathlib import Path
import numpy as np
from thriftroute.data.vectors import VectorCache, content_key
folder, me = Path(sys.argv[1]), int(sys.argv[2])
cache = VectorCache(folder, "model", 3)
for i in range(0, 400, 4):
    names = [f"{me}-{j}" for j in range(i, i + 4)]
    rows = np.array([[me, j, me * 1000 + j] for j in range(i, i + 4)], np.float32)
    cache.add([content_key(n) for n in names], rows)
"""
        writers = [
            subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(me)])
            for me in range(3)
        ]
        assert [writer.wait() for writer in writers] == [0, 0, 0]
        cache = VectorCache(tmp_path, "model", DIM)
        assert len(cache) == 1200
        for me in range(3):
            got = cache.get([content_key(f"{me}-{j}") for j in range(400)])
            expected = [[me, j, me * 1000 + j] for j in range(400)]
            np.testing.assert_array_equal(got, np.array(expected, np.float32))

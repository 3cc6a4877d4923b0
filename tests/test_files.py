"""Whole files, whoever else writes them at the same time."""

import threading
from pathlib import Path

import pytest
from thriftroute.files import whole_file


def test_two_threads_that_write_one_file_each_write_it_whole(tmp_path: Path) -> None:
    path, begun, go = tmp_path / "found.json", threading.Event(), threading.Event()
    ended = []

    def slow() -> None:
        with whole_file(path) as file:
            file.write(b"slow")
            begun.set()
            assert go.wait(60)
        ended.append("slow")

    thread = threading.Thread(target=slow)
    thread.start()
    assert begun.wait(60)
    with whole_file(path) as file:
        file.write(b"quick")
    assert path.read_bytes() == b"quick"
    go.set()
    thread.join()
    assert ended == ["slow"]
    assert path.read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

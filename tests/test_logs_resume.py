"""An import that was stopped: the same call goes on, to the same bytes, or says why it cannot."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from thriftroute.data.logs.import_rows import ImportSettings
from thriftroute.data.logs.importing import import_logs
from thriftroute.data.logs.pool import ScalingError
from thriftroute.data.logs.schema import read_logs
from thriftroute.errors import ConfigError, DataError

N = 4000


class Enough(Exception):  # noqa: N818  no error: how a test ends an import early
    pass


def entries(n: int = N, start: int = 0) -> list[dict[str, Any]]:
    """Requests of which some come again, some have another's id, some are none, one is private."""
    found = []
    for i in range(start, start + n):
        text = f"question {i if i % 7 else i // 2}, é" + (" to bob@example.com" if i == 9 else "")
        entry = {"id": f"r{i % 3000}", "time": 1760000000 + i * 7919 % 9973, "model": "m"}
        failed = {"status_code": 500} if i % 50 == 0 else {}
        found.append({**entry, "prompt": text, "answer": f"a{i}", **failed})
    return found


def as_lines(records: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def as_list(records: Sequence[dict[str, Any]]) -> str:
    return "\ufeff" + json.dumps(records, ensure_ascii=False, indent=1)


def as_pages(records: Sequence[dict[str, Any]]) -> str:
    # Of more than a megabyte each: what is read at once ends with a page.
    long = [{**record, "more": "." * 4000} for record in records]
    return as_lines([{"data": long[i : i + 300]} for i in range(0, len(long), 300)])


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    rows = [f'{r["id"]},"{r["prompt"]}\r\n",{r["answer"]}' for r in records]
    return "\r\n".join(["\ufeffid,prompt,answer", *rows])


def stopped(
    files: Sequence[Path], out: Path, *, at: int = 3000, keep: int = 2000, **options: Any
) -> None:
    """An import that ends when so many entries are read, and has written down fewer of them."""

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "reading" and done >= at:
            raise Enough

    with pytest.raises(Enough):
        import_logs(files, out, ImportSettings(**options), keep_entries=keep, progress=stop)
    assert not out.exists()


def whole(files: Sequence[Path], out: Path, **options: Any) -> bytes:
    import_logs(files, out, ImportSettings(**options))
    return out.read_bytes()


def beside(out: Path) -> list[str]:
    """What an import left beside its file."""
    return sorted(p.name for p in out.parent.iterdir() if p.name.startswith(f"{out.name}."))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text(as_lines(entries()), encoding="utf-8")
    return path


@pytest.mark.no_cover  # the tests below run the same lines; tracing takes two thirds of the time
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [("l.jsonl", as_lines), ("l.json", as_list), ("l.jsonl", as_pages), ("l.csv", as_csv)],
)
def test_every_layout_goes_on_to_the_same_bytes(
    tmp_path: Path, name: str, write: Callable[[Any], str], packed: bool
) -> None:
    text = write(entries()).encode()
    log = tmp_path / (f"{name}.gz" if packed else name)
    log.write_bytes(gzip.compress(text) if packed else text)
    expected = import_logs([log], tmp_path / "whole.jsonl", ImportSettings(mask=True))
    out = tmp_path / "out.jsonl"
    stopped([log], out, mask=True)
    told: list[tuple[str, int]] = []
    result = import_logs(
        [log],
        out,
        ImportSettings(mask=True),
        progress=lambda stage, done, _: told.append((stage, done)),
    )
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {**result.to_dict(), "resumed": 0} == expected.to_dict()
    # Only what was not read before is read.
    assert result.resumed >= 2000 and told[0] == ("resumed", result.resumed)
    assert told[1][1] > result.resumed and told[-1] == ("reading", result.entries)
    assert beside(out) == []


def test_several_files_stopped_again_and_again(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "none.jsonl", tmp_path / "b.csv", tmp_path / "c.json"]
    files[0].write_text(as_lines(entries(1500)))
    files[1].write_text("")
    files[2].write_text(as_csv(entries(2500, start=1000)))
    files[3].write_text(as_list(entries(1500, start=2000)))
    options: dict[str, Any] = {"sample": None, "on_bad": "skip"}
    expected = whole(files, tmp_path / "whole.jsonl", **options)
    out = tmp_path / "out.jsonl"
    for at in (1000, 1500, 2500, 4000, 5500):
        stopped(files, out, at=at, keep=1000, **options)
    result = import_logs(files, out, ImportSettings(**options))
    assert out.read_bytes() == expected
    assert (result.resumed, result.entries) == (5000, 5500)
    weights = [row.weight for row in read_logs(out)]
    assert sum(weights) == result.requests == 5500 - result.left_out["failed"] and max(weights) > 1


def test_workers_read_the_same_and_go_on_with_another_number_of_them(
    log: Path, tmp_path: Path
) -> None:
    expected = whole([log], tmp_path / "whole.jsonl")
    import_logs([log], tmp_path / "two.jsonl", workers=2)
    assert (tmp_path / "two.jsonl").read_bytes() == expected
    stopped([log], tmp_path / "out.jsonl")
    result = import_logs([log], tmp_path / "out.jsonl", workers=2)
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert result.resumed == 2000


def begun(folder: Path, workers: int) -> subprocess.Popen[str]:
    """An import in a process of its own that has written down where it is, has read on, and
    waits."""
    code = f"""
        import time
        from thriftroute.data.logs.importing import import_logs
        def progress(stage, done, total):
            if done >= 3000:
                print(done, flush=True)
                time.sleep(600)
        if __name__ == "__main__":
            import_logs(["log.jsonl"], "out.jsonl", keep_entries=2000, workers={workers},
                        progress=progress)
    """
    (folder / "script.py").write_text(textwrap.dedent(code))
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "3000\n"
    return process


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_killed(
    log: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    expected = whole([log], tmp_path / "whole.jsonl")
    process = begun(tmp_path, workers)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    # Its workers end with it: nobody else would stop them.
    assert psutil.wait_procs(children, timeout=300)[1] == []
    out = tmp_path / "out.jsonl"
    assert not out.exists()
    result = import_logs([log], out)
    assert out.read_bytes() == expected
    assert result.resumed == 2000
    assert beside(out) == []


def test_what_was_read_is_the_owner_s_alone(log: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        stopped([log], tmp_path / "out.jsonl")
    finally:
        os.umask(old)
    work = tmp_path / "out.jsonl.work"
    assert work.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in work.iterdir()} == {0o600}


def test_a_store_that_is_broken_says_what_to_do(log: Path, tmp_path: Path) -> None:
    stopped([log], tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl.work" / "import.db").write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match=r"not a database.*or delete"):
        import_logs([log], tmp_path / "out.jsonl")


def test_a_worker_that_is_killed_ends_the_import_and_loses_nothing(tmp_path: Path) -> None:
    # More than waits for the workers at once: when they are gone, something is left to do.
    log = tmp_path / "log.jsonl"
    log.write_text(as_lines(entries(12_000)), encoding="utf-8")
    expected = whole([log], tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    before = set(psutil.Process().children(recursive=True))

    def kill(stage: str, done: int, total: int | None) -> None:
        # As the system does where memory runs out. Python's own helper is no worker.
        for child in set(psutil.Process().children(recursive=True)) - before:
            # One that was killed before has no command any more.
            with contextlib.suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(ScalingError, match="goes on from there"):
        import_logs([log], out, workers=2, keep_entries=1000, progress=kill)
    result = import_logs([log], out, workers=2)
    assert out.read_bytes() == expected
    assert result.resumed >= 1000


class TestAnImportThatWasBegun:
    @pytest.fixture
    def out(self, log: Path, tmp_path: Path) -> Path:
        stopped([log], tmp_path / "out.jsonl")
        return tmp_path / "out.jsonl"

    @pytest.mark.parametrize(
        ("key", "options"),
        [
            ("mask", {"mask": True}),
            ("format", {"format": "openai"}),
            ("skip_bad", {"on_bad": "skip"}),
        ],
    )
    def test_is_not_finished_with_other_settings(
        self, out: Path, log: Path, key: str, options: dict[str, Any]
    ) -> None:
        told = f"{out}.work is of a run with another {key}: .*, now .*; finish it .* or delete"
        with pytest.raises(ConfigError, match=told):
            import_logs([log], out, ImportSettings(**options))
        assert import_logs([log], out).resumed == 2000

    def test_is_not_finished_with_other_files(self, out: Path, log: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        other.write_bytes(log.read_bytes())
        for files in ([other], [log, other]):
            with pytest.raises(ConfigError, match="another inputs"):
                import_logs(files, out)

    def test_may_end_as_another_sample(self, out: Path, log: Path, tmp_path: Path) -> None:
        import numpy as np

        class Same:
            def embeddings(self, prompts: Sequence[Any], /) -> Any:
                return np.ones((len(prompts), 1), np.float32)

        options = ImportSettings(sample=50, seed=3)
        result = import_logs([log], out, options, embedder=Same())
        import_logs([log], tmp_path / "whole.jsonl", options, embedder=Same())
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert (result.resumed, result.written) == (2000, 50)

    def test_is_not_finished_on_a_log_that_was_another(self, out: Path, log: Path) -> None:
        was = log.read_bytes()
        for data in (was.replace(b"question 17,", b"question 18,", 1), was[:5000], b""):
            log.write_bytes(data)
            with pytest.raises(ConfigError, match=r"changed before line 2,001 since .* delete"):
                import_logs([log], out)
        log.unlink()
        with pytest.raises(DataError, match="cannot be opened"):
            import_logs([log], out)
        log.write_bytes(was)
        assert import_logs([log], out).resumed == 2000

    def test_may_go_on_with_lines_that_came_behind(
        self, out: Path, log: Path, tmp_path: Path
    ) -> None:
        with log.open("a") as file:
            file.write(as_lines(entries(500, start=N)))
        result = import_logs([log], out)
        assert (result.entries, result.resumed) == (N + 500, 2000)
        assert out.read_bytes() == whole([log], tmp_path / "whole.jsonl")

    def test_is_not_shared(self, out: Path, log: Path) -> None:
        refused = []

        def another(stage: str, done: int, total: int | None) -> None:
            with pytest.raises(ConfigError, match="another run works in") as caught:
                import_logs([log], out)
            refused.append(caught.value)

        import_logs([log], out, progress=another)
        assert refused

    def test_is_not_one_of_scores(self, log: Path, tmp_path: Path) -> None:
        work = tmp_path / "scores.jsonl.work"
        work.mkdir()
        (work / "mine").write_text("mine")
        with pytest.raises(ConfigError, match="no folder of an import"):
            import_logs([log], tmp_path / "scores.jsonl")
        assert (work / "mine").read_text() == "mine"


def test_a_file_that_was_read_must_be_as_it_was_to_its_end(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in files:
        path.write_text(as_lines(entries(2000)))
    stopped(files, tmp_path / "out.jsonl", at=4000, keep=1000)
    with files[0].open("a") as file:
        file.write(as_lines(entries(1)))
    with pytest.raises(ConfigError, match=r"a\.jsonl has grown, or changed at its end, since"):
        import_logs(files, tmp_path / "out.jsonl")


@pytest.mark.parametrize(("name", "write"), [("l.jsonl", as_lines), ("l.csv", as_csv)])
def test_a_last_line_that_was_not_whole_must_not_go_on(
    tmp_path: Path, name: str, write: Callable[[Any], str]
) -> None:
    log = tmp_path / name
    log.write_text(write(entries(3000)).rstrip())
    stopped([log], tmp_path / "out.jsonl", at=3000, keep=1000)
    with log.open("a") as file:
        file.write(", and more")
    with pytest.raises(ConfigError, match="has changed before line"):
        import_logs([log], tmp_path / "out.jsonl")


@pytest.mark.parametrize("write", [as_lines, as_list])
def test_a_bad_entry_that_was_mended(tmp_path: Path, write: Callable[[Any], str]) -> None:
    records = entries()
    records[3501]["cost"] = "much"
    log, out = tmp_path / "log.json", tmp_path / "out.jsonl"
    log.write_text(write(records))
    with pytest.raises(DataError, match="'much' is not a number"):
        import_logs([log], out, keep_entries=1000)
    records[3501]["cost"] = 1.5
    log.write_text(write(records))
    result = import_logs([log], out)
    assert result.resumed == 3000
    assert out.read_bytes() == whole([log], tmp_path / "whole.jsonl")


def test_skipped_entries_are_told_once(tmp_path: Path) -> None:
    records = entries()
    for i in (101, 2101, 2901, 3901):
        records[i]["cost"] = "much"
    log, out, bad = (tmp_path / name for name in ("log.jsonl", "out.jsonl", "bad.jsonl"))
    log.write_text(as_lines(records))
    stopped([log], out, on_bad="skip", rejects=bad)
    assert not bad.exists()
    result = import_logs([log], out, ImportSettings(on_bad="skip", rejects=bad))
    lines = [json.loads(line)["line"] for line in bad.read_text().splitlines()]
    assert lines == [102, 2102, 2902, 3902]
    assert (result.bad, result.resumed) == (4, 2000)
    assert f"{log}:102" in str(result.problem)


@pytest.mark.parametrize("name", ["none/bad.jsonl", "."])
def test_a_file_of_rejects_that_cannot_be_written_is_told_first(
    log: Path, tmp_path: Path, name: str
) -> None:
    options = ImportSettings(on_bad="skip", rejects=tmp_path / name)
    with pytest.raises(DataError, match="rejects file cannot be written"):
        import_logs([log], tmp_path / "out.jsonl", options)
    assert beside(tmp_path / "out.jsonl") == []


def test_an_import_that_wrote_nothing_down_leaves_nothing_behind(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    stopped([log], out)
    work = tmp_path / "out.jsonl.work"
    shutil.rmtree(work)
    work.mkdir()
    # So is one that was killed before it wrote anything down, or while it deleted its folder:
    # other settings may follow.
    (work / "import.db").touch()
    (work / "lock").touch()
    assert import_logs([log], out, ImportSettings(mask=True)).resumed == 0
    assert beside(out) == []

    def stop(stage: str, done: int, total: int | None) -> None:
        raise Enough

    with pytest.raises(Enough):
        import_logs([log], tmp_path / "b.jsonl", progress=stop)
    with pytest.raises(DataError, match="no request can be used"):
        empty = tmp_path / "empty.jsonl"
        empty.write_text(as_lines([{"messages": [], "status_code": 500}] * 3000))
        import_logs([empty], tmp_path / "b.jsonl", keep_entries=1000)
    assert beside(tmp_path / "b.jsonl") == []


def test_numbers_that_do_not_fit(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers: expected a whole number >= 1"):
        import_logs([log], tmp_path / "out.jsonl", workers=0)


def test_halves_of_surrogate_pairs_do_not_end_an_import(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    turns = [{"role": "system", "content": "\ud800"}, {"role": "user", "content": "a"}]
    own = {"id": "1", "messages": turns, "answer": "\udc00", "weight": 2.5}
    log.write_text(json.dumps(own) + "\n")
    result = import_logs([log], tmp_path / "out.jsonl")
    assert result.formats == {str(log): "logs"}
    (row,) = read_logs(tmp_path / "out.jsonl")
    assert (row.messages[0]["content"], row.answer, row.weight) == ("?", "?", 2.5)

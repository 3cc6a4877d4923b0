"""What holds prompts, answers, labels, decisions or keys is its owner's alone."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from thriftroute.cli import app
from thriftroute.data.lines import write_jsonl
from thriftroute.files import private, tighten, whole_file
from thriftroute.labels.ledger import LabelLedger
from thriftroute.serve.cache.store import SqliteStore
from thriftroute.serve.records.database import create_schema, open_engine
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """A umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


def rights(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_a_new_file_and_one_that_is_there_are_their_owners(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch(0o664)
    for path in (tmp_path / "new", there):
        with open(path, "a", encoding="utf-8", opener=private) as file:
            assert rights(path) == "0o600"
            file.write("x")


def test_what_is_read_and_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.touch(0o644)
    with open(path, opener=private):
        assert rights(path) == "0o644"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o666)
    assert not tighten(pipe)
    assert rights(pipe) == "0o666"
    assert not tighten(tmp_path / "nothing")


def write_records(folder: Path) -> Path:
    engine = open_engine(f"sqlite:///{folder / 'it'}")
    create_schema(engine)
    with engine.connect():  # with it open -wal and -shm are there
        assert {path.name for path in folder.iterdir()} == {"it", "it-wal", "it-shm"}
        assert {rights(path) for path in folder.iterdir()} == {"0o600"}
    engine.dispose()
    return folder / "it"


def write_records_by_uri(folder: Path) -> Path:
    engine = open_engine(f"sqlite:///file:{folder / 'it'}?uri=true")
    create_schema(engine)
    engine.dispose()
    return folder / "it"


def write_labels(folder: Path) -> Path:
    write_jsonl(folder / "it", [{"prompt": "x"}])
    return folder / "it"


def write_scores(folder: Path) -> Path:
    with whole_file(folder / "it", opener=private) as file:
        file.write(b"x")
    return folder / "it"


def write_state(folder: Path) -> Path:
    with LabelLedger(folder / "it"):
        pass
    return folder / "it"


def import_log(folder: Path) -> Path:
    log = folder.parent / "log.jsonl"
    log.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "response": "y"}))
    result = CliRunner().invoke(app, ["logs", "import", str(log), "--out", str(folder / "it")])
    assert result.exit_code == 0, result.output
    return folder / "it"


@pytest.mark.parametrize(
    "write",
    [write_records, write_records_by_uri, write_labels, write_scores, write_state, import_log],
)
@pytest.mark.parametrize("there", [False, True])
def test_files_of_prompts_are_their_owners(
    tmp_path: Path, write: Callable[[Path], Path], there: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if there:
        (folder / "it").touch(0o666)
    path = write(folder)
    assert rights(path) == "0o600"
    assert {rights(each) for each in folder.iterdir()} == {"0o600"}


def test_records_that_others_could_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "it").touch(0o644)
    write_records(tmp_path)
    assert "could be read by others" in caplog.text


def test_the_cache_folder_is_its_owners_and_a_folder_of_others_is_left_alone(
    tmp_path: Path,
) -> None:
    for name in ("new", "empty", "mixed"):
        if name != "new":
            (tmp_path / name).mkdir(0o777)
        if name == "mixed":
            (tmp_path / name / "other").touch()
        SqliteStore(tmp_path / name)
    found = {path.name: rights(path) for path in tmp_path.iterdir()}
    assert found == {"new": "0o700", "empty": "0o700", "mixed": "0o777"}

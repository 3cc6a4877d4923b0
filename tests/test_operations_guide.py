"""docs/operations.md: its backups are restored, and what it watches is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from thriftroute.serve.records.database import open_engine
from thriftroute.serve.records.metrics import Metrics
from thriftroute.serve.records.record import Record
from thriftroute.serve.records.stats import recent
from thriftroute.serve.records.writer import Recorder, RecordSettings
from thriftroute.tests.helpers.servers import postgres_server

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SAVED, RESTORED, DUMPED = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)


def shell(commands: str, folder: Path, **environ: str) -> str:
    """Run as the page has it, with the commands of this environment first."""
    folders = [
        str(Path(sys.executable).parent),
        *environ.pop("more", "").split(),
        os.environ["PATH"],
    ]
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        env={**os.environ, **environ, "PATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def record(url: str, id: str) -> None:
    recorder = Recorder(RecordSettings(url=url))
    recorder.start()
    recorder.put(Record(id, 1.0, model="weak", strong=False))
    recorder.close()


def test_a_backup_of_sqlite_is_restored(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("sqlite3 is not installed")
    path = tmp_path / "thriftroute.db"
    url = f"sqlite:///{path}"
    record(url, "kept")
    engine = open_engine(url)
    with engine.connect():  # as a server's own: it keeps the -wal file
        record(url, "kept too")
        shell(SAVED, tmp_path)
    engine.dispose()
    record(url, "later")
    assert "wrote 2 decisions" in shell(RESTORED, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_dump_of_postgresql_is_restored(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    dump, restore = DUMPED.splitlines()
    with postgres_server() as server:
        record(server.url, "kept")
        programs = " ".join(str(each) for each in Path("/usr/lib/postgresql").glob("*/bin"))
        url = {"RECORDS": server.url.replace("+psycopg", ""), "more": programs}
        shell(dump, tmp_path, **url)
        record(server.url, "later")
        shell(restore, tmp_path, **url)
        engine = open_engine(server.url)
        assert [row["id"] for row in recent(engine)] == ["kept"]
        engine.dispose()


def test_every_metric_that_it_names_is_exported() -> None:
    named = set(re.findall(r"`(thriftroute_\w+)`", PAGE))
    content, _ = Metrics().render()
    known = set(re.findall(r"^# TYPE (\w+)", content.decode(), re.M))
    assert len(named) > 8
    assert named - known == set()


def test_files_of_deploy_that_it_names_are_there() -> None:
    named = set(re.findall(r"deploy/[\w.-]+[\w]", PAGE))
    assert {"deploy/thriftroute.service", "deploy/kubernetes.yaml"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []

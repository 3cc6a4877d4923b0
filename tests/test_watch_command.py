"""`thriftroute watch`: exit statuses, JSON, baselines, and every mistake with it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from thriftroute.cli import app
from thriftroute.serve.config.settings import RecordSettings
from thriftroute.serve.records import Record, Recorder
from typer.testing import CliRunner, Result

CONFIG = """\
models: [{name: gpt-4o}, {name: gpt-4o-mini}]
strong: gpt-4o
weak: gpt-4o-mini
router: {name: mf, threshold: 0.3}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["watch", *args])


def fails(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("error: ")
    return result.stderr


def record(name: str, n: int = 1200, a: float = 3.0, **more: object) -> str:
    """A database of decisions of one distribution up to the middle, maybe of another after it."""
    url = f"sqlite:///{name}.db"
    recorder = Recorder(RecordSettings(url=url))
    recorder.start()
    random = np.random.default_rng(0)
    for i in range(n):
        score = float(random.beta(3.0 if i < n // 2 else a, 5))
        strong = score >= 0.4
        recorder.put(
            Record(
                **{
                    "id": f"d{i}",
                    "time": 1_800_000_000.0 + i,
                    "router": "mf",
                    "score": score,
                    "threshold": 0.4,
                    "strong": strong,
                    "model": "strong" if strong else "weak",
                    "prompt_hash": hashlib.sha256(str(i).encode()).hexdigest(),
                    "prompt": "a secret",
                    **more,
                }
            )
        )
    recorder.close()
    return url


MIDDLE = "1800000600"


def test_the_own_traffic_of_before_is_ok_and_changed_traffic_is_status_4() -> None:
    same, other = record("same"), record("other", a=5.0)
    made = run("--url", same, "--until", MIDDLE, "--save-baseline", "b.json")
    assert made.exit_code == 0, made.output
    assert made.stderr == "wrote b.json: 600 scores\n"
    assert "secret" not in Path("b.json").read_text()
    fine = run("--url", same, "--since", MIDDLE, "--baseline", "b.json")
    assert fine.exit_code == 0, fine.output
    assert "ok: no drift found" in fine.stdout
    changed = run("--url", other, "--since", MIDDLE, "--baseline", "b.json", "--json")
    assert changed.exit_code == 4
    found = json.loads(changed.stdout)
    assert (found["verdict"], found["n"], found["baseline"]) == ("drift", 600, "b")
    assert found["findings"]["scores"]["drift"]
    assert found["since"] == 1_800_000_600
    # A rate that no p-value reaches.
    never = run("--url", same, "--since", MIDDLE, "--baseline", "b.json", "--alpha", "1e-300")
    assert never.exit_code == 0


def test_the_bundles_own_table_is_the_baseline_where_no_file_is_given() -> None:
    url = record("r", n=300)
    result = run("--url", url, "--router", "mf", "--json")
    assert result.exit_code == 4  # other scores than those of its validation prompts
    assert json.loads(result.stdout)["baseline"] == "ordinary"
    assert run("--url", url, "--json").stdout == result.stdout


def test_the_config_says_where_and_against_what() -> None:
    record("thriftroute", n=300)
    assert "nothing to look at: give --url" in fails()
    Path("thriftroute.yaml").write_text(CONFIG)
    assert json.loads(run("--json").stdout)["baseline"] == "ordinary"
    run("--save-baseline", "b.json")
    Path("thriftroute.yaml").write_text(CONFIG + "watch: {baseline: b.json, alpha: 0.2}\n")
    found = json.loads(run("--json").stdout)
    assert (found["baseline"], found["alpha"], found["verdict"]) == ("b", 0.2, "ok")
    assert "there is no such file" in fails("--config", "no.yaml")


def test_shadow_mode_is_told() -> None:
    meant = {"routed": "weak", "threshold": 1.0, "routed_cost": 1.0}
    url = record("r", n=200, strong=True, model="strong", cost=3.0, **meant)
    result = run("--url", url)
    assert "shadow mode: 200 requests cost $600; routed, 0.0%" in result.stdout
    assert "$400 saved (66.7%)" in result.stdout
    assert json.loads(run("--url", url, "--json").stdout)["shadow"]["saving"] == 400


def test_nothing_recorded_is_no_drift() -> None:
    url = record("r", n=0)
    result = run("--url", url)
    assert result.exit_code == 0
    assert "no-data: nothing to look at yet" in result.stdout
    assert run("--url", url, "--save-baseline", "b.json").exit_code == 1
    assert not Path("b.json").exists()


def test_several_routers_are_to_be_told_apart() -> None:
    url = record("r", n=300)
    record("r", n=301, router="bert", id="x")
    assert "several routers scored these decisions: mf (300), bert (1)" in fails("--url", url)
    assert "none by 'random'" in fails(
        "--url", url, "--save-baseline", "b.json", "--router", "random"
    )
    assert json.loads(run("--url", url, "--router", "mf", "--json").stdout)["n"] == 300


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("--since", "yesterday"), "--since 'yesterday': expected seconds since 1970"),
        (("--until", "nan"), "--until 'nan': expected"),
        (("--alpha", "2"), "alpha 2.0: expected a false-alarm rate"),
        (("--threshold", "3"), "threshold 3.0 is out of range"),
        (("--router", "random"), "router 'random' has no table of thresholds"),
        (("--router", "nonsense"), "unknown router 'nonsense'"),
        (("--by", "moon", "--experiment"), "--by 'moon': expected session or tenant"),
        (("--experiment",), "no decision is of an experiment; see `experiment` in docs/watch.md"),
    ],
)
def test_mistakes(args: tuple[str, ...], problem: str) -> None:
    assert problem in fails("--url", record("r", n=60), *args)


def test_a_database_that_is_none() -> None:
    assert "the records cannot be read: " in fails("--url", "sqlite:///no/such/folder.db")
    assert "there is no missing.db" in fails("--url", "sqlite:///missing.db")
    assert not Path("missing.db").exists()
    assert "expected a database of sqlite or postgresql" in fails("--url", "mysql://host/db")
    Path("b.json").write_text("{}")
    Path("r.db").touch()
    result = run("--url", "sqlite:///r.db", "--baseline", "b.json")
    assert (result.exit_code, "no baseline" in result.stderr) == (1, True)

"""The same chunks on Ray Data, on a local cluster of two nodes with one core each.

In processes of their own: Ray warns about what this project has no hand in, and here a warning is
an error.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.batch.run import score_logs
from thriftroute.data.batch.settings import ScoreSettings
from thriftroute.errors import MissingExtraError

# One cluster for all that is asked of it: it takes seconds to start.
SCRIPT = """
import json, os, sys
from ray.cluster_utils import Cluster
from thriftroute.errors import ThriftrouteError
from thriftroute.data.batch.run import score_logs
from thriftroute.data.batch.settings import ScoreSettings

def main():
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False}
    )
    cluster.add_node(**node)
    import ray
    for name, options in json.loads(sys.argv[1]).items():
        if name == "connected":
            ray.init(address=cluster.address, log_to_driver=False)
        try:
            summary = score_logs(ScoreSettings(**{"workers": 2, "ray": cluster.address, **options}))
            print(json.dumps([name, summary.rows, summary.resumed]), flush=True)
        except ThriftrouteError as error:
            print(json.dumps([name, type(error).__name__, str(error)]), flush=True)
    print(json.dumps(["nodes", len([n for n in ray.nodes() if n["Alive"]])]), flush=True)
    ray.shutdown()
    cluster.shutdown()

if __name__ == "__main__":
    main()
"""


def on_cluster(folder: Path, runs: dict[str, Any]) -> dict[str, list[Any]]:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    script = folder / "cluster.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(runs)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: rest for name, *rest in told}


def test_two_nodes_give_the_file_that_one_process_gives(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ("prove", "theorem", "hard", "easy", "hello")
    rows = [{"id": str(i), "prompt": f"{words[i % 5]} {words[i % 3]} {i}"} for i in range(60)]
    log, bad = tmp_path / "log.jsonl", tmp_path / "bad.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text('{"id": "a", "prompt": "x"}\n{"id": "b"}\n')
    same: dict[str, Any] = {"inputs": [str(log)], "router": str(tiny_bundle), "chunk_rows": 7}
    options = {**same, "embeddings": True, "clusters": 3}
    score_logs(ScoreSettings(out=tmp_path / "one.parquet", **options))
    two = tmp_path / "two.parquet"
    begin(two, options)
    # Chunks of seven rows, the ninth of four; another may end while the first one stops the run.
    chunks = [int(path.stem) for path in (tmp_path / "two.parquet.work" / "parts").glob("*.json")]
    resumed = sum(4 if chunk == 8 else 7 for chunk in chunks)
    assert 7 <= resumed < 60

    found = on_cluster(
        tmp_path,
        {
            "nowhere": {**same, "out": str(tmp_path / "no.jsonl"), "ray": "nowhere://x"},
            "resumed": {**options, "out": str(two)},
            "connected": {**same, "inputs": [str(bad)], "out": str(tmp_path / "bad.parquet")},
        },
    )
    kind, text = found["nowhere"]
    assert kind == "ConfigError"
    assert text.startswith("no Ray at 'nowhere://x'")
    assert found["resumed"] == [60, resumed]
    assert two.read_bytes() == (tmp_path / "one.parquet").read_bytes()
    # A Ray that the caller is connected to is used, and stays connected whatever happens.
    kind, text = found["connected"]
    assert kind == "DataError"
    assert text.startswith(f"{bad}:2, field 'prompt': missing")
    assert found["nodes"] == [2]


def begin(out: Path, options: dict[str, Any]) -> None:
    """A run that ends after its first chunk."""

    def stop(state: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        score_logs(ScoreSettings(out=out, **options), stop)


def test_without_the_extra(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    log = tmp_path / "log.jsonl"
    log.write_text('{"id": "a", "prompt": "x"}\n')
    settings = ScoreSettings(
        inputs=[log], out=tmp_path / "s.jsonl", router=str(tiny_bundle), ray="local"
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'thriftroute\[ray\]'"):
        score_logs(settings)
